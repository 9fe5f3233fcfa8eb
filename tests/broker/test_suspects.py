"""A job whose next death would be its last runs alone."""

import pytest

from gearflow.broker import SizeLimits
from gearflow.broker.limiter import FunctionRules, LimitSpec, Rule
from gearflow.broker.suspects import PATIENCE, SOON
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from gearflow.protocol.envelope import unwrap
from tests.broker.harness import Durable, Peer, World


@pytest.fixture
def world() -> World:
    return World(SizeLimits(deaths=2))


def suspect(world: World, client: Peer, function: bytes = b"work", unique: bytes = b"") -> bytes:
    """A job whose worker has died once, of two times."""
    (created,) = client(p.SubmitJobHighBg(function, unique, b"x"))
    assert isinstance(created, p.JobCreated)
    worker = world.worker(function)
    assert worker.grab() == created.handle
    worker.leave()
    return created.handle


def grabs(worker: Peer, count: int) -> list[bytes]:
    handles = [handle for _ in range(count) if (handle := worker.grab()) is not None]
    assert len(handles) == count
    return handles


def dead(world: World, handle: bytes) -> bool:
    return world.broker.core.find(handle) is None


def test_a_worker_that_runs_a_suspect_gets_nothing_else(world: World, client: Peer) -> None:
    handle = suspect(world, client)
    other = client.submit_background()
    worker = world.worker()
    assert worker.grab() == handle
    assert worker.grab() is None
    assert worker(p.PreSleep()) == []
    assert worker(p.WorkComplete(handle, b"")) == [p.Noop()]  # the other job may be given out again
    assert worker.grab() == other


def test_a_worker_with_jobs_is_set_apart_and_called_when_they_have_ended(world: World, client: Peer) -> None:
    worker = world.worker()
    first, second = (client.submit_background() for _ in range(2))
    assert grabs(worker, 2) == [first, second]
    handle = suspect(world, client)
    client.submit_background()
    assert worker.grab() is None
    assert worker(p.PreSleep()) == []
    assert worker(p.WorkComplete(first, b"")) == []
    assert worker.grab() is None
    assert worker(p.PreSleep()) == []
    assert worker(p.WorkComplete(second, b"")) == [p.Noop()]
    assert worker.grab() == handle


def test_other_workers_go_on_meanwhile(world: World, client: Peer) -> None:
    busy, free = world.worker(), world.worker()
    jobs = [client.submit_background() for _ in range(4)]
    (own,) = grabs(busy, 1)
    grabs(free, 2)
    suspect(world, client)
    assert busy.grab() is None  # it has the fewest jobs
    assert free.grab() == jobs[3]
    assert own == jobs[0]


def test_a_worker_without_jobs_is_given_it_before_the_one_that_is_set_apart(
    world: World, client: Peer
) -> None:
    busy = world.worker()
    client.submit_background()
    client.submit_background()
    grabs(busy, 1)
    handle = suspect(world, client, unique=b"s")
    assert busy.grab() is None
    assert world.worker().grab() == handle
    assert busy.grab() is not None  # it is not needed any more


def test_the_one_that_is_set_apart_may_go_away(world: World, client: Peer) -> None:
    first, second = world.worker(), world.worker()
    jobs = [client.submit_background() for _ in range(2)]
    assert grabs(first, 1) + grabs(second, 1) == jobs
    handle = suspect(world, client)
    first.leave()
    assert second.grab() is None  # jobs[0] is a suspect too
    second(p.WorkComplete(jobs[1], b""))
    assert second.grab() == handle


@pytest.mark.parametrize("withdraw", [p.CantDo(b"work"), p.ResetAbilities()])
def test_the_one_that_is_set_apart_may_withdraw_the_function(
    world: World, client: Peer, withdraw: p.Packet
) -> None:
    first, second = world.worker(b"work", b"other"), world.worker()
    jobs = [client.submit_background() for _ in range(2)]
    assert grabs(first, 1) + grabs(second, 1) == jobs
    handle = suspect(world, client)
    first(withdraw)
    assert second.grab() is None
    second(p.WorkComplete(jobs[1], b""))
    assert second.grab() == handle


def test_it_may_wait_for_a_worker_that_can_do_it(world: World, client: Peer) -> None:
    handle = suspect(world, client)
    assert world.worker(b"other").grab() is None
    worker = world.worker(b"other").sleep()
    assert worker(p.CanDo(b"work")) == [p.Noop()]
    assert worker.grab() == handle


def test_after_some_time_another_worker_is_set_apart_as_well(world: World, client: Peer) -> None:
    workers = [world.worker() for _ in range(3)]
    jobs = [client.submit_background() for _ in range(6)]
    for worker in workers:
        grabs(worker, 1)
    suspect(world, client)
    assert [worker.grab() for worker in workers] == [None, *jobs[3:5]]
    assert world.broker.next_due() == world.now + PATIENCE
    world.pass_time(PATIENCE)
    assert [worker.grab() for worker in workers] == [None, None, jobs[5]]


def test_a_worker_that_was_called_and_does_not_ask_holds_nobody_up(world: World, client: Peer) -> None:
    handle = client.submit_background()
    dies = world.worker()
    assert dies.grab() == handle
    first, second = world.worker().sleep(), world.worker().sleep()
    dies.leave()
    assert first.read() == [p.Noop()]
    assert second.read() == []
    world.pass_time(SOON)
    assert second.read() == [p.Noop()]
    assert second.grab() == handle
    assert first.grab() is None


def test_a_suspect_that_kills_its_worker_is_the_only_dead_letter(world: World, client: Peer) -> None:
    poison, *others = (client.submit_background() for _ in range(5))
    while not dead(world, poison):
        worker = world.worker()
        held = [handle for _ in range(5) if (handle := worker.grab()) is not None]
        if poison in held:
            worker.leave()
        else:
            for handle in held:
                worker(p.WorkComplete(handle, b""))
    worker = world.worker()
    done: list[bytes] = []
    while (handle := worker.grab()) is not None:
        worker(p.WorkComplete(handle, b""))
        done.append(handle)
    assert set(done) <= set(others)
    assert not world.broker.jobs.by_number
    assert not world.broker.suspects.exist


@pytest.mark.parametrize("deaths", [1, None])
def test_without_a_death_that_would_be_neither_first_nor_last_there_are_no_suspects(
    deaths: int | None,
) -> None:
    world = World(SizeLimits(deaths=deaths))
    client = world.peer()
    for _ in range(2):
        client.submit_background()
    for _ in range(5 if deaths is None else 1):
        worker = world.worker()
        grabs(worker, 2)
        worker.leave()
    assert not world.broker.suspects.exist
    assert len(world.broker.jobs.by_number) == (2 if deaths is None else 0)


def test_a_suspect_that_is_cancelled_sets_nobody_apart(world: World, client: Peer) -> None:
    worker = world.worker()
    client.submit_background()
    grabs(worker, 1)
    handle = suspect(world, client)
    other = client.submit_background()
    assert worker.grab() is None
    assert worker(p.PreSleep()) == []
    assert world.broker.cancel(handle)
    assert worker.read() == [p.Noop()]
    assert worker.grab() == other
    assert not world.broker.suspects.exist


def test_a_suspect_of_a_paused_function_sets_nobody_apart(world: World, client: Peer) -> None:
    worker = world.worker(b"work", b"other")
    client.submit_background()
    grabs(worker, 1)
    handle = suspect(world, client)
    function = world.broker.functions.by_name[b"work"]
    assert worker.grab() is None
    assert function.all_waiting == 1
    world.broker.dispatcher.pause(function, True)
    other = client.submit_background(b"other")
    assert worker.grab() == other
    world.broker.dispatcher.pause(function, False)
    assert worker.grab() is None
    idle = world.worker()
    assert idle.grab() == handle


def test_of_several_suspects_the_best_priority_comes_first(world: World, client: Peer) -> None:
    normal = client.submit_background()
    dies = world.worker()
    assert dies.grab() == normal
    high = suspect(world, client)
    dies.leave()
    assert [world.worker().grab(), world.worker().grab()] == [high, normal]


def limited(world: World, *, per: float = 0.0) -> Peer:
    """Of the function one job runs at a time, or starts in a time. A worker that runs one."""
    limiter = world.broker.core.limiter
    limiter.set_limit(b"one", LimitSpec("rate" if per else "concurrency", 1, per))
    limiter.set_rules(world.broker.functions.ensure(b"work"), FunctionRules((Rule(b"one"),)))
    world.finish()
    return world.worker()


def test_a_suspect_takes_its_place_in_the_limits_of_its_function(world: World, client: Peer) -> None:
    handle = suspect(world, client)
    worker = limited(world)
    other = client.submit_background()
    assert worker.grab() == handle
    assert world.broker.core.limiter.usage(b"one").running == 1
    assert world.worker().grab() is None
    worker(p.WorkComplete(handle, b""))
    assert worker.grab() == other


def test_a_suspect_that_may_not_start_sets_nobody_apart_and_starts_as_soon_as_it_may(
    world: World, client: Peer
) -> None:
    busy = limited(world)
    other = client.submit_background()
    assert busy.grab() == other
    dies = world.worker()
    world.broker.core.limiter.set_limit(b"one", None)
    handle = suspect(world, client)
    world.broker.core.limiter.set_limit(b"one", LimitSpec("concurrency", 1))
    world.finish()
    dies.leave()
    idle = world.worker().sleep()
    world.pass_time(1)
    assert idle.read() == []
    busy(p.WorkComplete(other, b""))
    world.pass_time(0.25)
    assert p.Noop() in idle.read() + busy.read()
    assert idle.grab() == handle


def test_a_suspect_is_not_kept_waiting_by_jobs_that_take_each_place(world: World, client: Peer) -> None:
    busy = limited(world)
    world.broker.core.limiter.set_limit(b"one", LimitSpec("concurrency", 2))
    held = [client.submit_background() for _ in range(2)]
    assert grabs(busy, 2) == held
    world.broker.core.limiter.set_limit(b"one", None)
    handle = suspect(world, client)
    world.broker.core.limiter.set_limit(b"one", LimitSpec("concurrency", 2))
    world.finish()
    idle = world.worker().sleep()
    given = 0
    while world.broker.core.limiter.usage(b"one").running and given < 100:
        client.submit_background()
        busy(p.WorkComplete(held.pop(0), b""))
        if (job := busy.grab()) is not None:
            held.append(job)
            given += 1
        world.pass_time(1)
        if p.Noop() in idle.read() and idle.grab() == handle:
            break
    assert 0 < given < 20
    assert world.broker.core.limiter.usage(b"one").running == 1 + len(held)


def test_a_suspect_says_why_it_waits(world: World, client: Peer) -> None:
    busy = world.worker()
    client.submit_background()
    grabs(busy, 1)
    handle = suspect(world, client)
    answers = client(p.SubmitJob(api.INFO, b"", api.InfoRequest(handle=handle.decode()).to_wire()))
    (end,) = [answer for answer in answers if isinstance(answer, p.WorkComplete)]
    assert "a worker that runs nothing else" in api.JobInfo.model_validate_json(end.result).why


def test_workers_of_ours_know_that_it_runs_alone(world: World, client: Peer) -> None:
    handle = suspect(world, client)
    worker = world.worker()
    worker(p.OptionReq(b"gearflow"))
    (answer,) = worker(p.GrabJobUniq())
    assert isinstance(answer, p.JobAssignUniq)
    assert answer.handle == handle
    assert unwrap(answer.workload)[0].alone


def test_a_suspect_that_runs_again_after_a_failure_is_one_no_longer(client: Peer) -> None:
    world = Durable(limits=SizeLimits(deaths=2))
    client = world.peer()
    client(p.SubmitJobBg(b"work", b"", b"x"))
    world.commit()
    worker = world.worker()
    (handle,) = grabs(worker, 1)
    worker.leave()
    world.commit()
    worker = world.worker()
    assert worker.grab() == handle
    request = api.RetryRequest(handle=handle.decode(), reason="it failed", delay=0, counted=True)
    worker(p.SubmitJob(api.RETRY, b"", request.to_wire()))
    world.commit()
    assert not world.broker.suspects.exist
    worker.leave()
    world = Durable(world.disk, limits=SizeLimits(deaths=2))
    assert not world.broker.suspects.exist
    worker = world.worker()
    assert worker.grab() == handle
    worker.leave()
    assert world.broker.core.find(handle) is not None


def test_it_is_a_suspect_after_a_restart_too(client: Peer) -> None:
    world = Durable(limits=SizeLimits(deaths=2))
    client = world.peer()
    client(p.SubmitJobBg(b"work", b"", b"x"))
    world.commit()
    worker = world.worker()
    (handle,) = grabs(worker, 1)
    worker.leave()
    world.commit()
    world = Durable(world.disk, limits=SizeLimits(deaths=2))
    assert world.broker.suspects.exist
    worker = world.worker()
    world.peer()(p.SubmitJobBg(b"work", b"", b"x"))
    world.commit()
    assert worker.grab() == handle
    assert worker.grab() is None
