"""A client that wants a job no more: it says so (``gearflow:detach``), or its connection closes."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from gearflow.protocol import packets as p
from gearflow.protocol import server_calls, workers
from tests.broker.harness import Durable, Peer, World

Leaving = Callable[[Peer, bytes], None]


pytestmark = pytest.mark.usefixtures("ports")


def detach(client: Peer, handle: bytes) -> int:
    """Say that the job is wanted no more; of how many that was true."""
    created, *others, answer = client(
        p.SubmitJob(server_calls.DETACH, b"", server_calls.DetachRequest(handle=handle.decode()).to_wire())
    )
    assert isinstance(created, p.JobCreated)
    assert isinstance(answer, p.WorkComplete)
    assert others == []
    assert answer.handle == created.handle
    return server_calls.Done.model_validate_json(answer.result).jobs


def hang_up(client: Peer, handle: bytes) -> None:
    client.leave()


@pytest.fixture(params=[detach, hang_up])
def leave(request: pytest.FixtureRequest) -> Leaving:
    """Each way in which a client that is attached once can leave its job."""
    way: Leaving = request.param
    return way


def listening(world: World) -> tuple[Peer, bytes]:
    """A worker that is told of events, and the handle of that call."""
    worker = world.worker()
    return worker, worker.submit(server_calls.EVENTS, workload=b"")


def told(worker: Peer, call: bytes) -> list[bytes | None]:
    """The jobs of which the worker was told since it last looked that nobody wants them."""
    events = worker.read()
    for event in events:
        assert isinstance(event, p.WorkData)
        assert event.handle == call
    return [server_calls.cancelled_handle(event.data) for event in events if isinstance(event, p.WorkData)]


def call(peer: Peer, function: bytes, request: server_calls.Message) -> Any:
    """The answer to a reserved function that answers at once."""
    _, answer = peer(p.SubmitJob(function, b"", request.to_wire()))
    assert isinstance(answer, p.WorkComplete), answer
    return json.loads(answer.result)


# --------------------------------------------------------------------------------- the last who wants a job


def test_a_waiting_job_is_forgotten(world: World, client: Peer, leave: Leaving) -> None:
    handle = client.submit(unique=b"u")
    leave(client, handle)
    assert not world.broker.jobs.by_number
    assert world.worker().grab() is None
    assert world.peer().submit(unique=b"u") != handle


def test_the_worker_of_a_running_job_is_told_once(world: World, client: Peer, leave: Leaving) -> None:
    handle = client.submit()
    worker, events = listening(world)
    assert worker.grab() == handle
    leave(client, handle)
    assert told(worker, events) == [handle]
    assert world.broker.functions.by_name[b"work"].running == 1  # until its worker has ended it
    assert worker(p.WorkFail(handle)) == []  # and not JOB_NOT_FOUND
    assert not world.broker.jobs.by_number


@pytest.mark.parametrize("reply", [p.WorkComplete, p.WorkException, p.WorkData, p.WorkWarning])
def test_what_the_worker_says_all_the_same_goes_to_nobody(
    world: World, client: Peer, reply: type[p.WorkComplete]
) -> None:
    handle = client.submit()
    worker, events = listening(world)
    worker.grab()
    assert detach(client, handle) == 1
    assert told(worker, events) == [handle]
    assert worker(reply(handle, b"r")) == []
    assert client.read() == []


def test_its_unique_is_free_for_a_new_job(world: World, client: Peer, leave: Leaving) -> None:
    handle = client.submit(unique=b"u")
    worker, _ = listening(world)
    worker.grab()
    leave(client, handle)
    other = world.peer()
    again = other.submit(unique=b"u")
    assert again != handle
    worker.read()
    assert worker(p.WorkFail(handle)) == []
    assert worker.grab() == again
    worker(p.WorkComplete(again, b"r"))
    assert other.read() == [p.WorkComplete(again, b"r")]


def test_a_worker_that_does_not_listen_runs_on_for_whoever_joins(
    world: World, client: Peer, leave: Leaving
) -> None:
    handle = client.submit(unique=b"u")
    worker = world.worker()
    worker.grab()
    leave(client, handle)
    late = world.peer()
    assert late.submit(unique=b"u") == handle
    worker(p.WorkComplete(handle, b"r"))
    assert late.read() == [p.WorkComplete(handle, b"r")]


def test_a_worker_that_listens_only_then_is_told_of_what_it_missed(
    world: World, client: Peer, leave: Leaving
) -> None:
    worker = world.worker()
    other = world.peer()
    wanted = other.submit(unique=b"u")
    left = client.submit()
    assert [worker.grab(), worker.grab()] == [wanted, left]
    leave(client, left)
    created, *events = worker(p.SubmitJob(server_calls.EVENTS, b"", b""))
    assert isinstance(created, p.JobCreated)
    assert events == [p.WorkData(created.handle, server_calls.cancel_event(left))]
    assert other.submit(unique=b"u") == wanted


def test_a_reduce_job_is_wanted_by_its_client_alone_too(world: World, client: Peer, leave: Leaving) -> None:
    (created,) = client(p.SubmitReduceJob(b"work", b"u", b"reducer", b"0", b"x"))
    assert isinstance(created, p.JobCreated)
    worker, events = listening(world)
    assert worker.grab() == created.handle
    leave(client, created.handle)
    assert told(worker, events) == [created.handle]


def test_a_job_whose_worker_dies_then_is_not_run_again(world: World, client: Peer, leave: Leaving) -> None:
    handle = client.submit()
    worker, _ = listening(world)
    worker.grab()
    leave(client, handle)
    worker.leave()
    assert not world.broker.jobs.by_number


def test_a_job_between_two_runs_is_forgotten(world: World, client: Peer, leave: Leaving) -> None:
    handle = client.submit()
    worker = world.worker()
    worker.grab()
    assert call(worker, server_calls.RETRY, server_calls.RetryRequest(handle=handle.decode(), delay=60))
    leave(client, handle)
    assert not world.broker.jobs.by_number
    world.pass_time(61)
    assert worker.grab() is None


# --------------------------------------------------------------------------------------- others want it too


def test_the_other_caller_still_gets_the_result(world: World, client: Peer, leave: Leaving) -> None:
    other = world.peer()
    handle = client.submit(unique=b"u")
    assert other.submit(unique=b"u") == handle
    worker, events = listening(world)
    worker.grab()
    leave(client, handle)
    assert told(worker, events) == []
    worker(p.WorkData(handle, b"d"), p.WorkComplete(handle, b"r"))
    assert other.read() == [p.WorkData(handle, b"d"), p.WorkComplete(handle, b"r")]
    assert client.read() == []


def test_a_job_that_was_joined_in_the_background_lives_on(world: World, client: Peer, leave: Leaving) -> None:
    handle = client.submit(unique=b"u")
    assert world.peer().submit_background(unique=b"u") == handle
    worker, events = listening(world)
    worker.grab()
    leave(client, handle)
    assert told(worker, events) == []
    assert worker(p.WorkComplete(handle, b"r")) == []


def test_a_connection_that_is_attached_twice_hears_what_follows_once(world: World, client: Peer) -> None:
    handle = client.submit(unique=b"u")
    assert client.submit(unique=b"u") == handle
    worker, events = listening(world)
    worker.grab()
    worker(p.WorkData(handle, b"1"))
    assert client.read() == [p.WorkData(handle, b"1")] * 2
    assert detach(client, handle) == 1
    worker(p.WorkData(handle, b"2"))
    assert client.read() == [p.WorkData(handle, b"2")]
    assert detach(client, handle) == 1
    assert told(worker, events) == [handle]
    assert detach(client, handle) == 0


# ---------------------------------------------------------------------------------------- what is no job


def test_nobody_detaches_others(world: World, client: Peer) -> None:
    handle = client.submit()
    background = client.submit_background()
    assert detach(world.peer(), handle) == 0
    assert detach(client, background) == 0
    assert detach(client, b"H:nowhere:1") == 0
    worker = world.worker()
    assert [worker.grab(), worker.grab()] == [handle, background]


def test_a_result_that_is_waited_for_is_not_any_more() -> None:
    world = Durable()
    client = world.peer()
    job = client.submit()
    waiting = client.submit(server_calls.RESULT, workload=b'{"handle": "%b"}' % job)
    staying = client.submit(server_calls.RESULT, workload=b'{"handle": "%b"}' % job)
    world.commit()
    assert detach(client, waiting) == 1
    assert detach(client, waiting) == 0
    worker = world.worker()
    worker.grab()
    worker(p.WorkComplete(job, b"r"))
    world.commit()
    assert client.read() == [p.WorkComplete(job, b"r"), p.WorkComplete(staying, b"r")]


def test_who_waits_for_the_result_of_a_job_that_ends_so_is_told(leave: Leaving) -> None:
    world = Durable()
    client, watcher = world.peer(), world.peer()
    handle = client.submit()
    waiting = watcher.submit(server_calls.RESULT, workload=b'{"handle": "%b"}' % handle)
    world.commit()
    leave(client, handle)
    world.commit()
    assert watcher.read() == [p.WorkFail(waiting)]


def test_who_waits_for_a_run_that_nobody_else_wants_hears_of_its_workers_death(leave: Leaving) -> None:
    world = Durable()
    client, watcher = world.peer(), world.peer()
    handle = client.submit()
    worker = world.worker()  # which cannot be told, so the run goes on
    worker.grab()
    waiting = watcher.submit(server_calls.RESULT, workload=b'{"handle": "%b"}' % handle)
    world.commit()
    leave(client, handle)
    world.commit()
    assert watcher.read() == []
    worker.leave()
    world.commit()
    assert watcher.read() == [p.WorkFail(waiting)]


def test_what_is_kept_of_it_is_that_it_was_cancelled(leave: Leaving) -> None:
    world = Durable()
    client = world.peer()
    request = server_calls.SubmitRequest(function="work", keep=60)
    handle = client.submit(server_calls.SUBMIT, workload=request.to_wire() + b"\nx")
    worker, events = listening(world)
    worker.grab()
    leave(client, handle)
    assert told(worker, events) == [handle]
    worker(p.WorkComplete(handle, b"r"))
    world.commit()
    asker = world.peer()
    asker.submit(server_calls.INFO, workload=b'{"handle": "%b"}' % handle)
    world.commit()
    (answer,) = asker.read()
    assert isinstance(answer, p.WorkComplete)
    assert server_calls.JobInfo.model_validate_json(answer.result).state == "cancelled"


def test_a_joined_job_that_cannot_be_stored_ends_when_nobody_else_wants_it(leave: Leaving) -> None:
    world = Durable()
    client, other = world.peer(), world.peer()
    handle = client.submit(unique=b"u")
    worker, events = listening(world)
    worker.grab()
    other(p.SubmitJobBg(b"work", b"u", b"x"))
    leave(client, handle)
    assert told(worker, events) == []
    world.disk.full = True
    world.commit()
    (refused,) = other.read()
    assert isinstance(refused, p.Error)
    assert told(worker, events) == [handle]


def test_one_that_is_cancelled_while_it_is_being_stored_stays_so() -> None:
    world = Durable()
    client, other = world.peer(), world.peer()
    handle = client.submit(unique=b"u")
    worker = world.worker()
    worker.grab()
    worker(p.WorkStatus(handle, b"1", b"2"))
    other(p.SubmitJobBg(b"work", b"u", b"x"))
    assert world.broker.cancel(handle)
    world.commit()
    assert other.read() == [p.JobCreated(handle)]
    worker(p.WorkComplete(handle, b"r"))
    world.commit()
    asked = other.submit(server_calls.RESULT, workload=b'{"handle": "%b"}' % handle)
    world.commit()
    assert other.read() == [p.WorkFail(asked)]
    assert not list(world.disk.load().jobs)


# ---------------------------------------------------------------------- what workers say of themselves


def test_workers_are_listed_with_what_they_run_and_what_overran(world: World, client: Peer) -> None:
    client.submit()
    worker = world.worker(b"work", b"other")
    worker(p.SetClientId(b"w1"))
    worker.grab()
    report = workers.ReportRequest(overdue={"work": 2, "other": 0}, texts={"work": "name"})
    assert call(worker, workers.REPORT, report) == {"jobs": 2}
    assert call(client, workers.WORKERS, workers.WorkersRequest()) == {
        "workers": [
            {
                "id": "00rs-2",
                "client_id": "w1",
                "address": "worker",
                "functions": ["work", "other"],
                "since": 1000,
                "running": 1,
                "overdue": {"work": 2},
                "texts": {"work": "name"},
            }
        ]
    }
    assert call(worker, workers.REPORT, workers.ReportRequest()) == {"jobs": 0}
    (row,) = call(client, workers.WORKERS, workers.WorkersRequest())["workers"]
    assert not {"overdue", "texts"} & row.keys()
    worker.leave()
    assert call(client, workers.WORKERS, workers.WorkersRequest()) == {"workers": []}
