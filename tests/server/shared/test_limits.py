"""Limits that hold for all servers of a group: real servers and sockets, and a store in memory."""

from __future__ import annotations

import anyio
import pytest

from gearflow.broker.buckets import FunctionRules, LimitSpec, Rule
from gearflow.protocol.packets import JobAssign, WorkComplete
from gearflow.server.engine import Engine
from gearflow.testing.peer import ScriptedPeer
from tests.server.shared.test_group import Group, grab, group, submit, until

NAME = b"limit"
DEADLINE = 60.0


@pytest.fixture
def anyio_backend() -> str:
    """The server runs on asyncio only."""
    return "asyncio"


async def limited(servers: Group, spec: LimitSpec, key: str | None = None) -> Engine:
    """A server, with a limit for ``f``."""
    engine, _ = await servers.server()
    limiter, functions = engine.broker.core.limiter, engine.broker.functions
    limiter.set_limit(NAME, spec)
    limiter.set_rules(functions.ensure(b"f"), FunctionRules((Rule(NAME, key),)))
    return engine


def running(servers: Group) -> int:
    """Jobs that run at all servers."""
    return sum(engine.broker.core.limiter.usage(NAME).running for engine in servers.engines)


class Workers:
    """A worker at each server, which takes jobs as long as it gets any."""

    def __init__(self, peers: list[ScriptedPeer]) -> None:
        self._peers = peers
        self.jobs: list[list[JobAssign]] = [[] for _ in peers]  # that they hold
        self.done: list[bytes] = []
        self.served: list[int] = [0] * len(peers)

    async def take(self) -> None:
        """Ask for a job at each server."""
        for place, peer in enumerate(self._peers):
            job = await grab(peer)
            if job is not None:
                self.jobs[place].append(job)
                self.served[place] += 1

    async def end(self, place: int) -> None:
        """End a job at a server."""
        job = self.jobs[place].pop()
        self.done.append(job.workload)
        await self._peers[place].send(WorkComplete(job.handle, b""))


async def test_a_limit_of_concurrency_holds_for_all_servers() -> None:
    async with group() as servers:
        engines = [await limited(servers, LimitSpec("concurrency", 3)) for _ in range(2)]
        clients = [await servers.connect(engine) for engine in engines]
        workers = Workers([await servers.worker(engine) for engine in engines])
        wanted = {await submit(client, b"%d" % number) for number in range(6) for client in clients}
        with anyio.fail_after(DEADLINE):
            while len(workers.done) < len(wanted):
                await workers.take()
                assert running(servers) <= 3
                held = sum(map(len, workers.jobs))
                if held == 3 or (held and len(workers.done) + held == len(wanted)):
                    await workers.end(max(range(2), key=lambda place: len(workers.jobs[place])))
                await anyio.sleep(0.01)
        assert workers.served == [6, 6]


async def test_servers_take_turns_with_a_single_slot() -> None:
    async with group() as servers:
        engines = [await limited(servers, LimitSpec("concurrency", 1), "/id") for _ in range(2)]
        workers = Workers([await servers.worker(engine) for engine in engines])
        for engine in engines:
            client = await servers.connect(engine)
            for _ in range(4):
                await submit(client, b'{"id": 7}')
        order: list[int] = []
        with anyio.fail_after(DEADLINE):
            while len(workers.done) < 8:
                await workers.take()
                assert running(servers) <= 1
                for place in range(2):
                    if workers.jobs[place]:
                        order.append(place)
                        await workers.end(place)
                await anyio.sleep(0.01)
        assert {0, 1} <= set(order[:4]), "none waits until the other has nothing left"


async def test_other_servers_get_the_slots_of_one_that_stops() -> None:
    async with group() as servers:
        first, second = [await limited(servers, LimitSpec("concurrency", 1)) for _ in range(2)]
        await submit(await servers.connect(first), b"1")
        workers = Workers([await servers.worker(engine) for engine in (first, second)])
        with anyio.fail_after(DEADLINE):
            while not workers.jobs[0]:
                await workers.take()
                await anyio.sleep(0.01)
        await submit(await servers.connect(second), b"2")
        with anyio.fail_after(DEADLINE):
            while not any(wants for _, wants in servers.truth.slots[NAME, ""].values()):
                await workers.take()
                await anyio.sleep(0.01)
        assert not workers.jobs[1]
        servers.engines.remove(first)
        await first.stop()
        last = Workers([await servers.worker(second)])
        with anyio.fail_after(DEADLINE):
            while len(last.jobs[0]) < 1:
                await last.take()
                assert running(servers) <= 1
                await anyio.sleep(0.01)


async def test_a_rate_holds_for_all_servers() -> None:
    async with group() as servers:
        engines = [await limited(servers, LimitSpec("rate", 2, per=2000.0)) for _ in range(2)]
        for engine in engines:
            client = await servers.connect(engine)
            for number in range(3):
                await submit(client, b"%d" % number)
        workers = Workers([await servers.worker(engine) for engine in engines])
        with anyio.fail_after(DEADLINE):
            while len(servers.truth.starts) < 1 or not any(workers.served):
                await workers.take()
                await anyio.sleep(0.01)

        def waits(engine: Engine) -> bool:
            usage = engine.broker.core.limiter.usage(NAME)
            return usage.next_in is not None and usage.next_in > 900

        await until(lambda: all(map(waits, engines)))
        await workers.take()
        assert sum(workers.served) == 1
