"""What is to be done at Unix times: jobs fall due, jobs expire, waits end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import Final

Do = Callable[[], None]
Holds = Callable[[], bool]

_FEW: Final = 1024
"""Entries before which it is not worth to look for those that are moot."""


class Agenda:
    """A heap of entries, each of which says whether it still holds.

    Most jobs start long before they would expire, and nobody searches for their entries then. But an entry
    keeps all that it is about in memory. So whenever there are twice as many as held the last time, those
    that do not hold are dropped.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Do, Holds]] = []
        self._count = 0
        self._many = _FEW

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, time: float, do: Do, holds: Holds) -> None:
        """Have something done at a Unix time, if it holds then."""
        if len(self._heap) >= self._many:
            self._heap = [entry for entry in self._heap if entry[3]()]
            heapify(self._heap)
            self._many = max(_FEW, 2 * len(self._heap))
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
