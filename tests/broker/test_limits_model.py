"""Limits at any point of any history, against the plainest model of them.

The model knows of each job its keys, and of each limit how many of its jobs run. A job may start if each of
its limits has room. No more may start, and a worker that asks gets one if there is one.
"""

import json
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gearflow.broker import SizeLimits, dispatch, limited_queue
from gearflow.broker.buckets import Bucket
from gearflow.broker.dispatch import WAKE_TIMEOUT
from gearflow.broker.limited_queue import LimitedQueue
from gearflow.broker.limiter import FunctionRules, LimitSpec, Rule
from gearflow.protocol import packets as p
from gearflow.protocol.packets import Packet
from tests.broker.harness import Peer, World

FUNCTIONS: tuple[bytes, ...] = (b"a", b"b")
LIMITS: tuple[bytes, ...] = (b"one", b"few", b"rate")
KINDS = (p.SubmitJobHighBg, p.SubmitJobBg, p.SubmitJobLowBg)
WORKERS = st.integers(0, 3)
KEYS = st.sampled_from(["x", "y", "x", "y", None])

SPECS = st.one_of(
    st.none(),
    st.builds(
        LimitSpec, st.just("concurrency"), st.integers(1, 3), paused=st.sampled_from([False] * 5 + [True])
    ),
    st.builds(LimitSpec, st.just("rate"), st.sampled_from([1, 4]), st.just(2.0), st.integers(1, 2)),
)
RULES = st.one_of(
    st.builds(
        FunctionRules,
        st.lists(
            st.builds(Rule, st.sampled_from(LIMITS), st.sampled_from([None, "/k", "/g"])),
            max_size=2,
            unique_by=lambda used: used.limit,
        ).map(tuple),
        st.sampled_from([None, "/g"]),
    ),
    st.permutations(LIMITS).map(lambda names: FunctionRules((Rule(names[0], "/k"), Rule(names[1], "/g")))),
    st.sampled_from(LIMITS).map(lambda name: FunctionRules((Rule(name, "/k"),), "/g")),
)


@dataclass(eq=False)
class ModelJob:
    """What a job is."""

    handle: bytes
    function: bytes
    priority: int
    keys: dict[str, str | None]
    since: float
    worker: "ModelWorker | None" = None
    cancelled: bool = False
    due: float = 0.0

    def bucket(self, used: Rule) -> tuple[bytes, str]:
        if used.key is None:
            return used.limit, ""
        return used.limit, self.keys[used.key[1:]] or self.handle.decode()


@dataclass(eq=False)
class ModelWorker:
    """A worker, and what it is known to do."""

    peer: Peer
    abilities: tuple[bytes, ...]
    asleep: bool = False
    woken: float | None = None


@dataclass
class ModelRate:
    """When the next job may start."""

    next_start: float = 0.0
    starts: list[float] = field(default_factory=list[float])


class LimitsMachine(RuleBasedStateMachine):
    """Jobs, workers and limits come, go and change."""

    late = False

    def __init__(self) -> None:
        super().__init__()
        self.world = World(SizeLimits(deaths=None))
        if self.late:
            self.world.be_late()
        self.limiter = self.world.broker.core.limiter
        self.client = self.world.peer()
        self.jobs: list[ModelJob] = []  # waiting and running, the waiting ones in their order
        self.specs: dict[bytes, LimitSpec | None] = dict.fromkeys(LIMITS)
        self.limits_of: dict[bytes, FunctionRules] = {name: FunctionRules() for name in FUNCTIONS}
        self.paused: set[bytes] = set()
        self.rates: dict[tuple[bytes, str], ModelRate] = {}
        self.workers = [self.worker(FUNCTIONS[: 1 + place % 2]) for place in range(4)]

    @initialize(rules=RULES, spec=SPECS)
    def begin(self, rules: FunctionRules, spec: LimitSpec | None) -> None:
        for place, name in enumerate(LIMITS):
            self.set_limit(name, LimitSpec("concurrency", 1 + place // 2))
        self.set_limit(LIMITS[2], spec)
        for function in FUNCTIONS:
            self.set_rules(function, rules)

    def worker(self, abilities: tuple[bytes, ...]) -> ModelWorker:
        return ModelWorker(self.world.worker(*abilities), abilities)

    def finish(self) -> None:
        self.world.finish()
        for worker in self.workers:
            if p.Noop() in worker.peer.read():
                assert worker.asleep
                worker.asleep, worker.woken = False, self.world.now

    # --------------------------------------------------------------------------------------- the model

    def startable(self, functions: tuple[bytes, ...]) -> list[ModelJob]:
        """The jobs that may start."""
        return [
            job
            for job in self.jobs
            if job.function in functions
            and job.worker is None
            and job.function not in self.paused
            and all(self.has_room(job, used) for used in self.limits_of[job.function].rules)
        ]

    def has_room(self, job: ModelJob, used: Rule) -> bool:
        spec = self.specs[used.limit]
        if spec is None:
            return True
        if spec.paused:
            return False
        bucket = job.bucket(used)
        if spec.kind == "rate":
            rate = self.rates.get(bucket, ModelRate())
            return rate.next_start - (spec.burst - 1) * spec.per / spec.count <= self.world.now
        return self.count(bucket) < spec.count

    def count(self, bucket: tuple[bytes, str]) -> int:
        """How many jobs of a bucket run."""
        return sum(
            job.bucket(used) == bucket
            for job in self.jobs
            if job.worker is not None
            for used in self.limits_of[job.function].rules
        )

    def starts(self, job: ModelJob) -> None:
        now = self.world.now
        for used in self.limits_of[job.function].rules:
            spec = self.specs[used.limit]
            if spec is not None and spec.kind == "rate":
                rate = self.rates.setdefault(job.bucket(used), ModelRate())
                made_up = min(1.0, spec.per / 20)
                rate.next_start = max(rate.next_start, job.since, now - made_up) + spec.per / spec.count
                rate.starts.append(now)
                for start, earlier in enumerate(rate.starts):
                    most = spec.burst + (now - earlier + made_up) * spec.count / spec.per
                    assert len(rate.starts) - start <= most + 1e-6

    # ------------------------------------------------------------------------------------------ rules

    @rule(function=st.sampled_from(FUNCTIONS), kind=st.sampled_from(KINDS), k=KEYS, g=KEYS)
    def submit(self, function: bytes, kind: type[p.SubmitJob], k: str | None, g: str | None) -> None:
        workload = json.dumps({"k": k, "g": g}).encode()
        (created,) = self.client(kind(function, b"", workload))
        assert isinstance(created, p.JobCreated)
        job = ModelJob(created.handle, function, KINDS.index(kind), {"k": k, "g": g}, self.world.now)
        self.jobs.append(job)
        self.finish()

    @rule(index=WORKERS)
    def grab_all(self, index: int) -> None:
        while self.grab(index):
            pass

    @rule(index=WORKERS)
    def grab_one(self, index: int) -> None:
        self.grab(index)

    def grab(self, index: int) -> bool:
        """Whether it gets a job."""
        worker = self.workers[index]
        able = self.startable(worker.abilities)
        worker.asleep, worker.woken = False, None
        answers = self.ask(worker, p.GrabJob())
        if not answers:
            self.world.pass_time(0.005)
            answers = worker.peer.read()
        answer = answers[-1]
        if not isinstance(answer, p.JobAssign):
            assert answer == p.NoJob()
            assert not able
            self.finish()
            return False
        (job,) = [job for job in able if job.handle == answer.handle]
        assert job.priority == min(other.priority for other in able)
        ahead = self.jobs[: self.jobs.index(job)]
        assert not [other for other in ahead if other.worker is None and self.same_line(job, other)]
        job.worker = worker
        self.starts(job)
        for used in self.limits_of[job.function].rules:
            spec = self.specs[used.limit]
            if spec is not None and spec.kind == "concurrency":
                assert self.count(job.bucket(used)) <= spec.count
        self.finish()
        return True

    def ask(self, worker: ModelWorker, packet: Packet) -> list[Packet | bytes]:
        """What a worker is answered when all is done."""
        answers = worker.peer(packet)
        self.world.finish()
        return answers + worker.peer.read()

    def same_line(self, one: ModelJob, other: ModelJob) -> bool:
        rules = self.limits_of[one.function]
        return (
            (one.function, one.priority) == (other.function, other.priority)
            and (rules.fair is None or one.keys["g"] == other.keys["g"])
            and all(one.bucket(used) == other.bucket(used) for used in rules.rules)
        )

    @rule(index=WORKERS)
    def sleep(self, index: int) -> None:
        worker = self.workers[index]
        answers = self.ask(worker, p.PreSleep())
        if p.Noop() in answers:  # it is not called by that: it may still sleep
            worker.woken = self.world.now
        else:
            worker.asleep, worker.woken = True, None
        self.finish()

    @rule(index=WORKERS, data=st.data(), completes=st.booleans())
    def end(self, index: int, data: st.DataObject, completes: bool) -> None:
        worker = self.workers[index]
        running = [job for job in self.jobs if job.worker is worker]
        if running:
            job = data.draw(st.sampled_from(running))
            packet: Packet = p.WorkComplete(job.handle, b"") if completes else p.WorkFail(job.handle)
            self.jobs.remove(job)
            assert worker.peer(packet) == []
            self.finish()

    @rule(index=WORKERS)
    def leave(self, index: int) -> None:
        """Its jobs come back, the last first."""
        worker = self.workers[index]
        worker.peer.leave()
        for job in reversed([job for job in self.jobs if job.worker is worker]):
            self.jobs.remove(job)
            if not job.cancelled:
                job.worker, job.since = None, self.world.now
                self.jobs.append(job)
        self.workers[index] = self.worker(worker.abilities)
        self.finish()
        order = [job.number for job in self.world.broker.core.jobs.by_number.values()]
        assert len(order) == len(self.jobs)

    @rule(back=st.integers(0, 9))
    def cancel(self, back: int) -> None:
        if back < len(self.jobs):
            job = self.jobs[-1 - back]
            assert self.world.broker.cancel(job.handle) is not job.cancelled
            job.cancelled = True
            if job.worker is None:
                self.jobs.remove(job)
            self.finish()

    @rule(name=st.sampled_from(LIMITS), spec=SPECS)
    def set_limit(self, name: bytes, spec: LimitSpec | None) -> None:
        if spec != self.specs[name]:
            for bucket, rate in self.rates.items():
                if bucket[0] == name:
                    rate.starts.clear()
                    latest = 0.0
                    if spec is not None and spec.kind == "rate":
                        latest = self.world.now + spec.burst * spec.per / spec.count
                    rate.next_start = min(rate.next_start, latest)
        self.specs[name] = spec
        self.limiter.set_limit(name, spec)
        self.finish()

    @rule(function=st.sampled_from(FUNCTIONS), rules=RULES)
    def set_rules(self, function: bytes, rules: FunctionRules) -> None:
        self.limits_of[function] = rules
        self.limiter.set_rules(self.world.broker.functions.ensure(function), rules)
        self.finish()

    @rule(function=st.sampled_from(FUNCTIONS), paused=st.booleans())
    def pause(self, function: bytes, paused: bool) -> None:
        (self.paused.add if paused else self.paused.discard)(function)
        self.world.broker.dispatcher.pause(self.world.broker.functions.ensure(function), paused)
        self.finish()

    @rule(seconds=st.sampled_from([0.01, WAKE_TIMEOUT, 0.5, 2.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.pass_time(seconds)
        self.finish()

    # ------------------------------------------------------------------------------------- invariants

    @invariant()
    def no_job_that_may_start_waits_beside_a_sleeper(self) -> None:
        for worker in self.workers:
            if worker.asleep and self.startable(worker.abilities):
                assert any(other.woken is not None for other in self.workers)

    @invariant()
    def the_counts_are_right(self) -> None:
        broker = self.world.broker
        for name in FUNCTIONS:
            function = broker.functions.ensure(name)
            mine = [job for job in self.jobs if job.function == name]
            waiting = function.waiting_jobs()
            assert len(waiting) == len(set(waiting)) == function.all_waiting
            assert function.all_waiting == sum(job.worker is None for job in mine)
            assert function.all_waiting == sum(map(function.waiting_of, range(3)))
            assert function.running == sum(job.worker is not None for job in mine)
        for limit in self.limiter.limits.values():
            assert limit.running == sum(len(bucket.jobs) for bucket in limit.buckets.values())
            for bucket in limit.buckets.values():
                key = bucket.key if bucket.key[:1] != "\0" else f"H:test:{bucket.key[1:]}"
                assert len(bucket.jobs) == self.count((limit.name, key))
                assert bucket.waiting == sum(
                    job.worker is None and job.bucket(used) == (limit.name, key)
                    for job in self.jobs
                    for used in self.limits_of[job.function].rules
                )

    @invariant()
    def a_line_that_waits_for_a_free_bucket_has_an_armed_one_for_it(self) -> None:
        now = self.world.now
        for name in FUNCTIONS:
            queue = self.world.broker.functions.ensure(name).limited
            if queue is None:
                continue
            lines = [
                line for groups in queue.groups for group in groups.values() for line in group.lines.values()
            ]
            for line in lines:
                bucket = line.parked_on
                if bucket is None or not bucket.is_free(now) or self.is_due(bucket):
                    continue
                assert any(other.entry and bucket in other.buckets for other in lines)
            assert queue.armed == sum(line.count for line in lines if line.entry)
            self.the_rings_are_right(queue)

    @staticmethod
    def the_rings_are_right(queue: LimitedQueue) -> None:
        for ring in queue.rings:
            assert len(set(ring)) == len(ring)
            assert all(group.in_ring for group in ring)
        for groups in queue.groups:
            for group in groups.values():
                entries = [line for order, line in group.heap if line.entry == order]
                assert len(entries) == sum(line.entry > 0 for line in group.lines.values())
                assert group.in_ring or not entries

    def is_due(self, bucket: Bucket) -> bool:
        """Whether a timer will look at it now."""
        return bool(bucket.due) and bucket.due <= self.world.now

    def teardown(self) -> None:
        """In the end every job runs, and nothing is left."""
        for name in LIMITS:
            self.set_limit(name, LimitSpec("concurrency", 1))
        for function in FUNCTIONS:
            self.pause(function, False)
        for index in range(len(self.workers)):
            self.leave(index)
        worker = self.workers[1]
        while isinstance(answer := self.ask(worker, p.GrabJob())[-1], p.JobAssign):
            worker.peer(p.WorkComplete(answer.handle, b""))
            self.world.finish()
        assert not self.world.broker.core.jobs.by_number
        for function in FUNCTIONS:
            self.set_rules(function, FunctionRules())
        for name in LIMITS:
            self.set_limit(name, None)
        self.world.pass_time(100)
        assert not self.limiter.limits


class LateLimitsMachine(LimitsMachine):
    """The same of a broker that does as much as possible in steps, and for which two functions are many."""

    late = True

    def __init__(self) -> None:
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(dispatch, "MANY", 1)
        self._patch.setattr(limited_queue, "_SLICE", 1)
        super().__init__()

    def teardown(self) -> None:
        super().teardown()
        self._patch.undo()


SETTINGS = settings(max_examples=150, stateful_step_count=50, deadline=None)
LimitsMachine.TestCase.settings = LateLimitsMachine.TestCase.settings = SETTINGS
TestLimits = LimitsMachine.TestCase
TestLateLimits = LateLimitsMachine.TestCase
