"""A life of a store: groups of changes of all kinds, and what there must be after each of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from gearflow.broker.storage import (
    Change,
    Forgotten,
    JobRecord,
    Rescheduled,
    Reserved,
    Revived,
    Store,
    StoredJob,
)
from gearflow.stores import MemoryStore
from tests.stores.values import a_dead_letter, a_job, an_end, whole_result

LONGEST = 9_000  # bytes of a body: three pages


class Snapshot(NamedTuple):
    """All that a store can be asked for."""

    jobs: dict[int, StoredJob]
    ends: dict[int, JobRecord]
    dead: list[int]
    latest: dict[bytes, int]


def lives(seed: int, groups: int) -> list[list[Change]]:
    """So many groups of changes, of jobs whose numbers and bodies tell whose they are."""
    chance = random.Random(seed)
    alive: list[StoredJob] = []
    letters: list[int] = []
    number = 0
    story: list[list[Change]] = []
    for _ in range(groups):
        group: list[Change] = [Reserved(number + 100)] if chance.random() < 0.2 else []
        for _ in range(chance.randrange(1, 8)):
            number += 1
            job = a_job(number, _body(chance, number), unique=b"key-%d" % (number % 7))
            group.append(job)
            alive.append(job)
        for _ in range(chance.randrange(6)):
            if not alive:
                break
            job = alive.pop(chance.randrange(len(alive)))
            group.append(_next_of(chance, job, letters))
            if isinstance(group[-1], Rescheduled):
                alive.append(job)
        if letters and chance.random() < 0.3:
            group.append(Revived(letters.pop()))
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
    return Rescheduled(job.number, float(job.number), 1, 1)


def _body(chance: random.Random, number: int) -> bytes:
    length = chance.choice((0, 10, 100, 1000, 3000, LONGEST))
    return (b"%d," % number * (length // 2 + 1))[:length]


def snapshot(store: Store, numbers: int) -> Snapshot:
    """What it answers, for jobs up to a number."""
    jobs = {number: job for number in range(numbers) if (job := store.job(number)) is not None}
    ends = {number: end for number in range(numbers) if (end := whole_result(store, number)) is not None}
    uniques = (b"key-%d" % key for key in range(7))
    latest = {key: end.number for key in uniques if (end := store.latest(b"resize", key)) is not None}
    dead = [end.number for end in store.dead(None, 0, numbers)]
    return Snapshot(jobs, ends, dead, latest)


def numbers_in(story: Sequence[Sequence[Change]]) -> int:
    """One more than the highest number of a job."""
    return 1 + max(change.number for group in story for change in group if isinstance(change, StoredJob))


def expected(story: Sequence[Sequence[Change]], numbers: int) -> Snapshot:
    """What must be there after these groups."""
    model = MemoryStore(keep_bytes=None)
    for group in story:
        model.write(group)
    return snapshot(model, numbers)
