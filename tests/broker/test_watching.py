"""Watchers of a job: what they are sent, and that a slow one costs little and holds nothing up."""

import json
from typing import Any

import pytest

from gearflow.broker import Session, watching
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from gearflow.protocol.constants import HEADER, REQ, PacketType
from gearflow.protocol.server_events import read_watch_event
from tests.broker.harness import Durable, Peer, World


class Watch:
    """A call of ``gearflow:watch``, on a connection of its own."""

    def __init__(self, world: World, job: bytes, *, parts: bool = False) -> None:
        self.peer = world.peer()
        request = api.WatchRequest(handle=job.decode(), parts=parts).to_wire()
        created, *self.first = self.peer(p.SubmitJob(api.WATCH, b"", request))
        assert isinstance(created, p.JobCreated)
        self.call = created.handle
        self.since: list[float | None] = []
        """When the runs of its events began, each time one says so."""

    def read(self) -> list[Any]:
        """The events that have come, parts with their bytes, and the end as its packet."""
        packets, self.first = self.first + self.peer.read(), []
        return [self._shown(packet) for packet in packets]

    def _shown(self, packet: p.Packet | bytes) -> Any:
        if not isinstance(packet, p.WorkData):
            return packet
        assert packet.handle == self.call
        fields, part = read_watch_event(packet.data)
        if "since" in fields:
            self.since.append(fields.pop("since"))
        return (fields, part) if fields["event"] == "part" else fields


def state(state: str, **fields: object) -> dict[str, object]:
    rest = {"attempt": 0, "progress": None, "message": "", "parts": 0, "worker": ""}
    return {"event": "state", "state": state, **rest, **fields}


@pytest.fixture
def worker(world: World) -> Peer:
    worker = world.worker()
    worker(p.SetClientId(b"w1"))
    return worker


def status(handle: bytes, *fields: bytes) -> bytes:
    """WORK_STATUS, which may have a message."""
    body = b"\0".join((handle, *fields))
    return HEADER.pack(REQ, PacketType.WORK_STATUS, len(body)) + body


def test_a_watcher_sees_a_job_from_its_queue_to_its_end(world: World, client: Peer, worker: Peer) -> None:
    handle = client.submit()
    watch = Watch(world, handle)
    assert worker.grab() == handle
    worker(status(handle, b"1", b"3", b"one"), p.WorkWarning(handle, b"careful"), p.WorkData(handle, b"a"))
    worker(p.WorkComplete(handle, b"r"))
    assert watch.read() == [
        state("waiting"),
        {"event": "started", "attempt": 1, "worker": "w1"},
        {"event": "progress", "done": 1, "total": 3, "message": "one"},
        {"event": "warned", "text": "careful"},
        p.WorkComplete(watch.call, b"r"),
    ]


def test_one_that_comes_late_is_sent_the_newest_state(world: World, client: Peer, worker: Peer) -> None:
    handle = client.submit()
    worker.grab()
    worker(status(handle, b"1", b"3", b"one"), status(handle, b"2", b"3", b"two"), p.WorkData(handle, b"a"))
    watch = Watch(world, handle, parts=True)
    worker(p.WorkData(handle, b"b\nc"), p.WorkFail(handle))
    assert watch.read() == [
        state("running", attempt=1, progress=[2, 3], message="two", parts=1, worker="w1"),
        ({"event": "part", "position": 2}, b"b\nc"),
        p.WorkFail(watch.call),
    ]


def test_several_watch_one_job_and_each_is_sent_everything(world: World, client: Peer, worker: Peer) -> None:
    handle = client.submit()
    watches = [Watch(world, handle, parts=bool(number)) for number in range(3)]
    worker.grab()
    worker(p.WorkData(handle, b"a"), p.WorkComplete(handle, b""))
    heard = [watch.read() for watch in watches]
    assert [len(events) for events in heard] == [3, 4, 4]
    assert heard[1][:3] == heard[2][:3]


def test_a_run_that_fails_and_is_repeated_is_shown(world: World, client: Peer, worker: Peer) -> None:
    handle = client.submit()
    watch = Watch(world, handle)
    worker.grab()
    worker(status(handle, b"1", b"3"))
    request = api.RetryRequest(handle=handle.decode(), delay=5, reason="no luck").to_wire()
    worker(p.SubmitJob(api.RETRY, b"", request))
    late = Watch(world, handle)
    assert late.read() == [state("delayed", attempt=1)]
    world.pass_time(5)
    worker.grab()
    assert watch.read()[3:] == [
        {"event": "retrying", "attempt": 1, "delay": 5.0, "reason": "no luck"},
        {"event": "started", "attempt": 2, "worker": "w1"},
    ]


def test_the_time_of_its_begin_tells_a_run_from_the_next(world: World, client: Peer, worker: Peer) -> None:
    handle = client.submit()
    watch = Watch(world, handle)
    worker.grab()
    late = Watch(world, handle)
    world.pass_time(5)
    worker.leave()
    world.worker().grab()
    watch.read()
    late.read()
    waiting, began, again = watch.since
    assert waiting is None
    assert late.since == [began, again]
    assert again == (began or 0) + 5


def test_the_death_of_a_worker_is_shown(world: World, client: Peer, worker: Peer) -> None:
    handle = client.submit()
    worker.grab()
    watch = Watch(world, handle)
    worker.leave()
    other = world.worker()
    assert other.grab() == handle
    other(p.SubmitJob(api.RELEASE, b"", api.ReleaseRequest(handle=handle.decode()).to_wire()))
    assert watch.read()[1:] == [
        {"event": "retrying", "attempt": 1, "delay": 0.0, "reason": "the worker w1 went away"},
        {"event": "started", "attempt": 1, "worker": "worker"},
        {"event": "retrying", "attempt": 1, "delay": 0.0, "reason": "its worker gave it back"},
    ]


def test_a_watched_job_that_is_cancelled_ends(world: World, client: Peer, worker: Peer) -> None:
    handle = client.submit()
    watch = Watch(world, handle)
    client.leave()
    assert watch.read() == [state("waiting"), p.WorkFail(watch.call)]


def test_a_watcher_that_leaves_is_sent_nothing_more(world: World, client: Peer, worker: Peer) -> None:
    handle = client.submit()
    worker.grab()
    left, closed = Watch(world, handle), Watch(world, handle)
    request = api.DetachRequest(handle=left.call.decode()).to_wire()
    left.read()
    answer = left.peer(p.SubmitJob(api.DETACH, b"", request))[-1]
    assert isinstance(answer, p.WorkComplete)
    assert api.Done.model_validate_json(answer.result).jobs == 1
    closed.peer.leave()
    details = world.broker.jobs.by_number[1].ensure_details()
    assert not details.watchers
    assert not details.waiters
    worker(status(handle, b"1", b"2"), p.WorkComplete(handle, b""))
    assert left.read() == []


def test_a_job_that_has_ended_has_only_its_end() -> None:
    world = Durable()
    client, worker = world.peer(), world.worker()
    client(p.SubmitJobBg(b"work", b"u", b"x"))
    world.commit()
    (created,) = client.read()
    assert isinstance(created, p.JobCreated)
    worker.grab()
    worker(p.WorkComplete(created.handle, b"r"))
    watch = Watch(world, created.handle)
    world.commit()
    assert watch.read() == [p.WorkComplete(watch.call, b"r")]
    unknown = Watch(world, b"H:test:99")
    world.commit()
    assert unknown.read()[-1] == p.WorkFail(unknown.call)


# ----------------------------------------------------------------------------------------- slow watchers


class Unread:
    """The connections have so many bytes that their peers have not read."""

    def __init__(self, world: World) -> None:
        self.bytes = 0
        world.broker.outgoing.unsent = self.of

    def of(self, _: Session) -> int:
        return self.bytes


def test_a_slow_watcher_is_sent_the_newest_progress_when_it_has_caught_up(
    world: World, client: Peer, worker: Peer
) -> None:
    unread = Unread(world)
    handle = client.submit()
    worker.grab()
    watch, fast = Watch(world, handle), Watch(world, handle)
    watch.read()
    unread.bytes = watching.SLOW + 1
    for done in range(1000):
        worker(status(handle, b"%d" % done, b"1000"))
    worker(p.WorkWarning(handle, b"w"))
    world.pass_time(1)
    assert watch.read() == []
    unread.bytes = 0
    world.pass_time(1)
    assert watch.read() == [{"event": "progress", "done": 999, "total": 1000, "message": ""}]
    world.pass_time(1)
    assert watch.read() == []
    assert len(fast.read()) == 2


def test_a_slow_watcher_misses_parts_and_is_shown_that(world: World, client: Peer, worker: Peer) -> None:
    unread = Unread(world)
    handle = client.submit()
    worker.grab()
    watch = Watch(world, handle, parts=True)
    watch.read()
    worker(p.WorkData(handle, b"1"))
    unread.bytes = watching.SLOW + 1
    worker(p.WorkData(handle, b"2"), p.WorkData(handle, b"3"))
    unread.bytes = 0
    worker(p.WorkData(handle, b"4"))
    assert watch.read() == [
        ({"event": "part", "position": 1}, b"1"),
        {"event": "gap", "position": 3},
        ({"event": "part", "position": 4}, b"4"),
    ]
    unread.bytes = watching.SLOW + 1
    worker(p.WorkData(handle, b"5"), status(handle, b"1", b"2"), p.WorkComplete(handle, b"r"))
    assert watch.read() == [
        {"event": "gap", "position": 5},
        {"event": "progress", "done": 1, "total": 2, "message": ""},
        p.WorkComplete(watch.call, b"r"),
    ]


def test_what_waits_in_the_outbox_counts_too(world: World, client: Peer, worker: Peer) -> None:
    handle = client.submit()
    worker.grab()
    watch = Watch(world, handle, parts=True)
    watch.read()
    for _ in range(20):
        worker(p.WorkData(handle, bytes(100_000)))
    assert sum(map(len, watch.peer.session.outbox)) < watching.SLOW + 200_000
    assert len(watch.read()) == 11
    world.pass_time(1)
    assert watch.read() == [{"event": "gap", "position": 20}]


def test_a_watcher_whose_connection_always_has_something_else_first_is_not_slow(
    world: World, client: Peer, worker: Peer
) -> None:
    handle = client.submit()
    worker.grab()
    request = api.WatchRequest(handle=handle.decode(), parts=True).to_wire()
    created, _ = client(p.SubmitJob(api.WATCH, b"", request))
    assert isinstance(created, p.JobCreated)
    for position in range(1, 31):
        worker(p.WorkData(handle, bytes(100_000)))
        own, event = client.read()  # it is a client of the job as well
        assert own == p.WorkData(handle, bytes(100_000))
        assert isinstance(event, p.WorkData)
        assert read_watch_event(event.data) == ({"event": "part", "position": position}, bytes(100_000))


def test_a_slow_watcher_that_leaves_is_not_looked_at_again(world: World, client: Peer, worker: Peer) -> None:
    unread = Unread(world)
    handle = client.submit()
    worker.grab()
    watch = Watch(world, handle)
    unread.bytes = watching.SLOW + 1
    worker(status(handle, b"1", b"2"))
    assert len(world.broker.core.timers) == 1
    watch.peer.leave()
    world.pass_time(1)
    assert not world.broker.core.timers


def test_events_are_json_whatever_a_worker_sends(world: World, client: Peer, worker: Peer) -> None:
    handle = client.submit()
    worker.grab()
    watch = Watch(world, handle)
    worker(p.WorkWarning(handle, b"\xff\n\0"), status(handle, b"x", b"-", b"\xfe\n"))
    _, warned, progress = watch.read()
    assert warned == {"event": "warned", "text": "\ufffd\n\0"}
    assert progress == {"event": "progress", "done": 0, "total": 0, "message": "\ufffd\n"}
    assert json.dumps(progress)
