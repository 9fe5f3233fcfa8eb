"""Suspects in any history: never beside another job, and never stuck."""

from collections.abc import Iterable

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gearflow.broker import SizeLimits
from gearflow.broker.limiter import FunctionRules, LimitSpec, Rule
from gearflow.protocol import packets as p
from gearflow.protocol.packets import Packet
from tests.broker.harness import Peer, World
from tests.broker.model import FUNCTIONS, INDEX, Member, Spec
from tests.broker.test_model import SETTINGS, BrokerMachine, InProcess

DEATHS = 2


class WithDeaths(InProcess):
    """A broker that counts deaths."""

    def __init__(self) -> None:
        self.world = World(SizeLimits(deaths=DEATHS))


class SuspectMachine(BrokerMachine):
    """What the broker does with jobs whose next death would be their last."""

    def __init__(self) -> None:
        self.deaths: dict[bytes, int] = {}
        self.alone: list[Spec] = []  # suspects that were given to a worker
        super().__init__(WithDeaths())

    def teardown(self) -> None:
        """Once all that runs has ended, one worker gets everything that waits."""
        last = Member(self.system.connect())
        for function in FUNCTIONS:
            self.can_do(last, function)
        for job in [job for job in self.queue if job.worker is not None]:
            assert job.worker is not None
            job.worker.peer(p.WorkComplete(job.handle, b"r"))
            self.queue.remove(job)
        left = {job.handle for job in self.queue}
        self.world.pass_time(10.0)
        while left:
            self.world.pass_time(0.1)
            last.peer.read()
            (answer,) = [each for each in last.peer(p.GrabJobUniq()) if each != p.Noop()]
            assert isinstance(answer, p.JobAssignUniq)
            left.remove(answer.handle)
            last.peer(p.WorkComplete(answer.handle, b"r"))
        assert not self.world.broker.suspects.exist
        super().teardown()

    def take_away(self, jobs: Iterable[Spec]) -> None:
        for job in sorted(jobs, key=self.assigned.index, reverse=True):
            died = self.deaths[job.handle] = self.deaths.get(job.handle, 0) + 1
            self.queue.remove(job)
            if died < DEATHS or not job.wanted:
                job.worker = None
                self.queue.append(job)
                continue
            for client in job.clients:
                if client is not job.worker:
                    failed = p.WorkException(job.handle, b"died") if client.exceptions else None
                    client.expected.append(failed or p.WorkFail(job.handle))

    def hear(self, member: Member, heard: list[Packet | bytes]) -> None:
        def plain(packet: Packet | bytes) -> Packet | bytes:
            if isinstance(packet, p.WorkException) and b"WorkersDied" in packet.data:
                return p.WorkException(packet.handle, b"died")
            return packet

        super().hear(member, [plain(packet) for packet in heard])

    # ---------------------------------------------------------------------------------------- workers

    def is_suspect(self, job: Spec) -> bool:
        return self.deaths.get(job.handle, 0) == DEATHS - 1

    def waiting(self, function: bytes) -> list[Spec]:
        return [job for job in super().waiting(function) if not self.is_suspect(job)]

    def suspects(self, member: Member) -> list[Spec]:
        """The suspects that a worker could do, the best priority first."""
        able = [job for job in self.queue if job.function in member.abilities and self.is_suspect(job)]
        waiting = [job for job in able if not (job.worker or job.delayed)]
        return sorted(waiting, key=lambda job: job.priority)

    def is_idle(self, member: Member) -> bool:
        return not any(job.worker is member for job in self.queue)

    def runs_alone(self, member: Member) -> bool:
        return any(job.worker is member and job in self.alone for job in self.queue)

    @staticmethod
    def is_set_apart(member: Member) -> bool:
        assert isinstance(member.peer, Peer)
        return member.peer.session.alone is not None

    @rule(index=INDEX)
    def grab(self, index: int) -> None:
        member = self.all[index]
        suspects = self.suspects(member)
        if self.is_idle(member) and suspects:
            expected = {job.handle for job in suspects if job.priority == suspects[0].priority}
            handle = self.given(member)
            assert handle in expected
            job = next(job for job in suspects if job.handle == handle)
            assert job is next(each for each in suspects if each.function == job.function)
            job.worker = member
            self.assigned = [other for other in self.assigned if other is not job] + [job]
            self.alone.append(job)
        elif self.runs_alone(member) or (suspects and self.is_set_apart(member)):
            assert self.given(member) is None
        else:
            super().grab(index)

    def given(self, member: Member) -> bytes | None:
        member.asleep = member.woken = False
        answers = member.peer(p.GrabJobUniq()) or self.late_answers(member)
        answer = answers.pop()
        self.hear(member, answers)
        if isinstance(answer, p.JobAssignUniq):
            return answer.handle
        assert answer == p.NoJob()
        return None

    @rule(index=INDEX)
    def pre_sleep(self, index: int) -> None:
        member = self.all[index]
        is_called = self.is_idle(member) and self.suspects(member)
        if is_called:
            self.send(member, p.PreSleep(), p.Noop())
        elif self.is_set_apart(member):
            member.asleep, member.woken = True, False
            self.send(member, p.PreSleep())
        else:
            super().pre_sleep(index)

    # ------------------------------------------------------------------------------------- invariants

    @invariant()
    def no_job_waits_beside_an_able_sleeper_unless_a_wake_is_pending(self) -> None:
        for function in FUNCTIONS:
            able = [m for m in self.all if m.asleep and function in m.abilities]
            if self.waiting(function) and not all(map(self.is_set_apart, able)):
                assert any(m.woken for m in self.all)

    @invariant()
    def a_pending_wake_has_its_time(self) -> None:
        for function in FUNCTIONS:
            able = [m for m in self.all if m.asleep and function in m.abilities]
            if self.waiting(function) and not all(map(self.is_set_apart, able)):
                assert self.world.broker.next_due() is not None

    @invariant()
    def no_suspect_waits_beside_an_able_sleeper_that_runs_nothing_unless_a_call_is_pending(self) -> None:
        for member in self.all:
            if member.asleep and self.is_idle(member) and self.suspects(member):
                assert self.world.broker.next_due() is not None

    @invariant()
    def a_suspect_that_waits_has_somebody_set_apart_or_a_time_when_that_comes(self) -> None:
        for member in self.all:
            for job in self.suspects(member):
                able = [m for m in self.all if job.function in m.abilities]
                assert any(map(self.is_set_apart, able)) or self.world.broker.next_due() is not None

    @invariant()
    def nobody_is_set_apart_without_a_suspect(self) -> None:
        for member in self.all:
            if self.is_set_apart(member):
                assert self.runs_alone(member) or self.suspects(member)
            else:
                assert not self.runs_alone(member)

    @invariant()
    def a_suspect_runs_alone(self) -> None:
        for job in self.queue:
            if job.worker is not None and job in self.alone:
                assert [job] == [other for other in self.queue if other.worker is job.worker]


SuspectMachine.TestCase.settings = SETTINGS
TestSuspects = SuspectMachine.TestCase


class LimitedSuspects(RuleBasedStateMachine):
    """Suspects of functions with limits: never over a limit, never beside another job, never stuck."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(SizeLimits(deaths=DEATHS))
        limiter = self.world.broker.core.limiter
        limiter.set_limit(b"two", LimitSpec("concurrency", 2))
        limiter.set_limit(b"one", LimitSpec("concurrency", 1))
        rules = FunctionRules((Rule(b"two"), Rule(b"one", "/c")))
        limiter.set_rules(self.world.broker.functions.ensure(b"a"), rules)
        limiter.set_rules(self.world.broker.functions.ensure(b"b"), FunctionRules((Rule(b"two"),)))
        self.client = self.world.peer()
        self.workers = [self.world.worker(b"a", b"b") for _ in range(3)]

    @rule(function=st.sampled_from([b"a", b"b"]), key=st.sampled_from("xy"), high=st.booleans())
    def submit(self, function: bytes, key: str, high: bool) -> None:
        kind = p.SubmitJobHighBg if high else p.SubmitJobBg
        self.client(kind(function, b"", b'{"c": "%b"}' % key.encode()))

    @rule(index=st.integers(0, 2))
    def grab(self, index: int) -> None:
        self.workers[index](p.GrabJob())

    @rule(index=st.integers(0, 2))
    def sleep(self, index: int) -> None:
        self.workers[index](p.PreSleep())

    @rule(index=st.integers(0, 2))
    def die(self, index: int) -> None:
        self.workers[index].leave()
        self.workers[index] = self.world.worker(b"a", b"b")

    @rule(index=st.integers(0, 2), last=st.booleans())
    def complete(self, index: int, last: bool) -> None:
        running = list(self.workers[index].session.running)
        if running:
            self.workers[index](p.WorkComplete(running[-1 if last else 0], b""))

    @rule(seconds=st.sampled_from([0.02, 0.25, 1.0, 10.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.pass_time(seconds)
        self.world.finish()

    @invariant()
    def no_limit_is_exceeded(self) -> None:
        jobs = [job for worker in self.workers for job in worker.session.running.values()]
        assert len(jobs) <= 2
        keys = [bytes(job.workload) for job in jobs if job.function.name == b"a"]
        assert len(keys) == len(set(keys))
        assert self.world.broker.core.limiter.usage(b"two").running == len(jobs)

    @invariant()
    def a_suspect_runs_alone(self) -> None:
        for worker in self.workers:
            alone = worker.session.alone
            if alone is not None and alone.job is not None:
                assert list(worker.session.running.values()) == [alone.job]

    def teardown(self) -> None:
        """Workers that do what workers do end all jobs."""
        self.world.finish()
        for _ in range(1000):
            if not self.world.broker.jobs.by_number:
                break
            for index in range(3):
                self.complete(index, False)
                self.grab(index)
                self.sleep(index)
            self.pass_time(0.25)
        assert not self.world.broker.jobs.by_number
        assert not self.world.broker.suspects.exist


LimitedSuspects.TestCase.settings = SETTINGS
TestLimitedSuspects = LimitedSuspects.TestCase
