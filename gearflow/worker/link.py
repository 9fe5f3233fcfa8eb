"""One server: a connection to it whenever that is possible, made anew for ever.

Three loops serve a connection: one reads, one writes whatever has come together since it last wrote (so
the results of a turn of the event loop and the GRABs for the slots they free leave in one write), and one
looks for a heartbeat, since the protocol has none: a server that is frozen or cut off would keep its GRABs
unanswered, and their slots from the other servers.

The log tells of an outage once, when it begins, and once when it is over.
"""

import logging
import random
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from math import inf
from typing import Any, Final, Protocol, cast

import anyio
from anyio.abc import SocketAttribute, SocketStream

from gearflow.client import Backoff, ServerAddress
from gearflow.errors import RemoteProtocolError
from gearflow.protocol.codec import encode
from gearflow.protocol.constants import RES
from gearflow.protocol.framing import FrameBuffer
from gearflow.protocol.packets import EchoReq
from gearflow.worker.grabbing import Grabbing, Lane
from gearflow.worker.outbox import Outbox
from gearflow.worker.session import Assignment, Cancelled, Echo, Event, Refusal, Session
from gearflow.worker.settings import WorkerSettings

logger = logging.getLogger("gearflow.worker")

RECEIVE_SIZE: Final = 262_144
"""Bytes: what asyncio's transports read at most in one go."""

_HEARTBEAT: Final = encode(EchoReq(b"heartbeat"))
_FAREWELL: Final = b"farewell"


class Host(Protocol):
    """What a link serves: the worker."""

    def post(self, callback: Callable[[], object]) -> None:
        """Call something on the loop, from any thread."""
        ...

    def registered(self) -> None:
        """A server knows the worker's functions."""
        ...

    def assigned(self, connection: "Connection", job: Assignment) -> None:
        """A job to be run; its slot is taken."""
        ...

    def cancelled(self, connection: "Connection", handle: bytes) -> None:
        """A job that runs here was cancelled at the server."""
        ...

    def lost(self, connection: "Connection") -> None:
        """The connection is gone, and the server hands its jobs on."""
        ...


class Link:
    """Keeps one server connected. Owns its connection and its lane."""

    def __init__(
        self,
        address: ServerAddress,
        settings: WorkerSettings,
        functions: Sequence[bytes],
        grabbing: Grabbing,
        host: Host,
    ) -> None:
        self.address = address
        self.connection: Connection | None = None  # while there is one
        self._settings = settings
        self._functions = functions
        self._grabbing = grabbing
        self.host = host
        self._backoff = Backoff(settings.first_retry, settings.longest_retry)
        self._failures = 0
        self._out = False  # the log has been told that the server cannot be reached

    async def keep(self) -> None:
        """Connect, serve, and start again when that ends, until nothing new is to be taken."""
        while not self._grabbing.stopped:
            reason = await self._serve_once()
            if self._grabbing.stopped:
                return
            self._failures += 1
            self._tell_of_outage(reason)
            await anyio.sleep(self._backoff.delay(self._failures, random.random()))

    async def farewell(self) -> None:
        """Return when the server has handled all that was sent to it, or is gone."""
        if self.connection is not None:
            await self.connection.farewell()

    async def _serve_once(self) -> str:
        """One connection from beginning to end; returns why it ended."""
        timeout = self._settings.connect_timeout
        stream: SocketStream | None = None
        try:
            with anyio.move_on_after(timeout):
                stream = await anyio.connect_tcp(self.address.host, self.address.port)
        except (OSError, UnicodeError) as error:  # a host name may be none that can be looked up
            return _reason(error)
        if stream is None:
            return f"no connection within {timeout:g} s"
        async with stream:
            stream.extra(SocketAttribute.raw_socket).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(stream, self)
            self.connection = connection
            try:
                await connection.serve(self._settings.heartbeat)
            finally:
                self.connection = None
                connection.close()
                self.host.lost(connection)
            return connection.reason

    def session(self, wake: Callable[[], None]) -> tuple[Lane, Session]:
        """The state of a new connection."""
        lane = Lane(self._grabbing, wake)
        settings = self._settings
        return lane, Session(lane, self._functions, settings.client_id.encode(), settings.poll)

    def registered(self) -> None:
        """The server has taken the registration: it is back, if it was away."""
        self._failures = 0
        self._out = False
        logger.info("registered with a server", extra={"server": str(self.address)})
        self.host.registered()

    def assigned(self, connection: "Connection", job: Assignment) -> None:
        """A job came."""
        self.host.assigned(connection, job)

    def cancelled(self, connection: "Connection", handle: bytes) -> None:
        """A job was cancelled."""
        self.host.cancelled(connection, handle)

    def refused(self, refusal: Refusal) -> None:
        """The server refused something."""
        logger.info(
            "the server refused %s (%s: %s)",
            refusal.what,
            refusal.code.decode("utf-8", "replace"),
            refusal.text.decode("utf-8", "replace"),
            extra={"server": str(self.address)},
        )

    def _tell_of_outage(self, reason: str) -> None:
        if self._out:
            return
        self._out = True
        logger.warning(
            "no connection to %s (%s); trying again until there is one",
            self.address,
            reason,
            extra={"server": str(self.address), "reason": reason},
        )


class Connection:
    """One connection while it lasts. Owns its outbox, not the runs of the jobs that came through it."""

    def __init__(self, stream: SocketStream, link: Link) -> None:
        self.reason = "it was closed"
        self.server = link.address
        self.outbox = Outbox()
        self._stream = stream
        self._link = link
        self._lane, self._session = link.session(self.wake)
        self._woken = anyio.Event()
        self._is_woken = False
        self._is_registered = False
        self._tasks = anyio.create_task_group()
        self._heard = True  # something, since the heartbeat last looked
        self._farewell = anyio.Event()

    async def serve(self, heartbeat: float) -> None:
        """Talk until the connection ends; ``reason`` then says why."""
        async with self._tasks as tasks:
            for loop in (self._read, self._write, lambda: self._watch(heartbeat)):
                tasks.start_soon(self._until_broken, loop)

    def close(self) -> None:
        """Nothing more comes or goes: the GRABs in flight are void."""
        self._lane.lost()
        self._farewell.set()

    def wake(self) -> None:
        """Have the writer look for something to write. To be called on the loop."""
        if not self._is_woken:
            self._is_woken = True
            self._woken.set()

    def wake_from_anywhere(self) -> None:
        """As ``wake``, from any thread."""
        # The writer clears the flag before it empties the outbox: whoever sees it set after having
        # put something in, knows that it will be taken.
        if not self._is_woken:
            self._link.host.post(self.wake)

    async def farewell(self) -> None:
        """Return when the server has handled all that was sent before, or the connection is gone.

        Closing a socket with unread bytes in it (a late NOOP) resets the connection, which may destroy
        what the server has not read yet; so its answer has to be awaited.
        """
        self.outbox.add(b"", encode(EchoReq(_FAREWELL)))
        self.wake()
        await self._farewell.wait()

    async def _until_broken(self, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await loop()
        except anyio.EndOfStream:
            self.reason = "the server closed the connection"
        except (OSError, anyio.BrokenResourceError) as error:
            self.reason = _reason(error)
        except RemoteProtocolError as error:
            self.reason = f"it does not speak Gearman: {error}"
        self._tasks.cancel_scope.cancel()

    async def _read(self) -> None:
        frames = FrameBuffer(RES)
        receive, received = self._stream.receive, self._session.received
        while True:
            data = await receive(RECEIVE_SIZE)
            self._heard = True
            now = time.monotonic()
            for kind, body in frames.feed(data):
                event = received(kind, body, now)
                if event is not None:
                    self._handle(event)
            if self._session.registered and not self._is_registered:
                self._is_registered = True
                self._link.registered()

    def _handle(self, event: Event) -> None:
        match event:
            case Assignment():
                self._link.assigned(self, event)
            case Cancelled(handle):
                self._link.cancelled(self, handle)
            case Refusal():
                self._link.refused(event)
            case Echo(data):
                if data == _FAREWELL:
                    self._farewell.set()

    async def _write(self) -> None:
        await self._stream.send(self._session.hello() + self._session.requests(time.monotonic()))
        while True:
            await self._until_woken()
            self._woken = anyio.Event()
            self._is_woken = False
            packets = self.outbox.take()
            if requests := self._session.requests(time.monotonic()):
                packets.append(requests)
            if packets:
                await self._stream.send(b"".join(packets))

    async def _until_woken(self) -> None:
        """Wait until there may be something to write, or the lane is due."""
        due = self._lane.due
        if due == inf:
            await self._woken.wait()
        else:  # asleep, or pausing: this is not the busy path, which must do without a timer
            with anyio.move_on_after(due - time.monotonic()):
                await self._woken.wait()

    async def _watch(self, heartbeat: float) -> None:
        """Return when the server has been silent for too long."""
        asked = False
        while True:
            slept_at = time.monotonic()
            await anyio.sleep(heartbeat)
            if self._heard:
                asked = False
            elif time.monotonic() - slept_at > heartbeat * 1.5:
                continue  # this loop was held up itself, and its silence says nothing about the server
            elif asked:
                self.reason = f"it has been silent for {2 * heartbeat:g} s"
                return
            else:
                self.outbox.add(b"", _HEARTBEAT)
                self.wake()
                asked = True
            self._heard = False


def _reason(error: BaseException) -> str:
    """What went wrong in a few words: the first cause's, where anyio wraps several."""
    cause = error.__cause__ or error
    if isinstance(cause, BaseExceptionGroup):
        cause = cast("BaseExceptionGroup[BaseException]", cause).exceptions[0]
    return str(cause) or type(cause).__name__
