"""TLS between a socket and a ``ServerConnection``, as that connection's transport.

asyncio has such a layer, too. This one tells both sides why it refuses a connection. A client without TLS
gets an ERROR packet, a client whose handshake fails gets the alert that asyncio does not send, and the log
has a line for each. It does not wait for the peer when it closes: packets carry their length, so a cut stream
cannot pass for a whole one.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

from gearflow.protocol.constants import HEADER, RES, TLS_REQUIRED, PacketType
from gearflow.server.connection import BodyReceiver

if TYPE_CHECKING:
    from gearflow.server.connection import ServerConnection
    from gearflow.server.engine import Engine

SIZE: Final = 65_536
"""Bytes that are received or sent at a time. OpenSSL's buffers grow to it and never shrink."""

_HELLO: Final = 0x16
"""The first byte of TLS. Gearman's packets begin with 0, and its text commands with a letter."""

_PLAIN: Final = b"this port speaks TLS only"

_FAILED: Final = "refused a connection: its TLS handshake failed"

_REASONS: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it shows no certificate",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not trust this server's certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it refuses this server's certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it finds this server's certificate expired",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it refuses this server's certificate",
    "UNSUPPORTED_PROTOCOL": "it speaks no version of TLS from 1.2 on",
}


class TlsTransport(asyncio.BufferedProtocol, asyncio.Transport):
    """The TLS of one connection. Owns its state. Acts as transport to the peer, as protocol to the socket."""

    def __init__(self, engine: Engine, peer: ServerConnection, context: ssl.SSLContext) -> None:
        asyncio.Transport.__init__(self)
        self._engine = engine
        # None after the connection is lost, or the two would keep each other alive.
        self._peer: ServerConnection | None = peer
        self._large: BodyReceiver | None = None  # while it replaces the peer
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._read = cast(
            "Callable[[int, memoryview], int]", self._tls.read
        )  # typeshed: bytes, which is so without a buffer
        self._buffer = engine.tls_buffer
        self._has_begun = False  # bytes have arrived
        self._is_open = False  # the handshake is done
        self._is_paused = False
        self._is_closing = False

    # ---------------------------------------------------------------------- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._handshake_timer = self._engine.call_later(
            self._engine.timings.handshake, self._on_handshake_timeout
        )
        self._to_peer.connection_made(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = self._buffer[:nbytes]
        if not self._has_begun:
            self._has_begun = True
            if data[0] != _HELLO:
                self._refuse_plain(as_text=data[0] != 0)
                return
        self._incoming.write(data)
        if self._is_open or self._handshake():
            self._decrypt()

    def eof_received(self) -> None:
        if self._is_open:
            self._to_peer.eof_received()

    def pause_writing(self) -> None:
        self._to_peer.pause_writing()

    def resume_writing(self) -> None:
        self._to_peer.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._handshake_timer.cancel()
        self._is_closing = True
        self._to_peer.connection_lost(exc)
        self._peer = self._large = None

    # ---------------------------------------------------------------------------- called by the peer

    def write(self, data: Any) -> None:
        view = memoryview(data)
        if self._is_closing or not self._is_open:
            return
        for start in range(0, len(view), SIZE):
            if self._transport.is_closing():  # it broke at the piece before
                return
            self._tls.write(view[start : start + SIZE])
            self._flush()

    def close(self) -> None:
        if self._is_closing:
            return
        self._is_closing = True
        if self._is_open:
            with suppress(ssl.SSLError):  # always raised: it sends close_notify and would wait for the answer
                self._tls.unwrap()
            self._flush()
        self._transport.close()

    def abort(self) -> None:
        self._is_closing = True
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._is_closing or self._transport.is_closing()

    def pause_reading(self) -> None:
        self._is_paused = True
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._is_paused = False
        self._transport.resume_reading()
        self._engine.call_later(0, self._decrypt)  # bytes that arrived while paused

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._large = protocol if isinstance(protocol, BodyReceiver) else None

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._transport.set_write_buffer_limits(high, low)

    # ------------------------------------------------------------------------------------ handshake

    def _handshake(self) -> bool:
        """Continue the handshake. Returns True once it succeeded."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError as error:
            self._flush()  # the alert
            self._to_peer.refuse(_FAILED, reason=_reason(error))
            return False
        self._flush()
        self._handshake_timer.cancel()
        self._is_open = True
        return True

    def _refuse_plain(self, *, as_text: bool) -> None:
        if as_text:
            answer = b"ERR %b %b\r\n" % (TLS_REQUIRED, _PLAIN.replace(b" ", b"+"))
        else:
            body = TLS_REQUIRED + b"\0" + _PLAIN
            answer = HEADER.pack(RES, PacketType.ERROR, len(body)) + body
        self._transport.write(answer)
        self._to_peer.refuse("refused a connection without TLS", reason=_PLAIN.decode())

    def _on_handshake_timeout(self) -> None:
        self._to_peer.refuse(_FAILED, reason=f"it took more than {self._engine.timings.handshake:g} s")

    # ------------------------------------------------------------------------------------- the bytes

    @property
    def _to_peer(self) -> ServerConnection:
        assert self._peer is not None  # the event loop calls nothing after connection_lost
        return self._peer

    def _decrypt(self) -> None:
        """Pass what has arrived to the peer until the peer pauses reading."""
        while not (self._is_paused or self._is_closing):
            large = self._large
            room = self._buffer if large is None else large.get_buffer(-1)
            filled, is_over = self._read_into(room)
            if filled and large is not None:
                large.buffer_updated(filled)
            elif filled:
                self._to_peer.data_received(bytes(room[:filled]))
            if is_over:
                self._to_peer.eof_received()
                self.close()
            if filled < len(room):
                break
        self._flush()

    def _read_into(self, room: memoryview) -> tuple[int, bool]:
        """Decrypt into a buffer. Returns the number of bytes, and whether the stream has ended."""
        filled = 0
        try:
            while filled < len(room):
                count = self._read(len(room) - filled, room[filled:])
                if not count:
                    return filled, True
                filled += count
        except ssl.SSLWantReadError:
            return filled, False
        except ssl.SSLError as error:
            if not isinstance(error, ssl.SSLZeroReturnError):
                self._to_peer.warn("TLS failed", reason=_reason(error))
                self._flush()  # the alert
                self._is_open = False  # it would raise at the next write
            return filled, True
        return filled, False

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._transport.write(self._outgoing.read())


def _reason(error: ssl.SSLError) -> str:
    """The reason why TLS failed, from the server's point of view."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    reason = error.reason or str(error)
    return _REASONS.get(reason, reason.replace("_", " ").lower())
