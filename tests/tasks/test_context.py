"""What a running task reports."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from gearflow.protocol.packets import Packet, WorkStatus, WorkWarning
from gearflow.tasks import Context
from gearflow.tasks.context import PROGRESS_INTERVAL


@pytest.fixture
def sent() -> list[Packet]:
    return []


@pytest.fixture
def context(sent: list[Packet]) -> Context:
    return Context(handle="H:test:1", function="app.do", send=sent.append)


def status(done: int, total: int) -> WorkStatus:
    return WorkStatus(b"H:test:1", b"%d" % done, b"%d" % total)


def test_progress_is_a_status_packet(context: Context, sent: list[Packet]) -> None:
    context.progress(1, 3)
    assert sent == [status(1, 3)]


def test_a_warning_is_text_in_utf_8(context: Context, sent: list[Packet]) -> None:
    context.warn("grüße \ud800")
    assert sent == [WorkWarning(b"H:test:1", "grüße \\ud800".encode())]


def test_a_handle_of_any_bytes_goes_back_as_it_came(sent: list[Packet]) -> None:
    context = Context(handle=b"H:\xff".decode("utf-8", "surrogateescape"), function="f", send=sent.append)
    context.progress(0, 1)
    assert sent == [WorkStatus(b"H:\xff", b"0", b"1")]


def test_tracking_reports_the_begin_and_the_end(context: Context, sent: list[Packet]) -> None:
    assert list(context.track([1, 2, 3])) == [1, 2, 3]
    assert sent[0] == status(0, 3)
    assert sent[-1] == status(3, 3)


def test_tracking_many_quick_items_does_not_flood_the_server(context: Context, sent: list[Packet]) -> None:
    assert sum(context.track(range(100_000))) == sum(range(100_000))
    assert len(sent) < 1000


def test_tracking_what_has_no_length_takes_the_total_given(context: Context, sent: list[Packet]) -> None:
    assert list(context.track(iter("ab"), total=2)) == ["a", "b"]
    assert sent == [status(0, 2), status(2, 2)]
    sent.clear()
    assert list(context.track(iter("ab"))) == ["a", "b"]
    assert sent == [status(0, 0), status(2, 2)]


async def test_an_async_iterable_is_tracked_as_well(context: Context, sent: list[Packet]) -> None:
    async def items() -> AsyncIterator[int]:
        yield 1
        yield 2

    assert [item async for item in context.track(items(), total=2)] == [1, 2]
    assert sent == [status(0, 2), status(2, 2)]


# --------------------------------------------------------------------------------------------- its pace


class Timer:
    """What a worker's event loop does later, when a test says so."""

    def __init__(self) -> None:
        self.due: list[Callable[[], object]] = []

    def later(self, seconds: float, callback: Callable[[], object]) -> None:
        assert 0 < seconds <= PROGRESS_INTERVAL
        self.due.append(callback)

    def ring(self) -> None:
        due, self.due = self.due, []
        for callback in due:
            callback()


@pytest.fixture
def timer() -> Timer:
    return Timer()


@pytest.fixture
def paced(sent: list[Packet], timer: Timer) -> Context:
    return Context(handle="H:test:1", function="app.do", send=sent.append, later=timer.later)


def test_the_first_progress_is_sent_at_once_and_the_newest_a_little_later(
    paced: Context, sent: list[Packet], timer: Timer
) -> None:
    for done in range(1000):
        paced.progress(done, 1000)
    assert sent == [status(0, 1000)]
    assert len(timer.due) == 1
    timer.ring()
    assert sent == [status(0, 1000), status(999, 1000)]
    timer.ring()
    assert len(sent) == 2


def test_progress_goes_on_after_a_late_report(paced: Context, sent: list[Packet], timer: Timer) -> None:
    for done in range(4):
        paced.progress(done, 9)
        timer.ring()
    assert sent == [status(done, 9) for done in range(4)]


def test_the_last_progress_is_sent_before_the_end(paced: Context, sent: list[Packet], timer: Timer) -> None:
    paced.progress(1, 9)
    paced.progress(2, 9)
    paced.flush()
    timer.ring()
    paced.flush()
    assert sent == [status(1, 9), status(2, 9)]


def test_the_same_progress_is_not_sent_twice(paced: Context, sent: list[Packet], timer: Timer) -> None:
    paced.progress(1, 9)
    paced.progress(1, 9)
    timer.ring()
    assert sent == [status(1, 9)]


def test_a_warning_comes_behind_the_progress_before_it(
    paced: Context, sent: list[Packet], timer: Timer
) -> None:
    paced.progress(1, 9)
    paced.progress(2, 9)
    paced.warn("x")
    timer.ring()
    assert sent == [status(1, 9), status(2, 9), WorkWarning(b"H:test:1", b"x")]


def test_progress_may_have_a_message(paced: Context, sent: list[Packet], timer: Timer) -> None:
    paced.progress(1, 9, "grüße \ud800")
    assert sent == [WorkStatus(b"H:test:1", b"1", b"9\0" + "grüße \\ud800".encode())]


def test_progress_that_is_no_number_is_an_error_where_it_is_first_reported(
    paced: Context, sent: list[Packet], timer: Timer
) -> None:
    wrong: Any = "x"
    with pytest.raises(TypeError):
        paced.progress(wrong, 9)
    paced.progress(1, 9)
    paced.progress(wrong, 9)
    timer.ring()
    paced.flush()
    assert sent == [status(1, 9)]


def test_tracking_is_at_the_pace_of_progress(paced: Context, sent: list[Packet], timer: Timer) -> None:
    assert list(paced.track(range(1000))) == list(range(1000))
    paced.flush()
    assert sent == [status(0, 1000), status(1000, 1000)]


def test_an_item_counts_when_it_is_done(context: Context, sent: list[Packet]) -> None:
    for _ in context.track([1, 2]):
        assert sent == [status(0, 2)]
