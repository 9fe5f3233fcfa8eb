"""Streams of all kinds behave alike: those of asyncio and uvloop, that of trio, and those with TLS."""

import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from threading import Thread
from typing import Any, Final

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.tls import TLSStream

from gearflow.client import TLS, ServerAddress
from gearflow.client.stream import ServerStream
from gearflow.client.transport import BROKEN, Unreachable, describe, open_stream
from gearflow.errors import RemoteProtocolError
from gearflow.security.tls import PLAIN, Security, server_context
from tests.authority import Authority

DEADLINE: Final = 20.0
MORE_THAN_FITS: Final = 16 * 1024 * 1024


@pytest.fixture(
    scope="module",
    params=[("asyncio", False), ("asyncio", True), ("trio", None)],
    ids=["asyncio", "uvloop", "trio"],
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """The event loop that the tests run on."""
    name, use_uvloop = request.param
    return name, {} if use_uvloop is None else {"use_uvloop": use_uvloop}


class Owner:
    """Writes what a test gives it, and keeps what came."""

    def __init__(self, fails_at: bytes = b"none") -> None:
        self.outbox: list[bytes] = []
        self.takes: list[bytes] = []
        self.heard = bytearray()
        self.end: BaseException | None = None
        self._fails_at = fails_at
        self._news = anyio.Event()

    def take(self) -> bytes:
        data = b"".join(self.outbox)
        self.outbox.clear()
        if data:
            self.takes.append(data)
        return data

    def received(self, data: bytes) -> None:
        self.heard += data
        self._news.set()
        if self._fails_at in data:
            raise RemoteProtocolError("I do not like it")

    async def hears(self, expected: bytes) -> None:
        with anyio.fail_after(DEADLINE):
            while len(self.heard) < len(expected):
                self._news = anyio.Event()
                await self._news.wait()
        assert self.heard == expected

    @asynccontextmanager
    async def serving(self, stream: ServerStream) -> AsyncGenerator[anyio.CancelScope]:
        """Serve beside the block, until the scope is cancelled or the connection ends."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._serve, stream)
            yield tasks.cancel_scope

    async def _serve(self, stream: ServerStream) -> None:
        try:
            await stream.serve(self)
        except BROKEN as error:
            self.end = error


Pair = tuple[ServerStream, SocketStream | TLSStream]


@asynccontextmanager
async def connected(context: Any, security: Security) -> AsyncGenerator[Pair]:
    """A stream, and its other end."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    peers: list[SocketStream | TLSStream] = []
    made = anyio.Event()
    over = anyio.Event()

    async def accept(peer: SocketStream) -> None:
        async with peer:
            peers.append(
                peer
                if context is None
                else await TLSStream.wrap(
                    peer, ssl_context=context, server_side=True, standard_compatible=False
                )
            )
            made.set()
            await over.wait()

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, accept)
        address = ServerAddress("127.0.0.1", listener.extra(SocketAttribute.local_port))
        with anyio.fail_after(DEADLINE):
            stream = await open_stream(address, security, DEADLINE)
            await made.wait()
        async with stream:
            yield stream, peers[0]
        over.set()
        tasks.cancel_scope.cancel()


@pytest.fixture(params=["plain", "tls"])
async def pair(request: pytest.FixtureRequest, authority: Authority) -> AsyncIterator[Pair]:
    if request.param == "plain":
        context, security = None, PLAIN
    else:
        context = server_context(authority.server, None, None)
        security = Security(tls=TLS(ca=authority.ca))
    async with connected(context, security) as both:
        yield both


async def read(peer: SocketStream | TLSStream, size: int) -> bytes:
    data = bytearray()
    with anyio.fail_after(4 * DEADLINE):
        while len(data) < size:
            data += await peer.receive()
    return bytes(data)


async def test_an_exchange_by_hand(pair: Pair) -> None:
    stream, peer = pair
    for word in (b"one", b"two"):
        await stream.send(word)
        assert await read(peer, 3) == word
        await peer.send(word[::-1])
        assert await stream.receive() == word[::-1]


async def test_what_is_to_be_written_in_a_turn_leaves_in_one_write(pair: Pair) -> None:
    stream, peer = pair
    owner = Owner()
    async with owner.serving(stream) as scope:
        await peer.send(b"ready")
        await owner.hears(b"ready")
        for number in range(10):
            owner.outbox.append(b"%d" % number)
            stream.wake()
        assert await read(peer, 10) == b"0123456789"
        assert owner.takes == [b"0123456789"]
        scope.cancel()


async def test_what_was_there_before_is_written_and_heard(pair: Pair) -> None:
    stream, peer = pair
    await peer.send(b"early")
    owner = Owner()
    owner.outbox.append(b"hello")
    stream.wake()
    async with owner.serving(stream) as scope:
        assert await read(peer, 5) == b"hello"
        await owner.hears(b"early")
        scope.cancel()


async def test_nothing_is_taken_while_the_peer_does_not_read(pair: Pair) -> None:
    stream, peer = pair
    owner = Owner()
    owner.outbox.append(bytes(MORE_THAN_FITS))
    async with owner.serving(stream) as scope:
        await peer.send(b"ready")
        await owner.hears(b"ready")
        owner.outbox.append(b"end")
        stream.wake()
        await peer.send(b"!")
        await owner.hears(b"ready!")
        assert owner.outbox == [b"end"]
        assert (await read(peer, MORE_THAN_FITS + 3))[-3:] == b"end"
        scope.cancel()


async def test_a_send_waits_for_a_peer_that_does_not_read(pair: Pair) -> None:
    stream, peer = pair
    sent = anyio.Event()

    async def send() -> None:
        await stream.send(bytes(MORE_THAN_FITS))
        sent.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        await read(peer, 1)
        assert not sent.is_set()
        await read(peer, MORE_THAN_FITS - 262_144)
        with anyio.fail_after(DEADLINE):
            await sent.wait()


async def test_large_data_arrive_whole(pair: Pair) -> None:
    stream, peer = pair
    owner = Owner()
    data = bytes(range(256)) * 20_000
    async with owner.serving(stream) as scope:
        await peer.send(data)
        await owner.hears(data)
        scope.cancel()


async def test_an_error_of_the_owner_ends_it(pair: Pair) -> None:
    stream, peer = pair
    owner = Owner(fails_at=b"nonsense")
    async with owner.serving(stream):
        await peer.send(b"nonsense")
    assert owner.end is not None
    assert describe(owner.end) == "it broke the protocol: I do not like it"


async def test_the_end_comes_after_what_was_said_before(pair: Pair) -> None:
    stream, peer = pair
    owner = Owner()
    async with owner.serving(stream):
        await peer.send(b"bye")
        await peer.aclose()
    assert owner.heard == b"bye"
    assert owner.end is not None
    assert describe(owner.end) == "the server closed the connection"


async def test_a_peer_that_closes_one_direction_only_ends_it() -> None:
    owner = Owner()
    async with connected(None, PLAIN) as (stream, peer), owner.serving(stream):
        assert isinstance(peer, SocketStream)
        await peer.send_eof()
    assert isinstance(owner.end, anyio.EndOfStream)


async def test_a_connection_that_breaks_says_how(pair: Pair) -> None:
    stream, peer = pair
    owner = Owner()
    async with owner.serving(stream):
        await peer.send(b"ready")
        await owner.hears(b"ready")
        raw = peer.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await peer.aclose()
    assert owner.end is not None
    assert describe(owner.end) == "connection reset by peer"


async def test_it_goes_on_after_a_serve_that_was_cancelled(pair: Pair) -> None:
    stream, peer = pair
    owner = Owner()
    async with owner.serving(stream) as scope:
        await peer.send(b"ready")
        await owner.hears(b"ready")
        scope.cancel()
    assert not stream.is_cut
    await stream.send(b"last")
    assert await read(peer, 4) == b"last"
    await peer.send(b"answer")
    assert await stream.receive() == b"answer"
    assert owner.heard == b"ready"


async def test_an_end_is_found_again(pair: Pair) -> None:
    stream, peer = pair
    await peer.send(b"bye")
    await peer.aclose()
    assert await stream.receive() == b"bye"
    for _ in range(2):
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()


async def test_tls_that_has_failed_is_an_end_for_the_writer_too(authority: Authority) -> None:
    security = Security(tls=TLS(ca=authority.ca))
    async with connected(server_context(authority.server, None, None), security) as (stream, peer):
        assert isinstance(peer, TLSStream)
        await peer.transport_stream.send(b"this is no record of TLS")
        with pytest.raises(BROKEN):
            await stream.receive()
        owner = Owner()
        owner.outbox.append(b"late")
        with pytest.raises(BROKEN):
            await stream.serve(owner)


async def test_a_closed_stream_is_the_end_for_its_peer(pair: Pair) -> None:
    stream, peer = pair
    await stream.aclose()
    with anyio.fail_after(DEADLINE), pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
        await peer.receive()


# ------------------------------------------------------------------------------------------- connect


async def test_the_next_address_of_a_name_is_tried() -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")  # and nobody at ::1
    port = listener.extra(SocketAttribute.local_port)
    async with listener, await open_stream(ServerAddress("localhost", port), PLAIN, DEADLINE):
        pass


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("127.0.0.1", "connection refused"),
        ("localhost", "connection refused"),
        ("x" * 70, "name|label"),
    ],
)
async def test_the_reason_is_told_where_there_is_no_connection(host: str, reason: str) -> None:
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable, match=reason):
            await open_stream(ServerAddress(host, bound.getsockname()[1]), PLAIN, DEADLINE)


@pytest.mark.parametrize(
    ("host", "security"),
    [("127.0.0.1", PLAIN), ("localhost", PLAIN), ("127.0.0.1", Security(tls=TLS()))],
    ids=["address", "name", "tls"],
)
async def test_a_server_that_resets_each_connection_at_once_is_unreachable(
    host: str, security: Security
) -> None:
    def reset_each(listener: socket.socket) -> None:
        with suppress(OSError):  # the end of the test
            while True:
                peer, _ = listener.accept()
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = ServerAddress(host, listener.getsockname()[1])
        thread = Thread(target=reset_each, args=(listener,))
        thread.start()
        try:
            for _ in range(100):
                with suppress(Unreachable):  # or only its first user notices
                    async with await open_stream(server, security, DEADLINE):
                        pass
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
