"""Packs: results that ended together, in one row of the table ``records``.

A row of its own costs a result about 5 us, most of it in SQLite. In a pack it costs 1 us. So short results
that come in one group are packed, up to ``PACKED`` of them. With more it would take longer to read one.

A pack covers as many places as it has results. It is never changed. If some of its results are to go before
the others, it is *dissolved*: the others get rows of their own, at the places that they had.

The results lie column by column, because Python then handles all of them with a few calls. Their numbers and
tokens are apart, so that the indexes in memory are built from them without the rest being read. In the row of
a pack these columns have another meaning, and those that are not here are NULL:

* ``place``: that of the first result
* ``ended``, ``expires``: when the last and the first result expire
* ``attempt``: the number of results
* ``notes``: their numbers and tokens. Their checksum, with that of what is above, is ``crc``
* ``body``, ``body_crc``: all else of them, and its checksum
* ``token``, ``kept``: the sums over the results
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator, Sequence
from functools import cache
from itertools import accumulate
from struct import Struct
from struct import error as struct_error
from typing import Any, Final
from zlib import crc32

from gearflow.broker.storage import JobOutcome, JobRecord
from gearflow.stores.sqlite.rows import (
    BODY,
    GENERATION,
    INLINE,
    KEPT,
    OVERHEAD,
    RECORD_BODY_CRC,
    RECORD_COLUMNS,
    RECORD_DEAD,
    TOKEN,
    DamagedRow,
    Row,
    token_of,
)

PACKED: Final = 32
"""Results in a pack at most."""

RESULTS: Final = "CASE WHEN number IS NULL THEN attempt ELSE 1 END"
"""The results in a row of ``records``."""

PACK_HEAD: Final = f"{RECORD_COLUMNS.removesuffix('body')}NULL"
"""The columns of a pack without its body, as far as ``numbers_in`` needs them."""

_HEAD: Final = Struct("<qqddqq").pack
_TIME: Final = Struct("<d")
_INTEGER: Final = Struct("<q")
_LAST, _COUNT, _NUMBERS, _FIRST, _CRC = 7, 8, 11, 12, 14  # among RECORD_COLUMNS
_LOW: Final = 0xFFFFFFFF
_WRONG: Final = (struct_error, TypeError, ValueError, OverflowError, MemoryError)


@cache
def _numbers(count: int) -> Struct:
    """The numbers, and the tokens."""
    return Struct(f"<{count}q{count}I")


@cache
def _columns(count: int) -> Struct:
    """Three times and the expiry; outcome, attempt and deaths; the lengths of five texts."""
    return Struct(f"<{4 * count}d{3 * count}q{5 * count}I")


@cache
def _lengths(count: int) -> Struct:
    return Struct(f"<{5 * count}I")


def is_packable(record: JobRecord) -> bool:
    """Whether a result is short, and no dead letter's."""
    body = record.body
    return (
        record.letter is None
        and not isinstance(body, int)
        and len(body) <= INLINE
        and len(record.notes) <= INLINE
    )


def is_pack(row: Row) -> bool:
    """Whether a row of ``RECORD_COLUMNS`` is a pack."""
    return row[1] is None


def pack_row(records: Sequence[JobRecord], place: int) -> Row:
    """The columns of ``RECORD_COLUMNS`` for results at consecutive places."""
    count = len(records)
    fields = tuple(zip(*records, strict=True))
    (number, function, unique, outcome, body, submitted, started, ended) = fields[:8]
    (attempt, deaths, worker, notes, expires, _) = fields[8:]
    tokens = list(map(token_of, function, unique)) if any(unique) else [0] * count
    numbers = _numbers(count).pack(*number, *tokens)
    columns = _columns(count).pack(
        *submitted,
        *started,
        *ended,
        *expires,
        *outcome,
        *attempt,
        *deaths,
        *map(len, function),
        *map(len, unique),
        *map(len, worker),
        *map(len, notes),
        *map(len, body),
    )
    results = b"".join((columns, *function, *unique, *worker, *notes, *body))
    first, last, token = min(expires), max(expires), sum(tokens)
    kept = sum(map(len, notes)) + sum(map(len, body)) + count * OVERHEAD
    crc = crc32(numbers, crc32(_HEAD(place, count, first, last, token, kept)))
    head = (place, None, None, None, None, None, None, last, count, None, None, numbers, first)
    return (*head, crc32(results, crc), crc, 0, token, kept, results)


def numbers_in(row: Row) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The numbers and the tokens in the row of a pack.

    Raises:
        DamagedRow: The row is not what was written.
    """
    count, numbers = row[_COUNT], row[_NUMBERS]
    try:
        head = _HEAD(row[0], count, row[_FIRST], row[_LAST], row[TOKEN], row[KEPT])
        if row[RECORD_DEAD] != 0 or crc32(numbers, crc32(head)) != row[_CRC]:
            raise DamagedRow
        found = _numbers(count).unpack(numbers)
    except _WRONG as error:
        raise DamagedRow from error
    return found[:count], found[count:]


class Pack:
    """A pack that was read. A sequence of results."""

    def __init__(self, row: Row) -> None:
        """Read the row of a pack. Raises DamagedRow."""
        self.numbers, _ = numbers_in(row)
        self.row = row
        self.place: int = row[0]
        count = len(self.numbers)
        try:
            self._results = bytes(row[BODY])
            if crc32(self._results, row[_CRC]) != row[RECORD_BODY_CRC]:
                raise DamagedRow
            self._lengths = _lengths(count).unpack_from(self._results, 56 * count)
        except _WRONG as error:
            raise DamagedRow from error

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[JobRecord]:
        return map(self.__getitem__, range(len(self)))

    def find(self, function: bytes | None, outcomes: Container[int]) -> list[int]:
        """The indexes of the results of a function, or of all, that have one of these outcomes."""
        count, results = len(self), self._results
        found = enumerate(_outcomes(count).unpack_from(results, 32 * count))
        indexes = [index for index, outcome in found if outcome in outcomes]
        if function is None:
            return indexes
        ends = list(accumulate(self._lengths[:count], initial=76 * count))
        return [index for index in indexes if results[ends[index] : ends[index + 1]] == function]

    def some(self, indexes: Iterable[int]) -> Iterator[JobRecord]:
        """The results at these indexes. It takes less time for each of many than to read one."""
        count, results = len(self), self._results
        numbers = _columns(count).unpack_from(results)[: 7 * count]
        ends = list(accumulate(self._lengths, initial=76 * count))
        for index in indexes:
            texts = [results[ends[at] : ends[at + 1]] for at in range(index, 5 * count, count)]
            yield _record(self.numbers[index], numbers[index::count], texts)

    def __getitem__(self, index: int) -> JobRecord:
        count, results = len(self), self._results
        at = range(8 * index, 56 * count, 8 * count)
        times = [_TIME.unpack_from(results, start)[0] for start in at[:4]]
        integers = [_INTEGER.unpack_from(results, start)[0] for start in at[4:]]
        texts: list[bytes] = []
        for which in range(index, 5 * count, count):
            start = 76 * count + sum(self._lengths[:which])
            texts.append(results[start : start + self._lengths[which]])
        return _record(self.numbers[index], [*times, *integers], texts)


def _record(number: int, numbers: Sequence[Any], texts: Sequence[bytes]) -> JobRecord:
    """A result from its columns in the order in which a pack has them."""
    submitted, started, ended, expires, outcome, attempt, deaths = numbers
    function, unique, worker, notes, body = texts
    return JobRecord(
        number,
        function,
        unique,
        JobOutcome(outcome),
        body,
        submitted,
        started,
        ended,
        attempt,
        deaths,
        worker,
        notes,
        expires,
    )


@cache
def _outcomes(count: int) -> Struct:
    return Struct(f"<{count}q")


class PackedNumbers:
    """Places of packed results by their numbers, eight bytes for each, as ``Uniques``."""

    def __init__(self) -> None:
        self._young: dict[int, int] = {}  # places
        # First and last place, lowest and highest number, and the low half of number << 32 | place - first.
        self._old: list[tuple[int, int, int, int, array[int]]] = []

    def add(self, numbers: Sequence[int], place: int) -> None:
        """Add a pack that is behind all others."""
        self._young.update(zip(numbers, range(place, place + len(numbers)), strict=True))
        if len(self._young) >= GENERATION:
            self._age()

    def find(self, number: int) -> Iterator[int]:
        """The places where a result may be, the youngest first."""
        if number in self._young:
            yield self._young[number]
        low = number & _LOW
        for first, _, lowest, highest, entries in reversed(self._old):
            if lowest <= number <= highest:
                start = bisect_left(entries, low << 32)
                for entry in reversed(entries[start : bisect_left(entries, low + 1 << 32, start)]):
                    yield first + (entry & _LOW)

    def forget_before(self, place: int) -> None:
        """Drop the entries before this place."""
        while self._old and self._old[0][1] < place:
            del self._old[0]

    def _age(self) -> None:
        numbers, places = self._young.keys(), self._young.values()
        first = min(places)
        entries = sorted((number & _LOW) << 32 | place - first for number, place in self._young.items())
        self._old.append((first, max(places), min(numbers), max(numbers), array("Q", entries)))
        self._young = {}
