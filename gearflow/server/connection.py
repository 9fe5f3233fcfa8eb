"""One connection of the server: bytes from the socket to the broker, the outbox to the socket.

Receives a large body into the buffer in which it stays until it is sent on.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, cast

from gearflow.broker.auth import Unauthorized
from gearflow.broker.session import WHOLE
from gearflow.errors import RemoteProtocolError

if TYPE_CHECKING:
    from gearflow.broker.parser import Body
    from gearflow.server.server import Engine


class LargeBody(asyncio.BufferedProtocol):
    """Stands in for a peer at its transport, from the first part of a large body to its last."""

    def __init__(self, peer: ServerConnection) -> None:
        self._peer = peer

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._peer.room()

    def buffer_updated(self, nbytes: int) -> None:
        self._peer.large_received(nbytes)

    def eof_received(self) -> None:
        self._peer.eof_received()

    def pause_writing(self) -> None:
        self._peer.pause_writing()

    def resume_writing(self) -> None:
        self._peer.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._peer.connection_lost(exc)


logger = logging.getLogger(__name__)


class ServerConnection(asyncio.Protocol):
    """Owns one accepted connection.

    While a large body is received, a ``LargeBody`` takes its place at the transport.

    A peer is *congested* when more bytes wait for it than are allowed. The server then *holds* the sessions
    that feed it and does not read from them until the peer has caught up. It disconnects a peer that makes
    others wait for too long.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._congested = False
        self._held: set[ServerConnection] = set()  # those that wait until this one has read
        self._holders = 0  # what this one waits for, before it is read from again
        self._waits_for_store = False
        self._patience: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------------- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._session = self._engine.accept(self, transport)
        self._outbox = self._session.outbox
        self._partials = self._engine.broker.parser.partials
        self._stalled = self._engine.broker.parser.stalled
        most = self._engine.settings.max_pending_bytes
        self._transport.set_write_buffer_limits(high=most, low=most * 3 // 4)

    def data_received(self, data: bytes) -> None:
        engine = self._engine
        if engine.congested:
            engine.flush()  # so that who is dirty afterwards was fed by this peer
        try:
            engine.broker.receive(self._session, data, engine.time())
        except RemoteProtocolError as error:
            self._turn_away(error)
        self._go_on()

    def eof_received(self) -> None:
        # Half-closing counts as leaving, as in gearmand; what was answered so far still goes out.
        self.flush()

    def pause_writing(self) -> None:
        self._congested = True
        self._engine.congested += 1

    def resume_writing(self) -> None:
        self._congested = False
        self._engine.congested -= 1
        self._release()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._congested:
            self.resume_writing()
        self._engine.forget(self._session)

    def _go_on(self) -> None:
        """The broker has handled what came: see to what it is in the middle of, and to its answers."""
        engine = self._engine
        if self._partials and self._session in self._partials:
            self._expect_large()
        if engine.congested or self._stalled:
            self._hold_back()
        if not engine.flushing:
            engine.schedule_flush()

    # ----------------------------------------------------------------------------------- large bodies

    def _expect_large(self) -> None:
        if self._partials[self._session].body is not None and not self._transport.is_closing():
            self._transport.set_protocol(LargeBody(self))

    def room(self) -> memoryview:
        """Where the next bytes of the large body belong."""
        return self._partials[self._session].room()

    def large_received(self, count: int) -> None:
        """So many bytes of it have come."""
        engine = self._engine
        if engine.congested:
            engine.flush()  # as above
        try:
            engine.broker.receive_large(self._session, count, engine.time())
        except RemoteProtocolError as error:
            self._turn_away(error)
        if self._session not in self._partials:
            self._transport.set_protocol(self)
        self._go_on()

    # ------------------------------------------------------------------------------ called by the engine

    def flush(self) -> None:
        """Write what is in the outbox; small packets in one piece, large bodies as they are."""
        outbox = self._outbox
        if len(outbox) == 1:
            self._transport.write(outbox[0])
        elif self._session.has_large:
            self._write_large(outbox)
        elif outbox:
            self._transport.write(b"".join(outbox))
        outbox.clear()

    def _write_large(self, outbox: list[Body]) -> None:
        self._session.has_large = False
        small: list[Body] = []
        for piece in outbox:
            if len(piece) < WHOLE:
                small.append(piece)
                continue
            self._transport.write(b"".join(small))
            small.clear()
            self._transport.write(piece)
        if small:
            self._transport.write(b"".join(small))

    def resume(self) -> None:
        """The submissions of this peer are kept: go on with what it sent meanwhile."""
        if self._waits_for_store:
            self._waits_for_store = False
            self._wait_no_more()
        try:
            self._engine.broker.resume(self._session, self._engine.time())
        except RemoteProtocolError as error:
            self._turn_away(error)
        self._go_on()

    def close(self) -> None:
        """Close the connection once what was written has left."""
        self._transport.close()

    def abort(self) -> None:
        """Close the connection now."""
        self._transport.abort()

    def _turn_away(self, error: RemoteProtocolError) -> None:
        if isinstance(error, Unauthorized):
            self.refuse(str(error), "refused a connection that does not know the token")
        else:
            self.refuse(str(error))

    def refuse(self, reason: str, what: str = "closed a connection that does not speak Gearman") -> None:
        """Close the connection because of what the peer sent."""
        logger.warning(what, extra={"peer": self._session.address, "reason": reason})
        self.flush()
        self._transport.close()

    # ------------------------------------------------------------------------------------ slow readers

    def _hold_back(self) -> None:
        """Not be read from while those it feeds do not read, or its submissions are at the store."""
        if self._engine.congested:
            self._wait_for_slow_readers()
        if self._session in self._stalled and not self._waits_for_store:
            self._waits_for_store = True
            self._wait()

    def _wait_for_slow_readers(self) -> None:
        """Be held by those congested peers that were just fed."""
        engine = self._engine
        for fed in [
            engine.peers[session] for session in engine.broker.outgoing.dirty if session in engine.peers
        ]:
            if fed._congested:
                fed._hold(self)

    def _hold(self, feeder: ServerConnection) -> None:
        """Do not read from who feeds this peer until it has caught up."""
        if feeder in self._held or feeder._transport.is_closing():
            return
        self._held.add(feeder)
        feeder._wait()
        if self._patience is None:
            self._patience = self._engine.call_later(self._engine.settings.max_stall, self._give_up)

    def _wait(self) -> None:
        """Not be read from for one more reason."""
        self._holders += 1
        if self._holders == 1 and not self._transport.is_closing():
            self._transport.pause_reading()

    def _wait_no_more(self) -> None:
        self._holders -= 1
        if self._holders == 0 and not self._transport.is_closing():
            self._transport.resume_reading()

    def _release(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        for feeder in self._held:
            feeder._wait_no_more()
        self._held.clear()

    def _give_up(self) -> None:
        self._patience = None
        fields = {"peer": self._session.address, "pending_bytes": self._transport.get_write_buffer_size()}
        logger.warning("closed a connection that does not read while others wait for it", extra=fields)
        self._transport.abort()
