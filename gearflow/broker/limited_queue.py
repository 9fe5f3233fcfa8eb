"""The waiting jobs of a function that has limits: which of them may start, and which is next.

**Lines.** Jobs of one priority, one fair group and the same keys are a line. Its jobs start in the order in
which they came. The lines of a group are in a heap by their first jobs, and the groups of a priority take
turns in a ring. A function without keys and groups has one line for each priority.

**Parking.** A line whose bucket is full waits for that bucket, and is in no heap meanwhile. So a search for
the next job never passes the same full line twice. When a bucket becomes free, one line of each function goes
on. If that line then waits for another bucket, or has no jobs left, the next one goes on instead. So this
holds: *if a line waits for a free bucket, an armed line of the same function needs that bucket as well.*

**Gates.** A limit without a key is about all jobs of the function. If it is full, the whole queue is closed.

Whether the first line can go on is seen when it is looked at (``look``), because other functions may use the
same buckets. Until then ``function.waiting`` may be too high, but never too low. A queue that is not looked
at has no worker that sleeps, or a wake is pending.

**Changes of the rules.** All jobs are set aside in the order in which they came (``backlog``), and then get
their new lines, in steps. Nothing is given out meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush, heapreplace
from itertools import islice
from typing import TYPE_CHECKING, Final

from gearflow.broker.buckets import Bucket, FunctionRules, NamedLimit, first_full
from gearflow.broker.job import JobState, QueuedJob
from gearflow.broker.job_lines import FairGroup, JobLine, queued_since
from gearflow.broker.turns import Steps

if TYPE_CHECKING:
    from gearflow.broker.functions import FunctionQueue
    from gearflow.broker.limiter import Limiter

_WAITING: Final = JobState.WAITING

_SLICE: Final = 100
"""Jobs that are handled before others get their turn."""


class LimitedQueue:
    """The waiting jobs of one function. Owns them, and two counts of the function: ``waiting`` and
    ``parked``."""

    __slots__ = (
        "_limiter",
        "armed",
        "backlog",
        "busy",
        "change",
        "closed_on",
        "count",
        "count_of",
        "fair",
        "function",
        "gates",
        "gathered",
        "groups",
        "is_installed",
        "keyed",
        "order",
        "pending",
        "plain",
        "rings",
        "rules",
        "shut",
        "yields",
    )

    def __init__(self, limiter: Limiter, function: FunctionQueue) -> None:
        self._limiter = limiter
        self.function = function
        self.rules: FunctionRules | None = FunctionRules()  # None: it is to be no limited queue any more
        self.is_installed = False  # the rules are those of the lines
        self.gates: tuple[Bucket, ...] = ()
        self.keyed: tuple[tuple[NamedLimit, str], ...] = ()  # limits with the places of their keys
        self.fair: str | None = None
        self.plain: tuple[JobLine, JobLine, JobLine] | None = (
            None  # its lines, if it has neither keys nor groups
        )
        self.groups: list[dict[str, FairGroup]] = [{}, {}, {}]  # by priority
        self.rings: list[deque[FairGroup]] = [deque(), deque(), deque()]
        self.order = 0  # of the job that came last
        self.count = 0  # all jobs
        self.count_of = [0, 0, 0]  # by priority
        self.armed = 0  # jobs of the lines that are not parked
        self.closed_on: Bucket | None = None  # the gate that is full, as far as is known
        self.shut = False  # one of its limits is paused
        self.yields = False  # a suspect has waited long for a place: see ``suspects``
        self.busy = False  # its jobs are being sorted
        self.backlog: list[deque[QueuedJob]] = [deque(), deque(), deque()]  # jobs without a line
        self.gathered: list[list[tuple[int, QueuedJob]]] = [[], [], []]  # those before them, by their order
        self.change = 0  # how often its rules have changed
        self.pending = 0  # questions about the keys of jobs

    # ------------------------------------------------------------------------------------- the counts

    @property
    def is_open(self) -> bool:
        """Whether it may give out jobs, but for the lines' own buckets."""
        function = self.function
        closed = self.busy or self.shut or self.yields or self.closed_on is not None
        return not (closed or function.paused or function.holds)

    def publish(self) -> None:
        """Set the counts of the function."""
        function = self.function
        function.waiting = waiting = self.armed if self.armed and self.is_open else 0
        function.parked = self.count - waiting

    def opened(self) -> None:
        """It may give out jobs again, or more of them."""
        self.publish()
        if self.function.waiting:
            self._limiter.note_ready(self)

    # -------------------------------------------------------------------------------- giving out jobs

    def look(self) -> JobLine | None:
        """The line with the next job, if a job may start now."""
        if not self.function.waiting:
            return None
        now = self._limiter.clock.now
        for gate in self.gates:
            if not gate.is_free(now):
                self._close(gate)
                return None
        for priority in range(3):
            line = self._look_at(priority, now)
            if line is not None:
                return line
        return None

    def offers(self, priority: int) -> bool:
        """Whether a job of that priority may start now."""
        if not self.function.waiting or not self.rings[priority]:
            return False
        now = self._limiter.clock.now
        for gate in self.gates:
            if not gate.is_free(now):
                self._close(gate)
                return False
        return self._look_at(priority, now) is not None

    def room(self) -> int:
        """How many workers have something to do, one at least: as far as that can be known."""
        now = self._limiter.clock.now
        room = self.armed
        for gate in self.gates:
            room = min(room, gate.room(now))
        if self.keyed:
            rings = [ring for ring in self.rings if ring]
            room = min(room, sum(len(ring[0].heap) if self.fair is None else len(ring) for ring in rings))
        return max(room, 1)

    def pop(self) -> QueuedJob | None:
        """The next job, which takes its buckets, if one may start now."""
        line = self.look()
        if line is None:
            return None
        limiter = self._limiter
        now = limiter.clock.now
        job = line.jobs.popleft()
        slots = (*self.gates, *line.buckets) if line.buckets else self.gates
        queued = queued_since(job, now)
        for bucket in slots:
            bucket.take(job, now, queued)
            if bucket.limit.is_rate and bucket.is_awaited:
                limiter.set_timer(bucket)
        details = job.ensure_details()
        details.slots = slots
        details.is_new = False
        self._leave(line, job)
        self.armed -= 1
        group = line.group
        if not line.count:
            self._end(line)
        elif self.plain is None:
            line.entry = line.jobs[0].ensure_details().order
            heapreplace(group.heap, (line.entry, line))
        if self.fair is not None:
            ring = self.rings[group.priority]
            ring.rotate(-1)  # the group was first
        self.publish()
        return job

    def _look_at(self, priority: int, now: float) -> JobLine | None:
        """The first line of a priority that can go on. Those before it are parked."""
        ring = self.rings[priority]
        while ring:
            group = ring[0]
            line = group.first()
            if line is None:
                ring.popleft()
                group.in_ring = False
                self._forget_group(group)
                continue
            full = first_full(line.buckets, now)
            if full is None:
                return line
            heappop(group.heap)
            line.entry = 0
            self.armed -= line.count
            self._park(line, full)
            self.publish()
        return None

    def _close(self, gate: Bucket) -> None:
        self.closed_on = gate
        if gate.closed is None:
            gate.closed = {}
        gate.closed[self] = None
        self._limiter.set_timer(gate)
        self.publish()

    def _park(self, line: JobLine, bucket: Bucket) -> None:
        """An unarmed line waits for a bucket."""
        line.parked_on = bucket
        bucket.add_waiter(line)
        self._limiter.set_timer(bucket)
        self._pass_on(line)

    def _pass_on(self, line: JobLine) -> None:
        """A line is not armed any more. Others may go on in its place."""
        now = self._limiter.clock.now
        for bucket in line.buckets:
            if bucket is not line.parked_on and bucket.is_free(now):
                other = bucket.first_of(self)
                if other is not None:
                    self.arm(other)

    def arm(self, line: JobLine) -> None:
        """A line need not wait for its bucket any more."""
        if line.parked_on is not None:
            line.parked_on.remove_waiter(line)
            line.parked_on = None
        self.armed += line.count
        self._enter(line)
        self.opened()

    def _enter(self, line: JobLine) -> None:
        """An armed line takes its place in its group, and the group in the ring."""
        group = line.group
        line.entry = 1 if self.plain is not None else line.jobs[0].ensure_details().order
        heappush(group.heap, (line.entry, line))
        if not group.in_ring:
            group.in_ring = True
            self.rings[group.priority].append(group)

    # ------------------------------------------------------------------------------ jobs that come and go

    def push(self, job: QueuedJob) -> None:
        """A job begins to wait."""
        self.count += 1
        self.count_of[job.priority] += 1
        details = job.details
        if details is not None:
            details.queued = self._limiter.clock.now
        if self._limiter.shares is not None and self.closed_on is not None:
            self._limiter.shares.note(self.closed_on)
        if self.busy:
            self.backlog[job.priority].append(job)
            self.publish()
            return
        keys = self._limiter.keys_in_memory(self, job)
        if keys is not None:
            self._place(job, keys)
            return
        self.busy = True  # its keys are at the store, and no job is to overtake it
        self.backlog[job.priority].append(job)
        self.publish()
        self._limiter.turns.run(self.sort())

    def _place(self, job: QueuedJob, keys: tuple[str, ...]) -> None:
        """Put a job in its line. The first of its keys is that of its group, if there are groups."""
        line = self.plain[job.priority] if self.plain is not None else self._line(job, keys)
        if self.plain is None:
            self.order += 1
            details = job.ensure_details()
            details.line = line
            details.order = self.order
            if not details.queued:
                details.queued = self._limiter.clock.now
        line.jobs.append(job)
        line.count += 1
        for bucket in line.buckets:
            bucket.awaiting += 1
        is_first = False
        if line.parked_on is None and not line.entry:
            full = first_full(line.buckets, self._limiter.clock.now)
            if full is not None:
                self._park(line, full)
            else:
                self._enter(line)
                is_first = True
        elif line.parked_on is not None and self._limiter.shares is not None:
            self._limiter.shares.note(line.parked_on)
        if line.parked_on is None:
            self.armed += 1
        self.publish()
        if is_first:
            self._limiter.report(self)
        if job.details is not None:
            self._limiter.apply_over(self, job, (*self.gates, *line.buckets))

    def _line(self, job: QueuedJob, keys: tuple[str, ...]) -> JobLine:
        groups = self.groups[job.priority]
        name = keys[0] if self.fair is not None else ""
        group = groups.get(name)
        if group is None:
            group = groups[name] = FairGroup(self, job.priority, name)
        line = group.lines.get(keys)
        if line is None:
            first = 0 if self.fair is None else 1
            buckets = [limit.bucket(keys[first + place]) for place, (limit, _) in enumerate(self.keyed)]
            line = group.lines[keys] = JobLine(group, keys, tuple(buckets))
            for bucket in buckets:
                bucket.uses += 1
        return line

    def forget(self, job: QueuedJob) -> None:
        """A waiting job, already marked OVER, leaves."""
        details = job.details
        line = details.line if details is not None else None
        if line is None and self.plain is not None and not self.busy:
            line = self.plain[job.priority]
        if line is None:  # it is in the backlog, and is seen to be over there
            self.count -= 1
            self.count_of[job.priority] -= 1
            self.publish()
            return
        line.shells += 1
        self._leave(line, job)
        if line.parked_on is None:
            self.armed -= 1
        if not line.count:
            self._end(line)
        else:
            line.sweep()
        self.publish()

    def take_out(self, job: QueuedJob) -> None:
        """A WAITING job is to wait elsewhere. No jobs are being sorted. Looks at all jobs of its line."""
        line = job.details.line if job.details is not None else None
        if line is None:
            assert self.plain is not None
            line = self.plain[job.priority]
        line.jobs.remove(job)
        line.strip()
        self._leave(line, job)
        if line.parked_on is None:
            self.armed -= 1
        if not line.count:
            self._end(line)
        self.publish()

    def _leave(self, line: JobLine, job: QueuedJob) -> None:
        """A job does not wait any more, and is not the first of its line."""
        self.count -= 1
        self.count_of[job.priority] -= 1
        line.count -= 1
        for gate in self.gates:
            if gate.newest is not None:
                gate.newest.pop(job, None)
        for bucket in line.buckets:
            bucket.awaiting -= 1
            if bucket.newest is not None:
                bucket.newest.pop(job, None)
        if job.details is not None:
            job.details.line = None
        if line.shells:
            line.strip()

    def _end(self, line: JobLine) -> None:
        """A line has no jobs any more."""
        group = line.group
        if line.entry:
            line.entry = 0
            if group.heap[0][1] is line:
                heappop(group.heap)
            else:
                group.sweep()
        if self.plain is not None:
            line.jobs.clear()
            line.shells = 0
            return
        parked_on, line.parked_on = line.parked_on, None
        if parked_on is not None:
            parked_on.remove_waiter(line)
        del group.lines[line.keys]
        self._pass_on(line)
        for bucket in line.buckets:
            bucket.uses -= 1
            if bucket.is_idle:
                self._limiter.rest(bucket)
        self._forget_group(group)

    def _forget_group(self, group: FairGroup) -> None:
        if not group.lines and not group.in_ring and self.plain is None:
            self.groups[group.priority].pop(group.key, None)

    def firsts(self) -> Iterator[QueuedJob]:
        """The first job of each line, and of those that have no line."""
        for groups in self.groups:
            for group in groups.values():
                for line in group.lines.values():
                    if line.jobs:
                        yield line.jobs[0]
        for jobs in (*self.backlog, *([job for _, job in gathered] for gathered in self.gathered)):
            for job in jobs:
                if job.state is _WAITING:
                    yield job
                    break

    def jobs(self) -> Iterator[QueuedJob]:
        """All jobs that wait."""
        for groups in self.groups:
            for group in groups.values():
                for line in group.lines.values():
                    for job in line.jobs:
                        if job.state is _WAITING:
                            yield job
        for gathered in self.gathered:
            for _, job in gathered:
                if job.state is _WAITING:
                    yield job
        for jobs in self.backlog:
            for job in jobs:
                if job.state is _WAITING:
                    yield job

    # ---------------------------------------------------------------------------- changes of the rules

    def set_rules(self, rules: FunctionRules | None) -> None:
        """Other rules hold from now on, or none. Its jobs are sorted before one is given out."""
        self.rules = rules
        self.is_installed = False
        if not self.busy:
            self.busy = True
            self.publish()
            self._limiter.turns.run(self.sort())

    def sort(self) -> Steps:
        """Give all jobs their places under the present rules. If the store has to answer first, this ends,
        and is called again then."""
        while self.busy and not self.pending:
            if not self.is_installed:
                yield from self._collect()
                self.is_installed = True
                self._install()
                if self.rules is None:
                    return
            else:
                yield from self._place_all()
                self._finish()

    def _finish(self) -> None:
        """Give out jobs again, if all are sorted."""
        if self.is_installed and not self.pending and not any(self.backlog):
            self.busy = False
            self.opened()

    def _collect(self) -> Steps:
        """Put all jobs into the backlog, in the order in which they came."""
        for priority in range(3):
            if self.plain is not None:
                line = self.plain[priority]
                if not line.jobs:
                    continue
                jobs, line.jobs = line.jobs, deque()
                self.armed -= line.count
                if line.entry:
                    line.entry = 0
                    line.group.heap.clear()
                line.count = line.shells = 0
                jobs.extend(self.backlog[priority])
                self.backlog[priority] = jobs
                continue
            lines = [line for group in self.groups[priority].values() for line in group.lines.values()]
            for place, line in enumerate(lines):
                yield from self._gather(line)
                if not place % _SLICE:
                    yield
            yield from self._merge(priority)

    def _gather(self, line: JobLine) -> Steps:
        """Take the jobs from a line, in steps, with the order in which they came."""
        jobs = self.gathered[line.group.priority]
        taken = 0
        while line.count:
            job = line.jobs.popleft()
            line.strip()
            details = job.ensure_details()
            details.line = None
            jobs.append((details.order, job))
            line.count -= 1
            if line.parked_on is None:
                self.armed -= 1
            for bucket in line.buckets:
                bucket.awaiting -= 1
                if bucket.newest is not None:
                    bucket.newest.pop(job, None)
            if not line.count:
                self._end(line)
            taken += 1
            if not taken % _SLICE:
                yield

    def _merge(self, priority: int) -> Steps:
        """Put the gathered jobs before the backlog, by their order."""
        gathered = self.gathered[priority]
        if not gathered:
            return
        least, most = min(gathered)[0], max(gathered)[0]
        parts: list[list[tuple[int, QueuedJob]]] = [[] for _ in range(1 + len(gathered) // _SLICE)]
        for place, entry in enumerate(gathered):
            parts[(entry[0] - least) * len(parts) // (most - least + 1)].append(entry)
            if not place % _SLICE:
                yield
        ordered: deque[QueuedJob] = deque()
        for part in parts:
            part.sort()
            ordered.extend(job for _, job in part if job.state is _WAITING)
            yield
        ordered.extend(self.backlog[priority])
        self.backlog[priority] = ordered
        self.gathered[priority] = []

    def _install(self) -> None:
        """Let the present rules hold. All jobs are in the backlog."""
        limiter = self._limiter
        for gate in self.gates:
            if self.closed_on is gate and gate.closed is not None:
                gate.closed.pop(self, None)
                if not gate.closed:
                    gate.closed = None
            gate.uses -= 1
        used = [gate.limit for gate in self.gates] + [limit for limit, _ in self.keyed]
        self.closed_on = None
        self.groups = [{}, {}, {}]
        self.rings = [deque(), deque(), deque()]
        rules = self.rules or FunctionRules()
        self.gates = tuple(limiter.limit(rule.limit).bucket("") for rule in rules.rules if rule.key is None)
        self.keyed = tuple((limiter.limit(rule.limit), rule.key) for rule in rules.rules if rule.key)
        self.fair = rules.fair
        for gate in self.gates:
            gate.uses += 1
        self.plain = None
        limiter.recount(self, used)
        if self.rules is None:
            self.function.unlimit(self.backlog, self.count_of)
            limiter.dissolved(self)
            return
        if not self.keyed and self.fair is None:
            lines: list[JobLine] = []
            for priority in range(3):
                group = self.groups[priority][""] = FairGroup(self, priority, "")
                line = group.lines[()] = JobLine(group, (), ())
                lines.append(line)
            self.plain = lines[0], lines[1], lines[2]

    def _place_all(self) -> Steps:
        """Give the jobs of the backlog their lines, until the store has to answer, or the rules change."""
        if self.plain is not None:
            for priority, line in enumerate(self.plain):
                self._fill(line, self.backlog[priority])
                self.backlog[priority] = deque()
            return
        for jobs in self.backlog:
            while jobs and self.is_installed:
                for job in list(islice(jobs, _SLICE)):
                    if job.state is _WAITING and self._limiter.keys_in_memory(self, job) is None:
                        self._limiter.ask_for_keys(self, job)
                if self.pending:
                    return
                for _ in range(min(_SLICE, len(jobs))):
                    job = jobs.popleft()
                    keys = self._limiter.keys_in_memory(self, job) if job.state is _WAITING else None
                    if keys is not None:
                        self._place(job, keys)
                yield

    def _fill(self, line: JobLine, jobs: deque[QueuedJob]) -> None:
        """All jobs of a priority are in one line."""
        count = self.count_of[line.group.priority]
        if not count:
            return
        line.jobs = jobs
        line.count = count
        line.shells = len(jobs) - count
        line.strip()
        self._enter(line)
        self.armed += count
