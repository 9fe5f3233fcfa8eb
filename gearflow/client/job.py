"""A job seen from the client that submitted it: its handle, its events, its end.

The connection's reader moves a ``ClientJob`` on and wakes its waiters. What a job does not use costs it
nothing: events are kept from the first one that arrives, and something to wait on is made by the first
who waits.
"""

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, Self, TypeAlias

import anyio

from gearflow.client.config import ServerAddress
from gearflow.client.names import to_text
from gearflow.errors import GearflowError
from gearflow.protocol.packets import WorkData, WorkStatus, WorkWarning
from gearflow.protocol.request_queue import Signal

logger = logging.getLogger(__name__)

JobEvent: TypeAlias = WorkData | WorkWarning | WorkStatus

STATUS_BACKLOG: Final = 1024
"""Unread events from which on a newer status replaces the unread one right before it: progress is a
state, and a job that nobody watches may report millions of steps."""


@dataclass(frozen=True, slots=True)
class JobHandle:
    """A server's name for a job, together with that server. It means nothing to other servers, unless they
    share a database with it.

    Attributes:
        handle: The name.
        server: The server that gave it.
    """

    handle: str
    server: ServerAddress

    def __str__(self) -> str:
        return self.handle


@dataclass(frozen=True, slots=True)
class JobKey:
    """Names the last job of a function with a unique.

    Attributes:
        function: The function.
        unique: The unique.
        server: The server that has the job. None means the first server that knows one.
    """

    function: str
    unique: str
    server: ServerAddress | None = None

    def __str__(self) -> str:
        return f"of {self.function!r} with the unique {self.unique!r}"


JobName: TypeAlias = JobHandle | JobKey | str
"""What a job may be asked for by; a bare str is a handle that names no server."""


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A server's view of a job.

    Attributes:
        known: Whether the server knows the job. False if it has ended or never existed.
        running: Whether a worker has it.
        numerator: The progress that the worker last reported, 0 before the first report.
        denominator: The total that the worker last reported, 0 before the first report.
        state: The state from gearflow's own server, also after the end (``completed``, ``raised`` and so on).
            None if the server was not asked for it, or keeps nothing.
    """

    known: bool
    running: bool
    numerator: int
    denominator: int
    state: str | None = None


class JobFailed(GearflowError):
    """The worker failed the job.

    Attributes:
        exception: The worker's bytes (WORK_EXCEPTION), or None if the worker gave no reason.
    """

    def __init__(self, message: str = "the job failed", *, exception: bytes | None = None) -> None:
        super().__init__(message)
        self.exception = exception


class JobOwner(Protocol):
    """What a job needs of the connection it came by."""

    @property
    def new_signal(self) -> Callable[[], Signal]:
        """Makes a signal that one task may wait for."""
        ...

    def detach(self, job: "ClientJob") -> bool:
        """Forget the job. True if its server is notified that the job is no longer needed."""
        ...

    def leave_parts(self, handle: bytes) -> None:
        """Notify the server that a job need not wait for a reader of its parts."""
        ...


class ClientJob:
    """An attached job. The server pushes its result and events to the client.

    The connection on which you submitted it owns it. It belongs to the event loop of that connection.

    Attributes:
        raw_handle: The server's name for the job, as bytes.
        server: The server that has the job.
        function: The function of the job.
        done: Whether the job has ended for this client, in any way.
    """

    __slots__ = (
        "_callbacks",
        "_ended",
        "_events",
        "_failure",
        "_news",
        "_owner",
        "_result",
        "done",
        "function",
        "raw_handle",
        "server",
    )

    def __init__(
        self,
        raw_handle: bytes,
        server: ServerAddress,
        function: str,
        owner: JobOwner,
    ) -> None:
        self.raw_handle = raw_handle
        self.server = server
        self.function = function
        self.done = False
        """Whether the job has ended for us: completed, failed, lost, or cancelled here."""
        self._owner = owner
        self._result = b""
        self._failure: Callable[[], Exception] | None = None  # makes a new one for each raise
        self._ended: list[Signal] | None = None  # of those that wait for the end
        self._news: list[Signal] | None = None  # of those that wait for an event
        self._events: deque[JobEvent] | None = None
        self._callbacks: list[Callable[[ClientJob], object]] | None = None

    def __repr__(self) -> str:
        state = "done" if self.done else "pending"
        return f"<ClientJob {self.handle} of {self.function!r} on {self.server}, {state}>"

    @property
    def handle(self) -> str:
        """The server's name for the job."""
        return to_text(self.raw_handle)

    async def result(self, timeout: float | None = None) -> bytes:
        """Wait for the end and return the result. You can call it again, and from several tasks.

        If you cancel the wait, the job stays attached.

        Args:
            timeout: Seconds to wait. None means for ever.

        Raises:
            JobFailed: The worker failed the job.
            ConnectionLost: The connection closed first. The job may run on.
            TimeoutError: The job has not ended in time. It runs on and stays attached.
            concurrent.futures.CancelledError: ``cancel()`` was called.
        """
        if not self.done:
            if timeout is None:
                await self.wait()
            else:
                with anyio.move_on_after(timeout):
                    await self.wait()
                self._require_end(timeout)
        return self.outcome()

    def events(self) -> AsyncIterator[JobEvent]:
        """Yield what the worker sends before the end, from the first event on. Ends when the job ends.

        ``result()`` says how the job ended. Each event is returned once, so a second iterator goes on where
        the first one is. You can break off the iteration at any time.
        """
        return _Events(self)

    def cancel(self) -> bool:
        """Detach from the job. gearflow's server ends a job that nobody else wants.

        A waiting job does not run, and the server notifies the worker of a running one. Other servers are not
        notified, so the job may run on there. The method does not wait. All waits for the result raise
        ``concurrent.futures.CancelledError`` at once. Returns whether the job had not ended yet.
        """
        if self.done:
            return False
        told = self._owner.detach(self)
        fate = "it ends unless others wait for it" if told else "this client detached, the job may run on"
        self.fail(partial(CancelledError, f"{self._named()} was cancelled: {fate}"))
        return True

    def add_done_callback(self, callback: "Callable[[ClientJob], object]") -> None:
        """Call ``callback(job)`` once in the event loop's thread when the job has ended in any way.

        If it has ended, the call is immediate. The callback must not block. An exception in it is logged.
        """
        if self.done:
            self._call(callback)
        elif self._callbacks is None:
            self._callbacks = [callback]
        else:
            self._callbacks.append(callback)

    async def next_event(self) -> JobEvent | None:
        """Wait for the next event and return it, or None when the job has ended."""
        while not self._events:
            if self.done:
                return None
            await self.wait_for_news()
        return self._events.popleft()

    # --------------------------------------------- for the client, and for the connection that owns it

    @property
    def is_cancelled(self) -> bool:
        """Whether ``cancel()`` ended it."""
        return getattr(self._failure, "func", None) is CancelledError

    def wake(self, _job: "ClientJob | None" = None) -> None:
        """Have those that wait for news look again."""
        if self._news is not None:
            self._notify()

    def forget_callback(self, callback: "Callable[[ClientJob], object]") -> None:
        """Forget a callback that was not called yet, if it is there."""
        if self._callbacks is not None and callback in self._callbacks:
            self._callbacks.remove(callback)

    def take_events(self) -> list[JobEvent]:
        """Take the events that are there."""
        events = list(self._events or ())
        self._events = None
        return events

    @property
    def owner(self) -> JobOwner:
        """The connection by which it came."""
        return self._owner

    async def wait_for_news(self) -> None:
        """Wait for an event, or for the end."""
        news = self._owner.new_signal()
        self._news = [*(self._news or ()), news]
        try:
            await news.wait()
        finally:
            self._forget(news)

    async def wait(self) -> None:
        """Wait for the end."""
        if self.done:
            return
        ended = self._owner.new_signal()
        self.wake_at_end(ended)
        try:
            await ended.wait()
        finally:
            if self._ended is not None:
                self._ended.remove(ended)

    def outcome(self) -> bytes:
        """Return the result of a job that has ended. Raises as ``result``."""
        if self._failure is not None:
            raise self._failure()
        return self._result

    def wake_at_end(self, signal: Signal) -> None:
        """Set a signal when the job has ended. It has not yet."""
        if self._ended is None:
            self._ended = [signal]
        else:
            self._ended.append(signal)

    def add_event(self, event: JobEvent) -> None:
        """The worker said something; nothing is heard of a job that has ended."""
        if self.done:
            return
        events = self._events
        if events is None:
            events = self._events = deque()
        if len(events) >= STATUS_BACKLOG and type(event) is WorkStatus and type(events[-1]) is WorkStatus:
            events[-1] = event
        else:
            events.append(event)
        if self._news is not None:
            self._notify()

    def complete(self, result: bytes) -> None:
        """The worker completed it; the first end counts."""
        if not self.done:
            self._result = result
            self._end()

    def fail(self, failure: Callable[[], Exception]) -> None:
        """It ended without a result: ``failure`` makes what ``result()`` raises; the first end counts."""
        if not self.done:
            self._failure = failure
            self._end()

    def lose(self, failure: Callable[[], Exception]) -> None:
        """The connection it came by is gone; ``failure`` as for ``fail``."""
        self.fail(failure)

    def move(self, raw_handle: bytes, server: ServerAddress, owner: JobOwner) -> None:
        """It goes on under another handle, by another connection, unless nobody wants it any more."""
        self.raw_handle = raw_handle
        self.server = server
        self._owner = owner
        if self.done:
            owner.detach(self)

    def fail_remotely(self, exception: bytes | None) -> None:
        """The worker failed it."""
        reason = "without saying why" if exception is None else exception[:2000].decode("utf-8", "replace")
        message = f"{self._named()} failed: {reason}"
        self.fail(partial(JobFailed, message, exception=exception))

    def _end(self) -> None:
        self.done = True
        if self._ended is not None:
            ended, self._ended = self._ended, None
            for signal in ended:
                signal.set()
        if self._news is not None:
            self._notify()
        if self._callbacks is not None:
            callbacks, self._callbacks = self._callbacks, None
            for callback in callbacks:
                self._call(callback)

    def _notify(self) -> None:
        """Wake those that wait for an event."""
        news, self._news = self._news or (), None
        for signal in news:
            signal.set()

    def _forget(self, news: Signal) -> None:
        """One less waits for an event."""
        if self._news is not None and news in self._news:
            self._news.remove(news)

    def _call(self, callback: "Callable[[ClientJob], object]") -> None:
        try:
            callback(self)
        except Exception:  # the connection serves other jobs too
            logger.exception("a job's done callback raised", extra={"handle": self.handle})

    def _require_end(self, timeout: float) -> None:
        if not self.done:
            raise TimeoutError(f"{self._named()} has not ended within {timeout:g} s; it runs on")

    def _named(self) -> str:
        return f"job {self.handle} of {self.function!r} on {self.server}"


class _Events:
    """A job's events; no generator, so that nothing is left to finalize when iteration is broken off."""

    __slots__ = ("_job",)

    def __init__(self, job: ClientJob) -> None:
        self._job = job

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> JobEvent:
        event = await self._job.next_event()
        if event is None:
            raise StopAsyncIteration
        return event
