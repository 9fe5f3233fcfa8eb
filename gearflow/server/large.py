"""Receives a large body into the buffer in which it stays until it is sent on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gearflow.server.peer import Peer


class LargeBody(asyncio.BufferedProtocol):
    """Stands in for a peer at its transport, from the first part of a large body to its last."""

    def __init__(self, peer: Peer) -> None:
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
