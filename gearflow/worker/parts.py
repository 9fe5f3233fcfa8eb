"""The parts of a run, which are the values that its task yields: sent in order, as long as there is room.

The window is what was sent and not taken. On gearflow's server the server says how far the slowest reader has
got, for each job of its own, since a connection carries many. On other servers a part counts as taken when
the connection has begun to write it, so the pace is TCP's.

A part waits before it is sent, and so does the task at its ``yield``. A coroutine waits without blocking the
event loop, a thread waits in its own place. The end of the run ends each wait, and nothing is sent behind it.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

from gearflow.protocol.constants import WINDOW_BYTES, WINDOW_PARTS

PROCESS_PARTS: Final = 16
PROCESS_BYTES: Final = 256 << 10
"""The part of the window between a process and its worker. The worker has the rest of it to the server."""


class RunOver(Exception):
    """The run has ended, or nobody wants its values any more. The task stops at its ``yield``."""


class PartWindow:
    """The window of one run. Owns state; may be used by several threads.

    Args:
        send: Sends a part. It must not block on what calls ``taken`` or ``close``.
        position: The number of parts of earlier runs.
        parts: So many parts may be sent and not taken.
        size: So many bytes are full: a part is sent as long as there are fewer.
    """

    def __init__(
        self,
        send: Callable[[bytes], object],
        *,
        position: int = 0,
        parts: int = WINDOW_PARTS,
        size: int = WINDOW_BYTES,
    ) -> None:
        self.position = position
        """The number of parts that were sent, with those of earlier runs."""
        self._send = send
        self._most_parts = parts
        self._most_bytes = size
        self._lock = threading.Lock()
        self._sizes = deque[int]()  # of the parts that were sent and not taken
        self._size = 0
        self._is_closed = False
        self._when_room: Callable[[], object] | None = None

    def send(self, part: bytes) -> bool:
        """Send a part if there is room. Returns whether it was sent.

        Raises:
            RunOver: Nothing is sent any more.
        """
        with self._lock:
            if self._is_closed:
                raise RunOver
            if self._is_full():
                return False
            self._sizes.append(len(part))
            self._size += len(part)
            self.position += 1
            self._send(part)  # under the lock, so that nothing comes behind the end of the run
        return True

    def put(self, part: bytes) -> None:
        """Send a part, and block this thread until there is room. Raises RunOver as ``send``."""
        while not self.send(part):
            room = threading.Lock()
            room.acquire()
            self.when_room(room.release)
            room.acquire()

    def when_room(self, callback: Callable[[], object]) -> None:
        """Have a callback called, once: when there is room, or the run is over. Perhaps at once."""
        with self._lock:
            if self._is_full() and not self._is_closed:
                self._when_room = callback
                return
        callback()

    def taken(self, position: int) -> None:
        """All parts up to this position are taken."""
        with self._lock:
            sizes = self._sizes
            for _ in range(min(len(sizes), position - self.position + len(sizes))):
                self._size -= sizes.popleft()
            callback = None if self._is_full() else self._take_callback()
        if callback is not None:
            callback()

    def close(self) -> None:
        """Send nothing any more: the run is over."""
        with self._lock:
            self._is_closed = True
            callback = self._take_callback()
        if callback is not None:
            callback()

    def _is_full(self) -> bool:
        return len(self._sizes) >= self._most_parts or self._size >= self._most_bytes

    def _take_callback(self) -> Callable[[], object] | None:
        callback, self._when_room = self._when_room, None
        return callback


def send_values(values: Iterable[Any], encode: Callable[[Any], bytes], parts: PartWindow) -> None:
    """Send all values from this thread. If the run is over, close the iterator at its ``yield``.

    Raises:
        PayloadInvalid: A value does not fit its type.
        BaseException: What the iterator raises.
    """
    try:
        with suppress(RunOver):
            for value in values:
                parts.put(encode(value))
    finally:
        close = getattr(values, "close", None)  # as generators have it
        if close is not None:
            close()
