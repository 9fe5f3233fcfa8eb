"""What signals do to a process that runs a worker: the first stops it warm, the second cold.

The handlers are Python's own, not the event loop's: a task that blocks the loop must not be able to keep
the second signal from having its way.
"""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from gearflow.worker import Worker

_GRACE: Final = 2.0
"""Seconds that coroutines get, on a cold stop, for their ``finally`` blocks."""


class Stopping:
    """Stops a worker as the signals say, for the time of a block on its event loop, in the main thread."""

    def __init__(self, worker: "Worker") -> None:
        import asyncio

        self.forced = 0
        """The exit code of a cold stop; 0 while there was none."""
        self._worker = worker
        self._asked = False
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> Self:
        self._previous = {
            number: signal.signal(number, self._received) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _received(self, number: int, _frame: FrameType | None) -> None:
        if self.forced:
            os._exit(self.forced)
        elif self._asked:
            self.forced = 128 + number
            self._loop.call_soon_threadsafe(self._worker.leave)
            watchdog = threading.Timer(_GRACE, os._exit, [self.forced])
            watchdog.daemon = True
            watchdog.start()
        else:
            self._asked = True
            self._loop.call_soon_threadsafe(self._worker.stop)
