"""A TCP proxy before a server, whose lines fail as they are told: ``tests.faults.lines`` says how.

It has an event loop in a thread of its own, so that what is tested may run on any loop, and may be busy. The
n-th connection always gets the same lines of a proxy with the same name.
"""

import asyncio
import socket
import struct
from collections.abc import Generator
from contextlib import contextmanager, suppress
from random import Random
from typing import Final

from anyio.from_thread import BlockingPortal

from tests.faults.lines import GOOD, Line, Place, What, draw

_RECEIVE: Final = 1 << 16
_AT_ONCE: Final = struct.pack("ii", 1, 0)  # linger on, for no time: closing sends RST


class Proxy:
    """Passes connections on to a server of this host. Owns them; all methods belong to its loop's thread."""

    def __init__(self, upstream: int, name: str) -> None:
        self.faults = 0
        """How many lines have failed."""
        self._upstream = upstream
        self._name = name
        self._connections = 0
        self._calm = False
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    async def open(self) -> int:
        """Begin to listen; returns the port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", limit=_RECEIVE)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def calm(self) -> None:
        """Reset all connections; those to come are passed on as they are."""
        self._calm = True
        for link in list(self._links):
            link.reset()

    async def close(self) -> None:
        """Listen no more, and let go of all connections."""
        self._server.close()
        await self.calm()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        lines = (GOOD, GOOD) if self._calm else draw(Random(f"{self._name} {self._connections}"))
        task = asyncio.create_task(self._serve(reader, writer, *lines))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, there: Line, back: Line
    ) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(
            "127.0.0.1", self._upstream, limit=_RECEIVE
        )
        link = _Link(writer, upstream_writer)
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as directions:
                directions.create_task(link.pass_on(reader, upstream_writer, there))
                directions.create_task(link.pass_on(upstream_reader, writer, back))
        finally:
            self.faults += link.faults
            self._links.discard(link)
            link.close()


class _Link:
    """One connection through the proxy: its two ends."""

    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self.faults = 0
        self._writers = writers
        self._swallows = False
        for writer in writers:
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: Line) -> None:
        """Pass on what comes, until it ends or the line's fault is over.

        Of a line that has swallowed something the receiver gets RST when the sender gives up: that is what
        the machine behind a healed network does.
        """
        place = Place(line.fault) if line.fault is not None else None
        swallows = False
        with suppress(OSError):  # one end is gone, and the other is told below
            while data := await reader.read(_RECEIVE):
                end = place.find(data) if place is not None else None
                if not swallows and not self._swallows:
                    await _send(writer, data[:end], line)
                if end is not None and line.fault is not None:
                    place = None
                    self.faults += 1
                    swallows = True
                    if self._fail(line.fault.what, writer):
                        return
            if not swallows and not self._swallows:
                writer.write_eof()
                return
        self.reset()

    def _fail(self, what: What, receiver: asyncio.StreamWriter) -> bool:
        """Whether that ends the connection."""
        match what:
            case What.RESET:
                self.reset()
                return True
            case What.CLOSE:
                self.close()
                return True
            case What.HALF_CLOSE:
                receiver.write_eof()
            case What.SILENCE:
                pass
            case What.BLACK_HOLE:
                self._swallows = True
        return False

    def reset(self) -> None:
        """RST to both ends."""
        for writer in self._writers:
            raw = writer.get_extra_info("socket")
            with suppress(OSError):  # it is closed already
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            writer.transport.abort()

    def close(self) -> None:
        """FIN to both ends, after what is on its way."""
        for writer in self._writers:
            writer.close()


async def _send(writer: asyncio.StreamWriter, data: bytes, line: Line) -> None:
    step = -(-len(data) // line.pieces) or 1
    for start in range(0, len(data), step):
        if line.delay:
            await asyncio.sleep(line.delay)
        writer.write(data[start : start + step])
        await writer.drain()


class Running:
    """A proxy that runs in another thread."""

    def __init__(self, portal: BlockingPortal, proxy: Proxy, port: int) -> None:
        self._portal = portal
        self._proxy = proxy
        self.address = f"127.0.0.1:{port}"

    @property
    def faults(self) -> int:
        """How many lines have failed so far, of connections that are over."""
        return self._proxy.faults

    def calm(self) -> None:
        """The end of the storm: connections are reset, and new ones passed on as they are."""
        self._portal.call(self._proxy.calm)


@contextmanager
def proxied(portal: BlockingPortal, address: str, name: str) -> Generator[Running]:
    """A proxy before the server at an address, for the time of the block."""
    proxy = Proxy(int(address.rpartition(":")[2]), name)
    port = portal.call(proxy.open)
    try:
        yield Running(portal, proxy, port)
    finally:
        portal.call(proxy.close)
