"""Limits, and the buckets in which their jobs are counted: one for each key.

A limit of concurrency is never exceeded, and never stuck: a running job is in its buckets until it ends. No
slot can be lost, or kept for too long.

A rate is kept with GCRA, which needs one time for each bucket: when the next job would start if jobs came
evenly (``next_start``). A job may start ``tolerance`` before it, so a burst is possible after a pause. A job
that waited counts as started when it could have, even if a timer or a worker was late. So lateness does not
lower the rate. The lateness that is made up for is limited (``made_up``).
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from gearflow.broker.job import QueuedJob
    from gearflow.broker.job_lines import JobLine
    from gearflow.broker.limited_queue import LimitedQueue

SENT: Final = "*"
"""In place of a JSON pointer: the caller sends the key."""

_UNLIMITED: Final = sys.maxsize

_MADE_UP: Final = 1.0
"""Seconds of lateness that a rate makes up for at most."""

_MADE_UP_PART: Final = 0.05
"""The same as a part of the time of the rate. So no such time has more than 5 % more starts."""


@dataclass(frozen=True, slots=True)
class LimitSpec:
    """What a limit is."""

    kind: str  # "concurrency" or "rate"
    count: int
    per: float = 0.0  # seconds; of a rate
    burst: int = 1  # of a rate
    over: str = "wait"  # "wait", "drop", "cancel-running" or "keep-newest"; of concurrency
    paused: bool = False


class Rule(NamedTuple):
    """A limit as a function uses it."""

    limit: bytes
    key: str | None = None
    """A JSON pointer into the payload, or ``*``: the caller sends the key. None: it is about all jobs."""


class FunctionRules(NamedTuple):
    """The limits that a function uses."""

    rules: tuple[Rule, ...] = ()
    fair: str | None = None
    """Where the group of a job is, as the key of a rule. The groups take turns inside a priority."""

    def pointers(self) -> list[str]:
        """The places in the payload that have to be known."""
        places = [self.fair, *(rule.key for rule in self.rules)]
        return [place for place in places if place and place != SENT]


class Waiters:
    """The lines of one queue that wait for a bucket, by priority, those that came first first."""

    __slots__ = ("lines",)

    def __init__(self) -> None:
        self.lines: list[OrderedDict[JobLine, None] | None] = [None, None, None]

    def add(self, line: JobLine) -> None:
        """A line waits."""
        lines = self.lines[line.group.priority]
        if lines is None:
            lines = self.lines[line.group.priority] = OrderedDict()
        lines[line] = None

    def remove(self, line: JobLine) -> bool:
        """A line does not wait any more. Returns whether another does."""
        priority = line.group.priority
        lines = self.lines[priority]
        if lines is not None:
            lines.pop(line, None)
            if not lines:
                self.lines[priority] = None
        return any(other is not None for other in self.lines)

    def first(self) -> JobLine | None:
        """The first line of the best priority."""
        for lines in self.lines:
            if lines is not None:
                return next(iter(lines))
        return None


class Bucket:
    """The jobs that a limit counts together: those of one key, or all of them. Owns state."""

    __slots__ = (
        "awaiting",
        "closed",
        "due",
        "first",
        "grant",
        "jobs",
        "key",
        "limit",
        "more",
        "newest",
        "next_start",
        "until",
        "uses",
    )

    def __init__(self, limit: NamedLimit, key: str) -> None:
        self.limit = limit
        self.key = key  # empty: that of all jobs
        self.jobs: dict[QueuedJob, None] = {}  # that run
        self.awaiting = 0  # waiting jobs of lines
        self.newest: dict[QueuedJob, None] | None = None  # waiting jobs that a newer one replaces
        self.next_start = 0.0  # of a rate
        self.due = 0.0  # when its timer is due; 0: it has none
        # Of a limit that holds for a group, what this server has: slots, and starts before ``until``.
        self.grant = 0 if limit.is_shared and not self.is_own else None
        self.until = 0.0 if limit.is_shared and not self.is_own else inf
        self.uses = 0  # lines and queues that refer to it
        self.first: JobLine | None = None  # the only line that waits for it
        self.more: dict[LimitedQueue, Waiters] | None = None  # if several do, all of them
        self.closed: dict[LimitedQueue, None] | None = None  # whole queues that wait for it

    @property
    def is_own(self) -> bool:
        """Whether it is that of one job, which has no key."""
        return self.key.startswith("\0")

    @property
    def capacity(self) -> int:
        """How many jobs may run at once."""
        limit = self.limit
        if self.grant is None or limit.is_rate:
            return limit.count
        return min(self.grant, limit.count)

    def is_free(self, now: float) -> bool:
        """Whether another job may start."""
        limit = self.limit
        if limit.is_rate:
            return self.next_start - limit.tolerance <= now and self.has_starts(now)
        return len(self.jobs) < (limit.count if self.grant is None else min(self.grant, limit.count))

    def has_starts(self, now: float) -> bool:
        """Whether this server has a start that it has not used. A little late is early enough.

        The half of an interval is there because sums of intervals are not exact.
        """
        limit = self.limit
        return self.next_start + limit.interval / 2 < self.until and now < self.until + limit.made_up

    def room(self, now: float) -> int:
        """How many jobs may start now."""
        limit = self.limit
        if not limit.is_rate:
            return max(self.capacity - len(self.jobs), 0)
        if not self.has_starts(now):
            return 0
        spare = now + limit.tolerance - max(self.next_start, now - limit.made_up)
        room = int(spare / limit.interval) + 1 if spare >= 0 else 0
        return (
            room if self.until == inf else min(room, round((self.until - self.next_start) / limit.interval))
        )

    def due_at(self) -> float:
        """When the next job may start, as far as the rate is concerned."""
        return self.next_start - self.limit.tolerance

    def take(self, job: QueuedJob, now: float, queued: float) -> None:
        """A job starts that has waited since ``queued``."""
        limit = self.limit
        self.jobs[job] = None
        limit.running += 1
        if limit.is_rate:
            start = max(queued, now - limit.made_up)
            if start > now:
                start = now
            if start < self.next_start:
                start = self.next_start
            self.next_start = start + limit.interval

    # ------------------------------------------------------------------------------------- who waits

    @property
    def waiting(self) -> int:
        """The jobs that need it and wait, whatever for."""
        if self.key:
            return self.awaiting
        return sum(queue.count for queue in self.limit.queues if self in queue.gates)

    @property
    def blocked(self) -> int:
        """The jobs that wait because it is full, as far as anybody has tried to start them."""
        count = self.first.count if self.first is not None else 0
        for waiters in (self.more or {}).values():
            count += sum(line.count for lines in waiters.lines if lines is not None for line in lines)
        return count + sum(queue.count for queue in self.closed or ())

    @property
    def is_awaited(self) -> bool:
        """Whether a line or a queue waits for it."""
        return self.first is not None or self.more is not None or self.closed is not None

    def add_waiter(self, line: JobLine) -> None:
        """A line waits for it."""
        if self.more is None:
            if self.first is None:
                self.first = line
                return
            former, self.first = self.first, None
            self.more = {}
            self._add(self.more, former)
        self._add(self.more, line)

    @staticmethod
    def _add(more: dict[LimitedQueue, Waiters], line: JobLine) -> None:
        queue = line.group.queue
        waiters = more.get(queue)
        if waiters is None:
            waiters = more[queue] = Waiters()
        waiters.add(line)

    def remove_waiter(self, line: JobLine) -> None:
        """A line does not wait for it any more."""
        if self.first is line:
            self.first = None
        elif self.more is not None:
            queue = line.group.queue
            waiters = self.more.get(queue)
            if waiters is not None and not waiters.remove(line):
                del self.more[queue]
                if not self.more:
                    self.more = None

    def first_of(self, queue: LimitedQueue) -> JobLine | None:
        """The line of a queue that is to go on first."""
        if self.first is not None:
            return self.first if self.first.group.queue is queue else None
        waiters = self.more.get(queue) if self.more is not None else None
        return waiters.first() if waiters is not None else None

    def firsts(self) -> list[JobLine]:
        """Of each queue, the line that is to go on first."""
        if self.first is not None:
            return [self.first]
        if self.more is None:
            return []
        lines = [waiters.first() for waiters in self.more.values()]
        return [line for line in lines if line is not None]

    @property
    def is_idle(self) -> bool:
        """Whether nothing refers to it. A rate may still have to be kept."""
        return not self.jobs and not self.uses


class NamedLimit:
    """A limit by name. Owns its buckets."""

    __slots__ = (
        "buckets",
        "count",
        "interval",
        "is_rate",
        "is_shared",
        "made_up",
        "name",
        "over",
        "paused",
        "queues",
        "running",
        "spec",
        "tolerance",
    )

    def __init__(self, name: bytes, is_shared: bool = False) -> None:
        self.name = name
        self.is_shared = is_shared  # it holds for all servers of a group
        self.spec: LimitSpec | None = None  # None: it limits nothing
        self.buckets: dict[str, Bucket] = {}  # by key
        self.queues: dict[LimitedQueue, None] = {}  # of the functions that use it
        self.running = 0  # jobs
        self.is_rate = False
        self.count = _UNLIMITED
        self.interval = 0.0  # seconds between two starts
        self.tolerance = 0.0  # seconds
        self.made_up = 0.0  # seconds
        self.over = "wait"
        self.paused = False

    def set(self, spec: LimitSpec | None) -> None:
        """Change what it is. Its buckets stay."""
        self.spec = spec
        self.is_rate = spec is not None and spec.kind == "rate" and spec.count > 0
        self.count = spec.count if spec is not None else _UNLIMITED
        self.over = spec.over if spec is not None else "wait"
        self.paused = spec is not None and spec.paused
        if self.is_rate and spec is not None:
            self.interval = spec.per / spec.count
            self.tolerance = (max(spec.burst, 1) - 1) * self.interval
            self.made_up = min(_MADE_UP, _MADE_UP_PART * spec.per)

    @property
    def in_use(self) -> bool:
        """Whether it is anything, or counts anything."""
        return self.spec is not None or bool(self.queues or self.buckets)

    def bucket(self, key: str) -> Bucket:
        """The bucket of a key, made if there is none."""
        bucket = self.buckets.get(key)
        if bucket is None:
            bucket = self.buckets[key] = Bucket(self, key)
        return bucket


def first_full(buckets: tuple[Bucket, ...], now: float) -> Bucket | None:
    """The first bucket that is full."""
    for bucket in buckets:
        if not bucket.is_free(now):
            return bucket
    return None
