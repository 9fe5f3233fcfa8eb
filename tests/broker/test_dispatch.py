"""A GRAB of a worker that expects a job waits a moment for it, before it is answered with NO_JOB."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearflow.broker.outgoing import LINGER
from gearflow.protocol import packets as p
from gearflow.protocol.packets import Packet
from tests.broker.harness import Peer, World

SOON = LINGER / 2


def expecting(world: World, *functions: bytes) -> Peer:
    """A worker whose GRAB waits: it was called right after it had been told that there is no job."""
    (worker,) = all_expecting(world, 1, *functions)
    return worker


def all_expecting(world: World, count: int, *functions: bytes) -> list[Peer]:
    """Several of them."""
    workers = [world.worker(*functions) for _ in range(count)]
    for worker in workers:
        assert worker.grab() is None
        worker.sleep()
    world.pass_time(SOON)
    for _ in workers:
        world.peer().submit_background(functions[0] if functions else b"work")
    for worker in workers:
        assert worker.read() == [p.Noop()]
        handle = worker.grab()
        assert handle is not None
        worker(p.WorkComplete(handle, b""))
    for worker in workers:
        assert worker(p.GrabJob()) == []
    return workers


def assigned(worker: Peer) -> bytes:
    (answer,) = worker.read()
    assert isinstance(answer, p.JobAssign)
    return answer.handle


def test_the_next_job_is_the_answer() -> None:
    world = World()
    worker = expecting(world)
    for _ in range(3):
        world.pass_time(SOON)
        handle = world.peer().submit()
        assert assigned(worker) == handle
        assert worker(p.WorkComplete(handle, b""), p.GrabJob()) == []


@pytest.mark.parametrize("submission", [p.SubmitJob, p.SubmitJobBg])
def test_no_later_request_is_answered_before_it(submission: type[p.SubmitJob] | type[p.SubmitJobBg]) -> None:
    world = World()
    worker = expecting(world)
    answers = worker(submission(b"other", b"", b"x"), p.EchoReq(b"behind"))
    assert [type(answer) for answer in answers] == [p.NoJob, p.JobCreated, p.EchoRes]


def test_no_job_is_the_answer_when_none_has_come() -> None:
    world = World()
    worker = expecting(world)
    assert world.broker.next_due() == world.now + LINGER
    world.pass_time(LINGER)
    assert worker.read() == [p.NoJob()]
    assert world.broker.next_due() is None


def test_who_has_waited_in_vain_does_not_wait_again_until_it_is_called_soon() -> None:
    world = World()
    worker = expecting(world)
    world.pass_time(LINGER)
    worker.read()
    assert worker.grab() is None
    worker.sleep()
    world.pass_time(LINGER * 2)
    handle = world.peer().submit()
    assert worker.read() == [p.Noop()]
    assert worker.grab() == handle
    assert worker(p.WorkComplete(handle, b""), p.GrabJob()) == [p.NoJob()]
    world.pass_time(SOON)
    world.peer().submit_background()
    assert worker(p.PreSleep()) == [p.Noop()]  # that, too, is to be called soon
    assert worker.grab() is not None
    assert worker(p.GrabJob()) == []


def test_a_worker_that_nobody_has_called_soon_does_not_wait() -> None:
    world = World()
    worker = world.worker()
    for _ in range(3):
        assert worker.grab() is None
        worker.sleep()
        world.pass_time(LINGER * 2)
        world.peer().submit_background()
        assert worker.read() == [p.Noop()]
        assert worker.grab() is not None


@pytest.mark.parametrize(
    ("packet", "answers"),
    [
        (p.EchoReq(b"?"), [p.NoJob(), p.EchoRes(b"?")]),
        (p.GetStatus(b"H:x:1"), [p.NoJob(), p.StatusRes(b"H:x:1", b"0", b"0", b"0", b"0")]),
        (b"wrong\n", [p.NoJob(), b"you said wrong"]),
        (p.GrabJob(), [p.NoJob()]),
        (p.PreSleep(), [p.NoJob()]),
        (p.CanDo(b"other"), [p.NoJob()]),
        (p.CantDo(b"work"), [p.NoJob()]),
        (p.ResetAbilities(), [p.NoJob()]),
    ],
    ids=["echo", "status", "text", "grab", "sleep", "can do", "cannot do", "reset"],
)
def test_it_is_answered_before_what_is_asked_next(
    packet: Packet | bytes, answers: list[Packet | bytes]
) -> None:
    assert expecting(World())(packet) == answers


def test_a_result_of_the_same_worker_is_nothing_that_is_asked() -> None:
    world = World()
    worker = expecting(world)
    first = world.peer().submit()
    assert assigned(worker) == first
    assert worker(p.GrabJob()) == []
    assert worker(p.WorkComplete(first, b"")) == []
    assert world.peer().submit() == assigned(worker)


def test_those_that_wait_are_served_in_their_order_and_before_sleepers() -> None:
    world = World()
    first, second = all_expecting(world, 2)
    sleeper = world.worker().sleep()
    handles = [world.peer().submit() for _ in range(3)]
    assert [assigned(first), assigned(second)] == handles[:2]
    assert sleeper.read() == [p.Noop()]


def test_the_job_may_be_of_any_function_that_the_worker_offers() -> None:
    world = World()
    worker = expecting(world, b"work", b"other")
    handle = world.peer().submit(b"other")
    assert assigned(worker) == handle
    world.peer().submit(b"work")
    assert worker.read() == []  # it has asked for one


def test_a_function_that_goes_on_serves_it() -> None:
    world = World()
    worker = expecting(world)
    world.broker.dispatcher.pause(world.broker.functions.ensure(b"work"), True)
    handle = world.peer().submit()
    assert worker.read() == []
    world.broker.dispatcher.pause(world.broker.functions.ensure(b"work"), False)
    assert assigned(worker) == handle


def test_a_job_of_a_worker_that_went_away_goes_to_one_that_waits() -> None:
    world = World()
    gone, waiting = all_expecting(world, 2)
    handle = world.peer().submit()
    assert assigned(gone) == handle
    gone.leave()
    assert assigned(waiting) == handle


@pytest.mark.parametrize("others", [0, 1])
def test_a_worker_is_woken_however_often_it_has_slept(others: int) -> None:
    for times in range(80):
        world = World()
        worker = world.worker()
        for _ in range(others):
            world.worker().sleep()
        for _ in range(times):
            worker.sleep()
            assert worker.grab() is None
        worker.sleep()
        for _ in range(others + 1):
            world.peer().submit()
        assert worker.read() == [p.Noop()], times


def test_a_worker_that_waits_and_goes_away_is_given_nothing() -> None:
    world = World()
    expecting(world).leave()
    assert not world.broker.outgoing.held_grabs.by_session
    assert not world.broker.functions.by_name[b"work"].waiting_grabs
    world.peer().submit()
    assert world.worker().grab() is not None
    assert world.broker.next_due() is None


class Loop:
    """A worker as all are: it grabs, sleeps when there is no job, and grabs when it is called."""

    def __init__(self, world: World, functions: list[bytes]) -> None:
        self.peer = world.worker(*functions)
        self.done: list[bytes] = []
        self.grabs = 1
        self.answers = 0
        self._held: deque[bytes] = deque()
        self._say(p.GrabJob())

    def turn(self) -> None:
        """Take in what came."""
        for packet in self.peer.read():
            self._take_in(packet)

    def _take_in(self, packet: Packet | bytes) -> None:
        match packet:
            case p.JobAssign(handle=handle):
                self.answers += 1
                self._held.append(handle)
            case p.NoJob():
                self.answers += 1
                self._say(p.PreSleep())
            case p.Noop():
                self._say(p.GrabJob())
                self.grabs += 1
            case _:
                raise AssertionError(packet)

    def finish(self) -> None:
        """End a job, if there is one, and ask for another in the same breath."""
        if self._held:
            handle = self._held.popleft()
            self.done.append(handle)
            self.grabs += 1
            self._say(p.WorkComplete(handle, b""), p.GrabJob())

    def _say(self, *packets: Packet) -> None:
        for answer in self.peer(*packets):
            self._take_in(answer)


@given(st.data())
def test_every_job_runs_once_and_every_grab_has_one_answer(data: st.DataObject) -> None:
    world = World()
    workers = [Loop(world, functions) for functions in ([b"a"], [b"a", b"b"], [b"b"])]
    client = world.peer()
    submitted: list[bytes] = []
    for _ in range(data.draw(st.integers(0, 60), label="steps")):
        match data.draw(st.integers(0, 3)):
            case 0:
                submitted.append(client.submit_background(data.draw(st.sampled_from([b"a", b"b"]))))
            case 1:
                data.draw(st.sampled_from(workers)).turn()
            case 2:
                data.draw(st.sampled_from(workers)).finish()
            case _:
                world.pass_time(data.draw(st.sampled_from([SOON / 2, LINGER, 1.0])))
    for _ in range(len(submitted) + 3):
        world.pass_time(LINGER)
        for worker in workers:
            worker.turn()
            worker.finish()
            worker.turn()
    assert sorted(handle for worker in workers for handle in worker.done) == sorted(submitted)
    world.pass_time(LINGER)
    for worker in workers:
        worker.turn()
        assert worker.answers == worker.grabs
        assert worker.peer.session.asleep
