"""Policies of functions whose clients and workers know nothing of gearflow."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearflow.broker.limits import SizeLimits
from gearflow.broker.storage import JobOutcome, RecordOf, Setting
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from gearflow.protocol.envelope import unwrap
from gearflow.protocol.server_events import read_watch_event
from tests.broker.harness import Durable, Peer, World


def set_policy(world: World, function: bytes = b"work", **policy: Any) -> None:
    value = json.dumps(policy).encode() if policy else b""
    world.broker.core.settings.apply(Setting(function, "policy", value))


PLAN = {"delays": [10, 100], "jitter": False}


@pytest.fixture
def world() -> Durable:
    return Durable()


def background(world: Durable, client: Peer) -> bytes:
    client(p.SubmitJobBg(b"work", b"", b"x"))
    world.commit()
    (created,) = client.read()
    assert isinstance(created, p.JobCreated)
    return created.handle


def record(world: Durable, handle: bytes) -> Any:
    world.commit()
    return world.port.look_up(RecordOf(int(handle.rpartition(b":")[2])))


def info(world: Durable, handle: bytes) -> api.JobInfo:
    peer = world.peer()
    request = api.InfoRequest(handle=handle.decode())
    peer(p.SubmitJob(api.INFO, b"", request.to_wire()))
    world.commit()
    (answer,) = peer.read()
    assert isinstance(answer, p.WorkComplete)
    return api.JobInfo.model_validate_json(answer.result)


@pytest.mark.parametrize("fails", ["WORK_FAIL", "WORK_EXCEPTION"])
def test_a_failed_background_job_of_a_plain_worker_runs_again_as_the_policy_says(
    world: Durable, fails: str
) -> None:
    set_policy(world, retries=PLAN)
    client, worker = world.peer("client"), world.worker()
    handle = background(world, client)
    end = p.WorkFail(handle) if fails == "WORK_FAIL" else p.WorkException(handle, b"no luck")
    for delay in (10, 100):
        assert worker.grab() == handle
        assert worker(end) == []
        assert info(world, handle).state == "delayed"
        world.pass_time(delay - 1)
        assert worker.grab() is None
        world.pass_time(1)
    assert worker.grab() == handle
    shown = info(world, handle)
    assert shown.attempt == 3
    said = f"{fails}: no luck" if fails == "WORK_EXCEPTION" else fails
    assert shown.warnings == (
        f"run 1 failed ({said}). The next run is in 10 s",
        f"run 2 failed ({said}). The next run is in 100 s",
    )
    worker(end)
    letter = record(world, handle)
    assert letter.outcome is (JobOutcome.FAILED if fails == "WORK_FAIL" else JobOutcome.RAISED)
    assert letter.attempt == 3


def test_a_retry_is_known_to_the_next_server(world: Durable) -> None:
    set_policy(world, retries=PLAN)
    worker = world.worker()
    handle = background(world, world.peer())
    assert worker.grab() == handle
    worker(p.WorkFail(handle))
    world.commit()
    later = world.restarted()
    set_policy(later, retries=PLAN)
    worker = later.worker()
    assert worker.grab() is None
    later.pass_time(10)
    assert worker.grab() == handle
    assert info(later, handle).attempt == 2


def test_clients_that_are_attached_wait_on_and_watchers_see_the_retry(world: Durable) -> None:
    set_policy(world, retries=PLAN)
    client, worker, watcher = world.peer(), world.worker(), world.peer()
    client(p.SubmitJobBg(b"work", b"u", b"x"))
    world.commit()
    client.read()
    (created,) = client(p.SubmitJob(b"work", b"u", b"x"))
    assert isinstance(created, p.JobCreated)
    handle = created.handle
    watcher(p.SubmitJob(api.WATCH, b"", api.WatchRequest(handle=handle.decode()).to_wire()))
    assert worker.grab() == handle
    watcher.read()
    worker(p.WorkException(handle, b"Traceback:\n  no luck"))
    reason = "run 1 failed (WORK_EXCEPTION: Traceback: no luck). The next run is in 10 s"
    assert client.read() == [p.WorkWarning(handle, reason.encode())]
    ((event, _),) = (read_watch_event(sent.data) for sent in watcher.read() if isinstance(sent, p.WorkData))
    assert event == {"event": "retrying", "attempt": 1, "delay": 10.0, "reason": reason}
    world.pass_time(10)
    assert worker.grab() == handle
    worker(p.WorkComplete(handle, b"done"))
    world.commit()
    assert client.read() == [p.WorkComplete(handle, b"done")]


def test_a_foreground_job_ends_with_its_first_failure(world: Durable) -> None:
    set_policy(world, retries=PLAN)
    client, worker = world.peer(), world.worker()
    handle = client.submit()
    assert worker.grab() == handle
    worker(p.WorkFail(handle))
    assert client.read() == [p.WorkFail(handle)]


def test_jitter_takes_off_up_to_half_of_a_delay(world: Durable) -> None:
    set_policy(world, retries={"delays": [100]})
    client, worker = world.peer(), world.worker()
    due: set[float] = set()
    for _ in range(50):
        handle = background(world, client)
        assert worker.grab() == handle
        worker(p.WorkFail(handle))
        shown = info(world, handle).due
        assert shown is not None
        due.add(shown - world.now)
    assert len(due) == 50
    assert 50 <= min(due) < 60 < 90 < max(due) <= 100


def test_the_plan_of_a_submission_wins(world: Durable) -> None:
    set_policy(world, retries=PLAN)
    client, worker = world.peer(), world.worker()
    plan = api.RetryPlan(delays=(1.0,), jitter=False)
    request = api.SubmitRequest(function="work", detached=True, retries=plan)
    client(p.SubmitJob(api.SUBMIT, b"", request.to_wire() + b"\nx"))
    world.commit()
    handle = worker.grab()
    assert handle is not None
    worker(p.WorkFail(handle))
    world.pass_time(1)
    assert worker.grab() == handle
    worker(p.WorkFail(handle))
    assert record(world, handle).outcome is JobOutcome.FAILED


def gearflow_worker(world: World) -> Peer:
    worker = world.worker()
    worker(p.OptionReq(b"gearflow"))
    return worker


def envelope_of(worker: Peer) -> Any:
    (assigned,) = worker(p.GrabJob())
    assert isinstance(assigned, p.JobAssign)
    envelope, _ = unwrap(assigned.workload)
    return envelope


def test_a_worker_of_gearflow_gets_the_policy_in_the_envelope_and_applies_it(world: Durable) -> None:
    set_policy(world, retries=PLAN, timeout=60)
    worker = gearflow_worker(world)
    handle = background(world, world.peer())
    envelope = envelope_of(worker)
    assert (envelope.timeout, envelope.retries) == (60.0, api.RetryPlan(delays=(10.0, 100.0), jitter=False))
    worker(p.WorkFail(handle))
    assert record(world, handle).outcome is JobOutcome.FAILED


def test_an_attached_job_gets_the_time_limit_alone(world: Durable) -> None:
    set_policy(world, retries=PLAN, timeout=60)
    worker = gearflow_worker(world)
    world.peer().submit()
    envelope = envelope_of(worker)
    assert (envelope.timeout, envelope.retries) == (60.0, None)


def test_options_of_a_submission_win_in_the_envelope(world: Durable) -> None:
    set_policy(world, retries=PLAN, timeout=60)
    worker, client = gearflow_worker(world), world.peer()
    plan = api.RetryPlan(delays=(1.0,))
    request = api.SubmitRequest(function="work", detached=True, retries=plan, timeout=5.0)
    client(p.SubmitJob(api.SUBMIT, b"", request.to_wire() + b"\nx"))
    world.commit()
    envelope = envelope_of(worker)
    assert (envelope.timeout, envelope.retries) == (5.0, plan)


def test_a_job_is_taken_from_a_plain_worker_when_its_time_is_over() -> None:
    world = Durable()
    set_policy(world, timeout=60)
    worker, other = world.worker(), world.worker()
    handle = world.peer().submit()
    assert worker.grab() == handle
    world.pass_time(59)
    assert other.grab() is None
    world.pass_time(1)
    assert other.grab() == handle


def test_the_shorter_of_two_time_limits_holds(world: Durable) -> None:
    set_policy(world, timeout=60)
    worker, other = world.peer(), world.worker()
    worker(p.CanDoTimeout(b"work", b"5000"))
    handle = world.peer().submit()
    assert worker.grab() == handle
    world.pass_time(5)
    assert other.grab() == handle


def test_the_outcome_of_a_background_job_is_kept_as_the_policy_says(world: Durable) -> None:
    set_policy(world, keep=1000)
    client, worker = world.peer(), world.worker()
    handle = background(world, client)
    assert worker.grab() == handle
    worker(p.WorkComplete(handle, b"done"))
    kept = record(world, handle)
    assert kept.expires == kept.ended + 1000


def test_the_keep_of_a_submission_wins(world: Durable) -> None:
    set_policy(world, keep=1000)
    client, worker = world.peer(), world.worker()
    request = api.SubmitRequest(function="work", detached=True, keep=7)
    client(p.SubmitJob(api.SUBMIT, b"", request.to_wire() + b"\nx"))
    world.commit()
    handle = worker.grab()
    assert handle is not None
    worker(p.WorkComplete(handle, b"done"))
    kept = record(world, handle)
    assert kept.expires == kept.ended + 7


def test_a_policy_holds_for_jobs_that_wait_already_and_until_it_is_unset(world: Durable) -> None:
    client, worker = world.peer(), world.worker()
    first, second = background(world, client), background(world, client)
    set_policy(world, retries=PLAN)
    assert worker.grab() == first
    worker(p.WorkFail(first))
    assert info(world, first).state == "delayed"
    set_policy(world)
    assert worker.grab() == second
    worker(p.WorkFail(second))
    assert record(world, second).outcome is JobOutcome.FAILED


def test_a_policy_holds_for_a_function_that_becomes_known_again(world: Durable) -> None:
    set_policy(world, retries=PLAN)
    assert world.broker.drop(b"work")
    client, worker = world.peer(), world.worker()
    handle = background(world, client)
    assert worker.grab() == handle
    worker(p.WorkFail(handle))
    assert info(world, handle).state == "delayed"


@pytest.mark.parametrize(
    "value", [b"{", b"[]", b'{"retries": {"delay": 5}}', b'{"retries": {"delays": ["x"]}}']
)
def test_a_policy_that_cannot_be_read_is_reported_and_ignored(world: Durable, value: bytes) -> None:
    world.broker.core.settings.apply(Setting(b"work", "policy", value))
    (notice,) = world.broker.outgoing.notices
    assert "cannot use a setting" in notice.text
    assert notice.subject == b"policy work"
    handle = background(world, world.peer())
    assert world.worker().grab() == handle


def test_a_job_that_was_cancelled_does_not_run_again(world: Durable) -> None:
    set_policy(world, retries=PLAN)
    client, worker = world.peer("client"), world.worker()
    handle = background(world, client)
    assert worker.grab() == handle
    assert world.broker.cancel(handle)
    worker(p.WorkFail(handle))
    world.pass_time(1000)
    assert worker.grab() is None
    assert record(world, handle).outcome is JobOutcome.CANCELLED


def test_a_job_that_overran_the_time_limit_of_a_policy_says_so(world: Durable) -> None:
    set_policy(world, timeout=60)
    worker = world.worker()
    handle = background(world, world.peer("client"))
    for _ in range(3):
        assert worker.grab() == handle
        world.pass_time(60)
    letter = record(world, handle)
    assert letter.outcome is JobOutcome.RAISED
    assert b"overran its time limit (the policy of its function)" in letter.body


def test_a_replayed_dead_letter_has_all_runs_of_the_plan_again(world: Durable) -> None:
    set_policy(world, retries={"delays": [0], "jitter": False})
    worker = world.worker()
    handle = background(world, world.peer("client"))
    for _ in range(2):
        assert worker.grab() == handle
        worker(p.WorkFail(handle))
        world.commit()
    assert worker.grab() is None
    operator = world.peer("operator")
    request = api.DeadRequest(action="replay", handle=handle.decode())
    operator(p.SubmitJob(api.DEAD, b"", request.to_wire()))
    world.commit()
    for _ in range(2):
        assert worker.grab() == handle
        worker(p.WorkFail(handle))
        world.commit()
    assert record(world, handle).attempt == 2


@pytest.mark.parametrize(
    ("delay", "text"), [(0, "at once"), (0.25, "in 0.2 s"), (9.5, "in 9.5 s"), (3600, "in 3600 s")]
)
def test_the_reason_of_a_retry_says_when_the_next_run_is(world: Durable, delay: float, text: str) -> None:
    set_policy(world, retries={"delays": [delay], "jitter": False})
    worker = world.worker()
    handle = background(world, world.peer("client"))
    assert worker.grab() == handle
    worker(p.WorkException(handle, b"\x05\x0b\x04\x00no\nluck"))
    (warning,) = info(world, handle).warnings
    assert warning == f"run 1 failed (WORK_EXCEPTION: no luck). The next run is {text}"


LIMITS = SizeLimits(deaths=None)
STEPS = st.lists(st.sampled_from(["fails", "raises", "dies", "server dies", "time"]), max_size=30)


@given(STEPS, st.lists(st.sampled_from([0, 5]), max_size=3))
def test_each_job_has_all_runs_of_its_plan_and_no_more(steps: list[str], delays: list[int]) -> None:
    """Whatever happens to workers and servers in between."""
    plan: dict[str, Any] = {"delays": delays, "jitter": False}
    world = Durable(limits=LIMITS)
    set_policy(world, retries=plan)
    client = world.peer("client")
    handles = [background(world, client) for _ in range(2)]
    worker = world.worker()
    failed = dict.fromkeys(handles, 0)
    for step in [*steps, *["time", "fails"] * 2 * (len(delays) + 1)]:
        if step == "server dies":
            time = world.now
            world = Durable(world.disk, LIMITS)
            world.pass_time(time - world.now)  # its clock begins again
            set_policy(world, retries=plan)
            worker = world.worker()
            continue
        if step == "time":
            world.pass_time(5)
            continue
        handle = worker.grab()
        if handle is None:
            continue
        if step == "dies":
            worker.leave()
            worker = world.worker()
            continue
        failed[handle] += 1
        worker(p.WorkFail(handle) if step == "fails" else p.WorkException(handle, b"no luck"))
        world.commit()
    assert failed == dict.fromkeys(handles, len(delays) + 1)
    assert worker.grab() is None
    assert [record(world, handle).attempt for handle in handles] == [len(delays) + 1] * 2
