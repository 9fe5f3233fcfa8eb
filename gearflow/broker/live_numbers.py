"""The numbers of live jobs in order, for those who list jobs page by page.

A job must cost nothing extra, so nobody reports the jobs that come and end. The numbers are brought up
to date when somebody lists jobs: those that were given since the last time are looked at, in steps. Numbers
of jobs that have ended stay until somebody comes across them. If too much has happened, all jobs are looked
at, as when there are many jobs at the start.

An old number comes again if a dead letter is replayed, or if a job is taken over from another server. That is
rare, so those numbers are reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

from gearflow.broker.handles import LOT_BITS, Handles
from gearflow.broker.job import JobTable
from gearflow.broker.sorted_numbers import SortedNumbers

_SLICE: Final = 2000
"""Numbers that are looked at before others get their turn."""

_FEW: Final = 50_000
"""Numbers that may be looked at one by one, however few jobs there are."""


class LiveNumbers:
    """Owns the numbers, of which some are those of jobs that have ended."""

    def __init__(self, jobs: JobTable, handles: Handles) -> None:
        self._jobs = jobs
        self._handles = handles
        self._numbers = SortedNumbers()
        self._count = 0
        self._given: dict[int, int] = {}  # by lot: up to which number all were looked at
        self._returned: list[int] | None = []  # None: all jobs have to be looked at
        self._steps: Iterator[None] | None = None  # in which this is done, for all that wait for it

    def returned(self, number: int) -> None:
        """A job is live again, or has come from another server."""
        if self._returned is not None:
            self._returned.append(number)
            if len(self._returned) > _FEW:
                self._returned = None

    def update(self) -> Iterator[None]:
        """Bring the numbers up to date, in steps."""
        while self._steps is not None or self._is_out_of_date():
            if self._steps is None:
                self._steps = self._begin_again()
            next(self._steps, None)
            yield
        for lot, last in self._handles.given().items():
            while (before := self._looked_at(lot)) < last:
                self._given[lot] = end = min(before + _SLICE, last)
                self._add([number for number in range(before + 1, end + 1) if number in self._jobs.by_number])
                yield
        while self._returned:
            some = self._returned[-_SLICE:]
            del self._returned[-_SLICE:]
            self._add(sorted(some))
            yield

    def some_after(self, number: int, limit: int) -> list[int]:
        """The first numbers that are larger."""
        return list(islice(self._numbers.after(number), limit))

    def count_after(self, number: int) -> int:
        """How many numbers are larger."""
        return self._numbers.count_after(number)

    def forget(self, number: int) -> None:
        """The job of a number has ended."""
        if number in self._numbers:
            self._numbers.remove(number)
            self._count -= 1

    def _looked_at(self, lot: int) -> int:
        return self._given.get(lot, lot << LOT_BITS)

    def _is_out_of_date(self) -> bool:
        """Whether it is quicker to look at all jobs than at what has happened."""
        live = len(self._jobs.by_number)
        new = sum(max(last - self._looked_at(lot), 0) for lot, last in self._handles.given().items())
        return self._returned is None or new > 4 * live + _FEW or self._count > 2 * live + _FEW

    def _begin_again(self) -> Iterator[None]:
        """Look at all jobs. It takes ten milliseconds to copy a million numbers, which has to be one step."""
        self._returned, given = [], self._handles.given()
        found = list(self._jobs.by_number)
        yield
        found.sort()  # most of them are in order
        numbers = SortedNumbers()
        for start in range(0, len(found), 10 * _SLICE):
            yield
            numbers.extend(found[start : start + 10 * _SLICE])
        self._numbers, self._count, self._given = numbers, len(found), given
        self._steps = None

    def _add(self, numbers: list[int]) -> None:
        """Add sorted numbers, of which some may be there."""
        if numbers and numbers[0] > self._numbers.last:
            self._numbers.extend(numbers)
            self._count += len(numbers)
            return
        for number in numbers:
            if number not in self._numbers:
                self._numbers.add(number)
                self._count += 1
