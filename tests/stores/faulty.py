"""A disk whose n-th write fails: a file layer (VFS) for SQLite that stands in front of the real one.

It is SQLite's own, but for the three functions by which something changes on the disk: write, truncate,
sync. They are counted, and fail on demand, as the kernel would: a full disk, a broken
one, or none from then on (for the process has been killed, in the middle of a write).

It works where Python's sqlite3 uses a shared libsqlite3, whose functions ctypes finds.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sqlite3
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from tests.conftest import missing

Fault: TypeAlias = Literal["full", "broken", "killed"]

_FULL: Final = 13
_BROKEN: Final = {"write": 10 | 3 << 8, "sync": 10 | 4 << 8, "truncate": 10 | 6 << 8}
_NAME: Final = b"faulty"

_WRITE: Final = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
)
_TRUNCATE: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_longlong)
_FILE_SIZE: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_SYNC: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
_OPEN: Final = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p
)


class _Methods(ctypes.Structure):
    """sqlite3_io_methods; we replace three."""

    _fields_ = (
        ("version", ctypes.c_int),
        ("close", ctypes.c_void_p),
        ("read", ctypes.c_void_p),
        ("write", ctypes.c_void_p),
        ("truncate", ctypes.c_void_p),
        ("sync", ctypes.c_void_p),
        ("file_size", ctypes.c_void_p),
        ("rest", ctypes.c_void_p * 12),
    )


class _Layer(ctypes.Structure):
    """sqlite3_vfs; we replace one."""

    _fields_ = (
        ("version", ctypes.c_int),
        ("file_size", ctypes.c_int),
        ("path_size", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("open", ctypes.c_void_p),
        ("rest", ctypes.c_void_p * 14),
    )


@dataclass
class Disk:
    """Counts what changes, and fails from the ``fail_at``-th on, so many times."""

    may_grow: bool = True
    """If not, writes that would make a file longer are refused."""
    count: int = 0
    fail_at: int | None = None
    fault: Fault = "full"
    times: int = 1
    failed: int = 0
    _keep: list[object] = field(default_factory=list[object])

    def heal(self) -> None:
        self.fail_at = None

    def _refuses(self, operation: str) -> int:
        self.count += 1
        if self.fail_at is None or self.count < self.fail_at:
            return 0
        if self.fault != "killed" and self.count >= self.fail_at + self.times:
            return 0
        self.failed += 1
        return _FULL if self.fault == "full" and operation == "write" else _BROKEN[operation]

    def replace(self, methods: _Methods) -> _Methods:
        write, truncate = _WRITE(methods.write), _TRUNCATE(methods.truncate)
        file_size = _FILE_SIZE(methods.file_size)

        def length(file: int) -> int:
            found = ctypes.c_longlong()
            file_size(file, ctypes.addressof(found))
            return found.value

        def on_write(file: int, data: int, size: int, offset: int) -> int:
            if not self.may_grow and offset + size > length(file):
                return _FULL
            if code := self._refuses("write"):
                if self.failed == 1:  # torn: the beginning of it is there
                    write(file, data, size // 2, offset)
                return code
            return int(write(file, data, size, offset))

        def on_truncate(file: int, size: int) -> int:
            return self._refuses("truncate") or int(truncate(file, size))

        def on_sync(file: int, flags: int) -> int:
            return self._refuses("sync")  # and if not, there is no hurry: no power is lost here

        callbacks = _WRITE(on_write), _TRUNCATE(on_truncate), _SYNC(on_sync)
        new = _Methods.from_buffer_copy(methods)
        new.write, new.truncate, new.sync = (ctypes.cast(f, ctypes.c_void_p).value for f in callbacks)
        self._keep += [callbacks, new]
        return new


@contextmanager
def faulty_disk() -> Generator[Disk]:
    """All that this process opens with SQLite in the block is on this disk."""
    library = _library()
    disk = Disk()
    layer = ctypes.cast(library.sqlite3_vfs_find(None), ctypes.POINTER(_Layer)).contents
    new = _Layer.from_buffer_copy(layer)
    new.name = _NAME
    opened: Callable[..., int] = _OPEN(layer.open)
    tables: dict[int, _Methods] = {}

    def on_open(this: int, name: int, file: int, flags: int, out: int) -> int:
        code = opened(this, name, file, flags, out)
        slot = ctypes.cast(file, ctypes.POINTER(ctypes.c_void_p))
        if (address := slot[0]) is not None:
            if address not in tables:
                tables[address] = disk.replace(_Methods.from_address(address))
            slot[0] = ctypes.addressof(tables[address])
        return code

    callback = _OPEN(on_open)
    new.open = ctypes.cast(callback, ctypes.c_void_p).value
    assert library.sqlite3_vfs_register(ctypes.byref(new), 1) == 0
    try:
        yield disk
    finally:
        library.sqlite3_vfs_unregister(ctypes.byref(new))
        library.sqlite3_vfs_register(ctypes.byref(layer), 1)


def _library() -> Any:
    """The libsqlite3 that Python's sqlite3 uses."""
    name = ctypes.util.find_library("sqlite3")
    if name is None:
        missing("a shared libsqlite3")
    library = ctypes.CDLL(name)
    library.sqlite3_libversion.restype = ctypes.c_char_p
    library.sqlite3_vfs_find.restype = ctypes.c_void_p
    is_shared = "libsqlite3" in Path("/proc/self/maps").read_text()
    if not is_shared or library.sqlite3_libversion().decode() != sqlite3.sqlite_version:
        missing("a Python whose sqlite3 uses the shared libsqlite3")
    return library
