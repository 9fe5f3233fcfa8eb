"""What the broker keeps for one function: its waiting jobs by priority, its uniques, its sleepers."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, TypeAlias

from gearflow.broker.job import HIGH, LOW, NORMAL, JobState, QueuedJob

if TYPE_CHECKING:
    from gearflow.broker.session import Session

_FEW: Final = 32
"""Shells of abandoned jobs a function may hold before they are worth a sweep."""


Lane: TypeAlias = deque[QueuedJob]


class FunctionQueue:
    """One function's jobs and workers. Owns state; the broker alone changes it.

    A lane gives out its jobs first in, first out. An abandoned job is not searched for: it stays in its
    lane as an empty shell. No shell is ever first in a lane, so that a lane that holds something holds a
    job, and a sweep keeps the shells fewer than the jobs.
    """

    __slots__ = (
        "delayed",
        "grabbers",
        "lanes",
        "limits",
        "name",
        "parked",
        "paused",
        "running",
        "served",
        "shells",
        "sleepers",
        "storing",
        "uniques",
        "waiting",
        "wakes",
        "workers",
    )

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.lanes: tuple[Lane, Lane, Lane] = (deque(), deque(), deque())  # by priority: high, normal, low
        self.shells = 0  # in all lanes
        self.waiting = 0  # jobs in the lanes that may be given out
        self.paused = False  # none is given out
        self.parked = 0  # jobs in the lanes of a paused function
        self.running = 0
        self.delayed = 0
        self.storing = 0  # on their way to the store
        self.limits: tuple[int | None, int | None, int | None] | None = None  # of ``total``, by priority
        self.served = 0  # when a worker of several functions last took a job from here
        self.workers = 0  # connections that can do it
        self.uniques: dict[bytes, QueuedJob] = {}  # delayed, waiting or running jobs by unique key
        self.grabbers: dict[Session, None] = {}  # whose GRABs wait for a job, in the order they came
        self.sleepers: dict[Session, None] = {}  # in the order they fell asleep: the first is woken first
        self.wakes = 0  # sleepers sent a NOOP for this function that have not answered it yet

    @property
    def total(self) -> int:
        """Jobs delayed, waiting and running, and those on their way to the store."""
        return self.waiting + self.parked + self.running + self.delayed + self.storing

    @property
    def in_use(self) -> bool:
        """Whether it has jobs, workers, or limits that somebody set."""
        return bool(self.workers or self.total or self.limits or self.paused)

    def pop(self) -> QueuedJob:
        """The first job of the highest priority. There must be one (``waiting``)."""
        self.waiting -= 1
        high, normal, low = self.lanes
        lane = high or normal or low
        job = lane.popleft()
        if self.shells:
            self._strip(lane)
        return job

    def forget(self, job: QueuedJob) -> None:
        """A waiting job, already marked OVER, is not to run."""
        if self.paused:
            self.parked -= 1
        else:
            self.waiting -= 1
        self.shells += 1
        self._strip(self.lanes[job.priority])
        if self.shells > self.waiting + self.parked + _FEW:
            for lane in self.lanes:
                jobs = [job for job in lane if job.state is JobState.WAITING]
                lane.clear()
                lane.extend(jobs)
            self.shells = 0

    def pause(self) -> None:
        """Give out no jobs."""
        self.paused = True
        self.parked += self.waiting
        self.waiting = 0

    def go_on(self) -> None:
        """Give out jobs again."""
        self.paused = False
        self.waiting = self.parked
        self.parked = 0

    def _strip(self, lane: Lane) -> None:
        """Take the shells off the head of a lane."""
        while lane and lane[0].state is not JobState.WAITING:
            lane.popleft()
            self.shells -= 1

    def turn(self) -> tuple[int, int]:
        """What decides between functions that have jobs: the best priority, then who waited longest."""
        high, normal, _ = self.lanes
        return (HIGH if high else NORMAL if normal else LOW), self.served

    def full(self, priority: int) -> bool:
        """Whether another job of that priority is one too many."""
        limit = self.limits[priority] if self.limits else None
        return limit is not None and self.total >= limit
