"""Reads the results in the order in which their jobs ended, the last one first.

Their order is that of the places. They are read by ranges of places, each a part of a millisecond. A pack
may begin before a range and end in it. Everything may raise sqlite3.Error or DamagedRow.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from struct import Struct
from struct import error as struct_error
from typing import Final, NamedTuple

from gearflow.broker.storage import EndedOf, JobRecord
from gearflow.stores.sqlite.packs import PACKED, Pack, is_pack
from gearflow.stores.sqlite.rows import INLINE, RECORD_COLUMNS, row_record

_SPAN: Final = 500
"""Places that are looked at for one question."""

_ROW: Final = (
    f"SELECT {RECORD_COLUMNS.removesuffix('body')} CASE WHEN number IS NULL OR outcome > 1 "
    f"OR length(body) <= {INLINE} THEN body ELSE length(body) END FROM records WHERE place = ?"
)
"""The whole body is read of packs and of errors."""

_TIME: Final = Struct("<d")


class Span(NamedTuple):
    """A range of places, and the rows with results in it that may be asked for."""

    low: int
    top: int  # behind the last place
    first: int  # of all places
    rows: Sequence[tuple[int, bool]]  # their places, and whether they are dead letters


def span_before(connection: sqlite3.Connection, question: EndedOf) -> Span:
    """The next range that a question is about."""
    first, last = connection.execute(
        "SELECT (SELECT min(place) FROM records), (SELECT max(place) FROM records)"
    ).fetchone()
    if first is None:
        return Span(0, 0, 0, ())
    if question.before is not None:
        top = question.before.number
    elif question.until is not None:
        top = _place_of(connection, question.until, first, last + PACKED)
    else:
        top = last + PACKED
    low = max(top - _SPAN, first)
    values: list[object] = [top, low - PACKED, *map(int, question.outcomes)]
    wanted = f"outcome IN ({', '.join('?' * len(question.outcomes))})"
    if question.function is not None:
        wanted += " AND function = ?"
        values.append(question.function.decode("latin-1"))
    rows = connection.execute(
        "SELECT place, ifnull(dead, 0) > 0 FROM records WHERE place < ? AND place > ? "
        f"AND (number IS NULL OR {wanted}) ORDER BY place DESC",
        values,
    ).fetchall()
    return Span(low, top, first, [(place, bool(dead)) for place, dead in rows])


def results_in(
    connection: sqlite3.Connection, place: int, span: Span, question: EndedOf
) -> Iterator[tuple[int, JobRecord]]:
    """The results in the row at a place that a question is about, the last one first, with their places."""
    row = next(iter(connection.execute(_ROW, (place,)).fetchall()), None)
    if row is None:
        return
    if not is_pack(row):
        if place >= span.low:
            yield place, row_record(row)
        return
    if question.function is not None and question.function not in bytes(row[-1]):
        return
    pack = Pack(row)
    low, top = span.low - place, span.top - place
    found = [index for index in pack.find(question.function, question.outcomes) if low <= index < top]
    found.reverse()
    for index, record in zip(found, pack.some(found), strict=True):
        yield place + index, record


def _place_of(connection: sqlite3.Connection, until: float, low: int, high: int) -> int:
    """The first place of a job that ended at that time or later, as far as the places are in that order."""
    while low < high:
        middle = (low + high) // 2
        if _ended_at(connection, middle) < until:
            low = middle + 1
        else:
            high = middle
    return low


def _ended_at(connection: sqlite3.Connection, place: int) -> float:
    """When the last job up to a place ended. It is not checked, because a result is not taken for it."""
    first, number, ended, count, body = connection.execute(
        "SELECT place, number, ended, attempt, CASE WHEN number IS NULL THEN body END FROM records "
        "WHERE place <= ? ORDER BY place DESC LIMIT 1",
        (place,),
    ).fetchone()
    try:
        if number is None:
            index = min(place - first, count - 1)
            return float(_TIME.unpack_from(body, 8 * (2 * count + index))[0])
        return float(ended)
    except (struct_error, TypeError, ValueError):
        return 0.0
