"""What the server counts beside the plain lives of jobs: outcomes with a store, limits, names that go."""

import json

import pytest

from gearflow.broker.buckets import FunctionRules, LimitSpec, Rule
from gearflow.broker.counts import Durations
from gearflow.broker.storage import Setting
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from gearflow.protocol.histograms import BUCKETS, bucket_end
from gearflow.protocol.metrics import METRICS, OTHER, FunctionMetrics, Metrics, MetricsRequest
from gearflow.protocol.server_events import STREAM, WATCH
from tests.broker.harness import Durable, Peer, World


@pytest.fixture
def world() -> Durable:
    return Durable()


def measured(world: World, *functions: str) -> Metrics:
    """What the broker has counted."""
    found: list[Metrics] = []
    world.broker.metrics(MetricsRequest(functions=functions or None), found.append)
    world.finish()
    return found[0]


def counted(world: World, function: str = "work") -> FunctionMetrics:
    (found,) = measured(world, function).functions
    return found


def submit(world: Durable, client: Peer, **options: object) -> None:
    """A background submission with options."""
    request = api.SubmitRequest.model_validate({"function": "work", "detached": True, **options})
    client(p.SubmitJobBg(api.SUBMIT, b"", request.to_wire() + b"\nx"))
    world.commit()
    client.read()


def run(worker: Peer, packet: type[p.WorkComplete | p.WorkException] = p.WorkComplete) -> None:
    """The worker takes a job, and ends it."""
    handle = worker.grab()
    assert handle is not None
    worker(packet(handle, b"x"))


def background(world: Durable, client: Peer, unique: bytes = b"", function: bytes = b"work") -> None:
    client(p.SubmitJobBg(function, unique, b"x"))
    world.commit()
    client.read()


# --------------------------------------------------------------------------------------- histograms


@pytest.mark.parametrize("seconds", [0.0, 0.0009, 0.001, 0.0019, 0.002, 1.0, 59.9, 86400.0, 1e9])
def test_a_duration_is_in_the_bucket_that_ends_after_it(seconds: float) -> None:
    durations = Durations()
    durations.add(seconds)
    (bucket,) = [bucket for bucket, count in enumerate(durations.counts) if count]
    assert seconds < bucket_end(bucket)
    assert bucket == 0 or bucket_end(bucket - 1) <= seconds
    assert (durations.total, durations.sum) == (1, seconds)


def test_a_histogram_has_no_buckets_that_it_does_not_need_and_an_end() -> None:
    durations = Durations()
    for seconds in (0.0, 0.0, 0.003, 1e30, 1e12):
        durations.add(seconds)
    assert len(durations.counts) == BUCKETS
    assert durations.counts[:4] == [2, 0, 1, 0]
    assert durations.counts[-1] == 2


# ---------------------------------------------------------------------------------------- outcomes


def test_a_background_job_that_fails_is_dead_and_a_foreground_job_failed(world: Durable) -> None:
    client, worker = world.peer(), world.worker()
    background(world, client)
    run(worker, p.WorkException)
    client.submit()
    run(worker, p.WorkException)
    found = counted(world)
    assert (found.submitted, found.started, found.dead, found.failed, found.succeeded) == (2, 2, 1, 1, 0)


def test_a_dead_letter_that_is_replayed_is_submitted_again_and_its_wait_begins_then(world: Durable) -> None:
    client, worker = world.peer(), world.worker()
    background(world, client)
    run(worker, p.WorkException)
    world.commit()
    world.pass_time(1000)
    client(p.SubmitJob(api.DEAD, b"", b'{"action": "replay", "function": "work"}'))
    world.commit()
    found = counted(world)
    assert (found.submitted, found.restored, found.waiting, found.oldest) == (2, 0, (0, 1, 0), 0)
    world.pass_time(1)
    run(worker)
    found = counted(world)
    assert (found.submitted, found.started, found.dead, found.succeeded) == (2, 2, 1, 1)
    assert found.wait.sum == 1


def test_the_dead_letters_of_the_store_are_counted_now_and_then(world: Durable) -> None:
    client, worker = world.peer(), world.worker()
    assert measured(world).dead == 0
    background(world, client)
    run(worker, p.WorkException)
    world.commit()
    assert measured(world).dead == 0
    world.pass_time(2)
    assert measured(world).dead == 1


def test_a_job_that_expires_is_expired_and_nothing_else(world: Durable) -> None:
    submit(world, world.peer(), expires=10)
    world.pass_time(11)
    found = counted(world)
    assert (found.submitted, found.expired, found.dead, found.failed) == (1, 1, 0, 0)
    assert found.waiting == (0, 0, 0)
    assert found.run.counts == ()


def test_a_submission_that_the_store_refuses_never_was(world: Durable) -> None:
    world.disk.full = True
    background(world, world.peer())
    assert counted(world).submitted == 0


def test_a_submission_at_the_store_counts_once_it_is_kept(world: Durable) -> None:
    client = world.peer()
    client(p.SubmitJobBg(b"work", b"", b"x"))
    assert counted(world).submitted == 0
    world.commit()
    assert counted(world).submitted == 1


def test_submissions_that_join_a_job_are_counted_apart(world: Durable) -> None:
    client = world.peer()
    for _ in range(3):
        background(world, client, b"u")
    assert (counted(world).submitted, counted(world).joined) == (1, 2)


def test_submissions_that_take_the_place_of_a_job_have_joined_it(world: Durable) -> None:
    client = world.peer()
    request = b'{"function": "work", "unique": "u", "detached": true, "debounce": 5}'
    for _ in range(3):
        client(p.SubmitJob(api.SUBMIT, b"", request + b"\nx"))
        world.work()
    found = counted(world)
    assert (found.submitted, found.joined, found.delayed) == (1, 2, 1)
    world.disk.full = True
    client(p.SubmitJob(api.SUBMIT, b"", request + b"\nx"))
    world.work()
    assert counted(world).joined == 2


def test_a_run_that_fails_under_a_policy_is_retried_and_its_wait_begins_when_it_is_due(
    world: Durable,
) -> None:
    plan = {"delays": [100]}
    world.broker.core.settings.apply(Setting(b"work", "policy", json.dumps({"retries": plan}).encode()))
    client, worker = world.peer(), world.worker()
    background(world, client)
    run(worker, p.WorkException)
    found = counted(world)
    assert (found.retried, found.delayed, found.dead, found.run.counts) == (1, 1, 0, ())
    for _ in range(30):
        world.pass_time(10)
    oldest = counted(world).oldest
    assert oldest is not None
    assert 100 <= oldest < 300  # of the 300 s that have passed it was delayed for 100 at least, or nearly so
    run(worker)
    assert (counted(world).started, counted(world).succeeded) == (2, 1)


def test_a_job_of_a_worker_that_dies_is_retried_until_it_is_dead(world: Durable) -> None:
    background(world, world.peer())
    deaths = world.broker.core.limits.deaths
    assert deaths is not None
    for _ in range(deaths):
        worker = world.worker()
        worker.grab()
        worker.leave()
    found = counted(world)
    assert (found.started, found.retried, found.dead) == (deaths, deaths - 1, 1)


def test_a_job_that_its_worker_gives_back_is_not_retried(world: Durable) -> None:
    background(world, world.peer())
    worker = world.worker()
    handle = worker.grab()
    assert handle is not None
    world.pass_time(5)
    worker(p.SubmitJob(api.RELEASE, b"", api.ReleaseRequest(handle=handle.decode()).to_wire()))
    found = counted(world)
    assert (found.started, found.retried, found.waiting, found.oldest) == (1, 0, (0, 1, 0), 0)


def test_jobs_of_an_earlier_server_are_restored_and_have_waited_since_they_were_submitted(
    world: Durable,
) -> None:
    background(world, world.peer())
    submit(world, world.peer(), delay=100)
    later = Durable(world.disk)
    later.pass_time(150)
    found = counted(later)
    assert (found.submitted, found.restored, found.waiting) == (0, 2, (0, 2, 0))
    assert found.oldest == 150
    run(later.worker())
    run(later.worker())
    found = counted(later)
    assert (found.submitted, found.succeeded, found.wait.sum) == (0, 2, 200)


# ------------------------------------------------------------------------------------ who waits where


def test_delayed_jobs_have_not_waited_before_they_are_due(world: Durable) -> None:
    submit(world, world.peer(), delay=100)
    world.pass_time(99)
    assert (counted(world).delayed, counted(world).oldest) == (1, None)
    world.pass_time(1)
    assert (counted(world).delayed, counted(world).oldest) == (0, 0)
    world.pass_time(7)
    assert counted(world).oldest == 7


def test_the_oldest_job_is_found_in_every_priority_and_while_the_function_is_paused(world: Durable) -> None:
    client = world.peer()
    for kind in (p.SubmitJobLowBg, p.SubmitJobHighBg, p.SubmitJobBg):
        client(kind(b"work", b"", b"x"))
        world.commit()
        world.pass_time(1)
    world.broker.dispatcher.pause(world.broker.functions.ensure(b"work"), True)
    found = counted(world)
    assert (found.waiting, found.oldest, found.paused) == ((1, 1, 1), 3, True)


def test_jobs_that_wait_for_a_limit_are_counted_there_and_the_oldest_is_found(world: Durable) -> None:
    limiter = world.broker.core.limiter
    limiter.set_limit(b"one", LimitSpec("concurrency", 1))
    limiter.set_rules(world.broker.functions.ensure(b"work"), FunctionRules((Rule(b"one", "/k"),)))
    client, worker = world.peer(), world.worker()
    for key in (b"1", b"1", b"1", b"2"):
        client(p.SubmitJobBg(b"work", b"", b'{"k": "%b"}' % key))
        world.commit()
        world.pass_time(1)
    assert worker.grab()
    assert counted(world).oldest == 3
    assert worker.grab()
    assert worker.grab() is None
    found = measured(world)
    (limit,) = found.limits
    assert (limit.name, limit.waiting, limit.running) == ("one", 2, 2)
    assert found.functions[0].oldest == 3
    assert found.functions[0].waiting == (0, 2, 0)


def test_the_slots_of_workers_are_shared_by_their_functions(world: Durable) -> None:
    client, worker = world.peer(), world.worker(b"one", b"two")
    world.worker(b"two")
    client.submit(b"one")
    assert worker.grab()
    one, two = measured(world).functions
    assert (one.workers, one.slots, one.free) == (1, 1, 0)
    assert (two.workers, two.slots, two.free) == (2, 2, 1)


# ------------------------------------------------------------------------------------------- results


@pytest.mark.parametrize("call", [api.RESULT, STREAM, WATCH])
@pytest.mark.parametrize("is_live", [True, False], ids=["waits for the end", "has ended"])
def test_fetched_ends_are_counted_for_the_function(world: Durable, call: bytes, is_live: bool) -> None:
    submitter, client, worker, other = world.peer(), world.peer(), world.worker(), world.worker(b"other")
    background(world, submitter, function=b"other")
    run(other)
    submitter(p.SubmitJobBg(b"work", b"", b"x"))
    world.commit()
    (created,) = submitter.read()
    assert isinstance(created, p.JobCreated)
    request = json.dumps({"handle": created.handle.decode()}).encode()
    if not is_live:
        run(worker)
        world.commit()
    answers = client(p.SubmitJob(call, b"", request))
    if is_live:
        run(worker)
    world.commit()
    assert any(isinstance(packet, p.WorkComplete) for packet in [*answers, *client.read()])
    assert (counted(world).fetched, counted(world, "other").fetched) == (1, 0)
    assert measured(world).fetched == 1


def test_a_result_of_a_function_that_nobody_uses_any_more_is_counted(world: Durable) -> None:
    world.broker.functions.count_fetch(b"gone")
    assert counted(world, "gone").fetched == 1
    world.broker.functions.ensure(b"gone")
    assert counted(world, "gone").fetched == 1


# ---------------------------------------------------------------------------------- many functions


def test_counts_outlive_the_function_that_nobody_uses(world: Durable) -> None:
    client = world.peer()
    worker = world.worker()
    client.submit()
    run(worker)
    worker.leave()
    assert world.broker.drop(b"work")
    assert (counted(world).submitted, counted(world).succeeded) == (1, 1)
    client.read()
    client.submit()
    assert (counted(world).submitted, counted(world).succeeded) == (2, 1)


def test_names_that_nobody_uses_for_long_share_their_counts_and_no_job_is_forgotten(
    world: Durable,
) -> None:
    world.broker.functions.most_idle = 4
    world.broker.functions.counts.most_kept = 3
    client = world.peer()
    for number in range(20):
        name = b"reply-%d" % number
        worker = world.worker(name)
        client.submit(name)
        run(worker)
        worker.leave()
        client.read()
    found = measured(world).functions
    assert len(found) == 8
    assert sum(function.submitted for function in found) == 20
    assert sum(function.succeeded for function in found) == 20
    (other,) = measured(world, OTHER).functions
    assert other.submitted == 13


def test_beyond_the_most_names_functions_share_a_line(
    world: Durable,
) -> None:
    world.broker.functions.counts.most = 2
    client = world.peer()
    for name in (b"a", b"b", b"c", b"d"):
        client.submit(name)
        world.pass_time(1)
    found = {function.function: function for function in measured(world).functions}
    assert sorted(found) == ["a", "b", OTHER]
    assert (found[OTHER].submitted, found[OTHER].waiting, found[OTHER].oldest) == (2, (0, 2, 0), 2)


# ----------------------------------------------------------------------------------------- the call


def test_the_call_answers_with_the_same_as_the_server_itself(world: Durable) -> None:
    client = world.peer()
    for number in range(300):
        client.submit(b"f%d" % number)
    _, complete = client(p.SubmitJob(METRICS, b"", b"{}"))
    assert isinstance(complete, p.WorkComplete)
    called = Metrics.model_validate_json(complete.result)
    assert called.functions == measured(world).functions
    assert (called.connections, called.accepted) == (1, 1)
    assert called.received > 300
    world.be_late()
    client(p.SubmitJob(METRICS, b"", b"{}"))
    world.finish()
    (complete,) = client.read()
    assert isinstance(complete, p.WorkComplete)
    assert Metrics.model_validate_json(complete.result).functions == called.functions
