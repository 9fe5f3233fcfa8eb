"""Rows of a damaged file, read from its pages without the trees that lead to them.

A table is a tree of pages, and its rows are in the leaves. If a page above leaves is damaged, SQLite finds
none of them, but the rows are still there. ``Leaves`` looks at every page of the file. A row's checksum shows
whether it is as it was written, so the number of its columns is enough to tell the table.

Deleted rows are also still there, on pages that the file lists as free. Those pages are left out. If the list
itself cannot be read, ``are_current`` is False: a row may then be one that was deleted.

The same holds within a page. If the number of its rows is damaged, one that was deleted may seem to be there.
The rows and the gaps between them must fill the page, so the right number can be found. If the two numbers
differ, the rows between them are *doubtful*.

Source: https://www.sqlite.org/fileformat2.html, sections 1.5, 1.6 and 2.1.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
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
_HEADER: Final = Struct(">HHH")  # from the second byte: the first gap, the rows, where they begin
_SHORT: Final = Struct(">H")
_TWO_SHORT: Final = Struct(">HH")
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
        self._unsure: dict[int, tuple[int, int]] = {}  # by page: the rows at least, and at most
        for number, page in self._leaves(range(2, self._pages + 1)):
            if (rows := _rows_on(page)) is not None:
                self._unsure[number] = rows

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def cells(self, columns: int, *, doubtful: bool = False) -> Iterator[Cell]:
        """The rows with so many columns on all pages that are not free. Or the doubtful ones of these."""
        for number, page in self._leaves(self._unsure if doubtful else range(2, self._pages + 1)):
            count = min(_HEADER.unpack_from(page, 1)[1], PAGE // 2)
            least, most = self._unsure.get(number, (count, count))
            for place in range(least, most) if doubtful else range(least):
                with suppress(*_UNREADABLE):
                    cell = _cell(page, number, _SHORT.unpack_from(page, 8 + 2 * place)[0])
                    if len(cell.types) == columns:
                        yield cell

    def doubtful_keys(self, columns: int) -> set[int]:
        """The keys of the doubtful rows with so many columns, unless there is another row of that key."""
        keys = {cell.key for cell in self.cells(columns, doubtful=True)}
        return keys - {cell.key for cell in self.cells(columns)} if keys else keys

    def _leaves(self, numbers: Iterable[int]) -> Iterator[tuple[int, bytes]]:
        """Those of these pages that are leaves and not free."""
        for number in numbers:
            if number not in self._free and (page := self._page(number))[0] == _LEAF:
                yield number, page

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
        if (here := _on_leaf(size)) == size:
            return bytearray(page[cell.at : cell.at + size])
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


def _rows_on(page: bytes) -> tuple[int, int] | None:
    """How many rows a leaf has, at least and at most. None if the number in its header is right, as far as
    one can see."""
    gap, count, start = _HEADER.unpack_from(page, 1)
    to_fill = PAGE - start - page[7]  # which are bytes in gaps too small to be in the list
    with suppress(*_UNREADABLE):
        while gap:
            last = gap
            gap, size = _TWO_SHORT.unpack_from(page, gap)
            to_fill -= size
            if 0 < gap <= last:
                return None
        most = (start - 8) // 2
        for place in range(most + 1):
            if to_fill <= 0:
                if to_fill < 0 or place == count:
                    return None
                return (place, place) if count > most else (min(place, count), max(place, count))
            at = _SHORT.unpack_from(page, 8 + 2 * place)[0]
            cell = _cell(page, 0, at)
            here = _on_leaf(cell.size)
            to_fill -= max(4, cell.at - at + here + (_NEXT if here < cell.size else 0))
    return None


def _on_leaf(size: int) -> int:
    """The bytes of a row of this size that are on its leaf."""
    if size <= _INLINE:
        return size
    here = _LEAST + (size - _LEAST) % (PAGE - _NEXT)
    return _LEAST if here > _INLINE else here


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
