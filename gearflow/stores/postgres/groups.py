"""A group of changes as statements.

Changes of one number hold in their order, and the parts of a statement have none. So a number that occurs
twice begins another statement. All statements of a group share one transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from gearflow.broker.handles import LOT_BITS
from gearflow.broker.parser import Body
from gearflow.broker.storage import (
    Change,
    Edited,
    Forgotten,
    Freed,
    JobPart,
    JobRecord,
    Ordered,
    PartsDropped,
    Paused,
    Rescheduled,
    Reserved,
    Revived,
    Setting,
    StoredJob,
    Ticked,
)
from gearflow.stores.postgres import kinds
from gearflow.stores.postgres.kinds import Kind
from gearflow.stores.postgres.rows import key_of, token_of


class Ahead(NamedTuple):
    """A body that was written ahead of its change, in pieces."""

    body: Body
    pieces: bytes  # a UUID
    size: int


_Name: TypeAlias = int | bytes | tuple[str, bytes]
"""What a change is about: the number of a job, a function that is paused, or kind and name of a setting."""


class StatementRows:
    """The changes of one statement."""

    __slots__ = "fenced", "names", "rows", "runs", "watched"

    def __init__(self) -> None:
        self.rows: dict[Kind, list[tuple[Any, ...]]] = {}
        self.names: set[_Name | None] = set()
        self.runs: dict[int, int] = {}  # of the parts of streams
        self.fenced = False
        self.watched: dict[Kind, list[int]] = {}  # places in the group of those whose outcome is counted

    def add(self, kind: Kind, row: tuple[Any, ...]) -> None:
        try:
            self.rows[kind].append(row)
        except KeyError:
            self.rows[kind] = [row]

    def watch(self, kind: Kind, place: int) -> None:
        try:
            self.watched[kind].append(place)
        except KeyError:
            self.watched[kind] = [place]


class Splitter:
    """Divides groups into statements. Knows the bodies that were written ahead."""

    def __init__(self) -> None:
        self._ahead: dict[tuple[int, bool], Ahead] = {}  # by number, and whether it is of a result

    def add_ahead(self, change: StoredJob | JobRecord, ahead: Ahead) -> None:
        """The body of this change is there in pieces."""
        self._ahead[change.number, isinstance(change, JobRecord)] = ahead

    def forget_ahead(self, changes: Sequence[Change]) -> None:
        """These changes are kept, or they will not come."""
        if self._ahead:
            for change in changes:
                if isinstance(change, StoredJob | JobRecord):
                    self._ahead.pop((change.number, isinstance(change, JobRecord)), None)

    def _find_ahead(self, change: StoredJob | JobRecord, body: Body | int) -> Ahead | None:
        ahead = self._ahead.get((change.number, isinstance(change, JobRecord)))
        return ahead if ahead is not None and ahead.body is body else None

    def split(self, lots: Mapping[int, int], changes: Sequence[Change]) -> list[StatementRows]:
        """The statements of a group."""
        part = StatementRows()
        parts = [part]
        for place, change in enumerate(changes):
            if isinstance(change, Reserved):  # lots need none
                continue
            setting: _Name | None = None
            name: _Name
            if isinstance(change, (StoredJob, JobRecord)):  # nearly all are
                name = change.number
            elif isinstance(change, Paused):
                name = change.function
            elif isinstance(change, Setting):
                name = change.kind, change.name
            elif isinstance(change, Ticked):
                setting = "schedule", change.name
                name = setting if change.job is None else change.job.number
            else:
                name = change.number
            if (name in part.names or setting in part.names) and not _goes_on(part, change):
                part = StatementRows()
                parts.append(part)
            if not isinstance(change, Ordered):
                part.names.add(name)
            if setting is not None:
                part.names.add(setting)
            if isinstance(name, int) and name >> LOT_BITS in lots:
                part.fenced = True
                self._add(part, place, change)
            else:
                _add_other(part, place, change)
        return [part for part in parts if part.rows]

    def _add(self, part: StatementRows, place: int, change: Change) -> None:
        if isinstance(change, StoredJob):
            self._add_job(part, place, change)
        elif isinstance(change, JobRecord):
            self._add_record(part, place, change)
        elif isinstance(change, JobPart):
            if part.runs.setdefault(change.number, change.run) == change.run:
                part.add(kinds.PART, (change.number, change.run, change.position, change.body))
        else:
            _add_rare(part, place, change)

    def _add_job(self, part: StatementRows, place: int, job: StoredJob) -> None:
        number, function, unique, priority, submitted, due, reducer, options, attempt, deaths, workload = job
        if isinstance(workload, int):
            kind = kinds.RESTORE
            part.add(kind, (number, submitted, due, attempt, deaths, priority, reducer, options))
        else:
            key = key_of(function, unique, workload)
            columns = (
                number, key, submitted, due, attempt, deaths, priority, function, unique, reducer, options
            )  # fmt: skip
            ahead = self._find_ahead(job, workload) if self._ahead else None
            if ahead is None:
                kind = kinds.INSERT
                part.add(kind, (*columns, workload))
            else:
                kind = kinds.INSERT_LARGE
                part.add(kind, (*columns, None, ahead.pieces, ahead.size))
        part.watch(kind, place)

    def _add_record(self, part: StatementRows, place: int, record: JobRecord) -> None:
        ahead = self._find_ahead(record, record.body) if self._ahead else None
        row = _record_row(record)
        letter = record.letter
        if letter is None:
            part.add(kinds.END, (record.number,))
            if ahead is None:
                part.add(kinds.RECORD, row)
            else:
                part.add(kinds.RECORD_LARGE, (*row[:-1], None, ahead.pieces, ahead.size))
        elif isinstance(letter.workload, int):
            further = (letter.due, letter.attempt, letter.deaths, letter.options)
            part.add(kinds.LETTER, row + further)
            part.watch(kinds.LETTER, place)
        else:
            whole = (
                letter.number, None, letter.submitted, letter.due, letter.attempt, letter.deaths,
                letter.priority, letter.function, letter.unique, letter.reducer, letter.options,
                letter.workload,
            )  # fmt: skip
            part.add(kinds.WHOLE_LETTER, whole)
            part.add(kinds.RECORD_OF_LETTER, row)


def finish(part: StatementRows) -> None:
    """Add what depends on all changes of a statement."""
    for number, run in part.runs.items():
        part.add(kinds.RUN, (number, run))
    if kinds.TICK in part.rows:  # servers that tick at the same time lock the settings in one order
        part.rows[kinds.TICK].sort(key=_first)


def _first(row: tuple[Any, ...]) -> bytes:
    name: bytes = row[0]
    return name


def _goes_on(part: StatementRows, change: Change) -> bool:
    """Whether a change of a number that has been there may be in the same statement."""
    if isinstance(change, JobPart):
        return part.runs.get(change.number) == change.run
    return isinstance(change, Ordered)


def _record_row(record: JobRecord) -> tuple[Any, ...]:
    (
        number, function, unique, outcome, body, submitted, started, ended, attempt, deaths, worker, notes,
        expires, _,
    ) = record  # fmt: skip
    token = token_of(function, unique) if unique else 0
    return (
        number, expires, token, submitted, started, ended, attempt, deaths, outcome, function, unique, worker,
        notes, body,
    )  # fmt: skip


def _add_rare(part: StatementRows, place: int, change: Change) -> None:
    if isinstance(change, Rescheduled):
        part.add(kinds.RESCHEDULE, change)
    elif isinstance(change, Forgotten):
        part.add(kinds.FORGET, (change.number,))
    elif isinstance(change, Revived):
        part.add(kinds.REVIVE, change)
        part.watch(kinds.REVIVE, place)
    elif isinstance(change, PartsDropped) and change.below is None:
        part.add(kinds.DROP_ALL, (change.number,))
    elif isinstance(change, PartsDropped):
        part.add(kinds.DROP, change)
    elif isinstance(change, Edited) and change.workload is None:
        part.add(kinds.EDIT, change[:-1])
    elif isinstance(change, Edited):
        part.add(kinds.EDIT_WORKLOAD, change)
    elif isinstance(change, Freed):
        part.add(kinds.FREE, change)
    elif isinstance(change, Ticked):
        _add_tick(part, place, change)
    else:
        _add_other(part, place, change)


def _add_other(part: StatementRows, place: int, change: Change) -> None:
    """Add a change that is not about a job of this server's."""
    if isinstance(change, Ordered):
        part.add(kinds.ORDER, change)
    elif isinstance(change, Paused):
        part.add(kinds.PAUSE if change.paused else kinds.RESUME, (change.function,))
    elif isinstance(change, Setting):
        part.add(kinds.SET, (change.kind, change.name, change.value))
    elif isinstance(change, Ticked) and change.job is None:
        _add_tick(part, place, change)
    elif isinstance(change, Forgotten):
        part.add(kinds.FORGET_OTHER, (change.number,))
        part.watch(kinds.FORGET_OTHER, place)
    else:
        raise AssertionError(f"{type(change).__name__} of a job of a lot that is not this server's")


def _add_tick(part: StatementRows, place: int, change: Ticked) -> None:
    name, before, value, job = change
    if not before and job is None:
        kind = kinds.ADD
        part.add(kind, (name, value))
    else:
        kind = kinds.TICK
        part.add(kind, (name, before, value, *(_NO_JOB if job is None else _job_row(job))))
    part.watch(kind, place)


def _job_row(job: StoredJob) -> tuple[Any, ...]:
    number, function, unique, priority, submitted, due, reducer, options, attempt, deaths, workload = job
    key = key_of(function, unique, workload)
    return (
        number, key, submitted, due, attempt, deaths, priority, function, unique, reducer, options, workload
    )  # fmt: skip


_NO_JOB: Final = (0, None, 0.0, 0.0, 0, 0, 0, b"", b"", None, b"", b"")

WRITES_NOTICES: Final = (kinds.PAUSE, kinds.RESUME, kinds.ORDER, kinds.SET, kinds.ADD)
"""After these the other servers are notified."""
