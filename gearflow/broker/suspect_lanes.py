"""The suspects of one function that wait: jobs whose next death would be their last (``suspects``)."""

from __future__ import annotations

from collections.abc import Iterator

from gearflow.broker.job import QueuedJob


class SuspectLanes:
    """Owns the order of the suspects: by priority, then as they came. None of them is over."""

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

    def count(self, priority: int) -> int:
        """How many of a priority wait."""
        return len(self._lanes[priority])
