"""Stores with entries of all kinds, and all that a store can be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gearflow.broker.parser import Body
from gearflow.broker.storage import (
    Change,
    JobOutcome,
    JobPart,
    JobRecord,
    PartsDropped,
    Paused,
    Setting,
    Store,
    StoredJob,
)
from tests.stores.values import a_dead_letter, a_job, an_end, whole_result

LARGE = 5 << 20


def groups(first: int = 1) -> list[list[Change]]:
    """Groups with entries of all kinds, and a few more of each."""
    many = range(first + 100, first + 1300)
    return [
        [
            a_job(first, unique=b"order-7", options=b'{"keep": 7}', priority=2),
            a_job(first + 1, unique=b"", due=9e9),
            a_job(first + 2, unique=b"-", attempt=2, deaths=1, due=5.5),
            a_job(first + 3, b"w" * LARGE, reducer=b"sum"),
            a_job(first + 4, b""),
            a_job(first + 5, bytes(range(256)) * 9, function=b"\x80\xff", unique=b"\0\xfe"),
        ],
        [JobPart(first, 0, b"", 1)],
        [JobPart(first, place, b"part %d" % place, 1) for place in range(1, 90)],
        [JobPart(first + 2, 1, b"of a run before", 1)],
        [JobPart(first + 2, place, b"p" * 40_000, 2) for place in range(1, 9)],
        [PartsDropped(first, 70)],
        [a_job(number) for number in range(first + 10, first + 30)],
        [JobPart(first + 10, place, b"kept %d" % place, 1) for place in range(1, 4)],
        [
            a_dead_letter(first + 10, 7),
            a_dead_letter(first + 11, 7, unique=b"order-8", function=b"thumb"),
            an_end(first + 12, b"r" * LARGE, unique=b"twice"),
            an_end(first + 13, b"the later one", unique=b"twice", ended=3001.0),
            an_end(first + 14, outcome=JobOutcome.CANCELLED, notes=b'{"warnings": ["x"]}', worker=b"\xff"),
            a_dead_letter(first + 40, b"l" * LARGE),
        ],
        [a_job(number, unique=b"" if number % 2 else b"u-%d" % number) for number in many],
        [an_end(number, b"%d" % number, unique=b"", ended=float(number)) for number in many if number % 3],
        [Paused(b"resize", True), Paused(b"\x80", True)],
        [
            Setting(b"shopify", "limit", b'{"count": 20}'),
            Setting(b"\x80\xff", "function", '{"x": "ü"}'.encode()),
            Setting(b"nightly", "schedule", b'{"state": "' + b"x" * 20_000 + b'"}'),
            Setting(b"never", "schedule", b"{}"),
        ],
    ]


class Everything(NamedTuple):
    """All that a store can be asked for. Numbers are those that ``minus`` made small."""

    jobs: list[StoredJob]
    parts: dict[int, list[tuple[int, bytes]]]
    runs: dict[int, int]
    results: list[JobRecord]
    dead: list[int]
    letters: list[StoredJob]
    paused: list[bytes]
    settings: list[Setting]
    latest: bytes | None


def everything(store: Store, numbers: Sequence[int], add: int = 0) -> Everything:
    """What a store has.

    Args:
        store: The store. It is loaded here.
        numbers: Of all jobs that there ever were.
        add: To each, to get the number in this store.
    """
    contents = store.load()
    live = {job.number for job in contents.jobs}
    jobs = [_job(store, number, add) for number in sorted(live) if number - add in numbers]
    results = [whole_result(store, number + add) for number in numbers]
    dead = [letter.number - add for letter in store.dead(None, 0, 10_000)]
    latest = store.latest(b"resize", b"twice")
    return Everything(
        jobs=jobs,
        parts={number: _parts(store, number + add) for number in numbers if _parts(store, number + add)},
        runs={number - add: parts.run for number, parts in contents.parts.items() if number in live},
        results=[each._replace(number=each.number - add) for each in results if each is not None],
        dead=dead,
        letters=[_job(store, number + add, add) for number in dead],
        paused=sorted(contents.paused),
        settings=sorted(contents.settings),
        latest=bytes(latest.body) if latest is not None and not isinstance(latest.body, int) else None,
    )


def _job(store: Store, number: int, add: int) -> StoredJob:
    job = store.job(number)
    assert job is not None
    assert not isinstance(job.workload, int)
    return job._replace(number=job.number - add, workload=bytes(job.workload))


def _parts(store: Store, number: int) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    while more := store.parts(number, found[-1][0] if found else 0, 1 << 20):
        found += [(position, _bytes(body)) for position, body in more]
    return found


def _bytes(body: Body) -> bytes:
    return bytes(body)
