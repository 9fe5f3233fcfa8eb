"""The job as a running task sees it, and the task's reports while it runs.

A task asks for it with its first parameter: ``def resize(ctx: Context, url: str) -> int``.
"""

import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sized
from typing import Any, Final, TypeVar, overload

from gearflow.protocol.packets import Packet, WorkStatus, WorkWarning
from gearflow.tasks import migration_hints

T = TypeVar("T")

TRACK_INTERVAL: Final = 0.1
"""Seconds between two reports of ``track``: as often as a bar on a terminal is worth redrawing."""


class Context:
    """One run of one job. The worker makes it, and it is valid until the run ends.

    All methods return at once. You may call them from the event loop or from the task's thread. The packets
    are sent when the connection can take them.

    Attributes:
        handle: The server's name for the job.
        function: The name under which the job was submitted.
        attempt: The number of this run, from 1.
        deadline: When the run must have ended, as Unix time. None means that there is no limit.
        cancelled: Becomes true when nobody waits for the result any more, or the worker has lost the job. A
            task in a thread cannot be stopped from outside, so it can check this and return.
    """

    __slots__ = ("_send", "_wire_handle", "attempt", "cancelled", "deadline", "function", "handle")

    def __init__(
        self,
        *,
        handle: str,
        function: str,
        send: Callable[[Packet], Any],
        attempt: int = 1,
        deadline: float | None = None,
    ) -> None:
        self.handle = handle
        self.function = function
        self.attempt = attempt
        self.deadline = deadline
        self.cancelled = False
        self._send = send
        self._wire_handle = handle.encode("utf-8", "surrogateescape")

    def progress(self, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` is done. A ``total`` of 0 means that it is not known."""
        self._send(WorkStatus(self._wire_handle, b"%d" % done, b"%d" % total))

    def warn(self, text: str) -> None:
        """Send a warning to the callers that wait. The job goes on."""
        self._send(WorkWarning(self._wire_handle, text.encode("utf-8", "backslashreplace")))

    @overload
    def track(self, items: Iterable[T], /, total: int | None = None) -> Iterator[T]: ...
    @overload
    def track(self, items: AsyncIterable[T], /, total: int | None = None) -> AsyncIterator[T]: ...
    def track(
        self, items: Iterable[T] | AsyncIterable[T], /, total: int | None = None
    ) -> Iterator[T] | AsyncIterator[T]:
        """Yield ``items``, and report progress at most every 0.1 seconds and at the end.

        By default ``total`` is ``len(items)``, if there is one.
        """
        if total is None:
            total = len(items) if isinstance(items, Sized) else 0
        if isinstance(items, AsyncIterable):
            return self._track_async(items, total)
        return self._track(items, total)

    def _track(self, items: Iterable[T], total: int) -> Iterator[T]:
        report = _Throttled(self.progress, total)
        for item in items:
            yield item
            report.one_more()
        report.finish()

    async def _track_async(self, items: AsyncIterable[T], total: int) -> AsyncIterator[T]:
        report = _Throttled(self.progress, total)
        async for item in items:
            yield item
            report.one_more()
        report.finish()


migration_hints.teach(Context, migration_hints.RUNS)


class _Throttled:
    """Counts, and reports not more often than is worth it."""

    __slots__ = ("_done", "_progress", "_reported_at", "_total")

    def __init__(self, progress: Callable[[int, int], None], total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        self._reported_at = time.monotonic()
        progress(0, total)

    def one_more(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._reported_at >= TRACK_INTERVAL:
            self._reported_at = now
            self._progress(self._done, self._total)

    def finish(self) -> None:
        self._progress(self._done, self._total or self._done)
