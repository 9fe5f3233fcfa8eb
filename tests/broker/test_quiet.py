"""Workers that an operator has made quiet get no jobs, and end what they run."""

from typing import Any

import pytest

from gearflow.broker.status import functions
from gearflow.protocol import packets as p
from gearflow.protocol.server_calls import EVENTS, Fault, Message
from gearflow.protocol.workers import (
    QUIET,
    WORKERS,
    EventsRequest,
    QuietDone,
    QuietRequest,
    WorkerInfo,
    Workers,
    WorkersRequest,
)
from tests.broker.harness import Peer, World


def answer(peer: Peer, function: bytes, request: Message) -> bytes:
    _, last = peer(p.SubmitJob(function, b"", request.to_wire()))
    assert isinstance(last, p.WorkComplete), last
    return last.result


def listed(world: World, jobs: int = 0) -> list[WorkerInfo]:
    answered = answer(world.peer(), WORKERS, WorkersRequest(jobs=jobs))
    return list(Workers.model_validate_json(answered).workers)


def quiet(world: World, quiet: bool = True, **named: Any) -> QuietDone:
    """Make workers quiet, or not: all that have jobs, or those that are named."""
    named = named or {"id": listed(world)[0].id}
    return QuietDone.model_validate_json(answer(world.peer(), QUIET, QuietRequest(quiet=quiet, **named)))


def test_a_quiet_worker_ends_its_job_and_gets_no_other() -> None:
    world = World()
    first, second = (world.peer().submit_background() for _ in range(2))
    worker = world.worker()
    assert worker.grab() == first
    assert quiet(world) == QuietDone(workers=1, running=1)
    assert worker(p.WorkComplete(first, b"")) == []
    assert worker.grab() is None
    worker.sleep()
    world.peer().submit_background()
    world.pass_time(60)
    assert worker.read() == []
    assert quiet(world, False) == QuietDone(workers=1)
    assert worker.read() == [p.Noop()]
    assert worker.grab() == second


def test_a_quiet_worker_is_listed_with_its_functions_but_does_not_count() -> None:
    world = World()
    world.worker(b"work", b"other")
    quiet(world)
    (row,) = listed(world)
    assert (row.quiet, row.functions) == (True, ("work", "other"))
    assert {function.name: function.workers for function in functions(world.broker.functions)} == {
        b"work": 0,
        b"other": 0,
    }
    quiet(world, False)
    (row,) = listed(world)
    assert (row.quiet, row.functions) == (False, ("work", "other"))


def test_others_get_the_jobs_of_a_quiet_worker() -> None:
    world = World()
    quieted, other = world.worker(), world.worker()
    quieted.sleep()
    other.sleep()
    quiet(world, id=listed(world)[0].id)
    handle = world.peer().submit_background()
    assert quieted.read() == []
    assert other.read() == [p.Noop()]
    assert other.grab() == handle


def test_a_job_that_a_worker_was_woken_for_wakes_another_if_it_is_made_quiet() -> None:
    world = World()
    quieted, other = world.worker().sleep(), world.worker().sleep()
    world.peer().submit_background()
    assert quieted.read() == [p.Noop()]
    quiet(world)
    assert other.read() == [p.Noop()]
    assert quieted.grab() is None


def test_a_held_grab_is_answered_when_its_worker_is_made_quiet() -> None:
    world = World()
    worker = world.worker()
    assert worker.grab() is None
    worker.sleep()
    first = world.peer().submit_background()
    assert worker.read() == [p.Noop()]
    assert worker.grab() == first
    assert worker(p.WorkComplete(first, b""), p.GrabJob()) == []  # it is held
    quiet(world)
    assert worker.read() == [p.NoJob()]


def test_what_a_quiet_worker_offers_and_withdraws_holds_when_it_goes_on() -> None:
    world = World()
    worker = world.worker(b"a", b"b", b"c")
    quiet(world)
    assert worker(p.CanDo(b"d"), p.CantDo(b"b"), p.CanDoTimeout(b"c", b"1000"), p.PreSleep()) == []
    for name in (b"a", b"b", b"c", b"d"):
        world.peer().submit_background(name)
    assert worker.read() == []
    assert worker.grab() is None
    quiet(world, False)
    assert listed(world)[0].functions == ("a", "c", "d")
    assert sum(worker.grab() is not None for _ in range(4)) == 3
    world.pass_time(2)
    assert listed(world)[0].running == 2  # the time limit of c holds


def test_a_quiet_worker_that_resets_its_abilities_has_none_when_it_goes_on() -> None:
    world = World()
    worker = world.worker(b"a")
    quiet(world)
    worker(p.ResetAbilities())
    assert listed(world) == []
    worker.can_do(b"b")
    quiet(world, False)
    assert listed(world)[0].functions == ("b",)


def test_reserved_functions_are_refused_to_a_quiet_worker_too() -> None:
    world = World()
    worker = world.worker()
    quiet(world)
    (refused,) = worker(p.CanDo(b"gearflow:info"))
    assert isinstance(refused, p.Error)


def test_many_functions_are_put_aside_and_brought_back_in_steps() -> None:
    world = World()
    names = [b"f%d" % number for number in range(100)]
    worker = world.worker(*names)
    named = listed(world)[0].id
    world.be_late()
    asker = world.peer()
    for wanted in (True, False, True, False):  # faster than it can be done
        asker(p.SubmitJob(QUIET, b"", QuietRequest(id=named, quiet=wanted).to_wire()))
    world.finish()
    world.broker.turns.is_late = lambda: False
    (row,) = listed(world)
    assert (row.quiet, sorted(row.functions)) == (False, sorted(name.decode() for name in names))
    for name in names:
        world.peer().submit_background(name)
    assert sum(worker.grab() is not None for _ in range(101)) == 100


def test_workers_of_one_name_are_made_quiet_together_and_a_new_one_is_not() -> None:
    world = World()
    for _ in range(2):
        world.worker()(p.SetClientId(b"host1"))
    world.worker()(p.SetClientId(b"host2"))
    assert quiet(world, client_id="host1").workers == 2
    gone = world.worker()
    gone(p.SetClientId(b"host1"))
    assert [row.quiet for row in listed(world)] == [True, True, False, False]
    gone.leave()
    assert [row.client_id for row in listed(world)] == ["host1", "host1", "host2"]


@pytest.mark.parametrize("named", [{"id": "0000-99"}, {"client_id": "nobody"}, {"id": "00rs-1"}])
def test_a_worker_that_is_not_there_is_refused(named: dict[str, Any]) -> None:
    world = World()
    asker = world.peer()  # is the first connection, and no worker
    asker(p.OptionReq(b"exceptions"))
    _, fault = asker(p.SubmitJob(QUIET, b"", QuietRequest(**named).to_wire()))
    assert isinstance(fault, p.WorkException)
    assert Fault.model_validate_json(fault.data).type == "gearflow:refused"


def test_the_list_shows_slots_and_the_jobs_that_run_the_first_one_first() -> None:
    world = World()
    handles = [world.peer().submit_background() for _ in range(3)]
    worker = world.worker()
    worker(p.SubmitJob(EVENTS, b"", EventsRequest(slots=8).to_wire()))
    for handle in handles:
        world.pass_time(10)
        assert worker.grab() == handle
    (row,) = listed(world, jobs=2)
    assert (row.slots, row.running, row.since) == (8, 3, 1000)
    assert [(job.handle.encode(), job.function, job.since) for job in row.jobs] == [
        (handles[0], "work", 1010),
        (handles[1], "work", 1020),
    ]
    assert listed(world)[0].jobs == ()
