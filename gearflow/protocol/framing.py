"""Bytes in any cut -> whole frames, for the ends of a connection that read answers.

A frame is a pair of packet number and body; a text line (the first unread byte is not NUL) is a frame
of type ``TEXT`` whose body is the line without its end. The server's sessions scan the received bytes
in place instead (``gearflow.broker.session``) and follow the same rules.
"""

from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

from gearflow.errors import RemoteProtocolError
from gearflow.protocol.constants import (
    HEADER,
    HEADER_SIZE,
    MAX_ANSWER,
    MAX_BODY,
    MAX_TEXT_LINE,
    MAX_TYPE,
    PacketType,
)

_unpack_header: Final = HEADER.unpack_from

_SHORT: Final = frozenset(
    {
        PacketType.NOOP,
        PacketType.NO_JOB,
        PacketType.JOB_CREATED,
        PacketType.WORK_STATUS,
        PacketType.WORK_FAIL,
        PacketType.ERROR,
        PacketType.OPTION_RES,
        PacketType.STATUS_RES,
        PacketType.STATUS_RES_UNIQUE,
    }
)
"""Packets of a server that bring no payload. They have at most ``MAX_ANSWER`` bytes."""

TEXT: Final = 0  # not a packet number

Frame: TypeAlias = tuple[int, bytes]


class FrameBuffer:
    """Collects received bytes and cuts them into frames. Owns state: one for each direction of a connection.

    A body that arrives in many pieces is joined once, when it is complete, so no piece is copied twice.

    Args:
        magic: The magic of the packets to read.
        max_body: The longest body in bytes.
        setting: The setting that allows longer ones, for the error.
        text: Whether lines of text may come.

    Attributes:
        max_body: As the argument. It may grow between two calls of ``feed``.
    """

    __slots__ = ("_broken", "_magic", "_missing", "_pieces", "_setting", "_text", "max_body")

    def __init__(
        self, magic: bytes, *, max_body: int = MAX_BODY, setting: str = "", text: bool = True
    ) -> None:
        self._magic = magic
        self._text = text
        self._setting = setting
        self.max_body = max_body
        self._pieces: list[bytes] = []  # of an incomplete frame
        self._missing = 0  # bytes that must arrive before another look helps
        self._broken: str | None = None

    def feed(self, data: bytes) -> Iterable[Frame]:
        """The frames that ``data`` completes, in order; to be iterated to the end.

        Raises:
            RemoteProtocolError: The bytes are not Gearman's (wrong magic, a type that does not exist, a
                line or body over its limit). It comes after the frames before the fault, wherever the
                bytes were cut; the connection has to be closed, feeding again raises the same.
        """
        if self._broken is not None:
            raise RemoteProtocolError(self._broken)
        if self._pieces:
            self._pieces.append(data)
            if len(data) < self._missing:
                self._missing -= len(data)
                return ()
            data = b"".join(self._pieces)
            self._pieces.clear()
        frames: list[Frame] = []
        position, total = 0, len(data)
        limit = min(self.max_body, MAX_ANSWER)
        try:
            while position < total:
                # Nearly all frames are small and whole. All others are for ``_take``.
                begin = position + HEADER_SIZE
                if begin <= total:
                    magic, kind, size = _unpack_header(data, position)
                    end = begin + size
                    if magic == self._magic and 0 < kind <= MAX_TYPE and size <= limit and end <= total:
                        frames.append((kind, data[begin:end]))
                        position = end
                        continue
                position, missing = self._take(data, position, frames)
                if missing:
                    self._pieces.append(data[position:])
                    self._missing = missing
                    break
        except RemoteProtocolError as error:
            self._broken = str(error)
            return _then_raise(frames, error)
        return frames

    def _take(self, data: bytes, start: int, frames: list[Frame]) -> tuple[int, int]:
        """Cut one frame off; returns where the next begins, and how many bytes this one lacks."""
        if data[start]:
            return self._take_line(data, start, frames)
        have = len(data) - start
        if have < HEADER_SIZE:
            if data[start : start + 4] != self._magic[:have]:
                raise RemoteProtocolError(f"{data[start : start + 4]!r} is not the magic {self._magic!r}")
            # Each byte of the magic is checked when it comes, so that a wrong one is reported at once.
            return start, 1 if have < len(self._magic) else HEADER_SIZE - have
        magic, kind, size = HEADER.unpack_from(data, start)
        if magic != self._magic:
            raise RemoteProtocolError(f"{magic!r} is not the magic {self._magic!r}")
        if not 0 < kind <= MAX_TYPE:
            raise RemoteProtocolError(f"packet type {kind} does not exist")
        if size > MAX_ANSWER or size > self.max_body:
            self._check_size(kind, size)
        end = start + HEADER_SIZE + size
        if end > len(data):
            return start, end - len(data)
        frames.append((kind, data[start + HEADER_SIZE : end]))
        return end, 0

    def _check_size(self, kind: int, size: int) -> None:
        if kind in _SHORT and size > MAX_ANSWER:
            raise RemoteProtocolError(
                f"a body of {size} bytes is over the limit of {MAX_ANSWER} of {PacketType(kind).name}"
            )
        if size > self.max_body:
            is_set = self._setting and self.max_body > MAX_ANSWER  # below, nothing large was asked for
            remedy = f" ({self._setting} sets it)" if is_set else ""
            raise RemoteProtocolError(f"a body of {size} bytes is over the limit of {self.max_body}{remedy}")

    def _take_line(self, data: bytes, start: int, frames: list[Frame]) -> tuple[int, int]:
        end = data.find(b"\n", start, start + MAX_TEXT_LINE + 1)
        if end < 0:
            if len(data) - start > MAX_TEXT_LINE:
                raise RemoteProtocolError(f"a text line is over {MAX_TEXT_LINE} bytes")
            return start, 1
        line = data[start:end].removesuffix(b"\r")
        if not self._text:
            raise RemoteProtocolError(f"a line of text came: {line[:80]!r}; it does not speak Gearman")
        frames.append((TEXT, line))
        return end + 1, 0


def _then_raise(frames: list[Frame], error: RemoteProtocolError) -> Iterator[Frame]:
    yield from frames
    raise error
