"""TLS between a socket and a peer, without either: bytes in, bytes out."""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, cast

import pytest

from gearflow.security.tls import server_context
from gearflow.server.connection import BodyReceiver
from gearflow.server.engine import Timings
from gearflow.server.tls import SIZE, TlsTransport
from tests.authority import Authority


class Timer:
    def cancel(self) -> None:
        """It is not waited for."""


class Engine:
    """What calls are to be made later."""

    def __init__(self) -> None:
        self.tls_buffer = memoryview(bytearray(1 << 18))
        self.timings = Timings()
        self.later: list[Callable[[], None]] = []

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        if not seconds:
            self.later.append(call)
        return Timer()


class Socket(asyncio.Transport):
    """What was sent, and whether it is read from."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.is_read = True
        self.is_closed = False
        self.is_broken = False

    def write(self, data: Any) -> None:
        self.sent += data
        self.is_closed |= self.is_broken

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed


class Peer:
    """Takes so many bytes at a time, and then wants to wait."""

    def __init__(self, appetite: int) -> None:
        self.appetite = appetite
        self.had: list[bytes] = []
        self.events: list[str] = []
        self._plate = memoryview(bytearray(appetite))

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        transport.set_protocol(BodyReceiver(cast(Any, self)))

    def body_buffer(self) -> memoryview:
        return self._plate

    def body_received(self, count: int) -> None:
        self.had.append(bytes(self._plate[:count]))
        if count == self.appetite:
            self.transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        self.had.append(data)

    def eof_received(self) -> None:
        self.events.append("eof")

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")


class Conversation:
    """A client's TLS on one side, and a peer with an appetite on the other."""

    def __init__(self, authority: Authority, appetite: int) -> None:
        self.engine = Engine()
        self.socket = Socket()
        self.peer = Peer(appetite)
        context = server_context(authority.server, None, None)
        self.server = TlsTransport(cast(Any, self.engine), cast(Any, self.peer), context)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = authority.context().wrap_bio(
            self._incoming, self._outgoing, server_hostname="127.0.0.1"
        )
        self.server.connection_made(self.socket)
        self._shake_hands()

    def say(self, data: bytes) -> None:
        """The client says something; it arrives at once."""
        self.client.write(data)
        self.deliver()

    def deliver(self) -> None:
        """What the client has sent arrives."""
        data = self._outgoing.read()
        self.server.get_buffer(-1)[: len(data)] = data
        self.server.buffer_updated(len(data))

    def hear(self) -> bytes:
        """What the client hears."""
        self._incoming.write(self.socket.sent)
        self.socket.sent.clear()
        return self.client.read(1 << 20)

    def _shake_hands(self) -> None:
        while True:
            try:
                self.client.do_handshake()
            except ssl.SSLWantReadError:
                self.deliver()
                self._incoming.write(self.socket.sent)
                self.socket.sent.clear()
            else:
                self.deliver()
                return


@pytest.fixture
def conversation(authority: Authority) -> Conversation:
    return Conversation(authority, appetite=4)


def test_a_peer_that_waits_is_given_the_rest_when_it_goes_on(conversation: Conversation) -> None:
    conversation.say(b"aaaabbbbcc")
    assert conversation.peer.had == [b"aaaa"]
    assert not conversation.socket.is_read
    conversation.peer.transport.resume_reading()
    assert conversation.socket.is_read
    assert conversation.peer.had == [b"aaaa"]  # not in the middle of what the peer does
    while conversation.engine.later:
        conversation.engine.later.pop()()
        if not conversation.socket.is_read:
            conversation.peer.transport.resume_reading()
    assert conversation.peer.had == [b"aaaa", b"bbbb", b"cc"]


def test_a_peer_that_receives_no_large_body_is_given_all_that_has_come(conversation: Conversation) -> None:
    conversation.peer.transport.set_protocol(cast(Any, conversation.peer))
    conversation.say(b"aaaabbbbcc")
    assert conversation.peer.had == [b"aaaabbbbcc"]


def test_a_full_socket_pauses_the_peer(conversation: Conversation) -> None:
    conversation.server.pause_writing()
    conversation.server.resume_writing()
    assert conversation.peer.events == ["pause", "resume"]


def test_what_the_peer_says_is_heard(conversation: Conversation) -> None:
    conversation.peer.transport.write(b"")
    conversation.peer.transport.write(b"hello")
    conversation.peer.transport.write(memoryview(b"!"))
    assert conversation.hear() + conversation.client.read(9) == b"hello!"


def test_a_goodbye_reaches_the_peer_and_closes_the_socket(conversation: Conversation) -> None:
    with pytest.raises(ssl.SSLWantReadError):
        conversation.client.unwrap()
    conversation.deliver()
    assert conversation.peer.events == ["eof"]
    assert conversation.socket.is_closed


def test_what_is_said_after_the_end_goes_nowhere(conversation: Conversation) -> None:
    conversation.peer.transport.close()
    conversation.socket.sent.clear()
    conversation.peer.transport.write(b"late")
    conversation.peer.transport.close()
    assert not conversation.socket.sent
    conversation.server.connection_lost(None)
    assert conversation.peer.events == ["lost"]


def test_a_socket_that_breaks_is_written_to_no_more(conversation: Conversation) -> None:
    conversation.socket.is_broken = True
    conversation.peer.transport.write(b"x" * 4 * SIZE)
    assert SIZE < len(conversation.socket.sent) < 2 * SIZE
