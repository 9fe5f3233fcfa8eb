"""The two-step door: what is acknowledged is kept, in what order answers come, what a restart brings back."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from gearflow.broker import Broker
from gearflow.broker.job import HIGH
from gearflow.broker.storage import (
    Change,
    Forgotten,
    JobOutcome,
    JobRecord,
    Renumbered,
    Rescheduled,
    Revived,
    StoredJob,
)
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls
from gearflow.protocol.packets import Packet
from tests.broker.harness import PREFIX, Disk, Durable, Peer

pytestmark = pytest.mark.usefixtures("ports")


@pytest.fixture
def world() -> Durable:
    return Durable()


@pytest.fixture
def client(world: Durable) -> Peer:
    return world.peer("client")


def _handle(number: int) -> bytes:
    return b"%b%d" % (PREFIX, number)


def test_a_background_job_is_kept_then_queued_then_acknowledged(world: Durable, client: Peer) -> None:
    worker = world.worker().sleep()
    assert client(p.SubmitJobBg(b"work", b"u", b"x")) == []
    assert worker.read() == []
    (submitted,) = [change for change, _ in world.broker.journal.entries if change is not None]
    assert isinstance(submitted, StoredJob)
    assert (submitted.function, submitted.unique, submitted.workload) == (b"work", b"u", b"x")
    world.commit()
    assert client.read() == [p.JobCreated(_handle(1))]
    assert worker.read() == [p.Noop()]
    assert worker.grab() == _handle(1)


def test_a_foreground_job_waits_for_nothing(world: Durable, client: Peer) -> None:
    worker = world.worker()
    handle = client.submit()
    assert worker.grab() == handle
    worker(p.WorkComplete(handle, b"r"))
    assert client.read() == [p.WorkComplete(handle, b"r")]
    assert world.broker.journal.entries == []


def test_answers_come_in_the_order_of_the_requests(world: Durable, client: Peer) -> None:
    assert (
        client(
            p.SubmitJobBg(b"work", b"", b"1"),
            p.SubmitJobHighBg(b"work", b"", b"2"),
            p.EchoReq(b"behind"),
            p.SubmitJobBg(b"work", b"", b"3"),
            b"version\n",
        )
        == []
    )
    other = world.peer()
    assert other(p.EchoReq(b"nobody else waits")) == [p.EchoRes(b"nobody else waits")]
    world.commit()
    assert client.read() == [
        p.JobCreated(_handle(1)),
        p.JobCreated(_handle(2)),
        p.EchoRes(b"behind"),
        p.JobCreated(_handle(3)),
        b"you said version",
    ]


def test_a_refusal_waits_for_the_answers_before_it(world: Durable, client: Peer) -> None:
    assert client(p.SubmitJobBg(b"work", b"", b"1"), p.SubmitJobBg(b"work", b"u" * 100, b"2")) == []
    world.commit()
    assert client.read() == [
        p.JobCreated(_handle(1)),
        p.Error(b"ARGUMENT_TOO_LARGE", b"Unique value too large"),
    ]


def test_a_job_that_cannot_be_kept_is_refused_and_not_run(world: Durable, client: Peer) -> None:
    worker = world.worker()
    joiner = world.peer()
    world.disk.full = True
    client(p.SubmitJobBg(b"work", b"u", b"x"))
    joiner(p.SubmitJob(b"work", b"u", b"x"), p.EchoReq(b"then"))
    world.commit()
    error = p.Error(b"QUEUE_ERROR", b"the job could not be stored: the disk is full")
    assert client.read() == [error]
    assert joiner.read() == [error, p.EchoRes(b"then")]
    assert worker.grab() is None
    world.disk.full = False
    client(p.SubmitJobBg(b"work", b"u", b"x"))
    world.commit()
    assert client.read() == [p.JobCreated(_handle(2))]


def test_who_joins_a_job_on_its_way_to_the_store_is_answered_with_it(world: Durable, client: Peer) -> None:
    waiting = world.peer()
    client(p.SubmitJobBg(b"work", b"u", b"x"))
    assert waiting(p.SubmitJob(b"work", b"u", b"y")) == []
    world.commit()
    assert client.read() == waiting.read() == [p.JobCreated(_handle(1))]
    worker = world.worker()
    worker.grab()
    worker(p.WorkComplete(_handle(1), b"r"))
    assert waiting.read() == [p.WorkComplete(_handle(1), b"r")]


def test_a_background_submission_promotes_a_foreground_job(world: Durable, client: Peer) -> None:
    handle = client.submit(unique=b"u", workload=b"first")
    promoter = world.peer()
    assert promoter(p.SubmitJobBg(b"work", b"u", b"second")) == []
    world.commit()
    assert promoter.read() == [p.JobCreated(handle)]
    client.leave()
    after = world.restarted()
    assert after.worker()(p.GrabJob()) == [p.JobAssign(handle, b"work", b"first")]


def test_a_promoted_job_that_ends_before_it_is_kept_does_not_come_back(world: Durable, client: Peer) -> None:
    handle = client.submit(unique=b"u")
    worker = world.worker()
    worker.grab()
    promoter = world.peer()
    promoter(p.SubmitJobBg(b"work", b"u", b"x"))
    worker(p.WorkComplete(handle, b"r"))
    assert client.read() == [p.WorkComplete(handle, b"r")]
    world.commit()
    assert promoter.read() == [p.JobCreated(handle)]
    after = world.restarted()
    assert after.worker().grab() is None
    record = after.disk.ended(1)
    assert record is not None
    assert record.body == b"r"


def test_what_was_acknowledged_is_there_after_a_restart_in_its_order(world: Durable, client: Peer) -> None:
    client(
        p.SubmitJobLowBg(b"work", b"", b"low"),
        p.SubmitJobBg(b"work", b"u", b"normal"),
        p.SubmitJobHighBg(b"work", b"", b"high"),
        p.SubmitJobEpoch(b"work", b"", b"%d" % (world.now + 100), b"later"),
        p.SubmitReduceJobBackground(b"work", b"", b"reducer", b"0", b"reduce"),
    )
    world.commit()
    after = world.restarted()
    worker = after.worker()
    got = [worker(p.GrabJobAll())[0] for _ in range(4)]
    assert [getattr(job, "workload", None) for job in got] == [b"high", b"normal", b"reduce", b"low"]
    assert got[2] == p.JobAssignAll(_handle(5), b"work", b"", b"reducer", b"reduce")
    assert worker.grab() is None
    joined = after.peer()
    assert joined(p.SubmitJob(b"work", b"u", b"again")) == [p.JobCreated(_handle(2))]
    after.pass_time(100)
    assert worker.grab() == _handle(4)


def test_handles_are_never_given_twice(world: Durable, client: Peer) -> None:
    given = {client.submit() for _ in range(3)}
    after = world.restarted()
    other = after.peer()
    assert given.isdisjoint({other.submit() for _ in range(3)})


def test_a_completion_is_not_run_again_once_it_is_written(world: Durable, client: Peer) -> None:
    for workload in (b"written", b"lost"):
        client(p.SubmitJobBg(b"work", b"", workload))
    world.commit()
    worker = world.worker()
    for _ in range(2):
        worker.grab()
    worker(p.WorkComplete(_handle(1), b"r"))
    world.commit()
    worker(p.WorkComplete(_handle(2), b"r"))  # the server dies before this is written
    worker = world.restarted().worker()
    assert worker(p.GrabJob()) == [p.JobAssign(_handle(2), b"work", b"lost")]
    assert worker.grab() is None


def test_a_completion_that_cannot_be_written_is_written_later(world: Durable, client: Peer) -> None:
    client(p.SubmitJobBg(b"work", b"", b"x"))
    world.commit()
    worker = world.worker()
    worker.grab()
    world.disk.full = True
    worker(p.WorkComplete(_handle(1), b"r"))
    world.commit()
    assert world.broker.journal.has_failed
    assert [notice.subject for notice in world.broker.outgoing.notices] == [_handle(1)]
    world.disk.full = False
    world.catch_up()
    assert not world.broker.journal.has_failed
    assert world.restarted().worker().grab() is None


def test_an_attached_result_is_kept_before_it_is_told_if_it_is_to_be_kept(
    world: Durable, client: Peer
) -> None:
    request = server_calls.SubmitRequest(function="work", keep=10)
    (created,) = client(p.SubmitJob(server_calls.SUBMIT, b"", request.to_wire() + b"\nx"))
    assert created == p.JobCreated(_handle(1))
    worker = world.worker()
    worker.grab()
    worker(p.WorkComplete(_handle(1), b"r"))
    assert client.read() == []
    world.commit()
    assert client.read() == [p.WorkComplete(_handle(1), b"r")]
    assert world.disk.ended(1) is not None


def _in_background(**options: Any) -> bytes:
    return server_calls.SubmitRequest(function="work", detached=True, **options).to_wire() + b"\nx"


def test_a_background_submission_with_options_is_kept_then_acknowledged_as_its_job(
    world: Durable, client: Peer
) -> None:
    request = _in_background(keep=0, timeout=3)
    assert (
        client(p.SubmitJobHighBg(server_calls.SUBMIT, b"u", request), p.SubmitJobBg(b"work", b"", b"y")) == []
    )
    submitted = [change for change, _ in world.broker.journal.entries if change is not None]
    assert [type(change) for change in submitted] == [StoredJob, StoredJob]
    world.commit()
    assert client.read() == [p.JobCreated(_handle(1)), p.JobCreated(_handle(2))]
    world = world.restarted()
    job = world.broker.core.find(_handle(1))
    assert job is not None
    assert job.details is not None
    assert (job.function.name, job.unique, job.priority, job.workload) == (b"work", b"u", HIGH, b"x")
    assert (job.details.keep, job.details.timeout) == (0.0, 3.0)


def test_a_background_submission_with_options_is_refused_when_the_store_takes_no_more(
    world: Durable, client: Peer
) -> None:
    world.disk.full = True
    assert client(p.SubmitJobBg(server_calls.SUBMIT, b"", _in_background(keep=0))) == []
    world.commit()
    (error,) = client.read()
    assert isinstance(error, p.Error)
    assert error.text.startswith(b"the job could not be stored")
    assert not world.broker.jobs.by_number


def test_a_large_workload_stays_at_the_store_while_it_waits(world: Durable, client: Peer) -> None:
    workload = bytes(100_000)
    client(p.SubmitJobBg(b"work", b"", workload))
    world.commit()
    job = world.broker.core.find(_handle(1))
    assert job is not None
    assert job.workload == len(workload)
    assert world.worker()(p.GrabJob()) == [p.JobAssign(_handle(1), b"work", workload)]


def test_a_workload_that_cannot_be_read_makes_a_dead_letter_and_the_next_job_is_given(
    world: Durable, client: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client(p.SubmitJobBg(b"work", b"", bytes(5000)), p.SubmitJobBg(b"work", b"", b"next"))
    world.commit()

    def gone(number: int) -> None:
        """The row cannot be found."""

    monkeypatch.setattr(world.disk, "job", gone)
    assert world.worker()(p.GrabJob()) == [p.JobAssign(_handle(2), b"work", b"next")]
    (ended,) = [change for change, _ in world.broker.journal.entries if change is not None]
    assert isinstance(ended, JobRecord)
    assert ended.outcome is JobOutcome.RAISED
    assert b"StoreError" in bytes(ended.body)


def test_deaths_are_counted_over_restarts_and_the_last_makes_a_dead_letter(
    client: Peer, world: Durable
) -> None:
    client(p.SubmitJobBg(b"work", b"", b"x"))
    world.commit()
    for _ in range(2):
        worker = world.worker()
        worker.grab()
        worker.leave()
        world.commit()
        world = world.restarted()
    worker = world.worker()
    assert worker.grab() == _handle(1)
    worker.leave()
    world.commit()
    (letter,) = world.disk.dead(None, 0, 10)
    assert (letter.outcome, letter.deaths) == (JobOutcome.WORKERS_DIED, 3)
    assert world.worker().grab() is None


def test_a_run_over_its_time_limit_counts_like_a_death_also_over_a_restart(
    client: Peer, world: Durable
) -> None:
    client(p.SubmitJobBg(b"work", b"", b"x"))
    world.commit()
    for _ in range(3):
        world = world.restarted()
        worker = world.peer()
        worker(p.SetClientId(b"tortoise"), p.CanDoTimeout(b"work", b"2000"))
        assert worker.grab() == _handle(1)
        world.pass_time(2)
        world.commit()
    (letter,) = world.disk.dead(None, 0, 10)
    assert (letter.outcome, letter.deaths, letter.worker) == (JobOutcome.RAISED, 3, b"tortoise")
    assert json.loads(bytes(letter.body))["type"] == "gearflow.errors.TaskTimeout"
    assert world.worker().grab() is None


def test_a_restart_is_no_death(world: Durable, client: Peer) -> None:
    client(p.SubmitJobBg(b"work", b"", b"x"))
    world.commit()
    for _ in range(5):
        assert world.worker().grab() == _handle(1)
        world = world.restarted()
    assert world.worker().grab() == _handle(1)


def _changes(world: Durable) -> Iterator[Change]:
    return (change for change, _ in world.broker.journal.entries if change is not None)


def test_a_retry_is_confirmed_when_it_is_kept(world: Durable, client: Peer) -> None:
    client(p.SubmitJobBg(b"work", b"", b"x"))
    world.commit()
    worker = world.worker()
    worker.grab()
    request = server_calls.RetryRequest(handle=_handle(1).decode(), delay=5, reason="it was busy")
    (created,) = worker(p.SubmitJob(server_calls.RETRY, b"", request.to_wire()))
    assert isinstance(created, p.JobCreated)
    options = b'{"runs": [[1, 1000.0, 1000.0, "worker", "it was busy"]]}'
    assert list(_changes(world)) == [Rescheduled(1, world.now + 5, 1, 0, options)]
    world.commit()
    assert worker.read() == [p.WorkComplete(created.handle, b'{"jobs":1}')]
    assert worker.grab() is None
    after = world.restarted()
    worker = after.worker()
    worker(p.OptionReq(b"gearflow"))
    assert worker.grab() is None
    after.pass_time(5)
    (assigned,) = worker(p.GrabJob())
    assert isinstance(assigned, p.JobAssign)
    assert assigned.workload == b'\0gf1\0\0\0\x0e{"attempt": 2}x'


def test_a_retry_that_cannot_be_kept_is_refused_and_the_worker_still_has_the_job(
    world: Durable, client: Peer
) -> None:
    client(p.SubmitJobBg(b"work", b"", b"x"))
    world.commit()
    worker = world.worker()
    worker.grab()
    world.disk.full = True
    request = server_calls.RetryRequest(handle=_handle(1).decode())
    (created,) = worker(p.SubmitJob(server_calls.RETRY, b"", request.to_wire()))
    world.commit()
    assert isinstance(created, p.JobCreated)
    _, failed = worker.read()
    assert failed == p.WorkFail(created.handle)
    world.disk.full = False
    assert worker(p.WorkComplete(_handle(1), b"r")) == []


def test_without_keep_only_the_job_goes(world: Durable, client: Peer) -> None:
    request = server_calls.SubmitRequest(function="work", detached=True, keep=0)
    client(p.SubmitJob(server_calls.SUBMIT, b"", request.to_wire() + b"\nx"))
    world.commit()
    worker = world.worker()
    handle = worker.grab()
    assert handle is not None
    worker(p.WorkComplete(handle, b"r"))
    assert [type(change) for change in _changes(world)] == [Forgotten]
    world.commit()
    assert world.restarted().worker().grab() is None


@pytest.mark.parametrize("by", ["handle", "unique"])
def test_nobody_is_told_that_a_job_is_not_kept_before_it_has_gone(
    by: str, world: Durable, client: Peer
) -> None:
    request = server_calls.SubmitRequest(function="work", detached=True, keep=0, unique="u")
    client(p.SubmitJob(server_calls.SUBMIT, b"", request.to_wire() + b"\nx"))
    world.commit()
    client(p.OptionReq(b"exceptions"))
    worker = world.worker()
    handle = worker.grab()
    assert handle is not None
    named = server_calls.ResultRequest(handle=handle.decode(), timeout=9)
    if by == "unique":
        named = server_calls.ResultRequest(function="work", unique="u", timeout=9)
    (created,) = client(p.SubmitJob(server_calls.RESULT, b"", named.to_wire()))
    assert isinstance(created, p.JobCreated)
    at_the_disk = world.broker.journal.drain()
    worker(p.WorkComplete(handle, b"r"))
    for _, done in at_the_disk:
        assert done is not None
        done(None)
    assert client.read() == []  # if the server died now, the job would run again
    world.commit()
    (failed,) = client.read()
    assert isinstance(failed, p.WorkException)
    assert server_calls.Fault.model_validate_json(failed.data).type == "gearflow:unknown"


def test_a_wait_with_a_limit_that_ended_in_time_is_not_heard_of_again(world: Durable, client: Peer) -> None:
    client(p.SubmitJobBg(b"work", b"", b"x"))
    world.commit()
    client.read()
    worker = world.worker()
    worker.grab()
    request = server_calls.ResultRequest(handle=_handle(1).decode(), timeout=5)
    (created,) = client(p.SubmitJob(server_calls.RESULT, b"", request.to_wire()))
    assert isinstance(created, p.JobCreated)
    world.commit()
    worker(p.WorkComplete(_handle(1), b"r"))
    world.commit()
    assert client.read() == [p.WorkComplete(created.handle, b"r")]
    world.pass_time(10)
    assert client.read() == []


def test_a_wait_with_a_limit_ends_then_and_the_job_goes_on(world: Durable, client: Peer) -> None:
    client(p.SubmitJobBg(b"work", b"", b"x"), p.OptionReq(b"exceptions"))
    world.commit()
    client.read()
    request = server_calls.ResultRequest(handle=_handle(1).decode(), timeout=5)
    (created,) = client(p.SubmitJob(server_calls.RESULT, b"", request.to_wire()))
    assert isinstance(created, p.JobCreated)
    world.commit()
    world.pass_time(5)
    (failed,) = client.read()
    assert isinstance(failed, p.WorkException)
    assert server_calls.Fault.model_validate_json(failed.data).type == "gearflow:timeout"
    assert world.worker().grab() == _handle(1)


def test_a_job_in_the_middle_of_a_cancel_stays_cancelled(world: Durable, client: Peer) -> None:
    request = server_calls.SubmitRequest(function="work", detached=True, keep=100)
    client(p.SubmitJob(server_calls.SUBMIT, b"", request.to_wire() + b"\nx"))
    world.commit()
    worker = world.worker()
    handle = worker.grab()
    assert handle is not None
    client.read()
    (waits,) = client(p.SubmitJob(server_calls.RESULT, b"", b'{"handle":"%b"}' % handle))
    assert isinstance(waits, p.JobCreated)
    world.commit()
    assert world.broker.cancel(handle)
    world.commit()
    assert client.read() == [p.WorkFail(waits.handle)]
    assert worker(p.WorkComplete(handle, b"late")) == []
    world.commit()
    assert client.read() == []
    number = world.broker.core.handles.number(handle)
    assert number is not None
    record = world.disk.ended(number)
    assert record is not None
    assert record.outcome is JobOutcome.CANCELLED


def test_a_promotion_that_cannot_be_kept_leaves_nothing_to_run_when_its_client_has_left(
    world: Durable, client: Peer
) -> None:
    client.submit(unique=b"u")
    promoter = world.peer()
    promoter(p.SubmitJobBg(b"work", b"u", b"x"))
    client.leave()
    world.disk.full = True
    world.commit()
    (refused,) = promoter.read()
    assert isinstance(refused, p.Error)
    assert world.worker().grab() is None


def _dead_letter(world: Durable, client: Peer) -> bytes:
    client(p.SubmitJobBg(b"work", b"u", b"x"))
    world.commit()
    client.read()
    worker = world.worker()
    handle = worker.grab()
    assert handle is not None
    worker(p.WorkFail(handle))
    worker.leave()
    world.commit()
    return handle


def test_a_dead_letter_is_replayed_once_however_often_that_is_asked_for(world: Durable, client: Peer) -> None:
    handle = _dead_letter(world, client)
    replay = p.SubmitJob(server_calls.DEAD, b"", b'{"action":"replay"}')
    first, second = (packet for packet in client(replay, replay) if isinstance(packet, p.JobCreated))
    world.commit()
    answers = [answer for answer in client.read() if isinstance(answer, p.WorkComplete)]
    assert {answer.handle for answer in answers} == {first.handle, second.handle}
    assert {answer.result for answer in answers} == {b'{"jobs":1}', b'{"jobs":0}'}
    worker = world.worker()
    assert worker.grab() == handle
    assert worker(p.WorkComplete(handle, b"r"), p.GrabJob()) == [p.NoJob()]


def _replay(world: Durable, client: Peer, **named: str) -> Sequence[Packet | bytes]:
    """What the server says of a replay."""
    request = json.dumps({"action": "replay", **named}).encode()
    (call,) = client(p.SubmitJob(server_calls.DEAD, b"", request))
    assert isinstance(call, p.JobCreated)
    world.commit()
    return client.read()


def test_a_dead_letter_is_left_while_another_job_of_its_unique_lives(world: Durable, client: Peer) -> None:
    handle = _dead_letter(world, client)
    client(p.SubmitJobBg(b"work", b"u", b"x"))
    world.commit()
    client.read()
    (answer,) = _replay(world, client)
    assert isinstance(answer, p.WorkComplete)
    assert json.loads(answer.result) == {"jobs": 0, "left": 1}
    warning, failed = _replay(world, client, handle=handle.decode())
    assert isinstance(warning, p.WorkWarning)
    assert b"another job of the unique of " + handle in warning.data
    assert isinstance(failed, p.WorkFail)
    worker = world.worker()
    twin = worker.grab()
    assert twin is not None
    worker(p.WorkComplete(twin, b""))
    world.commit()
    (answer,) = _replay(world, client, handle=handle.decode())
    assert isinstance(answer, p.WorkComplete)
    assert worker.grab() == handle


def test_of_two_dead_letters_of_one_unique_one_is_replayed(world: Durable, client: Peer) -> None:
    handles = [_dead_letter(world, client) for _ in range(2)]
    (answer,) = _replay(world, client)
    assert isinstance(answer, p.WorkComplete)
    assert json.loads(answer.result) == {"jobs": 1, "left": 1}
    worker = world.worker()
    assert worker.grab() == handles[0]
    assert worker(p.WorkComplete(handles[0], b""), p.GrabJob()) == [p.NoJob()]


def test_a_replay_on_a_full_disk_says_so(world: Durable, client: Peer) -> None:
    _dead_letter(world, client)
    world.disk.full = True
    (call,) = client(p.SubmitJob(server_calls.DEAD, b"", b'{"action":"replay"}'))
    assert isinstance(call, p.JobCreated)
    world.commit()
    warning, failed = client.read()
    assert warning == p.WorkWarning(
        call.handle, b"the store cannot be written: the disk is full (0 were done)"
    )
    assert failed == p.WorkFail(call.handle)


def test_no_number_is_given_before_it_is_reserved(client: Peer, world: Durable) -> None:
    disk = Disk()
    disk.full = True
    late = Durable(disk)
    (refused,) = late.peer()(p.SubmitJob(b"work", b"", b"x"))
    assert isinstance(refused, p.Error)
    disk.full = False
    late.catch_up()
    assert isinstance(late.peer()(p.SubmitJob(b"work", b"", b"x"))[0], p.JobCreated)


def test_a_payload_that_is_its_own_key_coalesces_after_a_restart(world: Durable, client: Peer) -> None:
    workload = bytes(5000)
    client(p.SubmitJobBg(b"work", b"-", workload))
    world.commit()
    after = world.restarted()
    assert after.peer()(p.SubmitJob(b"work", b"-", workload)) == [p.JobCreated(_handle(1))]


@pytest.mark.parametrize("reuse", [False, True])
def test_a_question_at_the_disk_while_the_job_ends_hears_of_its_end(
    world: Durable, client: Peer, reuse: bool
) -> None:
    client(p.SubmitJobBg(b"work", b"u", b"x"))
    world.commit()
    client.read()
    worker = world.worker()
    worker.grab()
    if reuse:
        request = server_calls.SubmitRequest(function="work", unique="u", reuse=True)
        client(p.SubmitJob(server_calls.SUBMIT, b"", request.to_wire() + b"\nx"))
    else:
        client(p.SubmitJob(server_calls.RESULT, b"", b'{"function":"work","unique":"u"}'))
    at_disk = world.broker.journal.drain()
    worker(p.WorkComplete(_handle(1), b"r"))  # while the question is in the group that the disk has
    for _, done in at_disk:
        assert done is not None
        done(None)
    world.commit()
    answer = client.read()[-1]
    assert isinstance(answer, p.WorkComplete)
    assert answer.result == b"r"


class Recording(Disk):
    """Remembers what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[Change] = []

    def write(self, changes: Sequence[Change]) -> None:
        super().write(changes)
        self.changes += changes


def test_a_job_that_expired_does_not_expire_again_when_it_is_replayed() -> None:
    disk = Recording()
    world = Durable(disk)
    client = world.peer("client")
    request = server_calls.SubmitRequest(function="work", detached=True, expires=10)
    client(p.SubmitJob(server_calls.SUBMIT, b"", request.to_wire() + b"\nx"))
    world.commit()
    world.pass_time(11)
    world.commit()
    (letter,) = world.disk.dead(None, 0, 10)
    assert letter.outcome is JobOutcome.EXPIRED
    disk.changes.clear()
    client(p.SubmitJob(server_calls.DEAD, b"", b'{"action":"replay"}'))
    world.commit()
    assert disk.changes == [Revived(letter.number, b"")]  # of two, a full disk could keep one
    world = world.restarted()
    world.pass_time(1)
    (assigned,) = world.worker()(p.GrabJob())
    assert isinstance(assigned, p.JobAssign)
    assert assigned.workload == b"x"


def test_a_cancel_that_cannot_be_written_says_so(world: Durable, client: Peer) -> None:
    client(p.SubmitJobBg(b"work", b"u", b"x"), p.OptionReq(b"exceptions"))
    world.commit()
    client.read()
    world.disk.full = True
    client(p.SubmitJob(server_calls.CANCEL, b"", b'{"handle":"%b"}' % _handle(1)))
    world.commit()
    failed = client.read()[-1]
    assert isinstance(failed, p.WorkException)
    assert server_calls.Fault.model_validate_json(failed.data).type == "gearflow:store"
    assert world.worker().grab() is None


def test_a_host_with_a_new_name_knows_its_old_handles(client: Peer, world: Durable) -> None:
    broker = Broker(b"H:old-1a2b:", lambda line: line)
    assert broker.core.handles.number(b"H:new-1a2b:7") == 7
    for stranger in (b"H:old-ffff:7", b"H:old-1a2b:07", b"H:old-1a2b:", b"H:old-1a2b:x", b"7", b""):
        assert broker.core.handles.number(stranger) is None


def test_handles_of_jobs_that_were_copied_from_other_stores_are_still_good() -> None:
    handles = Broker(b"H:new-1a2b:", lambda line: line).core.handles
    handles.renumber([Renumbered(b"0bad", 1, 9, 1000), Renumbered(b"0bad", 20, 29, 70)])
    assert [handles.number(b"H:old-0bad:%d" % number) for number in (1, 9, 20, 29)] == [1001, 1009, 90, 99]
    for stranger in (b"H:old-0bad:10", b"H:old-0bad:30", b"H:old-bad:1", b"0bad:x"):
        assert handles.number(stranger) is None
    assert handles.number(b"H:x-1a2b:7") == 7


@pytest.mark.parametrize("function", ["gearflow:x", "f" * 9000])
def test_what_can_have_no_jobs_cannot_be_paused(world: Durable, client: Peer, function: str) -> None:
    created, _, failed = client(
        p.SubmitJob(server_calls.PAUSE, b"", b'{"function":"%b"}' % function.encode())
    )
    assert isinstance(created, p.JobCreated)
    assert failed == p.WorkFail(created.handle)


def test_a_question_before_an_end_that_cannot_be_written_hears_of_it_all_the_same(
    world: Durable, client: Peer
) -> None:
    client(p.SubmitJobBg(b"work", b"u", b"x"))
    world.commit()
    client.read()
    worker = world.worker()
    worker.grab()
    world.disk.full = True
    (call,) = client(p.SubmitJob(server_calls.RESULT, b"", b'{"function":"work","unique":"u"}'))
    assert isinstance(call, p.JobCreated)
    worker(p.WorkComplete(_handle(1), b"r"))
    world.commit()
    assert client.read() == [p.WorkComplete(call.handle, b"r")]


def _reuse(unique: bytes) -> Packet:
    options = server_calls.SubmitRequest(function="reused", unique=unique.decode(), reuse=True)
    return p.SubmitJob(server_calls.SUBMIT, b"", options.to_wire() + b"\nx")


def test_nothing_overtakes_a_submission_that_may_be_answered_by_what_is_kept(
    world: Durable, client: Peer
) -> None:
    assert client(_reuse(b"u"), p.SubmitJobBg(b"work", b"", b"x"), p.EchoReq(b"behind")) == []
    world.commit()
    assert client.read() == [p.JobCreated(_handle(1)), p.JobCreated(_handle(2)), p.EchoRes(b"behind")]
    assert world.worker(b"reused").grab() == _handle(1)
    assert world.worker().grab() == _handle(2)


def test_without_a_file_nothing_overtakes_it_either() -> None:
    world = Durable(Forgetful())
    client = world.peer()
    client(_reuse(b"u"), p.SubmitJobBg(b"work", b"", b"x"))
    world.commit()
    assert client.read() == [p.JobCreated(_handle(1)), p.JobCreated(_handle(2))]


class Forgetful(Disk):
    """Keeps results, but no jobs."""

    durable = False


def test_a_session_whose_answers_wait_twice_goes_on_once(world: Durable, client: Peer) -> None:
    other = world.peer()
    assert client(_reuse(b"u"), p.EchoReq(b"behind")) == []
    assert other(p.SubmitJobBg(b"reused", b"u", b"x"), p.EchoReq(b"too")) == []
    first = world.broker.journal.drain()
    for _, done in first:  # after which the answer waits for what the other has submitted
        if done is not None:
            done(None)
    world.commit()
    assert client.read() == [p.JobCreated(_handle(1)), p.EchoRes(b"behind")]
    assert other.read() == [p.JobCreated(_handle(1)), p.EchoRes(b"too")]


@pytest.mark.parametrize("runs", [False, True])
def test_a_job_that_was_kept_and_is_cancelled_before_the_answer_is_no_fault_of_the_store(
    world: Durable, client: Peer, runs: bool
) -> None:
    client(p.SubmitJobBg(b"work", b"u", b"x"))
    world.commit()
    assert client.read() == [p.JobCreated(_handle(1))]
    if runs:
        assert world.worker().grab() == _handle(1)
    assert client(p.SubmitJobBg(b"other", b"", b"x"), p.SubmitJobBg(b"work", b"u", b"x")) == []
    assert world.broker.cancel(_handle(1))
    world.commit()
    assert client.read() == [p.JobCreated(_handle(2)), p.JobCreated(_handle(1))]


def test_a_promotion_that_cannot_be_kept_can_be_tried_again(world: Durable, client: Peer) -> None:
    handle = client.submit(unique=b"u")
    promoter = world.peer()
    promoter(p.SubmitJobBg(b"work", b"u", b"x"))
    world.disk.full = True
    world.commit()
    (refused,) = promoter.read()
    assert isinstance(refused, p.Error)
    world.disk.full = False
    promoter(p.SubmitJobBg(b"work", b"u", b"x"))
    world.commit()
    assert promoter.read() == [p.JobCreated(handle)]


def _told(client: Peer, world: Durable, function: bytes, request: bytes) -> list[Packet | bytes]:
    """What a reserved function answers, without the handle of the call."""
    answers = client(p.SubmitJob(function, b"", request))
    world.commit()
    return [answer for answer in answers + client.read() if not isinstance(answer, p.JobCreated)]


@pytest.mark.parametrize("reported", [None, (0, 0), (1, 2)])
def test_progress_is_what_the_worker_has_reported_and_else_none(
    world: Durable, client: Peer, reported: tuple[int, int] | None
) -> None:
    """Of a job with options, too: the compiled core once had 0 of 0 for it."""
    request = server_calls.SubmitRequest(function="work", detached=True, timeout=60).to_wire()
    client(p.SubmitJobBg(server_calls.SUBMIT, b"u", request + b"\nx"))
    world.commit()
    worker = world.worker()
    handle = worker.grab()
    assert handle is not None
    if reported is not None:
        worker(p.WorkStatus(handle, *(b"%d" % number for number in reported)))
    named = b'{"handle":"%b"}' % handle
    for end in (None, p.WorkFail(handle)):
        if end is not None:
            worker(end)
            world.commit()
        (told,) = _told(client, world, server_calls.INFO, named)
        assert isinstance(told, p.WorkComplete)
        assert server_calls.JobInfo.model_validate_json(told.result).progress == reported


def test_a_job_that_is_cancelled_while_it_runs_is_over_for_all_but_its_worker(
    world: Durable, client: Peer
) -> None:
    client(p.SubmitJobBg(b"work", b"u", b"x"))
    world.commit()
    worker = world.worker()
    handle = worker.grab()
    assert handle is not None
    client.read()
    named = b'{"handle":"%b"}' % handle
    (done,) = _told(client, world, server_calls.CANCEL, named)
    assert isinstance(done, p.WorkComplete)
    (told,) = _told(client, world, server_calls.INFO, named)
    assert isinstance(told, p.WorkComplete)
    info = server_calls.JobInfo.model_validate_json(told.result)
    assert (info.state, info.background) == ("cancelled", True)
    assert [type(answer) for answer in _told(client, world, server_calls.RESULT, named)] == [p.WorkFail]
    assert p.WorkFail in [type(answer) for answer in _told(client, world, server_calls.CANCEL, named)]
    assert worker(p.WorkComplete(handle, b"late")) == []
    world.commit()
    assert [type(answer) for answer in _told(client, world, server_calls.RESULT, named)] == [p.WorkFail]


@pytest.mark.parametrize("end", ["completed", "cancelled"])
def test_a_job_that_is_over_before_it_is_kept_does_not_come_back(
    world: Durable, client: Peer, end: str
) -> None:
    request = server_calls.SubmitRequest(function="work", unique="u", keep=0)
    (created,) = client(p.SubmitJob(server_calls.SUBMIT, b"", request.to_wire() + b"\nx"))
    assert isinstance(created, p.JobCreated)
    worker = world.worker()
    assert worker.grab() == created.handle
    world.peer()(p.SubmitJobBg(b"work", b"u", b"x"))
    if end == "cancelled":
        assert world.broker.cancel(created.handle)
    worker(p.WorkComplete(created.handle, b"r"))
    world.commit()
    assert world.restarted().worker().grab() is None


def test_a_cancel_that_is_written_is_no_fault_while_other_ends_are_not(world: Durable, client: Peer) -> None:
    client(p.SubmitJobBg(b"work", b"", b"x"), p.SubmitJobBg(b"work", b"", b"x"))
    world.commit()
    worker = world.worker()
    assert worker.grab() == _handle(1)
    world.disk.full = True
    worker(p.WorkComplete(_handle(1), b"r"))
    world.commit()
    assert world.broker.journal.has_failed
    client.read()
    named = b'{"handle":"%b"}' % _handle(2)
    warning, failed = _told(client, world, server_calls.CANCEL, named)
    assert isinstance(warning, p.WorkWarning)
    assert isinstance(failed, p.WorkFail)
    world.disk.full = False
    client(p.SubmitJobBg(b"work", b"", b"x"), p.SubmitJobBg(b"other", b"", b"x"))
    world.commit()
    created, _ = client.read()
    assert isinstance(created, p.JobCreated)
    for function, request in (
        (server_calls.CANCEL, b'{"handle":"%b"}' % created.handle),
        (server_calls.PURGE, b'{"function":"other"}'),
    ):
        (done,) = _told(client, world, function, request)
        assert isinstance(done, p.WorkComplete)
    assert world.broker.journal.has_failed


@pytest.mark.parametrize("of", ["expiry", "result"])
def test_what_is_moot_long_before_its_time_is_not_kept(world: Durable, client: Peer, of: str) -> None:
    """Of jobs that have ended nothing stays behind, however long they might have waited."""
    worker = world.worker()
    expires = 86400.0 if of == "expiry" else None
    request = server_calls.SubmitRequest(function="work", detached=True, expires=expires, keep=0)
    for _ in range(5000):
        client(p.SubmitJob(server_calls.SUBMIT, b"", request.to_wire() + b"\nx"))
        world.commit()
        handle = worker.grab()
        assert handle is not None
        if of == "result":
            client(p.SubmitJob(server_calls.RESULT, b"", b'{"handle":"%b","timeout":86400}' % handle))
            world.commit()
        worker(p.WorkComplete(handle, b""))
    world.commit()
    assert len(world.broker.core.timers) < 2000


def test_a_payload_as_the_key_has_no_kept_result(client: Peer) -> None:
    request = b'{"function":"work","unique":"-","reuse":true}'
    _, warning, failed = client(p.SubmitJob(server_calls.SUBMIT, b"", request + b"\nx"))
    assert isinstance(warning, p.WorkWarning)
    assert b"reuse needs a unique of its own" in warning.data
    assert isinstance(failed, p.WorkFail)
