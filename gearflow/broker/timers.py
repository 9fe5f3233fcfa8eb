"""Running jobs that their workers asked to have taken away after a time (CAN_DO_TIMEOUT).

What is to be done at Unix times: jobs fall due, jobs expire, waits end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import Final

from gearflow.broker.job import QueuedJob
from gearflow.broker.session import Session

Do = Callable[[], None]
Holds = Callable[[], bool]

_FEW_TIMERS: Final = 1024
"""Entries before which it is not worth to look for those that are moot."""


class TimerQueue:
    """A heap of entries, each of which says whether it still holds.

    Most jobs start long before they would expire, and nobody searches for their entries then. But an entry
    keeps all that it is about in memory. So whenever there are twice as many as held the last time, those
    that do not hold are dropped.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Do, Holds]] = []
        self._count = 0
        self._many = _FEW_TIMERS

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, time: float, do: Do, holds: Holds) -> None:
        """Have something done at a Unix time, if it holds then."""
        if len(self._heap) >= self._many:
            self._heap = [entry for entry in self._heap if entry[3]()]
            heapify(self._heap)
            self._many = max(_FEW_TIMERS, 2 * len(self._heap))
        self._count += 1
        heappush(self._heap, (time, self._count, do, holds))

    def due(self, now: float) -> Iterator[Do]:
        """What is to be done now; each is looked at when those before it are done."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            _, _, do, holds = heappop(heap)
            if holds():
                yield do
            heap = self._heap

    def next_due(self) -> float | None:
        """When the next entry's time comes, as a Unix time."""
        return self._heap[0][0] if self._heap else None


_FEW_TIMEOUTS: Final = 64
"""Entries of ended jobs that may stay in the heap before they are worth a sweep."""


class JobTimeouts:
    """A heap of deadlines. A job's own ``deadline`` says which entry is its: entries of others are stale.

    Most jobs end in time, so their entries are not searched for: a sweep keeps the stale ones fewer than
    the others.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, QueuedJob, Session]] = []
        self._armed = 0  # jobs that have a deadline
        self._count = 0

    def arm(self, job: QueuedJob, worker: Session, deadline: float) -> None:
        """The job, just given to the worker, has until then."""
        job.more().deadline = deadline
        self._armed += 1
        self._count += 1
        heappush(self._heap, (deadline, self._count, job, worker))

    def disarm(self, job: QueuedJob) -> None:
        """The job, which has a deadline, has left its worker."""
        job.more().deadline = 0.0
        self._armed -= 1
        if len(self._heap) > 2 * self._armed + _FEW_TIMEOUTS:
            self._heap = [entry for entry in self._heap if entry[2].deadline == entry[0]]
            heapify(self._heap)

    def expired(self, now: float) -> Iterator[tuple[QueuedJob, Session]]:
        """The jobs whose time is over, disarmed, with the workers that have them."""
        while (due := self.next_due()) is not None and due <= now:
            _, _, job, worker = heappop(self._heap)
            job.more().deadline = 0.0
            self._armed -= 1
            yield job, worker

    def next_due(self) -> float | None:
        """When the next job's time is over."""
        heap = self._heap
        while heap and heap[0][2].deadline != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else None
