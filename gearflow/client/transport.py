"""Open a connection to a server: tuned, with TLS if it is wanted, and with the token said.

A client with a token first finds out which server it talks to. Only gearflow's own server answers
``OPTION_REQ gearflow``: with ``gearflow:auth`` if it requires a token, and with ``gearflow`` if it requires
none or has it already. So no other server ever gets the token.

Why a connection could not be made, or ended, in words for people.
"""

import os
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Final, cast

import anyio
from anyio.streams.tls import TLSStream

from gearflow.client.config import ServerAddress
from gearflow.client.stream import AnyioStream, ServerStream, connect, raw_socket, tune
from gearflow.errors import RemoteProtocolError, ServerError
from gearflow.protocol.codec import encode
from gearflow.protocol.constants import AUTH, MAX_ANSWER, RES, TLS_REQUIRED
from gearflow.protocol.framing import Frame, FrameBuffer
from gearflow.protocol.heartbeat import CHECKS, HeartbeatMonitor, PeerState
from gearflow.protocol.packets import EchoReq, SubmitJob
from gearflow.protocol.request_queue import IDENTIFY, Call, CallQueue, Identification, Ignored, Request
from gearflow.runtime.eventloop import runs_on_asyncio
from gearflow.runtime.fork import forget_in_children, release_descriptor
from gearflow.security.tls import TLS, Security

NO_TOKEN: Final = (
    "it serves only who knows its token; see token= in Python, --token-file in the shell, or GEARFLOW_TOKEN"
)
NO_TLS: Final = "it speaks TLS only; see tls= in Python, --tls and --tls-ca in the shell, or GEARFLOW_TLS"

_UNTRUSTED: Final = {
    18: "it is self-signed",
    19: "an authority among its signers is self-signed, and not trusted",
    20: "its authority is not trusted",
    21: "its authority is not trusted",
}
_WRONG_NAME: Final = {62, 64}  # host name, IP address
_EXPIRED: Final = {9: "is not valid yet", 10: "has expired"}

_NOT_TLS: Final = {
    "HTTP_REQUEST",
    "PACKET_LENGTH_TOO_LONG",
    "RECORD_LAYER_FAILURE",
    "UNEXPECTED_MESSAGE",
    "WRONG_VERSION_NUMBER",
}
_OURS_REFUSED: Final = {  # alerts about a certificate that we have shown
    "SSLV3_ALERT_BAD_CERTIFICATE": "it is damaged",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "it has been revoked",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it is not good enough",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it is of a kind that is not supported",
    "TLSV1_ALERT_UNKNOWN_CA": "its authority is not trusted there",
    "TLSV1_ALERT_DECRYPT_ERROR": "its authority is not trusted there",
}
_OURS_MISSING: Final = {"TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE"}
_OLD: Final = {"TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL"}


def describe(error: BaseException) -> str:
    """Why a connection failed, in the words of the operating system without its number; of TLS in ours."""
    if isinstance(error, BaseExceptionGroup):  # one for each address of a name
        return describe(cast("BaseExceptionGroup[BaseException]", error).exceptions[0])
    if isinstance(error, anyio.EndOfStream):
        return "the server closed the connection"
    if isinstance(error, RemoteProtocolError):
        return f"it broke the protocol: {error}"
    if isinstance(error, socket.gaierror):  # its numbers are not the operating system's
        return str(error.strerror).lower()
    if isinstance(error, ssl.SSLCertVerificationError):
        return _about_certificate(error)
    if isinstance(error, ssl.SSLError):
        return _about_tls(error)
    if isinstance(error, OSError) and error.errno:  # asyncio and trio each have a text of their own
        return os.strerror(error.errno).lower()
    if error.__cause__ is not None:  # anyio says only that it failed
        return describe(error.__cause__)
    return str(error) or type(error).__name__


def _about_certificate(error: ssl.SSLCertVerificationError) -> str:
    """What is wrong with the server's certificate."""
    code = error.verify_code
    if code in _UNTRUSTED:
        remedy = "name its authority's certificate with ca (--tls-ca)"
        return f"its certificate is not trusted: {_UNTRUSTED[code]}; {remedy}"
    if code in _EXPIRED:
        return f"its certificate {_EXPIRED[code]}; it needs a new one, or a clock is wrong"
    words = error.verify_message
    if code in _WRONG_NAME:
        return (
            f"its certificate is for another name ({words.rstrip('.').lower()}); "
            "connect by a name that it has, or give that one with server_name (--tls-server-name)"
        )
    return f"its certificate is refused: {words}"


def _about_tls(error: ssl.SSLError) -> str:
    reason = error.reason or ""
    if isinstance(error, ssl.SSLEOFError) or reason == "UNEXPECTED_EOF_WHILE_READING":
        return "it closed the connection in the middle of TLS"
    if reason in _NOT_TLS:
        return "it does not speak TLS"
    if reason in _OURS_MISSING:
        return "it requires a certificate from us; give one with cert and key (--tls-cert, --tls-key)"
    if reason in _OURS_REFUSED:
        return f"it refuses our certificate: {_OURS_REFUSED[reason]}"
    if reason in _OLD:
        return "it has no version of TLS in common with us; 1.2 is the least"
    return f"TLS failed: {reason.replace('_', ' ').lower() or error}"


PING: Final = encode(EchoReq(b"heartbeat"))


class Unreachable(Exception):
    """A server cannot be used; the text says why."""


BROKEN: Final = (anyio.EndOfStream, OSError, anyio.BrokenResourceError, RemoteProtocolError, Unreachable)
"""The errors that end a connection. ``describe`` has the reason."""


async def open_stream(server: ServerAddress, security: Security, timeout: float) -> ServerStream:
    """A connection to a server, on which anything can be asked.

    Args:
        timeout: Seconds for all of it.

    Raises:
        Unreachable: There is none to be had.
    """
    step = "no connection"
    with anyio.move_on_after(timeout):
        stream = await _connect(server, is_plain=security.tls is None)
        try:
            if isinstance(stream, AnyioStream) and security.tls is not None:
                step = "no TLS (does it speak it?)"
                await _secure(stream, security.tls, server.host)
            if security.token:
                step = "no answer to OPTION_REQ (is it a Gearman server?)"
                await _authenticate(stream, security.token)
        except BaseException:
            await anyio.aclose_forcefully(stream)
            raise
        return stream
    raise Unreachable(f"{step} within {timeout:g} s")


async def until_silent(
    heartbeat: float,
    take_heard: Callable[[], bool],
    ping: Callable[[], object],
    is_busy: Callable[[], bool] = lambda: False,
) -> str:
    """Return when a peer counts as dead, with the reason. See ``HeartbeatMonitor.check``.

    Args:
        heartbeat: Seconds of silence before the ping, and again after it.
        take_heard: Returns whether anything arrived since its last call, or nothing is expected.
        ping: Sends ``PING``.
        is_busy: Returns whether the peer owes another answer before that to the ping.
    """
    monitor = HeartbeatMonitor()
    while True:
        await anyio.sleep(heartbeat / CHECKS)
        match monitor.check(heard=take_heard(), is_busy=is_busy()):
            case PeerState.PING:
                ping()
            case PeerState.DEAD:
                return f"it has been silent for {2 * heartbeat:g} s"
            case PeerState.ALIVE:
                pass


async def _connect(server: ServerAddress, *, is_plain: bool) -> ServerStream:
    stream: ServerStream
    try:
        if is_plain and runs_on_asyncio():
            stream = await connect(server)
        else:
            raw = await anyio.connect_tcp(server.host, server.port)
            tune(raw_socket(raw))
            stream = AnyioStream(raw)
    except (OSError, UnicodeError) as error:  # a host's name may be none that can be looked up
        raise Unreachable(describe(error)) from error
    forget_in_children(stream, _release)
    return stream


def _release(stream: ServerStream) -> None:
    release_descriptor(stream.descriptor)


async def _secure(stream: AnyioStream, tls: TLS, host: str) -> None:
    """Put TLS around it, once the server's certificate is found to be good."""
    try:
        stream.raw = await TLSStream.wrap(
            stream.raw,
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


async def _authenticate(stream: ServerStream, token: str) -> None:
    """Send the token, if the server is gearflow's own and requires one."""
    buffer = FrameBuffer(RES, max_body=MAX_ANSWER, text=False)
    frames, queue = deque[Frame](), CallQueue()

    async def ask(request: Request, packet: bytes) -> None:
        queue.sent([request])
        try:
            await stream.send(packet)
            while not request.is_answered:
                while not frames:
                    frames.extend(buffer.feed(await stream.receive()))
                try:
                    queue.receive(*frames.popleft())
                except RemoteProtocolError as error:  # another answer
                    request.refuse(error)
        except anyio.EndOfStream as error:
            raise Unreachable("it closed the connection before it answered") from error
        except BROKEN as error:
            raise Unreachable(describe(error)) from error

    identification = Identification(Ignored())
    await ask(identification, IDENTIFY)
    match identification.failure:
        case ServerError(code=code) if code.encode() == TLS_REQUIRED:
            raise Unreachable(NO_TLS)
        case None if identification.wants_token:
            pass
        case None:
            return
        case _:
            raise Unreachable("it knows no tokens, as only gearflow's own server does; it was not told ours")
    call = Call(Ignored())
    await ask(call, encode(SubmitJob(AUTH, b"", token.encode())))
    if call.failure is not None:
        raise Unreachable("it does not accept our token")
