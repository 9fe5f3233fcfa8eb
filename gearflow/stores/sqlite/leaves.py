"""Rows of a damaged file, read from its pages without the trees that lead to them.

A table is a tree of pages, and its rows are in the leaves. If a page above leaves is damaged, SQLite finds
none of them, but the rows are still there. ``Leaves`` looks at every page of the file. A row's checksum shows
whether it is as it was written, so the number of its columns is enough to tell the table.

Deleted rows are also still there, on pages that the file lists as free. Those pages are left out. If the list
itself cannot be read, ``are_current`` is False: a row may then be one that was deleted.

Source: https://www.sqlite.org/fileformat2.html, sections 1.5, 1.6 and 2.1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from struct import Struct
from struct import error as struct_error
from typing import Any, Final, NamedTuple, Self

from gearflow.stores.sqlite.rows import Row
from gearflow.stores.sqlite.schema import PAGE

_LEAF: Final = 13  # the first byte of a leaf of a table
_FREE_LIST: Final = 32  # where the first page has the list of free pages
_INLINE: Final = PAGE - 35  # bytes of a row that are on its leaf if no more are
_LEAST: Final = (PAGE - 12) * 32 // 255 - 23  # bytes of a longer row that are on its leaf
_NEXT: Final = 4  # bytes at the beginning of a page that name the next one
_NUMBER: Final = Struct(">I")
_SHORT: Final = Struct(">H")
_REAL: Final = Struct(">d")
_SIZES: Final = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0, 0, 0)  # bytes by serial type: NULL, integers, real, 0, 1
_UNREADABLE: Final = (LookupError, ValueError, struct_error)


class Cell(NamedTuple):
    """A row in a leaf."""

    key: int
    types: tuple[int, ...]  # the serial types of its columns
    size: int  # bytes of the row
    header: int  # bytes before its first column
    page: int
    at: int  # where it is on the page


class Leaves:
    """The leaves of a file that no server uses. A context manager."""

    def __init__(self, path: Path) -> None:
        """Open a file of complete pages. Raises OSError."""
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._pages = os.fstat(self._fd).st_size // PAGE
        free = self._free_pages()
        self.are_current = free is not None
        self._free = free or frozenset[int]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def cells(self, columns: int) -> Iterator[Cell]:
        """The rows with so many columns on all pages that are not free."""
        for number in range(2, self._pages + 1):
            if number in self._free:
                continue
            page = self._page(number)
            if page[0] == _LEAF:
                for place in range(min(_SHORT.unpack_from(page, 3)[0], PAGE // 2)):
                    with suppress(*_UNREADABLE):
                        cell = _cell(page, number, _SHORT.unpack_from(page, 8 + 2 * place)[0])
                        if len(cell.types) == columns:
                            yield cell

    def row(self, cell: Cell) -> Row | None:
        """The columns of a row, the first of which is its key. None if they cannot be read."""
        if cell.header + sum(map(_size, cell.types)) != cell.size:
            return None
        with suppress(*_UNREADABLE):
            values = _values(cell, self._bytes(cell))
            return (cell.key, *values[1:])  # the file has NULL for a column that is the key
        return None

    def _bytes(self, cell: Cell) -> bytearray:
        """The whole row, which may continue on other pages."""
        page, size = self._page(cell.page), cell.size
        if size <= _INLINE:
            return bytearray(page[cell.at : cell.at + size])
        here = _LEAST + (size - _LEAST) % (PAGE - _NEXT)
        if here > _INLINE:
            here = _LEAST
        whole = bytearray(page[cell.at : cell.at + here])
        (follows,) = _NUMBER.unpack_from(page, cell.at + here)
        while len(whole) < size:
            page = self._page(follows)
            whole += page[_NEXT : _NEXT + size - len(whole)]
            (follows,) = _NUMBER.unpack_from(page)
        return whole

    def _free_pages(self) -> frozenset[int] | None:
        """The free pages, or None if they cannot be known."""
        free: set[int] = set()
        with suppress(*_UNREADABLE):
            trunk, expected = Struct(">II").unpack_from(self._page(1), _FREE_LIST)
            while trunk and trunk not in free:
                page = self._page(trunk)
                free.add(trunk)
                trunk, count = Struct(">II").unpack_from(page)
                free.update(Struct(f">{count}I").unpack_from(page, 8))
            if len(free) == expected:
                return frozenset(free)
        return None

    def _page(self, number: int) -> bytes:
        """A page. Raises IndexError if it is missing."""
        if not 0 < number <= self._pages:
            raise IndexError(number)
        return os.pread(self._fd, PAGE, (number - 1) * PAGE)


def _cell(page: bytes, number: int, at: int) -> Cell:
    """The row that begins there."""
    size, at = _varint(page, at)
    key, at = _varint(page, at)
    header, column = _varint(page, at)
    types = page[column : at + header]
    if max(types, default=0) < 128:
        return Cell(key, tuple(types), size, header, number, at)
    long: list[int] = []
    while column < at + header:
        kind, column = _varint(page, column)
        long.append(kind)
    return Cell(key, tuple(long), size, header, number, at)


def _values(cell: Cell, row: bytearray) -> list[Any]:
    """The columns of a row."""
    values: list[Any] = []
    at = cell.header
    for kind in cell.types:
        data = row[at : at + _size(kind)]
        at += len(data)
        if kind >= 12:
            values.append(data.decode(errors="replace") if kind % 2 else bytes(data))
        elif kind == 7:
            values.append(_REAL.unpack(data)[0])
        elif 0 < kind < 7:
            values.append(int.from_bytes(data, "big", signed=True))
        else:
            values.append({0: None, 8: 0, 9: 1}[kind])
    return values


def _size(kind: int) -> int:
    """The bytes of a column of this serial type."""
    return _SIZES[kind] if kind < 12 else (kind - 12) // 2


def _varint(page: bytes, at: int) -> tuple[int, int]:
    """A number of one to nine bytes, and where it ends."""
    value = 0
    for place in range(at, at + 8):
        value = value << 7 | page[place] & 127
        if page[place] < 128:
            return value, place + 1
    return value << 8 | page[at + 8], at + 9
