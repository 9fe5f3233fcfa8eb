"""A store that answers later: what waits for it, and what may happen meanwhile."""

import json
from typing import cast

import pytest

from gearflow.broker.storage import DamagedEntry, JobOf, JobOutcome, PartsOf, StoredJob
from gearflow.errors import StoreError
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from gearflow.protocol.packets import Packet
from tests.broker.harness import PREFIX, Disk, Durable, Peer
from tests.broker.test_kept_parts import background
from tests.broker.test_streams import Stream, listening, nothing_is_left, numbered, yields

BIG = bytes(2000)
"""A workload that stays at the store while its job waits."""


class LateStore(Durable):
    """A broker whose store answers when the test says so."""

    delayed = True

    def pause(self) -> None:
        """From now on the store answers nothing by itself."""
        self.prompt = False

    def go_on(self) -> None:
        """The store answers what it was asked, and all that follows."""
        self.prompt = True
        self.work()
        self.answer()
        self.work()


@pytest.fixture
def world() -> LateStore:
    return LateStore()


@pytest.fixture
def client(world: LateStore) -> Peer:
    return world.peer("client")


def _handle(number: int) -> bytes:
    return b"%b%d" % (PREFIX, number)


def submit(world: LateStore, client: Peer, workload: bytes = BIG, unique: bytes = b"") -> bytes:
    client(p.SubmitJobBg(b"work", unique, workload))
    world.commit()
    (created,) = client.read()
    assert isinstance(created, p.JobCreated)
    return created.handle


def ended(world: LateStore, client: Peer, unique: bytes = b"u", *, fails: bool = False) -> bytes:
    """A job that has ended."""
    handle = submit(world, client, b"x", unique)
    worker = world.worker()
    assert worker.grab() == handle
    worker(p.WorkFail(handle) if fails else p.WorkComplete(handle, b"r"))
    world.commit()
    worker.leave()
    return handle


def call(function: bytes, /, **request: object) -> p.SubmitJob:
    return p.SubmitJob(function, b"", json.dumps(request).encode())


def asked(peer: Peer, packet: Packet, world: LateStore) -> bytes:
    """A call that waits for the store. Its handle."""
    world.pause()
    (created,) = peer(packet)
    assert isinstance(created, p.JobCreated)
    world.write()
    assert peer.read() == []
    assert world.port.asked
    return created.handle


def result_of(answer: object) -> dict[str, object]:
    assert isinstance(answer, p.WorkComplete)
    return cast("dict[str, object]", json.loads(answer.result))


# ------------------------------------------------------------------------------------------ GRAB_JOB


def test_what_a_worker_sends_next_waits_for_its_job_and_others_do_not(world: LateStore, client: Peer) -> None:
    handles = [submit(world, client), submit(world, client, b"small"), submit(world, client)]
    worker, other, third = world.worker(), world.worker(), world.worker()
    world.pause()
    assert worker(p.GrabJob(), p.EchoReq(b"behind")) == []
    assert other.grab() == handles[1]
    assert third(p.GrabJobUniq()) == []
    world.port.answer()
    assert third.read() == [p.JobAssignUniq(handles[2], b"work", b"", BIG)]
    assert worker.read() == []
    world.go_on()
    assert worker.read() == [p.JobAssign(handles[0], b"work", BIG), p.EchoRes(b"behind")]


def test_a_worker_that_leaves_meanwhile_is_no_death(world: LateStore, client: Peer) -> None:
    handle = submit(world, client)
    for _ in range(3):
        worker = world.worker()
        world.pause()
        assert worker(p.GrabJob()) == []
        worker.leave()
        world.go_on()
    job = world.broker.core.find(handle)
    assert job is not None
    assert job.details is None
    assert job.function.running == 0
    assert world.worker().grab() == handle


def test_another_job_is_given_for_one_that_is_cancelled_meanwhile(world: LateStore, client: Peer) -> None:
    first, second = submit(world, client), submit(world, client)
    worker = world.worker()
    world.pause()
    assert worker(p.GrabJob()) == []
    assert world.broker.cancel(first)
    world.port.answer()
    assert worker.read() == []
    world.go_on()
    assert worker.read() == [p.JobAssign(second, b"work", BIG)]
    assert len(world.broker.jobs.by_number) == 1


@pytest.mark.parametrize("answer", [StoreError("it cannot be read"), DamagedEntry("torn", 1), None])
def test_a_job_that_cannot_be_read_is_a_dead_letter(
    world: LateStore, client: Peer, answer: StoreError | None
) -> None:
    submit(world, client)
    worker = world.worker()
    world.pause()
    assert worker(p.GrabJob()) == []
    ((question, done),) = world.port.asked
    assert question == JobOf(1)
    world.port.asked.clear()
    done(answer)
    world.go_on()
    assert worker.read() == [p.NoJob()]
    (letter,) = world.disk.dead(None, 0, 10)
    assert letter.outcome is JobOutcome.RAISED


# --------------------------------------------------------------------------------------- the calls

REQUESTS: dict[str, tuple[bytes, dict[str, object]]] = {
    "result": (api.RESULT, {"handle": "H:test:1"}),
    "result by unique": (api.RESULT, {"function": "work", "unique": "u"}),
    "stream": (api.STREAM, {"handle": "H:test:1"}),
    "watch": (api.WATCH, {"handle": "H:test:1"}),
    "info": (api.INFO, {"handle": "H:test:1"}),
    "list": (api.DEAD, {"action": "list"}),
    "show": (api.DEAD, {"action": "show", "handle": "H:test:1"}),
    "replay": (api.DEAD, {"action": "replay"}),
    "replay one": (api.DEAD, {"action": "replay", "handle": "H:test:1"}),
    "purge": (api.DEAD, {"action": "purge"}),
    "submit": (api.SUBMIT, {"function": "work", "unique": "u", "reuse": True}),
    "submit detached": (api.SUBMIT, {"function": "work", "unique": "u", "reuse": True, "detached": True}),
}


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("answers", [0, 1, 2])
def test_a_client_may_leave_while_the_store_is_asked(
    world: LateStore, client: Peer, name: str, answers: int
) -> None:
    ended(world, client, fails=True)
    function, request = REQUESTS[name]
    world.pause()
    client(call(function, **request), p.EchoReq(b"behind"))
    world.write()
    for _ in range(answers):
        if world.port.asked:
            world.port.answer()
            world.write()
    client.leave()
    world.go_on()
    assert not world.port.asked
    assert nothing_is_left(world)
    assert not world.broker.outgoing.notices
    assert len(world.broker.jobs.by_number) <= 1
    other = world.peer()
    assert other(p.EchoReq(b"next")) == [p.EchoRes(b"next")]


@pytest.mark.parametrize("name", REQUESTS)
def test_a_fault_of_the_store_fails_the_call_and_no_other(world: LateStore, client: Peer, name: str) -> None:
    ended(world, client, fails=True)
    function, request = REQUESTS[name]
    world.pause()
    client(call(function, **request))
    world.write()
    ((_, done),) = world.port.asked
    world.port.asked.clear()
    done(StoreError("it is away"))
    world.go_on()
    answers = [answer for answer in client.read() if not isinstance(answer, p.JobCreated)]
    if name.startswith("submit"):  # then it runs
        assert len(world.broker.jobs.by_number) == 1
    else:
        assert answers[0] == p.WorkWarning(_handle(2), b"it is away")
    assert "it is away" in [notice.text for notice in world.broker.outgoing.notices]
    assert client(p.EchoReq(b"next")) == [p.EchoRes(b"next")]


def test_nothing_is_answered_before_a_submission_with_reuse(world: LateStore, client: Peer) -> None:
    handle = ended(world, client)
    world.pause()
    request = call(api.SUBMIT, function="work", unique="u", reuse=True)
    assert client(request, p.EchoReq(b"behind")) == []
    world.write()
    assert client.read() == []
    world.go_on()
    assert client.read() == [p.JobCreated(handle), p.WorkComplete(handle, b"r"), p.EchoRes(b"behind")]


def test_a_submission_with_reuse_joins_a_job_that_comes_meanwhile(world: LateStore, client: Peer) -> None:
    other = world.peer("other")
    world.pause()
    assert client(call(api.SUBMIT, function="work", unique="u", reuse=True)) == []
    world.write()
    assert len(world.port.asked) == 1
    created = other(p.SubmitJob(b"work", b"u", b"x"))
    world.go_on()
    assert client.read() == created
    assert len(world.broker.jobs.by_number) == 1


@pytest.mark.parametrize("function", [api.RESULT, api.STREAM, api.WATCH, api.INFO])
def test_a_job_that_comes_back_meanwhile_is_the_one_that_is_meant(
    world: LateStore, client: Peer, function: bytes
) -> None:
    handle = ended(world, client, fails=True)
    asker = world.peer("asker")
    asked(asker, call(function, handle=handle.decode()), world)
    question = world.port.asked.pop()
    world.prompt = True
    client(call(api.DEAD, action="replay"))
    world.commit()
    world.port.asked.append(question)
    world.go_on()
    worker = world.worker()
    assert worker.grab() == handle
    worker(p.WorkComplete(handle, b"second"))
    world.go_on()
    *_, last = asker.read()
    assert isinstance(last, p.WorkComplete)
    if function == api.INFO:
        assert json.loads(last.result)["state"] == "waiting"
    else:
        assert last.result == b"second"


# ------------------------------------------------------------------------------------- dead letters


def test_a_letter_is_replayed_once_however_many_ask(world: LateStore, client: Peer) -> None:
    handle = ended(world, client, fails=True)
    others = [world.peer() for _ in range(3)]
    world.pause()
    for other in others:
        other(call(api.DEAD, action="replay"))
    world.write()
    while world.port.asked:  # in turn, so that each is as far as the others
        world.port.answer(0)
        world.write()
    answers = [other.read()[-1] for other in others]
    assert sorted(cast(int, result_of(answer).get("jobs", 0)) for answer in answers) == [0, 0, 1]
    assert world.worker().grab() == handle
    assert world.broker.core.find(handle) is not None


@pytest.mark.parametrize("early", [False, True])
def test_a_letter_that_is_replayed_meanwhile_is_not_purged(
    world: LateStore, client: Peer, early: bool
) -> None:
    handle = ended(world, client, fails=True)
    other = world.peer()
    world.port.early = early
    asked(other, call(api.DEAD, action="purge"), world)
    question = world.port.asked.pop()
    world.prompt = True
    client(call(api.DEAD, action="replay"))
    world.commit()
    world.port.asked.append(question)
    world.go_on()
    assert result_of(other.read()[-1]) == {"jobs": 0}
    assert world.disk.job(1) is not None
    assert world.worker().grab() == handle


@pytest.mark.parametrize("payload", [b"x", bytes(20_000)])
def test_a_letter_whose_payload_is_its_unique_is_left_while_its_like_lives(
    world: LateStore, client: Peer, payload: bytes
) -> None:
    handle = submit(world, client, payload, b"-")
    worker = world.worker()
    assert worker.grab() == handle
    worker(p.WorkFail(handle))
    world.commit()
    asked(client, call(api.DEAD, action="replay"), world)
    live = world.peer().submit(b"work", b"-", payload)
    world.go_on()
    assert result_of(client.read()[-1]) == {"jobs": 0, "left": 1}
    assert worker.grab() == live
    worker(p.WorkComplete(live, b""))
    asked(client, call(api.DEAD, action="replay"), world)
    world.go_on()
    assert result_of(client.read()[-1]) == {"jobs": 1}
    assert world.peer().submit(b"work", b"-", payload) == handle


# ------------------------------------------------------------------------------------------- streams


def _reader_far_behind(world: LateStore) -> tuple[Peer, bytes, Stream]:
    """A worker whose parts are at the store, and a reader that wants the first ones."""
    worker = listening(world)
    handle = background(world)
    assert worker.grab() == handle
    yields(worker, handle, numbered(1, 600))
    world.commit()
    world.pause()
    stream = Stream(world.peer(), handle)
    world.write()
    ((question, _),) = world.port.asked
    assert question == PartsOf(1, 0, 8 << 20, 64) or isinstance(question, PartsOf)
    return worker, handle, stream


def test_parts_of_a_run_that_is_over_are_not_sent(world: LateStore) -> None:
    worker, handle, stream = _reader_far_behind(world)
    world.port.early = True
    first = world.port.asked.pop()
    rows = world.port.look_up(first[0])
    worker.leave()
    again = listening(world)
    assert again.grab() == handle
    yields(again, handle, [b"second %d" % number for number in range(1, 601)])
    world.write()
    seen = stream.read() + stream.take(64)
    first[1](rows)
    world.go_on()
    seen += stream.read()
    assert seen == [(0, 2), *(b"second %d" % number for number in range(1, 129))]


def test_a_reader_may_leave_while_the_store_is_asked(world: LateStore) -> None:
    worker, handle, stream = _reader_far_behind(world)
    assert stream.leave() == 1
    worker(p.WorkComplete(handle, b"r"))
    world.go_on()
    assert stream.read() == []
    assert nothing_is_left(world)


def test_a_reader_is_sent_the_end_behind_the_parts_that_come_late(world: LateStore) -> None:
    worker, handle, stream = _reader_far_behind(world)
    worker(p.WorkComplete(handle, b"r"))
    world.write()
    assert stream.read() == []
    world.go_on()
    seen = stream.read()
    position = 64
    while not isinstance(seen[-1], p.WorkComplete):
        seen += stream.take(position)
        position += 64
    assert seen == [(0, 1), *numbered(1, 600), p.WorkComplete(stream.call, b"r")]
    assert nothing_is_left(world)


# ------------------------------------------------------------------------------------------- replay


@pytest.fixture
def hashed() -> Disk:
    """A disk with a job whose payload is its unique."""
    world = LateStore()
    submit(world, world.peer(), BIG, b"-")
    world.disk.heads_only = True
    return world.disk


class Started(LateStore):
    """A server that has just started: the store has answered nothing."""

    prompt = False


def test_others_join_a_restored_job_once_its_payload_is_known(hashed: Disk) -> None:
    world = Started(hashed)
    (_, done) = world.port.asked[0]
    assert len(world.port.asked) == 1
    del done
    world.go_on()
    assert world.peer().submit(b"work", b"-", BIG) == _handle(1)


def test_a_job_of_its_payload_that_came_before_keeps_the_unique(hashed: Disk) -> None:
    world = Started(hashed)
    other = world.peer().submit(b"work", b"-", BIG)
    world.go_on()
    assert other != _handle(1)
    assert world.peer().submit(b"work", b"-", BIG) == other
    worker = world.worker()
    assert {worker.grab(), worker.grab()} == {_handle(1), other}


@pytest.mark.parametrize("happens", ["it is cancelled", "it is gone", "it is away"])
def test_a_restored_job_may_be_over_before_its_payload_is_known(hashed: Disk, happens: str) -> None:
    world = Started(hashed)
    if happens == "it is cancelled":
        assert world.broker.cancel(_handle(1))
    elif happens == "it is away":
        _, done = world.port.asked.pop()
        done(StoreError("it is away"))
        assert [notice.text for notice in world.broker.outgoing.notices] == ["it is away"]
    else:
        _, done = world.port.asked.pop()
        done(None)
    world.go_on()
    assert world.peer().submit(b"work", b"-", BIG) != _handle(1)


# -------------------------------------------------------------------------------------- large bodies


class SmallDisk(Disk):
    """A disk for which few bytes are many."""

    large = 5000


LARGE = bytes(6000)


@pytest.mark.parametrize("fault", [None, "it does not fit"])
def test_a_large_body_is_written_ahead_while_others_pass(fault: str | None) -> None:
    world = LateStore(SmallDisk())
    client, other = world.peer(), world.peer()
    world.pause()
    client(p.SubmitJobBg(b"work", b"", LARGE), p.EchoReq(b"behind"))
    other(p.SubmitJobBg(b"work", b"", b"small"))
    world.write()
    assert other.read() == [p.JobCreated(_handle(2))]
    assert client.read() == []
    ((change, done),) = world.port.ahead
    assert isinstance(change, StoredJob)
    world.port.ahead.clear()
    done(fault)
    world.go_on()
    answer, behind = client.read()
    assert behind == p.EchoRes(b"behind")
    if fault is None:
        assert answer == p.JobCreated(_handle(1))
        worker = world.worker()
        worker(p.GrabJob())
        assert worker(p.GrabJob())[-1] != p.NoJob()
    else:
        assert answer == p.Error(b"QUEUE_ERROR", b"the job could not be stored: it does not fit")
