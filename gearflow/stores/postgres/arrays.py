"""Values and arrays in PostgreSQL's binary format.

An array has a header, then for each element its length (-1 for NULL) and its bytes, all big-endian. Elements
of one size are written without a loop in Python: all their words at once, by slices.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from struct import Struct
from typing import Final, cast

from gearflow.broker.parser import Body

BIGINT: Final = 20
INT: Final = 23
SMALLINT: Final = 21
FLOAT: Final = 701
BYTEA: Final = 17
UUID: Final = 2950
TEXT: Final = 25

BIGINTS: Final = 1016
INTS: Final = 1007
SMALLINTS: Final = 1005
FLOATS: Final = 1022
BYTEAS: Final = 1001
UUIDS: Final = 2951
TEXTS: Final = 1009

_HEAD: Final = Struct("!5i").pack
_ONE: Final = Struct("!6i").pack
_ONE_BIGINT: Final = _ONE(1, 1, BIGINT, 1, 1, 8)
_ONE_FLOAT: Final = _ONE(1, 1, FLOAT, 1, 1, 8)
_ONE_INT: Final = _ONE(1, 1, INT, 1, 1, 4)
_ONE_SMALLINT: Final = _ONE(1, 1, SMALLINT, 1, 1, 2)
_LENGTH: Final = Struct("!i").pack
_FLOAT: Final = Struct("!d")
_NULL: Final = b"\xff\xff\xff\xff"
_LENGTHS: Final = tuple(_LENGTH(length) for length in range(4096))
_SWAPPED: Final = sys.byteorder == "little"
_WORD: Final = next(code for code in "IL" if array(code).itemsize == 4)


def bigint(value: int) -> bytes:
    return value.to_bytes(8, "big", signed=True)


def integer(value: int) -> bytes:
    return value.to_bytes(4, "big", signed=True)


def smallint(value: int) -> bytes:
    return value.to_bytes(2, "big", signed=True)


def real(value: float) -> bytes:
    return _FLOAT.pack(value)


def bigints(values: Sequence[int]) -> bytes:
    if len(values) == 1:
        return _ONE_BIGINT + bigint(values[0])
    return _head(BIGINT, len(values)) + _of_two_words(array("q", values))


def floats(values: Sequence[float]) -> bytes:
    if len(values) == 1:
        return _ONE_FLOAT + real(values[0])
    return _head(FLOAT, len(values)) + _of_two_words(array("d", values))


def ints(values: Sequence[int]) -> bytes:
    if len(values) == 1:
        return _ONE_INT + integer(values[0])
    words = array("i", values)
    if _SWAPPED:
        words.byteswap()
    out = array("i", bytes(8 * len(values)))
    out[0::2] = array("i", _LENGTHS[4] * len(values))
    out[1::2] = words
    return _head(INT, len(values)) + out.tobytes()


def smallints(values: Sequence[int]) -> bytes:
    if len(values) == 1:
        return _ONE_SMALLINT + smallint(values[0])
    words = array("h", values)
    if _SWAPPED:
        words.byteswap()
    out = array("h", b"\0\0\0\2\0\0" * len(values))
    out[2::3] = words
    return _head(SMALLINT, len(values)) + out.tobytes()


def byteas(values: Sequence[Body | None]) -> bytes:
    return _of_any_length(BYTEA, values)


def uuids(values: Sequence[bytes | None]) -> bytes:
    return _of_any_length(UUID, values)


def texts(values: Sequence[str]) -> bytes:
    return _of_any_length(TEXT, [value.encode() for value in values])


def read_int(value: bytes | None) -> int:
    """An integer of any size. NULL is 0."""
    return int.from_bytes(value, "big", signed=True) if value else 0


def read_real(value: bytes | None) -> float:
    """A float8. NULL is 0."""
    number: float = _FLOAT.unpack(value)[0] if value else 0.0
    return number


def _head(kind: int, count: int) -> bytes:
    """Of an array with one dimension, which an empty one does not have."""
    return _HEAD(1, 1, kind, count, 1) if count else _HEAD(0, 0, kind, 0, 0)[:12]


def _of_two_words(values: array[int] | array[float]) -> bytes:
    """Each value of 8 bytes with its length before it."""
    if _SWAPPED:
        values.byteswap()
    words = array(_WORD, values.tobytes())
    out = array(_WORD, _LENGTHS[8] * len(values) * 3)
    out[1::3] = words[0::2]
    out[2::3] = words[1::2]
    return out.tobytes()


def _of_any_length(kind: int, values: Sequence[Body | None]) -> bytes:
    count = len(values)
    head = _head(kind, count)
    if not count:
        return head
    first = values[0]
    if first is values[-1] and values.count(first) == count:  # such as functions, or NULL
        return head + (_NULL if first is None else _length(first) + first) * count
    pieces: list[Body] = [head] * (2 * count + 1)
    bodies = cast("Sequence[Body]", values)
    try:
        pieces[1::2] = [_LENGTHS[len(value)] for value in bodies]
        pieces[2::2] = bodies
    except (TypeError, IndexError):  # there is NULL, or a long one
        pieces[1::2] = [_NULL if value is None else _length(value) for value in values]
        pieces[2::2] = [b"" if value is None else value for value in values]
    return b"".join(pieces)


def _length(value: Body) -> bytes:
    length = len(value)
    return _LENGTHS[length] if length < 4096 else _LENGTH(length)
