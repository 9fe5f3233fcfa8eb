"""The broker against the specification, with its clock in the hands of the machine."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from gearflow.broker import JobState, dispatch, endings, outgoing
from gearflow.broker.dispatch import WAKE_TIMEOUT
from gearflow.broker.job import TRANSITIONS
from gearflow.broker.outgoing import LINGER
from gearflow.protocol import packets as p
from gearflow.protocol.packets import Packet
from tests.broker.harness import PREFIX, Peer, World
from tests.broker.model import FUNCTIONS, INDEX, UNIQUES, Differences, GearflowMachine, Member, Spec


class InProcess:
    """The broker itself, as a system."""

    differences = Differences()
    prefix = b""

    def __init__(self) -> None:
        self.world = World()

    def connect(self) -> Peer:
        return self.world.peer()

    def cancel(self, handle: bytes) -> bool:
        return self.world.broker.cancel(handle)

    def counts(self, function: bytes) -> tuple[int, int, int]:
        queue = self.world.broker.functions.by_name.get(function)
        return (queue.total, queue.running, queue.workers) if queue else (0, 0, 0)


class BrokerMachine(GearflowMachine):
    """What only the broker lets itself be told and asked: the time, and its innermost state."""

    def __init__(self, system: InProcess | None = None) -> None:
        system = system or InProcess()
        self.world = system.world
        self.states: dict[bytes, JobState] = {}
        super().__init__(system)

    @rule(
        index=INDEX,
        function=st.sampled_from(FUNCTIONS),
        unique=st.sampled_from(UNIQUES),
        delay=st.integers(-1, 2),
    )
    def submit_later(self, index: int, function: bytes, unique: bytes, delay: int) -> None:
        due = int(self.world.now) + delay
        spec = Spec(b"", function, unique, 1, True, due=due, delayed=due > self.world.now)
        self.accept(self.all[index], p.SubmitJobEpoch(function, unique, b"%d" % due, b"x"), spec)

    def late_answers(self, member: Member) -> list[Packet | bytes]:
        self.world.broker.tick(self.world.now + LINGER)
        return member.peer.read()

    @rule(seconds=st.sampled_from([0.005, WAKE_TIMEOUT, 1.0]))
    def pass_time(self, seconds: float) -> None:
        """A delayed job stands in line from when it is due, behind those that wait already."""
        after = self.world.now + seconds
        due = [job for job in self.queue if job.delayed and job.due <= after]
        for job in sorted(due, key=lambda job: (job.due, self.handles.index(job.handle))):
            job.delayed = False
            self.queue.remove(job)
            self.queue.append(job)
        self.world.pass_time(seconds)

    @invariant()
    def handles_count_the_jobs(self) -> None:
        assert self.handles == [b"%b%d" % (PREFIX, number + 1) for number in range(len(self.handles))]

    @invariant()
    def a_pending_wake_has_its_time(self) -> None:
        for function in FUNCTIONS:
            if self.waiting(function) and any(m.asleep and function in m.abilities for m in self.all):
                assert self.world.broker.next_due() is not None

    @invariant()
    def no_job_waits_beside_a_grab_that_waits(self) -> None:
        assert not any(
            each.waiting and each.waiting_grabs for each in self.world.broker.functions.by_name.values()
        )

    @invariant()
    def jobs_go_from_state_to_state_as_the_table_says(self) -> None:
        broker = self.world.broker
        now = {broker.core.handles.handle(job.number): job.state for job in broker.jobs.by_number.values()}
        assert set(now) == {job.handle for job in self.queue}
        for handle, before in self.states.items():
            after = now.get(handle, JobState.OVER)
            reachable = TRANSITIONS[before] | {
                final for step in TRANSITIONS[before] for final in TRANSITIONS[step]
            }
            assert after is before or after in reachable
        self.states = now


class InTurns(InProcess):
    """A broker for which two of anything are many, and whose turns are all late."""

    def __init__(self) -> None:
        super().__init__()
        self.world.be_late()

    def connect(self) -> Peer:
        return PeerInTurns(self.world, "peer")

    def cancel(self, handle: bytes) -> bool:
        found = super().cancel(handle)
        self.world.finish()
        return found


class PeerInTurns(Peer):
    """Looks, and goes on, when all work is done that it has caused."""

    def read(self) -> list[Packet | bytes]:
        self._world.finish()
        return super().read()

    def leave(self) -> None:
        super().leave()
        self._world.finish()


class LateBrokerMachine(BrokerMachine):
    """The same of a broker that does as much as possible in steps."""

    def __init__(self) -> None:
        self._patch = pytest.MonkeyPatch()
        for module in (dispatch, endings, outgoing):
            self._patch.setattr(module, "MANY", 1)
        super().__init__(InTurns())

    def hear(self, member: Member, heard: list[Packet | bytes]) -> None:
        """A worker may get to know that a job is cancelled before all its many clients do."""
        for packet in [packet for packet in heard if isinstance(packet, p.WorkData)]:
            if packet.handle == member.events and packet in member.expected:
                member.expected.remove(packet)
                heard.remove(packet)
        super().hear(member, heard)

    def teardown(self) -> None:
        super().teardown()
        self._patch.undo()


SETTINGS = settings(max_examples=300, stateful_step_count=50, deadline=None)
BrokerMachine.TestCase.settings = LateBrokerMachine.TestCase.settings = SETTINGS
TestBroker = BrokerMachine.TestCase
TestLateBroker = LateBrokerMachine.TestCase
