"""Watches a socket that somebody else may close, on an asyncio loop.

libpq closes its socket when it reads that the connection was reset. uvloop then cannot stop watching it, and
the number may soon be that of another file. So the loop watches a duplicate.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable


class Watch:
    """Calls when a socket can be read or written, or has failed. ``close`` it in the end."""

    def __init__(self, fd: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = os.dup(fd)
        self._writes = False
        self._closed = False

    def on_read(self, call: Callable[[], object]) -> None:
        """Call this whenever there is something to read."""
        self._loop.add_reader(self._fd, call)

    def on_write(self, call: Callable[[], object] | None) -> None:
        """Call this whenever something can be written. None: nothing more."""
        if call is not None:
            self._loop.add_writer(self._fd, call)
        elif self._writes:
            self._loop.remove_writer(self._fd)
        self._writes = call is not None

    def close(self) -> None:
        """Watch it no more. The connection ends when its own descriptor is closed too."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            os.close(self._fd)
