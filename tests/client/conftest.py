"""What the client's tests share: a client with a scripted server at its other end, calls beside, workers."""

import json
import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from gearflow.client import Client, Timeouts
from gearflow.protocol.packets import (
    CanDo,
    GrabJob,
    JobAssign,
    JobCreated,
    NoJob,
    Noop,
    Packet,
    PreSleep,
    SubmitJob,
)
from gearflow.testing.peer import ScriptedPeer, ScriptedServer

Answer: TypeAlias = Callable[[JobAssign], list[Packet]]
Scripted: TypeAlias = Callable[..., AbstractAsyncContextManager[tuple[Client, ScriptedPeer]]]
Working: TypeAlias = Callable[[str, str, Answer], AbstractAsyncContextManager[None]]


class Call:
    """A call that runs beside the test; its outcome is asked for when the script has gone on."""

    def __init__(self, function: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> None:
        self._call: Callable[[], Awaitable[Any]] = lambda: function(*args, **options)
        self._over = anyio.Event()
        self.scope = anyio.CancelScope()
        self.value: Any = None
        self.error: Exception | None = None

    async def run(self) -> None:
        with self.scope:
            try:
                self.value = await self._call()
            except Exception as error:  # noqa: BLE001  (the outcome, for the test to judge)
                self.error = error
        self._over.set()

    async def outcome(self) -> Any:
        with anyio.fail_after(20):
            await self._over.wait()
        if self.error is not None:
            raise self.error
        return self.value


async def request(peer: ScriptedPeer, function: bytes = b"gearflow:stream") -> dict[str, Any]:
    """The next request to the server, which is a call of that function."""
    packet = await peer.expect_a(SubmitJob)
    assert packet.function == function
    fields: dict[str, Any] = json.loads(packet.workload.partition(b"\n")[0])
    return fields


async def asked(
    server: ScriptedServer, call: bytes, function: bytes = b"gearflow:stream"
) -> tuple[ScriptedPeer, dict[str, Any]]:
    """A connection on which a job was asked for, by a call of that handle, and what for."""
    peer = await server.accept()
    await peer.shake_hands(gearflow=True)
    fields = await request(peer, function)
    await peer.send(JobCreated(call))
    return peer, fields


@asynccontextmanager
async def listening(talk: Callable[[SocketStream], Awaitable[None]]) -> AsyncGenerator[str]:
    """The address of a server that talks so with each client."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, talk)
        yield f"127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
        tasks.cancel_scope.cancel()


@pytest.fixture
def scripted() -> Scripted:
    """``async with scripted() as (client, peer)``: connected, and past the handshake."""

    @asynccontextmanager
    async def connected(
        *, gearflow: bool = False, timeouts: Timeouts | None = None
    ) -> AsyncGenerator[tuple[Client, ScriptedPeer]]:
        async with (
            ScriptedServer() as server,
            Client([server.address], timeouts=timeouts) as client,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(client.features)
            peer = await server.accept()
            await peer.shake_hands(gearflow=gearflow)
            yield client, peer

    return connected


@pytest.fixture
def working() -> Working:
    """``async with working(address, function, answer)``: a worker that says ``answer(job)`` to each job."""

    @asynccontextmanager
    async def connected(address: str, function: str, answer: Answer) -> AsyncGenerator[None]:
        host, _, port = address.rpartition(":")
        async with await ScriptedPeer.connect(host, int(port), timeout=60) as peer:
            await peer.send(CanDo(function.encode()), GrabJob())
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_work, peer, answer)
                yield
                tasks.cancel_scope.cancel()

    return connected


@pytest.fixture
def reverser(any_server: str, function: str, program: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    """A server and a function on it, which a C worker serves: it reverses its workload."""
    host, _, port = any_server.rpartition(":")
    command = [program("gearman"), "-h", host, "-p", port, "-w", "-f", function, "rev"]
    with subprocess.Popen(command) as worker:
        try:
            yield any_server, function
        finally:
            worker.kill()


async def _work(peer: ScriptedPeer, answer: Answer) -> None:
    while True:
        match await peer.receive():
            case JobAssign() as job:
                await peer.send(*answer(job), GrabJob())
            case NoJob():
                await peer.send(PreSleep())
            case Noop():
                await peer.send(GrabJob())
            case other:
                raise AssertionError(f"a worker heard {other!r}")
