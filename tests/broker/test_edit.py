"""Jobs that wait or are delayed, and are changed."""

import json

import pytest

from gearflow.broker import SizeLimits
from gearflow.broker.limiter import FunctionRules, LimitSpec, Rule
from gearflow.broker.storage import StoredJob
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from gearflow.protocol.server_calls import EDIT
from tests.broker.harness import Durable, Peer, World
from tests.broker.sharing import Server, Truth
from tests.broker.test_far_jobs import ask, done, ends, fault_of, move, started, submit


@pytest.fixture(autouse=True)
def each_port(ports: None) -> None:
    """Once with a store that answers at once, and once with one that answers later."""


@pytest.fixture
def world() -> Durable:
    return Durable()


def background(world: World, **options: object) -> bytes:
    """A background job."""
    client = world.peer()
    request = json.dumps({"function": "work", "detached": True, **options}).encode()
    answers = client(p.SubmitJobBg(api.SUBMIT, b"", request + b"\nx"))
    settle(world)
    (created,) = answers + client.read()
    assert isinstance(created, p.JobCreated)
    return created.handle


def settle(world: World) -> None:
    if isinstance(world, Durable):
        world.work()


def edit(world: World, handle: bytes, **changes: object) -> str:
    """Edit a job; the fault, if there is one."""
    client = world.peer()
    client(p.OptionReq(b"exceptions"))
    request = json.dumps({"handle": handle.decode(), **changes}).encode()
    answers = client(p.SubmitJob(EDIT, b"", request))
    settle(world)
    *_, end = answers + client.read()
    if isinstance(end, p.WorkException):
        return str(json.loads(end.data)["message"])
    assert isinstance(end, p.WorkComplete)
    assert json.loads(end.result)["jobs"] == 1
    return ""


def kept(world: Durable, handle: bytes) -> StoredJob:
    number = int(handle.rpartition(b":")[2])
    job = world.disk.job(number)
    assert job is not None
    return job


def test_a_job_of_a_better_priority_comes_before_others(world: Durable) -> None:
    first, second, third = (background(world) for _ in range(3))
    assert edit(world, third, priority="high") == ""
    assert edit(world, first, priority="low") == ""
    assert kept(world, third).priority == 0
    world = world.restarted()
    worker = world.worker()
    assert [worker.grab() for _ in range(3)] == [third, second, first]


def test_a_job_that_waits_can_be_delayed_and_begin_at_once_again(world: Durable) -> None:
    handle = background(world)
    worker = world.worker()
    assert edit(world, handle, delay=60) == ""
    assert worker.grab() is None
    assert kept(world, handle).due == world.now + 60
    assert edit(world, handle, delay=0) == ""
    assert worker.grab() == handle


def test_a_job_that_is_delayed_begins_at_another_time(world: Durable) -> None:
    handle = background(world, delay=60)
    worker = world.worker().sleep()
    assert edit(world, handle, at=world.now + 10) == ""
    world.pass_time(9)
    assert worker.read() == []
    world.pass_time(1)
    assert worker.read() == [p.Noop()]
    assert worker.grab() == handle
    world.pass_time(60)
    assert worker(p.WorkComplete(handle, b"")) == []


def test_a_later_time_is_kept_over_a_restart(world: Durable) -> None:
    handle = background(world, delay=10)
    assert edit(world, handle, delay=100) == ""
    now = world.now
    world = world.restarted()
    worker = world.worker()
    world.pass_time(50)
    assert worker.grab() is None
    world.pass_time(now + 100 - world.now)
    assert worker.grab() == handle


def test_a_job_expires_at_its_new_time_only(world: Durable) -> None:
    handle, other = background(world, expires=10), background(world)
    assert edit(world, handle, expires=100) == ""
    assert edit(world, other, expires=5) == ""
    world.pass_time(11)
    settle(world)
    assert world.broker.core.find(handle) is not None
    assert world.broker.core.find(other) is None
    now = world.now
    world = world.restarted()
    world.pass_time(now + 90 - world.now)
    settle(world)
    assert world.broker.core.find(handle) is None


def test_a_job_of_a_paused_function_is_edited_too(world: Durable) -> None:
    first, second = background(world), background(world)
    function = world.broker.functions.by_name[b"work"]
    world.broker.dispatcher.pause(function, True)
    assert edit(world, second, priority="high") == ""
    assert edit(world, first, delay=60) == ""
    assert (function.all_waiting, len(function.delayed)) == (1, 1)
    worker = world.worker()
    assert worker.grab() is None
    world.broker.dispatcher.pause(function, False)
    assert [worker.grab(), worker.grab()] == [second, None]


def test_a_suspect_is_edited_too() -> None:
    world = Durable(limits=SizeLimits(deaths=2))
    handle = background(world)
    worker = world.worker()
    assert worker.grab() == handle
    worker.leave()
    settle(world)
    assert edit(world, handle, delay=60) == ""
    assert not world.broker.suspects.exist
    world.pass_time(60)
    assert world.broker.suspects.exist
    assert world.worker().grab() == handle


def test_what_cannot_be_edited_is_said(world: Durable, client: Peer) -> None:
    running, ended = background(world), background(world)
    worker = world.worker()
    assert [worker.grab(), worker.grab()] == [running, ended]
    worker(p.WorkComplete(ended, b""))
    settle(world)
    assert "runs, and only a job that waits" in edit(world, running, priority="high")
    assert "has ended, and only a job that waits" in edit(world, ended, priority="high")
    assert "there is no job" in edit(world, ended + b"9", priority="high")
    waits = background(world)
    assert "nothing to change" in edit(world, waits)
    assert "give one of them" in edit(world, waits, delay=1, at=1)
    worker.leave()
    settle(world)
    assert "has started before" in edit(world, running, expires=1)
    attached = world.peer().submit()
    assert "only background jobs" in edit(world, attached, delay=1)
    assert edit(world, attached, priority="high") == ""


def test_a_change_that_cannot_be_written_says_so(world: Durable) -> None:
    handle = background(world)
    world.disk.full = True
    assert "could not be written" in edit(world, handle, priority="high")


# ------------------------------------------------------------------------------ jobs of another server


@pytest.fixture
def truth() -> Truth:
    return Truth()


def test_a_far_job_is_edited_by_its_owner(truth: Truth) -> None:
    owner, other = Server(truth), Server(truth)
    asker = other.peer()
    handle = submit(owner)
    assert ask(other, asker, EDIT, handle=handle.decode(), priority="high", delay=60, expires=90) == []
    assert len(truth.orders) == 1
    other.pass_time(1)
    assert asker.read() == []
    owner.beat()
    other.pass_time(1)
    assert done(asker.read()) == {"jobs": 1}
    (job,) = truth.jobs()
    assert (job.priority, job.due) == (0, other.now - 2 + 60)
    assert owner.worker().grab() is None


def test_a_far_job_that_runs_is_not_edited(truth: Truth) -> None:
    owner, other = Server(truth), Server(truth)
    asker = other.peer()
    asker(p.OptionReq(b"exceptions"))
    handle, _ = started(owner)
    ask(other, asker, EDIT, handle=handle.decode(), priority="high")
    owner.beat()
    for _ in range(10):
        assert asker.read() == []
        other.pass_time(1)
    assert fault_of(asker.read())[0] == "gearflow:timeout"
    assert truth.jobs()[0].priority == 1


def test_a_far_job_that_ends_is_not_edited(truth: Truth) -> None:
    owner, other = Server(truth), Server(truth)
    asker = other.peer()
    asker(p.OptionReq(b"exceptions"))
    handle, worker = started(owner)
    ask(other, asker, EDIT, handle=handle.decode(), priority="high")
    ends(owner, worker, p.WorkComplete(handle, b"r"))
    other.pass_time(1)
    assert "has ended" in fault_of(asker.read())[1]


def test_a_far_job_that_is_adopted_here_is_edited_here(truth: Truth) -> None:
    owner, other = Server(truth), Server(truth)
    asker = other.peer()
    handle = submit(owner)
    ask(other, asker, EDIT, handle=handle.decode(), priority="high")
    move(truth, handle, owner, other)
    other.pass_time(1)
    assert done(asker.read()) == {"jobs": 1}
    assert truth.jobs()[0].priority == 0


# --------------------------------------------------------------------------------- functions with limits


def limit(world: World, *rules: Rule) -> None:
    limiter = world.broker.core.limiter
    limiter.set_limit(b"one", LimitSpec("concurrency", 1))
    limiter.set_rules(world.broker.functions.ensure(b"work"), FunctionRules(rules))
    settle(world)


@pytest.mark.parametrize("key", [None, "/c"])
def test_jobs_of_a_function_with_limits_are_edited_too(world: Durable, key: str | None) -> None:
    limit(world, Rule(b"one", key))
    client = world.peer()
    handles: list[bytes] = []
    for _ in range(5):
        answers = client(p.SubmitJobBg(b"work", b"", b'{"c": "k"}'))
        settle(world)
        (created,) = answers + client.read()
        assert isinstance(created, p.JobCreated)
        handles.append(created.handle)
    worker = world.worker()
    assert worker.grab() == handles[0]
    assert edit(world, handles[1], delay=60) == ""
    assert edit(world, handles[4], priority="high") == ""
    assert edit(world, handles[2], priority="low") == ""
    assert worker.grab() is None
    done: list[bytes] = []
    running = handles[0]
    while True:
        worker(p.WorkComplete(running, b""))
        settle(world)
        grabbed = worker.grab()
        if grabbed is None:
            break
        running = grabbed
        done.append(grabbed)
    assert done == [handles[4], handles[3], handles[2]]
    world.pass_time(60)
    settle(world)
    assert worker.grab() == handles[1]
