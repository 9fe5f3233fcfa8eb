"""A connection's bytes -> calls of the handlers of its packets and text lines, in order.

The bytes are scanned where they are: a header is read as two numbers, of which the first, magic and packet
type in one, is looked up in the table of handlers; whatever is not there, or not there in whole, takes the
slow path. The form of the packets is that of ``gearflow.protocol.codec.LAYOUTS``; tests hold the two
readings together, and that it never matters where the bytes were cut.

A large body is received into a buffer of its own (``Partial.room``), where it stays until it is sent on.

The fields of a packet's body, split once.

A body is bytes; a large one is a read-only view of what it was received into, and its last field stays a
view, so that no large body is copied, unless it would keep much in memory that is not its own.

Where large bodies are received: buffers that are used again once what was in them is nobody's any more.

A new buffer costs more than what is done with it: the kernel has to find and clear each of its pages. So a
few are kept, each to be given out again when no view of it is left. Where all of those are in use, as bodies
of jobs that wait may be for long, others are made of exactly the size that is wanted, and not kept.

From ``HUGE`` on a buffer is mapped, in huge pages, which costs memory only as it is filled.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Final, NoReturn, TypeAlias, cast

from gearflow.broker.limits import SizeLimits
from gearflow.broker.session import LARGE, Session
from gearflow.broker.turns import LONG, Turns
from gearflow.errors import RemoteProtocolError
from gearflow.protocol.codec import LAYOUTS
from gearflow.protocol.constants import HEADER, HEADER_SIZE, MAX_ARGUMENT, MAX_TYPE, REQ, RES, PacketType

Body: TypeAlias = bytes | memoryview

_INTEGER: Final = re.compile(rb"\s*([+-]?\d{1,20})")


def split(body: Body, separators: int, kind: int) -> tuple[list[bytes], Body]:
    """The fields before the last one, and the last one.

    Raises:
        RemoteProtocolError: Separators are missing.
    """
    if isinstance(body, bytes):
        fields = body.split(b"\0", separators)
        last: Body = fields.pop()
    else:
        fields = bytes(body[: (separators + 1) * MAX_ARGUMENT]).split(b"\0", separators)
        fields.pop()
        last = compact(body[sum(map(len, fields)) + len(fields) :])
    if len(fields) < separators:
        name = PacketType(kind).name
        raise RemoteProtocolError(f"{name} has {len(fields) + 1} of its {separators + 1} arguments")
    return fields, last


def handle_of(body: Body) -> tuple[bytes, Body]:
    """The handle that begins a body, and the body.

    Perl's Gearman::Worker sends no NUL behind the handle where the result is empty: it is put there.
    """
    if isinstance(body, bytes):
        end = body.find(b"\0")
        if end < 0:
            return body, body + b"\0"
        return body[:end], body
    handle, separator, _ = bytes(body[:MAX_ARGUMENT]).partition(b"\0")
    if not separator:
        raise RemoteProtocolError("a handle does not end")
    return handle, body


def compact(body: Body) -> Body:
    """A body that is kept: a copy, if it would keep much more in memory that was received with it."""
    if isinstance(body, memoryview) and isinstance(body.obj, bytes) and len(body.obj) > 2 * len(body):
        return bytes(body)
    return body


def name_in(body: Body) -> bytes:
    """The first field of a body that has no data; what stands behind a NUL is ignored, as in gearmand."""
    return bytes(body).partition(b"\0")[0]


def integer(text: bytes) -> int:
    """A number as C reads it: as many digits as there are, else 0."""
    match = _INTEGER.match(text)
    return int(match[1]) if match else 0


_MIB: Final = 1 << 20

HUGE: Final = 16 * _MIB
"""Bytes from which on a buffer is mapped."""

KEPT: Final = 16 * _MIB
"""Bytes of the buffers that are kept, all together."""

MOST: Final = 16
"""Buffers that are kept: each is looked at where none is free."""


class NoMemory(RemoteProtocolError):
    """There is none for a body that is about to come; the connection is to be closed."""


class Buffers:
    """Gives out buffers. Owns those that are kept."""

    def __init__(self) -> None:
        self._kept: list[bytearray] = []
        self._room = KEPT

    def take(self, size: int) -> memoryview:
        """A buffer of so many bytes, whatever is in them; the caller's as long as a view of it lives.

        Raises:
            NoMemory: It cannot be had.
        """
        try:
            return self._take(size)
        except (MemoryError, OSError) as error:
            reason = getattr(error, "strerror", None) or "the system gives no more"
            raise NoMemory(f"no memory for a body of {size} bytes: {reason}") from error

    def _take(self, size: int) -> memoryview:
        if size >= HUGE:
            return mapped(size)
        for buffer in self._kept:
            if len(buffer) >= size and _is_unused(buffer):
                return memoryview(buffer)[:size]
        rounded = 1 << (size - 1).bit_length()  # so that it suits others as well
        if rounded > self._room or len(self._kept) == MOST:
            return memoryview(bytearray(size))
        self._kept.append(bytearray(rounded))
        self._room -= rounded
        return memoryview(self._kept[-1])[:size]


def _is_unused(buffer: bytearray) -> bool:
    """Whether no view of it is left, as a view cannot be had of one that is to change its size."""
    try:
        buffer.append(0)
    except BufferError:
        return False
    buffer.pop()
    return True


def mapped(size: int) -> memoryview:
    """Memory of so many bytes, which costs something only as it is filled. Raises OSError."""
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared ones cost twice as much
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(pages)


Handler = Callable[[Session, int, Body], "int | None"]
"""What is called with a packet's session, type and body. True: the answer waits for the store. ``LONG``: it
may have taken long."""

_SHARE: Final = 8192
"""Bytes of small packets that are handled before a look at the time: they take a few milliseconds."""

_HEAD: Final = struct.Struct(">QI")  # magic and packet type as one number; length of the body
_read_head: Final = _HEAD.unpack_from

_NOTHING: Final[Mapping[int, tuple[Handler, int]]] = {}

_TLS: Final = b"\x16\x03"
"""What TLS begins with; no text command does."""


_EARNEST: Final = 64
"""A body gets its buffer when the first of so many parts has come: who only claims to send one gets none."""

_FIRST: Final = 128
"""Bytes of a body over the limit that are looked at: enough for a handle, so that its job can be failed."""


class Partial:
    """A packet or line that has not come whole. Owns what has come of it."""

    __slots__ = ("began", "body", "filled", "kind", "missing", "pieces", "size", "skip")

    def __init__(self, began: float, size: int) -> None:
        self.began = began  # when its first bytes came
        self.size = size  # bytes, as far as that is known
        self.pieces: list[bytes] = []
        self.missing = 0  # bytes that must arrive before another look at the pieces helps
        self.body: memoryview | None = None  # where a large body is received; ``filled`` of it have come
        self.kind = 0
        self.filled = 0
        self.skip = 0  # bytes of a body over the limit that are still to come, and to be thrown away

    def room(self) -> memoryview:
        """Where the next bytes of the large body belong."""
        assert self.body is not None
        return self.body[self.filled :]


class PacketParser:
    """Cuts what sessions receive into packets and text lines. The unfinished rest is kept in ``partials``.

    ``handlers`` has one for each packet type that a server accepts; other existing types, and responses,
    go to ``refuse`` with the code and text of an ERROR. Text lines go to ``text``, without their end. Of a
    body over the limit the first bytes go to ``oversized``, with the packet's type and the body's size.

    While answers of a session wait for the store, only packets of the types in ``patient`` are handled, and
    none where the session has ``blocks_pipeline`` set; any other, or one that is no good, is kept in
    ``stalled`` until ``resume``, with what comes behind it. So is what a session sent when its turn is late.
    """

    def __init__(
        self,
        handlers: Mapping[PacketType, Handler],
        patient: Collection[PacketType],
        text: Callable[[Session, bytes], None],
        refuse: Callable[[Session, bytes, bytes], None],
        oversized: Callable[[Session, int, bytes, int], None],
        limits: SizeLimits,
        turns: Turns,
    ) -> None:
        self.partials: dict[Session, Partial] = {}
        self.stalled: dict[Session, tuple[list[bytes], int]] = {}  # pieces; where in the first to go on
        self._table = {_head(kind): (handler, int(kind)) for kind, handler in handlers.items()}
        self._patient = {head: found for head, found in self._table.items() if found[1] in patient}
        self._text = text
        self._refuse = refuse
        self._oversized = oversized
        self._limits = limits
        self._turns = turns
        self._buffers = Buffers()

    def sibling(
        self, handlers: Mapping[PacketType, Handler], text: Callable[[Session, bytes], None]
    ) -> PacketParser:
        """A parser with other handlers, for some of the sessions. It shares all that has come in part."""
        patient = [PacketType(kind) for _, kind in self._patient.values()]
        other = PacketParser(
            handlers, patient, text, self._refuse, self._oversized, self._limits, self._turns
        )
        other.partials, other.stalled, other._buffers = self.partials, self.stalled, self._buffers
        return other

    def receive(self, session: Session, data: bytes, now: float, position: int = 0) -> None:
        """Handle what ``data`` completes, from a position on.

        Raises:
            RemoteProtocolError: These bytes are not Gearman's. What came before them was handled.
        """
        began = now
        if self.stalled and session in self.stalled:
            self.stalled[session][0].append(data)
            return
        if self.partials and session in self.partials:
            began, data = self._continue(session, data)
        unpack = _read_head
        table = self._while_storing(session) if session.pending_writes else self._table
        max_body = self._limits.body
        end = len(data)
        try:
            while True:
                share = end if end - position < _SHARE else position + _SHARE
                while position < share:
                    start = position + HEADER_SIZE
                    if start <= end:
                        head, size = unpack(data, position)
                        stop = start + size
                        found = table.get(head)
                        if found is not None and stop <= end and size <= max_body:
                            handler, kind = found
                            body = data[start:stop] if size < LARGE else memoryview(data)[start:stop]
                            after = handler(session, kind, body)
                            if after:
                                share = stop if after == LONG else share
                                table = self._while_storing(session)
                            position = stop
                            continue
                    position = self._receive_other(session, data, position, now if position else began)
                    if position < 0:
                        return
                    share = position
                    table = self._while_storing(session)
                if position >= end or self._must_wait(session, data, position):
                    return
        except RemoteProtocolError:
            if not session.pending_writes:
                raise
            self.stalled[session] = [data], position  # it is handled after the answers

    def resume(self, session: Session, now: float) -> None:
        """Handle what the session sent meanwhile, if that was not done. Raises as ``receive``."""
        if session in self.stalled:
            pieces, position = self.stalled.pop(session)
            data = b"".join(pieces) if len(pieces) > 1 else pieces[0]
            self.receive(session, data, now, position)

    def forget(self, session: Session) -> None:
        """The session is gone."""
        self.partials.pop(session, None)
        self.stalled.pop(session, None)

    def receive_large(self, session: Session, count: int) -> None:
        """Another ``count`` bytes have come into the ``room()`` of what is partial. Raises as ``receive``."""
        partial = self.partials[session]
        partial.filled += count
        assert partial.body is not None
        if partial.filled == len(partial.body):
            del self.partials[session]
            handler, kind = self._table[_head(partial.kind)]
            try:
                handler(session, kind, partial.body.toreadonly())
            except RemoteProtocolError:
                if not session.pending_writes:
                    raise
                self.stalled[session] = [HEADER.pack(REQ, kind, partial.size), bytes(partial.body)], 0
            else:  # the event loop may have read more, and would hand it over in the same turn
                self._must_wait(session, b"", 0)

    def overdue(self, now: float) -> list[Session]:
        """The sessions in the middle of a packet that takes too long to come."""
        return [
            session
            for session, partial in self.partials.items()
            if now - partial.began > self._limits.packet_time + partial.size / _MIB
        ]

    def _must_wait(self, session: Session, data: bytes, position: int) -> bool:
        """Whether the turn is late. Then the rest of what came is handled in a later turn."""
        if not self._turns.is_late():
            return False
        self.stalled[session] = [data], position
        self._turns.resume_later(session)
        return True

    def _continue(self, session: Session, data: bytes) -> tuple[float, bytes]:
        """The bytes to look at now that these have come, none while something is missing; and since when."""
        partial = self.partials[session]
        if partial.skip:
            skipped = min(partial.skip, len(data))
            partial.skip -= skipped
            data = data[skipped:]
        else:
            partial.pieces.append(data)
            if len(data) < partial.missing:
                partial.missing -= len(data)
                return partial.began, b""
            data = b"".join(partial.pieces)
        if not partial.skip:
            del self.partials[session]
        return partial.began, data

    def _receive_other(self, session: Session, data: bytes, position: int, began: float) -> int:
        """Handle what is not a whole packet that has a handler; where to go on, or -1 for: wait."""
        if session.pending_writes and not self._is_patient(session, data, position):
            self.stalled[session] = [data], position
            return -1
        if data[position]:
            return self._receive_text(session, data, position, began)
        have = len(data) - position
        if have < HEADER_SIZE:
            magic = data[position : position + 4]
            if not REQ.startswith(magic) and not RES.startswith(magic):
                _reject_magic(magic)
            self._keep(session, data, position, HEADER_SIZE - have if have >= len(REQ) else 1, began)
            return -1
        magic, kind, size = cast(tuple[bytes, int, int], HEADER.unpack_from(data, position))
        if magic not in (REQ, RES):
            _reject_magic(magic)
        if not 0 < kind <= MAX_TYPE:
            raise RemoteProtocolError(f"packet type {kind} does not exist")
        missing = HEADER_SIZE + size - have
        if size > self._limits.body:
            return self._throw_away(session, data, position, began)
        if missing > 0:
            self._expect(session, data, position, missing, began)
            return -1
        if magic == REQ:
            self._refuse(session, b"INVALID_COMMAND", b"Command not expected")
        else:
            self._refuse(session, b"INVALID_MAGIC", b"Request magic expected")
        return position + HEADER_SIZE + size

    def _while_storing(self, session: Session) -> Mapping[int, tuple[Handler, int]]:
        """What may be handled while answers wait for the store: nothing behind one that has no place yet."""
        if not session.pending_writes:
            return self._table
        return _NOTHING if session.blocks_pipeline else self._patient

    def _is_patient(self, session: Session, data: bytes, position: int) -> bool:
        """Whether what comes is a packet that may be handled while answers wait for the store."""
        if len(data) - position < HEADER_SIZE:
            return False
        head, size = _read_head(data, position)
        return head in self._while_storing(session) and size <= self._limits.body

    def _receive_text(self, session: Session, data: bytes, position: int, began: float) -> int:
        """Handle a line of text, or keep what is incomplete; as ``_receive_other``."""
        forbid_tls(data, position)
        longest = self._limits.line
        end = data.find(b"\n", position, position + longest)
        if end < 0:
            if len(data) - position >= longest:
                raise RemoteProtocolError(f"a text line of over {longest} bytes")
            self._keep(session, data, position, 1, began)
            return -1
        self._text(session, data[position:end].removesuffix(b"\r"))
        return end + 1

    def _expect(self, session: Session, data: bytes, position: int, missing: int, began: float) -> None:
        """Get ready for the rest of a packet that has come in part."""
        start = position + HEADER_SIZE
        head, size = _read_head(data, position)
        if size < LARGE or head not in self._table or not LAYOUTS[PacketType(self._table[head][1])].opaque:
            self._keep(session, data, position, missing, began)
            return
        come = len(data) - start
        if come < size // _EARNEST and size < HUGE:
            self._keep(session, data, position, size // _EARNEST - come, began)
            return
        partial = self.partials[session] = Partial(began, size)
        partial.kind = self._table[head][1]
        partial.body = self._buffers.take(size)
        partial.filled = come
        partial.body[: partial.filled] = memoryview(data)[start:]

    def _throw_away(self, session: Session, data: bytes, position: int, began: float) -> int:
        """Answer a packet whose body is over the limit, once its first bytes are there, and skip it."""
        _, kind, size = cast(tuple[bytes, int, int], HEADER.unpack_from(data, position))
        start = position + HEADER_SIZE
        come = len(data) - start
        wanted = min(size, _FIRST)
        if come < wanted:
            self._keep(session, data, position, wanted - come, began)
            return -1
        self._oversized(session, kind, data[start : start + wanted], size)
        if come < size:
            self.partials[session] = partial = Partial(began, size)
            partial.skip = size - come
            return -1
        return start + size

    def _keep(self, session: Session, data: bytes, position: int, missing: int, began: float) -> None:
        partial = self.partials[session] = Partial(began, len(data) - position + missing)
        partial.pieces.append(data[position:] if position else data)
        partial.missing = missing


def forbid_tls(data: bytes, position: int = 0) -> None:
    """Tell who begins with TLS from who talks nonsense. Raises RemoteProtocolError."""
    if data.startswith(_TLS, position):
        raise RemoteProtocolError("it speaks TLS, which this server does not: it was given no certificate")


def _reject_magic(magic: bytes) -> NoReturn:
    raise RemoteProtocolError(f"{magic!r} is no magic of Gearman's")


def _head(kind: int) -> int:
    """What ``_HEAD`` reads of a request of that packet type."""
    return int.from_bytes(REQ, "big") << 32 | kind
