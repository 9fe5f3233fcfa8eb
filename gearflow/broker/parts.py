"""The parts of one job, and those who read them.

A part is one WORK_DATA of a job. A log has the last parts of one job in memory, and counts all of them. A
*reader* is a call of ``gearflow:stream``. It is sent parts from its own position on, at most a window of them
beyond what its caller has taken. A client that asked for ``parts: wait`` has a *place* in the log until it
becomes a reader. A place is a reader that is sent nothing. The log keeps what readers that wait have still to
get, unless the store has it, and the most recent parts.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final

from gearflow.broker.job import Clients, QueuedJob
from gearflow.broker.parser import Body
from gearflow.broker.session import Session
from gearflow.broker.storage import JobOutcome
from gearflow.protocol.constants import WINDOW_BYTES, WINDOW_PARTS

RECENT_PARTS: Final = 256
"""The last parts of a job that stay in memory when all its readers have taken them."""

RECENT_BYTES: Final = 1 << 20
"""Bytes of these parts. A part that is larger does not stay."""

_FEW: Final = 32
"""Entries of readers that have left which may stay in the heap before a sweep."""

Resume = Callable[[JobOutcome | None, Body, int], None]


class LogReader:
    """One reader of a log, or a place in it. Two readers differ by identity alone."""

    __slots__ = (
        "asked",
        "call",
        "count",
        "cursor",
        "is_open",
        "log",
        "outstanding",
        "resume",
        "sent",
        "session",
        "status_due",
        "waits",
    )

    def __init__(
        self, log: PartLog, session: Session, call: bytes, cursor: int, waits: bool, resume: Resume | None
    ) -> None:
        self.log = log
        self.session = session
        self.call = call  # its handle; b"" for a place
        self.cursor = cursor  # the position up to which it was sent parts, or missed them
        self.waits = waits  # the worker waits for it
        self.resume = resume  # called when it was sent all parts, and the job has ended
        self.is_open = True
        self.asked: tuple[int, int] | None = None  # the run, and the position after which the store is asked
        self.status_due = True  # it is to be sent the position before the next part
        self.sent: deque[tuple[int, int]] = deque()  # positions and sizes of parts that it has not taken
        self.outstanding = 0  # bytes of them
        self.count = 0  # of a place: submissions

    def taken(self) -> int:
        """The position up to which it has taken all that it will get."""
        return self.sent[0][0] - 1 if self.sent else self.cursor

    def has_room(self, size: int) -> bool:
        """Whether a part of so many bytes may be sent."""
        sent = len(self.sent)
        return not sent or (sent < WINDOW_PARTS and self.outstanding + size <= WINDOW_BYTES)


class PartLog:
    """The parts of one job, and its readers. Owns state."""

    __slots__ = (
        "_parts",
        "available",
        "began",
        "blocked",
        "came_bytes",
        "counted",
        "end",
        "first",
        "first_kept",
        "is_far",
        "is_over",
        "job",
        "keep",
        "kept_size",
        "kept_sizes",
        "number",
        "order",
        "places",
        "position",
        "quiet",
        "quiets",
        "readers",
        "run",
        "size",
        "stored_bytes",
        "taken",
        "taken_bytes",
        "told",
        "told_bytes",
        "unstored",
        "waiting",
        "waits",
    )

    def __init__(self, number: int, job: QueuedJob | None) -> None:
        self.number = number
        self.job = job  # None: it has ended, and the store has its parts
        self.run = 1
        self.began = False  # parts have come that are not counted
        self.is_far = False  # another server has the job
        self.is_over = False  # no more parts come
        self.end: tuple[JobOutcome, Body] | None = None  # how the job ended, once that is kept
        self.position = 0  # parts that have come, in this run and those it continued
        self.available = 0  # the position up to which they may be sent: those that are kept, or all
        # In memory.
        self.first = 1  # the position of the first part
        self._parts: deque[Body] = deque()
        self.size = 0  # bytes
        self.counted = 0  # bytes that count as idle
        # At the store.
        self.keep = 0  # bytes; 0: it has none
        self.first_kept = 1
        self.kept_sizes: deque[int] = deque()
        self.kept_size = 0
        self.unstored: list[int] = []  # a heap: parts in memory that the store does not have
        # Its readers.
        self.readers: dict[LogReader, None] = {}
        self.places: dict[Session, LogReader] = {}
        self.waiting: list[tuple[int, int, LogReader]] = []  # a heap: taken, as it was; readers that wait
        self.waits = 0  # readers that wait
        self.order = 0  # of the last one
        self.quiet: dict[Session, int] = {}  # how often a client is attached that is sent no parts
        self.quiets = 0  # all of these
        # Credit. Bytes are those of this run.
        self.came_bytes = 0
        self.stored_bytes = 0  # of those that are available
        self.taken = 0
        self.taken_bytes = 0
        self.told = 0  # the position up to which the worker has credit
        self.told_bytes = 0
        self.blocked: Session | None = None  # its worker, while the server does not read from it

    @property
    def is_read(self) -> bool:
        """Whether somebody reads, or will."""
        return bool(self.readers or self.places)

    def add(self, part: Body) -> None:
        """A part has come."""
        size = len(part)
        self.position += 1
        self.came_bytes += size
        self.size += size
        self._parts.append(part)

    def add_taken(self, part: Body) -> None:
        """A part has come for which nobody waits. As ``add``, for the plain clients of other libraries."""
        size = len(part)
        self.position = self.available = self.taken = position = self.position + 1
        self.came_bytes = self.stored_bytes = self.taken_bytes = self.came_bytes + size
        self.size += size
        self._parts.append(part)
        if self.size > RECENT_BYTES or position - self.first >= RECENT_PARTS:
            self.trim(position)

    def part(self, position: int) -> Body:
        """A part that is in memory."""
        return self._parts[position - self.first]

    def trim(self, below: int) -> None:
        """Forget parts up to a position, except the most recent ones."""
        while self.first <= below and (
            self.size > RECENT_BYTES or self.position - self.first >= RECENT_PARTS
        ):
            self._forget_first()

    def clear(self, below: int) -> None:
        """Forget parts up to a position."""
        while self.first <= below and self._parts:
            self._forget_first()

    def _forget_first(self) -> None:
        self.size -= len(self._parts.popleft())
        while self.unstored and self.unstored[0] <= self.first:
            heappop(self.unstored)
        self.first += 1

    def restart(self) -> None:
        """A run begins that does not continue the one before."""
        self.run += 1
        self.began = False
        self.position = self.available = self.taken = self.told = 0
        self.came_bytes = self.stored_bytes = self.taken_bytes = self.told_bytes = 0
        self._parts.clear()
        self.size = self.kept_size = 0
        self.first = self.first_kept = 1
        self.kept_sizes.clear()
        self.unstored.clear()
        for reader in self.readers:
            reader.status_due = True
            reader.cursor = reader.outstanding = 0
            reader.sent.clear()
        for place in self.places.values():
            place.cursor = 0
        self._sweep()

    # -------------------------------------------------------------------------------------- readers

    def add_waiting(self, reader: LogReader) -> None:
        """The worker waits for a reader."""
        self.waits += 1
        self.order += 1
        heappush(self.waiting, (reader.taken(), self.order, reader))

    def remove_waiting(self) -> None:
        """A reader that the worker waited for is closed."""
        self.waits -= 1
        if len(self.waiting) > 2 * self.waits + _FEW:
            self._sweep()

    def _sweep(self) -> None:
        """Have only readers in the heap that are open."""
        self.waiting = [
            (reader.taken(), order, reader) for _, order, reader in self.waiting if reader.is_open
        ]
        heapify(self.waiting)

    def slowest(self) -> int:
        """The position up to which all readers that wait have taken the parts."""
        waiting = self.waiting
        while waiting:
            before, order, reader = waiting[0]
            if not reader.is_open:
                heappop(waiting)
                continue
            taken = reader.taken()
            if taken == before:
                return taken
            heapreplace(waiting, (taken, order, reader))
        return self.available

    def loud(self, clients: tuple[Session, ...] | Clients) -> Iterator[Session]:
        """The clients that are sent parts on the handle of the job."""
        skipped: dict[Session, int] = {}
        for client in clients:
            if client in self.quiet:
                skipped[client] = times = skipped.get(client, 0) + 1
                if times <= self.quiet[client]:
                    continue
            yield client


def record_log(number: int, position: int, run: int) -> PartLog:
    """A log of a job that has ended, of which the store may have the parts."""
    log = PartLog(number, None)
    log.is_over = True
    log.end = JobOutcome.COMPLETED, b""  # the store has the true one
    log.position = log.available = log.taken = position
    log.first, log.run, log.keep = position + 1, run, 1
    return log


def far_log(number: int, run: int) -> PartLog:
    """A log of a job that another server has. All its parts are at the store, and nobody knows how many."""
    log = PartLog(number, None)
    log.is_far = log.is_over = True
    log.first, log.run, log.keep = sys.maxsize, run, 1
    return log
