"""Readers of the parts of an attached job: what each is sent, and how far its worker may be ahead."""

import json
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import pytest

from gearflow.broker import SizeLimits
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from gearflow.protocol import workers
from gearflow.protocol.constants import HEADER, REQ, WINDOW_BYTES, PacketType
from gearflow.protocol.envelope import Envelope, unwrap
from gearflow.protocol.packets import Packet
from gearflow.protocol.server_events import credit_of
from tests.broker.harness import Durable, Peer, World

KIB = 1024


INBOXES: WeakKeyDictionary[Peer, list[Packet | bytes]] = WeakKeyDictionary()


class Stream:
    """A call of ``gearflow:stream``, and what it was sent."""

    def __init__(self, peer: Peer, job: bytes = b"", **request: object) -> None:
        if job:
            request["handle"] = job.decode()
        before = peer.read()
        created, *answers = peer(p.SubmitJob(api.STREAM, b"", json.dumps(request).encode()))
        assert isinstance(created, p.JobCreated)
        self.peer = peer
        self.call = created.handle
        self.others = INBOXES.setdefault(peer, [])  # also those of other calls of this peer
        self.others += before + answers

    def read(self) -> list[object]:
        """What has come: parts, (position, run), and the end as its packet."""
        packets = self.others + self.peer.read()
        self.others[:] = [packet for packet in packets if getattr(packet, "handle", b"") != self.call]
        return [self._shown(packet) for packet in packets if getattr(packet, "handle", b"") == self.call]

    @staticmethod
    def _shown(packet: Packet | bytes) -> object:
        match packet:
            case p.WorkData(_, data):
                return bytes(data)
            case p.WorkStatus(_, position, run):
                return int(position), int(run)
            case _:
                return packet

    def take(self, position: int) -> list[object]:
        """Say up to where the parts are taken. What comes then."""
        self.others += self.peer(p.WorkStatus(self.call, b"%d" % position, b"0"))
        return self.read()

    def leave(self) -> int:
        """Detach."""
        request = api.DetachRequest(handle=self.call.decode())
        self.others += self.peer(p.SubmitJob(api.DETACH, b"", request.to_wire()))
        done = self.others.pop()
        assert isinstance(done, p.WorkComplete)
        return api.Done.model_validate_json(done.result).jobs


def submit(client: Peer, parts: str = "wait", unique: str = "", function: str = "work") -> bytes:
    """An attached submission through ``gearflow:submit``. The handle of the job."""
    request = {"function": function, "parts": parts, "unique": unique}
    return client.submit(api.SUBMIT, workload=json.dumps(request).encode() + b"\nx")


def yields(worker: Peer, handle: bytes, parts: Sequence[bytes]) -> None:
    INBOXES.setdefault(worker, []).extend(worker(*(p.WorkData(handle, part) for part in parts)))


def numbered(first: int, last: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, last + 1)]


def credit(worker: Peer) -> list[int]:
    """The credit that the worker was given since it last looked."""
    packets = INBOXES.pop(worker, []) + worker.read()
    found = [credit_of(packet.data) for packet in packets if isinstance(packet, p.WorkData)]
    return [each.parts for each in found if each is not None]


def listening(world: World, *functions: bytes) -> Peer:
    worker = world.worker(*functions)
    assert worker(p.OptionReq(b"gearflow")) == [p.OptionRes(b"gearflow")]
    worker.submit(api.EVENTS, workload=b"")
    return worker


@pytest.fixture
def worker(world: World) -> Peer:
    return listening(world)


@pytest.fixture
def tight() -> World:
    """A broker that has little memory for parts."""
    return World(SizeLimits(deaths=None, idle_parts=1500 * KIB, parts_ahead=1 << 20))


def running(client: Peer, worker: Peer, parts: str = "wait") -> bytes:
    handle = submit(client, parts)
    assert worker.grab() == handle
    return handle


# ------------------------------------------------------------------------------------------ what is sent


def test_a_reader_is_sent_its_position_the_parts_and_the_end(client: Peer, worker: Peer) -> None:
    handle = running(client, worker)
    stream = Stream(client, handle)
    assert stream.read() == [(0, 1)]
    yields(worker, handle, [b"a", b""])
    assert stream.read() == [b"a", b""]
    worker(p.WorkComplete(handle, b""))
    assert stream.read() == [p.WorkComplete(stream.call, b"")]
    assert stream.others == [p.WorkComplete(handle, b"")]  # the job's own end


def test_values_come_first_and_then_the_error(client: Peer, worker: Peer) -> None:
    client(p.OptionReq(b"exceptions"))
    handle = running(client, worker)
    stream = Stream(client, handle)
    worker(p.WorkData(handle, b"a"), p.WorkException(handle, b"boom"))
    assert stream.read() == [(0, 1), b"a", p.WorkException(stream.call, b"boom")]


def test_a_caller_that_reads_is_sent_no_parts_on_the_handle_of_the_job(client: Peer, worker: Peer) -> None:
    handle = running(client, worker, "keep")
    yields(worker, handle, [b"a"])
    assert client.read() == []
    assert client(p.WorkData(handle, b"x"))  # an error: it is no worker
    worker(p.WorkWarning(handle, b"w"))
    assert client.read() == [p.WorkWarning(handle, b"w")]


def test_a_plain_client_of_the_same_job_gets_them_as_ever(world: World, client: Peer, worker: Peer) -> None:
    plain = world.peer()
    handle = submit(client, unique="u")
    assert plain.submit(unique=b"u") == handle
    assert submit(plain, "keep", unique="u") == handle  # the same connection once more
    assert worker.grab() == handle
    yields(worker, handle, [b"a"])
    assert plain.read() == [p.WorkData(handle, b"a")]
    stream = Stream(client, handle)
    assert stream.read() == [(0, 1), b"a"]


def test_a_plain_job_can_be_read_and_its_client_gets_each_part_once(
    world: World, client: Peer, worker: Peer
) -> None:
    handle = client.submit(unique=b"u")
    worker.grab()
    yields(worker, handle, [b"a"])
    stream = Stream(world.peer(), function="work", unique="u")
    yields(worker, handle, [b"b"])
    assert stream.read() == [(0, 1), b"a", b"b"]
    assert client.read() == [p.WorkData(handle, b"a"), p.WorkData(handle, b"b")]


@pytest.mark.parametrize("after", range(5))
def test_a_reader_may_begin_at_each_position(world: World, client: Peer, worker: Peer, after: int) -> None:
    handle = running(client, worker, "keep")
    yields(worker, handle, [b"1", b"2", b"3"])
    stream = Stream(world.peer(), handle, after=after)
    start = min(after, 3)
    assert stream.read() == [(start, 1), *numbered(start + 1, 3)]
    yields(worker, handle, [b"4"])
    worker(p.WorkComplete(handle, b"r"))
    assert stream.read() == [b"4", p.WorkComplete(stream.call, b"r")]


def test_a_reader_may_begin_with_what_is_new(world: World, client: Peer, worker: Peer) -> None:
    handle = running(client, worker, "keep")
    yields(worker, handle, [b"1", b"2"])
    stream = Stream(world.peer(), handle, after="latest")
    yields(worker, handle, [b"3"])
    assert stream.read() == [(2, 1), b"3"]


def test_two_readers_see_the_same_positions_each_at_its_pace(
    world: World, client: Peer, worker: Peer
) -> None:
    handle = running(client, worker)
    fast, slow = Stream(client, handle), Stream(world.peer(), handle)
    yields(worker, handle, numbered(1, 64))
    assert fast.read() == slow.read() == [(0, 1), *numbered(1, 64)]
    fast.take(64)
    yields(worker, handle, numbered(65, 100))
    assert fast.read() == numbered(65, 100)
    assert slow.read() == []
    assert slow.take(10) == numbered(65, 74)
    assert slow.take(74) == numbered(75, 100)


def test_a_large_part_is_sent_when_nothing_else_is_outstanding(client: Peer, worker: Peer) -> None:
    handle = running(client, worker)
    stream = Stream(client, handle)
    large = bytes(3 * WINDOW_BYTES)
    yields(worker, handle, [b"1", large, b"3"])
    assert stream.read() == [(0, 1), b"1"]
    assert stream.take(1) == [large]
    assert stream.take(2) == [b"3"]


def test_a_reader_is_sent_no_more_bytes_than_a_window(client: Peer, worker: Peer) -> None:
    handle = running(client, worker)
    stream = Stream(client, handle)
    yields(worker, handle, [bytes(300 * KIB)] * 8)
    assert len(stream.read()) == 1 + 3
    assert len(stream.take(1)) == 1
    assert len(stream.take(4)) == 3
    assert len(stream.take(7)) == 1


def test_what_was_not_sent_cannot_be_taken(client: Peer, worker: Peer) -> None:
    handle = running(client, worker)
    stream = Stream(client, handle)
    yields(worker, handle, numbered(1, 70))
    stream.read()
    assert stream.take(65) == []
    assert stream.take(0) == []
    assert stream.peer(p.WorkStatus(stream.call, b"x", b"0")) == []
    assert stream.take(6) == numbered(65, 70)


@pytest.mark.parametrize(
    "fields",
    [
        (),
        (b"",),
        (b"-1", b"0"),
        (b" ", b"0"),
        (b"9" * 5000, b"0"),
        (b"\xff", b"\xff", b"0", b"1"),
    ],
    ids=["none", "empty", "negative", "blank", "huge", "many"],
)
def test_what_is_no_position_takes_nothing(client: Peer, worker: Peer, fields: tuple[bytes, ...]) -> None:
    handle = running(client, worker)
    stream = Stream(client, handle)
    yields(worker, handle, numbered(1, 70))
    stream.read()
    body = b"\0".join((stream.call, *fields))
    assert stream.peer(HEADER.pack(REQ, PacketType.WORK_STATUS, len(body)) + body) == []
    assert stream.read() == []
    assert stream.take(6) == numbered(65, 70)


def test_a_reader_of_another_connection_takes_nothing(world: World, client: Peer, worker: Peer) -> None:
    handle = running(client, worker)
    stream = Stream(client, handle)
    yields(worker, handle, numbered(1, 70))
    stream.read()
    (error,) = world.peer()(p.WorkStatus(stream.call, b"64", b"0"))
    assert isinstance(error, p.Error)
    assert stream.read() == []
    assert stream.take(6) == numbered(65, 70)


def test_a_status_of_no_reader_and_no_job_is_refused_as_ever(client: Peer) -> None:
    (error,) = client(p.WorkStatus(b"H:test:9", b"1", b"2"))
    assert error == p.Error(b"JOB_NOT_FOUND", b"Job given in work result not found")


@pytest.mark.parametrize(
    ("request_", "fault"),
    [
        ({"handle": "H:elsewhere:1"}, "gearflow:unknown"),
        ({"handle": "H:test:77"}, "gearflow:unknown"),
        ({"function": "work", "unique": "u"}, "gearflow:unknown"),
        ({"after": 3}, "gearflow:invalid"),
        ({"handle": "H:test:1", "after": -1}, "gearflow:invalid"),
        ({"handle": "H:test:1", "after": "first"}, "gearflow:invalid"),
        ({"handle": "H:test:1", "lag": "never"}, "gearflow:invalid"),
    ],
)
def test_a_job_that_is_not_there_has_no_stream(request_: dict[str, object], fault: str) -> None:
    world = Durable()
    client = world.peer()
    client(p.OptionReq(b"exceptions"))
    stream = Stream(client, b"", **request_)
    world.commit()
    (end,) = stream.read()
    assert isinstance(end, p.WorkException)
    assert api.Fault.model_validate_json(end.data).type == fault


def test_what_is_taken_after_the_end_has_no_answer(client: Peer, worker: Peer) -> None:
    """The end may cross it, and the client would take an error for the answer to something else."""
    handle = running(client, worker)
    stream, left = Stream(client, handle), Stream(client, handle)
    yields(worker, handle, numbered(1, 20))
    left.read()
    left.leave()
    assert left.take(16) == []
    worker(p.WorkComplete(handle, b""))
    assert stream.read()[-1] == p.WorkComplete(stream.call, b"")
    client.read()
    assert client(p.WorkStatus(stream.call, b"16", b"0")) == []
    assert client(p.WorkStatus(handle, b"1", b"2")) != []  # a worker's


# ----------------------------------------------------------------------------------- credit and its readers


def test_the_slowest_reader_that_waits_holds_the_credit(world: World, client: Peer, worker: Peer) -> None:
    handle = running(client, worker)
    fast, slow = Stream(client, handle), Stream(world.peer(), handle)
    worker.read()
    yields(worker, handle, numbered(1, 64))
    fast.take(64)
    assert credit(worker) == []
    slow.take(31)
    assert credit(worker) == []
    slow.take(32)
    assert credit(worker) == [32]
    slow.take(64)
    assert credit(worker) == [64]


def test_credit_is_given_for_bytes_too(client: Peer, worker: Peer) -> None:
    handle = running(client, worker)
    stream = Stream(client, handle)
    yields(worker, handle, [bytes(400 * KIB), bytes(400 * KIB)])
    stream.take(1)
    assert credit(worker) == []
    stream.take(2)
    assert credit(worker) == [2]


def test_a_worker_that_begins_to_listen_gets_its_credit(world: World, client: Peer) -> None:
    worker = world.worker()
    handle = submit(client)
    worker.grab()
    stream = Stream(client, handle)
    yields(worker, handle, numbered(1, 64))
    stream.take(50)
    _, event = worker(p.SubmitJob(api.EVENTS, b"", b""))
    assert isinstance(event, p.WorkData)
    assert credit_of(event.data) == (handle, 50)


def test_a_reader_that_skips_holds_nothing_and_is_shown_the_gap(
    world: World, client: Peer, worker: Peer
) -> None:
    handle = running(client, worker, "keep")
    stream = Stream(world.peer(), handle, lag="skip")
    yields(worker, handle, numbered(1, 400))
    assert credit(worker) == [32 * times for times in range(1, 13)]
    assert stream.read() == [(0, 1), *numbered(1, 64)]
    assert stream.take(64) == [(144, 1), *numbered(145, 208)]
    worker(p.WorkComplete(handle, b""))
    assert stream.take(208) == numbered(209, 272)


def test_a_client_that_waits_misses_no_part_until_it_reads(client: Peer, worker: Peer) -> None:
    handle = running(client, worker)
    yields(worker, handle, numbered(1, 300))
    assert credit(worker) == []
    stream = Stream(client, handle)
    assert stream.read() == [(0, 1), *numbered(1, 64)]
    assert stream.take(64) == numbered(65, 128)
    assert credit(worker) == [64]


def test_a_client_that_only_keeps_is_not_waited_for(client: Peer, worker: Peer) -> None:
    handle = running(client, worker, "keep")
    yields(worker, handle, numbered(1, 300))
    assert credit(worker)[-1] == 288
    assert Stream(client, handle).read() == [(44, 1), *numbered(45, 108)]


def test_a_client_may_wait_twice(client: Peer, worker: Peer) -> None:
    handle = submit(client, unique="u")
    assert submit(client, unique="u") == handle
    worker.grab()
    yields(worker, handle, numbered(1, 300))
    first = Stream(client, handle)
    for position in range(64, 301, 64):
        first.take(position)
    assert credit(worker) == []
    second = Stream(client, handle)
    assert second.read()[:2] == [(0, 1), b"1"]
    first.leave()
    second.take(64)
    assert credit(worker) == [64]


def test_the_end_of_the_job_comes_when_all_parts_were_sent(client: Peer, worker: Peer) -> None:
    handle = running(client, worker)
    stream = Stream(client, handle)
    yields(worker, handle, numbered(1, 70))
    worker(p.WorkComplete(handle, b"r"))
    assert stream.read() == [(0, 1), *numbered(1, 64)]
    assert stream.take(16) == [*numbered(65, 70), p.WorkComplete(stream.call, b"r")]


def test_a_job_that_ended_before_its_client_came_is_read_in_whole(
    world: World, client: Peer, worker: Peer
) -> None:
    handle = running(client, worker)
    yields(worker, handle, [b"1", b"2"])
    worker(p.WorkFail(handle))
    stream = Stream(client, handle)
    assert stream.read() == [(0, 1), b"1", b"2", p.WorkFail(stream.call)]
    assert isinstance(Stream(client, handle).read()[-1], p.WorkFail)  # it is known no more
    assert not world.broker.streams.ended_logs


def test_a_call_that_comes_as_the_job_ends_reads_it_in_whole() -> None:
    world = Durable()
    client, worker = world.peer(), world.worker()
    handle = running(client, worker)
    yields(worker, handle, [b"1"])
    stream = Stream(client, handle)  # it waits until the store has what was written before
    worker(p.WorkComplete(handle, b""))
    world.commit()
    assert stream.read() == [(0, 1), b"1", p.WorkComplete(stream.call, b"")]
    assert not world.broker.streams.ended_logs


def test_a_reader_whose_job_is_cancelled_gets_what_there_was_and_the_end(
    world: World, client: Peer, worker: Peer
) -> None:
    handle = running(client, worker, "keep")
    stream = Stream(world.peer(), handle)
    yields(worker, handle, numbered(1, 70))
    world.broker.cancel(handle)
    yields(worker, handle, [b"more"])
    assert stream.read() == [(0, 1), *numbered(1, 64)]
    assert stream.take(64) == [*numbered(65, 70), p.WorkFail(stream.call)]


def test_readers_do_not_hold_an_attached_job(world: World, client: Peer, worker: Peer) -> None:
    handle = running(client, worker, "keep")
    stream = Stream(world.peer(), handle)
    client.leave()
    assert stream.read() == [(0, 1), p.WorkFail(stream.call)]


# -------------------------------------------------------------------------------------- leaving


def nothing_is_left(world: World) -> bool:
    """No reader is known, and no part is in memory."""
    state = world.broker.streams
    sessions = world.broker.sessions
    readers = any(session.readers or session.places or session.waits for session in sessions)
    return not readers and not state.idle and not state.idle_bytes and not state.ended_logs


def test_a_reader_that_detaches_is_sent_nothing_more(world: World, client: Peer, worker: Peer) -> None:
    handle = running(client, worker)
    stream, other = Stream(client, handle), Stream(world.peer(), handle)
    yields(worker, handle, numbered(1, 64))
    stream.read()
    other.take(64)
    assert credit(worker) == []
    assert stream.leave() == 1
    assert stream.leave() == 0
    assert credit(worker) == [64]
    yields(worker, handle, [b"65"])
    assert stream.read() == []
    assert other.read() == [b"65"]
    worker(p.WorkComplete(handle, b""))
    assert nothing_is_left(world)


def test_a_reader_whose_connection_closes_leaves_nothing(world: World, client: Peer, worker: Peer) -> None:
    handle = running(client, worker, "keep")
    peer = world.peer()
    Stream(peer, handle)
    Stream(peer, handle, lag="skip")
    yields(worker, handle, numbered(1, 64))
    assert credit(worker) == []
    peer.leave()
    assert credit(worker) == [64]
    worker(p.WorkComplete(handle, b""))
    assert nothing_is_left(world)


@pytest.mark.parametrize("how", ["close", "detach", "detach when it has ended"])
def test_a_client_that_waits_and_leaves_holds_nothing(
    world: World, client: Peer, worker: Peer, how: str
) -> None:
    plain = world.peer()
    handle = submit(client, unique="u")
    assert plain.submit(unique=b"u") == handle
    worker.grab()
    yields(worker, handle, numbered(1, 64))
    assert credit(worker) == []
    if how == "detach when it has ended":
        worker(p.WorkComplete(handle, b""))
    if how == "close":
        client.leave()
    else:
        request = api.DetachRequest(handle=handle.decode()).to_wire()
        answer = client(p.SubmitJob(api.DETACH, b"", request))[-1]
        assert isinstance(answer, p.WorkComplete)
        assert api.Done.model_validate_json(answer.result).jobs == 1
    if how != "detach when it has ended":
        assert credit(worker) == [64]
        worker(p.WorkComplete(handle, b""))
    assert nothing_is_left(world)


def test_many_readers_come_and_go_and_the_slowest_counts(world: World, client: Peer, worker: Peer) -> None:
    handle = running(client, worker)
    slow = Stream(client, handle)
    for _ in range(100):
        peer = world.peer()
        stream = Stream(peer, handle)
        stream.take(0)
        peer.leave()
    log = next(iter(client.session.readers.values())).log
    assert len(log.waiting) < 50
    yields(worker, handle, numbered(1, 32))
    assert credit(worker) == []
    slow.take(32)
    assert credit(worker) == [32]


# ------------------------------------------------------------------------------------- further runs


def resuming(world: World) -> Peer:
    """A worker whose function goes on after the parts of an earlier run."""
    worker = listening(world)
    report = workers.ReportRequest(resumable=["work"]).to_wire()
    worker(p.SubmitJob(workers.REPORT, b"", report))
    return worker


def assigned(worker: Peer) -> Envelope:
    """The envelope of the job that the worker gets."""
    (packet,) = worker(p.GrabJobUniq())
    assert isinstance(packet, p.JobAssignUniq)
    return unwrap(packet.workload)[0]


def test_a_job_whose_worker_died_starts_again_and_its_readers_see_that(
    world: World, client: Peer, worker: Peer
) -> None:
    handle = running(client, worker)
    stream, late = Stream(client, handle), Stream(world.peer(), handle, after="latest")
    yields(worker, handle, [b"1", b"2"])
    assert stream.read() == [(0, 1), b"1", b"2"]
    worker.leave()
    assert stream.read() == []
    other = listening(world)
    assert assigned(other).parts == 0
    assert stream.read() == [(0, 2)]
    yields(other, handle, [b"1"])
    assert stream.read() == [b"1"]
    assert late.read() == [(0, 1), b"1", b"2", (0, 2), b"1"]
    assert Stream(world.peer(), handle, after=5).read() == [(1, 2)]


def test_a_plain_client_is_warned_when_its_parts_begin_again(
    world: World, client: Peer, worker: Peer
) -> None:
    handle = client.submit()
    assert worker.grab() == handle
    yields(worker, handle, [b"1"])
    worker.leave()
    assert client.read() == [p.WorkData(handle, b"1")]
    other = listening(world)
    assert other.grab() == handle
    assert client.read() == [p.WorkWarning(handle, b"the job runs again, and its output begins again")]
    other.leave()  # before anything has come again
    assert resuming(world).grab() == handle
    assert client.read() == []


def test_a_plain_client_is_not_warned_when_its_parts_go_on(world: World, client: Peer, worker: Peer) -> None:
    handle = client.submit()
    assert worker.grab() == handle
    yields(worker, handle, [b"1"])
    worker.leave()
    other = resuming(world)
    assert assigned(other).parts == 1
    yields(other, handle, [b"2"])
    assert client.read() == [p.WorkData(handle, b"1"), p.WorkData(handle, b"2")]


def test_a_run_without_parts_is_followed_by_one_of_the_same_number(
    world: World, client: Peer, worker: Peer
) -> None:
    handle = running(client, worker)
    stream = Stream(client, handle)
    worker.leave()
    other = listening(world)
    assert other.grab() == handle
    yields(other, handle, [b"1"])
    assert stream.read() == [(0, 1), b"1"]


def test_a_job_that_can_go_on_does_and_its_readers_notice_nothing(
    world: World, client: Peer, worker: Peer
) -> None:
    handle = running(client, worker)
    stream, slow = Stream(client, handle), Stream(world.peer(), handle)
    yields(worker, handle, numbered(1, 70))
    stream.take(64)
    worker.leave()
    other = resuming(world)
    assert assigned(other).parts == 70
    yields(other, handle, numbered(71, 72))
    other(p.WorkComplete(handle, b""))
    assert stream.read() == [b"71", b"72", p.WorkComplete(stream.call, b"")]
    assert slow.read() == [(0, 1), *numbered(1, 64)]
    assert slow.take(64) == [*numbered(65, 72), p.WorkComplete(slow.call, b"")]


def test_only_a_worker_that_knows_envelopes_can_go_on(world: World, client: Peer, worker: Peer) -> None:
    handle = running(client, worker)
    stream = Stream(client, handle)
    yields(worker, handle, [b"1"])
    worker.leave()
    other = world.worker()
    other(p.SubmitJob(workers.REPORT, b"", workers.ReportRequest(resumable=["work"]).to_wire()))
    assert other.grab() == handle
    assert stream.read() == [(0, 1), b"1", (0, 2)]


def test_a_retry_starts_again_or_goes_on_as_its_function_can(world: World) -> None:
    for worker, parts in ((listening(world), 0), (resuming(world), 3)):
        client = world.peer()
        handle = running(client, worker)
        stream = Stream(client, handle)
        yields(worker, handle, [b"1", b"2", b"3"])
        worker(p.SubmitJob(api.RETRY, b"", api.RetryRequest(handle=handle.decode()).to_wire()))
        envelope = assigned(worker)
        assert (envelope.attempt, envelope.parts) == (2, parts)
        assert stream.read() == [(0, 1), b"1", b"2", b"3", *([] if parts else [(0, 2)])]
        worker(p.WorkFail(handle))
        worker.leave()


def test_credit_of_a_run_that_goes_on_counts_from_the_same_start(
    world: World, client: Peer, worker: Peer
) -> None:
    handle = running(client, worker)
    stream = Stream(client, handle)
    yields(worker, handle, numbered(1, 40))
    stream.take(10)
    worker.leave()
    other = resuming(world)
    assert assigned(other).parts == 40
    yields(other, handle, numbered(41, 90))
    stream.take(64)
    assert credit(other) == []
    stream.take(72)
    assert credit(other) == [72]


def test_what_a_reader_has_taken_of_an_earlier_run_does_not_count(
    world: World, client: Peer, worker: Peer
) -> None:
    handle = running(client, worker)
    stream = Stream(client, handle)
    yields(worker, handle, numbered(1, 60))
    worker.leave()
    other = listening(world)
    assert other.grab() == handle
    yields(other, handle, numbered(1, 70))
    stream.read()
    assert stream.take(65) == []
    assert credit(other) == []
    assert stream.take(10) == numbered(65, 70)


def test_the_place_of_a_client_is_there_in_each_run(world: World, client: Peer, worker: Peer) -> None:
    handle = running(client, worker)
    yields(worker, handle, numbered(1, 60))
    worker.leave()
    other = listening(world)
    assert other.grab() == handle
    yields(other, handle, numbered(1, 300))
    assert credit(other) == []
    assert Stream(client, handle).read() == [(0, 2), *numbered(1, 64)]


def test_a_worker_that_is_not_read_from_may_lose_its_job(tight: World) -> None:
    client = tight.peer()
    worker = tight.peer()
    worker(p.CanDoTimeout(b"work", b"1000"))
    handle = submit(client)
    assert worker.grab() == handle
    Stream(client, handle)
    yields(worker, handle, [bytes(100 * KIB)] * 20)
    assert worker.session.pending_writes
    tight.pass_time(2)
    tight.finish()
    assert not worker.session.pending_writes
    answers = worker(p.GrabJob())  # after the errors for parts of a job that it has not any more
    assert answers[-1] == p.JobAssign(handle, b"work", b"x")


# ------------------------------------------------------------------------------------------ progress


def info(peer: Peer, handle: bytes) -> api.JobInfo:
    answer = peer(p.SubmitJob(api.INFO, b"", api.InfoRequest(handle=handle.decode()).to_wire()))[-1]
    assert isinstance(answer, p.WorkComplete)
    return api.JobInfo.model_validate_json(answer.result)


def test_progress_may_have_a_message_which_clients_are_not_sent(client: Peer, worker: Peer) -> None:
    handle = client.submit()
    worker.grab()
    worker(b"\0REQ" + p_status(handle, b"812", b"1000", "h\u00e4lf".encode()))
    assert client.read() == [p.WorkStatus(handle, b"812", b"1000")]
    known = info(worker, handle)
    assert (known.progress, known.message, known.parts) == ((812, 1000), "h\u00e4lf", 0)
    worker(p.WorkStatus(handle, b"813", b"1000"), p.WorkData(handle, b"a"))
    known = info(worker, handle)
    assert (known.progress, known.message, known.parts) == ((813, 1000), "", 1)


def p_status(*fields: bytes) -> bytes:
    """WORK_STATUS without its magic."""
    body = b"\0".join(fields)
    return HEADER.pack(b"", PacketType.WORK_STATUS, len(body))[4:] + body


def test_a_run_gets_the_last_progress_of_an_earlier_one(world: World, client: Peer, worker: Peer) -> None:
    handle = client.submit()
    assert assigned(worker).previous is None
    worker(b"\0REQ" + p_status(handle, b"8", b"10", b"far"))
    worker.leave()
    other = listening(world)
    assert assigned(other).previous == (8, 10, "far")
    assert info(other, handle).progress is None
    other.leave()
    last = listening(world)
    assert assigned(last).previous == (8, 10, "far")  # a run without progress
    last(p.WorkStatus(handle, b"9", b"10"))
    last.leave()
    assert assigned(listening(world)).previous == (9, 10, None)


@pytest.mark.parametrize("delay", [0, 5])
def test_the_next_server_gives_a_run_the_progress_of_the_one_before_its_retry(delay: int) -> None:
    world = Durable()
    worker, client = listening(world), world.peer()
    client(p.SubmitJobBg(b"gearflow:submit", b"", b'{"function":"work","detached":true,"timeout":7}\nx'))
    world.commit()
    handle = worker.grab()
    assert handle is not None
    worker(b"\0REQ" + p_status(handle, b"8", b"10", "h\u00e4lf".encode()))
    again = api.RetryRequest(handle=handle.decode(), delay=delay, reason="it was busy")
    worker(p.SubmitJob(api.RETRY, b"", again.to_wire()))
    world.commit()
    after = world.restarted()
    after.pass_time(delay)
    worker = listening(after)
    run = assigned(worker)
    assert (run.previous, run.timeout, run.attempt) == ((8, 10, "h\u00e4lf"), 7, 2)
    worker.leave()  # without progress of its own
    after.commit()
    last = after.restarted()
    last.pass_time(delay)
    worker = listening(last)
    assert assigned(worker).previous == (8, 10, "h\u00e4lf")
    worker(p.WorkStatus(handle, b"9", b"10"))
    worker.leave()
    last.commit()
    end = last.restarted()
    end.pass_time(delay)
    assert assigned(listening(end)).previous == (9, 10, None)


def test_a_dead_letter_that_is_replayed_has_no_progress_of_an_earlier_run() -> None:
    world = Durable()
    worker, client = listening(world), world.peer()
    client(p.SubmitJobBg(b"work", b"", b"x"))
    world.commit()
    handle = worker.grab()
    assert handle is not None
    worker(p.WorkStatus(handle, b"8", b"10"))
    worker.leave()
    world.commit()
    after = world.restarted()
    worker, client = listening(after), after.peer()
    assert assigned(worker).previous == (8, 10, None)
    worker(p.WorkFail(handle))
    client(p.SubmitJob(api.DEAD, b"", b'{"action":"replay"}'))
    after.commit()
    assert assigned(worker).previous is None
    assert assigned(listening(after.restarted())).previous is None


def test_the_last_progress_stays_with_a_job_that_failed() -> None:
    world = Durable()
    worker, client = listening(world), world.peer()
    client(p.SubmitJobBg(b"work", b"", b"x"))
    world.commit()
    (created,) = client.read()
    assert isinstance(created, p.JobCreated)
    assert worker.grab() == created.handle
    worker(b"\0REQ" + p_status(created.handle, b"8", b"10", b"far"), p.WorkFail(created.handle))
    world.commit()
    client(p.SubmitJob(api.INFO, b"", api.InfoRequest(handle=created.handle.decode()).to_wire()))
    world.commit()
    answer = client.read()[-1]
    assert isinstance(answer, p.WorkComplete)
    known = api.JobInfo.model_validate_json(answer.result)
    assert (known.state, known.progress, known.message) == ("failed", (8, 10), "far")


# ------------------------------------------------------------------------------------------ memory


def test_only_the_last_parts_stay_in_memory(world: World, client: Peer, worker: Peer) -> None:
    handle = running(client, worker, "keep")
    yields(worker, handle, numbered(1, 1000))
    log = world.broker.streams.of(world.broker.jobs.by_number[int(handle.split(b":")[-1])])
    assert log.first == 1000 - 256 + 1
    yields(worker, handle, [bytes(200 * KIB)] * 6)
    assert log.size <= 1 << 20
    assert log.first == 1002
    yields(worker, handle, [bytes(1 << 21)])
    assert (log.size, log.first) == (0, 1008)


def test_the_parts_of_all_jobs_without_readers_have_a_limit(tight: World) -> None:
    client = tight.peer()
    worker = listening(tight)
    first, second = running(client, worker, "keep"), running(client, worker, "keep")
    yields(worker, first, [bytes(500 * KIB)] * 2)
    yields(worker, second, [bytes(400 * KIB)] * 2)
    assert tight.broker.streams.idle_bytes == 800 * KIB
    assert Stream(client, first).read() == [(2, 1)]
    assert len(Stream(client, second).read()) == 3
    assert tight.broker.streams.idle_bytes == 0  # they have readers
    worker(p.WorkComplete(first, b""), p.WorkComplete(second, b""))


def test_a_worker_far_ahead_of_its_readers_is_not_read_from(tight: World) -> None:
    client = tight.peer()
    worker = tight.worker()
    handle = submit(client)
    worker.grab()
    stream = Stream(client, handle)
    yields(worker, handle, [bytes(100 * KIB)] * 20)
    log = tight.broker.streams.of(tight.broker.jobs.by_number[int(handle.split(b":")[-1])])
    assert log.position == 11
    worker(p.WorkComplete(handle, b"r"))  # that comes after them
    come: list[object] = []
    for position in range(1, 21):
        come += stream.take(position)
        tight.finish()
        assert log.came_bytes - log.taken_bytes <= (1 << 20) + 100 * KIB
    assert log.position == 20
    assert [*come, *stream.read()][-1] == p.WorkComplete(stream.call, b"r")
    assert not worker.session.pending_writes


def test_a_worker_that_was_not_read_from_goes_on_when_the_reader_leaves(tight: World) -> None:
    client = tight.peer()
    worker, peer = tight.worker(), tight.peer()
    handle = submit(client, "keep")
    worker.grab()
    Stream(peer, handle)
    yields(worker, handle, [bytes(100 * KIB)] * 20)
    peer.leave()
    tight.finish()
    worker(p.WorkComplete(handle, b"r"))
    assert client.read() == [p.WorkComplete(handle, b"r")]
    assert nothing_is_left(tight)


def test_a_worker_that_reads_its_own_job_is_always_read_from(tight: World) -> None:
    worker = tight.worker()
    handle = submit(worker)
    worker.grab()
    stream = Stream(worker, handle)
    yields(worker, handle, [bytes(100 * KIB)] * 20)
    come = [item for position in range(1, 21) for item in stream.take(position)]
    worker(p.WorkComplete(handle, b"r"))
    assert len(come) > 5
    assert not worker.session.pending_writes


def test_a_part_is_sent_in_whole_wherever_it_was_received(world: World, client: Peer) -> None:
    worker = world.worker()
    handle = submit(client)
    worker.grab()
    stream = Stream(client, handle)
    large = bytes(range(256)) * 2000
    yields(worker, handle, [large, b"end"])
    assert stream.read() == [(0, 1), large, b"end"]
