"""Numbers in their order, of which any may come or go."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

_LONGEST: Final = 2000
"""Numbers in a list of ``SortedNumbers``."""


class SortedNumbers:
    """Numbers in their order, in lists that are short enough to be changed in the middle."""

    def __init__(self) -> None:
        self._lists: list[list[int]] = []
        self._last: list[int] = []  # of each list

    def __bool__(self) -> bool:
        return bool(self._lists)

    def __contains__(self, number: int) -> bool:
        place = bisect_left(self._last, number)
        if place == len(self._last):
            return False
        numbers = self._lists[place]
        return numbers[bisect_left(numbers, number)] == number

    @property
    def last(self) -> int:
        """The largest number, or 0 if there is none."""
        return self._last[-1] if self._last else 0

    def add(self, number: int) -> None:
        """Add a number that is not there."""
        place = min(bisect_left(self._last, number), len(self._last) - 1)
        if place < 0:
            self._lists.append([number])
            self._last.append(number)
            return
        numbers = self._lists[place]
        insort(numbers, number)
        if len(numbers) > _LONGEST:
            half = len(numbers) // 2
            self._lists[place : place + 1] = numbers[:half], numbers[half:]
            self._last[place : place + 1] = numbers[half - 1], numbers[-1]
        else:
            self._last[place] = numbers[-1]

    def remove(self, number: int) -> None:
        """Remove a number that is there."""
        place = bisect_left(self._last, number)
        numbers = self._lists[place]
        del numbers[bisect_left(numbers, number)]
        if numbers:
            self._last[place] = numbers[-1]
        else:
            del self._lists[place], self._last[place]

    def extend(self, numbers: Sequence[int]) -> None:
        """Add numbers that are sorted, and larger than all others."""
        room = _LONGEST - len(self._lists[-1]) if self._lists else 0
        if room > 0 and numbers:
            self._lists[-1] += numbers[:room]
            self._last[-1] = self._lists[-1][-1]
        for start in range(max(room, 0), len(numbers), _LONGEST):
            some = list(numbers[start : start + _LONGEST])
            self._lists.append(some)
            self._last.append(some[-1])

    def after(self, number: int) -> Iterator[int]:
        """The numbers that are larger."""
        place = bisect_right(self._last, number)
        for index in range(place, len(self._lists)):
            numbers = self._lists[index]
            yield from islice(numbers, bisect_right(numbers, number), None)

    def count_after(self, number: int) -> int:
        """How many numbers are larger."""
        place = bisect_right(self._last, number)
        lists = self._lists[place:]
        return sum(map(len, lists)) - (bisect_right(lists[0], number) if lists else 0)

    def before(self, number: int) -> Iterator[int]:
        """The numbers that are smaller, the largest first."""
        place = bisect_left(self._last, number)
        for index in range(min(place, len(self._lists) - 1), -1, -1):
            numbers = self._lists[index]
            for at in range(bisect_left(numbers, number) - 1, -1, -1):
                yield numbers[at]
