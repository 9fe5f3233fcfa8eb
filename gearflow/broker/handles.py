"""Numbers of jobs, and the handles made of them.

A server that owns its store reserves numbers durably in blocks. Servers that share a store own **lots**. A
lot is a range of numbers: ``number = lot << LOT_BITS | n``. So the number in a handle says which lot a job
belongs to. A server gives numbers of lots that are *fresh*: nobody gave numbers of them before. A lot that it
adopts from another server has jobs, and gives no numbers.

Jobs that were copied from another store keep their handles, which have the name of that store and other
numbers. ``renumber`` says which.

A server that owns no fresh lot gives numbers of the lot ``PRIVATE``. They name jobs that are not kept, and
calls. Other servers may give the same ones, so no such job is ever kept.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from functools import partial
from typing import Final

from gearflow.broker.journal import Journal
from gearflow.broker.limits import Rejected
from gearflow.broker.storage import Renumbered, Reserved

NUMBERS: Final = 1_000_000
"""Numbers that are reserved at a time: at most so many handles are skipped at a restart."""

LOT_BITS: Final = 40
"""The low bits of a number, which tell the jobs of a lot apart."""

PRIVATE: Final = 0
"""The lot of numbers that name what is not kept. No server owns it."""


def lot_of(number: int) -> int:
    """The lot of a job, at a store that servers share."""
    return number >> LOT_BITS


class Handles:
    """Gives each job a number that no job had before. Owns the numbers that may be given.

    ``prefix`` begins every handle: ``H:HOST-STORE:``. ``last`` is the last number given. The next one may be
    given at once while it is below ``reserve_at``; from there on ``reserve`` says which number comes next.
    """

    def __init__(self, prefix: bytes, journal: Journal) -> None:
        self.prefix = prefix
        self.last = 0
        self.reserve_at = 0 if journal.durable else 1 << 62
        self._reserved = self.reserve_at  # numbers below it may be given
        self._is_reserving = False
        self._store_name = prefix[prefix.rfind(b"-") + 1 :].removesuffix(b":")
        self._journal = journal
        self._renumbered: dict[bytes, list[Renumbered]] = {}  # by the name of the other store, in order
        # Of a server that shares its store.
        self.is_shared = False
        self.lots: set[int] = set()  # that this server owns
        self._fresh: dict[int, int] = {}  # lots that give numbers: the last number of each; the next is first
        self._lot = PRIVATE  # the lot that gives numbers now
        self._private = 0  # the last private number

    def restore(self, reserved: int) -> None:
        """Continue behind the numbers that the store knows as reserved. Lots need no such number."""
        if self.is_shared:
            return
        self.last = reserved - 1
        if self._journal.durable:
            self._reserved = self.reserve_at = reserved
            self._ask(reserved)

    def next(self, *, kept: bool = True) -> int:
        """A number that no job had before. ``kept`` says whether it may name a kept job.

        Raises:
            Rejected: The store cannot be written, so no more numbers can be reserved, or the server owns no
                lot.
        """
        number = self.last + 1
        if number >= self.reserve_at:
            number = self.reserve(number, kept)
        self.last = number
        return number

    def reserve(self, number: int, kept: bool) -> int:
        """Reserve more numbers, or go on to the next lot. Returns the number to give. Raises as ``next``."""
        if self.is_shared:
            return self._next_of_lots(number, kept)
        if not self._is_reserving:
            self._ask(number)
        if number >= self._reserved:
            raise Rejected(b"QUEUE_ERROR", b"no number for the job: the store cannot be written")
        return number

    def _ask(self, number: int) -> None:
        self._is_reserving = True
        self.reserve_at = self._reserved
        below = number + NUMBERS
        self._journal.keep(Reserved(below), partial(self._decided, below))

    def _decided(self, below: int, error: object) -> None:
        if error is None:
            self._is_reserving = False
            self._reserved = below
            self.reserve_at = below - NUMBERS // 2
        else:
            self._journal.add_failed(Reserved(below), partial(self._decided, below))

    def given(self) -> dict[int, int]:
        """The last number that was given of each lot. A server alone has one lot, 0."""
        if not self.is_shared:
            return {0: self.last}
        given = {**self._fresh, PRIVATE: self._private}
        if self._lot != PRIVATE:
            given[self._lot] = self.last
        return given

    def handle(self, number: int) -> bytes:
        """The handle of the job of that number."""
        return b"%b%d" % (self.prefix, number)

    def number(self, handle: bytes) -> int | None:
        """The number in a handle of this store, or None. The host may have had another name."""
        head, _, digits = handle.rpartition(b":")
        if not digits.isdigit() or len(digits) >= 20 or digits[:1] == b"0":
            return None
        if head.endswith(self._store_name):
            return int(digits)
        ranges = self._renumbered.get(head[head.rfind(b"-") + 1 :])
        return None if ranges is None else _number_here(ranges, int(digits))

    def renumber(self, ranges: Iterable[Renumbered]) -> None:
        """Handles of other stores mean jobs of this one in these ranges, and in no others."""
        self._renumbered = {}
        for each in sorted(ranges):
            self._renumbered.setdefault(each.name, []).append(each)

    # ------------------------------------------------------------------------------------------ lots

    def share(self, private: int = 0) -> None:
        """The server shares its store. Call this before ``restore``.

        Private numbers come after ``private``, which should be random: then no two servers give the same
        ones. It has fewer than ``LOT_BITS`` bits.
        """
        self.is_shared = True
        self._private = private
        self._go_on()

    def own(self, lots: Iterable[int], *, fresh: bool = True) -> None:
        """The server owns these lots from now on. ``fresh`` lots give numbers: nobody had them before."""
        if not self.is_shared:
            self.share()
        for lot in lots:
            assert lot != PRIVATE
            if fresh and lot not in self.lots:
                self._fresh[lot] = lot << LOT_BITS
            self.lots.add(lot)
        if self._lot == PRIVATE:
            self._go_on()

    def disown(self, lot: int) -> None:
        """The server does not own a lot any more, and gives no number of it."""
        self.lots.discard(lot)
        self._fresh.pop(lot, None)
        if lot == self._lot:
            self._go_on()

    def owns(self, number: int) -> bool:
        """Whether a job of that number may be kept."""
        return not self.is_shared or number >> LOT_BITS in self.lots

    def turn(self) -> None:
        """The next lot gives numbers from now on. So the jobs of a server are spread over its lots."""
        if self._lot in self._fresh:
            del self._fresh[self._lot]
            self._fresh[self._lot] = self.last
        self._go_on()

    def _go_on(self) -> None:
        """The first of the fresh lots gives numbers from now on."""
        for lot, last in self._fresh.items():
            self._lot, self.last, self.reserve_at = lot, last, (lot + 1) << LOT_BITS
            return
        self._lot = PRIVATE
        self.last = self.reserve_at = 0  # so each number comes from ``reserve``

    def _next_of_lots(self, number: int, kept: bool) -> int:
        """The first number of the next lot if this one is full, or a private number if there is none."""
        while self._lot != PRIVATE:
            if number < self.reserve_at:
                return number
            del self._fresh[self._lot]
            self._go_on()
            number = self.last + 1
        if kept:
            text = b"no number for the job: this server owns no part of the store now; submit it again"
            raise Rejected(b"QUEUE_ERROR", text)
        self._private += 1
        return self._private


def _number_here(ranges: list[Renumbered], number: int) -> int | None:
    """The number of a job that was copied, or None if it was not."""
    place = bisect_right(ranges, number, key=_first)
    if place and number <= ranges[place - 1].last:
        return number + ranges[place - 1].add
    return None


def _first(each: Renumbered) -> int:
    return each.first
