"""The job as a running task sees it, and the task's reports while it runs.

A task asks for it with its first parameter: ``def resize(ctx: Context, url: str) -> int``.
"""

import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sized
from contextlib import suppress
from datetime import UTC, datetime
from math import inf
from typing import Any, Final, TypeAlias, TypeVar, overload

from gearflow.protocol.packets import Packet, WorkStatus, WorkWarning
from gearflow.schedules.zones import zone_of
from gearflow.tasks import migration_hints
from gearflow.tasks.events import Progress

T = TypeVar("T")

PROGRESS_INTERVAL: Final = 0.1
"""Seconds between two reports of a job's progress: as often as a bar on a terminal is worth redrawing."""

_Progress: TypeAlias = tuple[int, int, str | None]

Later: TypeAlias = Callable[[float, Callable[[], object]], object]
"""Has something called after so many seconds. To be called in any thread."""


def moment_of(scheduled_at: tuple[float, str] | None) -> datetime | None:
    """The time in ``scheduled_at`` of an envelope, in UTC if this machine does not know the zone."""
    if scheduled_at is None:
        return None
    unix, name = scheduled_at
    try:
        return datetime.fromtimestamp(unix, zone_of(name))
    except ValueError:
        return datetime.fromtimestamp(unix, UTC)


class Context:
    """One run of one job. The worker makes it, and it is valid until the run ends.

    All methods return at once. You may call them from the event loop or from the task's thread. The packets
    are sent when the connection can take them.

    Attributes:
        handle: The server's name for the job.
        function: The name under which the job was submitted.
        attempt: The number of this run, from 1.
        deadline: When the run must have ended, as Unix time. None means that there is no limit.
        parts: The number of values that were taken from earlier runs of a ``resumable`` task that yields.
            This run goes on behind them.
        previous: The last progress of the run before. None if there was no run or no progress.
        scheduled_at: The time of the schedule that made the job, in the zone of the schedule. The job may
            start later. None if no schedule has made it.
        cancelled: Becomes true when nobody waits for the result any more, or the worker has lost the job. A
            task in a thread cannot be stopped from outside, so it can check this and return.
        items: For a batch task, one ``Context`` for each item of the list, in its order. The ``Context``
            of the run itself reports for all items. Its handle and attempt are those of the first item, and
            it is cancelled when all items are. Empty for other tasks.
    """

    __slots__ = (
        "_is_late",
        "_later",
        "_lock",
        "_newest",
        "_send",
        "_sent",
        "_sent_at",
        "_wire_handle",
        "attempt",
        "cancelled",
        "deadline",
        "function",
        "handle",
        "items",
        "parts",
        "previous",
        "scheduled_at",
    )

    def __init__(
        self,
        *,
        handle: str,
        function: str,
        send: Callable[[Packet], Any],
        attempt: int = 1,
        deadline: float | None = None,
        parts: int = 0,
        previous: Progress | None = None,
        scheduled_at: datetime | None = None,
        later: Later | None = None,
        items: "tuple[Context, ...]" = (),
    ) -> None:
        self.handle = handle
        self.function = function
        self.attempt = attempt
        self.deadline = deadline
        self.parts = parts
        self.previous = previous
        self.scheduled_at = scheduled_at
        self.items = items
        self.cancelled = False
        self._send = send
        self._later = later
        self._newest: _Progress | None = None
        self._sent: _Progress | None = None
        self._sent_at = -inf
        self._is_late = False  # the newest progress is sent a little later
        self._lock = threading.Lock()  # of these
        self._wire_handle = handle.encode("utf-8", "surrogateescape")

    def progress(self, done: int, total: int, message: str | None = None) -> None:
        """Report that ``done`` of ``total`` is done. A ``total`` of 0 means that it is not known.

        You may call it as often as you like. The first report and the last one are always sent, and others at
        most every 0.1 seconds. gearflow's server also takes a ``message``, such as the name of a step.
        """
        self._newest = done, total, message
        if not self._is_late:
            self._report()

    def flush(self) -> None:
        """Send progress that waits for its time. The worker calls it at the end of the run."""
        if self._newest is not self._sent:
            # What cannot be sent was an error where it was reported first, and is none of the caller's here.
            with self._lock, suppress(TypeError, ValueError):
                self._send_newest(time.monotonic())

    def _report(self) -> None:
        """Send the newest progress now, or have it sent when it is time."""
        with self._lock:
            now = time.monotonic()
            seconds = self._sent_at + PROGRESS_INTERVAL - now
            if seconds <= 0:
                self._send_newest(now)
                return
            if self._is_late:
                return
            if self._later is None:
                if self._newest is not None and self._newest[0] == self._newest[1]:
                    self._send_newest(now)
                return
            self._is_late = True
        self._later(seconds, self._report_late)

    def _report_late(self) -> None:
        # First the flag, then the newest: a report that comes meanwhile is seen here, or it sees the flag.
        self._is_late = False
        self.flush()

    def _send_newest(self, now: float) -> None:
        newest = self._newest
        if newest is None or newest == self._sent:
            return
        done, total, message = newest
        state = b"%d" % total
        if message is not None:
            state += b"\0" + message.encode("utf-8", "backslashreplace")
        status = WorkStatus(self._wire_handle, b"%d" % done, state)
        self._sent, self._sent_at = newest, now
        self._send(status)

    def warn(self, text: str) -> None:
        """Send a warning to the callers that wait. The job goes on."""
        self.flush()  # progress that was reported before comes before
        self._send(WorkWarning(self._wire_handle, text.encode("utf-8", "backslashreplace")))

    @overload
    def track(self, items: Iterable[T], /, total: int | None = None) -> Iterator[T]: ...
    @overload
    def track(self, items: AsyncIterable[T], /, total: int | None = None) -> AsyncIterator[T]: ...
    def track(
        self, items: Iterable[T] | AsyncIterable[T], /, total: int | None = None
    ) -> Iterator[T] | AsyncIterator[T]:
        """Yield ``items``, and report how many are done, as ``progress`` does.

        By default ``total`` is ``len(items)``, if there is one.
        """
        if total is None:
            total = len(items) if isinstance(items, Sized) else 0
        if isinstance(items, AsyncIterable):
            return self._track_async(items, total)
        return self._track(items, total)

    def _track(self, items: Iterable[T], total: int) -> Iterator[T]:
        self.progress(0, total)
        done = 0
        for item in items:
            yield item
            done += 1
            self.progress(done, total)
        self.progress(done, total or done)

    async def _track_async(self, items: AsyncIterable[T], total: int) -> AsyncIterator[T]:
        self.progress(0, total)
        done = 0
        async for item in items:
            yield item
            done += 1
            self.progress(done, total)
        self.progress(done, total or done)


migration_hints.teach(Context, migration_hints.RUNS)
