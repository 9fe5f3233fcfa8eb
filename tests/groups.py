"""Servers that say that they are a group, and a balancer before them.

They share no database. What a group is for is not tested with them, but how its servers are found.
"""

import itertools
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self
from uuid import uuid4

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream, SocketAttribute, SocketStream

from gearflow.broker.core import ServerGroup
from gearflow.runtime.loop_thread import LoopThread
from gearflow.server.engine import Engine
from gearflow.server.server import engine_thread
from gearflow.server.settings import ServerSettings

GROUP = "jobs 0123456789abcdef"


class Member:
    """A server of the group, in a thread of its own."""

    def __init__(self, port: int = 0) -> None:
        self._thread: LoopThread[Engine] = engine_thread(ServerSettings(port=port))
        self.engine = self._thread.start()
        self.name = uuid4().hex
        self.runs = True

    @property
    def address(self) -> str:
        """How the group calls it."""
        return f"127.0.0.1:{self.engine.port}"

    @property
    def jobs(self) -> int:
        """The jobs that it has."""
        return len(self.engine.broker.jobs.by_number)

    @property
    def clients(self) -> list[str]:
        """The names of the workers that are connected, one for each connection."""
        return [
            session.client_id.decode() for session in list(self.engine.broker.sessions) if session.abilities
        ]

    @property
    def connections(self) -> int:
        """How many connections it has."""
        return len(self.engine.broker.sessions)

    def stop(self) -> None:
        """End it, and all its connections."""
        if self.runs:
            self.runs = False
            self._thread.stop()


class Fleet:
    """Starts the servers of a group, and has them name one another."""

    def __init__(self) -> None:
        self.members: list[Member] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for member in self.members:
            member.stop()

    def start(self, count: int = 1) -> list[Member]:
        """More servers. Nobody names them yet, nor do they name anybody but those that run."""
        started = [Member() for _ in range(count)]
        self.members += started
        return started

    def tell(self, *members: Member) -> None:
        """From now on all servers name these."""
        addresses = tuple(member.address for member in members)
        for member in self.members:
            if member.runs:
                member.engine.broker.group = ServerGroup(GROUP, member.name, addresses, member.address)

    def grow(self, count: int = 1) -> list[Member]:
        """More servers, which all name from now on."""
        started = self.start(count)
        self.tell(*(member for member in self.members if member.runs))
        return started


@asynccontextmanager
async def balancer(members: Sequence[Member]) -> AsyncGenerator[str]:
    """The address of a balancer, which passes each connection on to the next server that runs."""
    turns = itertools.cycle(members)

    async def accept(client: SocketStream) -> None:
        async with client, anyio.create_task_group() as pumps:
            member = next(each for each in itertools.islice(turns, len(members)) if each.runs)
            async with await anyio.connect_tcp("127.0.0.1", member.engine.port) as server:
                pumps.start_soon(_pump, client, server, pumps.cancel_scope)
                await _pump(server, client, pumps.cancel_scope)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, accept)
        yield f"127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
        tasks.cancel_scope.cancel()


async def _pump(source: ByteReceiveStream, target: ByteSendStream, life: anyio.CancelScope) -> None:
    try:
        async for data in source:
            await target.send(data)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass
    life.cancel()


async def until(condition: Callable[[], object]) -> None:
    """Return when it holds. Raises TimeoutError if it does not for too long."""
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110  (it is another thread's)
            await anyio.sleep(0.005)
