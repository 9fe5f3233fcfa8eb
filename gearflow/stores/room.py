"""Room on the disk for the main file, before its pages are in it.

What is written is in the log first, and needs its place in the main file when it is copied there. If the disk
is full by then, the log can neither be copied nor grow, and nothing can be written any more: not even that
jobs are done, which would make room. So a group is only accepted if the main file has its blocks for all
pages that there are; then the log can always be copied, and begin anew in the space that it has.

The blocks are allocated behind the file's end (fallocate, KEEP_SIZE), so that its length stays what SQLite
made it. Where that does not exist (not on Linux, or not on that file system), nothing is reserved.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from contextlib import suppress
from functools import cache
from typing import Final

from gearflow.stores.schema import PAGE

_STEP: Final = 1 << 20  # bytes
_KEEP_SIZE: Final = 1
_NOT_THERE: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM)


class Room:
    """The blocks of a file."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._bytes = os.fstat(fd).st_size
        self._is_possible = sys.platform == "linux"

    def make(self, pages: int) -> None:
        """Have room for so many pages.

        Raises:
            OSError: There is none.
        """
        if pages * PAGE > self._bytes:
            end = pages * PAGE // _STEP * _STEP + _STEP
            self._allocate(self._bytes, end)
            self._bytes = end

    def make_again(self) -> None:
        """When the log is copied, SQLite cuts the file behind the pages that are in it then."""
        with suppress(OSError):  # if it is not there any more, the next page will tell
            self._allocate(os.fstat(self._fd).st_size, self._bytes)

    def _allocate(self, start: int, end: int) -> None:
        if not self._is_possible or end <= start:
            return
        offset, size = ctypes.c_int64(start), ctypes.c_int64(end - start)
        if _libc().fallocate(self._fd, _KEEP_SIZE, offset, size) == 0:
            return
        code = ctypes.get_errno()
        if code in _NOT_THERE:
            self._is_possible = False
        elif code != errno.EINTR:
            raise OSError(code, os.strerror(code))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
