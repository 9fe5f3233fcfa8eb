"""The events of a job as values: an iterator for code in an event loop, and one for code without.

``Watched`` makes typed events of what the server sends. It knows the state that it has shown last, so after a
lost connection it shows only what is new, and says so if a run has ended meanwhile. ``Arriving`` has what the
iterators have in common, also with those of streams.
"""

from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from typing import Any, Final, Generic, Protocol, TypeVar

from gearflow.client import Client, ClientJob, JobFailed, JobName, SyncClient, SyncJob, current
from gearflow.client.server_calls import was_cancelled
from gearflow.client.watching import Watcher, WatchEvent
from gearflow.errors import GearflowError
from gearflow.runtime.eventloop import Post, poster
from gearflow.tasks.events import Ended, EndState, Event, Part, Progress, Retrying, Started, Warned
from gearflow.tasks.remote_errors import decode_failure

T = TypeVar("T")

RESTARTED: Final = "the server restarted"
"""The reason of a run that ended while the server or its connection was away."""

_SUBMITTED_AGAIN: Final = "its server was lost, and the job was submitted again"

_CLOCK_ERROR: Final = 0.02
"""Seconds by which a server may tell the same time twice. No server restarts as fast."""

_END_STATES: Final[dict[str | None, EndState]] = {"Expired": "expired", "WorkersDied": "workers_died"}
"""By the type of the failure, where it is not the task's own."""


class ArrivalSource(Protocol):
    """It brings what an iterator returns, in the event loop of the client."""

    @property
    def post(self) -> Post | None:
        """Has something called in that event loop. None before the reading begins."""
        ...

    def close(self) -> None:
        """Bring no more."""
        ...


S = TypeVar("S", bound=ArrivalSource)


class Arriving(Generic[S, T]):
    """An iterator over what arrives in the event loop of the client. If you drop it, its source is closed."""

    def __init__(self, source: S) -> None:
        self._source = source
        self._ready: deque[T] = deque()  # that have come
        self._is_over = False
        self._is_waiting = False

    def __del__(self) -> None:
        # 'break' has left the iteration, and the garbage collector may call this in any thread.
        with suppress(AttributeError):  # of an object whose __init__ raised
            if not self._is_over:
                self._leave()

    def _leave(self) -> None:
        """End the iteration, from any thread."""
        self._is_over = True
        self._ready.clear()
        if self._source.post is not None:
            self._source.post(self._source.close)

    @contextmanager
    def _alone(self) -> Generator[None]:
        """Refuse a second wait at the same time, for which there is no order of what arrives."""
        if self._is_waiting:
            raise RuntimeError("another task waits for the next value; give each task its own iterator")
        self._is_waiting = True
        try:
            yield
        finally:
            self._is_waiting = False


class Watched(Generic[T]):
    """The events of one job, in the event loop of the client. Owns state.

    Args:
        what: The job.
        decode: Decodes its parts. None means that they are not wanted.
    """

    def __init__(self, what: ClientJob | JobName, decode: Callable[[bytes], T] | None) -> None:
        self._what = what
        self._decode = decode
        self._watcher: Watcher | None = None
        self._run: Started | None = None  # that is under way, as it was shown
        self._since = 0.0  # when it began, in the server's time
        self._progress: Progress | None = None  # that was shown
        self._is_known = False  # a state has come
        self._is_over = False
        self.post: Post | None = None

    async def take(self, client: Client | None) -> list[Event[T]]:
        """Wait for events. There are none after the last. Without a client, the job is attached."""
        events: list[Event[T]] = []
        if self._watcher is None:
            self.post = poster()
            pool = None if client is None else client.pool
            self._watcher = Watcher(pool, self._what, parts=self._decode is not None)
        while not events and not self._is_over:
            try:
                arrived = await self._watcher.take()
            except GearflowError:
                self._is_over = True
                raise
            for event in arrived:
                events.extend(self._typed(event))
            if not arrived and not self._is_over:  # ``close`` also ends a wait
                self._is_over = True
                events.append(await self._end(client, self._watcher.failure))
        return events

    def close(self) -> None:
        """Watch no more."""
        self._is_over = True
        if self._watcher is not None:
            self._watcher.close()

    def _typed(self, event: WatchEvent) -> Iterator[Event[T]]:
        fields, part = event
        match fields:
            case {"event": "state"}:
                yield from self._state(fields)
            case {"event": "again"}:
                yield self._ended(Retrying(self._attempt, 0.0, _SUBMITTED_AGAIN))
            case {"event": "started"}:
                yield from self._started(fields)
            case {"event": "progress", "done": int(done), "total": int(total)}:
                self._progress = Progress(done, total, _text(fields, "message"))
                yield self._progress
            case {"event": "warned", "text": str(text)}:
                yield Warned(text)
            case {"event": "retrying", "attempt": int(attempt), "delay": int() | float() as delay}:
                yield self._ended(Retrying(attempt, float(delay), _text(fields, "reason")))
            case {"event": "part", "position": int(position)} if self._decode is not None:
                yield Part(self._decode(part), position)
            case _:
                pass  # a gap, which the positions show, or an event of a later server

    def _state(self, fields: Mapping[str, Any]) -> Iterator[Event[T]]:
        """The state at the beginning, or after a lost connection."""
        is_running = fields.get("state") == "running"
        if self._run is not None and not (is_running and self._is_same(fields)):
            yield self._ended(Retrying(self._attempt, 0.0, RESTARTED))
        if is_running and self._run is None:
            yield from self._started(fields)
        match fields.get("progress"):
            case [int(done), int(total)]:
                progress = Progress(done, total, _text(fields, "message"))
                if progress != self._progress:
                    self._progress = progress
                    yield progress
            case _:
                pass

    def _started(self, fields: Mapping[str, Any]) -> Iterator[Event[T]]:
        self._run = _run_of(fields)
        self._since = fields.get("since") or 0.0
        self._progress = None
        yield self._run

    def _is_same(self, fields: Mapping[str, Any]) -> bool:
        """Whether the run in a state is the one that was shown."""
        since = fields.get("since") or 0.0
        return _run_of(fields) == self._run and abs(since - self._since) < _CLOCK_ERROR

    def _ended(self, event: Retrying) -> Retrying:
        """A run has ended."""
        self._run = self._progress = None
        return event

    @property
    def _attempt(self) -> int:
        return 1 if self._run is None else self._run.attempt

    async def _end(self, client: Client | None, failure: JobFailed | CancelledError | None) -> Ended:
        match failure:
            case None:
                return Ended("completed")
            case CancelledError():
                return Ended("cancelled")
            case JobFailed(exception=None) if await self._was_cancelled(client):
                return Ended("cancelled")
            case JobFailed(exception=exception):
                reason = decode_failure(exception, getattr(self._what, "handle", str(self._what)))
                state: EndState = "failed" if exception is None else _END_STATES.get(reason.type, "raised")
                return Ended(state, reason)

    async def _was_cancelled(self, client: Client | None) -> bool:
        job = self._what
        return client is not None and not isinstance(job, ClientJob) and await was_cancelled(client.pool, job)


class _Watching(Arriving[Watched[T], Event[T]]):
    """The members that both kinds of iterators have."""

    def __init__(self, what: ClientJob | JobName, decode: Callable[[bytes], T] | None) -> None:
        super().__init__(Watched(what, decode))

    def _next(self) -> Event[T] | None:
        """The next event that is there. None after the last."""
        if self._is_over or not self._ready:
            self._is_over = True
            return None
        event = self._ready.popleft()
        if isinstance(event, Ended):
            self._is_over = True
        return event


class AsyncEvents(_Watching[T], AsyncIterator[Event[T]], Generic[T]):
    """The events of a job, for code in an event loop."""

    def __init__(self, what: ClientJob | JobName, decode: Callable[[bytes], T] | None = None) -> None:
        super().__init__(what, decode)
        self._is_attached = isinstance(what, ClientJob)

    async def __anext__(self) -> Event[T]:
        if not self._ready:
            if self._is_over:
                raise StopAsyncIteration
            with self._alone():
                client = None if self._is_attached else current.at_hand() or await current.current()
                self._ready.extend(await self._source.take(client))
        if (event := self._next()) is None:
            raise StopAsyncIteration
        return event

    async def aclose(self) -> None:
        """End the iteration. The job goes on."""
        self._leave()


class Events(_Watching[T], Iterator[Event[T]], Generic[T]):
    """The events of a job, for code without an event loop."""

    def __init__(self, what: SyncJob | JobName, decode: Callable[[bytes], T] | None = None) -> None:
        super().__init__(what.attached if isinstance(what, SyncJob) else what, decode)
        self._owner: SyncJob | SyncClient | None = what if isinstance(what, SyncJob) else None

    def __next__(self) -> Event[T]:
        if not self._ready:
            if self._is_over:
                raise StopIteration
            current.forbid_running_loop("aevents")
            if isinstance(self._owner, SyncJob):
                self._owner.run(lambda _: self._fetch(None))
            else:
                self._owner = self._owner or current.current_sync()
                self._owner.run(self._fetch)
        if (event := self._next()) is None:
            raise StopIteration
        return event

    def close(self) -> None:
        """End the iteration. The job goes on."""
        self._leave()

    async def _fetch(self, client: Client | None) -> None:
        if not self._ready:  # an interrupt may have left them here
            self._ready.extend(await self._source.take(client))


def _run_of(fields: Mapping[str, Any]) -> Started:
    return Started(fields.get("attempt") or 1, _text(fields, "worker"))


def _text(fields: Mapping[str, Any], name: str) -> str:
    return str(fields.get(name) or "")
