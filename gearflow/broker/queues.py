"""What the broker keeps for one function: its waiting jobs by priority, its uniques, its sleepers."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from gearflow.broker.job import HIGH, LOW, NORMAL, Job, JobState

if TYPE_CHECKING:
    from gearflow.broker.sessions import Session

_FEW: Final = 32
"""Abandoned jobs a lane may hold before it is worth a sweep."""


class Lane:
    """The waiting jobs of one priority, first in first out. Owns state.

    An abandoned job is not searched for: it is counted out, keeps its place as an empty shell, and is
    passed over when its turn comes. A sweep keeps the shells fewer than the jobs.
    """

    __slots__ = ("_jobs", "live")

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self.live = 0  # jobs that are still to run

    def push(self, job: Job) -> None:
        self._jobs.append(job)
        self.live += 1

    def pop(self) -> Job:
        """The next job. There must be one (``live``)."""
        self.live -= 1
        popleft = self._jobs.popleft
        while (job := popleft()).state is not JobState.WAITING:
            pass
        return job

    def forget(self) -> None:
        """A job of this lane, already marked OVER, is no longer to run."""
        self.live -= 1
        if len(self._jobs) > 2 * self.live + _FEW:
            self._jobs = deque(job for job in self._jobs if job.state is JobState.WAITING)


class FunctionQueue:
    """One function's jobs and workers. Owns state; the broker alone changes it."""

    __slots__ = (
        "delayed",
        "lanes",
        "limits",
        "name",
        "running",
        "served",
        "sleepers",
        "uniques",
        "waiting",
        "wakes",
        "workers",
    )

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.lanes = (Lane(), Lane(), Lane())  # by priority: high, normal, low
        self.waiting = 0  # jobs in the lanes
        self.running = 0
        self.delayed = 0
        self.limits: tuple[int | None, int | None, int | None] | None = None  # of ``total``, by priority
        self.served = 0  # when a worker of several functions last took a job from here
        self.workers = 0  # connections that can do it
        self.uniques: dict[bytes, Job] = {}  # delayed, waiting or running jobs by unique key
        self.sleepers: dict[Session, None] = {}  # in the order they fell asleep: the first is woken first
        self.wakes = 0  # sleepers sent a NOOP for this function that have not answered it yet

    @property
    def total(self) -> int:
        """Jobs delayed, waiting and running."""
        return self.waiting + self.running + self.delayed

    def push(self, job: Job) -> None:
        """Queue a job behind those of its priority."""
        self.lanes[job.priority].push(job)
        self.waiting += 1

    def pop(self) -> Job:
        """The first job of the highest priority. There must be one (``waiting``)."""
        self.waiting -= 1
        high, normal, low = self.lanes
        if high.live:
            return high.pop()
        if normal.live:
            return normal.pop()
        return low.pop()

    def turn(self) -> tuple[int, int]:
        """What decides between functions that have jobs: the best priority, then who waited longest."""
        high, normal, _ = self.lanes
        return (HIGH if high.live else NORMAL if normal.live else LOW), self.served

    def full(self, priority: int) -> bool:
        """Whether another job of that priority is one too many."""
        limit = self.limits[priority] if self.limits else None
        return limit is not None and self.total >= limit

    def forget(self, job: Job) -> None:
        """Take a waiting job, already marked OVER, out of the count."""
        self.lanes[job.priority].forget()
        self.waiting -= 1
