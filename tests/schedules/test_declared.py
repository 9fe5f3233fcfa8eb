"""What code may declare, what it is on the wire, and what is refused with a remedy."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gearflow.schedules import Cron, Every, when


def test_a_schedule_says_when_it_is_due_as_json() -> None:
    assert Cron("0 3 * * *", tz="Europe/Berlin", args={"id": 42}).to_json() == {
        "cron": "0 3 * * *",
        "tz": "Europe/Berlin",
    }
    start = datetime(2027, 1, 1, tzinfo=UTC)
    options: Any = {"missed": "all", "overlap": "queue", "jitter": 30, "grace": timedelta(hours=1)}
    assert Every(minutes=5, start=start, end=start + timedelta(days=1), **options).to_json() == {
        "every": 300.0,
        "start": start.timestamp(),
        "end": start.timestamp() + 86400,
        "missed": "all",
        "overlap": "queue",
        "jitter": 30.0,
        "grace": 3600.0,
    }


def test_equal_intervals_are_equal() -> None:
    assert Every(minutes=60) == Every(hours=1)
    assert Every(minutes=60).to_json() == Every(hours=1).to_json()
    assert Every(minutes=60) != Every(hours=1, jitter=1)
    assert repr(Every(minutes=5, args={"a": 1})) == "Every(minutes=5, args={'a': 1})"


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("* * * *", "five fields"),
        ("0 0 * * * *", "Every(seconds=...)"),
        ("@daily", "write '0 0 * * *' instead"),
        ("61 * * * *", "bad minute"),
        ("0 0 30 2 *", "bad day-of-month"),
        ("0 0 */31 * 1#5", "never due"),
        ("0 0 * * ²", "five fields"),
        ("1," * 300, "200 characters"),
        ("", "five fields"),
        ("9" * 150 + " * * * *", "bad minute"),
    ],
)
def test_an_expression_that_is_not_valid_is_refused_where_it_is_written(text: str, remedy: str) -> None:
    with pytest.raises(ValueError, match="is not a cron expression") as caught:
        Cron(text)
    assert remedy in str(caught.value)


@pytest.mark.parametrize("tz", ["Europe/Berln", "", "/etc/passwd", "../UTC", "Europe", "a\0b", "x" * 5000])
def test_a_zone_that_is_not_known_is_refused_where_it_is_written(tz: str) -> None:
    with pytest.raises(ValueError, match="Europe/Berlin"):
        Cron("0 0 * * *", tz=tz)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"missed": "twice"}, "'once', 'skip', 'all'"),
        ({"overlap": "drop"}, "'skip', 'queue', 'allow', 'cancel'"),
        ({"jitter": -1}, "not negative"),
        ({"grace": "1d"}, "a number of seconds, or a timedelta"),
        ({"start": datetime(2027, 1, 1)}, "tzinfo=ZoneInfo('Europe/Berlin')"),
        ({"start": 5}, "datetime with a time zone"),
        ({"start": datetime(2027, 1, 2, tzinfo=UTC), "end": datetime(2027, 1, 1, tzinfo=UTC)}, "never due"),
        ({"args": [42]}, "a dict of arguments"),
    ],
)
@pytest.mark.parametrize("kind", [Cron, Every])
def test_an_option_that_is_not_valid_is_refused(kind: Any, options: dict[str, Any], expected: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        Cron("0 0 * * *", **options) if kind is Cron else Every(minutes=5, **options)
    assert expected in str(caught.value)
    assert str(caught.value).startswith(kind.__name__)


@pytest.mark.parametrize("words", [{}, {"seconds": 0}, {"seconds": -5}, {"seconds": 1.5}, {"weeks": 1e300}])
def test_an_interval_is_a_number_of_whole_seconds(words: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Every"):
        Every(**words)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"cron": "0 0 * * *", "every": 5},
        {"every": 5, "tz": "UTC"},
        {"every": "5"},
        {"every": float("nan")},
        {"every": True},
        {"cron": 5},
        {"cron": "0 0 * * *", "tz": None},
        {"cron": "0 0 * * *", "start": "now"},
        {"cron": "0 0 * * *", "start": float("inf")},
        {"cron": "0 0 * * *", "jitter": 1e300},
        {"cron": "0 0 * * *", "missed": []},
        {"cron": "0 0 * * *", "color": "red"},
    ],
)
def test_json_from_outside_is_refused_if_it_is_not_valid(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        when(value)


ALPHABET = "0123456789*,/-#LWlw \tMONJAN²ß\0"


@settings(max_examples=300)
@given(st.one_of(st.text(max_size=40), st.text(ALPHABET, max_size=30), st.lists(st.text(ALPHABET, max_size=8),
    min_size=5, max_size=5).map(" ".join)))  # fmt: skip
def test_any_text_is_an_expression_or_refused(text: str) -> None:
    try:
        plan = when({"cron": text, "tz": "Australia/Lord_Howe"})
    except ValueError:
        return
    following = plan.next_after(1.8e9)
    assert following is None or following > 1.8e9


def test_without_cronsim_the_error_says_what_to_install() -> None:
    code = """
import sys
sys.modules["cronsim"] = None
from gearflow.schedules import Cron, Every
Every(minutes=5)
try:
    Cron("0 0 * * *")
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'gearflow[cron]'" in done.stdout


def marks(plan: Any, after: str, count: int) -> list[tuple[str, str]]:
    found = plan.upcoming(datetime.fromisoformat(after).timestamp(), count)
    return [(entry.wall, entry.mark) for entry in found]


def test_upcoming_times_are_marked_where_clocks_change() -> None:
    fixed = Cron("30 2 * * *", tz="Europe/Berlin").plan()
    assert marks(fixed, "2027-03-27T00:00Z", 3) == [
        ("2027-03-27 02:30", ""),
        ("2027-03-28 03:00", "moved"),
        ("2027-03-29 02:30", ""),
    ]
    assert marks(fixed, "2027-10-30T12:00Z", 2) == [("2027-10-31 02:30", "once"), ("2027-11-01 02:30", "")]
    starred = Cron("*/30 2 * * *", tz="Europe/Berlin").plan()
    assert marks(starred, "2027-03-27T12:00Z", 1) == [
        ("2027-03-28 02:00", "dropped"),
        ("2027-03-28 02:30", "dropped"),
        ("2027-03-29 02:00", ""),
    ]
    assert marks(starred, "2027-10-30T12:00Z", 5) == [
        ("2027-10-31 02:00", "first"),
        ("2027-10-31 02:30", "first"),
        ("2027-10-31 02:00", "second"),
        ("2027-10-31 02:30", "second"),
        ("2027-11-01 02:00", ""),
    ]


def test_a_year_is_searched_for_times_that_clocks_affect() -> None:
    after = datetime(2027, 1, 1, tzinfo=UTC).timestamp()

    def affected(expression: str, tz: str) -> list[tuple[str, str]]:
        return [(one.wall, one.mark) for one in Cron(expression, tz=tz).plan().affected(after)]

    assert affected("30 2 * * *", "Europe/Berlin") == [
        ("2027-03-28 03:00", "moved"),
        ("2027-10-31 02:30", "once"),
    ]
    assert affected("*/30 2 * * *", "Europe/Berlin") == [
        ("2027-03-28 02:00", "dropped"),
        ("2027-03-28 02:30", "dropped"),
        ("2027-10-31 02:00", "first"),
        ("2027-10-31 02:00", "second"),
        ("2027-10-31 02:30", "first"),
        ("2027-10-31 02:30", "second"),
    ]
    assert affected("0 3 * * *", "Europe/Berlin") == []
    assert affected("30 2 * * *", "Asia/Kolkata") == []
    assert affected("30 2 * * *", "UTC") == []
    assert Every(hours=1).plan().affected(after) == []
