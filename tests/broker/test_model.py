"""The broker against a naive specification, driven through everything clients and workers can do."""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gearflow.broker import JobState
from gearflow.broker.job import TRANSITIONS
from gearflow.broker.waking import PATIENCE
from gearflow.protocol import packets as p
from gearflow.protocol.packets import Packet
from tests.broker.harness import Peer, World

PEERS = 4
INDEX = st.integers(0, PEERS - 1)
FUNCTIONS = (b"a", b"b")
UNIQUES = (b"", b"u")
SUBMISSIONS: dict[type[Packet], tuple[int, bool]] = {
    p.SubmitJobHigh: (0, False),
    p.SubmitJob: (1, False),
    p.SubmitJobLow: (2, False),
    p.SubmitJobHighBg: (0, True),
    p.SubmitJobBg: (1, True),
    p.SubmitJobLowBg: (2, True),
}


@dataclass(eq=False)
class Spec:
    """What a job is, in the plainest terms."""

    handle: bytes
    function: bytes
    unique: bytes
    priority: int
    background: bool
    due: float = 0.0
    worker: "Member | None" = None
    clients: list["Member"] = field(default_factory=list["Member"])
    cancelled: bool = False

    @property
    def wanted(self) -> bool:
        return self.background or bool(self.clients)


@dataclass(eq=False)
class Member:
    """A connection, client and worker at once, and what it ought to be sent."""

    peer: Peer
    abilities: set[bytes] = field(default_factory=set[bytes])
    asleep: bool = False
    woken: bool = False  # sent a NOOP it has not answered
    exceptions: bool = False
    expected: list[Packet | bytes] = field(default_factory=list[Packet | bytes])


class BrokerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.all = [Member(self.world.peer()) for _ in range(PEERS)]
        self.queue: list[Spec] = []  # delayed, waiting and running jobs; waiting ones in order of their turn
        self.count = 0
        self.states: dict[bytes, JobState] = {}
        self.assigned: list[Spec] = []  # in the order of assignment
        for member in self.all[1:]:  # the first is a client; the others can do something from the start
            for function in FUNCTIONS:
                self.can_do(member, function)

    # ------------------------------------------------------------------------------ coming and going

    @rule(index=INDEX, abilities=st.sets(st.sampled_from(FUNCTIONS)), exceptions=st.booleans())
    def reconnect(self, index: int, abilities: set[bytes], exceptions: bool) -> None:
        self.disconnect(self.all[index])
        member = self.all[index] = Member(self.world.peer())
        if exceptions:
            member.exceptions = True
            self.send(member, p.OptionReq(b"exceptions"), p.OptionRes(b"exceptions"))
        for function in abilities:
            self.can_do(member, function)

    def disconnect(self, member: Member) -> None:
        held = [job for job in self.queue if job.worker is member]
        for job in self.queue:
            job.clients = [client for client in job.clients if client is not member]
        for job in sorted(held, key=self.assigned.index, reverse=True):
            job.worker = None
            self.queue.remove(job)
            self.queue.append(job)
        self.queue = [job for job in self.queue if job.wanted or job.worker]
        member.peer.leave()

    # ---------------------------------------------------------------------------------------- clients

    @rule(
        index=INDEX,
        submission=st.sampled_from(sorted(SUBMISSIONS, key=lambda kind: kind.__name__)),
        function=st.sampled_from(FUNCTIONS),
        unique=st.sampled_from(UNIQUES),
    )
    def submit(self, index: int, submission: type[p.SubmitJob], function: bytes, unique: bytes) -> None:
        member = self.all[index]
        priority, background = SUBMISSIONS[submission]
        self.accept(
            member, submission(function, unique, b"x"), Spec(b"", function, unique, priority, background)
        )

    @rule(
        index=INDEX,
        function=st.sampled_from(FUNCTIONS),
        unique=st.sampled_from(UNIQUES),
        delay=st.integers(-1, 2),
    )
    def submit_later(self, index: int, function: bytes, unique: bytes, delay: int) -> None:
        member = self.all[index]
        due = int(self.world.now) + delay
        spec = Spec(b"", function, unique, 1, True, due=due)
        self.accept(member, p.SubmitJobEpoch(function, unique, b"%d" % due, b"x"), spec)

    def accept(self, member: Member, packet: Packet, spec: Spec) -> None:
        for job in self.queue:
            if (
                spec.unique
                and (job.function, job.unique) == (spec.function, spec.unique)
                and not job.cancelled
            ):
                break
        else:
            self.count += 1
            job = spec
            job.handle = b"H:test:%d" % self.count
            self.queue.append(job)
        if spec.background:
            job.background = True
        else:
            job.clients.append(member)
        self.send(member, packet, p.JobCreated(job.handle))

    @rule(index=INDEX, back=st.integers(0, 5))
    def ask_status(self, index: int, back: int) -> None:
        member = self.all[index]
        handle = b"H:test:%d" % (self.count - back)
        job = next((job for job in self.queue if job.handle == handle), None)
        running = b"%d" % bool(job and job.worker)
        self.send(member, p.GetStatus(handle), p.StatusRes(handle, b"%d" % bool(job), running, b"0", b"0"))

    @rule(back=st.integers(0, 5))
    def cancel(self, back: int) -> None:
        handle = b"H:test:%d" % (self.count - back)
        job = next((job for job in self.queue if job.handle == handle), None)
        assert self.world.broker.cancel(handle) == bool(job)
        if job:
            for client in job.clients:
                client.expected.append(p.WorkFail(handle))
            job.clients, job.background, job.cancelled = [], False, True
            if not job.worker:
                self.queue.remove(job)

    # ---------------------------------------------------------------------------------------- workers

    @rule(index=INDEX, function=st.sampled_from(FUNCTIONS))
    def offer(self, index: int, function: bytes) -> None:
        self.can_do(self.all[index], function)

    def can_do(self, member: Member, function: bytes) -> None:
        member.abilities.add(function)
        self.send(member, p.CanDo(function))

    @rule(index=INDEX, function=st.sampled_from(FUNCTIONS))
    def cant_do(self, index: int, function: bytes) -> None:
        member = self.all[index]
        member.abilities.discard(function)
        self.send(member, p.CantDo(function))

    @rule(index=INDEX)
    def reset_abilities(self, index: int) -> None:
        member = self.all[index]
        member.abilities.clear()
        self.send(member, p.ResetAbilities())

    @rule(index=INDEX)
    def pre_sleep(self, index: int) -> None:
        member = self.all[index]
        if any(self.waiting(function) for function in member.abilities):
            self.send(member, p.PreSleep(), p.Noop())
        else:
            member.asleep, member.woken = True, False
            self.send(member, p.PreSleep())

    @rule()
    def everyone_goes_to_sleep(self) -> None:
        for index in range(PEERS):
            self.pre_sleep(index)

    @rule(index=INDEX)
    def grab(self, index: int) -> None:
        """It is given the first job of the best priority of one of its functions, or told of none."""
        member = self.all[index]
        firsts = [jobs[0] for function in member.abilities if (jobs := self.waiting(function))]
        best = min((job.priority for job in firsts), default=None)
        member.asleep = member.woken = False
        answers = member.peer(p.GrabJobUniq())
        answer = answers.pop()
        member.expected.extend(packet for packet in answers if packet == p.Noop())
        self.hear(member, answers)
        if best is None:
            assert answer == p.NoJob()
        else:
            assert isinstance(answer, p.JobAssignUniq)
            (job,) = [job for job in firsts if job.handle == answer.handle]
            assert (job.priority, job.unique) == (best, answer.unique)
            job.worker = member
            self.assigned = [other for other in self.assigned if other is not job] + [job]

    @rule(index=INDEX, data=st.data(), ending=st.sampled_from(["complete", "fail", "exception", "data"]))
    def report(self, index: int, data: st.DataObject, ending: str) -> None:
        member = self.all[index]
        held = [job for job in self.queue if job.worker is member]
        if not held:
            return
        job = data.draw(st.sampled_from(held))
        packet: Packet
        match ending:
            case "complete":
                packet = p.WorkComplete(job.handle, b"r")
            case "fail":
                packet = p.WorkFail(job.handle)
            case "exception":
                packet = p.WorkException(job.handle, b"e")
            case _:
                packet = p.WorkData(job.handle, b"d")
        for client in job.clients:
            plain = ending == "exception" and not client.exceptions
            client.expected.append(p.WorkFail(job.handle) if plain else packet)
        if ending != "data":
            self.queue.remove(job)
        self.send(member, packet)

    @rule(seconds=st.sampled_from([0.005, PATIENCE, 1.0]))
    def pass_time(self, seconds: float) -> None:
        before = self.world.now
        after = before + seconds
        # A delayed job stands in line from when it is due, behind those that wait already.
        due = [job for job in self.queue if before < job.due <= after and not job.worker]
        for job in sorted(due, key=lambda job: (job.due, int(job.handle.rpartition(b":")[2]))):
            self.queue.remove(job)
            self.queue.append(job)
        self.world.pass_time(seconds)

    # ------------------------------------------------------------------------------------- invariants

    @invariant()
    def everyone_hears_what_they_should_and_nothing_else(self) -> None:
        for member in self.all:
            self.hear(member, member.peer.read())

    @invariant()
    def no_job_waits_beside_an_able_sleeper_unless_a_wake_is_pending(self) -> None:
        for function in FUNCTIONS:
            if self.waiting(function) and any(m.asleep and function in m.abilities for m in self.all):
                assert self.world.broker.next_due() is not None
                assert any(m.woken for m in self.all)

    @invariant()
    def jobs_go_from_state_to_state_as_the_table_says(self) -> None:
        now = {handle: job.state for handle, job in self.world.broker.jobs.items()}
        assert set(now) == {job.handle for job in self.queue}
        for handle, before in self.states.items():
            after = now.get(handle, JobState.OVER)
            reachable = TRANSITIONS[before] | {
                final for step in TRANSITIONS[before] for final in TRANSITIONS[step]
            }
            assert after is before or after in reachable
        self.states = now

    @invariant()
    def the_counts_are_right(self) -> None:
        for name, function in self.world.broker.functions.items():
            mine = [job for job in self.queue if job.function == name]
            assert function.total == len(mine)
            assert function.running == sum(job.worker is not None for job in mine)
            assert function.workers == sum(name in member.abilities for member in self.all)

    # ---------------------------------------------------------------------------------------- helpers

    def waiting(self, function: bytes) -> list[Spec]:
        """The jobs of a function that may be given out, in their order."""
        now = self.world.now
        jobs = [job for job in self.queue if job.function == function and not job.worker and job.due <= now]
        return sorted(jobs, key=lambda job: job.priority)

    def send(self, member: Member, packet: Packet, *answers: Packet) -> None:
        """What a member sends is answered before anything that comes of it reaches it."""
        member.expected.extend(answers)
        self.hear(member, member.peer(packet))

    def hear(self, member: Member, heard: list[Packet | bytes]) -> None:
        """Compare with what was expected, in order; a NOOP may come at any time, but only to a sleeper."""
        for packet in heard:
            if packet == p.Noop() and packet not in member.expected[:1]:
                assert member.asleep, "a NOOP for a worker that does not sleep"
                member.asleep, member.woken = False, True
            else:
                assert member.expected, f"unexpected {packet!r}"
                assert packet == member.expected.pop(0)


BrokerMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
TestBroker = BrokerMachine.TestCase
