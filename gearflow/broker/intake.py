"""A connection's bytes -> calls of the handlers of its packets and text lines, in order.

The bytes are scanned where they are: a header is read as two numbers, of which the first, magic and packet
type in one, is looked up in the table of handlers; whatever is not there, or not there in whole, takes the
slow path. The form of the packets is that of ``gearflow.protocol.codec.LAYOUTS``; tests hold the two
readings together, and that it never matters where the bytes were cut.

A large body is received into a buffer of its own (``Session.room``), where it stays until it is sent on.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from mmap import mmap
from typing import Final, NoReturn, cast

from gearflow.broker.bodies import Body
from gearflow.broker.sessions import LARGE, Session
from gearflow.errors import RemoteProtocolError
from gearflow.protocol.codec import LAYOUTS
from gearflow.protocol.constants import HEADER, HEADER_SIZE, MAX_TEXT_LINE, MAX_TYPE, REQ, RES, PacketType

Handler = Callable[[Session, int, Body], None]
"""What is called with a packet's session, type and body."""

_HEAD: Final = struct.Struct(">QI")  # magic and packet type as one number; length of the body

_MAPPED: Final = 1 << 20
"""Bytes of a body from which on its buffer is mapped: a peer that only claims to send it costs nothing."""


class Intake:
    """Cuts what sessions receive into packets and text lines. The unfinished rest is kept in the session.

    ``handlers`` has one for each packet type that a server accepts; other existing types, and responses,
    go to ``refuse`` with the code and text of an ERROR. Text lines go to ``text``, without their end.
    """

    def __init__(
        self,
        handlers: Mapping[PacketType, Handler],
        text: Callable[[Session, bytes], None],
        refuse: Callable[[Session, bytes, bytes], None],
        max_body: int,
    ) -> None:
        self._table = {_head(kind): (handler, int(kind)) for kind, handler in handlers.items()}
        self._text = text
        self._refuse = refuse
        self._max_body = max_body

    def receive(self, session: Session, data: bytes) -> None:
        """Handle what ``data`` completes.

        Raises:
            RemoteProtocolError: These bytes are not Gearman's. What came before them was handled.
        """
        if session.pieces:
            session.pieces.append(data)
            if len(data) < session.missing:
                session.missing -= len(data)
                return
            data = b"".join(session.pieces)
            session.pieces.clear()
        unpack = _HEAD.unpack_from
        table = self._table
        max_body = self._max_body
        position = 0
        end = len(data)
        while position < end:
            start = position + HEADER_SIZE
            if start <= end:
                head, size = unpack(data, position)
                stop = start + size
                if stop <= end and size <= max_body and head in table:
                    handler, kind = table[head]
                    handler(session, kind, data[start:stop])
                    position = stop
                    continue
            position = self._receive_other(session, data, position)
            if position < 0:
                return

    def receive_large(self, session: Session, count: int) -> None:
        """Another ``count`` bytes have come into the session's ``room()``. Raises as ``receive``."""
        session.filled += count
        if session.large is None or session.filled < len(session.large):
            return
        body = session.large.toreadonly()
        session.large = None
        handler, kind = self._table[_head(session.large_kind)]
        handler(session, kind, body)

    def _receive_other(self, session: Session, data: bytes, position: int) -> int:
        """Handle what is not a whole packet that has a handler; where to go on, or -1 for: wait."""
        if data[position]:
            return self._receive_text(session, data, position)
        have = len(data) - position
        if have < HEADER_SIZE:
            magic = data[position : position + 4]
            if not REQ.startswith(magic) and not RES.startswith(magic):
                _reject_magic(magic)
            self._keep(session, data, position, HEADER_SIZE - have if have >= len(REQ) else 1)
            return -1
        magic, kind, size = cast(tuple[bytes, int, int], HEADER.unpack_from(data, position))
        self._check(magic, kind, size)
        missing = HEADER_SIZE + size - have
        if missing > 0:
            self._expect(session, data, position, missing)
            return -1
        if magic == REQ:
            self._refuse(session, b"INVALID_COMMAND", b"Command not expected")
        else:
            self._refuse(session, b"INVALID_MAGIC", b"Request magic expected")
        return position + HEADER_SIZE + size

    def _receive_text(self, session: Session, data: bytes, position: int) -> int:
        """Handle a line of text, or keep what is incomplete; as ``_receive_other``."""
        end = data.find(b"\n", position, position + MAX_TEXT_LINE)
        if end < 0:
            if len(data) - position >= MAX_TEXT_LINE:
                raise RemoteProtocolError(f"a text line of over {MAX_TEXT_LINE} bytes")
            self._keep(session, data, position, 1)
            return -1
        self._text(session, data[position:end].removesuffix(b"\r"))
        return end + 1

    def _check(self, magic: bytes, kind: int, size: int) -> None:
        if magic not in (REQ, RES):
            _reject_magic(magic)
        if not 0 < kind <= MAX_TYPE:
            raise RemoteProtocolError(f"packet type {kind} does not exist")
        if size > self._max_body:
            raise RemoteProtocolError(f"a body of {size} bytes is over the limit of {self._max_body}")

    def _expect(self, session: Session, data: bytes, position: int, missing: int) -> None:
        """Get ready for the rest of a packet that has come in part."""
        start = position + HEADER_SIZE
        head, size = _HEAD.unpack_from(data, position)
        if size < LARGE or head not in self._table or not LAYOUTS[PacketType(self._table[head][1])].opaque:
            self._keep(session, data, position, missing)
            return
        session.large_kind = self._table[head][1]
        session.large = buffer = memoryview(bytearray(size) if size < _MAPPED else mmap(-1, size))
        session.filled = len(data) - start
        buffer[: session.filled] = memoryview(data)[start:]

    def _keep(self, session: Session, data: bytes, position: int, missing: int) -> None:
        session.pieces.append(data[position:] if position else data)
        session.missing = missing


def _reject_magic(magic: bytes) -> NoReturn:
    raise RemoteProtocolError(f"{magic!r} is no magic of Gearman's")


def _head(kind: int) -> int:
    """What ``_HEAD`` reads of a request of that packet type."""
    return int.from_bytes(REQ, "big") << 32 | kind
