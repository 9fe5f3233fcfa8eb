"""A large body is written and read in steps: what passes it, and what waits for it."""

import base64
import json
from collections.abc import Generator, Iterator

import pytest

from gearflow.broker.lifecycle import LONG_HASH
from gearflow.broker.storage import DamagedEntry, JobOutcome, JobRecord, StoredJob
from gearflow.errors import StoreError
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls
from tests.broker.harness import PREFIX, Disk, Durable, Peer

LARGE = bytes(range(256)) * 20


class SlowDisk(Disk):
    """A disk that takes some steps for a large body, and may break in the middle of one."""

    large = 5000
    broken = False
    steps = 0
    """Of large results that were read."""

    def write_ahead(self, change: StoredJob | JobRecord) -> Iterator[None]:
        for _ in range(3):
            yield
            if self.broken:
                raise StoreError("the disk is full")

    def fetch(self, number: int) -> Generator[None, None, StoredJob | None]:
        for _ in range(3):
            yield
            if self.broken:
                raise StoreError("the disk cannot be read")
        return self.job(number)

    def ended(self, number: int) -> JobRecord | None:
        return _without_body(super().ended(number))

    def latest(self, function: bytes, unique: bytes) -> JobRecord | None:
        return _without_body(super().latest(function, unique))

    def dead(
        self, function: bytes | None, after: int, limit: int, descending: bool = False
    ) -> list[JobRecord]:
        letters = super().dead(function, after, limit, descending)
        return [record for each in letters if (record := _without_body(each))]

    def fetch_result(self, number: int) -> Generator[None, None, JobRecord | None]:
        for _ in range(3):
            self.steps += 1
            yield
            if self.broken:
                raise DamagedEntry("a part is not what was written", number, b"work", b"u")
        return super().ended(number)


def _without_body(record: JobRecord | None) -> JobRecord | None:
    if record is None or isinstance(record.body, int) or len(record.body) < SlowDisk.large:
        return record
    return record._replace(body=len(record.body))


@pytest.fixture
def disk() -> SlowDisk:
    return SlowDisk()


@pytest.fixture
def world(disk: SlowDisk) -> Durable:
    return Durable(disk)


@pytest.fixture
def client(world: Durable) -> Peer:
    return world.peer("client")


def _handle(number: int) -> bytes:
    return b"%b%d" % (PREFIX, number)


def submit_large(world: Durable, client: Peer) -> bytes:
    """A large background job that is kept."""
    client(p.SubmitJobBg(b"work", b"", LARGE))
    world.work()
    (created,) = client.read()
    assert isinstance(created, p.JobCreated)
    return created.handle


def test_other_jobs_pass_a_large_one_that_is_being_written(
    world: Durable, client: Peer, disk: SlowDisk
) -> None:
    other, worker = world.peer("other"), world.worker()
    assert client(p.SubmitJobBg(b"work", b"", LARGE)) == []
    world.commit()
    other(p.SubmitJobBg(b"work", b"", b"small"))
    world.step()
    assert other.read() == [p.JobCreated(_handle(2))]
    assert worker(p.GrabJob()) == [p.JobAssign(_handle(2), b"work", b"small")]
    assert disk.job(1) is None
    assert client.read() == []
    world.work()
    assert disk.job(1) is not None
    assert client.read() == [p.JobCreated(_handle(1))]
    assert worker(p.GrabJob()) == []
    world.work()
    assert worker.read() == [p.JobAssign(_handle(1), b"work", LARGE)]


def test_its_own_client_gets_its_answers_in_their_order(world: Durable, client: Peer) -> None:
    client(p.SubmitJobBg(b"work", b"", b"before"), p.SubmitJobBg(b"work", b"", LARGE))
    client(p.SubmitJobBg(b"work", b"", b"behind"), p.EchoReq(b"last"))
    world.commit()
    assert client.read() == [p.JobCreated(_handle(1))]
    world.work()
    assert client.read() == [p.JobCreated(_handle(2)), p.JobCreated(_handle(3)), p.EchoRes(b"last")]


def test_who_joins_a_large_job_is_answered_with_it(world: Durable, client: Peer) -> None:
    other, attached = world.peer("other"), world.peer("attached")
    client(p.SubmitJobBg(b"work", b"u", LARGE))
    other(p.SubmitJobBg(b"work", b"u", b""), p.EchoReq(b"behind"))
    attached(p.SubmitJob(b"work", b"u", b""))
    world.commit()
    assert client.read() == other.read() == attached.read() == []
    world.work()
    assert client.read() == attached.read() == [p.JobCreated(_handle(1))]
    assert other.read() == [p.JobCreated(_handle(1)), p.EchoRes(b"behind")]


def test_a_detached_submission_is_answered_once_its_large_job_is_kept(
    world: Durable, client: Peer, disk: SlowDisk
) -> None:
    request = server_calls.SubmitRequest(function="work", detached=True).to_wire()
    (created,) = client(p.SubmitJob(server_calls.SUBMIT, b"", request + b"\n" + LARGE))
    assert isinstance(created, p.JobCreated)
    world.commit()
    assert client.read() == []
    world.work()
    (answer,) = client.read()
    assert isinstance(answer, p.WorkComplete)
    number = int(json.loads(answer.result)["handle"].rpartition(":")[2])
    assert disk.job(number) is not None


def test_a_large_job_that_does_not_fit_is_refused_and_nobody_else(
    world: Durable, client: Peer, disk: SlowDisk
) -> None:
    other = world.peer("other")
    client(p.SubmitJobBg(b"work", b"", LARGE))
    world.commit()
    disk.broken = True
    other(p.SubmitJobBg(b"work", b"", b"small"))
    world.work()
    (error,) = client.read()
    assert isinstance(error, p.Error)
    assert error.text == b"the job could not be stored: the disk is full"
    assert other.read() == [p.JobCreated(_handle(2))]
    assert client(p.SubmitJobBg(b"work", b"", b"next")) == []
    world.commit()
    assert client.read() == [p.JobCreated(_handle(3))]
    assert len(world.broker.jobs.by_number) == 2


def test_a_question_waits_for_a_large_result_and_others_do_not(world: Durable, client: Peer) -> None:
    worker, other = world.worker(), world.peer("other")
    client(p.SubmitJobBg(b"work", b"u", b"x"))
    world.commit()
    assert worker.grab() == _handle(1)
    worker(p.WorkComplete(_handle(1), LARGE))
    request = server_calls.ResultRequest(function="work", unique="u").to_wire()
    client.read()
    assert [type(answer) for answer in client(p.SubmitJob(server_calls.RESULT, b"", request))] == [
        p.JobCreated
    ]
    other(p.SubmitJobBg(b"work", b"", b"small"))
    world.step()
    assert client.read() == []
    assert [type(answer) for answer in other.read()] == [p.JobCreated]
    world.work()
    (answer,) = client.read()
    assert isinstance(answer, p.WorkComplete)
    assert answer.result == LARGE


def test_a_large_result_that_does_not_fit_is_written_later(
    world: Durable, client: Peer, disk: SlowDisk
) -> None:
    worker = world.worker()
    client(p.SubmitJobBg(b"work", b"", b"x"))
    world.commit()
    worker.grab()
    disk.broken = True
    worker(p.WorkComplete(_handle(1), LARGE))
    world.work()
    assert world.broker.journal.has_failed
    assert disk.ended(1) is None
    disk.broken = False
    world.catch_up()
    assert not world.broker.journal.has_failed
    assert disk.ended(1) is not None


def test_a_large_job_that_failed_is_not_written_again(world: Durable, client: Peer, disk: SlowDisk) -> None:
    worker = world.worker().sleep()  # so that the workload stays in memory for it
    handle = submit_large(world, client)
    assert worker.read() == [p.Noop()]
    worker.grab()
    (change,) = _changes_of(world, worker, p.WorkFail(handle))
    assert isinstance(change, JobRecord)
    assert change.letter is not None
    assert change.letter.workload == len(LARGE)
    world.commit()
    stored = disk.job(1)
    assert stored is not None
    assert stored.workload == LARGE


def _changes_of(world: Durable, worker: Peer, packet: p.Packet) -> list[object]:
    worker(packet)
    return [change for change, _ in world.broker.journal.entries if change is not None]


def test_a_large_job_is_read_while_others_are_given_out(world: Durable, client: Peer) -> None:
    handle = submit_large(world, client)
    client(p.SubmitJobBg(b"work", b"", b"small"))
    world.commit()
    worker, other = world.worker(), world.worker()
    assert worker(p.GrabJob()) == []
    assert other(p.GrabJob()) == [p.JobAssign(_handle(2), b"work", b"small")]
    assert other(p.GrabJob()) == [p.NoJob()]
    world.step()
    assert worker.read() == []
    world.work()
    assert worker.read() == [p.JobAssign(handle, b"work", LARGE)]
    worker(p.WorkComplete(handle, b"done"))
    world.commit()
    assert world.broker.jobs.by_number.keys() == {2}


def test_a_worker_that_leaves_before_its_large_job_was_sent_is_no_death(world: Durable, client: Peer) -> None:
    handle = submit_large(world, client)
    for _ in range(5):
        worker = world.worker()
        assert worker(p.GrabJob()) == []
        world.step()
        worker.leave()
        world.work()
    job = world.broker.core.find(handle)
    assert job is not None
    assert job.details is None
    assert job.function.running == 0
    worker = world.worker()
    worker(p.GrabJob())
    world.work()
    assert worker.read() == [p.JobAssign(handle, b"work", LARGE)]


def test_a_worker_that_withdraws_the_function_while_its_large_job_is_read_is_sent_the_job(
    world: Durable, client: Peer
) -> None:
    handle = submit_large(world, client)
    worker = world.worker()
    assert worker(p.GrabJob(), p.CantDo(b"work")) == []
    world.work()
    assert worker.read() == [p.JobAssign(handle, b"work", LARGE)]


def test_a_large_job_that_is_cancelled_while_it_is_read_is_not_sent(world: Durable, client: Peer) -> None:
    handle = submit_large(world, client)
    client(p.SubmitJobBg(b"work", b"", b"small"))
    world.commit()
    worker = world.worker()
    assert worker(p.GrabJob()) == []
    assert world.broker.cancel(handle)
    world.work()
    assert worker.read() == [p.JobAssign(_handle(2), b"work", b"small")]
    assert world.broker.jobs.by_number.keys() == {2}


def test_a_large_job_that_cannot_be_read_makes_a_dead_letter_and_the_worker_is_answered(
    world: Durable, client: Peer, disk: SlowDisk
) -> None:
    submit_large(world, client)
    worker = world.worker()
    assert worker(p.GrabJob()) == []
    disk.broken = True
    world.work()
    assert worker.read() == [p.NoJob()]
    (letter,) = disk.dead(None, 0, 10)
    assert letter.outcome is JobOutcome.RAISED
    assert b"the disk cannot be read" in bytes(letter.body)


def join_large(world: Durable, client: Peer, joiner: Peer) -> bytes:
    """A large attached job that a background submission has joined, so that it is being written."""
    (created,) = client(p.SubmitJob(b"work", b"u", LARGE))
    assert isinstance(created, p.JobCreated)
    assert joiner(p.SubmitJobBg(b"work", b"u", b"")) == []
    world.commit()
    return created.handle


def test_others_pass_a_large_attached_job_that_becomes_a_background_job(
    world: Durable, client: Peer, disk: SlowDisk
) -> None:
    joiner, other = world.peer("joiner"), world.peer("other")
    handle = join_large(world, client, joiner)
    other(p.SubmitJobBg(b"work", b"", b"small"))
    world.step()
    assert [type(answer) for answer in other.read()] == [p.JobCreated]
    assert joiner.read() == []
    assert disk.job(1) is None
    world.work()
    assert joiner.read() == [p.JobCreated(handle)]
    assert disk.job(1) is not None


@pytest.mark.parametrize("result", [b"small", LARGE])
def test_such_a_job_may_complete_while_it_is_written(
    world: Durable, client: Peer, disk: SlowDisk, result: bytes
) -> None:
    joiner, worker, asker = world.peer("joiner"), world.worker(), world.peer("asker")
    handle = join_large(world, client, joiner)
    assert worker.grab() == handle
    worker(p.WorkComplete(handle, result))
    world.step()
    assert client.read() == [p.WorkComplete(handle, result)]
    request = server_calls.ResultRequest(handle=handle.decode(), timeout=0).to_wire()
    asker(p.SubmitJob(server_calls.RESULT, b"", request))
    world.work()
    assert joiner.read() == [p.JobCreated(handle)]
    answer = asker.read()[-1]
    assert isinstance(answer, p.WorkComplete)
    assert answer.result == result
    assert disk.job(1) is None
    assert not world.restarted().broker.jobs.by_number


def test_such_a_job_may_be_cancelled_while_it_is_written(
    world: Durable, client: Peer, disk: SlowDisk
) -> None:
    joiner = world.peer("joiner")
    handle = join_large(world, client, joiner)
    assert world.broker.cancel(handle)
    world.work()
    assert client.read() == [p.WorkFail(handle)]
    assert joiner.read() == [p.JobCreated(handle)]
    assert disk.job(1) is None
    assert not world.restarted().broker.jobs.by_number


def test_a_death_while_such_a_job_is_written_counts_after_a_restart(
    world: Durable, client: Peer, disk: SlowDisk
) -> None:
    handle = join_large(world, client, world.peer("joiner"))
    worker = world.worker()
    assert worker.grab() == handle
    worker.leave()
    world.work()
    stored = disk.job(1)
    assert stored is not None
    assert stored.deaths == 1


def test_a_retry_while_such_a_job_is_written_is_kept(world: Durable, client: Peer, disk: SlowDisk) -> None:
    handle = join_large(world, client, world.peer("joiner"))
    worker = world.worker()
    assert worker.grab() == handle
    request = server_calls.RetryRequest(handle=handle.decode()).to_wire()
    worker(p.SubmitJob(server_calls.RETRY, b"", request))
    world.work()
    assert isinstance(worker.read()[-1], p.WorkComplete)
    stored = disk.job(1)
    assert stored is not None
    assert stored.attempt == 1


def test_such_a_job_goes_on_for_its_client_if_it_does_not_fit(
    world: Durable, client: Peer, disk: SlowDisk
) -> None:
    joiner, worker = world.peer("joiner"), world.worker()
    handle = join_large(world, client, joiner)
    disk.broken = True
    world.work()
    (error,) = joiner.read()
    assert isinstance(error, p.Error)
    assert error.text == b"the job could not be stored: the disk is full"
    assert worker.grab() == handle
    worker(p.WorkComplete(handle, b"done"))
    world.work()
    assert client.read() == [p.WorkComplete(handle, b"done")]


# ------------------------------------------------------------------- answers about what has ended


def end_large(world: Durable, client: Peer, unique: bytes = b"u") -> bytes:
    """A background job with a large result that is kept."""
    worker = world.worker()
    client(p.SubmitJobBg(b"work", unique, b"x"))
    world.commit()
    (created,) = client.read()
    assert isinstance(created, p.JobCreated)
    assert worker.grab() == created.handle
    worker(p.WorkComplete(created.handle, LARGE))
    world.work()
    worker.leave()
    return created.handle


def ask(function: bytes, request: server_calls.Message, payload: bytes = b"") -> p.SubmitJob:
    return p.SubmitJob(function, b"", request.to_wire() + payload)


def late(world: Durable) -> None:
    """Each turn is late after one step."""
    world.broker.turns.is_late = lambda: True


def ask_for_large(world: Durable, asker: Peer, handle: bytes) -> None:
    """Ask for a large result, of which one step is read."""
    late(world)
    request = server_calls.ResultRequest(handle=handle.decode())
    assert [type(answer) for answer in asker(ask(server_calls.RESULT, request))] == [p.JobCreated]
    world.commit()


def asker_of_large(world: Durable, client: Peer) -> tuple[Peer, bytes]:
    """A client that has asked for a large result, of which one step is read. And the job's handle."""
    handle = end_large(world, client)
    asker = world.peer("asker")
    ask_for_large(world, asker, handle)
    return asker, handle


def failure_of(answer: object) -> str:
    """The text of a failed call."""
    assert isinstance(answer, p.WorkWarning)
    return answer.data.decode()


def test_a_large_result_is_read_in_turns_with_the_requests_of_others_between(
    world: Durable, client: Peer, disk: SlowDisk
) -> None:
    handle = end_large(world, client)
    asker, other = world.peer("asker"), world.peer("other")
    ask_for_large(world, asker, handle)
    asker(p.EchoReq(b"behind"))
    for steps in range(1, 4):
        assert disk.steps == steps
        assert other(p.EchoReq(b"between")) == [p.EchoRes(b"between")]
        assert asker.read() == []
        world.turn()
    answer, behind = asker.read()
    assert isinstance(answer, p.WorkComplete)
    assert answer.result == LARGE
    assert behind == p.EchoRes(b"behind")


def test_a_large_result_that_goes_while_it_is_read_is_unknown(
    world: Durable, client: Peer, disk: SlowDisk
) -> None:
    asker, _ = asker_of_large(world, client)
    while disk.expire(2e9, 100):
        pass
    world.work()
    warning, failed = asker.read()
    assert "is not kept any more" in failure_of(warning)
    assert isinstance(failed, p.WorkFail)
    assert asker(p.EchoReq(b"next")) == [p.EchoRes(b"next")]


def test_damage_in_a_later_part_of_a_result_is_the_answer_and_is_logged(
    world: Durable, client: Peer, disk: SlowDisk
) -> None:
    asker, handle = asker_of_large(world, client)
    disk.broken = True
    world.work()
    warning, failed = asker.read()
    assert failure_of(warning) == "a part is not what was written"
    assert isinstance(failed, p.WorkFail)
    assert [notice.text for notice in world.broker.outgoing.notices] == [
        f"job {handle.decode()} of work: a part is not what was written"
    ]
    assert asker(p.EchoReq(b"next")) == [p.EchoRes(b"next")]


def test_a_large_result_is_read_no_further_for_a_client_that_leaves(
    world: Durable, client: Peer, disk: SlowDisk
) -> None:
    asker, _ = asker_of_large(world, client)
    asker.leave()
    world.work()
    assert disk.steps == 1
    assert not world.broker.turns.waiting


def test_a_large_result_answers_a_submission_with_reuse(world: Durable, client: Peer, disk: SlowDisk) -> None:
    handle = end_large(world, client)
    late(world)
    request = server_calls.SubmitRequest(function="work", unique="u", reuse=True)
    client(ask(server_calls.SUBMIT, request, b"\nx"), p.EchoReq(b"behind"))
    world.work()
    assert disk.steps == 3
    assert client.read() == [
        p.JobCreated(handle),
        p.WorkComplete(handle, LARGE),
        p.EchoRes(b"behind"),
    ]


@pytest.mark.parametrize("happens", ["it is damaged", "it goes"])
def test_a_submission_with_reuse_runs_if_its_large_result_cannot_be_had(
    world: Durable, client: Peer, disk: SlowDisk, happens: str
) -> None:
    end_large(world, client)
    late(world)
    request = server_calls.SubmitRequest(function="work", unique="u", reuse=True)
    client(ask(server_calls.SUBMIT, request, b"\nx"))
    world.commit()
    if happens == "it is damaged":
        disk.broken = True
    else:
        disk.expire(2e9, 100)
    world.work()
    (created,) = client.read()
    assert isinstance(created, p.JobCreated)
    assert world.broker.core.find(created.handle) is not None


def fail_large(world: Durable, client: Peer, payload: bytes, unique: bytes = b"") -> bytes:
    """A dead letter with a large payload."""
    client(p.SubmitJobBg(b"work", unique, payload))
    world.work()
    (created,) = client.read()
    assert isinstance(created, p.JobCreated)
    worker = world.worker()
    worker(p.GrabJob())
    world.work()
    worker(p.WorkFail(created.handle))
    world.work()
    worker.leave()
    return created.handle


SHOWN: list[bytes] = [
    b"",
    LARGE,
    b"short",
    b"x" + "\u00e9\u20ac\U0001f600".encode() * 300_000,
    b'"\\\x00\x1f\x7f\n' * 300_000,
    b"x" * 2_000_000 + b"\xff",
    b"x" * 2_000_000 + b"\xc3",
]


@pytest.mark.parametrize("payload", SHOWN, ids=range(len(SHOWN)))
def test_a_large_dead_letter_is_shown_whole(world: Durable, client: Peer, payload: bytes) -> None:
    handle = fail_large(world, client, payload)
    late(world)
    request = server_calls.DeadRequest(action="show", handle=handle.decode())
    client(ask(server_calls.DEAD, request), p.EchoReq(b"behind"))
    world.work()
    answer, behind = client.read()
    assert isinstance(answer, p.WorkComplete)
    assert behind == p.EchoRes(b"behind")
    letter = server_calls.Letter.model_validate_json(answer.result)
    try:
        text: str | None = payload.decode()
    except UnicodeDecodeError:
        text = None
    assert base64.b64decode(letter.payload) == payload
    assert letter.text == text
    assert letter.job.handle == handle.decode()
    assert letter.job.size == 0


def test_a_dead_letter_that_goes_while_it_is_shown_is_unknown(
    world: Durable, client: Peer, disk: SlowDisk
) -> None:
    handle = fail_large(world, client, LARGE)
    late(world)
    request = server_calls.DeadRequest(action="show", handle=handle.decode())
    client(ask(server_calls.DEAD, request))
    world.commit()
    disk.expire(1e10, 100)
    world.work()
    warning, failed = client.read()
    assert failure_of(warning) == f"there is no dead letter {handle.decode()} any more"
    assert isinstance(failed, p.WorkFail)
    assert client(p.EchoReq(b"next")) == [p.EchoRes(b"next")]


# ------------------------------------------------------------------------ payloads that are uniques

HASHED = bytes(LONG_HASH + 1)


def test_a_large_payload_is_hashed_in_turns_with_the_requests_of_others_between(
    world: Durable, client: Peer
) -> None:
    other = world.peer("other")
    late(world)
    client(p.SubmitJob(b"work", b"-", HASHED))
    assert client(p.EchoReq(b"behind")) == []
    turns = 0
    while world.broker.turns.waiting:
        assert other(p.EchoReq(b"between")) == [p.EchoRes(b"between")]
        world.turn()
        turns += 1
    assert turns > 3
    created, behind = client.read()
    assert isinstance(created, p.JobCreated)
    assert behind == p.EchoRes(b"behind")
    world.broker.turns.is_late = lambda: False
    assert other.submit(b"work", b"-", HASHED) == created.handle
    assert other.submit(b"work", b"-", HASHED + b"other") != created.handle


@pytest.mark.parametrize("detached", [False, True])
def test_so_is_that_of_a_submission_with_options(world: Durable, client: Peer, detached: bool) -> None:
    first = world.peer("first").submit(b"work", b"-", HASHED)
    late(world)
    request = server_calls.SubmitRequest(function="work", unique="-", detached=detached)
    assert client(ask(server_calls.SUBMIT, request, b"\n" + HASHED), p.EchoReq(b"behind")) == []
    world.work()
    created, *answers = client.read()
    assert isinstance(created, p.JobCreated)
    assert p.EchoRes(b"behind") in answers
    (job,) = world.broker.jobs.by_number.values()
    assert world.broker.core.handles.handle(job.number) == first
    assert job.background is detached
    if detached:
        (answer,) = (answer for answer in answers if isinstance(answer, p.WorkComplete))
        assert json.loads(answer.result)["handle"] == first.decode()
    else:
        assert created.handle == first


def test_so_is_that_of_a_background_submission_with_options(world: Durable, client: Peer) -> None:
    first = world.peer("first").submit(b"work", b"-", HASHED)
    late(world)
    request = server_calls.SubmitRequest(function="work", detached=True, keep=0)
    client(p.SubmitJobBg(server_calls.SUBMIT, b"-", request.to_wire() + b"\n" + HASHED), p.EchoReq(b"behind"))
    world.work()
    assert client.read() == [p.JobCreated(first), p.EchoRes(b"behind")]
    (job,) = world.broker.jobs.by_number.values()
    assert job.background


def test_answers_keep_their_order_around_a_payload_that_is_hashed(world: Durable, client: Peer) -> None:
    late(world)
    small = p.SubmitJobBg(b"work", b"", b"small")
    client(small, p.SubmitJobBg(b"work", b"-", HASHED), small, p.EchoReq(b"last"))
    world.work()
    *created, last = client.read()
    assert created == [p.JobCreated(_handle(number)) for number in (1, 2, 3)]
    assert last == p.EchoRes(b"last")


@pytest.mark.parametrize("background", [False, True])
def test_a_client_may_leave_while_its_payload_is_hashed(
    world: Durable, client: Peer, background: bool
) -> None:
    late(world)
    client((p.SubmitJobBg if background else p.SubmitJob)(b"work", b"-", HASHED))
    client.leave()
    world.work()
    assert len(world.broker.jobs.by_number) == background


def test_a_dead_letter_whose_large_payload_is_its_unique_is_replayed_in_turns(
    world: Durable, client: Peer
) -> None:
    handle = fail_large(world, client, HASHED, b"-")
    other = world.peer("other")
    late(world)
    request = server_calls.DeadRequest(action="replay", handle=handle.decode())
    client(ask(server_calls.DEAD, request))
    world.commit()
    turns = 0
    while world.broker.turns.waiting:
        assert other(p.EchoReq(b"between")) == [p.EchoRes(b"between")]
        world.turn()
        turns += 1
    assert turns > 3
    (answer,) = client.read()
    assert isinstance(answer, p.WorkComplete)
    assert json.loads(answer.result) == {"jobs": 1}
    world.broker.turns.is_late = lambda: False
    assert other.submit(b"work", b"-", HASHED) == handle
