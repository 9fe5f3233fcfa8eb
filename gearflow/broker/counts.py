"""What has happened to the jobs of each function since the server started.

The hot paths count as little as possible. What follows from other figures is derived: each run that began is
in ``wait``, each job that ended while it ran is in ``run``, and the jobs that are there now are known anyway
(``FunctionCounts.submitted``). So a job that is submitted, runs and succeeds is counted twice in all.
"""

from __future__ import annotations

from math import inf
from typing import Final

from gearflow.broker.storage import JobOutcome
from gearflow.protocol.histograms import BUCKETS
from gearflow.protocol.metrics import OTHER

MOST: Final = 20_000
"""Functions with queues that have counts of their own. All others share those of ``OTHER``."""

KEPT: Final = 10_000
"""Functions without queues whose counts are kept: those whose queues went last."""

_OTHER: Final = OTHER.encode()

TALLIED: Final = ("submitted", "started", "succeeded", "failed", "cancelled", "expired", "dead", "retried")
"""The numbers in a ``FunctionTally``."""

_NONE: Final[list[int]] = []
"""In place of counts where nothing was counted, because a name of a function should cost little."""


class Durations:
    """A histogram: how often something took how long. ``protocol.metrics`` has its buckets."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.sum = 0.0
        self.counts = _NONE
        """By bucket, without the buckets behind the last one that was needed."""

    def add(self, seconds: float) -> None:
        """Something took so many seconds."""
        self.sum += seconds
        bucket = int(seconds * 1000).bit_length()
        try:
            self.counts[bucket] += 1
        except IndexError:
            self.counts = _sum(self.counts, [0] * min(bucket, BUCKETS - 1) + [1])

    def merge(self, other: Durations) -> None:
        """Add what another one has counted."""
        self.sum += other.sum
        self.counts = _sum(self.counts, other.counts)

    @property
    def total(self) -> int:
        """How often it happened."""
        return sum(self.counts)


class FunctionTally:
    """What has happened to the jobs of a function until a certain time, or in a certain time."""

    __slots__ = ("numbers", "run", "wait")

    def __init__(self, numbers: list[int], wait: list[int], run: list[int]) -> None:
        self.numbers = numbers  # in the order of ``TALLIED``
        self.wait = wait
        self.run = run

    def since(self, before: FunctionTally | None) -> FunctionTally:
        """What has happened since an earlier time."""
        if before is None:
            return self
        numbers = [number - earlier for number, earlier in zip(self.numbers, before.numbers, strict=True)]
        return FunctionTally(numbers, _difference(self.wait, before.wait), _difference(self.run, before.run))

    def merge(self, other: FunctionTally) -> FunctionTally:
        """The sum."""
        numbers = [one + two for one, two in zip(self.numbers, other.numbers, strict=True)]
        return FunctionTally(numbers, _sum(self.wait, other.wait), _sum(self.run, other.run))


def _difference(counts: list[int], before: list[int]) -> list[int]:
    """The difference of two histograms, of which the second has no bucket that the first has not."""
    found = [count - earlier for count, earlier in zip(counts, before, strict=False)] + counts[len(before) :]
    while found and not found[-1]:
        found.pop()
    return found


def _sum(one: list[int], two: list[int]) -> list[int]:
    short, long = (one, two) if len(one) < len(two) else (two, one)
    return [count + other for count, other in zip(short, long, strict=False)] + long[len(short) :]


class FunctionCounts:
    """The counts of one function, or of all those of ``OTHER`` together. Owns them.

    They outlive the ``FunctionQueue``, which a name loses when nobody has used it for long.
    """

    __slots__ = (
        "before",
        "cancelled",
        "dead",
        "expired",
        "failed",
        "fetched",
        "joined",
        "lingering",
        "name",
        "passed_on",
        "restored",
        "retried",
        "run",
        "unsuccessful",
        "wait",
    )

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.wait = Durations()  # of each run that began
        self.run = Durations()  # of each job that ended while it ran
        self.unsuccessful = 0  # those of them that did not succeed
        self.lingering = 0  # runs that go on although their job was cancelled
        self.joined = 0
        self.restored = 0
        self.passed_on = 0
        self.failed = 0
        self.cancelled = 0
        self.expired = 0
        self.dead = 0
        self.retried = 0
        self.fetched = 0  # ends of jobs that calls have brought to their callers
        self.before: FunctionTally | None = None  # at the start of this minute: see ``history``

    @property
    def started(self) -> int:
        """Runs that began."""
        return self.wait.total

    @property
    def succeeded(self) -> int:
        """Jobs that ended with a result."""
        return self.run.total - self.unsuccessful

    @property
    def ended(self) -> int:
        """Jobs that ended, in whatever way."""
        return self.succeeded + self.failed + self.cancelled + self.expired + self.dead

    def submitted(self, there: int) -> int:
        """Jobs that were accepted. ``there`` are those that are delayed, waiting or running now."""
        return self.ended + self.passed_on + there - self.restored

    def tally(self, there: int) -> FunctionTally:
        """What has happened so far. ``there`` are the jobs as for ``submitted``."""
        numbers = [
            self.submitted(there),
            self.started,
            self.succeeded,
            self.failed,
            self.cancelled,
            self.expired,
            self.dead,
            self.retried,
        ]
        return FunctionTally(numbers, self.wait.counts.copy(), self.run.counts.copy())

    @property
    def is_empty(self) -> bool:
        """Whether nothing has happened to a job of the function, if it has none."""
        return not (self.ended or self.wait.total or self.joined or self.passed_on or self.fetched)

    def end(self, outcome: JobOutcome, leaves_letter: bool) -> None:
        """A job has ended without success. If it ran, ``stop`` is called too."""
        if outcome is JobOutcome.CANCELLED:
            self.cancelled += 1
        elif outcome is JobOutcome.EXPIRED:
            self.expired += 1
        elif leaves_letter:
            self.dead += 1
        else:
            self.failed += 1

    def stop(self, seconds: float) -> None:
        """A job that ran for so long has ended without success."""
        self.run.add(seconds)
        self.unsuccessful += 1

    def merge(self, other: FunctionCounts) -> None:
        """Add the counts of a function that has none of its own any more."""
        self.wait.merge(other.wait)
        self.run.merge(other.run)
        self.unsuccessful += other.unsuccessful
        self.lingering += other.lingering
        self.joined += other.joined
        self.restored += other.restored
        self.passed_on += other.passed_on
        self.failed += other.failed
        self.cancelled += other.cancelled
        self.expired += other.expired
        self.dead += other.dead
        self.retried += other.retried
        self.fetched += other.fetched
        if other.before is not None:
            self.before = other.before if self.before is None else self.before.merge(other.before)


class ServerCounts:
    """What the server has done since it started, beside the counts of functions and of the journal."""

    __slots__ = ("accepted", "dead", "dead_at", "dead_since", "fetched", "received", "sent", "started")

    def __init__(self) -> None:
        self.started = 0.0  # Unix time; the shell sets it
        self.accepted = 0  # connections
        self.fetched = 0  # ends of jobs that calls have brought to their callers
        self.received = 0  # bytes from connections
        self.sent = 0  # bytes that the shell has written to connections
        self.dead = 0  # letters in the store, as it has said
        self.dead_at = -inf  # when it was asked, by the broker's clock
        self.dead_since = -inf  # when it answered


class JobCounts:
    """The counts of functions that have no queue, and those that several functions share.

    Names may be made up, one for each reply, so the table is bounded. What it no longer has of a function is
    in the counts of ``OTHER``, so sums stay exact.
    """

    def __init__(self) -> None:
        self.most = MOST
        self.most_kept = KEPT
        self.kept: dict[bytes, FunctionCounts] = {}
        """By name, those whose queues went last at the end."""
        self.other: FunctionCounts | None = None
        """Those of ``OTHER``, once they are needed. A function of that name has them too."""

    def take(self, name: bytes, queues: int) -> FunctionCounts:
        """The counts of a function whose queue is made, beside so many queues."""
        if queues >= self.most or name == _OTHER:
            return self._ensure_other()
        counts = self.kept.pop(name, None)
        return counts if counts is not None else FunctionCounts(name)

    def keep(self, counts: FunctionCounts) -> None:
        """A function has no queue any more."""
        if counts is self.other or counts.is_empty:
            return
        self.kept[counts.name] = counts
        if len(self.kept) > self.most_kept:
            oldest = next(iter(self.kept))
            self._ensure_other().merge(self.kept.pop(oldest))

    def _ensure_other(self) -> FunctionCounts:
        if self.other is None:
            self.other = FunctionCounts(_OTHER)
        return self.other
