"""A TCP proxy that counts bytes: it lets so many through, and then the network fails as it was set to.

One stands between one server and PostgreSQL, or between all of them and it. It has an event loop in a thread
of its own, so that what is tested may run on any loop, and may be busy.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import Counter
from collections.abc import Coroutine, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, TypeVar

from tests.postgres.cluster import TIMEOUT, eventually

T = TypeVar("T")

_RECEIVE: Final = 1 << 16
_AT_ONCE: Final = struct.pack("ii", 1, 0)  # linger on, for no time: closing sends RST


class What(Enum):
    """How the network fails."""

    RESET = "both ends get RST, and so do new connections"
    HOLD = "nothing arrives until it is healed; then all of it does"
    SWALLOW = "nothing arrives; what still has the connection when it is healed gets RST"
    SLOW = "a byte a millisecond"


class Way(Enum):
    """Where bytes go."""

    UP = "to PostgreSQL"
    DOWN = "back"


BOTH: Final = frozenset(Way)


@dataclass(frozen=True, eq=False, slots=True)
class Fault:
    """What happens, on which way, and to which bytes."""

    what: What
    ways: frozenset[Way] = BOTH
    after: int = 0
    """Bytes of each way that still arrive."""
    marker: bytes = b""
    """It concerns only connections with these bytes. ``after`` counts from the beginning of their write."""
    once: bool = False
    """It concerns only the first connection that it meets."""


class Proxy:
    """Passes connections on to a port of this host. Its methods may be called in any thread."""

    def __init__(self, upstream: int) -> None:
        self.port = 0
        self.passed = Counter[Way]()
        """Bytes that were passed on."""
        self.connections = 0
        """All that there were."""
        self.struck = threading.Event()
        """Set when a fault has met a connection."""
        self._upstream = upstream
        self._fault: Fault | None = None
        self._resets = 0
        self._healed: asyncio.Event
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()

    @contextmanager
    def running(self) -> Generator[Proxy]:
        """It listens for the time of the block."""
        thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        thread.start()
        try:
            self._call(self._open())
            try:
                yield self
            finally:
                self._call(self._close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join(TIMEOUT)
            self._loop.close()

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    @property
    def open_connections(self) -> int:
        """Those that are open now."""
        return len(self._links)

    def fail(self, fault: Fault | What) -> None:
        """From now on the network fails so, until ``heal``."""
        self._call(self._begin(Fault(fault) if isinstance(fault, What) else fault))

    def heal(self) -> None:
        """All is well again."""
        self._call(self._end())

    @contextmanager
    def failing(self, fault: Fault | What) -> Generator[None]:
        """The network fails for the time of the block."""
        self.fail(fault)
        try:
            yield
        finally:
            self.heal()

    def point(self, upstream: int) -> None:
        """Pass new connections on to another port, and reset those that are open: an address has moved."""
        self._upstream = upstream
        self._call(self._reset())

    def wait_until_struck(self) -> None:
        """Until a fault has met a connection."""
        eventually(self.struck.is_set, "the fault has met a connection")

    def _call(self, todo: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(todo, self._loop).result(TIMEOUT)

    # ------------------------------------------------------------------------------ in the loop's thread

    async def _open(self) -> None:
        self._healed = asyncio.Event()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=_RECEIVE)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        await self._end()
        await self._reset()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _begin(self, fault: Fault) -> None:
        await self._end()
        self.struck.clear()
        self._fault = fault
        if fault.what is What.RESET and not fault.after and not fault.marker:
            await self._reset()

    async def _end(self) -> None:
        self._fault = None
        self._healed.set()
        self._healed = asyncio.Event()
        for link in list(self._links):
            link.fault = None
            if link.swallowed:
                link.reset()

    async def _reset(self) -> None:
        self._resets += 1
        for link in list(self._links):
            self.struck.set()
            link.reset()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fault = self._fault
        if fault is not None and fault.what is What.RESET and not fault.after and not fault.marker:
            _abort(writer)
            return
        resets = self._resets
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._upstream, limit=_RECEIVE)
        except OSError:  # PostgreSQL is down
            _abort(writer)
            return
        link = _Link(writer, back)
        if resets != self._resets:  # it was to be reset before it was here
            link.reset()
            return
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._pass_on(link, reader, back, Way.UP))
                ways.create_task(self._pass_on(link, there, writer, Way.DOWN))
        finally:
            self._links.discard(link)
            link.close()

    async def _pass_on(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way
    ) -> None:
        ended = False
        with suppress(OSError):  # one end is gone, and the other learns it below
            while data := await reader.read(_RECEIVE):
                good = self._good(link, way, data)
                await self._send(writer, data[:good], way)
                if good is not None and link.fault is not None:
                    await self._fail(link.fault, link, writer, data[good:], way)
            ended = True
        if self._is_cut(link, way):
            await self._healed.wait()
        if not ended or link.swallowed:
            link.reset()
            return
        with suppress(OSError):  # the other end is gone, too
            writer.write_eof()

    def _good(self, link: _Link, way: Way, data: bytes) -> int | None:
        """How many of these bytes are to arrive before a fault; None: none is met."""
        if link.fault is None:
            fault = self._fault
            if fault is None or (fault.marker and (way not in fault.ways or fault.marker not in data)):
                return None
            link.fault = fault
            link.left = dict.fromkeys([way] if fault.marker else fault.ways, fault.after)
            if fault.once:
                self._fault = None
        if way not in link.fault.ways:
            return None
        left = link.left.get(way, 0)
        link.left[way] = max(0, left - len(data))
        if len(data) < left:
            return None
        self.struck.set()
        return left

    def _is_cut(self, link: _Link, way: Way) -> bool:
        """Whether not even an end of the connection arrives."""
        fault = link.fault or self._fault
        return (
            fault is not None
            and way in fault.ways
            and fault.what in (What.HOLD, What.SWALLOW)
            and (link.left.get(way, 0) if fault is link.fault else fault.after + len(fault.marker)) == 0
        )

    async def _fail(
        self, fault: Fault, link: _Link, writer: asyncio.StreamWriter, rest: bytes, way: Way
    ) -> None:
        match fault.what:
            case What.RESET:
                link.reset()
            case What.HOLD:
                await self._healed.wait()
                await self._send(writer, rest, way)
            case What.SWALLOW:
                link.swallowed = True
            case What.SLOW:
                while rest and link.fault is fault:
                    await asyncio.sleep(0.001)
                    await self._send(writer, rest[:1], way)
                    rest = rest[1:]
                await self._send(writer, rest, way)

    async def _send(self, writer: asyncio.StreamWriter, data: bytes, way: Way) -> None:
        if data:
            self.passed[way] += len(data)
            writer.write(data)
            await writer.drain()


class _Link:
    """One connection through the proxy: its two ends."""

    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self.fault: Fault | None = None
        """The one that has met it."""
        self.left: dict[Way, int] = {}
        """Bytes that are still let through."""
        self.swallowed = False
        """Whether bytes of it are lost."""
        self._writers = writers
        for writer in writers:
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def reset(self) -> None:
        """RST to both ends."""
        for writer in self._writers:
            _abort(writer)

    def close(self) -> None:
        """FIN to both ends, after what is on its way."""
        for writer in self._writers:
            writer.close()


def _abort(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    with suppress(OSError):  # it is closed already
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    writer.transport.abort()
