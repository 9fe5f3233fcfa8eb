"""Where large bodies are received: buffers that are used again once what was in them is nobody's any more.

A new buffer costs more than what is done with it: the kernel has to find and clear each of its pages. So a
few are kept, each to be given out again when no view of it is left. Where all of those are in use, as bodies
of jobs that wait may be for long, others are made of exactly the size that is wanted, and not kept.

From ``HUGE`` on a buffer is mapped, in huge pages, which costs memory only as it is filled.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Final

from gearflow.errors import RemoteProtocolError

_MIB: Final = 1 << 20

HUGE: Final = 16 * _MIB
"""Bytes from which on a buffer is mapped."""

KEPT: Final = 16 * _MIB
"""Bytes of the buffers that are kept, all together."""

MOST: Final = 16
"""Buffers that are kept: each is looked at where none is free."""


class NoMemory(RemoteProtocolError):
    """There is none for a body that is about to come; the connection is to be closed."""


class Buffers:
    """Gives out buffers. Owns those that are kept."""

    def __init__(self) -> None:
        self._kept: list[bytearray] = []
        self._room = KEPT

    def take(self, size: int) -> memoryview:
        """A buffer of so many bytes, whatever is in them; the caller's as long as a view of it lives.

        Raises:
            NoMemory: It cannot be had.
        """
        try:
            return self._take(size)
        except (MemoryError, OSError) as error:
            reason = getattr(error, "strerror", None) or "the system gives no more"
            raise NoMemory(f"no memory for a body of {size} bytes: {reason}") from error

    def _take(self, size: int) -> memoryview:
        if size >= HUGE:
            return _mapped(size)
        for buffer in self._kept:
            if len(buffer) >= size and _is_unused(buffer):
                return memoryview(buffer)[:size]
        rounded = 1 << (size - 1).bit_length()  # so that it suits others as well
        if rounded > self._room or len(self._kept) == MOST:
            return memoryview(bytearray(size))
        self._kept.append(bytearray(rounded))
        self._room -= rounded
        return memoryview(self._kept[-1])[:size]


def _is_unused(buffer: bytearray) -> bool:
    """Whether no view of it is left, as a view cannot be had of one that is to change its size."""
    try:
        buffer.append(0)
    except BufferError:
        return False
    buffer.pop()
    return True


def _mapped(size: int) -> memoryview:
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared ones cost twice as much
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(pages)
