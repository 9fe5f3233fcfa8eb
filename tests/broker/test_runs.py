"""The runs of a job after which it was queued again, as ``gearflow:info`` shows them."""

import json
from typing import Any

import pytest

from gearflow.broker.storage import Setting
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from tests.broker.harness import Durable, Peer


@pytest.fixture
def world() -> Durable:
    return Durable()


def call(world: Durable, peer: Peer, function: bytes, request: api.Message) -> bytes:
    """Calls a reserved function. Returns the answer."""
    sent = peer(p.SubmitJob(function, b"", request.to_wire()))
    world.commit()
    (answer,) = (packet for packet in [*sent, *peer.read()] if isinstance(packet, p.WorkComplete))
    return answer.result


def runs(world: Durable, handle: bytes) -> list[tuple[Any, ...]]:
    answer = call(world, world.peer("asks"), api.INFO, api.InfoRequest(handle=handle.decode()))
    known = api.JobInfo.model_validate_json(answer).runs
    return [(run.attempt, run.started, run.ended, run.worker, run.reason) for run in known]


def submitted(world: Durable) -> bytes:
    client = world.peer("client")
    client(p.SubmitJobBg(b"work", b"", b"x"))
    world.commit()
    (created,) = client.read()
    assert isinstance(created, p.JobCreated)
    return created.handle


def retry(world: Durable, worker: Peer, handle: bytes, reason: str, *, counted: bool = True) -> None:
    request = api.RetryRequest(handle=handle.decode(), reason=reason, counted=counted)
    call(world, worker, api.RETRY, request)


def fail_by_policy(world: Durable, delays: list[int]) -> None:
    policy = {"retries": {"delays": delays, "jitter": False}}
    world.broker.core.settings.apply(Setting(b"work", "policy", json.dumps(policy).encode()))


def test_a_job_has_the_runs_that_its_worker_has_handed_back(world: Durable) -> None:
    handle, worker = submitted(world), world.worker()
    assert runs(world, handle) == []
    assert worker.grab() == handle
    began = world.now
    world.pass_time(3)
    retry(world, worker, handle, "KeyError: 'card'")
    assert runs(world, handle) == [(1, began, began + 3, "worker", "KeyError: 'card'")]
    assert worker.grab() == handle
    retry(world, worker, handle, "it is snoozed", counted=False)
    assert [(attempt, reason) for attempt, _, _, _, reason in runs(world, handle)] == [
        (1, "KeyError: 'card'"),
        (2, "it is snoozed"),
    ]


def test_the_run_of_a_worker_that_went_away_is_one_of_them(world: Durable) -> None:
    handle, worker = submitted(world), world.worker()
    assert worker.grab() == handle
    world.pass_time(2)
    worker.leave()
    world.commit()
    assert runs(world, handle) == [
        (1, world.now - 2, world.now, "worker", "the worker worker went away"),
    ]


def test_a_run_that_a_policy_repeats_is_one_of_them(world: Durable) -> None:
    fail_by_policy(world, [10])
    handle, worker = submitted(world), world.worker()
    assert worker.grab() == handle
    worker(p.WorkException(handle, b"no luck"))
    ((attempt, _, _, name, reason),) = runs(world, handle)
    assert (attempt, name) == (1, "worker")
    assert reason == "run 1 failed (WORK_EXCEPTION: no luck). The next run is in 10 s"


def test_a_job_that_a_worker_gives_back_has_had_no_run(world: Durable) -> None:
    handle, worker = submitted(world), world.worker()
    assert worker.grab() == handle
    call(world, worker, api.RELEASE, api.ReleaseRequest(handle=handle.decode()))
    assert runs(world, handle) == []


def test_the_next_server_knows_the_runs(world: Durable) -> None:
    handle, worker = submitted(world), world.worker()
    assert worker.grab() == handle
    retry(world, worker, handle, "it was busy")
    before = runs(world, handle)
    after = world.restarted()
    assert runs(after, handle) == before != []


def test_a_dead_letter_has_its_runs_and_a_replay_forgets_them(world: Durable) -> None:
    fail_by_policy(world, [0])
    handle, worker = submitted(world), world.worker()
    for _ in range(2):
        assert worker.grab() == handle
        worker(p.WorkException(handle, b"no luck"))
        world.commit()
    assert [run[0] for run in runs(world, handle)] == [1]
    call(world, world.peer("operator"), api.DEAD, api.DeadRequest(action="replay", handle=handle.decode()))
    assert runs(world, handle) == []
    assert runs(world.restarted(), handle) == []


def test_of_many_runs_the_first_and_the_last_are_kept_with_short_reasons(world: Durable) -> None:
    handle, worker = submitted(world), world.worker()
    for number in range(1, 31):
        assert worker.grab() == handle
        retry(world, worker, handle, f"run {number} " + "x" * 1000)
    known = runs(world, handle)
    assert [run[0] for run in known] == [1, *range(16, 31)]
    assert {len(run[-1]) for run in known} == {500}
