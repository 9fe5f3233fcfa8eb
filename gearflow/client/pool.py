"""Several servers, of which the first that can be reached is used, in the order given.

A server that could not be reached is left alone for a while, exponentially longer each time and jittered,
so that many clients do not come back at the same moment. While another server serves, it is then tried
beside it, at nobody's cost; as soon as it answers, it is the preferred one again. When no server is left,
those that are being left alone are tried as well: the caller would get ``NoServer`` otherwise.
"""

import random
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import anyio
from anyio.abc import TaskGroup

from gearflow.client.address import ServerAddress
from gearflow.client.connection import Connection
from gearflow.errors import ConnectionLost, NoServer


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long a server is left alone after failed attempts: ``first`` seconds, doubled up to ``most``."""

    first: float = 0.1
    most: float = 30.0

    def delay(self, failures: int, jitter: float) -> float:
        """Seconds after so many failures in a row; ``jitter`` (0 to 1) takes off up to half of it."""
        exponent = min(failures - 1, 64)  # 2.0 ** 1024 would overflow
        return min(self.most, self.first * 2.0**exponent) * (1 - jitter / 2)


class _Server:
    """One server: its connection, if it ever had one, and until when it is left alone."""

    __slots__ = ("address", "connection", "failures", "rests_until")

    def __init__(self, address: ServerAddress) -> None:
        self.address = address
        self.connection: Connection | None = None
        self.failures = 0
        self.rests_until = 0.0


class Pool:
    """The servers of one client. Owns their connections; leaving its ``async with`` block closes them."""

    def __init__(
        self,
        servers: Iterable[ServerAddress],
        *,
        connect_timeout: float,
        answer_timeout: float,
        backoff: Backoff,
    ) -> None:
        self._servers = {address: _Server(address) for address in servers}
        self._preferred = tuple(self._servers.values())
        self._connect_timeout = connect_timeout
        self._answer_timeout = answer_timeout
        self.backoff: Final = backoff
        self._tasks: TaskGroup | None = None
        self.is_closed = False

    async def __aenter__(self) -> Self:
        if self._tasks is not None:
            raise RuntimeError("a client can be entered only once; make a new one")
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._tasks is not None  # entered
        self.is_closed = True
        self._tasks.cancel_scope.cancel()
        if isinstance(error, anyio.get_cancelled_exc_class()):
            return await self._tasks.__aexit__(kind, error, traceback)
        # An exception of the block is not the connections' affair: it leaves as it is, in no group.
        await self._tasks.__aexit__(None, None, None)
        return None

    @property
    def addresses(self) -> tuple[ServerAddress, ...]:
        """The servers that are submitted to, in order."""
        return tuple(server.address for server in self._preferred)

    async def connection(self) -> Connection:
        """An open connection to the first server that can be reached.

        Raises:
            NoServer: None can.
            ConnectionLost: The client is closed.
        """
        first = self._preferred[0].connection
        return first if first is not None and first.is_open else await self._choose()

    async def connection_to(self, address: ServerAddress) -> Connection:
        """An open connection to one server, which need not be one of those submitted to. Raises as above."""
        server = self._servers.get(address)
        if server is None:
            server = self._servers[address] = _Server(address)
        return await self._first_of([server])

    def start_soon(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run something that is to end with the client, and does not raise."""
        self._require_open().start_soon(function)

    async def _choose(self) -> Connection:
        now = anyio.current_time()
        due: list[_Server] = []
        for server in self._preferred:
            if server.connection is not None and server.connection.is_open:
                for preferred in due:
                    self._attempt(preferred)  # beside the one that serves
                return server.connection
            if server.rests_until <= now:
                due.append(server)
        return await self._first_of([*due, *(server for server in self._preferred if server not in due)])

    async def _first_of(self, servers: list[_Server]) -> Connection:
        for server in servers:
            connection = self._attempt(server)
            if not connection.is_open:
                await connection.opened.wait()
            if connection.is_open:
                return connection
        self._require_open()
        raise NoServer(
            {
                str(server.address): server.connection.reason
                for server in servers
                if server.connection is not None
            }
        )

    def _attempt(self, server: _Server) -> Connection:
        """The server's connection if it is open or about to be, else a new one, shared by all who want it."""
        connection = server.connection
        if connection is None or (connection.opened.is_set() and not connection.is_open):
            connection = server.connection = Connection(server.address)
            self._require_open().start_soon(self._live, server, connection)
        return connection

    async def _live(self, server: _Server, connection: Connection) -> None:
        """A connection's life, and what it teaches about the server."""
        await connection.run(self._connect_timeout, self._answer_timeout)
        if connection.served:
            server.failures = 0
        else:
            server.failures += 1
            jitter = random.random()
            server.rests_until = anyio.current_time() + self.backoff.delay(server.failures, jitter)

    def _require_open(self) -> TaskGroup:
        if self._tasks is None:
            raise RuntimeError("the client is not open; use it inside 'async with Client(...) as client:'")
        if self.is_closed:
            raise ConnectionLost("the client is closed: its 'async with' block has been left")
        return self._tasks
