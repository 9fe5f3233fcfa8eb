"""What a job server does, in the plainest terms, and a state machine that drives one and compares.

The machine knows no server: it is given a ``System``, which may be the broker in this process, a bundled
server or a C gearmand over sockets. What a system is known to do otherwise than the specification is data,
``Differences``; all else that it does otherwise is a failure.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gearflow.protocol import packets as p
from gearflow.protocol import server_calls
from gearflow.protocol.packets import Packet

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


class Connection(Protocol):
    """One connection to the system; what was sent has had all its consequences when a call returns."""

    def __call__(self, *sent: Packet | bytes) -> list[Packet | bytes]:
        """Send packets; what this connection has been sent since it last looked."""
        ...

    def read(self) -> list[Packet | bytes]:
        """What it has been sent since it last looked."""
        ...

    def leave(self) -> None: ...


@dataclass(frozen=True)
class Differences:
    """What a system is known to do otherwise than the specification. Without any, it is gearflow's."""

    abandoned_jobs_linger: bool = False
    """A job whose last foreground client left, or that was cancelled, is not run, whoever else wants it or
    joins it; it stays known until a worker that could do it asks for a job."""

    cancelled_jobs_are_heard: bool = False
    """The clients of a cancelled job stay attached, and hear of its run after WORK_FAIL."""

    newest_ability_first: bool = False
    """A worker is given a job of the function it registered last, whatever the priorities of others."""

    withdrawing_takes_jobs_away: bool = False
    """CANT_DO and RESET_ABILITIES requeue what the worker runs of these functions."""

    offering_does_not_wake: bool = False
    """A sleeper that registers a function with jobs waiting is not woken."""

    sleeping_again_is_deaf: bool = False
    """A worker that was woken and goes back to sleep without asking for a job is not woken any more."""

    abilities_are_counted_twice: bool = False
    """CAN_DO of what the worker can do already makes two workers of it (so the machine does not)."""


class System(Protocol):
    """A server, for one run of the machine."""

    differences: Differences
    prefix: bytes  # of function names, so that no other run knows them

    def connect(self) -> Connection: ...

    def cancel(self, handle: bytes) -> bool:
        """The text command; whether there was such a job."""
        ...

    def counts(self, function: bytes) -> tuple[int, int, int]:
        """Jobs, running jobs, workers."""
        ...


@dataclass(eq=False)
class Spec:
    """What a job is."""

    handle: bytes
    function: bytes
    unique: bytes
    priority: int
    background: bool
    due: float = 0.0
    delayed: bool = False
    worker: "Member | None" = None
    clients: list["Member"] = field(default_factory=list["Member"])
    cancelled: bool = False
    lingers: bool = False  # it will not be run; whether it is still known depends on who asked for a job

    @property
    def wanted(self) -> bool:
        return self.background or bool(self.clients)


@dataclass(eq=False)
class Member:
    """A connection, client and worker at once, and what it ought to be sent."""

    peer: Connection
    abilities: dict[bytes, None] = field(default_factory=dict[bytes, None])  # as registered
    unseen: set[bytes] = field(default_factory=set[bytes])  # registered while it slept: it is not woken
    deaf: bool = False  # it is not woken at all
    asleep: bool = False
    woken: bool = False  # sent a NOOP it has not answered
    exceptions: bool = False
    events: bytes = b""  # the handle of its call of gearflow:events, if it made one
    expected: list[Packet | bytes] = field(default_factory=list[Packet | bytes])


class ServerMachine(RuleBasedStateMachine):
    """Clients and workers do whatever they can to a system."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.system = system
        self.ways = system.differences
        self.all = [Member(system.connect()) for _ in range(PEERS)]
        self.queue: list[Spec] = []  # delayed, waiting and running jobs; waiting ones in order of their turn
        self.handles: list[bytes] = []  # of all jobs there ever were
        self.assigned: list[Spec] = []  # in the order of assignment
        for member in self.all[1:]:  # the first is a client; the others can do something from the start
            for function in FUNCTIONS:
                self.can_do(member, function)

    def teardown(self) -> None:
        for member in self.all:
            member.peer.leave()

    # ------------------------------------------------------------------------------ coming and going

    @rule(index=INDEX, abilities=st.sets(st.sampled_from(FUNCTIONS)), exceptions=st.booleans())
    def reconnect(self, index: int, abilities: set[bytes], exceptions: bool) -> None:
        self.disconnect(self.all[index])
        member = self.all[index] = Member(self.system.connect())
        if exceptions:
            member.exceptions = True
            self.send(member, p.OptionReq(b"exceptions"), p.OptionRes(b"exceptions"))
        for function in sorted(abilities):
            self.can_do(member, function)

    def disconnect(self, member: Member) -> None:
        self.take_away(job for job in self.queue if job.worker is member)
        for job in self.queue:
            if member in job.clients:
                job.clients = [client for client in job.clients if client is not member]
                job.lingers = job.lingers or (self.ways.abandoned_jobs_linger and not job.clients)
                self.tell_if_unwanted(job)
        self.queue = [job for job in self.queue if job.wanted or job.worker or job.lingers]
        member.peer.leave()

    def tell_if_unwanted(self, job: Spec) -> None:
        """A client has left a job; if it was the last one, a worker that listens is told."""
        if not job.wanted and job.worker and job.worker.events:
            job.cancelled = True
            self.tell_cancelled(job)

    def tell_cancelled(self, job: Spec) -> None:
        """The worker of a job is told that it is cancelled, if it listens."""
        if job.worker and job.worker.events:
            event = server_calls.cancel_event(job.handle)
            job.worker.expected.append(p.WorkData(job.worker.events, event))

    def take_away(self, jobs: Iterable[Spec]) -> None:
        """Jobs come back from their worker: to the end of the queue, the last assigned first."""
        for job in sorted(jobs, key=self.assigned.index, reverse=True):
            job.worker = None
            self.queue.remove(job)
            self.queue.append(job)

    # ---------------------------------------------------------------------------------------- clients

    @rule(
        index=INDEX,
        submission=st.sampled_from(sorted(SUBMISSIONS, key=lambda kind: kind.__name__)),
        function=st.sampled_from(FUNCTIONS),
        unique=st.sampled_from(UNIQUES),
    )
    def submit(self, index: int, submission: type[p.SubmitJob], function: bytes, unique: bytes) -> None:
        priority, background = SUBMISSIONS[submission]
        self.accept(
            self.all[index],
            submission(self.system.prefix + function, unique, b"x"),
            Spec(b"", function, unique, priority, background),
        )

    def accept(self, member: Member, packet: Packet, spec: Spec) -> None:
        """A submission joins the job of its unique, or makes a new one, which is at the end of the queue."""
        answers = member.peer(packet)
        (created,) = [answer for answer in answers if isinstance(answer, p.JobCreated)]
        job = self.job_of_unique(spec)
        if job is not None and job.lingers and created.handle != job.handle:
            self.queue.remove(job)  # somebody has asked for a job meanwhile
            job = None
        if job is None:
            assert created.handle not in self.handles
            self.handles.append(created.handle)
            job = spec
            job.handle = created.handle
            self.queue.append(job)
        if spec.background:
            job.background = True
        else:
            job.clients.append(member)
        member.expected.append(p.JobCreated(job.handle))
        self.hear(member, answers)

    def job_of_unique(self, spec: Spec) -> Spec | None:
        """The job that a submission joins."""
        for job in reversed(self.queue):
            same = (job.function, job.unique) == (spec.function, spec.unique)
            if spec.unique and same and not (job.cancelled and not job.lingers):
                return job
        return None

    @rule(index=INDEX, back=st.integers(0, 5))
    def ask_status(self, index: int, back: int) -> None:
        member = self.all[index]
        handle = self.handle(back)
        job = next((job for job in self.queue if job.handle == handle), None)
        answers = member.peer(p.GetStatus(handle))
        known = b"%d" % bool(job)
        if job is not None and job.lingers and not job.worker:
            (known,) = [answer.known for answer in answers if isinstance(answer, p.StatusRes)]
            if known == b"0":
                self.queue.remove(job)
        running = b"%d" % bool(job and job.worker)
        member.expected.append(p.StatusRes(handle, known, running, b"0", b"0"))
        self.hear(member, answers)

    @rule(back=st.integers(0, 5))
    def cancel(self, back: int) -> None:
        handle = self.handle(back)
        job = next((job for job in self.queue if job.handle == handle), None)
        found = self.system.cancel(handle)
        if job is not None and job.lingers and not job.worker and not found:
            self.queue.remove(job)
            return
        if job is None or (job.cancelled and not self.ways.cancelled_jobs_are_heard):
            assert not found  # for all but the worker that may still run it, it is over
            return
        assert found
        for client in job.clients:
            client.expected.append(p.WorkFail(handle))
        job.cancelled = True
        self.tell_cancelled(job)
        if not self.ways.cancelled_jobs_are_heard:
            job.clients, job.background = [], False
        if self.ways.abandoned_jobs_linger:
            job.lingers = True
        elif not job.worker:
            self.queue.remove(job)

    def handle(self, back: int) -> bytes:
        """One of the last handles, or one that there never was."""
        return self.handles[-1 - back] if back < len(self.handles) else b"H:nowhere:1"

    # ---------------------------------------------------------------------------------------- workers

    @rule(index=INDEX, function=st.sampled_from(FUNCTIONS))
    def offer(self, index: int, function: bytes) -> None:
        member = self.all[index]
        if function not in member.abilities or not self.ways.abilities_are_counted_twice:
            self.can_do(member, function)

    def can_do(self, member: Member, function: bytes) -> None:
        member.abilities[function] = None
        if member.asleep and self.ways.offering_does_not_wake:
            member.unseen.add(function)
        self.send(member, p.CanDo(self.system.prefix + function))

    @rule(index=INDEX, function=st.sampled_from(FUNCTIONS))
    def cant_do(self, index: int, function: bytes) -> None:
        member = self.all[index]
        member.abilities.pop(function, None)
        self.withdrawn(member)
        self.send(member, p.CantDo(self.system.prefix + function))

    @rule(index=INDEX)
    def reset_abilities(self, index: int) -> None:
        member = self.all[index]
        member.abilities.clear()
        self.withdrawn(member)
        self.send(member, p.ResetAbilities())

    def withdrawn(self, member: Member) -> None:
        if self.ways.withdrawing_takes_jobs_away:
            held = [job for job in self.queue if job.worker is member]
            self.take_away(job for job in held if job.function not in member.abilities)

    @rule(index=INDEX)
    def pre_sleep(self, index: int) -> None:
        member = self.all[index]
        member.deaf = member.deaf or (self.ways.sleeping_again_is_deaf and member.woken)
        member.woken = member.woken or bool(member.unseen)  # if jobs wait, it learns of them only now
        member.unseen.clear()
        if any(self.waiting(function) for function in member.abilities):
            self.send(member, p.PreSleep(), p.Noop())
        else:
            member.asleep, member.woken = True, False
            self.send(member, p.PreSleep())

    @rule()
    def everyone_goes_to_sleep(self) -> None:
        for index in range(PEERS):
            self.pre_sleep(index)

    def late_answers(self, member: Member) -> list[Packet | bytes]:
        """What is answered only when time has passed, and nothing else happened."""
        return []

    @rule(index=INDEX)
    def grab(self, index: int) -> None:
        """It is given the first job of the best priority of one of its functions, or told of none."""
        member = self.all[index]
        firsts = [jobs[0] for function in reversed(member.abilities) if (jobs := self.waiting(function))]
        if self.ways.newest_ability_first:
            del firsts[1:]
        best = min((job.priority for job in firsts), default=None)
        member.asleep = member.woken = member.deaf = False
        member.unseen.clear()
        answers = member.peer(p.GrabJobUniq()) or self.late_answers(member)
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

    # ------------------------------------------------------------------------------------- invariants

    @invariant()
    def everyone_hears_what_they_should_and_nothing_else(self) -> None:
        for member in self.all:
            self.hear(member, member.peer.read())
            assert not member.expected

    @invariant()
    def no_job_waits_beside_an_able_sleeper_unless_a_wake_is_pending(self) -> None:
        for function in FUNCTIONS:
            sleepers = [m for m in self.all if m.asleep and function in m.abilities]
            if self.waiting(function) and any(not m.deaf and function not in m.unseen for m in sleepers):
                assert any(m.woken for m in self.all)

    @invariant()
    def the_counts_are_right(self) -> None:
        for function in FUNCTIONS:
            total, running, workers = self.system.counts(self.system.prefix + function)
            mine = [job for job in self.queue if job.function == function]
            gone = sum(job.lingers and not job.worker for job in mine)
            assert len(mine) - gone <= total <= len(mine)
            assert running == sum(job.worker is not None for job in mine)
            assert workers == sum(function in member.abilities for member in self.all)

    # ---------------------------------------------------------------------------------------- helpers

    def waiting(self, function: bytes) -> list[Spec]:
        """The jobs of a function that may be given out, in their order."""
        jobs = [
            job
            for job in self.queue
            if job.function == function and not (job.worker or job.delayed or job.lingers)
        ]
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
            elif not (isinstance(packet, p.WorkWarning) and b"runs again" in packet.data):
                assert member.expected, f"unexpected {packet!r}"
                assert packet == member.expected.pop(0)


class GearflowMachine(ServerMachine):
    """What only gearflow's own server lets itself be told."""

    @rule(index=INDEX)
    def listen(self, index: int) -> None:
        """A worker wants to be told of cancelled jobs, also of those that are so already; once."""
        member = self.all[index]
        if not member.events:
            member.events, answers = self.call(member, server_calls.EVENTS, b"")
            for job in sorted((job for job in self.queue if job.worker is member), key=self.assigned.index):
                self.tell_if_unwanted(job)
            self.hear(member, answers)

    @rule(data=st.data())
    def submit_again(self, data: st.DataObject) -> None:
        """A client joins a job that it is attached to already."""
        own = [(client, job) for job in self.queue if job.unique for client in job.clients]
        if own:
            member, job = data.draw(st.sampled_from(own))
            packet = p.SubmitJob(self.system.prefix + job.function, job.unique, b"x")
            self.accept(member, packet, Spec(b"", job.function, job.unique, 1, False))

    @rule(index=INDEX, data=st.data())
    def detach(self, index: int, data: st.DataObject) -> None:
        """A client wants a job no more; if it is not attached to it, nothing happens."""
        member = self.all[index]
        own = [job.handle for job in self.queue if member in job.clients]
        handle = data.draw(st.sampled_from([*own, self.handle(0)]))
        job = next((job for job in self.queue if job.handle == handle), None)
        request = server_calls.DetachRequest(handle=handle.decode())
        call, answers = self.call(member, server_calls.DETACH, request.to_wire())
        attached = job is not None and member in job.clients
        if job is not None and attached:
            job.clients.remove(member)
            self.tell_if_unwanted(job)
            self.queue = [job for job in self.queue if job.wanted or job.worker]
        member.expected.append(p.WorkComplete(call, server_calls.Done(jobs=int(attached)).to_wire()))
        self.hear(member, answers)

    def call(self, member: Member, function: bytes, request: bytes) -> tuple[bytes, list[Packet | bytes]]:
        """Call a reserved function: the call's handle, which is counted as a job's, and what is heard."""
        answers = member.peer(p.SubmitJob(function, b"", request))
        (created,) = [answer for answer in answers if isinstance(answer, p.JobCreated)]
        self.handles.append(created.handle)
        member.expected.append(created)
        return created.handle, answers
