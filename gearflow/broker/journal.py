"""The journal: changes for the store, in order, and what continues once they are kept.

The broker appends entries. The shell drains them, has the store write all changes as one group, and then
calls ``done`` of each entry in order. An entry without a change only waits for those before it. So an answer
that speaks of the store is given when the store knows everything that has happened.

**Large bodies.** A change with a large body would delay all others. So the body is written first, in steps.
The shell does one step a turn (``work``). The entry follows when all are done. What has to wait for the
entry is added with ``keep_after``. Other entries pass meanwhile.

A change that cannot be written although it must be (the end of a job) goes to the failed entries, which the
shell tries again.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TypeAlias

from gearflow.broker.storage import Change, Forgotten, JobRecord, Store, StoredJob
from gearflow.errors import StoreError

Done: TypeAlias = Callable[[str | None], None]
"""Called with None once the change is kept, else with the reason why it is not."""

Entry: TypeAlias = tuple[Change | None, Done | None]
"""A plain tuple, since there is one for the end of each background job."""


class Journal:
    """Owns everything that is pending at the store.

    Without a store nothing is written, and entries are done at once.
    """

    def __init__(self, store: Store | None) -> None:
        self._store = store
        self.exists = store is not None
        self.durable = store is not None and store.durable
        """Whether the store survives a restart. Then a background job is acknowledged only once kept."""
        self.large = store.large if store is not None else sys.maxsize
        """Bytes from which a body is written ahead of its change."""
        self.work: deque[Iterator[None]] = deque()
        """Long work at the store. The shell does one step a turn."""
        self.ahead_faults: list[tuple[Change, str]] = []
        """Changes whose large bodies could not be written, and why, for the shell's log."""
        self._ahead: dict[int, list[Entry]] = {}  # by number: a change with a large body, and what follows
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

    def keep_ahead(self, change: StoredJob | JobRecord, done: Done) -> None:
        """Have a change with a large body kept, while others pass."""
        assert self._store is not None
        self._ahead[change.number] = [(change, done)]
        self.begin(self._write_ahead(change.number, self._store.write_ahead(change)))

    def keep_after(self, number: int, done: Done) -> None:
        """Have ``done`` called after what was added before, and after the change of that job."""
        if number in self._ahead:
            self._ahead[number].append((None, done))
        else:
            self.keep(None, done)

    def is_ahead(self, number: int) -> bool:
        """Whether the body of the job's change is being written, so that other entries pass."""
        return number in self._ahead

    def begin(self, steps: Iterator[None]) -> None:
        """Begin long work."""
        self.work.append(steps)
        self.keep(None, _nothing)

    def _write_ahead(self, number: int, steps: Iterator[None]) -> Iterator[None]:
        try:
            yield from steps
        except StoreError as error:
            entries = self._ahead.pop(number)
            change, done = entries[0]
            assert change is not None
            self.ahead_faults.append((change, str(error)))
            entries[0] = None, _failed(done, str(error))
        else:
            entries = self._ahead.pop(number)
        self.entries += entries
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
        groups = (self.entries, self.failed_group, *self._ahead.values())
        return any(_find_end(entries, number, function, unique) for entries in groups)

    def end_ahead(self, number: int | None, function: bytes, unique: bytes) -> int | None:
        """The number of a job, as in ``has_end``, if the large body of its end is being written."""
        ends = (_find_end(entries, number, function, unique) for entries in self._ahead.values())
        return next((end.number for end in ends if end is not None), None)

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


def _nothing(_: str | None) -> None:
    pass


def _failed(done: Done | None, fault: str) -> Done:
    def report(_: str | None) -> None:
        if done is not None:
            done(fault)

    return report


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
