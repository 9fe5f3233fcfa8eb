"""One connection of the server: bytes from the socket to the broker, the outbox to the socket."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, cast

from gearflow.broker.sessions import LARGE, Session
from gearflow.errors import RemoteProtocolError

if TYPE_CHECKING:
    from gearflow.server.server import Engine

logger = logging.getLogger(__name__)

READ_SIZE: Final = 256 * 1024


class Peer(asyncio.BufferedProtocol):
    """Owns one accepted connection.

    Bytes are received into a buffer that all peers of a server share, since a read is handled before the
    next begins; a large body is received into a buffer of its own, where it stays until it is sent on.
    """

    __slots__ = ("_engine", "_session", "_transport")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # ------------------------------------------------------------------------- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        address = transport.get_extra_info("peername")
        fd = transport.get_extra_info("socket").fileno()
        self._session = self._engine.broker.connected(fd, address[0] if address else "-")
        self._engine.peers[self._session] = self

    def get_buffer(self, sizehint: int) -> memoryview:
        session = self._session
        return self._engine.scratch if session.large is None else session.room()

    def buffer_updated(self, nbytes: int) -> None:
        engine = self._engine
        session = self._session
        try:
            if session.large is None:
                engine.broker.receive(session, bytes(engine.scratch[:nbytes]), engine.time())
            else:
                engine.broker.receive_large(session, nbytes, engine.time())
        except RemoteProtocolError as error:
            self._refuse(error)
        engine.schedule_flush()

    def eof_received(self) -> None:
        # Half-closing counts as leaving, as in gearmand; what was answered so far still goes out.
        self.flush(self._session)

    def connection_lost(self, exc: Exception | None) -> None:
        self._engine.forget(self._session)

    # ------------------------------------------------------------------------------ called by the engine

    def flush(self, session: Session) -> None:
        """Write what is in the outbox; small packets in one piece, large bodies as they are."""
        outbox = session.outbox
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

    def close(self) -> None:
        """Close the connection once what was written has left."""
        self._transport.close()

    def abort(self) -> None:
        """Close the connection now."""
        self._transport.abort()

    def _refuse(self, error: RemoteProtocolError) -> None:
        fields = {"peer": self._session.address, "reason": str(error)}
        logger.warning("closed a connection that does not speak Gearman", extra=fields)
        self.flush(self._session)
        self._transport.close()
