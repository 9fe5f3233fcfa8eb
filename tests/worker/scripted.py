"""A Gearman server that does what a test says, packet by packet, over a real socket."""

import json
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from math import inf
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketStream, TaskGroup

from gearflow.protocol.codec import decode
from gearflow.protocol.constants import REQ
from gearflow.protocol.framing import FrameBuffer
from gearflow.protocol.packets import (
    CanDo,
    EchoReq,
    EchoRes,
    Error,
    GrabJobUniq,
    JobAssignUniq,
    JobCreated,
    NoJob,
    OptionReq,
    OptionRes,
    Packet,
    PreSleep,
    SetClientId,
    SubmitJob,
    WorkComplete,
)
from gearflow.protocol.server_calls import EVENTS
from gearflow.testing.peer import ScriptedPeer, ScriptedServer, Spoken


class Peer(ScriptedPeer):
    """The server's end of one connection, in the hands of a test.

    ECHO_REQ is answered by itself, unless the peer is ``frozen``.
    """

    def __init__(self, stream: SocketStream) -> None:
        super().__init__(stream, hears=REQ, timeout=inf)  # the tests have limits of their own
        self.writes: list[bytes] = []  # as they came in
        self.frozen = False
        self.pause = 0.0  # seconds after each read, as over a slow line
        self._arrived, self._packets = anyio.create_memory_object_stream[Packet](inf)

    async def serve(self) -> None:
        """Collect what comes, until the worker closes the connection."""
        frames = FrameBuffer(REQ)
        with self._arrived, self._packets:
            try:
                while True:
                    data = await self._stream.receive()
                    self.writes.append(data)
                    await anyio.sleep(self.pause)
                    for packet in (decode(*frame) for frame in frames.feed(data)):
                        if isinstance(packet, EchoReq) and not self.frozen:
                            await self.send(EchoRes(packet.data))
                        else:
                            self._arrived.send_nowait(packet)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                self._arrived.close()
            await anyio.sleep_forever()

    def slow_down(self, pause: float) -> None:
        """Read little at a time from now on."""
        self.pause = pause
        raw = self._stream.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 19)

    async def receive(self) -> Spoken:
        """The next packet, of those that came meanwhile."""
        return await self._packets.receive()

    async def register(self, functions: int = 1, *, gearflow: bool = True) -> list[bytes]:
        """Take a registration up to its first GRAB, which is not answered; returns the functions."""
        names, _ = await self._registering(functions, gearflow=gearflow)
        if gearflow:
            await self.send(JobCreated(b"H:events"))
        return names

    async def registering(self) -> list[Packet]:
        """Take a registration at gearflow's own server; returns the first packets after it, unanswered."""
        _, first = await self._registering(1, gearflow=True)
        return first

    async def _registering(self, functions: int, *, gearflow: bool) -> tuple[list[bytes], list[Packet]]:
        await self.expect_a(OptionReq)
        await self.expect_a(SetClientId)
        names = [(await self.expect_a(CanDo)).function for _ in range(functions)]
        await self.send(OptionRes(b"gearflow") if gearflow else Error(b"UNKNOWN_OPTION", b"no such option"))
        first = [await self.expect_a(Packet) for _ in range(2 if gearflow else 1)]
        assert GrabJobUniq() in first  # before or after the other: it waits for a free slot
        called = [packet.function for packet in first if isinstance(packet, SubmitJob)]
        assert called == ([EVENTS] if gearflow else [])
        return names, first

    async def sleeping(self, functions: int = 1) -> list[bytes]:
        """Take a registration, and let the worker go to sleep."""
        names = await self.register(functions)
        await self.send(NoJob())
        await self.expect_a(PreSleep)
        return names

    async def assign(self, function: bytes, workload: bytes, handle: bytes = b"H:1") -> None:
        """Answer a GRAB with a job."""
        await self.send(JobAssignUniq(handle, function, b"", workload))

    async def called(self, function: bytes, handle: bytes = b"H:call") -> dict[str, Any]:
        """Take a call of a reserved function in, and accept it, which is not yet its answer."""
        call = await self.expect_a(SubmitJob)
        assert call.function == function
        await self.send(JobCreated(handle))
        request: dict[str, Any] = json.loads(call.workload)
        return request

    async def answered(self, function: bytes, handle: bytes = b"H:call") -> dict[str, Any]:
        """Take a call of a reserved function in, and say that it is done."""
        request = await self.called(function, handle)
        await self.send(WorkComplete(handle, b'{"jobs":1}'))
        return request

    async def rest(self) -> list[Packet]:
        """What else comes until the worker closes the connection."""
        return [packet async for packet in self._packets]


class WorkerServer(ScriptedServer):
    """A server whose peers read all the time."""

    def __init__(self, tasks: TaskGroup) -> None:
        super().__init__(timeout=inf)
        self._tasks = tasks

    def make_peer(self, stream: SocketStream) -> Peer:
        """The peer of a new connection."""
        peer = Peer(stream)
        self._tasks.start_soon(peer.serve)
        return peer

    async def accept(self) -> Peer:
        """The next connection."""
        peer = await super().accept()
        assert isinstance(peer, Peer)
        return peer


@asynccontextmanager
async def scripted_server() -> AsyncGenerator[WorkerServer, None]:
    """A scripted server for the time of the block; its connections are closed at the end."""
    async with anyio.create_task_group() as tasks:
        async with WorkerServer(tasks) as server:
            yield server
        tasks.cancel_scope.cancel()
