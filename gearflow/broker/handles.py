"""Numbers of jobs, reserved durably in blocks, and the handles made of them."""

from __future__ import annotations

from functools import partial
from typing import Final

from gearflow.broker.journal import Journal
from gearflow.broker.limits import Rejected
from gearflow.broker.storage import Reserved

NUMBERS: Final = 1_000_000
"""Numbers that are reserved at a time: at most so many handles are skipped at a restart."""


class Handles:
    """Gives each job a number that no job had before. Owns the block that is reserved.

    ``prefix`` begins every handle: ``H:HOST-STORE:``. ``last`` is the last number given. The next one may be
    given at once while it is below ``reserve_at``; from there on ``reserve`` must be called first.
    """

    def __init__(self, prefix: bytes, journal: Journal) -> None:
        self.prefix = prefix
        self.last = 0
        self.reserve_at = 0 if journal.durable else 1 << 62
        self._reserved = self.reserve_at  # numbers below it may be given
        self._is_reserving = False
        self._store_name = prefix[prefix.rfind(b"-") + 1 :].removesuffix(b":")
        self._journal = journal

    def restore(self, reserved: int) -> None:
        """Continue behind the numbers that the store knows as reserved."""
        self.last = reserved - 1
        if self._journal.durable:
            self._reserved = self.reserve_at = reserved
            self._ask(reserved)

    def next(self) -> int:
        """A number that no job had before.

        Raises:
            Rejected: The store cannot be written, so no more numbers can be reserved.
        """
        number = self.last + 1
        if number >= self.reserve_at:
            self.reserve(number)
        self.last = number
        return number

    def reserve(self, number: int) -> None:
        """Reserve more numbers before this one is given. Raises as ``next``."""
        if not self._is_reserving:
            self._ask(number)
        if number >= self._reserved:
            raise Rejected(b"QUEUE_ERROR", b"no number for the job: the store cannot be written")

    def _ask(self, number: int) -> None:
        self._is_reserving = True
        self.reserve_at = self._reserved
        below = number + NUMBERS
        self._journal.keep(Reserved(below), partial(self._decided, below))

    def _decided(self, below: int, error: str | None) -> None:
        if error is None:
            self._is_reserving = False
            self._reserved = below
            self.reserve_at = below - NUMBERS // 2
        else:
            self._journal.add_failed(Reserved(below), partial(self._decided, below))

    def handle(self, number: int) -> bytes:
        """The handle of the job of that number."""
        return b"%b%d" % (self.prefix, number)

    def number(self, handle: bytes) -> int | None:
        """The number in a handle of this store, or None. The host may have had another name."""
        head, _, digits = handle.rpartition(b":")
        if head.endswith(self._store_name) and digits.isdigit() and len(digits) < 20 and digits[:1] != b"0":
            return int(digits)
        return None
