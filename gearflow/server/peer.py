"""One connection of the server: bytes from the socket to the broker, the outbox to the socket."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, cast

from gearflow.broker.door import Unauthorized
from gearflow.broker.sessions import LARGE
from gearflow.errors import RemoteProtocolError

if TYPE_CHECKING:
    from gearflow.server.server import Engine

logger = logging.getLogger(__name__)

READ_SIZE: Final = 256 * 1024


class Peer(asyncio.BufferedProtocol):
    """Owns one accepted connection.

    Bytes are received into a buffer that all peers of a server share, since a read is handled before the
    next begins; a large body is received into a buffer of its own, where it stays until it is sent on.

    A peer for which more waits than it may is *congested*. Whoever feeds it then is *held*: not read from,
    until the peer has caught up. One that lets others wait for too long is disconnected.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._congested = False
        self._held: set[Peer] = set()  # those that wait until this one has read
        self._holders = 0  # what this one waits for, before it is read from again
        self._waits_for_store = False
        self._patience: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------------- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._session = self._engine.accept(self, transport)
        self._scratch = self._engine.scratch
        self._partials = self._engine.broker.partials
        self._stalled = self._engine.broker.stalled
        most = self._engine.settings.max_pending_bytes
        self._transport.set_write_buffer_limits(high=most, low=most * 3 // 4)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._partials:
            partial = self._partials.get(self._session)
            if partial is not None and partial.body is not None:
                return partial.room()
        return self._scratch

    def buffer_updated(self, nbytes: int) -> None:
        engine = self._engine
        if engine.congested:
            engine.flush()  # so that who is dirty afterwards was fed by this peer
        try:
            partial = self._partials.get(self._session) if self._partials else None
            if partial is None or partial.body is None:
                engine.broker.receive(self._session, bytes(self._scratch[:nbytes]), engine.time())
            else:
                engine.broker.receive_large(self._session, nbytes, engine.time())
        except Unauthorized as error:
            self.refuse(str(error), "refused a connection that does not know the token")
        except RemoteProtocolError as error:
            self.refuse(str(error))
        if engine.congested:
            self._wait_for_slow_readers()
        if self._stalled and self._session in self._stalled and not self._waits_for_store:
            self._waits_for_store = True
            self._wait()
        if not engine.flushing:
            engine.schedule_flush()

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

    # ------------------------------------------------------------------------------ called by the engine

    def flush(self) -> None:
        """Write what is in the outbox; small packets in one piece, large bodies as they are."""
        outbox = self._session.outbox
        if len(outbox) == 1:
            self._transport.write(outbox[0])
        elif outbox:
            small: list[bytes | memoryview] = []
            for piece in outbox:
                if len(piece) < LARGE:
                    small.append(piece)
                    continue
                self._transport.write(b"".join(small))
                small.clear()
                self._transport.write(piece)
            if small:
                self._transport.write(b"".join(small))
        outbox.clear()

    def resume(self) -> None:
        """The submissions of this peer are kept: go on with what it sent meanwhile."""
        if self._waits_for_store:
            self._waits_for_store = False
            self._wait_no_more()
        try:
            self._engine.broker.resume(self._session, self._engine.time())
        except RemoteProtocolError as error:
            self.refuse(str(error))

    def close(self) -> None:
        """Close the connection once what was written has left."""
        self._transport.close()

    def abort(self) -> None:
        """Close the connection now."""
        self._transport.abort()

    def refuse(self, reason: str, what: str = "closed a connection that does not speak Gearman") -> None:
        """Close the connection because of what the peer sent."""
        logger.warning(what, extra={"peer": self._session.address, "reason": reason})
        self.flush()
        self._transport.close()

    # ------------------------------------------------------------------------------------ slow readers

    def _wait_for_slow_readers(self) -> None:
        """Be held by those congested peers that were just fed."""
        engine = self._engine
        for fed in [engine.peers[session] for session in engine.broker.dirty if session in engine.peers]:
            if fed._congested:
                fed._hold(self)

    def _hold(self, feeder: Peer) -> None:
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
