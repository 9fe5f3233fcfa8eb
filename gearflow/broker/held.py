"""The jobs of one function that are set aside: kept jobs that this server may have lost, and suspects.

It takes long to find the kept jobs in a long lane. So whole lanes are set aside at once, and sorted in steps:
the attached jobs go back, and the kept ones stay. Until that is done, nothing of the function is given out,
and jobs that come are sorted with the others. So the order of the jobs stays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final, TypeAlias

from gearflow.broker.job import JobState, QueuedJob

Lane: TypeAlias = deque[QueuedJob]

_SLICE: Final = 100
"""Jobs that are sorted before others get their turn."""

_WAITING: Final = JobState.WAITING


class HeldJobs:
    """Owns the jobs that are set aside, by priority.

    As in a lane, a job that ends stays as an empty shell. ``ended`` counts them.
    """

    __slots__ = ("_attached", "ended", "is_sorted", "kept", "mixed")

    def __init__(self) -> None:
        self.kept: list[Lane] = [deque(), deque(), deque()]
        self.mixed: list[Lane] = [deque(), deque(), deque()]  # those that are not sorted yet
        self.is_sorted = True
        self.ended = [0, 0, 0]
        self._attached: list[Lane] = [deque(), deque(), deque()]

    def waiting_of(self, priority: int) -> int:
        """The jobs of a priority."""
        lanes = self.kept, self.mixed, self._attached
        return sum(len(lane[priority]) for lane in lanes) - self.ended[priority]

    @property
    def waiting(self) -> int:
        """All jobs."""
        return sum(map(self.waiting_of, range(3)))

    def jobs(self) -> Iterator[QueuedJob]:
        """All jobs."""
        for lanes in (self.kept, self.mixed, self._attached):
            for lane in lanes:
                for job in lane:
                    if job.state is _WAITING:
                        yield job

    def firsts(self) -> Iterator[QueuedJob]:
        """The first job of each lane."""
        for lanes in (self.kept, self.mixed, self._attached):
            for lane in lanes:
                for job in lane:
                    if job.state is _WAITING:
                        yield job
                        break

    def add_lanes(self, lanes: list[Lane], shells_of: list[int]) -> None:
        """Set lanes aside. Nothing else is there yet."""
        self.mixed = [lane or deque() for lane in lanes]
        self.ended = shells_of
        self.is_sorted = False

    def takes(self, job: QueuedJob) -> bool:
        """Take a job that is queued, if it must not be given out."""
        if not self.is_sorted:
            self.mixed[job.priority].append(job)
            return True
        if job.kept:
            self.kept[job.priority].append(job)
        return job.kept

    def forgets(self, job: QueuedJob) -> bool:
        """A job has ended, while it waited. Whether it was here."""
        if self.is_sorted and not job.kept:
            return False
        self.ended[job.priority] += 1
        return True

    def sort(self) -> Iterator[None]:
        """Sort all jobs but for the last look at the attached ones, in steps."""
        for priority, lane in enumerate(self.mixed):
            while lane:
                for _ in range(min(_SLICE, len(lane))):
                    job = lane.popleft()
                    if job.state is not _WAITING:
                        self.ended[priority] -= 1
                    elif job.kept:
                        self.kept[priority].append(job)
                    else:
                        self._attached[priority].append(job)
                yield

    def take_attached(self) -> list[Lane] | None:
        """The attached jobs, if all are sorted. A few may have ended, or become kept jobs, meanwhile."""
        if any(self.mixed):
            return None
        self.is_sorted = True
        lanes: list[Lane] = []
        for priority, sorted_before in enumerate(self._attached):
            lane: Lane = deque()
            for job in sorted_before:
                if job.state is not _WAITING:
                    self.ended[priority] -= 1
                elif job.kept:
                    self.kept[priority].append(job)
                else:
                    lane.append(job)
            lanes.append(lane)
            sorted_before.clear()
        return lanes


class SuspectLanes:
    """The suspects of one function that wait (``suspects``).

    Owns their order: by priority, then as they came. None of them is over.
    """

    __slots__ = ("_lanes",)

    def __init__(self) -> None:
        self._lanes: list[dict[QueuedJob, None]] = [{}, {}, {}]

    def __len__(self) -> int:
        return sum(map(len, self._lanes))

    def __iter__(self) -> Iterator[QueuedJob]:
        for lane in self._lanes:
            yield from lane

    def __contains__(self, job: object) -> bool:
        return isinstance(job, QueuedJob) and job in self._lanes[job.priority]

    def add(self, job: QueuedJob) -> None:
        """A suspect waits."""
        self._lanes[job.priority][job] = None

    def remove(self, job: QueuedJob) -> bool:
        """A job does not wait any more. Whether it was here."""
        lane = self._lanes[job.priority]
        if job not in lane:
            return False
        del lane[job]
        return True

    def first(self) -> QueuedJob | None:
        """The one whose turn it is."""
        for lane in self._lanes:
            if lane:
                return next(iter(lane))
        return None

    def firsts(self) -> list[QueuedJob]:
        """The first one of each priority."""
        return [next(iter(lane)) for lane in self._lanes if lane]

    def count(self, priority: int) -> int:
        """How many of a priority wait."""
        return len(self._lanes[priority])
