"""The journal: changes for the store, in order, and what continues once they are kept.

The broker appends entries. The shell drains them, has the store write all changes as one group, and then
calls ``done`` of each entry in order. An entry without a change only waits for those before it. So an answer
that speaks of the store is given when the store knows everything that has happened.

A change that cannot be written although it must be (the end of a job) goes to the failed entries, which the
shell tries again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias

from gearflow.broker.storage import Change, Forgotten, JobRecord

Done: TypeAlias = Callable[[str | None], None]
"""Called with None once the change is kept, else with the reason why it is not."""

Entry: TypeAlias = tuple[Change | None, Done | None]
"""A plain tuple, since there is one for the end of each background job."""


class Journal:
    """Owns everything that is pending at the store.

    Args:
        exists: Whether there is a store. Without one nothing is written, and entries are done at once.
        durable: Whether the store survives a restart. Then a background job is acknowledged only once kept.
    """

    def __init__(self, exists: bool, durable: bool) -> None:
        self.exists = exists
        self.durable = durable
        self.entries: list[Entry] = []
        self.flush_now = False  # somebody waits for an entry
        self.failed_group: Sequence[Entry] = ()  # a group that was not kept, until all its entries are done
        self.fault = ""  # why the last job could not be kept
        self._failed: list[Entry] = []  # entries that must be written, and could not be yet

    def add(self, change: Change | None, done: Done | None = None) -> None:
        """Have a change kept for which nobody waits."""
        self.entries.append((change, done))

    def keep(self, change: Change | None, done: Done) -> None:
        """Have a change kept, or only what was added before; then ``done`` is called."""
        if not self.exists:
            done(None)
            return
        self.entries.append((change, done))
        self.flush_now = True

    def drain(self) -> list[Entry]:
        """All entries; the journal is empty afterwards."""
        self.flush_now = False
        entries, self.entries = self.entries, []
        return entries

    # -------------------------------------------------------------------- what could not be written

    @property
    def has_failed(self) -> bool:
        """Whether entries could not be written that must be."""
        return bool(self._failed)

    def add_failed(self, change: Change, done: Done) -> None:
        """A change that must be written could not be."""
        self._failed.append((change, done))

    def drain_failed(self) -> list[Entry]:
        """The failed entries, to write them again."""
        failed, self._failed = self._failed, []
        return failed

    def put_back(self, entries: Sequence[Entry]) -> None:
        """These failed again."""
        self._failed[:0] = entries

    # ------------------------------------------------------------------------- ends that are pending

    def has_end(self, number: int | None, function: bytes, unique: bytes) -> bool:
        """Whether the end of a job is pending, so that the store will have it soon.

        The job is the one of that number, or without a number the last one of that unique.
        """
        groups = (self.entries, self.failed_group)
        return any(_find_end(entries, number, function, unique) for entries in groups)

    def failed_end(self, number: int | None, function: bytes, unique: bytes) -> JobRecord | None:
        """The end of a job if the store could not take it yet."""
        end = _find_end(self._failed, number, function, unique)
        return end if isinstance(end, JobRecord) else None

    def has_failed_end(self, numbers: Collection[int]) -> bool:
        """Whether the end of one of these jobs could not be written yet."""
        return any(
            change.number in numbers
            for change, _ in self._failed
            if isinstance(change, (JobRecord, Forgotten))
        )


def _find_end(
    entries: Sequence[Entry], number: int | None, function: bytes, unique: bytes
) -> JobRecord | Forgotten | None:
    for change, _ in reversed(entries):
        if isinstance(change, (JobRecord, Forgotten)) and (
            change.number == number
            if number is not None
            else (change.function, change.unique) == (function, unique)
        ):
            return change
    return None
