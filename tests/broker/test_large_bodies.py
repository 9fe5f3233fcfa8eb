"""A large body is written and read in steps: what passes it, and what waits for it."""

import json
from collections.abc import Generator, Iterator

import pytest

from gearflow.broker.storage import JobOutcome, JobRecord, StoredJob
from gearflow.errors import StoreError
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls
from tests.broker.harness import PREFIX, Disk, Durable, Peer

LARGE = bytes(range(256)) * 20


class SlowDisk(Disk):
    """A disk that takes some steps for a large body, and may break in the middle of one."""

    large = 5000
    broken = False

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
