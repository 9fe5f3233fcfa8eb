"""Jobs and results as rows with checksums, and the index of results by their uniques.

SQLite has no checksums, and a flipped bit must not become a job. A row's ``crc`` covers all its fields. A
long body has a checksum of its own, ``body_crc``, which the row's covers, so that a job can be loaded without
its workload. Functions, uniques and other names are TEXT, byte for byte as latin-1. Any SQLite shell shows
them, and Python's sqlite3 binds ``bytes`` four times more slowly than ``str``, because it looks for an
adapter each time. For the same reason bodies are bound as ``bytearray``.

A body longer than ``Tuning.part`` is not in its row. The row has its length, an INTEGER, and the table
``parts`` has the body. A *body key* names it: the job's number, and whether it is the workload or the result.

**Uniques.** The file has a hash of function and unique beside each result. ``Uniques`` is built from it at
the start and takes eight bytes of memory for each result. An index in the file would cost more than the
result itself: hashes are spread over the whole index, so each result would write a page of it (measured:
10 us each with 100 results in a group).

New entries go to a dict. When it is large, it becomes a sorted array. A lookup searches the arrays from the
youngest, in about a microsecond each. A found result may be gone or may have another unique with the same
hash, so the caller must check it. An array is removed when all its results are gone.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from struct import Struct
from struct import error as struct_error
from typing import Any, Final, TypeAlias
from zlib import crc32

from gearflow.broker.parser import Body
from gearflow.broker.storage import JobOutcome, JobRecord, Renumbered, StoredJob, size_of

GENERATION: Final = 1 << 13
"""Different hashes in an array. Sorting them takes two milliseconds."""


def token_of(function: bytes, unique: bytes) -> int:
    """The hash that finds a result. 0 for no unique."""
    return (crc32(b"%b\0%b" % (function, unique)) or 1) if unique else 0


class Uniques:
    """Places of results by their tokens."""

    def __init__(self) -> None:
        self._young: dict[int, int | list[int]] = {}  # places
        self._old: list[tuple[int, int, array[int]]] = []  # first and last place; token << 32 | place - first

    def add(self, token: int, place: int) -> None:
        """Add a result at a place that is behind all others."""
        before = self._young.setdefault(token, place)
        if before is not place:
            if isinstance(before, list):
                before.append(place)
            else:
                self._young[token] = [before, place]
        elif len(self._young) >= GENERATION:
            self._age()

    def find(self, token: int) -> Iterator[int]:
        """The places where a result may be, the youngest first."""
        young = self._young.get(token, [])
        yield from [young] if isinstance(young, int) else reversed(young)
        for first, _, entries in reversed(self._old):
            start = bisect_left(entries, token << 32)
            end = bisect_left(entries, token + 1 << 32, start)
            for entry in reversed(entries[start:end]):
                yield first + (entry & 0xFFFFFFFF)

    def forget_before(self, place: int) -> None:
        """Drop the entries before this place."""
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


INLINE: Final = 1024
"""Bytes up to which the row's checksum covers a body, and a workload is loaded with its job."""

OVERHEAD: Final = 640
"""Bytes that a kept result counts beside its body, as measured in memory. It is half as much in the file.
Without it a million empty results would be free."""

PART_OVERHEAD: Final = 128
"""Bytes that a kept part counts beside its body, for the same reason."""

Row: TypeAlias = tuple[Any, ...]

JOB_HEAD: Final = (
    'number, function, "unique", priority, submitted, due, reducer, options, attempt, deaths, dead, '
    "body_crc, crc"
)
SHORT_WORKLOAD: Final = f"CASE WHEN length(workload) > {INLINE} THEN length(workload) ELSE workload END"
"""The workload if it is short, else its length. (A workload in parts is a length already.)"""

RECORD_COLUMNS: Final = (
    'place, number, function, "unique", outcome, submitted, started, ended, attempt, deaths, worker, notes, '
    "expires, body_crc, crc, dead, token, kept, body"
)
SHORT_RECORD: Final = (
    f"{RECORD_COLUMNS.removesuffix('body')} CASE WHEN length(body) > {INLINE} THEN length(body) ELSE body END"
)
"""The same with the body as ``SHORT_WORKLOAD`` has the workload."""

JOB_DEAD, JOB_BODY_CRC = 10, 11  # among the columns of JOB_HEAD
RECORD_BODY_CRC, RECORD_DEAD, TOKEN, KEPT, BODY = 13, 15, 16, 17, 18  # among RECORD_COLUMNS

_JOB: Final = Struct("<qqddqqqQQ").pack
_RECORD: Final = Struct("<qqdddqqdQQ").pack
_new_job: Final[Callable[[type[StoredJob], Row], StoredJob]] = tuple.__new__  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
"""As StoredJob(...), in half the time, which matters when a million are loaded."""
_NO_REDUCER: Final = b"\0"  # which is no reducer's name


class DamagedRow(Exception):
    """A row does not hold what was written into it."""


def job_row(job: StoredJob, dead: int = 0, known_crc: int = 0) -> Row:
    """The columns of ``JOB_HEAD``, and the workload.

    Args:
        job: The job.
        dead: Whether the job is a dead letter.
        known_crc: The checksum of a workload that is in the file already. The job has only its length.
    """
    number, function, unique, priority, submitted, due, reducer, options, attempt, deaths, workload = job
    kept: bytearray | Body | int
    if isinstance(workload, int):
        size, body_crc, kept = workload, known_crc, workload
        short: Body = b""
    elif (size := len(workload)) <= INLINE:
        body_crc, short, kept = 0, workload, bytearray(workload)
    else:
        body_crc, short, kept = crc32(workload), b"", workload
    head = _JOB(number, priority, submitted, due, attempt, deaths, dead, size, body_crc)
    crc = crc32(
        b"\0".join((head, function, unique, options, _NO_REDUCER if reducer is None else reducer, short))
    )
    return (
        number,
        function.decode("latin-1"),
        unique.decode("latin-1"),
        priority,
        submitted,
        due,
        0 if reducer is None else reducer.decode("latin-1"),
        options.decode("latin-1"),
        attempt,
        deaths,
        dead,
        body_crc,
        crc,
        kept,
    )


def row_job(row: Row) -> StoredJob:
    """The job in a row of ``job_row``. A long workload may be its length.

    Raises:
        DamagedRow: The row is not what was written.
    """
    (number, function, unique, priority, submitted, due, reducer) = row[:7]
    (options, attempt, deaths, dead, body_crc, crc, workload) = row[7:]
    try:
        function, unique, options = (
            function.encode("latin-1"),
            unique.encode("latin-1"),
            options.encode("latin-1"),
        )
        reducer = None if reducer == 0 else reducer.encode("latin-1")
        if isinstance(workload, int):
            size, short = workload, b""
        elif (size := len(workload)) <= INLINE:
            short = workload
        else:
            short = b""
            _check(crc32(workload), body_crc)
        head = _JOB(number, priority, submitted, due, attempt, deaths, dead, size, body_crc)
        name = _NO_REDUCER if reducer is None else reducer
        _check(crc32(b"\0".join((head, function, unique, options, name, short))), crc)
    except _WRONG_TYPES as error:
        raise DamagedRow from error
    fields = number, function, unique, priority, submitted, due, reducer, options, attempt, deaths, workload
    return _new_job(StoredJob, fields)


def kept_by(record: JobRecord) -> int:
    """The bytes of a result that count toward ``keep_bytes``."""
    letter_bytes = size_of(record.letter.workload) if record.letter is not None else 0
    return size_of(record.body) + len(record.notes) + letter_bytes + OVERHEAD


def record_row(record: JobRecord, place: int, parts_crc: int = 0, streamed: int = 0) -> Row:
    """The columns of ``RECORD_COLUMNS``.

    Args:
        record: The result.
        place: Its place.
        parts_crc: The checksum of a body that lies in parts.
        streamed: The bytes of the parts of its stream.
    """
    (number, function, unique, outcome, body, submitted, started, ended) = record[:8]
    (attempt, deaths, worker, notes, expires, letter) = record[8:]
    kept: bytearray | Body | int
    short: Body
    if isinstance(body, int):
        size, body_crc, short, kept = body, parts_crc, b"", body
    elif (size := len(body)) <= INLINE:
        body_crc, short, kept = 0, body, bytearray(body)
    else:
        body_crc, short, kept = crc32(body), b"", body
    head = _RECORD(number, outcome, submitted, started, ended, attempt, deaths, expires, size, body_crc)
    return (
        place,
        number,
        function.decode("latin-1"),
        unique.decode("latin-1"),
        int(outcome),
        submitted,
        started,
        ended,
        attempt,
        deaths,
        worker.decode("latin-1"),
        notes.decode("latin-1"),
        expires,
        body_crc,
        crc32(b"\0".join((head, function, unique, worker, notes, short))),
        0 if letter is None else dead_letter_token(function),
        token_of(function, unique),
        kept_by(record) + streamed,
        kept,
    )


def row_record(row: Row) -> JobRecord:
    """The record of an ended job, without its dead letter. A body in parts is its length.

    Raises:
        DamagedRow: The row is not what was written.
    """
    number, function, unique, outcome, submitted, started, ended, attempt, deaths, worker = row[1:11]
    notes, expires, body_crc, crc, _, _, _, body = row[11:]
    try:
        function, unique = function.encode("latin-1"), unique.encode("latin-1")
        worker, notes = worker.encode("latin-1"), notes.encode("latin-1")
        if isinstance(body, int):
            size, short = body, b""
        elif (size := len(body)) <= INLINE:
            short = body
        else:
            short = b""
            _check(crc32(body), body_crc)
        head = _RECORD(number, outcome, submitted, started, ended, attempt, deaths, expires, size, body_crc)
        _check(crc32(b"\0".join((head, function, unique, worker, notes, short))), crc)
        outcome = JobOutcome(outcome)
    except _WRONG_TYPES as error:
        raise DamagedRow from error
    return JobRecord(
        number,
        function,
        unique,
        outcome,
        row[BODY],
        submitted,
        started,
        ended,
        attempt,
        deaths,
        worker,
        notes,
        expires,
    )


def paused_row(content: Sequence[bytes | int]) -> Row:
    """A row of the table ``paused``: a list of names, or of numbers, and a checksum."""
    text = json.dumps([each if isinstance(each, int) else each.decode("latin-1") for each in content])
    return text, crc32(text.encode())


def row_paused(row: Row) -> list[bytes | int]:
    """The list in a row of ``paused_row``.

    Raises:
        DamagedRow: The row is not what was written.
    """
    text, crc = row
    try:
        _check(crc32(text.encode()), crc)
        return [each if isinstance(each, int) else each.encode("latin-1") for each in json.loads(text)]
    except _WRONG_TYPES as error:
        raise DamagedRow from error


def paused_id(function: bytes) -> int:
    """The key of a paused function's row: a hash that no two functions have but by a chance of 2 to -62."""
    return 2 + int.from_bytes(blake2b(function, digest_size=8).digest(), "big") // 4


def paused_functions(rows: Sequence[Row]) -> tuple[bytes, ...]:
    """The paused functions, from the rows of the table in the order of their keys.

    The first row has the number of the others and the sum of their checksums. In version 2 it was the only
    row, and had the names.

    Raises:
        DamagedRow: A row is missing or is not what was written.
    """
    if not rows or rows[0][0] != 1:
        raise DamagedRow
    first, *others = (row_paused(row[1:]) for row in rows)
    names = [name for row in (first, *others) for name in row if isinstance(name, bytes)]
    if names != first and first != [len(others), sum(row[2] for row in rows[1:])]:
        raise DamagedRow
    return tuple(names)


def renumbered_rows(ranges: Sequence[Renumbered]) -> list[Row]:
    """The rows of the table ``renumbered``."""
    rows = [(0, "", 0, 0, len(ranges))]
    rows += [
        (place, name.decode("latin-1"), first, last, add)
        for place, (name, first, last, add) in enumerate(ranges, 1)
    ]
    return [(*row, _row_crc(row)) for row in rows]


def renumbered_ranges(rows: Sequence[Row]) -> tuple[Renumbered, ...]:
    """What ``renumbered_rows`` has made rows of. Raises DamagedRow."""
    try:
        for row in rows:
            _check(_row_crc(row[:-1]), row[-1])
        if not rows or rows[0][0] != 0 or rows[0][4] != len(rows) - 1:
            raise DamagedRow
        return tuple(
            Renumbered(name.encode("latin-1"), first, last, add) for _, name, first, last, add, _ in rows[1:]
        )
    except _WRONG_TYPES as error:
        raise DamagedRow from error


def _row_crc(row: Row) -> int:
    return crc32(json.dumps(row).encode())


def dead_letter_token(function: bytes) -> int:
    """The hash of a function that finds its dead letters. Two functions may have the same."""
    return crc32(function) or 1


def body_key(number: int, *, of_result: bool) -> int:
    """The key of a body in parts."""
    return number << 1 | of_result


MOST_PARTS: Final = 256
"""Parts of a body."""


def part_ids(key: int) -> tuple[int, int]:
    """The first and the last id that a body's parts may have."""
    return key << 8, key << 8 | MOST_PARTS - 1


def _check(found: int, expected: int) -> None:
    if found != expected:
        raise DamagedRow


_WRONG_TYPES: Final = (AttributeError, TypeError, ValueError, OverflowError, struct_error)
