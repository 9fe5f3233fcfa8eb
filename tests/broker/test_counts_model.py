"""The counts of the broker against a ledger that a machine keeps of everything that it does."""

from collections import Counter, defaultdict
from collections.abc import Iterable

from hypothesis import settings
from hypothesis.stateful import invariant

from gearflow.broker.outgoing import LINGER
from gearflow.protocol import packets as p
from gearflow.protocol.metrics import FunctionMetrics, Metrics, MetricsRequest
from gearflow.protocol.packets import Packet
from tests.broker.harness import World
from tests.broker.model import FUNCTIONS, Member, Spec
from tests.broker.test_model import BrokerMachine

OUTCOMES: dict[type[Packet], str] = {
    p.WorkComplete: "succeeded",
    p.WorkFail: "failed",
    p.WorkException: "failed",
}


def counted(world: World, function: bytes) -> FunctionMetrics:
    """What the broker has counted of a function."""
    found: list[Metrics] = []
    world.broker.metrics(MetricsRequest(functions=(function.decode(),)), found.append)
    world.finish()
    return found[0].functions[0] if found[0].functions else FunctionMetrics(function=function.decode())


class Seen:
    """What the ledger knows of a job."""

    def __init__(self, now: float) -> None:
        self.ready = now
        self.began = 0.0
        self.worker: Member | None = None
        self.delayed = False
        self.cancelled = False


class LedgerMachine(BrokerMachine):
    """Writes down what happens to each job, and compares."""

    def __init__(self) -> None:
        self.ledger: Counter[tuple[bytes, str]] = Counter()
        self.seconds: defaultdict[tuple[bytes, str], float] = defaultdict(float)
        self.seen: dict[Spec, Seen] = {}
        self.ends: dict[bytes, str] = {}
        super().__init__()

    def accept(self, member: Member, packet: Packet, spec: Spec) -> None:
        before = len(self.handles)
        super().accept(member, packet, spec)
        self.ledger[spec.function, "submitted" if len(self.handles) > before else "joined"] += 1

    def take_away(self, jobs: Iterable[Spec]) -> None:
        jobs = list(jobs)
        super().take_away(jobs)
        for job in jobs:
            self.seen[job].ready = self.world.now
            if job.wanted:  # it waits again, also if its last client leaves with the worker
                self.seen[job].worker = None
                self.ledger[job.function, "retried"] += 1

    def send(self, member: Member, packet: Packet, *answers: Packet) -> None:
        if isinstance(packet, (p.WorkComplete, p.WorkFail, p.WorkException)):
            self.ends[packet.handle] = OUTCOMES[type(packet)]
        super().send(member, packet, *answers)

    @invariant()
    def the_ledger_says_the_same(self) -> None:
        self.write_down()
        for function in FUNCTIONS:
            self.compare(function, counted(self.world, function))

    def write_down(self) -> None:
        """What has become of each job since the last look."""
        now = self.world.now
        for job in self.queue:
            seen = self.seen.setdefault(job, Seen(now))
            if seen.delayed and not job.delayed:
                seen.ready = job.due
            seen.delayed = job.delayed
            if job.worker is not None and job.worker is not seen.worker:
                seen.began = now
                self.ledger[job.function, "started"] += 1
                self.seconds[job.function, "wait"] += now - seen.ready
            seen.worker = job.worker
            if job.cancelled and not seen.cancelled:
                self.end(job, seen, "cancelled")
            seen.cancelled = job.cancelled
        for job in self.seen.keys() - set(self.queue):
            seen = self.seen.pop(job)
            if not seen.cancelled:
                self.end(job, seen, self.ends.get(job.handle, "cancelled"))

    def end(self, job: Spec, seen: Seen, outcome: str) -> None:
        self.ledger[job.function, outcome] += 1
        if seen.worker is not None:
            self.ledger[job.function, "ran"] += 1
            self.seconds[job.function, "run"] += self.world.now - seen.began

    def compare(self, function: bytes, found: FunctionMetrics) -> None:
        jobs = [job for job in self.queue if job.function == function and not job.cancelled]
        waiting = self.waiting(function)
        for name in ("submitted", "joined", "started", "succeeded", "failed", "cancelled", "retried"):
            assert getattr(found, name) == self.ledger[function, name], name
        assert (found.restored, found.passed_on, found.expired, found.dead) == (0, 0, 0, 0)
        assert found.waiting == tuple(sum(job.priority == place for job in waiting) for place in range(3))
        assert found.delayed == sum(job.delayed for job in jobs)
        assert found.running == sum(job.worker is not None for job in jobs)
        assert found.workers == sum(function in member.abilities for member in self.all)
        ready = [self.world.now - self.seen[job].ready for job in waiting]
        assert (found.oldest is None) == (not ready)
        assert found.oldest is None or abs(found.oldest - max(ready)) <= LINGER
        assert sum(found.wait.counts) == found.started
        assert sum(found.run.counts) == self.ledger[function, "ran"]
        for name, histogram in (("wait", found.wait), ("run", found.run)):
            assert abs(histogram.sum - self.seconds[function, name]) < 0.001


LedgerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestLedger = LedgerMachine.TestCase
