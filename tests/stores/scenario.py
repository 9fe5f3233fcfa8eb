"""A life of a store: groups of changes of all kinds, and what there must be after each of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from gearflow.broker.parser import Body
from gearflow.broker.storage import (
    Change,
    Edited,
    Forgotten,
    JobPart,
    JobRecord,
    PartsDropped,
    Rescheduled,
    Reserved,
    Revived,
    Setting,
    Store,
    StoredJob,
    Ticked,
)
from gearflow.stores import MemoryStore
from tests.stores.values import a_dead_letter, a_job, an_end, whole_result

LONGEST = 9_000  # bytes of a body: three pages
LAST = 3
"""Parts of a stream that are never dropped alone. A store may have more than that."""


class Snapshot(NamedTuple):
    """All that a store can be asked for."""

    jobs: dict[int, StoredJob]
    ends: dict[int, JobRecord]
    dead: list[int]
    latest: dict[bytes, int]
    parts: dict[int, list[tuple[int, Body]]]
    settings: set[Setting]


def lives(seed: int, groups: int) -> list[list[Change]]:
    """So many groups of changes, of jobs whose numbers and bodies tell whose they are."""
    chance = random.Random(seed)
    alive: list[StoredJob] = []
    letters: list[int] = []
    streams = Streams(seed)
    settings = Settings(seed)
    number = 0
    story: list[list[Change]] = []
    for _ in range(groups):
        group: list[Change] = [Reserved(number + 100)] if chance.random() < 0.2 else []
        for _ in range(chance.randrange(1, 8)):
            number += 1
            job = a_job(number, _body(chance, number), unique=b"key-%d" % (number % 7))
            group.append(job)
            alive.append(job)
        group += streams.changes([job.number for job in alive])
        for _ in range(chance.randrange(6)):
            if not alive:
                break
            job = alive.pop(chance.randrange(len(alive)))
            group.append(_next_of(chance, job, letters))
            if isinstance(group[-1], Rescheduled):
                alive.append(job)
        if letters and chance.random() < 0.3:
            group.append(Revived(letters.pop()))
        group += settings.edits(alive)
        for change in settings.changes(number + 1):
            group.append(change)
            if isinstance(change, Ticked) and change.job is not None:
                number = change.job.number
                alive.append(change.job)
        story.append(group)
    return story


def _next_of(chance: random.Random, job: StoredJob, letters: list[int]) -> Change:
    kind = chance.randrange(4)
    size = job.workload if isinstance(job.workload, int) else len(job.workload)
    if kind == 0:
        return an_end(job.number, _body(chance, job.number), unique=job.unique, expires=float(job.number))
    if kind == 1:
        letters.append(job.number)
        return a_dead_letter(job.number, size, unique=job.unique)
    if kind == 2:
        return Forgotten(job.number)
    options = b'{"previous": [%d, 9, null]}' % job.number if job.number % 2 else None
    return Rescheduled(job.number, float(job.number), 1, 1, options)


def _body(chance: random.Random, number: int) -> bytes:
    length = chance.choice((0, 10, 100, 1000, 3000, LONGEST))
    return (b"%d," % number * (length // 2 + 1))[:length]


class Streams:
    """The parts of jobs."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(f"streams {seed}")  # so that jobs are what they are without parts
        self._ends: dict[int, tuple[int, int]] = {}  # by number: the last position, and the run

    def changes(self, alive: list[int]) -> list[Change]:
        """The next parts of some jobs, and what becomes of earlier ones."""
        chance, changes = self._chance, list[Change]()
        numbers = sorted(set(chance.choices(alive, k=chance.randrange(3)))) if alive else []
        for number in numbers:
            last, run = self._ends.get(number, (0, 1))
            kind = chance.randrange(10)
            if kind == 0:
                changes.append(PartsDropped(number, max(0, last + 1 - LAST)))
            elif kind == 1:
                changes.append(PartsDropped(number, last + 1))
            elif kind < 4 and last:
                last, run = 0, run + 1
                changes += [PartsDropped(number)] if kind == 2 else []
                changes.append(JobPart(number, 0, b"", run))
            for _ in range(chance.randrange(1, 6)):
                last += 1
                body = longest_part(number, last)[: chance.choice((0, 10, 300, 2000))]
                changes.append(JobPart(number, last, body, run))
            self._ends[number] = last, run
        return changes


class Settings:
    """What operators set, and the schedules whose times come."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(f"settings {seed}")
        self._schedules: dict[bytes, bytes] = {}

    def edits(self, alive: list[StoredJob]) -> list[Change]:
        """Edit some jobs, the workloads of a few as well."""
        chance = self._chance
        edits: list[Change] = []
        for job in chance.sample(alive, k=min(len(alive), chance.randrange(3))):
            body = _body(chance, job.number) if chance.random() < 0.5 else None
            place = alive.index(job)
            alive[place] = job._replace(workload=job.workload if body is None else body)
            edits.append(Edited(job.number, 2, 7.5, b'{"edited": %d}' % job.number, body))
        return edits

    def changes(self, number: int) -> list[Change]:
        """Set and remove something, and have the times of schedules come. Jobs get numbers from this one."""
        chance, changes = self._chance, list[Change]()
        for _ in range(chance.randrange(3)):
            value = b"" if chance.random() < 0.3 else b'{"count": %d}' % chance.randrange(1000)
            changes.append(Setting(b"limit-%d" % chance.randrange(4), "limit", value))
        for _ in range(chance.randrange(4)):
            name = b"schedule-%d" % chance.randrange(3)
            before = self._schedules.get(name, b"")
            if not before or chance.random() < 0.1:
                after = b'{"next": 0}'
                changes.append(Setting(name, "schedule", after))
            else:
                after = b'{"next": %d}' % number
                job = a_job(number, _body(chance, number)) if chance.random() < 0.7 else None
                number += job is not None
                changes.append(Ticked(name, before, after, job))
            self._schedules[name] = after
        return changes


def longest_part(number: int, position: int) -> bytes:
    """A part of a job. Others are the beginning of it."""
    return b"%d of %d, " % (position, number) * 200


def snapshot(store: Store, numbers: int) -> Snapshot:
    """What it answers, for jobs up to a number."""
    jobs = {number: job for number in range(numbers) if (job := store.job(number)) is not None}
    ends = {number: end for number in range(numbers) if (end := whole_result(store, number)) is not None}
    uniques = (b"key-%d" % key for key in range(7))
    latest = {key: end.number for key in uniques if (end := store.latest(b"resize", key)) is not None}
    dead = [end.number for end in store.dead(None, 0, numbers)]
    parts = {
        number: [part for part in found if part[0] > found[-1][0] - LAST]
        for number in range(numbers)
        if (found := all_parts(store, number))
    }
    return Snapshot(jobs, ends, dead, latest, parts, set(store.load().settings))


def all_parts(store: Store, number: int) -> list[tuple[int, Body]]:
    """The kept parts of a job."""
    found: list[tuple[int, Body]] = []
    while some := store.parts(number, found[-1][0] if found else 0, 1 << 30, 1 << 30):
        found += some
    return found


def positions(store: Store) -> dict[int, tuple[int, int]]:
    """The position and the run of each job with parts that is to run."""
    return {number: (parts.last, parts.run) for number, parts in store.load().parts.items()}


def numbers_in(story: Sequence[Sequence[Change]]) -> int:
    """One more than the highest number of a job."""
    changes = [change for group in story for change in group]
    jobs = [change.job if isinstance(change, Ticked) else change for change in changes]
    return 1 + max(job.number for job in jobs if isinstance(job, StoredJob))


def after(story: Sequence[Sequence[Change]]) -> MemoryStore:
    """A store with these groups."""
    model = MemoryStore(keep_bytes=None)
    for group in story:
        model.write(group)
    return model


def expected(story: Sequence[Sequence[Change]], numbers: int) -> Snapshot:
    """What must be there after these groups."""
    return snapshot(after(story), numbers)
