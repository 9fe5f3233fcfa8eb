"""What the screen of ``gearflow top`` shows, without a terminal."""

import re
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gearflow.observe import Activity, FleetView, ServerView
from gearflow.protocol.histograms import Histogram
from gearflow.protocol.metrics import FunctionMetrics, Metrics
from gearflow.protocol.server_calls import Failure, JobInfo, ServerInfo
from gearflow.protocol.workers import WorkerInfo, WorkerJob
from gearflow_cli.top.columns import KnownJob, Seen, count, rate, span
from gearflow_cli.top.frame import frame
from gearflow_cli.top.model import PAGES, Choices, Opened, Question, TopPage
from gearflow_cli.top.rows import rows_of
from gearflow_cli.top.terminal import keys_in
from tests import drawing

NOW: Final = 1_800_000_000.0


def metrics(*functions: FunctionMetrics) -> Metrics:
    return Metrics(time=NOW, started=NOW - 7000, functions=functions, connections=7, dead=2)


def info(**more: object) -> ServerInfo:
    known = {"version": "gearflow-1", "durable": True, "store": "file", "functions": (), "keep": 1.0}
    return ServerInfo.model_validate({**known, "max_deaths": 3, "jobs": 5, **more})


MAIL: Final = FunctionMetrics(
    function="shop.mail.send",
    waiting=(1, 12344, 0),
    delayed=3,
    running=8,
    oldest=190.0,
    workers=2,
    slots=20,
    free=12,
    run=Histogram(counts=(0, 0, 0, 0, 5)),
)
IMAGES: Final = FunctionMetrics(function="shop.images.make_thumbnail", waiting=(0, 2, 0), paused=True)
IDLE: Final = FunctionMetrics(function="idle")
LEGACY: Final = FunctionMetrics(function="legacy", waiting=(0, 4, 0))
WORKER: Final = WorkerInfo(
    id="k3f0-2",
    client_id="host:4242",
    address="10.0.0.7",
    functions=("shop.mail.send",),
    since=NOW - 100,
    slots=4,
    running=1,
    jobs=(WorkerJob(handle="H:1", function="shop.mail.send", since=NOW - 65),),
)
OURS: Final = ServerView(
    "jobs:4730",
    NOW,
    kind="gearflow",
    version="gearflow-1",
    info=info(),
    metrics=metrics(IDLE, MAIL, IMAGES),
    functions=(IDLE, MAIL, IMAGES),
    workers=(WORKER,),
    round_trip=0.0004,
)
THEIRS: Final = ServerView("old:4730", NOW, kind="gearmand", version="1.1.21", functions=(LEGACY,))
AWAY: Final = ServerView("away:4730", NOW, error="connection refused")
JOBS: Final = (
    KnownJob(
        OURS,
        "H:1",
        JobInfo(
            handle="H:1",
            function="shop.mail.send",
            state="running",
            started=NOW - 65,
            progress=(3, 10),
            message="half\x1b[31m",
        ),
        "running",
    ),
    KnownJob(THEIRS, "H:old:2", None, "-"),
    KnownJob(
        OURS,
        "H:3",
        JobInfo(
            handle="H:3",
            function="shop.mail.send",
            state="raised",
            dead=True,
            ended=NOW - 9,
            attempt=3,
            failure=Failure(type="shop.NoAddress", message="order 4711\nhas none"),
        ),
        "dead",
    ),
)
ALL: Final = Seen(
    FleetView((OURS, THEIRS, AWAY)),
    {"shop.mail.send": Activity(submitted=30, succeeded=20.4, failed=0.25, retried=0.5)},
    NOW,
    JOBS,
    several=True,
)
ALONE: Final = Seen(FleetView((OURS,)), {}, NOW, several=False)


def drawn(choices: Choices, shown: Seen | None = ALL, width: int = 120, height: int = 24) -> list[str]:
    return [line.plain.rstrip() for line in frame(choices, shown, width, height)]


def row(lines: list[str], text: str) -> str:
    """The row with a text, with one blank between its words."""
    (found,) = (line for line in lines if text in line and not line.startswith(text))
    return re.sub(" +", " ", found.strip("> "))


def marked(lines: list[str]) -> str:
    """The selected row."""
    (found,) = (line for line in lines if line.startswith("> "))
    return found


@given(
    st.sampled_from(PAGES),
    st.integers(1, 220),
    st.integers(3, 60),
    st.sampled_from([ALL, ALONE, None, Seen(FleetView((AWAY,)), None, NOW)]),
    st.sampled_from(["list", "help", "opened", "question", "typing"]),
    st.lists(st.sampled_from(["down", "end", "page down", "s", "i", "tab", "/", "x", "enter"]), max_size=4),
)
@settings(max_examples=100)
def test_a_frame_fits_the_terminal(
    page: TopPage, width: int, height: int, shown: Seen | None, state: str, keys: list[str]
) -> None:
    choices = Choices(page=page, help=state == "help", typing=state == "typing")
    if state == "opened":
        choices.opened = Opened("Job H:1", None, ["word " * 40, "x" * 300, "\u6f22" * 90])
    if state == "question":
        choices.question = Question("Cancel " + "x" * 300, "cancel", None)
    for key in keys:
        choices.press(key)
        lines = frame(choices, shown, width, height)
        assert len(lines) == height
        assert all(line.cell_len <= width and line.plain.isprintable() for line in lines)


def test_all_of_the_help_fits_a_small_terminal() -> None:
    shown = "\n".join(line.plain.rstrip() for line in frame(Choices(help=True), ALL, 80, 24))
    assert "A - stands for what a server does not tell." in shown
    assert "below" not in shown


@pytest.mark.parametrize("length", [17, 18, 19, 40])
def test_the_end_of_a_long_text_is_reached(length: int) -> None:
    text = [f"line {number}" for number in range(length)]
    choices = Choices(opened=Opened("Job H:1", None, text))
    first = [line.plain for line in frame(choices, ALL, 80, 24)]
    left = length - sum(line.startswith("line ") for line in first)
    assert (f"{left} more lines below" in first) == (left > 0)
    assert left != 1
    choices.press("end")
    assert f"line {length - 1}" in [line.plain for line in frame(choices, ALL, 80, 24)]


def test_the_largest_queue_comes_first_with_its_figures() -> None:
    lines = drawn(Choices())
    assert "12,351 waiting" in lines[1]
    assert "21 ended/s" in lines[1]
    assert "0.75 failed/s" in lines[1]
    names = [re.findall(r"\S+", line.strip("> "))[0] for line in lines[4:8]]
    assert names == ["shop.mail.send", "legacy", "shop.images.make_thumbnail", "idle"]
    assert row(lines, "shop.mail.send  ") == "shop.mail.send 12,345 3 8 2 3m10s 21 0.75 13ms 16ms"
    assert row(lines, "make_thumb").endswith("paused")
    assert row(lines, "legacy") == "legacy 4 - 0 0 - - - - - no worker"
    assert "away:4730 does not answer: connection refused" in lines[-2]
    assert "waiting 1 high, 12,344 normal, 0 low" in lines[-4]


def test_what_another_server_does_not_tell_is_a_dash_and_never_a_zero() -> None:
    assert "legacy 4 - 0 0 - -" in row(drawn(Choices()), "legacy")


def test_rates_are_unknown_before_the_second_look() -> None:
    first = Seen(ALL.fleet, None, NOW)
    assert "ended/s" not in drawn(Choices(), first)[1]
    assert " - - " in row(drawn(Choices(), first), "shop.mail.send  ")


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (60, "FUNCTION WAITING RUNNING ENDED/S FAILED/S"),
        (80, "FUNCTION WAITING RUNNING OLDEST ENDED/S FAILED/S WAITS FOR"),
        (
            140,
            "FUNCTION WAITING DELAYED RUNNING WORKERS FREE OLDEST ENDED/S FAILED/S P50 P99 WAITS FOR",
        ),
    ],
)
def test_columns_that_do_not_fit_are_left_out(width: int, columns: str) -> None:
    assert re.sub(" +", " ", drawn(Choices(), width=width)[3].strip()) == columns


def test_the_selection_stays_on_its_row_when_the_order_changes() -> None:
    choices = Choices()
    drawn(choices)
    choices.press("down")
    assert marked(drawn(choices)).startswith("> legacy")
    choices.press("i")
    lines = drawn(choices)
    assert marked(lines).startswith("> legacy")
    assert "the other way round" in lines[-3]


def test_the_first_row_stays_selected_as_long_as_nobody_has_moved() -> None:
    choices = Choices()
    drawn(choices)
    grown = FunctionMetrics(function="idle", waiting=(0, 99999, 0))
    later = ServerView("jobs:4730", NOW, functions=(grown, MAIL))
    lines = drawn(choices, Seen(FleetView((later,)), None, NOW))
    assert marked(lines).startswith("> idle")


def test_each_column_can_be_sorted_by() -> None:
    for page in PAGES:
        titles: list[str] = []
        choices = Choices(page=page)
        while (title := rows_of(choices, ALL).sorted_by) not in titles:
            titles.append(title)
            assert len(rows_of(choices, ALL).items) == rows_of(choices, ALL).total
            choices.press("s")
        assert len(titles) > 1
        choices.press("S")
        assert rows_of(choices, ALL).sorted_by == titles[-1]


def test_a_filter_leaves_only_what_matches() -> None:
    choices = Choices()
    for key in ("/", *"MAIL"):
        choices.press(key)
    lines = drawn(choices)
    assert lines[-2] == "/MAIL_"
    assert [line.split()[1] for line in lines[4:-4] if line] == ["shop.mail.send"]
    choices.press("backspace")
    choices.press("enter")
    assert "with 'MAI'" in drawn(choices)[-3]
    choices.press("esc")
    assert "1 to 4 of 4" in drawn(choices)[-3]


def test_a_worker_is_shown_with_what_it_runs() -> None:
    shown = row(drawn(Choices(page=TopPage.WORKERS), width=160), "k3f0-2")
    assert "1/4 running shop.mail.send for" in shown


def test_jobs_show_their_progress_and_dead_letters_their_error() -> None:
    lines = drawn(Choices(page=TopPage.JOBS), width=160)
    assert row(lines, "H:1 ").endswith("running 1m05s jobs:4730 3 of 10: half\\x1b[31m")
    assert "only gearflow's server tells more" in row(lines, "H:old:2")
    assert not any("H:3" in line for line in lines)
    assert row(drawn(Choices(page=TopPage.DEAD)), "H:3").endswith(
        "9.0s 3 jobs:4730 shop.NoAddress: order 4711"
    )


def test_servers_show_their_kind_and_why_they_are_away() -> None:
    lines = drawn(Choices(page=TopPage.SERVERS), width=140)
    assert row(lines, "jobs:4730 ").startswith("jobs:4730 gearflow 1 answers 12,347 8 7 0.4ms 1h56m")
    assert row(lines, "old:4730 ").startswith("old:4730 gearmand (C) 1.1.21 answers 4 0 -")
    assert "connection refused" in row(lines[3:-2], "away:4730 ")


def test_a_screen_without_anything_says_what_would_be_there() -> None:
    nothing = Seen(FleetView((ServerView("jobs:4730", NOW),)), None, NOW)
    for page, text in (
        (TopPage.FUNCTIONS, "A worker makes its functions known"),
        (TopPage.WORKERS, "gearflow worker MODULE"),
        (TopPage.JOBS, "No job waits"),
        (TopPage.DEAD, "No dead letters"),
    ):
        assert any(text in line for line in drawn(Choices(page=page), nothing)), page


def test_ten_thousand_functions_are_drawn_as_fast_as_they_are_sorted() -> None:
    functions = tuple(
        FunctionMetrics(function=f"f{number:05}", waiting=(0, number, 0)) for number in range(10_000)
    )
    many = Seen(FleetView((ServerView("jobs:4730", NOW, functions=functions),)), None, NOW)
    choices = Choices()
    choices.press("end")
    lines = drawn(choices, many)
    choices.press("end")
    assert marked(drawn(choices, many)).startswith("> f00000")
    assert "of 10,000" in lines[-3]


def test_the_picture_in_the_documentation_is_one_of_the_screen() -> None:
    lines = list(frame(Choices(), ALL, 108, 18))
    drawing.compare("top", drawing.terminal(lines, 108, "gearflow top", unique="top"))


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (12345, "12,345"), (1_234_567, "1.23M"), (5e9, "5G")]
)
def test_counts_are_short(number: int, text: str) -> None:
    assert count(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "-"), (0, "0"), (0.001, "<.01"), (0.25, "0.25"), (9.94, "9.9"), (812.4, "812"), (12345, "12.3k")],
)
def test_rates_are_short(number: float | None, text: str) -> None:
    assert rate(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0004, "0.4ms"),
        (0.025, "25ms"),
        (0.9999, "1.0s"),
        (9.9, "9.9s"),
        (42, "42s"),
        (60, "1m00s"),
        (310, "5m10s"),
        (3599.7, "1h00m"),
        (11100, "3h05m"),
        (187_000, "2d03h"),
        (86400 * 500, "500d"),
    ],
)
def test_durations_are_short(seconds: float | None, text: str) -> None:
    assert span(seconds) == text
    assert len(span(seconds)) <= 6


@pytest.mark.parametrize(
    ("typed", "keys"),
    [
        ("\x1b[A\x1bOBq", ["up", "down", "q"]),
        ("\x1b", ["esc"]),
        ("\x1b[5~\r\x7f", ["page up", "enter", "backspace"]),
        ("\u00e9\u6f22", ["\u00e9", "\u6f22"]),
        ("\x1b[9~\x00\x01", []),
        ("j\x1b[200~xy\r\x1b[A\x1b[201~k", ["j", "xy\r\x1b[A", "k"]),
        ("\x1b[200~xy\r", ["xy\r"]),
    ],
)
def test_keys_are_told_apart(typed: str, keys: list[str]) -> None:
    assert keys_in(typed) == keys
