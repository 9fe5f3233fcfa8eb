"""What clients of a group were promised, and what became of it. The truth is the record in PostgreSQL.

What workers did stands in a file that they append to themselves: it shows which jobs ran twice, and those
that keep no result.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from threading import Condition
from typing import Final, NamedTuple

from tests.postgres.cluster import TIMEOUT, Database, eventually
from tests.soak.audit import Mark, Outage

CLOCKS_DIFFER: Final = 2.0
"""Seconds by which the servers' idea of PostgreSQL's clock may be wrong. A slow network makes it so."""


class Promise(NamedTuple):
    """A background job whose submission was acknowledged."""

    key: str
    handle: str
    kept: bool  # its result is

    @property
    def number(self) -> int:
        """What PostgreSQL knows it by."""
        return int(self.handle.rpartition(":")[2])


class Standing(NamedTuple):
    """What PostgreSQL has."""

    waiting: frozenset[int]
    """Numbers of jobs that are to run."""
    ended: Mapping[int, float]
    """When jobs ended whose result is kept, by their number, on the clock of the marks."""
    dead: frozenset[int]

    @classmethod
    def of(cls, database: Database, schema: str = "gearflow") -> "Standing":
        """As it is now."""
        rows = database.psql(
            f"SELECT number, CASE WHEN dead THEN 'dead' ELSE 'waiting' END, 0 FROM {schema}.jobs"
            f" UNION ALL SELECT number, 'ended', ended FROM {schema}.records WHERE NOT dead",
            role="postgres",
        )
        numbers = defaultdict[str, dict[int, float]](dict)
        offset = time.time() - time.monotonic()
        for row in rows.splitlines():
            number, what, at = row.split("\t")
            numbers[what][int(number)] = float(at) - offset
        return cls(frozenset(numbers["waiting"]), numbers["ended"], frozenset(numbers["dead"]))


@dataclass
class Ledger:
    """Owns what callers learn; they write to it from another thread."""

    runs: Path
    """The file that the workers append to. It may have runs of others."""
    promises: list[Promise] = field(default_factory=list[Promise])
    refused: dict[str, str] = field(default_factory=dict[str, str])
    """Keys of jobs that were refused for certain, and why: they are not to run."""
    unknown: set[str] = field(default_factory=set[str])
    """Keys of jobs that may have been stored or not."""
    errors: Counter[str] = field(default_factory=Counter[str])
    faults: list[str] = field(default_factory=list[str])
    gaps: list[Outage] = field(default_factory=list[Outage])
    """Times of over a second in which no job was acknowledged."""
    _changed: Condition = field(default_factory=Condition)
    _last: float = 0.0  # when one was acknowledged
    _marks: list[Mark] = field(default_factory=list[Mark])
    _read: int = 0  # bytes of the file

    # ------------------------------------------------------------------------------------ what callers say

    def promised(self, promise: Promise) -> None:
        """A job was acknowledged."""
        now = time.monotonic()
        with self._changed:
            if self._last and now - self._last > 1:
                self.gaps.append(Outage(self._last, now))
            self._last = now
            self.promises.append(promise)
            self._changed.notify_all()

    def failed(self, key: str, error: Exception, *, for_certain: bool) -> None:
        """One was not."""
        with self._changed:
            self.errors[type(error).__name__] += 1
            if for_certain:
                self.refused[key] = str(error)
            else:
                self.unknown.add(key)
            self._changed.notify_all()

    def wait_for(self, more: int) -> None:
        """Until so many more jobs have been acknowledged."""
        with self._changed:
            goal = len(self.promises) + more
            assert self._changed.wait_for(lambda: len(self.promises) >= goal or self.faults, TIMEOUT), (
                f"only {len(self.promises) - goal + more} of {more} jobs were acknowledged: {self.errors}"
            )

    # ------------------------------------------------------------------------------------ what must hold

    def marks(self) -> list[Mark]:
        """What the workers have written."""
        if self.runs.exists():
            with self.runs.open() as file:
                file.seek(self._read)
                self._marks += map(Mark.from_line, file)
                self._read = file.tell()
        return self._marks

    def settle(self, database: Database, patience: float = 2 * TIMEOUT) -> Standing:
        """Wait until nothing is left to run, then check that all that was acknowledged has ended.

        Nobody submits any more.
        """
        standing = Standing.of(database)

        def is_settled() -> bool:
            nonlocal standing
            standing = Standing.of(database)
            return not standing.waiting and not self._not_run()

        try:
            eventually(is_settled, "all jobs have run", patience)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._state(standing)}") from None
        self.check(standing)
        return standing

    def check(self, standing: Standing) -> None:
        """Nothing that was acknowledged is lost; nothing that was refused has run."""
        faults = [
            *self.faults,
            *(f"{promise} has no record" for promise in self.lost(standing)),
            *(f"{promise} died" for promise in self.promises if promise.number in standing.dead),
            *(f"{promise} never ran" for promise in self._not_run()),
            *(f"{mark} began after the job had ended" for mark in self.late(standing)),
        ]
        ran = {mark.key for mark in self.marks()}
        faults += [
            f"{key} has run, but was refused: {why}" for key, why in self.refused.items() if key in ran
        ]
        assert not faults, "\n".join([*faults[:20], self._state(standing)])

    def lost(self, standing: Standing) -> list[Promise]:
        """Jobs of which neither the job nor its result is in PostgreSQL, though the result is kept."""
        there = standing.ended.keys() | standing.waiting | standing.dead
        return [promise for promise in self.promises if promise.kept and promise.number not in there]

    def _not_run(self) -> list[Promise]:
        ended = {mark.handle for mark in self.marks() if mark.ended}
        return [promise for promise in self.promises if promise.handle not in ended]

    def late(self, standing: Standing) -> list[Mark]:
        """Runs that began when the job had long ended, by its record."""
        ended = {promise.handle: standing.ended.get(promise.number, inf) for promise in self.promises}
        return [
            mark
            for mark in self.marks()
            if not mark.ended and mark.at > ended.get(mark.handle, inf) + CLOCKS_DIFFER
        ]

    def repeated(self) -> int:
        """How many runs were not the first of their job."""
        handles = {promise.handle for promise in self.promises}
        runs = Counter(mark.handle for mark in self.marks() if not mark.ended and mark.handle in handles)
        return runs.total() - len(runs)

    def given_out_twice(self, after: float) -> list[str]:
        """Handles of jobs of which two runs began after that time. (No worker died, and no run failed.)"""
        handles = {promise.handle for promise in self.promises}
        runs = Counter(
            mark.handle
            for mark in self.marks()
            if not mark.ended and mark.at > after and mark.handle in handles
        )
        return [handle for handle, count in runs.items() if count > 1]

    def overlapping(self, keys: Iterable[str]) -> list[tuple[Mark, Mark]]:
        """Two runs of one key at the same time: they were two jobs that lived at once, or a job ran twice."""
        runs = {key: list[Mark]() for key in keys}
        for mark in sorted(self.marks()):
            if mark.key in runs:
                runs[mark.key].append(mark)
        return [pair for marks in runs.values() for pair in _overlaps(marks)]

    def _state(self, standing: Standing) -> str:
        return (
            f"{len(self.promises)} acknowledged, {len(self.refused)} refused, {len(self.unknown)} unknown,"
            f" {dict(self.errors)}; PostgreSQL has {len(standing.waiting)} waiting"
            f" (such as {sorted(standing.waiting)[:3]}), {len(standing.ended)} ended; not run:"
            f" {self._not_run()[:3]}"
        )


def _overlaps(marks: Sequence[Mark]) -> list[tuple[Mark, Mark]]:
    """Of the marks of one key, in their order: pairs of runs of which one begins before the other ends."""
    overlaps: list[tuple[Mark, Mark]] = []
    running: Mark | None = None
    for mark in marks:
        if mark.ended:
            running = None
        elif running is not None:
            overlaps.append((running, mark))
        else:
            running = mark
    return overlaps
