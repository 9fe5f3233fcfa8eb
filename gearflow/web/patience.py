"""The HTTP protocol of ``gearflow web``, which waits only so long for peers that send or read nothing.

uvicorn waits for ever for the rest of a request, and for a peer that does not read. So a few hundred silent
connections could take all files that a process may open, and silent readers all streams of events.
"""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE: Final = 20.0
"""Seconds in which a request has to come as a whole, and in which a peer has to read something."""


class PatientProtocol(H11Protocol):
    """Looks after its connection once per ``patience``, and ends it if nothing has moved since then."""

    patience = PATIENCE

    _next: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in H11Protocol
        """Begin to look after a connection."""
        super().connection_made(transport)
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """End that."""
        if self._next is not None:
            self._next.cancel()
        super().connection_lost(exc)

    def _look_later(self) -> None:
        self._next = self.loop.call_later(self.patience, self._look, self.cycle, self._unsent)

    def _look(self, request: Any, unsent: int) -> None:
        """End the connection if it stands still.

        Args:
            request: The last request at the last look. None if there was none.
            unsent: The bytes that the peer had not read.
        """
        cycle: Any = self.cycle
        waits = cycle is None or cycle.response_complete or cycle.more_body
        if (waits and cycle is request and not self._unsent) or (unsent and self._unsent >= unsent):
            self.transport.abort()
        else:
            self._look_later()

    @property
    def _unsent(self) -> int:
        return self.transport.get_write_buffer_size()
