"""The journal: changes for the store, in order, and what continues once they are kept.

The broker appends entries. The shell drains them, has the store write all changes as one group, and then
calls ``done`` of each entry in order. An entry without a change only waits for those before it. So an answer
that speaks of the store is given when the store knows everything that has happened.

**Large bodies.** A change with a large body would delay all others. So the body is written first, in steps.
The shell does one step a turn (``work``). The entry follows when all are done. Later changes of the same job
come after it, and what has to wait for the entry is added with ``keep_after``. Other entries pass meanwhile.

**Questions.** What the broker has to know of the store, it asks the journal. A local store answers in the
same call, and a large body comes in steps, if that is asked for. Another store answers later.

A change that cannot be written although it must be (the end of a job) goes to the failed entries, which the
shell tries again.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple, TypeAlias

from gearflow.broker.counts import Durations
from gearflow.broker.local_port import LocalPort
from gearflow.broker.storage import (
    PENDING,
    Answer,
    Change,
    Done,
    Forgotten,
    JobOf,
    JobRecord,
    Joined,
    Paused,
    Pending,
    Question,
    Reserved,
    Setting,
    StoredJob,
    StorePort,
    Ticked,
    WholeRecordOf,
)

Entry: TypeAlias = tuple[Change | None, Done | None]
"""A plain tuple, since there is one for the end of each background job."""


class _Ends:
    """The ends of jobs among entries, which may grow. They are indexed only when somebody asks for one."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self._indexed = 0
        self._by_number: dict[int, JobRecord | Forgotten] = {}
        self._by_unique: dict[tuple[bytes, bytes], JobRecord | Forgotten] = {}

    def find(self, number: int | None, function: bytes, unique: bytes) -> JobRecord | Forgotten | None:
        """The last end of the job of that number, or without a number of a job of that unique."""
        for place in range(self._indexed, len(self.entries)):
            change = self.entries[place][0]
            if isinstance(change, (JobRecord, Forgotten)):
                self._by_number[change.number] = change
                self._by_unique[change.function, change.unique] = change
        self._indexed = len(self.entries)
        if number is not None:
            return self._by_number.get(number)
        return self._by_unique.get((function, unique))


_NO_ENDS: Final = _Ends(())


class StoreFault(NamedTuple):
    """Why no job is kept any more."""

    since: float  # Unix time
    reason: str


class Journal:
    """Owns everything that is pending at the store.

    Without a store nothing is written, and entries are done at once.
    """

    def __init__(self, port: StorePort | None) -> None:
        self._port = port
        self._local = port if isinstance(port, LocalPort) else None
        if self._local is not None:
            self._local.attach(self.begin)
        self.exists = port is not None
        self.shared = port is not None and port.shared
        """Whether other servers have jobs at the store too."""
        self.durable = port is not None and port.durable
        """Whether the store survives a restart. Then a background job is acknowledged only once kept."""
        self.large = port.large if port is not None else sys.maxsize
        """Bytes from which a body is written ahead of its change."""
        self.work: deque[Iterator[None]] = deque()
        """Long work at the store. The shell does one step a turn."""
        self.ahead_faults: list[tuple[Change, str]] = []
        """Changes whose large bodies could not be written, and why, for the shell's log."""
        self.closed: StoreFault | None = None
        """Whether a sync has failed, after which no job is kept until the store has been opened again."""
        self.away: StoreFault | None = None
        """Whether a store that servers share cannot be reached, so that no job is kept until it is back."""
        self._ahead: dict[int, list[Entry]] = {}  # by number: a change with a large body, and what follows
        self.commits = Durations()
        """How long the writes of the shell took, until what they wrote was kept."""
        self.kept = 0  # changes that these writes have kept
        self.entries: list[Entry] = []
        self.flush_now = False  # somebody waits for an entry
        self.failed_group: Sequence[Entry] = ()  # a group that was not kept, until all its entries are done
        self.fault = ""  # why the last job could not be kept
        self._failed: list[Entry] = []  # entries that must be written, and could not be yet
        self._ends = [_NO_ENDS] * 3  # of the entries, of the failed group, of the failed

    @property
    def refusal(self) -> StoreFault | None:
        """Why no job is kept. None if they are."""
        return self.closed or self.away

    def add(self, change: Change | None, done: Done | None = None) -> None:
        """Have a change kept for which nobody waits."""
        if self._ahead and self._follow(change, done):
            return
        self.entries.append((change, done))

    def keep(self, change: Change | None, done: Done) -> None:
        """Have a change kept, or only what was added before; then ``done`` is called."""
        if not self.exists:
            done(None)
            return
        if self._ahead and self._follow(change, done):
            return
        self.entries.append((change, done))
        self.flush_now = True

    def _follow(self, change: Change | None, done: Done | None) -> bool:
        """Whether the body of an earlier change of the job is being written. Then this one follows it."""
        if (
            change is None
            or isinstance(change, (Reserved, Paused, Setting, Ticked))
            or change.number not in self._ahead
        ):
            return False
        self._ahead[change.number].append((change, done))
        return True

    def keep_ahead(self, change: StoredJob | JobRecord, done: Done) -> None:
        """Have a change with a large body kept, while others pass."""
        if not self._follow(change, done):
            self._ahead[change.number] = [(change, done)]
            self._write_ahead(change.number, 0)

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

    def _write_ahead(self, number: int, place: int) -> None:
        """Write the large bodies of the changes from this place on, of which more may come meanwhile."""
        entries = self._ahead[number]
        while place < len(entries):
            change, _ = entries[place]
            if isinstance(change, (StoredJob, JobRecord)) and _size(change) >= self.large:
                assert self._port is not None
                self._port.write_ahead(change, partial(self._written_ahead, number, place))
                return
            place += 1
        del self._ahead[number]
        self.entries += entries
        self.flush_now = True

    def _written_ahead(self, number: int, place: int, fault: str | None) -> None:
        change, done = self._ahead[number][place]
        if fault is not None and change is not None:
            self.ahead_faults.append((change, fault))
            self._ahead[number][place] = None, _failed(done, fault)
        self._write_ahead(number, place + 1)

    def drain(self) -> list[Entry]:
        """All entries; the journal is empty afterwards."""
        self.flush_now = False
        entries, self.entries = self.entries, []
        self._ends[0] = self._ends[1] = _NO_ENDS
        return entries

    # ------------------------------------------------------------------------------------- questions

    def ask(self, question: Question, done: Callable[[Answer], None]) -> Answer | Pending:
        """Answer a question at once, or return ``PENDING`` and call ``done`` with the answer later. A fault
        is an answer too."""
        assert self._port is not None
        return self._port.ask(question, done)

    def ask_in_steps(
        self, question: JobOf | WholeRecordOf, done: Callable[[Answer], None]
    ) -> Answer | Pending:
        """As ``ask``, for an answer that may have a large body: that takes a step a turn."""
        if self._local is None:
            return self.ask(question, done)
        self._local.ask_in_steps(question, done)
        return PENDING

    def read(self, question: JobOf | WholeRecordOf) -> Generator[None, None, Answer] | None:
        """The answer in steps that the caller takes, or None if the store has to be asked instead."""
        return self._local.read(question) if self._local is not None else None

    def reopen(self) -> None:
        """See ``StorePort``. Raises StoreError."""
        assert self._port is not None
        self._port.reopen()

    def pending(self) -> Iterator[Change | None]:
        """All changes that are not at the store yet."""
        for entries in (self.entries, self._failed, *self._ahead.values()):
            for change, _ in entries:
                yield change

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
        self._ends[2] = _NO_ENDS
        return failed

    def put_back(self, entries: Sequence[Entry]) -> None:
        """These failed again."""
        self._failed = [*entries, *self._failed]

    # ------------------------------------------------------------------------- ends that are pending

    def has_end(self, number: int | None, function: bytes, unique: bytes) -> bool:
        """Whether the end of a job is pending, so that the store will have it soon.

        The job is the one of that number, or without a number the last one of that unique.
        """
        if self.end_ahead(number, function, unique) is not None:
            return True
        groups = (self.entries, self.failed_group)
        return any(
            self._ends_of(place, entries).find(number, function, unique) is not None
            for place, entries in enumerate(groups)
        )

    def end_ahead(self, number: int | None, function: bytes, unique: bytes) -> int | None:
        """The number of a job, as in ``has_end``, if its end waits for a large body that is being written."""
        found = None
        for entries in self._ahead.values() if number is None else (self._ahead.get(number, ()),):
            for change, _ in entries:
                if isinstance(change, (JobRecord, Forgotten)) and (
                    number is not None or (change.function, change.unique) == (function, unique)
                ):
                    found = change.number
        return found

    def failed_end(self, number: int | None, function: bytes, unique: bytes) -> JobRecord | None:
        """The end of a job if the store could not take it yet."""
        end = self._ends_of(2, self._failed).find(number, function, unique)
        return end if isinstance(end, JobRecord) else None

    def has_failed_end(self, numbers: Collection[int]) -> bool:
        """Whether the end of one of these jobs could not be written yet."""
        ends = self._ends_of(2, self._failed)
        return any(ends.find(number, b"", b"") is not None for number in numbers)

    def _ends_of(self, place: int, entries: Sequence[Entry]) -> _Ends:
        """The index of these entries, a new one if they are others than before."""
        if self._ends[place].entries is not entries:
            self._ends[place] = _Ends(entries)
        return self._ends[place]


def _size(change: StoredJob | JobRecord) -> int:
    """Bytes of the body of a change that the store does not have yet."""
    body = change.workload if isinstance(change, StoredJob) else change.body
    return len(body) if not isinstance(body, int) else 0


def _nothing(_: str | Joined | None) -> None:
    pass


def _failed(done: Done | None, fault: str) -> Done:
    def report(_: str | Joined | None) -> None:
        if done is not None:
            done(fault)

    return report
