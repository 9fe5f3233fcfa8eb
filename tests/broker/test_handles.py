"""Numbers from lots, at a server that shares its store with others."""

import pytest

from gearflow.broker.handles import LOT_BITS, PRIVATE, lot_of
from gearflow.broker.limits import Rejected
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from tests.broker.harness import Durable, Peer


def shared(*lots: int) -> Durable:
    world = Durable()
    world.broker.core.handles.own(lots)
    return world


def number_of(handle: bytes) -> int:
    return int(handle.rpartition(b":")[2])


def submit_background(world: Durable, client: Peer, unique: bytes = b"") -> bytes:
    assert client(p.SubmitJobBg(b"work", unique, b"x")) == []
    world.commit()
    (created,) = client.read()
    assert isinstance(created, p.JobCreated)
    return created.handle


def test_the_lot_is_in_the_number() -> None:
    world = shared(7)
    numbers = [number_of(world.peer().submit()) for _ in range(3)]
    assert numbers == [7 << LOT_BITS | n for n in (1, 2, 3)]
    assert lot_of(numbers[0]) == 7


def test_lots_take_turns_and_none_gives_a_number_twice() -> None:
    handles = shared(7, 8).broker.core.handles
    numbers: list[int] = []
    for _ in range(4):
        numbers += [handles.next(), handles.next()]
        handles.turn()
    assert list(map(lot_of, numbers)) == [7, 7, 8, 8, 7, 7, 8, 8]
    assert len(set(numbers)) == 8


def test_a_lot_that_is_owned_again_while_it_is_owned_goes_on() -> None:
    handles = shared(7).broker.core.handles
    first = handles.next()
    handles.own([7])
    assert handles.next() == first + 1


def test_after_a_full_lot_comes_the_next_one() -> None:
    handles = shared(7, 8).broker.core.handles
    handles.last = (8 << LOT_BITS) - 2
    assert [handles.next(), handles.next()] == [(8 << LOT_BITS) - 1, 8 << LOT_BITS | 1]
    handles.turn()
    assert lot_of(handles.next()) == 8
    handles.last = (9 << LOT_BITS) - 1
    with pytest.raises(Rejected) as rejected:
        handles.next()
    assert rejected.value.code == b"QUEUE_ERROR"


def test_an_adopted_lot_is_owned_and_gives_no_numbers() -> None:
    handles = shared().broker.core.handles
    handles.own([7], fresh=False)
    assert handles.owns(7 << LOT_BITS | 1)
    assert not handles.owns(8 << LOT_BITS | 1)
    with pytest.raises(Rejected):
        handles.next()
    handles.own([8])
    assert lot_of(handles.next()) == 8


def test_a_lot_that_is_lost_gives_no_numbers() -> None:
    handles = shared(7, 8).broker.core.handles
    handles.disown(7)
    handles.turn()
    assert lot_of(handles.next()) == 8
    assert not handles.owns(7 << LOT_BITS | 1)


def test_without_a_lot_attached_jobs_and_calls_go_on_and_background_jobs_are_refused() -> None:
    world = shared(7)
    client, worker = world.peer("client"), world.worker()
    world.broker.core.handles.disown(7)
    handle = client.submit()
    assert lot_of(number_of(handle)) == PRIVATE
    (error,) = client(p.SubmitJobBg(b"work", b"", b"x"))
    assert isinstance(error, p.Error)
    assert error.code == b"QUEUE_ERROR"
    assert b"owns no part of the store" in error.text
    (created,) = client(p.SubmitJob(api.INFO, b"", b"{}"))
    assert isinstance(created, p.JobCreated)
    assert lot_of(number_of(created.handle)) == PRIVATE
    assert created.handle != handle
    assert worker.grab() == handle
    worker(p.WorkComplete(handle, b"r"))
    assert client.read() == [p.WorkComplete(handle, b"r")]


def test_private_numbers_begin_where_the_shell_says() -> None:
    handles = Durable().broker.core.handles
    handles.share(private=5)
    assert handles.next(kept=False) == 6
    handles.own([7])
    handles.next()
    handles.disown(7)
    assert handles.next(kept=False) == 7


def test_a_store_of_one_server_is_owned_as_a_whole() -> None:
    assert Durable().broker.core.handles.owns(1)


def test_a_background_submission_does_not_join_a_job_that_cannot_be_kept() -> None:
    world = shared(7)
    handles = world.broker.core.handles
    first, other, worker = world.peer("first"), world.peer("other"), world.worker()
    attached = first.submit(unique=b"u")
    handles.disown(7)
    handles.own([8])
    kept = submit_background(world, other, b"u")
    assert kept != attached
    assert other.submit(unique=b"u") == kept
    assert [worker.grab(), worker.grab()] == [attached, kept]
    worker(p.WorkComplete(attached, b"1"), p.WorkComplete(kept, b"2"))
    world.commit()
    assert first.read() == [p.WorkComplete(attached, b"1")]
    assert other.read() == [p.WorkComplete(kept, b"2")]
    assert not world.broker.jobs.by_unique


def test_a_background_submission_that_is_refused_leaves_the_unique_to_the_attached_job() -> None:
    world = shared(7)
    client = world.peer()
    attached = client.submit(unique=b"u")
    world.broker.core.handles.disown(7)
    (error,) = client(p.SubmitJobBg(b"work", b"u", b"x"))
    assert isinstance(error, p.Error)
    assert world.peer().submit(unique=b"u") == attached


def test_a_unique_of_several_functions_goes_over_to_the_new_job_of_one() -> None:
    world = shared(7)
    client = world.peer()
    attached = [client.submit(name, unique=b"u") for name in (b"work", b"a", b"b")]
    world.broker.core.handles.disown(7)
    world.broker.core.handles.own([8])
    kept = submit_background(world, client, b"u")
    assert [client.submit(name, unique=b"u") for name in (b"work", b"a", b"b")] == [kept, *attached[1:]]
    worker = world.worker(b"work", b"a", b"b")
    while (handle := worker.grab()) is not None:
        worker(p.WorkComplete(handle, b"r"))
    assert not world.broker.jobs.by_unique


def test_a_foreground_submission_joins_a_job_that_cannot_be_kept() -> None:
    world = shared(7)
    attached = world.peer().submit(unique=b"u")
    world.broker.core.handles.disown(7)
    assert world.peer().submit(unique=b"u") == attached
