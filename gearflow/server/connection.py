"""One connection of the server: bytes from the socket to the broker, the outbox to the socket.

A large body is received straight into the buffer in which it stays until it is sent on.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final, cast

from gearflow.broker.auth import Unauthorized
from gearflow.broker.guard import Forbidden
from gearflow.broker.session import WHOLE
from gearflow.errors import RemoteProtocolError

if TYPE_CHECKING:
    from gearflow.broker.parser import Body
    from gearflow.server.engine import Engine

NOT_GEARMAN: Final = "closed a connection that does not speak Gearman"
NO_TOKEN: Final = "refused a connection that does not know the token"
NO_RIGHT: Final = "closed a connection whose token has no right to work"

_NO_LINGER: Final = struct.pack("ii", 1, 0)

_LAST: Final = 65_536
"""Bytes that may still be sent to a peer whose connection is refused, if the system does not take them."""


class BodyReceiver(asyncio.BufferedProtocol):
    """The transport's protocol while a large body is received."""

    def __init__(self, peer: ServerConnection) -> None:
        self._peer = peer

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._peer.body_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self._peer.body_received(nbytes)

    def eof_received(self) -> None:
        self._peer.eof_received()

    def pause_writing(self) -> None:
        self._peer.pause_writing()

    def resume_writing(self) -> None:
        self._peer.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._peer.connection_lost(exc)


class ServerConnection(asyncio.Protocol):
    """Owns one accepted connection.

    A ``BodyReceiver`` replaces it at the transport while a large body is received.

    A peer is *congested* while more bytes wait for it than are allowed. The server then stops reading from
    the connections that feed it until the peer has caught up. It disconnects a peer that stalls others for
    longer than ``max_stall``.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._congested = False
        self._paused_feeders: set[ServerConnection] = set()  # paused until this peer has read
        self._pauses = 0  # reasons not to read from this peer
        self._waits_for_store = False
        self._stall_timer: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None  # until the token, and after the end
        self._has_left = False  # the broker does not know it any more

    # ------------------------------------------------------------------------- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._session = self._engine.accept(self, transport)
        self._outbox = self._session.outbox
        self._totals = self._engine.broker.core.totals
        self._receive = self._engine.broker.receive
        self._partials = self._engine.broker.parser.partials
        self._stalled = self._engine.broker.parser.stalled
        most = self._engine.settings.max_pending_bytes
        self._transport.set_write_buffer_limits(high=most, low=most * 3 // 4)
        if self._engine.connections > self._engine.most_connections:
            limit = self._engine.most_connections
            self.refuse("refused a connection: the connection limit is reached", limit=limit)
        elif self._session in self._engine.broker.auth.unauthenticated:
            self._timer = self._engine.call_later(
                self._engine.timings.authentication, self._check_authenticated
            )

    def data_received(self, data: bytes) -> None:
        engine = self._engine
        if engine.congested:
            engine.commit_and_write()  # so that only this peer makes sessions dirty from here on
        try:
            self._receive(self._session, data, engine.time())
        except RemoteProtocolError as error:
            self._refuse_error(error)
        if self._partials or engine.congested or self._stalled:
            self._after_receive()
        elif not engine.flushing:
            engine.schedule_flush()

    def eof_received(self) -> None:
        # A half-closed connection is closed, as in gearmand. Answers so far are still written.
        if not self._has_left:
            self._engine.commit_and_write()
            self._leave(is_refused=False)

    def pause_writing(self) -> None:
        if not self._has_left:
            self._congested = True
            self._engine.congested += 1

    def resume_writing(self) -> None:
        if self._congested:
            self._congested = False
            self._engine.congested -= 1
            self._resume_feeders()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.resume_writing()
        self._engine.on_connection_lost(self, self._session)

    def _after_receive(self) -> None:
        """Continue with what the broker made of the input: a large body, a pause, answers."""
        engine = self._engine
        if self._partials and self._session in self._partials:
            self._receive_body()
        if engine.congested or self._stalled:
            self._check_pause()
        if not engine.flushing:
            engine.schedule_flush()

    # ----------------------------------------------------------------------------------- large bodies

    def _receive_body(self) -> None:
        if self._partials[self._session].body is not None and not self._transport.is_closing():
            self._transport.set_protocol(BodyReceiver(self))

    def body_buffer(self) -> memoryview:
        """The buffer for the next bytes of the large body."""
        return self._partials[self._session].room()

    def body_received(self, count: int) -> None:
        """Handle ``count`` bytes that were received into ``body_buffer``."""
        engine = self._engine
        if engine.congested:
            engine.commit_and_write()  # as in data_received
        try:
            engine.broker.receive_large(self._session, count, engine.time())
        except RemoteProtocolError as error:
            self._refuse_error(error)
        if self._session not in self._partials:
            self._transport.set_protocol(self)
        self._after_receive()

    # ------------------------------------------------------------------------------ called by the engine

    def flush(self) -> None:
        """Write the outbox. Small packets are joined, large bodies are not copied."""
        outbox = self._outbox
        if self._session.has_large:
            self._write_large(outbox)
        elif outbox:
            data = outbox[0] if len(outbox) == 1 else b"".join(outbox)
            self._totals.sent += len(data)
            self._transport.write(data)
        outbox.clear()

    def _write_large(self, outbox: list[Body]) -> None:
        self._session.has_large = False
        small: list[Body] = []
        self._totals.sent += sum(map(len, outbox))
        for piece in outbox:
            if len(piece) < WHOLE:
                small.append(piece)
                continue
            self._transport.write(b"".join(small))
            small.clear()
            self._transport.write(piece)
        if small:
            self._transport.write(b"".join(small))

    @property
    def unsent(self) -> int:
        """Bytes that were written, and that the peer has not read."""
        return self._transport.get_write_buffer_size()

    def resume(self) -> None:
        """Parse what this peer sent while its submissions were being committed."""
        if self._waits_for_store:
            self._waits_for_store = False
            self._resume_reading()
        if self._congested:
            self._pause_feeder(self)  # what it asks next would be more to read
        if self._pauses:  # peers that it feeds do not read
            return
        try:
            self._engine.broker.resume(self._session, self._engine.time())
        except RemoteProtocolError as error:
            self._refuse_error(error)
        self._after_receive()

    # --------------------------------------------------------------------------------------- the end

    def close(self) -> None:
        """Close the connection after everything written has been sent."""
        self._transport.close()

    def abort(self) -> None:
        """Close the connection now."""
        self._transport.abort()

    def warn(self, what: str, **fields: object) -> None:
        """Log something that the peer caused."""
        self._engine.log.warning(what, peer=self._session.address, **fields)

    def refuse(self, what: str, **fields: object) -> None:
        """Log that the connection is closed because of what the peer did, and close it.

        Answers so far are still written, but the peer has to read them soon.
        """
        if not self._has_left:
            self.warn(what, **fields)
            self._leave(is_refused=True)

    def _refuse_error(self, error: RemoteProtocolError) -> None:
        what = NO_RIGHT if isinstance(error, Forbidden) else NOT_GEARMAN
        self.refuse(NO_TOKEN if isinstance(error, Unauthorized) else what, reason=str(error))

    def _check_authenticated(self) -> None:
        self._timer = None
        if self._session in self._engine.broker.auth.unauthenticated:
            self.refuse(NO_TOKEN, reason=f"it sent no token for {self._engine.timings.authentication:g} s")

    def _leave(self, *, is_refused: bool) -> None:
        """Leave the broker now, and close the connection when its peer has read what was written to it."""
        self.flush()
        self.resume_writing()
        self._has_left = True
        self._engine.on_leaving(self, self._session, is_refused=is_refused)
        self._transport.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.unsent:  # the system takes what it can within this turn
            most = _LAST if is_refused else inf
            self._timer = self._engine.call_later(0, partial(self._check_unread, most, is_refused))

    def _check_unread(self, most: float, is_refused: bool) -> None:
        """Drop the connection if more bytes are unread. Check again later.

        A peer that is refused has one time limit. Any other only has to go on reading.
        """
        unread = self.unsent
        if unread > most:  # RST, so that the system drops what it has for the peer too
            system: socket.socket = self._transport.get_extra_info("socket")
            system.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self._transport.abort()
            return
        most = -1 if is_refused else unread - 1
        self._timer = self._engine.call_later(
            self._engine.timings.last_read, partial(self._check_unread, most, is_refused)
        )

    # ------------------------------------------------------------------------------------ slow readers

    def _check_pause(self) -> None:
        """Pause reading while the peers it feeds do not read, or its submissions are being committed."""
        if self._engine.congested:
            self._wait_for_slow_readers()
        if self._session in self._stalled and not self._waits_for_store:
            self._waits_for_store = True
            self._pause_reading()

    def _wait_for_slow_readers(self) -> None:
        """Pause until the congested peers that were just fed have caught up."""
        engine = self._engine
        for fed in [
            engine.peers[session] for session in engine.broker.outgoing.dirty if session in engine.peers
        ]:
            if fed._congested:
                fed._pause_feeder(self)

    def _pause_feeder(self, feeder: ServerConnection) -> None:
        """Do not read from a connection that feeds this peer until the peer has caught up."""
        if feeder in self._paused_feeders or feeder._transport.is_closing():
            return
        self._paused_feeders.add(feeder)
        feeder._pause_reading()
        if self._stall_timer is None:
            self._stall_timer = self._engine.call_later(self._engine.settings.max_stall, self._on_stall)

    def _pause_reading(self) -> None:
        """Add a reason not to read from this peer."""
        self._pauses += 1
        if self._pauses == 1 and not self._transport.is_closing():
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        """Remove a reason not to read from this peer."""
        self._pauses -= 1
        if self._pauses == 0 and not self._transport.is_closing():
            self._transport.resume_reading()

    def _resume_feeders(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        for feeder in self._paused_feeders:
            feeder._resume_reading()
            if not feeder._pauses and feeder._session in self._stalled:
                self._engine.broker.turns.resume_later(feeder._session)
                self._engine.schedule_flush()
        self._paused_feeders.clear()

    def _on_stall(self) -> None:
        self._stall_timer = None
        text = "closed a connection that stalls others because it does not read"
        self.refuse(text, pending_bytes=self.unsent)
