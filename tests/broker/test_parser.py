"""Buffers of large bodies: when one is given out again, and when it must not be. What waits is not copied."""

import tracemalloc

import pytest

from gearflow.broker.parser import HUGE, KEPT, MOST, Buffers, NoMemory
from gearflow.protocol import packets as p
from gearflow.protocol.codec import encode
from tests.broker.harness import Durable

_KIB = 1 << 10


def place_of(view: memoryview) -> int:
    """What tells buffers apart: the object that has the memory."""
    return id(view.obj)


def test_a_buffer_is_used_again_when_no_view_of_it_is_left() -> None:
    buffers = Buffers()
    view = buffers.take(100 * _KIB)
    first = place_of(view)
    part = view[10:20]
    del view
    assert place_of(buffers.take(100 * _KIB)) != first
    del part
    assert place_of(buffers.take(70 * _KIB)) == first  # a smaller one will do in it
    assert len(buffers.take(70 * _KIB)) == 70 * _KIB


def test_what_was_received_stays_while_somebody_has_it() -> None:
    buffers = Buffers()
    held = [buffers.take(64 * _KIB) for _ in range(3 * MOST)]
    for number, view in enumerate(held):
        view[:] = bytes([number]) * len(view)
    assert [view[-1] for view in held] == list(range(3 * MOST))


@pytest.mark.parametrize("size", [64 * _KIB, 3 << 20, HUGE - 1])
def test_no_more_is_kept_than_is_allowed(size: int) -> None:
    tracemalloc.start()
    try:
        buffers = Buffers()
        views = [buffers.take(size) for _ in range(2 * MOST)]
        assert tracemalloc.get_traced_memory()[0] >= 2 * MOST * size
        del views
        assert tracemalloc.get_traced_memory()[0] <= min(KEPT, 2 * size * MOST) + 64 * _KIB
    finally:
        tracemalloc.stop()


def test_a_huge_one_has_the_size_that_is_wanted() -> None:
    view = Buffers().take(HUGE + 1)
    assert len(view) == HUGE + 1
    view[-1] = 1


def test_one_that_cannot_be_had_says_how_large_it_was_to_be() -> None:
    buffers = Buffers()
    with pytest.raises(NoMemory, match=f"no memory for a body of {1 << 60} bytes: Cannot allocate memory"):
        buffers.take(1 << 60)
    assert len(buffers.take(100)) == 100


def test_what_waits_for_the_store_is_not_copied_at_each_submission() -> None:
    world = Durable()
    client = world.peer()
    data = encode(p.SubmitJobBg(b"work", b"", b"x")) + encode(p.EchoReq(b"y"))
    data = data * 100
    client(data)
    for _ in range(99):
        pieces, _ = world.broker.parser.stalled[client.session]
        assert pieces[0] is data
        entries = world.broker.journal.drain()
        world.disk.write([change for change, _ in entries if change is not None])
        for _, done in entries:
            if done is not None:
                done(None)
        world.broker.resume(client.session, world.now)
    world.commit()
    answers = client.read()
    assert [type(answer) for answer in answers] == [p.JobCreated, p.EchoRes] * 100
