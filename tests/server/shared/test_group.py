"""Servers that share a store: real servers and sockets, and a store in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest
from pydantic import SecretStr

from gearflow.broker.storage import Setting
from gearflow.protocol.packets import (
    CanDo,
    Error,
    GrabJob,
    JobAssign,
    JobCreated,
    NoJob,
    SubmitJob,
    SubmitJobBg,
    WorkComplete,
)
from gearflow.server import ServerSettings
from gearflow.server.engine import Engine
from gearflow.testing.peer import ScriptedPeer
from tests.server.shared.fake import FakeStore, Truth

LEASE = 1.0
DEADLINE = 20.0


@pytest.fixture
def anyio_backend() -> str:
    """The server runs on asyncio only."""
    return "asyncio"


@dataclass
class Group:
    """Servers on one truth."""

    stack: AsyncExitStack
    truth: Truth = field(default_factory=Truth)
    stores: list[FakeStore] = field(default_factory=list[FakeStore])
    engines: list[Engine] = field(default_factory=list[Engine])

    async def server(self) -> tuple[Engine, FakeStore]:
        """Another server."""
        settings = ServerSettings(port=0, postgres=SecretStr("in memory"), lease=LEASE, store_timeout=0.5)

        def open_shared(_: ServerSettings, port: int) -> FakeStore:
            store = FakeStore(self.truth, f"127.0.0.1:{port}")
            self.stores.append(store)
            return store

        engine = Engine(settings, open_shared=open_shared)
        await engine.start()
        self.engines.append(engine)
        return engine, self.stores[-1]

    async def connect(self, engine: Engine) -> ScriptedPeer:
        """A connection to a server."""
        peer = await ScriptedPeer.connect("127.0.0.1", engine.port, timeout=DEADLINE)
        return await self.stack.enter_async_context(peer)

    async def worker(self, engine: Engine) -> ScriptedPeer:
        """A worker of the function ``f``."""
        peer = await self.connect(engine)
        await peer.send(CanDo(b"f"))
        return peer


@asynccontextmanager
async def group() -> AsyncGenerator[Group]:
    async with AsyncExitStack() as stack:
        made = Group(stack)
        try:
            yield made
        finally:
            await stack.aclose()
            for store in made.stores:
                store.is_away = store.loses_answers = False
            for engine in made.engines:
                await engine.stop()


async def submit(client: ScriptedPeer, workload: bytes, unique: bytes = b"") -> bytes:
    await client.send(SubmitJobBg(b"f", unique, workload))
    created = await client.receive()
    assert isinstance(created, JobCreated), created
    return created.handle


async def grab(worker: ScriptedPeer) -> JobAssign | None:
    await worker.send(GrabJob())
    answer = await worker.receive()
    assert isinstance(answer, JobAssign | NoJob), answer
    return answer if isinstance(answer, JobAssign) else None


async def grab_soon(worker: ScriptedPeer) -> JobAssign:
    with anyio.fail_after(DEADLINE):
        while True:
            job = await grab(worker)
            if job is not None:
                return job
            await anyio.sleep(0.02)


async def until(reached: Callable[[], object]) -> None:
    with anyio.fail_after(DEADLINE):
        while not reached():  # noqa: ASYNC110  (there is no event for it)
            await anyio.sleep(0.02)


async def test_a_server_keeps_and_runs_jobs() -> None:
    async with group() as servers:
        a, _ = await servers.server()
        client, worker = await servers.connect(a), await servers.worker(a)
        handle = await submit(client, b"1")
        assert [job.workload for job in servers.truth.live.values()] == [b"1"]
        job = await grab_soon(worker)
        assert (job.handle, job.workload) == (handle, b"1")
        await worker.send(WorkComplete(handle, b"done"))
        await until(lambda: not servers.truth.live)


async def test_the_jobs_of_a_server_that_stops_run_at_another_at_once() -> None:
    async with group() as servers:
        a, _ = await servers.server()
        b, _ = await servers.server()
        handle = await submit(await servers.connect(a), b"1")
        servers.engines.remove(a)
        await a.stop()
        assert (await grab_soon(await servers.worker(b))).handle == handle


async def test_the_jobs_of_a_server_that_cannot_reach_the_store_run_at_another_and_not_there() -> None:
    async with group() as servers:
        a, at_a = await servers.server()
        b, _ = await servers.server()
        client = await servers.connect(a)
        handle = await submit(client, b"1")
        at_a.is_away = True
        mine, other = await servers.worker(a), await servers.worker(b)
        assert (await grab_soon(other)).handle == handle
        assert await grab(mine) is None
        await client.send(SubmitJob(b"f", b"", b"attached"))  # goes on
        await grab_soon(mine)


async def test_two_servers_that_get_one_unique_have_one_job() -> None:
    async with group() as servers:
        a, _ = await servers.server()
        b, _ = await servers.server()
        first = await submit(await servers.connect(a), b"1", b"u")
        assert await submit(await servers.connect(b), b"1", b"u") == first
        assert len(servers.truth.live) == 1


async def test_a_pause_holds_at_all_servers() -> None:
    async with group() as servers:
        a, _ = await servers.server()
        b, _ = await servers.server()
        client = await servers.connect(a)
        request = b'{"function": "f", "paused": true}'
        await client.send(SubmitJob(b"gearflow:pause", b"", request))
        await until(lambda: b"f" in b.broker.functions.paused)


async def test_settings_are_the_same_at_all_servers() -> None:
    async with group() as servers:
        before = Setting(b"before", "test", b"1")
        servers.truth.set(before)
        a, at_a = await servers.server()
        assert a.broker.core.settings.values["test"] == {b"before": b"1"}
        b, at_b = await servers.server()
        new = Setting(b"new", "test", b"2")
        assert await at_a.commit({}, [new]) == [None]
        await until(lambda: b.broker.core.settings.get("test", b"new") == b"2")
        await until(lambda: a.broker.core.settings.get("test", b"new") == b"2")
        at_b.is_away = True
        servers.truth.set(before._replace(value=b""))
        servers.truth.set(new._replace(value=b"3"))
        servers.truth.notify()
        await until(lambda: a.broker.core.settings.values["test"] == {b"new": b"3"})
        at_b.is_away = False
        await until(lambda: b.broker.core.settings.values["test"] == {b"new": b"3"})


async def test_a_server_that_has_connected_again_knows_what_was_removed_meanwhile() -> None:
    async with group() as servers:
        gone = Setting(b"gone", "test", b"1")
        servers.truth.set(gone)
        a, at_a = await servers.server()
        changed: list[tuple[bytes, bytes]] = []
        a.broker.core.settings.on("test", lambda name, value: changed.append((name, value)))
        servers.truth.settings.clear()
        servers.truth.set(Setting(b"new", "test", b"1"))
        at_a.seen_settings = 0  # the next beat is one of a new connection
        servers.truth.notify()
        await until(lambda: changed == [(b"gone", b""), (b"new", b"1")])


async def test_a_call_that_changes_something_is_answered_when_the_store_is_back() -> None:
    async with group() as servers:
        a, at_a = await servers.server()
        client, other = await servers.connect(a), await servers.connect(a)
        at_a.is_away = True
        request = b'{"function": "f", "paused": true}'
        await client.send(SubmitJob(b"gearflow:pause", b"", request))
        await other.send(SubmitJobBg(b"f", b"", b"1"))
        assert isinstance(await other.receive(), Error)
        at_a.is_away = False
        assert isinstance(await client.receive(), JobCreated)
        assert isinstance(await client.receive(), WorkComplete)


async def test_a_server_that_hears_of_a_lost_lot_gives_out_none_of_its_jobs() -> None:
    async with group() as servers:
        a, at_a = await servers.server()
        b, _ = await servers.server()
        handle = await submit(await servers.connect(a), b"1")
        at_a.is_away = True
        mine, other = await servers.worker(a), await servers.worker(b)
        assert (await grab_soon(other)).handle == handle
        at_a.is_away = False
        await until(lambda: not a.broker.jobs.by_number)
        assert await grab(mine) is None
