"""Lines of jobs that need the same buckets, in fair groups. ``limited_queue`` says how they are used."""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop
from typing import TYPE_CHECKING, Final

from gearflow.broker.buckets import Bucket
from gearflow.broker.job import JobState, QueuedJob

if TYPE_CHECKING:
    from gearflow.broker.limited_queue import LimitedQueue

_WAITING: Final = JobState.WAITING

_FEW: Final = 32
"""Shells of ended jobs that a line may hold before a sweep, and entries of a heap that are over."""


class JobLine:
    """Jobs that need the same buckets. A job that ends while it waits stays as an empty shell, but never as
    the first."""

    __slots__ = ("buckets", "count", "entry", "group", "jobs", "keys", "parked_on", "shells")

    def __init__(self, group: FairGroup, keys: tuple[str, ...], buckets: tuple[Bucket, ...]) -> None:
        self.group = group
        self.keys = keys  # those of its buckets
        self.buckets = buckets  # beside the gates of the queue
        self.jobs: deque[QueuedJob] = deque()
        self.count = 0  # jobs that wait
        self.shells = 0
        self.entry = 0  # the order of its entry in the heap; 0: it has none
        self.parked_on: Bucket | None = None

    def strip(self) -> None:
        """Remove the shells from its head."""
        jobs = self.jobs
        while jobs and jobs[0].state is not _WAITING:
            jobs.popleft()
            self.shells -= 1

    def sweep(self) -> None:
        """Remove all shells if there are more of them than jobs."""
        if self.shells > self.count + _FEW:
            self.jobs = deque(job for job in self.jobs if job.state is _WAITING)
            self.shells = 0


class FairGroup:
    """The lines of a fair group in one priority."""

    __slots__ = ("heap", "in_ring", "key", "lines", "priority", "queue")

    def __init__(self, queue: LimitedQueue, priority: int, key: str) -> None:
        self.queue = queue
        self.priority = priority
        self.key = key
        self.lines: dict[tuple[str, ...], JobLine] = {}
        self.heap: list[tuple[int, JobLine]] = []  # of the armed ones; some entries are over
        self.in_ring = False

    def first(self) -> JobLine | None:
        """The armed line whose first job came first."""
        heap = self.heap
        while heap:
            order, line = heap[0]
            if line.entry == order:
                return line
            heappop(heap)
        return None

    def sweep(self) -> None:
        """Remove the entries that are over if they are many."""
        if len(self.heap) > 2 * len(self.lines) + _FEW:
            self.heap = [(order, line) for order, line in self.heap if line.entry == order]
            heapify(self.heap)


def queued_since(job: QueuedJob, now: float) -> float:
    """Since when a job has waited."""
    details = job.details
    if details is not None and details.queued:
        return details.queued
    return now if job.started else job.submitted
