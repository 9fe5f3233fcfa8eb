"""Several servers, of which the first that can be reached is used.

First in the order given, or, where they share the load, in that of the submission's key; without a key the
servers take turns.

A server that could not be reached is left alone for a while, exponentially longer each time and jittered,
so that many clients do not come back at the same moment. After that it is tried beside those that serve, at
nobody's cost; as soon as it answers, it has its place in the order again. When no server is left, those that
are being left alone are tried as well, all at once: the caller would get ``NoServer`` otherwise.

Which of several servers gets a submission, where they share the load. Pure.

Rendezvous hashing: for a key every server has a weight, a hash of both, and the heaviest has the key. Every
process that names the servers alike finds the same order, so equal keys meet on one server. When a server
is away, each of its keys goes to the next in that key's own order, and no other key moves.

Servers that share a database are a group, which says who belongs to it (``gearflow.client.discovery``). Those
that it names are used beside those that were given, and left when it names them no more. Where servers share
the load, the group's own addresses of its servers count, because they are the same for all clients. A given
address may lead to one of them (and that of a load balancer to another one each time), so its connection is
used for that server.
"""

import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from types import TracebackType
from typing import Any, Final, NoReturn, Self, TypeVar

import anyio
from anyio.abc import TaskGroup

from gearflow.backoff import Backoff
from gearflow.client.config import ServerAddress
from gearflow.client.connection import Connection
from gearflow.client.discovery import Membership, members_of
from gearflow.errors import ConnectionLost, NoServer
from gearflow.protocol.constants import MAX_BODY, MAX_PAYLOAD
from gearflow.protocol.heartbeat import Timeouts
from gearflow.runtime.environment import flag
from gearflow.runtime.eventloop import Post, poster
from gearflow.security.tls import PLAIN, Security

T = TypeVar("T")


def rendezvous_order(servers: Iterable[T], key: bytes) -> list[T]:
    """The servers in the order in which they are to be tried for a key; known by their texts."""
    return sorted(servers, key=lambda server: _weight(str(server), key), reverse=True)


def default_spread() -> bool:
    """Whether the environment variable GEARFLOW_SPREAD asks for it.

    Raises:
        ValueError: The variable holds something that is neither yes nor no.
    """
    return bool(flag("GEARFLOW_SPREAD"))


def _weight(server: str, key: bytes) -> bytes:
    # Not hash(): it differs from process to process.
    return blake2b(server.encode() + b"\0" + key, digest_size=8).digest()


@dataclass(frozen=True, slots=True)
class ResubmitPolicy:
    """How a submission whose server was lost is sent again, if the caller allows it.

    Attributes:
        poll: The pauses between two attempts to reach a server.
        max_losses: Losses in a row. After one more the submission is given up.
        calm: Seconds without a loss after which the count starts again.
    """

    poll: Backoff = Backoff(first=0.05, most=0.5)  # noqa: RUF009  (frozen)
    max_losses: int = 10
    calm: float = 60.0


class _Server:
    """One server: its connection, if it ever had one, and until when it is left alone."""

    __slots__ = ("address", "asked", "connection", "failures", "is_found", "leads_to", "rests_until")

    def __init__(self, address: ServerAddress, *, is_found: bool = False) -> None:
        self.address: Final = address
        self.connection: Connection | None = None
        self.failures = 0
        self.rests_until = 0.0
        self.is_found = is_found
        """Whether a group has named it, and it was never reached: nobody waits for it."""
        self.leads_to: ServerAddress | None = None
        """How the group calls the server that its last connection led to."""
        self.asked = 0.0
        """When it was asked for its group."""

    @property
    def is_open(self) -> bool:
        """Whether it has an open connection."""
        return self.connection is not None and self.connection.is_open

    def __str__(self) -> str:
        return str(self.address)


class Pool:
    """The servers of one client. Owns their connections; leaving its ``async with`` block closes them."""

    def __init__(
        self,
        servers: Iterable[ServerAddress],
        *,
        spreads: bool,
        timeouts: Timeouts,
        backoff: Backoff,
        resubmit: ResubmitPolicy,
        security: Security = PLAIN,
        max_result: int = MAX_PAYLOAD,
        discover: bool = True,
    ) -> None:
        if not 0 < max_result <= MAX_BODY:
            raise ValueError(f"max_result={max_result}: it is a number of bytes, up to 4 GiB")
        self._servers = {address: _Server(address) for address in servers}
        self._given: Final = tuple(self._servers.values())
        self._preferred = self._given
        self._sharing = self._given  # the load
        self._found: dict[ServerAddress, _Server] = {}
        self._leaving: dict[ServerAddress, _Server] = {}
        self._membership: Final = Membership(self._servers)
        self._discovers = discover
        self._unasked: dict[_Server, None] = {}  # what their connections lead to is not known
        self._news: anyio.Event | None = None  # for the search for servers, while there is one
        self._turn = random.randrange(len(self._preferred))  # many short-lived clients share the load, too
        self.spreads: Final = spreads
        self.timeouts: Final = timeouts
        self.backoff: Final = backoff
        self.resubmit: Final = resubmit
        self.security: Final = security
        self._max_result = max_result
        self.remedy: Callable[[], str] = str
        """What to do when no server can be reached; empty: what ``NoServer`` says itself."""
        self._tasks: TaskGroup | None = None
        self.post: Post  # to its event loop, once it is entered
        self.is_closed = False

    async def __aenter__(self) -> Self:
        if self._tasks is not None:
            raise RuntimeError("a client can be entered only once; make a new one")
        self.post = poster()
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
        """The servers that are submitted to, in order: those given, then those found."""
        return tuple(server.address for server in self._preferred)

    @property
    def first(self) -> Connection | None:
        """The connection to the first server, if it is open."""
        first = self._preferred[0].connection
        return first if first is not None and first.is_open else None

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection to any server now."""
        return any(server.is_open for server in self._servers.values())

    async def connection_for(self, key: bytes | None, *, by_key: bool = False) -> Connection:
        """An open connection for a submission with that key, or without one. Raises as ``connection``.

        With ``by_key`` equal keys meet on one server, also if the servers do not share the load.
        """
        if not (self.spreads or by_key):
            return await self.connection()
        sharing = self._sharing
        if key is not None:
            return await self._choose(self._reachable(rendezvous_order(sharing, key)))
        self._turn = turn = (self._turn + 1) % len(sharing)
        return await self._choose(self._reachable([*sharing[turn:], *sharing[:turn]]))

    async def connection(self) -> Connection:
        """An open connection to the first server that can be reached, in the order given.

        Raises:
            NoServer: None can.
            ConnectionLost: The client is closed.
        """
        return self.first or await self._choose(self._preferred)

    async def connection_to(self, address: ServerAddress) -> Connection:
        """An open connection to one server, which need not be one of those submitted to. Raises as above."""
        server = self._servers.get(address)
        if server is None:
            server = self._servers[address] = _Server(address)
        return await self._choose([server])

    async def connection_near(self, address: ServerAddress) -> Connection:
        """An open connection to a server, or to one that shares its database with it. Raises as above."""
        try:
            return await self.connection_to(address)
        except NoServer:
            for other in self.companions(address):
                with suppress(NoServer):
                    return await self.connection_to(other)
            raise

    def group_of(self, address: ServerAddress) -> str:
        """The group of a server. Empty if it is in none, or if that is not known."""
        connection = self._servers[address].connection if address in self._servers else None
        group = connection.features.group if connection is not None else ""
        return group or self._membership.group_of(address)

    def companions(self, address: ServerAddress) -> list[ServerAddress]:
        """The live servers that share their database with this one. Those with a connection come first."""
        group = self.group_of(address)
        if not group:
            return []
        return [each for each in self.group_members() if each != address and self.group_of(each) == group]

    def group_members(self) -> list[ServerAddress]:
        """The live servers of all groups. Those with a connection come first."""
        named = self._membership.named
        members = [
            server for server in self._servers.values() if server.address in named or self._is_member(server)
        ]
        return [server.address for server in sorted(members, key=lambda server: not server.is_open)]

    @property
    def one_of_each(self) -> tuple[ServerAddress, ...]:
        """The servers, and of each group one: it answers for all."""
        chosen: dict[str, ServerAddress] = {}
        for server in self._preferred:
            group = self.group_of(server.address)
            if group not in chosen or (server.is_open and not self._servers[chosen[group]].is_open):
                chosen[group or str(server)] = server.address
        return tuple(chosen.values())

    def start_soon(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run something that is to end with the client, and does not raise."""
        self._require_open().start_soon(function)

    async def _choose(self, order: Sequence[_Server]) -> Connection:
        """The first server that serves, or does so when asked; what failed before is not waited for."""
        doubtful: list[_Server] = []
        for server in order:
            connection = server.connection
            if connection is not None and connection.is_open:
                self._try_beside(doubtful)
                return connection
            if server.failures or server.is_found:
                doubtful.append(server)
                continue
            connection = self._attempt(server)
            await connection.opened.wait()
            if connection.is_open:
                self._try_beside(doubtful)
                return connection
        return await self._any_of(doubtful) or self._give_up(order)

    def _try_beside(self, servers: Iterable[_Server]) -> None:
        """Try those again that have rested."""
        now = anyio.current_time()
        for server in servers:
            if server.rests_until <= now:
                self._attempt(server)

    async def _any_of(self, servers: Sequence[_Server]) -> Connection | None:
        """The first to be open, rested or not; None when all attempts have failed."""
        connections = [self._attempt(server) for server in servers]
        async with anyio.create_task_group() as attempts:

            async def wait_for(connection: Connection) -> None:
                await connection.opened.wait()
                if connection.is_open:
                    attempts.cancel_scope.cancel()

            for connection in connections:
                attempts.start_soon(wait_for, connection)
        return next((connection for connection in connections if connection.is_open), None)

    def _give_up(self, servers: Iterable[_Server]) -> NoReturn:
        self._require_open()
        reasons = {
            str(server): server.connection.reason for server in servers if server.connection is not None
        }
        raise NoServer(reasons, self.remedy())

    def _attempt(self, server: _Server) -> Connection:
        """The server's connection if it is open or about to be, else a new one, shared by all who want it."""
        connection = server.connection
        if connection is None or (connection.opened.is_set() and not connection.is_open):
            connection = server.connection = Connection(
                server.address, self.security, self._max_result, partial(self._opened, server)
            )
            self._require_open().start_soon(self._live, server, connection)
        return connection

    def _opened(self, server: _Server, connection: Connection) -> None:
        """A connection was opened: a server of a group can say who else is there."""
        server.is_found = False
        if not (self._discovers and connection.features.group) or self.is_closed:
            return
        self._unasked[server] = None
        if self._news is None:
            self._news = anyio.Event()
            self.start_soon(self._discover)
        else:
            self._news.set()

    async def _live(self, server: _Server, connection: Connection) -> None:
        """A connection's life, and what it teaches about the server."""
        await connection.run(self.timeouts)
        if connection.served and not connection.fell_silent:  # else it will hardly answer now
            server.failures = 0
            if self._news is not None and connection.features.group:
                self._news.set()  # it may be gone
        else:
            server.failures += 1
            jitter = random.random()
            server.rests_until = anyio.current_time() + self.backoff.delay(server.failures, jitter)

    # ----------------------------------------------------------------------------- the servers of groups

    def look(self) -> None:
        """A server of a group was reached in another way: find out who else is there."""
        if self._discovers and self._news is None and not self.is_closed:
            self.start_soon(self._look)

    async def _look(self) -> None:
        with suppress(NoServer, ConnectionLost):
            await self.connection()

    async def _discover(self) -> None:
        """Ask who is in the groups, now and then, and whenever a server comes or goes."""
        interval = self.timeouts.discovery
        while not self.is_closed:
            self._news = news = anyio.Event()
            asked = {server: server.connection for server in self._to_ask()}
            async with anyio.create_task_group() as questions:
                for server, connection in asked.items():
                    if connection is not None:
                        questions.start_soon(self._ask, server, connection)
            if self.is_closed:  # and the cancellation is on its way
                return
            self._arrange()
            with anyio.move_on_after(interval):
                await news.wait()
                await anyio.sleep(interval / 10)  # what comes and goes together is one piece of news

    def _to_ask(self) -> Iterable[_Server]:
        """The servers to be asked: all with a new connection, and of each group at least one, in turn."""
        unasked, self._unasked = [server for server in self._unasked if server.is_open], {}
        groups: dict[str, _Server] = {}
        for server in sorted(self._servers.values(), key=lambda server: server.asked):
            if server.connection is not None and server.is_open and server.connection.features.group:
                groups.setdefault(server.connection.features.group, server)
        return {*unasked, *groups.values()}

    async def _ask(self, server: _Server, connection: Connection) -> None:
        server.asked = anyio.current_time()
        members = await members_of(connection, self.timeouts.discovery)
        if members is not None and not self.is_closed:
            server.leads_to = members.address
            self._membership.learn(members)

    def _arrange(self) -> None:
        """Use the servers that there are now."""
        named = self._membership.named
        left = self._found | self._leaving
        self._found = {
            address: self._servers.setdefault(address, _Server(address, is_found=True))
            for address in self._membership.found
        }
        self._preferred = (*self._given, *self._found.values())
        others = [
            server for server in self._given if server.address not in named and not self._is_member(server)
        ]
        self._sharing = (*(self._servers[address] for address in named), *others)
        self._leaving = {
            address: server
            for address, server in left.items()
            if address not in self._found and not self._has_left(server)
        }
        if self.spreads:  # all of them are about to be used
            now = anyio.current_time()
            for server in self._found.values():
                if server.rests_until <= now and not self._stand_in(server).is_open:
                    self._attempt(server)

    def _has_left(self, server: _Server) -> bool:
        """Forget a server that its group does not name any more, unless something is under way there."""
        connection = server.connection
        if connection is not None:
            connection.leave("its group does not name it any more")
            if connection.is_open or not connection.opened.is_set():
                return False
        del self._servers[server.address]
        return True

    def _is_member(self, server: _Server) -> bool:
        """Whether the group has told how it calls the server that its connection leads to, or led to."""
        return server.leads_to is not None

    def _stand_in(self, server: _Server) -> _Server:
        """A given server whose open connection leads to this one, if there is one. Else this one."""
        if not server.is_open:
            for given in self._given:
                if given.leads_to == server.address and given.is_open:
                    return given
        return server

    def _reachable(self, order: Iterable[_Server]) -> list[_Server]:
        """The servers in that order by the connections that lead there, then those that may lead anywhere."""
        return list(dict.fromkeys([*map(self._stand_in, order), *self._given]))

    def _require_open(self) -> TaskGroup:
        if self._tasks is None:
            raise RuntimeError("the client is not open; use it inside 'async with Client(...) as client:'")
        if self.is_closed:
            raise ConnectionLost("the client is closed: its 'async with' block has been left")
        return self._tasks
