"""A thread that waits for the disk, so that the event loop need not.

There is one kind of work for it, so one queue and one callback hand it over: an executor with its two
futures would take a tenth of the time that a quick disk takes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue


class Disk:
    """Has ``work`` done in a thread, which begins when that is asked for first. Owns the thread."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._asked: SimpleQueue[asyncio.Future[None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def ask(self) -> asyncio.Future[None]:
        """Have the work done once; what is returned ends with it, or with what it raised."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="gearflow-disk", daemon=True)
            self._thread.start()
        done = self._loop.create_future()
        self._asked.put(done)
        return done

    def close(self) -> None:
        """End the thread, after what it was asked for."""
        if self._thread is not None:
            self._asked.put(None)
            self._thread.join()

    def _serve(self) -> None:
        while (done := self._asked.get()) is not None:
            try:
                self._work()
            except Exception as error:  # noqa: BLE001  (it belongs to who asked)
                self._tell(done.set_exception, error)
            else:
                self._tell(done.set_result, None)

    def _tell(self, end: Callable[..., None], outcome: Exception | None) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            self._loop.call_soon_threadsafe(end, outcome)
