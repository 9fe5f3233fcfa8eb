"""What a running task reports."""

from collections.abc import AsyncIterator

import pytest

from gearflow.protocol.packets import Packet, WorkStatus, WorkWarning
from gearflow.tasks import Context


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


def test_an_item_counts_when_it_is_done(context: Context, sent: list[Packet]) -> None:
    for _ in context.track([1, 2]):
        assert sent == [status(0, 2)]
