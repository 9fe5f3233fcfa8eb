"""A Gearman server that does what a test says, packet by packet, over a real socket."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from math import inf
from typing import Any, TypeVar

import anyio
from anyio.abc import SocketAttribute, SocketStream, TaskStatus
from anyio.streams.memory import MemoryObjectReceiveStream

from gearflow.protocol.codec import decode, encode_response
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

P = TypeVar("P", bound=Packet)


class Peer:
    """The server's end of one connection, in the hands of a test.

    ECHO_REQ is answered by itself, unless the peer is ``frozen``.
    """

    def __init__(self, stream: SocketStream) -> None:
        self.writes: list[bytes] = []  # as they came in
        self.frozen = False
        self._stream = stream
        self._arrived, self._packets = anyio.create_memory_object_stream[Packet](inf)

    async def serve(self) -> None:
        """Collect what comes, until the worker closes the connection."""
        frames = FrameBuffer(REQ)
        with self._arrived, self._packets:
            try:
                while True:
                    data = await self._stream.receive()
                    self.writes.append(data)
                    for packet in (decode(*frame) for frame in frames.feed(data)):
                        if isinstance(packet, EchoReq) and not self.frozen:
                            await self.send(EchoRes(packet.data))
                        else:
                            self._arrived.send_nowait(packet)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                self._arrived.close()
            await anyio.sleep_forever()

    async def expect(self, kind: type[P]) -> P:
        """The next packet, which has to be of that kind."""
        packet = await self._packets.receive()
        assert isinstance(packet, kind), f"{packet} came instead of {kind.__name__}"
        return packet

    async def send(self, *packets: Packet) -> None:
        """Write packets, all at once."""
        await self.send_bytes(b"".join(map(encode_response, packets)))

    async def send_bytes(self, data: bytes) -> None:
        """Write what need not be packets."""
        await self._stream.send(data)

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
        await self.expect(OptionReq)
        await self.expect(SetClientId)
        names = [(await self.expect(CanDo)).function for _ in range(functions)]
        await self.send(OptionRes(b"gearflow") if gearflow else Error(b"UNKNOWN_OPTION", b"no such option"))
        first = [await self.expect(Packet) for _ in range(2 if gearflow else 1)]
        assert GrabJobUniq() in first  # before or after the other: it waits for a free slot
        assert (SubmitJob(EVENTS, b"", b"") in first) == gearflow
        return names, first

    async def sleeping(self, functions: int = 1) -> list[bytes]:
        """Take a registration, and let the worker go to sleep."""
        names = await self.register(functions)
        await self.send(NoJob())
        await self.expect(PreSleep)
        return names

    async def assign(self, function: bytes, workload: bytes, handle: bytes = b"H:1") -> None:
        """Answer a GRAB with a job."""
        await self.send(JobAssignUniq(handle, function, b"", workload))

    async def called(self, function: bytes, handle: bytes = b"H:call") -> dict[str, Any]:
        """Take a call of a reserved function in, and accept it, which is not yet its answer."""
        call = await self.expect(SubmitJob)
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

    async def close(self) -> None:
        """Drop the connection."""
        await self._stream.aclose()


class ScriptedServer:
    """A server that does what the test says."""

    def __init__(self, port: int, accepted: MemoryObjectReceiveStream[Peer]) -> None:
        self.address = f"127.0.0.1:{port}"
        self._accepted = accepted

    async def accept(self) -> Peer:
        """The next connection."""
        return await self._accepted.receive()


@asynccontextmanager
async def scripted_server() -> AsyncGenerator[ScriptedServer, None]:
    """A scripted server for the time of the block; its connections are closed at the end."""
    send, receive = anyio.create_memory_object_stream[Peer](inf)

    async def serve(stream: SocketStream) -> None:
        async with stream:
            peer = Peer(stream)
            send.send_nowait(peer)
            await peer.serve()

    async def listen(*, task_status: TaskStatus[int]) -> None:
        listeners = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
        async with listeners:
            task_status.started(listeners.extra(SocketAttribute.local_port))
            await listeners.serve(serve)

    with send, receive:
        async with anyio.create_task_group() as tasks:
            yield ScriptedServer(await tasks.start(listen), receive)
            tasks.cancel_scope.cancel()
