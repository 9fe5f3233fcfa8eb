"""The next time of a schedule, held against a walk over all minutes, and the nights with changed clocks."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gearflow.schedules import Cron, Every, Plan

ZONES = {
    "Europe/Berlin": [(2027, 3, 28), (2027, 10, 31)],
    "America/New_York": [(2027, 3, 14), (2027, 11, 7)],
    "America/St_Johns": [(2027, 3, 14), (2027, 11, 7)],
    "Australia/Lord_Howe": [(2027, 4, 4), (2027, 10, 3)],  # half an hour
    "Asia/Kolkata": [(2027, 3, 1)],
    "Pacific/Apia": [(2011, 12, 30), (2021, 4, 4), (2020, 9, 27)],  # the first is a day without an hour
    "Africa/Casablanca": [(2027, 2, 7), (2027, 3, 14)],  # back first, forward a month later
    "UTC": [(2028, 2, 28)],
}
"""Days of which the nights before and after are walked."""

AROUND = timedelta(hours=40)


class Field(NamedTuple):
    """A field of an expression, and the numbers that it stands for."""

    text: str
    numbers: frozenset[int]

    @property
    def has_star(self) -> bool:
        return self.text.startswith("*")


def fields(low: int, high: int) -> st.SearchStrategy[Field]:
    every = frozenset(range(low, high + 1))
    numbers = st.integers(low, high)
    return st.one_of(
        st.just(Field("*", every)),
        numbers.map(lambda number: Field(str(number), frozenset({number}))),
        st.lists(numbers, min_size=1, max_size=4).map(
            lambda some: Field(",".join(map(str, some)), frozenset(some))
        ),
        st.integers(1, 30).map(lambda step: Field(f"*/{step}", frozenset(range(low, high + 1, step)))),
        st.tuples(numbers, numbers)
        .map(sorted)
        .map(lambda ends: Field(f"{ends[0]}-{ends[1]}", frozenset(range(ends[0], ends[1] + 1)))),
    )


Expression = tuple[Field, Field, Field, Field, Field]

weekdays = fields(0, 6).map(lambda one: Field(one.text, frozenset(day or 7 for day in one.numbers)))
ANY_DAY = Field("*", frozenset(range(1, 32)))
ANY_MONTH = Field("*", frozenset(range(1, 13)))
ANY_WEEKDAY = Field("*", frozenset(range(1, 8)))
expressions: st.SearchStrategy[Expression] = st.tuples(
    fields(0, 59),
    fields(0, 23),
    st.one_of(st.just(ANY_DAY), fields(1, 31)),
    st.just(ANY_MONTH),
    st.one_of(st.just(ANY_WEEKDAY), weekdays),
)
windows = st.sampled_from([(zone, day) for zone, days in ZONES.items() for day in days])


def fits(expression: Expression, wall: datetime) -> bool:
    minute, hour, day, month, weekday = expression
    if wall.minute not in minute.numbers or wall.hour not in hour.numbers or wall.month not in month.numbers:
        return False
    of_month, of_week = wall.day in day.numbers, wall.isoweekday() in weekday.numbers
    return (of_month and of_week) if day.has_star or weekday.has_star else (of_month or of_week)


def walk(expression: Expression, zone: ZoneInfo, start: datetime, end: datetime) -> Iterator[float]:
    """The times that one finds who looks at the clock each minute.

    Neither minute nor hour with a star: it is due when clocks first show the time, or have skipped it.
    Otherwise: whenever clocks show it.
    """
    once = not expression[0].has_star and not expression[1].has_star
    minute = timedelta(minutes=1)
    (_, latest), *minutes = clock(zone, start, end)
    for unix, wall in minutes:
        if not once:
            due = fits(expression, wall)
        else:
            due = False
            while latest < wall:
                latest += minute
                due = fits(expression, latest) or due
        if due:
            yield unix


@lru_cache
def clock(zone: ZoneInfo, start: datetime, end: datetime) -> list[tuple[float, datetime]]:
    """What clocks show at each minute."""
    count = int((end - start) / timedelta(minutes=1)) + 1
    times = [start + timedelta(minutes=number) for number in range(count)]
    return [(time.timestamp(), time.astimezone(zone).replace(tzinfo=None)) for time in times]


def times(plan: Plan, start: float, end: float) -> Iterator[float]:
    while (following := plan.next_after(start)) is not None and following <= end:
        yield following
        start = following


@settings(max_examples=150)
@given(expressions, windows, st.integers(0, 59))
@example(
    (
        Field("0", frozenset({0})),
        Field("*/6", frozenset({0, 6, 12, 18})),
        ANY_DAY,
        ANY_MONTH,
        ANY_WEEKDAY,
    ),
    ("Australia/Lord_Howe", (2027, 4, 4)),
    0,
)
def test_the_times_are_those_that_a_walk_over_all_minutes_finds(
    expression: Expression, window: tuple[str, tuple[int, int, int]], seconds: int
) -> None:
    name, (year, month, day) = window
    zone = ZoneInfo(name)
    middle = datetime(year, month, day, tzinfo=UTC)
    start, end = middle - AROUND, middle + AROUND
    text = " ".join(field.text for field in expression)
    try:
        plan = Cron(text, tz=name).plan()
    except ValueError as error:
        assert "never due" in str(error) or "bad day" in str(error)  # noqa: PT017  a 31 of a */2 weekday, say
        return
    found = list(times(plan, start.timestamp() + seconds / 60, end.timestamp()))
    assert found == list(walk(expression, zone, start, end))
    for tick in found[:3]:  # between two times it makes no difference where one asks
        assert plan.next_after(tick - 0.25) == tick
        assert plan.next_after(tick - 1 - seconds) == tick or plan.next_after(tick - 1 - seconds) in found


def next_wall(expression: str, tz: str, after: tuple[int, ...]) -> str:
    zone = ZoneInfo(tz)
    year, month, day, hour, minute = after
    start = datetime(year, month, day, hour, minute, tzinfo=zone).timestamp()
    following = Cron(expression, tz=tz).plan().next_after(start)
    assert following is not None
    return datetime.fromtimestamp(following, zone).isoformat()


@pytest.mark.parametrize("hour", [0, 1, 2, 3, 4, 5])
def test_six_in_the_morning_is_found_where_clocks_change_by_half_an_hour(hour: int) -> None:
    found = next_wall("0 */6 * * *", "Australia/Lord_Howe", (2027, 4, 4, hour, 0))
    assert found == "2027-04-04T06:00:00+10:30"


def all_of(expression: str, tz: str, day: tuple[int, int, int]) -> list[str]:
    zone = ZoneInfo(tz)
    start = datetime(*day, tzinfo=zone)
    end = datetime(*day, 23, 59, tzinfo=zone)
    found = times(Cron(expression, tz=tz).plan(), start.timestamp() - 1, end.timestamp())
    return [datetime.fromtimestamp(time, zone).strftime("%H:%M %Z") for time in found]


def test_a_time_that_clocks_skip_comes_at_the_end_of_the_gap() -> None:
    assert all_of("30 2 * * *", "Europe/Berlin", (2027, 3, 28)) == ["03:00 CEST"]
    assert all_of("15,30 2,3 * * *", "Europe/Berlin", (2027, 3, 28)) == [
        "03:00 CEST",
        "03:15 CEST",
        "03:30 CEST",
    ]


def test_a_time_that_clocks_show_twice_comes_once() -> None:
    assert all_of("30 2 * * *", "Europe/Berlin", (2027, 10, 31)) == ["02:30 CEST"]


def test_an_expression_with_a_star_follows_the_clock() -> None:
    assert all_of("*/20 2 * * *", "Europe/Berlin", (2027, 3, 28)) == []
    assert all_of("*/20 2 * * *", "Europe/Berlin", (2027, 10, 31)) == [
        *("02:00 CEST", "02:20 CEST", "02:40 CEST"),
        *("02:00 CET", "02:20 CET", "02:40 CET"),
    ]
    assert len(all_of("0 * * * *", "Europe/Berlin", (2027, 3, 28))) == 23
    assert len(all_of("0 * * * *", "Europe/Berlin", (2027, 10, 31))) == 25


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_start_and_end_belong_to_the_times() -> None:
    start, end = datetime(2027, 1, 1, 9, tzinfo=UTC), datetime(2027, 1, 3, 9, tzinfo=UTC)
    plan = Cron("0 9 * * *", start=start, end=end).plan()
    found = [datetime.fromtimestamp(time, UTC).day for time in times(plan, 0, at("2030-01-01T00:00Z"))]
    assert found == [1, 2, 3]


def test_an_interval_counts_from_the_first_apply() -> None:
    plan = Every(minutes=5).plan(first=1000.7)
    assert plan.next_after(1000.7) == 1300
    assert plan.next_after(1299.9) == 1300
    assert plan.next_after(1300) == 1600
    assert plan.next_after(1_000_000) == 1_000_300


def test_an_interval_counts_from_its_start() -> None:
    start = datetime(2027, 1, 1, tzinfo=UTC)
    plan = Every(hours=1, start=start, end=start + timedelta(hours=1)).plan(first=1000.7)
    assert plan.next_after(0) == start.timestamp()
    assert plan.next_after(start.timestamp()) == start.timestamp() + 3600
    assert plan.next_after(start.timestamp() + 3600) is None


@given(st.integers(1, 10**8), st.floats(0, 4e9), st.floats(0, 4e9))
def test_an_interval_is_in_step_with_where_it_counts_from(every: int, first: float, after: float) -> None:
    following = Every(seconds=every).plan(first=first).next_after(after)
    assert following is not None
    assert following > after
    assert following - every <= after or following == int(first)
    assert (following - int(first)) % every == 0


def test_a_tick_is_always_late_by_the_same_time() -> None:
    plan = Every(minutes=5, jitter=60).plan("report", first=0.0)
    ticks = [300.0 * number for number in range(1, 200)]
    late = [plan.delayed(tick) - tick for tick in ticks]
    assert all(0 <= delay < 60 for delay in late)
    assert late == [Every(minutes=5, jitter=60).plan("report").delayed(tick) - tick for tick in ticks]
    assert late != [Every(minutes=5, jitter=60).plan("other").delayed(tick) - tick for tick in ticks]
    assert max(late) - min(late) > 50
    assert Every(minutes=5).plan("report").delayed(300.0) == 300.0


@pytest.mark.parametrize("after", [-1e15, -7e10, 0.0, 2.6e11, 1e15, float("inf"), float("nan")])
def test_any_time_has_an_answer(after: float) -> None:
    for plan in (Cron("0 0 29 2 *", tz="Europe/Berlin").plan(), Every(days=1).plan()):
        following = plan.next_after(after)
        assert following is None or following > after


NEVER_OR_SELDOM = [
    "0 0 30 2 *",
    "0 0 */31 * 1#5",
    "0 0 */1 2 1#5",
    "1-59/2 1-23/2 */31 2-12/2 1#5",
    "* * 29 2 *",
]


@pytest.mark.parametrize("text", NEVER_OR_SELDOM)
def test_an_expression_that_is_seldom_or_never_due_costs_little(text: str) -> None:
    assert calls_of(text, "Europe/Berlin") < 150_000


def calls_of(text: str, tz: str) -> int:
    """How many functions are called to read an expression and to find its next time."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        Cron(text, tz=tz).plan().next_after(1.8e9)
    except ValueError:
        pass
    finally:
        sys.setprofile(before)
    return calls
