"""The parts of a job as they come, until a reader takes them. Owns state; nothing here waits.

On gearflow's server a reader has a call of its own, ``gearflow:stream``, and ``PartFeed`` collects what comes
on it. The server sends only a bounded number of parts that the reader has not acknowledged.

On other servers the parts come on the handle of the attached job, as fast as the worker sends them, and
``OwnFeed`` collects them. While a reader leaves many parts unread, it stops reading from the connection,
so TCP stops the server. Without a reader it drops the oldest parts, because other jobs use the connection.
"""

from collections import deque
from typing import Final, NamedTuple, Protocol

from gearflow.errors import RemoteProtocolError
from gearflow.protocol.codec import encode
from gearflow.protocol.packets import WorkStatus

MOST_PARTS: Final = 1024
"""Unread parts of a job on another server from which on its connection is not read, or parts are dropped."""

MOST_BYTES: Final = 16 << 20
"""The same in bytes."""

_MAX_DIGITS: Final = 20


class Mark(NamedTuple):
    """Says that the next part is the one after ``position``, of that run of the job."""

    position: int
    run: int


class Pausable(Protocol):
    """What a feed needs of its connection."""

    def tell(self, handle: bytes, packet: bytes) -> None:
        """Send a packet that has no answer. A later one with the same handle may replace it."""
        ...

    def hold(self, holder: object) -> None:
        """Read no more from the server until all that hold the connection have released it."""
        ...

    def release(self, holder: object) -> None:
        """Read on, unless others hold the connection."""
        ...


class PartFeed:
    """The parts that come on a call of ``gearflow:stream``, and the marks between them."""

    __slots__ = ("_items",)

    def __init__(self) -> None:
        self._items: deque[bytes | Mark] = deque()

    def add_data(self, data: bytes) -> None:
        """A part came."""
        self._items.append(data)

    def add_status(self, status: WorkStatus) -> bool:
        """A mark came. Returns whether it belongs here."""
        self._items.append(Mark(_number(status.numerator), _number(status.denominator)))
        return True

    def take(self) -> list[bytes]:
        """Take the parts before the next mark."""
        items = self._items
        parts: list[bytes] = []
        while items and isinstance(items[0], bytes):
            parts.append(items[0])
            items.popleft()
        return parts

    def take_mark(self) -> Mark | None:
        """Take the mark that comes next, if there is one."""
        if self._items and isinstance(first := self._items[0], Mark):
            self._items.popleft()
            return first
        return None

    def acknowledge(self, connection: Pausable, handle: bytes, position: int) -> None:
        """The reader has taken all parts up to that position."""
        connection.tell(handle, encode(WorkStatus(handle, b"%d" % position, b"0")))


class OwnFeed(PartFeed):
    """The parts that come on the handle of an attached job.

    Args:
        connection: The connection of the job.
        waits: Whether the job is read from the start, so that no part is to be dropped.
        run: The number of the run, where the client counts them.
    """

    __slots__ = ("_connection", "_count", "_size", "_start", "_waits", "run")

    def __init__(self, connection: Pausable, *, waits: bool, run: int = 1) -> None:
        super().__init__()
        self.run = run
        self._items.append(Mark(0, run))
        self._connection = connection
        self._waits = waits
        self._start = 0  # the position before the first of the parts here
        self._count = 0
        self._size = 0

    def begin(self) -> None:
        """A reader begins. It finds a mark first."""
        self._waits = True
        self._set_mark()

    def end(self) -> None:
        """The reader has gone."""
        self._waits = False
        self._connection.release(self)

    def let_go(self, _job: object) -> None:
        """The job has ended. No more parts come that could be held back."""
        self._connection.release(self)

    def add_data(self, data: bytes) -> None:
        self._items.append(data)
        self._count += 1
        self._size += len(data)
        if self._is_full:
            if self._waits:
                self._connection.hold(self)
            else:
                self._drop()

    def add_status(self, status: WorkStatus) -> bool:
        """Progress came, which is not for this."""
        return False

    def take(self) -> list[bytes]:
        parts = super().take()
        self._start += len(parts)
        self._count -= len(parts)
        self._size -= sum(map(len, parts))
        if parts:
            self._connection.release(self)
        return parts

    def acknowledge(self, connection: Pausable, handle: bytes, position: int) -> None:
        """The server does not want to know."""

    @property
    def _is_full(self) -> bool:
        return self._count > MOST_PARTS or self._size > MOST_BYTES

    def _drop(self) -> None:
        self.take_mark()
        while self._is_full and self._count > 1:
            part = self._items.popleft()
            assert isinstance(part, bytes)  # marks are at the front only
            self._start += 1
            self._count -= 1
            self._size -= len(part)
        self._set_mark()

    def _set_mark(self) -> None:
        self.take_mark()
        self._items.appendleft(Mark(self._start, self.run))


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > _MAX_DIGITS:
        raise RemoteProtocolError(f"{text[:80]!r} is no position in a stream")
    return int(text)
