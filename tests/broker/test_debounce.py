"""Submissions of which the latest wins, and runs after a time without another one."""

import json

import pytest

from gearflow.broker import SizeLimits
from gearflow.broker.calls import debounce
from gearflow.broker.limiter import FunctionRules, LimitSpec, Rule
from gearflow.broker.storage import StoredJob
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from gearflow.protocol.packets import Packet
from tests.broker.harness import Durable, Peer, World
from tests.broker.sharing import Server, Truth


@pytest.fixture(autouse=True)
def each_port(ports: None) -> None:
    """Once with a store that answers at once, and once with one that answers later."""


@pytest.fixture
def world() -> Durable:
    return Durable()


def settle(world: World) -> None:
    if isinstance(world, Durable):
        world.work()
    elif isinstance(world, Server):
        world.settle()
    world.finish()


def request(payload: bytes, **options: object) -> Packet:
    given = {"function": "work", "detached": True, "unique": "k", "debounce": 5, **options}
    return p.SubmitJob(api.SUBMIT, b"", json.dumps(given).encode() + b"\n" + payload)


def answer_of(answers: list[Packet | bytes]) -> str:
    """The handle, or the message of the fault."""
    end = answers[-1]
    if isinstance(end, p.WorkException):
        return str(json.loads(end.data)["message"])
    assert isinstance(end, p.WorkComplete)
    return str(json.loads(end.result)["handle"])


def submit(world: World, payload: bytes, **options: object) -> bytes:
    client = world.peer()
    client(p.OptionReq(b"exceptions"))
    answers = client(request(payload, **options))
    settle(world)
    return answer_of(answers + client.read()).encode()


def grab(worker: Peer) -> tuple[bytes, bytes] | None:
    """The handle and the payload of the job that it gets."""
    answers = worker(p.GrabJobUniq()) or worker.read()
    (answer,) = [each for each in answers if each != p.Noop()]
    return (answer.handle, answer.workload) if isinstance(answer, p.JobAssignUniq) else None


def jobs(world: Durable) -> list[StoredJob]:
    return list(world.disk.load().jobs)


def test_the_latest_payload_runs_after_the_quiet(world: Durable) -> None:
    worker = world.worker()
    handle = submit(world, b"1")
    world.pass_time(4)
    assert submit(world, b"2") == handle
    world.pass_time(4)
    assert submit(world, b"3", priority="high") == handle
    world.pass_time(4)
    assert grab(worker) is None
    world.pass_time(1)
    assert grab(worker) == (handle, b"3")
    assert grab(worker) is None
    (job,) = jobs(world)
    assert (job.workload, job.priority) == (b"3", 0)


def test_it_starts_in_any_case_after_the_longest_wait(world: Durable) -> None:
    worker = world.worker()
    handle = submit(world, b"0", max_wait=10)
    for number in range(1, 4):
        world.pass_time(3)
        assert submit(world, b"%d" % number, max_wait=10) == handle
    world.pass_time(1)
    assert grab(worker) == (handle, b"3")


def test_a_job_that_is_due_and_waits_for_a_worker_is_replaced_where_it_stands(world: Durable) -> None:
    first = submit(world, b"1", max_wait=10)
    world.pass_time(11)
    world.peer()(p.SubmitJobBg(b"work", b"", b"other"))
    settle(world)
    assert submit(world, b"2", max_wait=10) == first
    worker = world.worker()
    assert grab(worker) == (first, b"2")


def test_one_that_waits_for_a_worker_waits_for_quiet_again(world: Durable) -> None:
    first = submit(world, b"1")
    world.pass_time(5)
    assert submit(world, b"2") == first
    worker = world.worker()
    assert grab(worker) is None
    world.pass_time(5)
    assert grab(worker) == (first, b"2")


def test_one_behind_many_others_keeps_its_place(world: Durable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debounce, "FAR", 0)
    first = submit(world, b"1")
    world.pass_time(5)
    assert submit(world, b"2") == first
    assert grab(world.worker()) == (first, b"2")


def test_a_job_that_runs_is_left_alone_and_a_new_one_has_the_unique(world: Durable) -> None:
    worker = world.worker()
    first = submit(world, b"1")
    world.pass_time(5)
    assert grab(worker) == (first, b"1")
    second = submit(world, b"2")
    assert second != first
    assert submit(world, b"3") == second
    world.pass_time(5)
    assert grab(worker) == (second, b"3")
    stored = {job.workload: job.unique for job in jobs(world)}
    assert stored == {b"1": b"", b"3": b"k"}
    worker(p.WorkComplete(first, b""), p.WorkComplete(second, b""))
    settle(world)
    assert jobs(world) == []


@pytest.mark.parametrize("dies", [True, False])
def test_a_restart_while_both_are_there_loses_neither(world: Durable, dies: bool) -> None:
    worker = world.worker()
    first = submit(world, b"1")
    world.pass_time(5)
    assert grab(worker) == (first, b"1")
    second = submit(world, b"2")
    if dies:
        worker.leave()
        settle(world)
    now = world.now
    world = world.restarted()
    world.pass_time(now - world.now)
    assert submit(world, b"3") == second
    world.pass_time(5)
    worker = world.worker()
    assert sorted([grab(worker) or (b"", b""), grab(worker) or (b"", b"")]) == sorted(
        [(first, b"1"), (second, b"3")]
    )


def test_a_restart_keeps_the_latest_payload_and_its_time(world: Durable) -> None:
    handle = submit(world, b"1")
    world.pass_time(4)
    submit(world, b"2")
    now = world.now
    world = world.restarted()
    world.pass_time(now - world.now)
    worker = world.worker()
    world.pass_time(4)
    assert grab(worker) is None
    world.pass_time(1)
    assert grab(worker) == (handle, b"2")


def test_a_job_that_is_to_run_again_after_a_failure_is_left_alone(world: Durable) -> None:
    worker = world.worker()
    first = submit(world, b"1")
    world.pass_time(5)
    assert grab(worker) == (first, b"1")
    retry = api.RetryRequest(handle=first.decode(), reason="it failed", delay=60, counted=True)
    worker(p.SubmitJob(api.RETRY, b"", retry.to_wire()))
    settle(world)
    worker.read()
    second = submit(world, b"2")
    assert second != first
    world.pass_time(5)
    assert grab(worker) == (second, b"2")


def test_nobody_has_an_answer_before_the_store_has_the_payload(world: Durable) -> None:
    submit(world, b"1")
    client = world.peer()
    answers = client(request(b"2"))
    assert [type(answer) for answer in answers] == [p.JobCreated]  # of the call
    assert jobs(world)[0].workload == b"1"
    world.work()
    assert [type(answer) for answer in client.read()] == [p.WorkComplete]
    assert jobs(world)[0].workload == b"2"


def test_submissions_while_the_first_is_on_its_way_to_the_store_replace_it(world: Durable) -> None:
    client = world.peer()
    answers = client(request(b"1"), request(b"2"), request(b"3"))
    world.work()
    answers += client.read()
    handles = {json.loads(each.result)["handle"] for each in answers if isinstance(each, p.WorkComplete)}
    assert len(handles) == 1
    world.pass_time(5)
    assert (grab(world.worker()) or (b"", b""))[1] == b"3"
    assert jobs(world)[0].workload == b"3"


def test_a_store_that_is_full_says_so(world: Durable) -> None:
    submit(world, b"1")
    world.disk.full = True
    assert b"may have been stored" in submit(world, b"2")
    worker = world.worker()
    world.pass_time(5)
    assert grab(worker) is not None
    assert b"could not be stored" in submit(world, b"3")
    assert b"could not be stored" in submit(world, b"1", unique="other")


def test_a_job_that_a_client_waits_for_is_left_alone(world: Durable) -> None:
    attached = world.peer().submit(unique=b"k")
    handle = submit(world, b"2")
    assert handle != attached
    assert submit(world, b"3") == handle


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"unique": ""}, b"needs a unique"),
        ({"unique": "-"}, b"needs a unique"),
        ({"detached": False}, b"detached jobs"),
        ({"delay": 1}, b"neither delay"),
        ({"reuse": True}, b"nor reuse"),
        ({"debounce": None, "max_wait": 1}, b"with debounce"),
    ],
)
def test_what_makes_no_sense_is_refused(world: Durable, options: dict[str, object], fault: bytes) -> None:
    assert fault in submit(world, b"1", **options)


def test_the_options_are_those_of_the_latest(world: Durable) -> None:
    submit(world, b"1", expires=6, timeout=1)
    submit(world, b"2", timeout=2)
    options = json.loads(jobs(world)[0].options)
    assert (options.get("timeout"), options.get("expires")) == (2, None)
    world.pass_time(10)
    settle(world)
    assert len(jobs(world)) == 1


def test_a_long_payload_waits_at_the_store(world: Durable) -> None:
    handle = submit(world, b"1")
    assert submit(world, b"2" * 2000) == handle
    job = world.broker.core.find(handle)
    assert job is not None
    assert job.workload == 2000
    world.pass_time(5)
    assert grab(world.worker()) == (handle, b"2" * 2000)


def test_in_memory_it_is_the_same() -> None:
    world = World(SizeLimits())
    handle = submit(world, b"1")
    assert submit(world, b"22") == handle
    assert world.broker.jobs.queued_bytes == 2
    world.pass_time(5)
    worker = world.worker()
    assert grab(worker) == (handle, b"22")
    second = submit(world, b"3")
    assert second != handle
    worker(p.WorkComplete(handle, b""))
    world.pass_time(5)
    assert grab(worker) == (second, b"3")


def test_a_job_of_a_function_with_limits_has_the_keys_of_the_latest_payload(world: Durable) -> None:
    limiter = world.broker.core.limiter
    limiter.set_limit(b"one", LimitSpec("concurrency", 1))
    limiter.set_rules(world.broker.functions.ensure(b"work"), FunctionRules((Rule(b"one", "/c"),)))
    settle(world)
    blocker = submit(world, b'{"c": "b"}', unique="other")
    handle = submit(world, b'{"c": "a"}', max_wait=5)
    world.pass_time(5)
    worker = world.worker()
    assert (grab(worker) or (b"",))[0] == blocker
    assert submit(world, b'{"c": "b"}', max_wait=5) == handle
    assert grab(worker) is None
    worker(p.WorkComplete(blocker, b""))
    settle(world)
    assert grab(worker) == (handle, b'{"c": "b"}')


def test_a_job_of_another_server_of_the_group_is_not_replaced() -> None:
    truth = Truth()
    owner, other = Server(truth), Server(truth)
    handle = submit(owner, b"1")
    assert b"only that server can replace it" in submit(other, b"2")
    assert submit(owner, b"3") == handle
    assert [job.workload for job in truth.jobs()] == [b"3"]
