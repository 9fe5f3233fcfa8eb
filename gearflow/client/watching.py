"""Watches a job: what happens to it, as events, wherever the server and the connection go.

On gearflow's server a watcher has a call of its own, ``gearflow:watch``. Its first event is the state of the
job, and after a lost connection the next call begins with the state, too. On other servers the events are the
packets about an attached job, which its watchers share.

The client reads all that comes, so ``WatchFeed`` bounds what a slow watcher leaves unread: of progress it
keeps the newest, and parts are dropped first.
"""

from collections import deque
from collections.abc import Mapping
from concurrent.futures import CancelledError
from typing import Any, Final, TypeAlias

from gearflow.client.connection import Connection
from gearflow.client.following import Following
from gearflow.client.job import ClientJob, JobEvent, JobFailed, JobName
from gearflow.client.names import to_number
from gearflow.client.pool import Pool
from gearflow.client.requests import NotSent, ReservedJob
from gearflow.errors import GearflowError, UnknownJob
from gearflow.protocol.packets import WorkData, WorkStatus, WorkWarning
from gearflow.protocol.server_events import WATCH, read_watch_event, watch_event

WatchEvent: TypeAlias = tuple[Mapping[str, Any], bytes]
"""The fields of an event, as on the wire, and the part of a job if it is one."""

MOST_EVENTS: Final = 1024
"""Unread events of a watcher from which on some are dropped."""

MOST_BYTES: Final = 1 << 20
"""The same in bytes."""


class WatchFeed:
    """The unread events of a watcher. Owns state."""

    __slots__ = ("_events", "_size")

    def __init__(self) -> None:
        self._events: deque[WatchEvent] = deque()
        self._size = 0

    def add_data(self, data: bytes) -> None:
        """An event came."""
        self._events.append(read_watch_event(data))
        self._size += len(data)
        if len(self._events) > MOST_EVENTS or self._size > MOST_BYTES:
            self._shorten()

    def add_status(self, status: WorkStatus) -> bool:
        """This does not come to a watcher."""
        return False

    def take(self) -> list[WatchEvent]:
        """Take all events."""
        events = list(self._events)
        self._events.clear()
        self._size = 0
        return events

    def _shorten(self) -> None:
        """Drop all parts, all progress but the newest, and then the oldest events if they are still many."""
        kept = deque[WatchEvent]()
        size = 0
        has_progress = False
        for event in reversed(self._events):
            fields, _ = event
            match fields.get("event"):
                case "part":
                    continue
                case "progress" if has_progress:
                    continue
                case "progress":
                    has_progress = True
                case _:
                    pass
            size += len(str(fields))
            if kept and (len(kept) >= MOST_EVENTS // 2 or size > MOST_BYTES // 2):
                break
            kept.appendleft(event)
        self._events = kept
        self._size = size


class Watcher:
    """Watches one job. Owns state, and a call on the job's server. One task at a time uses it.

    Args:
        pool: The servers, for a job by name.
        job: The job, attached or by name.
        parts: Whether its parts are events, too.

    Attributes:
        failure: Why the job has failed, once there are no more events. None if it completed.
    """

    def __init__(self, pool: Pool | None, job: ClientJob | JobName, *, parts: bool = False) -> None:
        self._following = Following(pool, job, WATCH)
        self._parts = parts
        self._place = ""  # the handle of the job that was asked for last
        self._source: ClientJob | None = None  # brings the events: the call, or the job itself
        self._position = 0  # of the parts, on other servers
        self._is_over = False
        self.failure: JobFailed | CancelledError | None = None

    async def take(self) -> list[WatchEvent]:
        """Wait for events, and return all that are there. An empty list means that the job has ended.

        The event ``{"event": "again"}`` says that the job was submitted again, because its server was lost.

        Raises:
            ConnectionLost: The connection of an attached job is lost.
            UnknownJob: The server knows no such job.
            NoServer: The server cannot be reached for the first time.
            UnsupportedByServer: The server is not gearflow's own, and the job is not attached.
        """
        try:
            while not self._is_over:
                self._following.check()
                attached = self._following.attached
                if self._source is None and attached is not None and attached.done:
                    self._source = attached
                source = self._source or await self._ask()
                if events := self._events_of(source):
                    return events
                if not source.done:
                    await source.wait_for_news()
                else:
                    await self._finish(source)
        except CancelledError as failure:
            self.failure = failure
            self.close()
        except GearflowError:
            self.close()
            raise
        return []

    def close(self) -> None:
        """Watch no more."""
        self._is_over = True
        source, self._source = self._source, None
        if source is not None and source is not self._following.attached:
            source.cancel()

    async def _finish(self, source: ClientJob) -> None:
        """The source has ended: with the job, or with its connection."""
        try:
            self._end(source)
        except GearflowError as error:
            self._source = None
            await self._lost(error)

    def _end(self, source: ClientJob) -> None:
        """The job has ended. Raises the error of one whose end is not known."""
        try:
            source.outcome()
        except (JobFailed, CancelledError) as failure:
            self.failure = failure
        self.close()

    async def _lost(self, error: Exception) -> None:
        """As ``Following.lost``. But an attached job that has ended is not unknown."""
        attached = self._following.attached
        if not (isinstance(error, UnknownJob) and attached is not None and attached.done):
            await self._following.lost(error)

    async def _ask(self) -> ClientJob:
        while True:
            try:
                connection, handle = await self._following.connect()
                return await self._ask_on(connection, handle)
            except (GearflowError, NotSent) as error:
                await self._lost(error)

    async def _ask_on(self, connection: Connection, handle: str) -> ClientJob:
        job = self._following.attached
        if job is not None and not connection.features.gearflow:
            self._source = job
            return job
        from gearflow.protocol.server_calls import WatchRequest

        feed = WatchFeed()
        if job is not None and self._place not in ("", handle):
            feed.add_data(watch_event("again"))
        self._place = handle
        request = WatchRequest(handle=handle, parts=self._parts)
        self._source = await self._following.ask(connection, request, feed)
        return self._source

    def _events_of(self, source: ClientJob) -> list[WatchEvent]:
        if source is not self._following.attached:
            assert isinstance(source, ReservedJob)  # it is a call
            assert isinstance(source.feed, WatchFeed)
            return source.feed.take()
        events = source.take_events()
        return [self._own(event) for event in events if self._parts or type(event) is not WorkData]

    def _own(self, event: JobEvent) -> WatchEvent:
        """A packet about the job as an event."""
        match event:
            case WorkStatus(numerator=done, denominator=total):
                return {"event": "progress", "done": to_number(done), "total": to_number(total)}, b""
            case WorkWarning(data=text):
                return {"event": "warned", "text": text.decode(errors="replace")}, b""
            case WorkData(data=part):
                self._position += 1
                return {"event": "part", "position": self._position}, part
