"""Open a connection to a server: tuned, with TLS if it is wanted, and with the token said.

Whoever has a token learns first whom he talks to: ``OPTION_REQ gearflow`` is answered by gearflow's own
server alone, with ``gearflow:auth`` where it wants a token, and with ``gearflow`` where it wants none, or
has been told it already. So the token is told to nobody else.
"""

import socket
from typing import Final, TypeAlias

import anyio
from anyio.abc import ByteStream, SocketAttribute, SocketStream
from anyio.streams.tls import TLSStream

from gearflow.client.address import ServerAddress
from gearflow.client.reasons import NO_TLS, describe
from gearflow.client.security import TLS, Security
from gearflow.errors import RemoteProtocolError
from gearflow.forks import forget_in_children, let_go
from gearflow.protocol.codec import decode, encode
from gearflow.protocol.constants import AUTH, RES, TLS_REQUIRED
from gearflow.protocol.framing import TEXT, FrameBuffer
from gearflow.protocol.packets import (
    Error,
    JobCreated,
    OptionReq,
    OptionRes,
    Packet,
    SubmitJob,
    WorkComplete,
)

Stream: TypeAlias = ByteStream
"""A connection, with or without TLS. All that it raises is OSError, EndOfStream or BrokenResourceError."""

GEARFLOW: Final = b"gearflow"

_KEEPALIVE: Final = (
    ("TCP_KEEPIDLE", 15),
    ("TCP_KEEPINTVL", 5),
    ("TCP_KEEPCNT", 3),
    ("TCP_USER_TIMEOUT", 30_000),
)
"""A host that vanished without a word is noticed after half a minute, also while it is sent something."""

_RECEIVE_SIZE: Final = 4096


class Unreachable(Exception):
    """A server cannot be used; the text says why."""


async def dial(server: ServerAddress, security: Security, timeout: float) -> Stream:
    """A connection to a server, on which anything can be asked.

    Args:
        timeout: Seconds for all of it.

    Raises:
        Unreachable: There is none to be had.
    """
    step = "no connection"
    with anyio.move_on_after(timeout):
        stream: Stream = await _connect(server)
        try:
            if security.tls is not None:
                step = "no TLS (does it speak it?)"
                stream = await _secure(stream, security.tls, server.host)
            if security.token:
                step = "no answer to OPTION_REQ (is it a Gearman server?)"
                await _introduce(stream, security.token)
        except BaseException:
            await anyio.aclose_forcefully(stream)
            raise
        return stream
    raise Unreachable(f"{step} within {timeout:g} s")


def tune(raw: socket.socket) -> None:
    """Send small packets at once, and notice a host that is gone."""
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if (option := getattr(socket, name, None)) is not None:  # not every platform has each
            raw.setsockopt(socket.IPPROTO_TCP, option, value)


async def _connect(server: ServerAddress) -> SocketStream:
    try:
        stream = await anyio.connect_tcp(server.host, server.port)
    except (OSError, UnicodeError) as error:  # a host's name may be none that can be looked up
        raise Unreachable(describe(error)) from error
    tune(stream.extra(SocketAttribute.raw_socket))
    forget_in_children(stream, _let_go)
    return stream


def _let_go(stream: SocketStream) -> None:
    let_go(stream.extra(SocketAttribute.raw_socket).fileno())


async def _secure(stream: Stream, tls: TLS, host: str) -> Stream:
    """The same with TLS, once the server's certificate is found to be good."""
    try:
        return await TLSStream.wrap(
            stream,
            hostname=tls.server_name or host,
            ssl_context=tls.context(),
            standard_compatible=False,  # packets tell their length: no end goes unnoticed
        )
    except (OSError, anyio.BrokenResourceError) as error:
        raise Unreachable(describe(error)) from error
    except ValueError as error:  # a file is not what it was, or the name can be none
        raise Unreachable(str(error)) from error
    except anyio.EndOfStream as error:
        raise Unreachable("it closed the connection instead of speaking TLS; does it speak it?") from error


async def _introduce(stream: Stream, token: str) -> None:
    """Say the token, if it is gearflow's own server that wants one."""
    conversation = _Conversation(stream)
    match await conversation.ask(OptionReq(GEARFLOW)):
        case OptionRes(option) if option != AUTH:
            return
        case OptionRes():
            pass
        case Error(code) if code == TLS_REQUIRED:
            raise Unreachable(NO_TLS)
        case _:
            raise Unreachable("it knows no tokens, as only gearflow's own server does; it was not told ours")
    match await conversation.ask(SubmitJob(AUTH, b"", token.encode())):
        case JobCreated():
            pass
        case _:
            raise Unreachable("it does not accept our token")
    if not isinstance(await conversation.next(), WorkComplete):
        raise Unreachable("it does not accept our token")


class _Conversation:
    """One question after the other, before anything else is said on a connection."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._frames = FrameBuffer(RES)
        self._waiting: list[Packet] = []

    async def ask(self, question: Packet) -> Packet:
        """The answer to a question. Raises as ``next``."""
        try:
            await self._stream.send(encode(question))
        except (OSError, anyio.BrokenResourceError) as error:
            raise Unreachable(describe(error)) from error
        return await self.next()

    async def next(self) -> Packet:
        """What the server says next.

        Raises:
            Unreachable: Nothing, or nothing that can be understood.
        """
        try:
            while not self._waiting:
                for kind, body in self._frames.feed(await self._stream.receive(_RECEIVE_SIZE)):
                    if kind == TEXT:
                        raise RemoteProtocolError(f"a line of text came: {body[:80]!r}")
                    self._waiting.append(decode(kind, body))
        except anyio.EndOfStream as error:
            raise Unreachable("it closed the connection before it answered") from error
        except (OSError, anyio.BrokenResourceError) as error:
            raise Unreachable(describe(error)) from error
        except RemoteProtocolError as error:
            raise Unreachable(f"it does not speak Gearman: {error}") from error
        return self._waiting.pop(0)
