"""Where the results of a unique are: in memory, eight bytes for each that is kept.

An index in the file would cost more than the result itself: hashes are spread over all of an index, so that
each result would have a page of it written (measured: with 100 results in a group, 10 us for each). So the
file has the hash beside each result, and this is built from it at the start.

What comes is gathered in a dict. When that is large, it becomes a sorted array; a unique is looked for in one
array after the other, from the youngest: about a microsecond for each of them. What is found may be gone, or
be of another unique with the same hash: whoever asks must look at the result itself. An array goes when all
its results are gone.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import Final
from zlib import crc32

GENERATION: Final = 1 << 13
"""Different hashes in an array: to sort them takes two milliseconds."""


def token_of(function: bytes, unique: bytes) -> int:
    """The hash by which a result is found; 0 for no unique."""
    return (crc32(b"%b\0%b" % (function, unique)) or 1) if unique else 0


class Uniques:
    """Places of results by their tokens."""

    def __init__(self) -> None:
        self._young: dict[int, int | list[int]] = {}  # places
        self._old: list[tuple[int, int, array[int]]] = []  # first and last place; token << 32 | place - first

    def add(self, token: int, place: int) -> None:
        """A result is at this place, which is behind all others."""
        before = self._young.setdefault(token, place)
        if before is not place:
            if isinstance(before, list):
                before.append(place)
            else:
                self._young[token] = [before, place]
        elif len(self._young) >= GENERATION:
            self._age()

    def find(self, token: int) -> Iterator[int]:
        """Where there may be a result, the youngest first."""
        young = self._young.get(token, [])
        yield from [young] if isinstance(young, int) else reversed(young)
        for first, _, entries in reversed(self._old):
            start = bisect_left(entries, token << 32)
            end = bisect_left(entries, token + 1 << 32, start)
            for entry in reversed(entries[start:end]):
                yield first + (entry & 0xFFFFFFFF)

    def forget_before(self, place: int) -> None:
        """No result before this place is there any more."""
        while self._old and self._old[0][1] < place:
            del self._old[0]

    def _age(self) -> None:
        pairs = [
            (token, place)
            for token, places in self._young.items()
            for place in ([places] if isinstance(places, int) else places)
        ]
        first, last = min(place for _, place in pairs), max(place for _, place in pairs)
        self._old.append(
            (first, last, array("Q", sorted(token << 32 | place - first for token, place in pairs)))
        )
        self._young.clear()
