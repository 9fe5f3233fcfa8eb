"""Functions: the waiting jobs of each by priority, its uniques, its sleeping workers."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, TypeAlias

from gearflow.broker.job import HIGH, LOW, NORMAL, JobState, QueuedJob
from gearflow.broker.limits import Rejected, SizeLimits
from gearflow.broker.storage import Paused
from gearflow.errors import RemoteProtocolError
from gearflow.protocol.constants import RESERVED_PREFIX

if TYPE_CHECKING:
    from gearflow.broker.session import Session

IDLE: Final = 10_000
"""Names of functions that are remembered although nobody uses them. Beyond that they are dropped."""

_FEW: Final = 32
"""Shells of ended jobs that a function may hold before a sweep."""


Lane: TypeAlias = deque[QueuedJob]


class FunctionQueue:
    """One function's jobs and workers. Owns state.

    A lane gives out its jobs first in, first out. A job that ends while it waits is not searched for: it
    stays in its lane as an empty shell. No shell is ever first in a lane, so a lane that is not empty has a
    job, and a sweep keeps the shells fewer than the jobs.
    """

    __slots__ = (
        "delayed",
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
        "waiting_grabs",
        "wakes",
        "workers",
    )

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.lanes: tuple[Lane, Lane, Lane] = (deque(), deque(), deque())  # by priority: high, normal, low
        self.shells = 0  # in all lanes
        self.waiting = 0  # jobs in the lanes that may be given out
        self.paused = False  # no job is given out
        self.parked = 0  # jobs in the lanes of a paused function
        self.running = 0
        self.delayed = 0
        self.storing = 0  # on their way to the store
        self.limits: tuple[int | None, int | None, int | None] | None = None  # of ``total``, by priority
        self.served = 0  # when a worker of several functions last took a job from here
        self.workers = 0  # connections that can do it
        self.uniques: dict[bytes, QueuedJob] = {}  # delayed, waiting or running jobs by unique key
        self.waiting_grabs: dict[Session, None] = {}  # whose GRABs are held, in the order they came
        self.sleepers: dict[Session, None] = {}  # in the order of their PRE_SLEEP: the first is woken first
        self.wakes = 0  # sleepers that were sent NOOP for this function, and have not reacted yet

    @property
    def total(self) -> int:
        """Jobs delayed, waiting and running, and those on their way to the store."""
        return self.waiting + self.parked + self.running + self.delayed + self.storing

    @property
    def in_use(self) -> bool:
        """Whether it has jobs, workers, or settings."""
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
        """A waiting job, already marked OVER, leaves its lane."""
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
        """Give out no more jobs."""
        self.paused = True
        self.parked += self.waiting
        self.waiting = 0

    def resume(self) -> None:
        """Give out jobs again."""
        self.paused = False
        self.waiting = self.parked
        self.parked = 0

    def _strip(self, lane: Lane) -> None:
        """Remove the shells from the head of a lane."""
        while lane and lane[0].state is not JobState.WAITING:
            lane.popleft()
            self.shells -= 1

    def turn(self) -> tuple[int, int]:
        """The order of functions that have jobs: the best priority first, then the longest unserved."""
        high, normal, _ = self.lanes
        return (HIGH if high else NORMAL if normal else LOW), self.served

    def full(self, priority: int) -> bool:
        """Whether the function's limit admits no other job of that priority."""
        limit = self.limits[priority] if self.limits else None
        return limit is not None and self.total >= limit


class Functions:
    """All functions, by name. Owns the table."""

    def __init__(self, limits: SizeLimits) -> None:
        self.by_name: dict[bytes, FunctionQueue] = {}
        self._limits = limits
        self._sweep_at = IDLE

    def ensure(self, name: bytes) -> FunctionQueue:
        """The function of that name, made known if it is not.

        Raises:
            Rejected: The name is reserved.
            RemoteProtocolError: The name is too long.
        """
        function = self.by_name.get(name)
        if function is not None:
            return function
        if name.startswith(RESERVED_PREFIX):
            raise Rejected(b"INVALID_FUNCTION_NAME", b"a reserved function is for foreground submissions")
        if len(name) > self._limits.function:
            limit = self._limits.function
            raise RemoteProtocolError(f"a function name of {len(name)} bytes is over the limit of {limit}")
        if len(self.by_name) >= self._sweep_at:
            for idle in [idle for idle, function in self.by_name.items() if not function.in_use]:
                del self.by_name[idle]
            self._sweep_at = max(IDLE, 2 * len(self.by_name))
        function = self.by_name[name] = FunctionQueue(name)
        return function

    def limit(self, name: bytes, high: int | None, normal: int | None, low: int | None) -> None:
        """Cap a function's jobs, by the priority of a submission; an unknown function is ignored.

        A submission is refused while the function has so many jobs, or more, of any priority.
        """
        function = self.by_name.get(name)
        if function is not None:
            limits = (high, normal, low)
            function.limits = None if limits == (None, None, None) else limits

    def drop(self, name: bytes) -> bool:
        """Forget a function. False if it has workers or jobs. Raises KeyError if it is not known."""
        function = self.by_name[name]
        if function.workers or function.total:
            return False
        del self.by_name[name]
        return True

    def paused(self) -> Paused:
        """The functions that are paused, for the store."""
        return Paused(tuple(function.name for function in self.by_name.values() if function.paused))

    def find_unique(self, unique: bytes) -> QueuedJob | None:
        """The newest live job of a unique in any function, as in gearmand."""
        found = [f.uniques[unique] for f in self.by_name.values() if unique in f.uniques]
        return max(found, key=lambda job: job.number, default=None)
