"""Time, as the shell tells it to the broker, and what is to happen at a certain time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import Final

from gearflow.broker.job import QueuedJob
from gearflow.broker.session import Session

Action = Callable[[], None]
IsValid = Callable[[], bool]

_FEW_TIMERS: Final = 1024
"""The queue is not searched for invalid entries while it has fewer entries than this."""

_TESTS: Final = 3
"""Entries that are tested for each new one. So invalid ones go faster than new ones come."""

_FEW_TIMEOUTS: Final = 64
"""Entries of ended jobs that may stay in the heap before a sweep."""


def _nothing() -> None:
    """The action of an empty entry."""


def _never() -> bool:
    return False


class Clock:
    """The time of the present call of the broker. The shell sets it; everything else only reads it."""

    __slots__ = ("now", "offset")

    def __init__(self) -> None:
        self.now = 0.0  # seconds of a monotonic clock
        self.offset = 0.0  # Unix time minus that clock

    def unix(self) -> float:
        """The time as Unix time."""
        return self.now + self.offset


class TimerQueue:
    """A heap of actions at Unix times. Each entry has a test that says whether it is still valid.

    Most jobs start long before they would expire, and nothing removes their entries then. But an entry keeps
    everything that it refers to in memory. So with each new entry a few others are tested, in turn. One that
    is invalid is emptied in its place. The empty ones are removed when they are half of all.
    """

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, Action, IsValid]] = []  # always this list
        self._count = 0
        self._tested = 0  # the entries before this place
        self._empty = 0

    def __len__(self) -> int:
        return len(self.heap)

    def add(self, time: float, action: Action, is_valid: IsValid) -> None:
        """Have an action carried out at a Unix time if it is valid then."""
        heap = self.heap
        if len(heap) >= _FEW_TIMERS:
            for _ in range(_TESTS):
                self._test_next()
            if 2 * self._empty > len(heap):
                heap[:] = [entry for entry in heap if entry[2] is not _nothing]
                heapify(heap)
                self._empty = 0
        self._count += 1
        heappush(heap, (time, self._count, action, is_valid))

    def _test_next(self) -> None:
        """Empty the entry whose turn it is if it is invalid."""
        heap = self.heap
        place = self._tested if self._tested < len(heap) else 0
        self._tested = place + 1
        time, count, action, is_valid = heap[place]
        if action is not _nothing and not is_valid():
            heap[place] = time, count, _nothing, _never  # in the same order
            self._empty += 1

    def due(self, now: float) -> Iterator[Action]:
        """The actions that are due; each is tested after those before it were carried out."""
        heap = self.heap
        while heap and heap[0][0] <= now:
            _, _, action, is_valid = heappop(heap)
            if action is _nothing:
                self._empty -= 1
            elif is_valid():
                yield action

    def next_due(self) -> float | None:
        """The Unix time of the next entry."""
        return self.heap[0][0] if self.heap else None


class JobTimeouts:
    """When the server takes running jobs from workers that set a time limit (CAN_DO_TIMEOUT).

    A heap of deadlines. A job's own ``deadline`` says which entry is valid. Most jobs end in time, so their
    entries are not searched for: a sweep keeps the stale entries fewer than the others.
    """

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, QueuedJob, Session]] = []  # always this list
        self._armed = 0  # jobs that have a deadline
        self._by_worker: dict[Session, dict[QueuedJob, None]] = {}  # those jobs
        self._count = 0

    def arm(self, job: QueuedJob, worker: Session, deadline: float) -> None:
        """The job was just assigned to the worker, and has until then."""
        job.ensure_details().deadline = deadline
        self._armed += 1
        self._by_worker.setdefault(worker, {})[job] = None
        self._count += 1
        heappush(self.heap, (deadline, self._count, job, worker))

    def disarm(self, job: QueuedJob) -> None:
        """The job has left its worker. It need not have a deadline."""
        details = job.details
        if details is None or not details.deadline:
            return
        assert job.worker is not None
        self._disarmed(job, job.worker)
        if len(self.heap) > 2 * self._armed + _FEW_TIMEOUTS:
            self.heap[:] = [entry for entry in self.heap if entry[2].deadline == entry[0]]
            heapify(self.heap)

    def expired(self, now: float) -> Iterator[tuple[QueuedJob, Session]]:
        """The jobs whose time is over, disarmed, with their workers."""
        while (due := self.next_due()) is not None and due <= now:
            _, _, job, worker = heappop(self.heap)
            self._disarmed(job, worker)
            yield job, worker

    def disarm_all(self, worker: Session) -> None:
        """The worker keeps its jobs for as long as it likes."""
        for job in list(self._by_worker.get(worker, ())):
            self.disarm(job)

    def _disarmed(self, job: QueuedJob, worker: Session) -> None:
        job.ensure_details().deadline = 0.0
        self._armed -= 1
        jobs = self._by_worker[worker]
        del jobs[job]
        if not jobs:
            del self._by_worker[worker]

    def next_due(self) -> float | None:
        """The earliest deadline."""
        heap = self.heap
        while heap and heap[0][2].deadline != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else None
