"""Results in memory, in the order in which their jobs ended.

A list of them is read page by page from any place on, while others come and go. So each has a place, which
grows, and they lie in chunks by their places. A result costs two insertions into plain dicts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gearflow.broker.storage import JobRecord

_BITS: Final = 6
"""A chunk has places with the same high bits: so many low bits are its own. It is short, because a dict whose
first items are gone looks at all of them for the next one."""

_LOW: Final = (1 << _BITS) - 1

Chunk = dict[int, JobRecord]


class EndedRecords:
    """Owns results. The job of a number has one at most."""

    def __init__(self) -> None:
        self.places: dict[int, int] = {}
        """By number. The store asks it itself whether a result is there, once for each job that ends."""
        self._last: Chunk = {}  # which is not removed while it is empty
        self._chunks = {0: self._last}  # by the high bits of their places, in this order
        self._next = 1
        self._first = 0  # the high bits of the chunk that was the first

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, number: int) -> bool:
        return number in self.places

    def __getitem__(self, number: int) -> JobRecord:
        place = self.places[number]
        return self._chunks[place >> _BITS][place]

    def get(self, number: int) -> JobRecord | None:
        """The result of a job, if there is one."""
        place = self.places.get(number)
        return None if place is None else self._chunks[place >> _BITS][place]

    def add(self, record: JobRecord) -> None:
        """A job has ended, of which there is no result."""
        place = self._next
        self._next = place + 1
        if place & _LOW:
            self._last[place] = record
        else:
            if not self._last:
                del self._chunks[(place - 1) >> _BITS]
            self._last = self._chunks[place >> _BITS] = {place: record}
        self.places[record[0]] = place

    def remove(self, number: int) -> None:
        """Remove the result of a job, which is there."""
        place = self.places.pop(number)
        chunk = self._chunks[place >> _BITS]
        del chunk[place]
        if chunk is self._last:
            return
        if not chunk:
            del self._chunks[place >> _BITS]
        elif not (count := len(chunk)) & count + 1:  # a dict keeps its size until it is copied
            self._chunks[place >> _BITS] = dict(chunk)

    def oldest(self) -> JobRecord | None:
        """The result of the job that ended first."""
        first = self._chunks.get(self._first)
        if not first:
            for high, first in self._chunks.items():
                if first:
                    self._first = high
                    break
        return next(iter(first.values())) if first else None

    def count_before(self, place: int) -> int:
        """About how many results there are before a place."""
        first = max(next(iter(self._chunks)) << _BITS, 1)
        return min(max(place - first, 0), len(self.places))

    def before(self, place: int | None, until: float | None) -> Iterator[tuple[int, JobRecord]]:
        """The results before a place, the last one first, with their places.

        Args:
            place: The place. None stands for one behind all others.
            until: Unix time. Of those that ended then or later, some may be left out.
        """
        for high in reversed(self._chunks):
            chunk = self._chunks[high]
            if not chunk or (place is not None and high << _BITS >= place):
                continue
            if until is not None and next(iter(chunk.values())).ended >= until:
                continue
            for each in reversed(chunk):
                if place is None or each < place:
                    yield each, chunk[each]
