"""A connection as bytes: it writes once in a turn of the event loop, and hands over what comes.

There are two kinds of it. On asyncio, and on uvloop, a connection without TLS is a protocol of our own. The
event loop hands its bytes over by a plain call, and nothing is written before the turn has ended, so many
small packets leave in one write. Every other connection is one of anyio's byte streams, with a task that
reads it and a task that writes it. anyio's streams go through the event loop at each send and each receive,
so there the same costs several times as much.
"""

import asyncio
import socket
import sys
from abc import abstractmethod
from collections import deque
from contextlib import suppress
from fcntl import ioctl
from ipaddress import ip_address
from termios import TIOCOUTQ
from typing import Final, NoReturn, Protocol, cast

import anyio
import anyio.lowlevel
from anyio.abc import AsyncResource, ByteStream, SocketAttribute, TaskStatus

from gearflow.client.config import ServerAddress

RECEIVE_SIZE: Final = 262_144
"""Bytes: what asyncio's transports read at most in one go."""

_PIECE: Final = 1 << 20
"""Bytes that are given to an anyio stream at once, which does not tell how much of them it has sent."""

_NEXT_ADDRESS: Final = 0.25
"""Seconds after which the next address of a name is tried as well, as RFC 8305 recommends."""

_KEEPALIVE: Final = (
    ("TCP_KEEPIDLE", 15),
    ("TCP_KEEPINTVL", 5),
    ("TCP_KEEPCNT", 3),
    ("TCP_USER_TIMEOUT", 30_000),
)
"""A host that vanished without a word is noticed after half a minute, also while it is sent something."""


class StreamOwner(Protocol):
    """It has what is to be written, and gets what comes. Both methods run in the event loop."""

    def take(self) -> bytes:
        """Return all that is to be written now, which counts as sent from then on. Empty for nothing."""
        ...

    def received(self, data: bytes) -> None:
        """Handle bytes that came. An error that it raises ends the connection."""
        ...


class ServerStream(AsyncResource):
    """A connection, with or without TLS. Use it in ``async with``, which closes it at the end, and
    drops what is not written yet.

    It has two faces. ``send`` and ``receive`` are for short exchanges. ``serve`` is for the rest of its life,
    and ``wake`` is for those that have something to write. Both raise OSError, EndOfStream or
    BrokenResourceError, and from the second ``receive`` or ``serve`` on the same again.
    """

    is_cut = False
    """Whether a cancelled ``send`` or ``serve`` may have sent a part of what it had."""

    @property
    @abstractmethod
    def unsent(self) -> int:
        """Bytes that were to be written and that have not arrived yet, as far as the system tells that."""

    @property
    @abstractmethod
    def descriptor(self) -> int:
        """The socket's number, -1 once it is closed."""

    @abstractmethod
    async def send(self, data: bytes) -> None:
        """Send bytes. Returns when the operating system has taken them."""

    @abstractmethod
    async def receive(self) -> bytes:
        """Wait for bytes and return those that have come."""

    @abstractmethod
    async def serve(self, owner: StreamOwner) -> NoReturn:
        """Write what the owner has and hand over what comes, until the connection ends. Raises its end.

        What the owner raises it raises, too. If it is cancelled, the connection stays open.
        """
        raise NotImplementedError  # what never returns must have a body that does not

    @abstractmethod
    def wake(self, *, now: bool = False) -> None:
        """The owner has something to write. It is asked for it soon, once for many calls of this.

        With ``now`` it may be asked at once, which saves a turn of the event loop.
        """

    @abstractmethod
    def pause(self) -> None:
        """Hand over nothing more to the owner, apart from what was read already."""

    @abstractmethod
    def resume(self) -> None:
        """Hand over again what comes."""


class AsyncioStream(ServerStream, asyncio.Protocol):
    """A connection without TLS on asyncio or uvloop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport  # once it is made
        self._owner: StreamOwner | None = None
        self._unread = deque[bytes]()  # that came while there was no owner
        self._end: Exception | None = None
        self._is_full = False  # the operating system has not taken yet what was written
        self._is_woken = False  # ``_flush_soon`` is to be called
        self._readable: asyncio.Future[None] | None = None  # somebody waits for bytes, or for the end
        self._writable: asyncio.Future[None] | None = None

    @property
    def unsent(self) -> int:
        return self._transport.get_write_buffer_size() + _unacknowledged(self.descriptor)

    @property
    def descriptor(self) -> int:
        return _descriptor(self._transport.get_extra_info("socket"))

    async def send(self, data: bytes) -> None:
        self._require_open()
        self._transport.write(data)
        while self._is_full:
            self._writable = self._loop.create_future()
            await self._writable
            self._require_open()

    async def receive(self) -> bytes:
        while not self._unread:
            await self._wait_readable()
        return self._unread.popleft()

    async def serve(self, owner: StreamOwner) -> NoReturn:
        self._owner = owner
        try:
            self._flush()
            while self._unread:
                self.data_received(self._unread.popleft())
            while True:
                await self._wait_readable()
        finally:
            self._owner = None

    def wake(self, *, now: bool = False) -> None:
        if now:
            self._flush()
        elif not self._is_woken:
            self._is_woken = True
            self._loop.call_soon(self._flush_soon)

    def pause(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    async def aclose(self) -> None:
        self.abort()
        await asyncio.sleep(0)  # in which the socket is closed

    def abort(self) -> None:
        """Close the connection soon."""
        self._ended(anyio.ClosedResourceError())
        self._transport.abort()

    # ----------------------------------------------------------------------------- for the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        tune(transport.get_extra_info("socket"))
        # What the operating system has not taken is still with the owner, as far as possible.
        self._transport.set_write_buffer_limits(0)

    def data_received(self, data: bytes) -> None:
        owner = self._owner
        if owner is None:
            self._unread.append(data)
            self._transport.pause_reading()
            _wake(self._readable)
        elif self._end is None:
            try:
                owner.received(data)
            except Exception as error:  # noqa: BLE001  (``serve`` raises it)
                self._ended(error)

    def eof_received(self) -> bool:
        self._ended(anyio.EndOfStream())
        return True  # what is being written may still be read

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            self._ended(anyio.EndOfStream())
        else:
            error = anyio.BrokenResourceError()
            error.__cause__ = exc
            self._ended(error)
        self._is_full = False
        _wake(self._writable)

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        _wake(self._writable)
        self._flush()

    # -------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Write what the owner has, unless there is no room. In that case ``resume_writing`` is next."""
        if self._owner is None or self._is_full or self._transport.is_closing():
            return
        try:
            data = self._owner.take()
            if data:
                self._transport.write(data)
        except Exception as error:  # noqa: BLE001  (as above)
            self._ended(error)

    def _flush_soon(self) -> None:
        self._is_woken = False
        self._flush()

    async def _wait_readable(self) -> None:
        """Return when something has changed. Raises the end of the connection."""
        if self._end is not None:
            raise self._end
        self._transport.resume_reading()
        self._readable = self._loop.create_future()
        await self._readable

    def _ended(self, error: Exception) -> None:
        if self._end is None:  # the first reason counts
            self._end = error
            _wake(self._readable)

    def _require_open(self) -> None:
        if self._transport.is_closing():
            raise self._end or anyio.BrokenResourceError


class AnyioStream(ServerStream):
    """A connection that is one of anyio's byte streams: on trio, and everywhere with TLS."""

    def __init__(self, stream: ByteStream) -> None:
        self.raw = stream
        self._woken = anyio.Event()
        self._resumed: anyio.Event | None = None  # to be waited for before anything is read
        self._unsent = 0

    @property
    def unsent(self) -> int:
        return self._unsent + _unacknowledged(self.descriptor)

    @property
    def descriptor(self) -> int:
        return _descriptor(raw_socket(self.raw))

    async def send(self, data: bytes) -> None:
        self.is_cut = True
        for start in range(0, len(data), _PIECE):
            self._unsent = len(data) - start
            await self.raw.send(data[start : start + _PIECE])
        self._unsent = 0
        self.is_cut = False

    async def receive(self) -> bytes:
        return await self.raw.receive(RECEIVE_SIZE)

    async def serve(self, owner: StreamOwner) -> NoReturn:
        end: Exception | None = None
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._write, owner)
            try:
                while True:
                    if self._resumed is not None:
                        await self._resumed.wait()
                    owner.received(await self.raw.receive(RECEIVE_SIZE))
            except Exception as error:  # noqa: BLE001  (raised below: the group would put it into another)
                end = error
            tasks.cancel_scope.cancel()
        assert end is not None
        raise end

    def wake(self, *, now: bool = False) -> None:
        self._woken.set()

    def pause(self) -> None:
        if self._resumed is None:
            self._resumed = anyio.Event()

    def resume(self) -> None:
        if self._resumed is not None:
            self._resumed.set()
            self._resumed = None

    async def aclose(self) -> None:
        await self.raw.aclose()

    async def _write(self, owner: StreamOwner, *, task_status: TaskStatus[None]) -> None:
        data = owner.take()  # before anything is read
        task_status.started()
        # After an error the reader takes what the server still said, and then finds the end.
        with suppress(OSError, anyio.BrokenResourceError, anyio.EndOfStream):  # the last once TLS has failed
            while True:
                if data:
                    await self.send(data)
                    del data  # which may be large, and the next one a long time off
                # A send that is cancelled before it begins would not tell that it has sent nothing.
                await anyio.lowlevel.checkpoint_if_cancelled()
                self._woken = anyio.Event()
                if not (data := owner.take()):
                    await self._woken.wait()


def raw_socket(stream: ByteStream) -> socket.socket | None:
    """The socket under one of anyio's streams. None if it is closed, where uvloop has it no more."""
    try:
        return stream.extra(SocketAttribute.raw_socket)
    except AttributeError:  # anyio asks the missing socket for its peer
        return None


def tune(raw: socket.socket | None) -> None:
    """Send small packets at once, and notice a host that is gone."""
    if raw is None:
        return
    with suppress(OSError):  # it is closed already, or the peer is gone, which its first user will notice
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            if (option := getattr(socket, name, None)) is not None:  # not every platform has each
                raw.setsockopt(socket.IPPROTO_TCP, option, value)


async def connect(server: ServerAddress) -> AsyncioStream:
    """A connection on asyncio, to the first address of the server that takes one.

    As ``anyio.connect_tcp``, which keeps its transport to itself. The next address of a name is tried as well
    when one takes long to answer.

    Raises:
        OSError, UnicodeError: There is none to be had. Several reasons are an exception group, as its cause.
    """
    loop = asyncio.get_running_loop()
    addresses = await _addresses(server)
    made: list[AsyncioStream] = []
    errors: list[OSError] = []
    try:
        async with anyio.create_task_group() as attempts:

            async def attempt(address: str, over: anyio.Event) -> None:
                try:
                    _, stream = await loop.create_connection(AsyncioStream, address, server.port)
                    made.append(stream)
                    attempts.cancel_scope.cancel()
                except OSError as error:
                    errors.append(error)
                finally:
                    over.set()

            for address in addresses:
                over = anyio.Event()
                attempts.start_soon(attempt, address, over)
                with anyio.move_on_after(_NEXT_ADDRESS):
                    await over.wait()
        if not made:
            causes = errors[0] if len(errors) == 1 else ExceptionGroup("no address can be reached", errors)
            raise OSError("all addresses failed") from causes
        return made.pop(0)
    finally:
        for stream in made:  # they came at the same moment as the first one, or nobody wants it any more
            stream.abort()
        errors.clear()  # they refer to this frame


async def _addresses(server: ServerAddress) -> list[str]:
    """The addresses of a server's name: the first two are of both families, IPv6 first."""
    with suppress(ValueError):
        return [ip_address(server.host).compressed]
    found = await anyio.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    v6, others = list[str](), list[str]()
    for family, _, _, _, (address, *_) in found:
        (v6 if family == socket.AF_INET6 else others).append(str(address))
    return [*v6[:1], *others[:1], *v6[1:], *others[1:]]


def _descriptor(raw: socket.socket | None) -> int:
    return -1 if raw is None else raw.fileno()


def _unacknowledged(descriptor: int) -> int:
    """Bytes that the peer's system has not acknowledged. 0 where that cannot be asked."""
    with suppress(OSError, ValueError):  # it is closed
        return int.from_bytes(ioctl(descriptor, TIOCOUTQ, bytes(4)), sys.byteorder)
    return 0


def _wake(waiter: "asyncio.Future[None] | None") -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
