"""A scripted peer: says and expects exactly what a test tells it, over a real socket.

With it a test plays the server of a client or worker, or the client or worker of a server, and brings
about what no real peer does on demand: packets cut anywhere, answers in a nasty order, a connection lost
at a certain moment, garbage.

    async with ScriptedServer() as server, Client([server.address]) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.submit, "resize", b"cat.png")
            peer = await server.accept()
            await peer.shake_hands()
            await peer.expect(SubmitJob(b"resize", b"", b"cat.png"))
            await peer.send(JobCreated(b"H:1"), WorkComplete(b"H:1", b"ok"))

Every wait ends in ``TimeoutError`` after ``timeout`` seconds, so that a script that went wrong fails
and does not hang.
"""

import socket
import struct
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self, TypeVar

import anyio
from anyio.abc import SocketAttribute, SocketListener, SocketStream

from gearflow.protocol.codec import decode, encode, encode_response
from gearflow.protocol.constants import REQ, RES
from gearflow.protocol.framing import TEXT, FrameBuffer
from gearflow.protocol.packets import Error, OptionReq, OptionRes, Packet

TIMEOUT: Final = 5.0  # seconds

P = TypeVar("P", bound=Packet)

Spoken = Packet | bytes
"""What a peer says or hears: a packet, or bytes as they are (heard: a line of text, without its end)."""


class ScriptedPeer:
    """One connection and what goes over it. Its maker owns it: ``connect`` or ``ScriptedServer``."""

    def __init__(self, stream: SocketStream, *, hears: bytes, timeout: float = TIMEOUT) -> None:
        self._stream = stream
        self._frames = FrameBuffer(hears)
        self._encode = encode if hears == RES else encode_response
        self._heard: deque[Spoken] = deque()
        self._timeout = timeout

    @classmethod
    async def connect(cls, host: str, port: int, *, timeout: float = TIMEOUT) -> Self:
        """Play a client or a worker of the server at that address."""
        with anyio.fail_after(timeout):
            return cls(await anyio.connect_tcp(host, port), hears=RES, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def send(self, *said: Spoken, piece: int | None = None) -> None:
        """Say all of it in one write, or in writes of ``piece`` bytes."""
        data = b"".join(one if isinstance(one, bytes) else self._encode(one) for one in said)
        with anyio.fail_after(self._timeout):
            for part in _pieces(data, piece or len(data) or 1):
                await self._stream.send(part)

    async def receive(self) -> Spoken:
        """The next thing the other side says.

        Raises:
            anyio.EndOfStream: It closed the connection.
            RemoteProtocolError: What it says is not Gearman's protocol.
        """
        with anyio.fail_after(self._timeout):
            while not self._heard:
                for kind, body in self._frames.feed(await self._stream.receive()):
                    self._heard.append(body if kind == TEXT else decode(kind, body))
        return self._heard.popleft()

    async def expect(self, *expected: Spoken) -> None:
        """The other side says exactly this next.

        Raises:
            AssertionError: It says something else.
        """
        for one in expected:
            heard = await self.receive()
            if heard != one:
                raise AssertionError(f"expected {one!r}, heard {heard!r}")

    async def expect_a(self, kind: type[P]) -> P:
        """Return the next packet, which is of this kind.

        Raises:
            AssertionError: The other side sends something else.
        """
        heard = await self.receive()
        if not isinstance(heard, kind):
            raise AssertionError(f"expected {kind.__name__}, heard {heard!r}")
        return heard

    async def expect_end(self) -> None:
        """The other side closes the connection next, and says nothing before."""
        try:
            heard = await self.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return
        raise AssertionError(f"expected the end of the connection, heard {heard!r}")

    async def shake_hands(self, *, gearflow: bool = False, exceptions: bool = True) -> None:
        """Answer the options that a gearflow client or worker sets when it connects."""
        for option, known in ((b"exceptions", exceptions), (b"gearflow", gearflow)):
            await self.expect(OptionReq(option))
            refusal = Error(b"UNKNOWN_OPTION", b"Server does not recognize given option")
            await self.send(OptionRes(option) if known else refusal)

    async def close(self) -> None:
        """Close the connection; the other side reads what was said, then its end."""
        await self._stream.aclose()

    async def reset(self) -> None:
        """Break the connection off as a crashed peer would: what was not read yet may be lost."""
        raw = self._stream.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self._stream.aclose()


class ScriptedServer:
    """Listens on a free port of 127.0.0.1 and leaves it to the test what happens to a connection.

    A connection that the test does not accept is still open, and gets no answer.
    """

    def __init__(self, *, port: int = 0, timeout: float = TIMEOUT) -> None:
        self.host: Final = "127.0.0.1"
        self.port = port
        self._timeout = timeout
        self._listener: SocketListener | None = None
        self._peers: list[ScriptedPeer] = []

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{self.host}:{self.port}"

    async def __aenter__(self) -> Self:
        multi = await anyio.create_tcp_listener(local_host=self.host, local_port=self.port)
        (listener,) = multi.listeners
        assert isinstance(listener, SocketListener)  # TCP
        self.port = listener.extra(SocketAttribute.local_port)
        self._listener = listener
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with anyio.CancelScope(shield=True):  # closing waits for nobody
            await self.stop_listening()
            for peer in self._peers:
                await peer.close()

    async def accept(self) -> ScriptedPeer:
        """The next connection somebody makes."""
        assert self._listener is not None  # entered
        with anyio.fail_after(self._timeout):
            stream = await self._listener.accept()
        peer = self.make_peer(stream)
        self._peers.append(peer)
        return peer

    def make_peer(self, stream: SocketStream) -> ScriptedPeer:
        """The peer of a new connection."""
        return ScriptedPeer(stream, hears=REQ, timeout=self._timeout)

    async def stop_listening(self) -> None:
        """From now on connecting is refused; the connections there are stay."""
        if self._listener is not None:
            await self._listener.aclose()
            self._listener = None


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]
