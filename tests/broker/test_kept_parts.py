"""The parts of background jobs: kept before anybody is sent them, replayed, and bounded."""

import json
from collections.abc import Sequence

import pytest

from gearflow.broker.parser import Body
from gearflow.broker.storage import Change, DamagedEntry, JobPart, PartsDropped
from gearflow.errors import StoreError
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from tests.broker.harness import Disk, Durable, Peer
from tests.broker.test_streams import (
    Stream,
    assigned,
    credit,
    listening,
    nothing_is_left,
    numbered,
    resuming,
    submit,
    yields,
)

pytestmark = pytest.mark.usefixtures("ports")

KIB = 1024


@pytest.fixture
def world() -> Durable:
    return Durable()


@pytest.fixture
def worker(world: Durable) -> Peer:
    return listening(world)


def background(world: Durable, unique: bytes = b"", **options: object) -> bytes:
    """A background job. Its handle."""
    request = {"function": "work", "detached": True, **options}
    client = world.peer()
    answers = client(p.SubmitJobBg(api.SUBMIT, unique, json.dumps(request).encode() + b"\nx"))
    world.commit()
    (created,) = answers + client.read()
    assert isinstance(created, p.JobCreated)
    return created.handle


def started(world: Durable, worker: Peer, **options: object) -> bytes:
    handle = background(world, b"", **options)
    assert worker.grab() == handle
    return handle


def read(world: Durable, handle: bytes, **request: object) -> Stream:
    stream = Stream(world.peer(), handle, **request)
    world.commit()
    return stream


def kept(world: Durable, handle: bytes) -> list[int]:
    """The positions that the store has."""
    number = int(handle.rpartition(b":")[2])
    return [position for position, _ in world.disk.parts(number, 0, 1 << 40, 1 << 20)]


def test_a_part_is_sent_and_taken_once_it_is_kept(world: Durable, worker: Peer) -> None:
    handle = started(world, worker)
    stream = read(world, handle)
    yields(worker, handle, numbered(1, 40))
    assert stream.read() == [(0, 1)]
    assert credit(worker) == []
    world.commit()
    assert stream.read() == numbered(1, 40)
    assert credit(worker) == [32]


def test_a_background_job_does_not_wait_for_readers_that_the_store_can_serve(
    world: Durable, worker: Peer
) -> None:
    handle = started(world, worker)
    stream = read(world, handle)
    for first in range(1, 1001, 50):
        yields(worker, handle, numbered(first, first + 49))
        world.commit()
    assert credit(worker)[-1] > 950
    (job,) = world.broker.jobs.by_number.values()
    assert world.broker.streams.of(job).first > 700
    come = stream.read()
    for position in range(16, 1001, 16):
        come += stream.take(position)
    assert come == [(0, 1), *numbered(1, 1000)]


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, "latest"])
def test_what_is_kept_is_replayed_after_the_end_from_each_position(
    world: Durable, worker: Peer, after: int | str
) -> None:
    handle = started(world, worker)
    yields(worker, handle, numbered(1, 3))
    worker(p.WorkComplete(handle, b"r"))
    start = min(after, 3) if isinstance(after, int) else 3
    stream = read(world, handle, after=after)
    assert stream.read() == [(start, 1), *numbered(start + 1, 3), p.WorkComplete(stream.call, b"r")]
    assert nothing_is_left(world)


def test_a_long_replay_comes_in_windows(world: Durable, worker: Peer) -> None:
    handle = started(world, worker)
    yields(worker, handle, [bytes(50 * KIB)] * 20)
    worker(p.WorkException(handle, b"boom"))
    stream = read(world, handle)
    assert len(stream.read()) == 1 + 20 + 1
    handle = started(world, worker, stream_keep=4 << 20)
    yields(worker, handle, [bytes(50 * KIB)] * 50)
    worker(p.WorkException(handle, b"boom"))
    stream = read(world, handle)
    assert len(stream.read()) == 1 + 20
    assert len(stream.take(15)) == 15
    stream.take(20)
    assert stream.take(35)[-1] == p.WorkFail(stream.call)


def test_the_oldest_parts_are_dropped_and_a_late_reader_sees_that(world: Durable, worker: Peer) -> None:
    handle = started(world, worker, stream_keep=10 * KIB)
    for _ in range(40):
        yields(worker, handle, [bytes(KIB)])
        world.commit()
    assert 8 <= len(kept(world, handle)) <= 10
    worker(p.WorkComplete(handle, b""))
    first = kept(world, handle)[0]
    assert read(world, handle).read()[:2] == [(first - 1, 1), bytes(KIB)]
    assert read(world, handle, after=39).read()[:2] == [(39, 1), bytes(KIB)]


def test_of_two_submissions_of_a_unique_the_larger_size_counts(world: Durable, worker: Peer) -> None:
    handle = background(world, b"u", stream_keep=10 * KIB)
    assert worker.grab() == handle
    yields(worker, handle, [bytes(KIB)])
    world.commit()
    assert background(world, b"u", stream_keep=100 * KIB) == handle
    for _ in range(40):
        yields(worker, handle, [bytes(KIB)])
        world.commit()
    assert len(kept(world, handle)) == 41


def test_small_parts_count_as_more_than_they_are(world: Durable, worker: Peer) -> None:
    handle = started(world, worker, stream_keep=1600)
    yields(worker, handle, [b""] * 500)
    world.commit()
    world.commit()
    assert len(kept(world, handle)) <= 100


def test_a_reader_that_waits_holds_what_is_kept_for_it(world: Durable, worker: Peer) -> None:
    handle = started(world, worker, stream_keep=10 * KIB)
    stream = read(world, handle)
    for _ in range(60):
        yields(worker, handle, [bytes(KIB)])
        world.commit()
    assert kept(world, handle)[0] == 1
    assert credit(worker) == []  # ten parts are kept, and no more taken
    stream.take(55)
    world.commit()
    assert kept(world, handle)[0] > 40
    assert credit(worker) == [60]
    assert len(stream.read()) == 0  # it was sent all


def test_a_reader_that_skips_holds_nothing(world: Durable, worker: Peer) -> None:
    handle = started(world, worker, stream_keep=10 * KIB)
    stream = read(world, handle, lag="skip")
    for _ in range(400):
        yields(worker, handle, [bytes(KIB)])
        world.commit()
    assert credit(worker)[-1] >= 384
    assert len(kept(world, handle)) <= 10
    assert len(stream.read()) == 65
    assert stream.take(64)[0] == (144, 1)  # the rest is in memory


def test_parts_that_are_larger_than_all_that_is_kept_are_sent(world: Durable, worker: Peer) -> None:
    handle = started(world, worker, stream_keep=100)
    stream = read(world, handle)
    yields(worker, handle, [bytes(2 << 20), b"x"])
    world.commit()
    assert stream.read() == [(0, 1), bytes(2 << 20)]
    assert stream.take(1) == [b"x"]
    worker(p.WorkComplete(handle, b""))
    world.commit()
    assert read(world, handle).read()[0] == (1, 1)


def test_nothing_is_kept_if_nothing_is_asked_for(world: Durable, worker: Peer) -> None:
    handle = started(world, worker, stream_keep=0)
    stream = read(world, handle)
    yields(worker, handle, numbered(1, 100))
    assert stream.read() == [(0, 1), *numbered(1, 64)]
    assert stream.take(64) == numbered(65, 100)
    worker(p.WorkComplete(handle, b"r"))
    world.commit()
    assert kept(world, handle) == []
    late = read(world, handle)
    assert late.read() == [(100, 1), p.WorkComplete(late.call, b"r")]


@pytest.mark.parametrize("durable", [True, False])
def test_parts_of_a_job_whose_outcome_is_not_kept_are_not_either(durable: bool) -> None:
    disk = Disk()
    disk.durable = durable
    world = Durable(disk)
    worker = listening(world)
    handle = started(world, worker, keep=0)
    stream = read(world, handle)
    yields(worker, handle, numbered(1, 300))
    worker(p.WorkComplete(handle, b""))
    world.commit()
    come = stream.read()
    for position in range(16, 301, 16):
        come += stream.take(position)
    assert come == [(0, 1), *numbered(1, 300), p.WorkComplete(stream.call, b"")]
    assert kept(world, handle) == []
    assert not disk.load().parts


def test_a_server_in_memory_keeps_them_too() -> None:
    disk = Disk()
    disk.durable = False
    world = Durable(disk)
    worker = listening(world)
    handle = started(world, worker)
    yields(worker, handle, numbered(1, 300))
    worker(p.WorkComplete(handle, b""))
    stream = read(world, handle)
    come = stream.read()
    for position in range(16, 301, 16):
        come += stream.take(position)
    assert come == [(0, 1), *numbered(1, 300), p.WorkComplete(stream.call, b"")]


def test_they_go_with_the_outcome(world: Durable, worker: Peer) -> None:
    handle = started(world, worker)
    yields(worker, handle, numbered(1, 3))
    worker(p.WorkFail(handle))
    world.commit()
    request = api.DeadRequest(action="purge", handle=handle.decode()).to_wire()
    world.peer()(p.SubmitJob(api.DEAD, b"", request))
    world.commit()
    assert kept(world, handle) == []
    assert isinstance(read(world, handle).read()[-1], p.WorkFail)


def test_a_dead_letter_that_is_replayed_begins_with_its_first_part(world: Durable, worker: Peer) -> None:
    handle = started(world, worker)
    yields(worker, handle, numbered(1, 3))
    worker(p.WorkFail(handle))
    world.commit()
    request = api.DeadRequest(action="replay", handle=handle.decode()).to_wire()
    world.peer()(p.SubmitJob(api.DEAD, b"", request))
    world.commit()
    assert worker.grab() == handle
    yields(worker, handle, [b"a"])
    world.commit()
    assert read(world, handle).read() == [(0, 1), b"a"]


def test_a_job_that_is_cancelled_keeps_its_parts(world: Durable, worker: Peer) -> None:
    handle = started(world, worker)
    yields(worker, handle, numbered(1, 3))
    world.broker.cancel(handle)
    yields(worker, handle, [b"4"])
    stream = read(world, handle)
    assert stream.read() == [(0, 1), *numbered(1, 3), p.WorkFail(stream.call)]


def test_info_has_the_number_of_parts(world: Durable, worker: Peer) -> None:
    handle = started(world, worker)
    yields(worker, handle, numbered(1, 3))
    worker(p.WorkComplete(handle, b""))
    peer = world.peer()
    peer(p.SubmitJob(api.INFO, b"", api.InfoRequest(handle=handle.decode()).to_wire()))
    world.commit()
    answer = peer.read()[-1]
    assert isinstance(answer, p.WorkComplete)
    assert api.JobInfo.model_validate_json(answer.result).parts == 3


# ------------------------------------------------------------------------------------ another server


def test_a_job_goes_on_with_the_next_server_where_it_can(world: Durable, worker: Peer) -> None:
    handle = started(world, worker)
    yields(worker, handle, numbered(1, 5))
    world.commit()
    after = world.restarted()
    other = resuming(after)
    stream = read(after, handle, after=3)
    assert stream.read() == [(3, 1), b"4", b"5"]
    assert assigned(other).parts == 5
    yields(other, handle, [b"6"])
    other(p.WorkComplete(handle, b""))
    after.commit()
    assert stream.read() == [b"6", p.WorkComplete(stream.call, b"")]
    assert kept(after, handle) == [1, 2, 3, 4, 5, 6]


def test_a_job_starts_again_with_the_next_server_if_it_must(world: Durable, worker: Peer) -> None:
    handle = started(world, worker)
    yields(worker, handle, numbered(1, 5))
    world.commit()
    after = world.restarted()
    other = listening(after)
    stream = read(after, handle, after=5)
    assert stream.read() == [(5, 1)]
    assert assigned(other).parts == 0
    assert stream.read() == [(0, 2)]
    yields(other, handle, [b"1"])
    after.commit()
    assert kept(after, handle) == [1]
    assert read(after, handle, after=5).read() == [(1, 2)]


@pytest.mark.parametrize(("stream_keep", "runs"), [(0, (2, 2, 3)), (1 << 20, (2, 3, 4))])
def test_the_number_of_a_run_outlives_the_server(stream_keep: int, runs: Sequence[int]) -> None:
    """Also where no part of the run is kept. A run of which no part came may be counted or not."""
    world = Durable()
    worker = listening(world)
    handle = started(world, worker, stream_keep=stream_keep)
    yields(worker, handle, numbered(1, 5))
    world.commit()
    for number, run in enumerate(runs):
        world = world.restarted()
        worker = listening(world)
        assert worker.grab() == handle
        world.commit()
        assert read(world, handle).read() == [(0, run)]
        if number == 1:
            yields(worker, handle, [b"1"])
            world.commit()


def test_what_is_kept_of_an_earlier_server_is_dropped_as_it_should(world: Durable, worker: Peer) -> None:
    handle = started(world, worker, stream_keep=10 * KIB)
    yields(worker, handle, [bytes(KIB)] * 9)
    world.commit()
    after = world.restarted()
    other = resuming(after)
    assert assigned(other).parts == 9
    for _ in range(6):
        yields(other, handle, [bytes(KIB)])
        after.commit()
    assert 6 <= len(kept(after, handle)) <= 10
    assert kept(after, handle)[-1] == 15


# ------------------------------------------------------------------------- a store that has not everything


def test_parts_that_cannot_be_written_are_sent_but_not_kept(world: Durable, worker: Peer) -> None:
    handle = started(world, worker)
    stream = read(world, handle)
    yields(worker, handle, [b"1"])
    world.commit()
    world.disk.full = True
    yields(worker, handle, [b"2"])
    world.commit()
    world.disk.full = False
    yields(worker, handle, [b"3"])
    worker(p.WorkComplete(handle, b""))
    world.commit()
    assert stream.read() == [(0, 1), b"1", b"2", b"3", p.WorkComplete(stream.call, b"")]
    late = read(world, handle)
    assert late.read() == [(0, 1), b"1", (2, 1), b"3", p.WorkComplete(late.call, b"")]


class Faulty(Disk):
    """A store of which some parts cannot be read."""

    fault: StoreError | None = None

    def parts(self, number: int, after: int, limit_bytes: int, limit: int = 64) -> list[tuple[int, Body]]:
        if self.fault is not None and after < 2:
            raise self.fault
        return [
            (position, bytes(body)) for position, body in super().parts(number, after, limit_bytes, limit)
        ]


def test_damaged_parts_are_missed_and_those_after_them_are_not() -> None:
    disk = Faulty()
    world = Durable(disk)
    worker = listening(world)
    handle = started(world, worker)
    yields(worker, handle, numbered(1, 3))
    worker(p.WorkComplete(handle, b""))
    world.commit()
    disk.fault = DamagedEntry("parts of job 1 are damaged", 1, b"work")
    disk.fault.position = 2
    stream = read(world, handle)
    assert stream.read() == [(2, 1), b"3", p.WorkComplete(stream.call, b"")]
    assert len(world.broker.outgoing.notices) == 1
    disk.fault = StoreError("it cannot be read at all")
    stream = read(world, handle)
    assert stream.read() == [(3, 1), p.WorkComplete(stream.call, b"")]


# ---------------------------------------------------------------------- jobs that become background jobs


def promote(world: Durable) -> Peer:
    client = world.peer()
    client(p.SubmitJobBg(b"work", b"u", b"x"))
    return client


def test_a_job_that_becomes_a_background_job_keeps_what_comes_from_then_on(
    world: Durable, worker: Peer
) -> None:
    client = world.peer()
    handle = submit(client, unique="u")
    worker.grab()
    yields(worker, handle, numbered(1, 300))  # all of which the client has still to get
    promote(world)
    yields(worker, handle, numbered(301, 310))
    world.commit()
    stream = Stream(client, handle)
    world.commit()
    come = stream.read()
    for position in range(16, 311, 16):
        come += stream.take(position)
    worker(p.WorkComplete(handle, b""))
    world.commit()
    assert come == [(0, 1), *numbered(1, 310)]
    assert kept(world, handle) == [*range(301, 311)]
    assert read(world, handle).read()[:2] == [(300, 1), b"301"]


def test_one_that_cannot_become_a_background_job_leaves_nothing_at_the_store(
    world: Durable, worker: Peer
) -> None:
    client = world.peer()
    handle = submit(client, "keep", unique="u")
    worker.grab()
    stream = read(world, handle)
    world.disk.full = True
    other = promote(world)
    yields(worker, handle, [b"1"])
    world.commit()
    world.disk.full = False
    assert isinstance(other.read()[0], p.Error)
    yields(worker, handle, [b"2"])
    world.commit()
    assert stream.read() == [(0, 1), b"1", b"2"]
    worker(p.WorkComplete(handle, b"r"))
    world.commit()
    assert stream.read() == [p.WorkComplete(stream.call, b"r")]
    assert not world.disk.load().parts


@pytest.mark.parametrize("function", [api.STREAM, api.RESULT, api.WATCH])
def test_a_call_about_a_job_that_cannot_be_kept_ends(world: Durable, function: bytes) -> None:
    world.disk.full = True
    client, other = world.peer(), world.peer()
    client(p.SubmitJobBg(b"work", b"u", b"x"))
    created, *rest = other(p.SubmitJob(function, b"", b'{"function": "work", "unique": "u"}'))
    world.commit()
    world.commit()
    assert isinstance(created, p.JobCreated)
    assert [*rest, *other.read()][-1] == p.WorkFail(created.handle)
    assert nothing_is_left(world)


def test_a_client_that_waits_for_a_job_that_cannot_be_kept_leaves_nothing(world: Durable) -> None:
    world.disk.full = True
    client, other = world.peer(), world.peer()
    client(p.SubmitJobBg(b"work", b"u", b"x"))
    request = {"function": "work", "parts": "wait", "unique": "u"}
    other(p.SubmitJob(api.SUBMIT, b"", json.dumps(request).encode() + b"\nx"))
    world.commit()
    assert isinstance(other.read()[-1], p.Error)
    assert nothing_is_left(world)


# ------------------------------------------------------------------------------------------ the costs


class Counting(Disk):
    def __init__(self) -> None:
        super().__init__()
        self.changes: list[Change] = []

    def write(self, changes: Sequence[Change]) -> None:
        self.changes += changes
        super().write(changes)


def test_dropping_is_not_done_part_by_part() -> None:
    disk = Counting()
    world = Durable(disk)
    worker = listening(world)
    handle = started(world, worker, stream_keep=100 * KIB)
    for _ in range(1000):
        yields(worker, handle, [bytes(KIB)])
        world.commit()
    kinds = [type(change) for change in disk.changes]
    assert kinds.count(JobPart) == 1000
    assert kinds.count(PartsDropped) < 100
