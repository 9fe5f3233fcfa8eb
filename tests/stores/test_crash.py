"""Whatever fails, and at whatever moment: what was acknowledged is there, and of the rest nothing or all.

The n-th write to the disk fails, for each n; or the process is killed, in truth, at a random moment.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from gearflow.broker.storage import Change, Forgotten, JobRecord, StoredJob
from gearflow.errors import StoreError
from gearflow.stores import SqliteStore
from gearflow.stores.sqlite.tuning import Tuning
from tests.conftest import ROOT
from tests.stores.faulty import Disk, Fault, faulty_disk
from tests.stores.scenario import Snapshot, after, expected, lives, numbers_in, positions, snapshot
from tests.stores.values import a_job, jobs_of

_TRIES: Final = 20  # of something that fails once
_TIMEOUT: Final = 60.0  # seconds
_COPIES_EACH_SYNC: Final = Tuning(checkpoint=1)
_PACKS: Final = Tuning(checkpoint=1, pack=1, loose=0)
_IN_PARTS: Final = Tuning(checkpoint=1, part=6000)
"""The longest bodies of a story are written ahead of their groups, in parts."""


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """A disk that can fail."""
    for name in ("fsync", "fdatasync"):  # no power is lost here
        monkeypatch.setattr(os, name, _done)
    with faulty_disk() as disk:
        yield disk


def _done(_: int) -> None:
    pass


class Story:
    """Groups of changes, and what must be there after each of them, which is found out once."""

    def __init__(self, groups: list[list[Change]]) -> None:
        self.groups = groups
        self.numbers = numbers_in(groups)
        self._known: dict[int, tuple[Snapshot, dict[int, tuple[int, int]]]] = {}

    def after(self, groups: int) -> tuple[Snapshot, dict[int, tuple[int, int]]]:
        """What must be there after so many groups, and the positions of streams."""
        if groups not in self._known:
            done = self.groups[:groups]
            self._known[groups] = expected(done, self.numbers), positions(after(done))
        return self._known[groups]


class Life:
    """A store on a faulty disk, and how far its story has come."""

    def __init__(self, path: Path, story: Story, tuning: Tuning) -> None:
        self._path = path
        self._story = story
        self._tuning = tuning
        self.written = 0
        """Groups that were acknowledged."""
        self.refused = 0
        """How often something was refused, with nothing of it kept."""

    def until_killed(self) -> None:
        """Stop at the first refusal, and leave all as it is then."""
        try:
            store = SqliteStore(self._path, tuning=self._tuning)
        except StoreError:
            return
        try:
            jobs_of(store.load())
            while self.written < len(self._story.groups):
                self._write(store)
        except StoreError:
            self.refused += 1
        finally:
            store.close()

    def to_the_end(self) -> None:
        """Try what is refused until it is not."""
        store = None
        while store is None:
            try:
                store = SqliteStore(self._path, tuning=self._tuning)
            except StoreError:
                self.refused += 1
                assert self.refused < _TRIES
        try:
            jobs_of(store.load())
            while self.written < len(self._story.groups):
                try:
                    self._write(store)
                except StoreError:
                    self.refused += 1
                    assert self.refused < _TRIES
                    assert self.is_as_expected(store)
            assert self.is_as_expected(store)
        finally:
            store.close()

    def is_as_expected(self, store: SqliteStore) -> bool:
        """Whether what is there is what was acknowledged."""
        return snapshot(store, self._story.numbers) == self._story.after(self.written)[0]

    def _write(self, store: SqliteStore) -> None:
        write_with_large_bodies(store, self._story.groups[self.written])
        self.written += 1
        drain(store.tidy())
        if self.written % 3 == 0:
            store.sync()
            store.log.join()  # so that the n-th write is always the same


def write_with_large_bodies(store: SqliteStore, group: list[Change]) -> None:
    """Write a group as the server does: first its large bodies, in parts."""
    for change in group:
        if isinstance(change, StoredJob | JobRecord):
            body = change.workload if isinstance(change, StoredJob) else change.body
            if not isinstance(body, int) and len(body) >= store.large:
                drain(store.write_ahead(change))
    store.write(group)


def drain(steps: Iterator[None]) -> None:
    for _ in steps:
        pass


def changes_on_the_disk(disk: Disk, path: Path, story: Story, tuning: Tuning) -> int:
    """How many there are if nothing fails."""
    Life(path, story, tuning).to_the_end()
    return disk.count


def check_each(
    disk: Disk,
    directory: Path,
    fault: Fault,
    groups: list[list[Change]],
    times: int,
    tuning: Tuning = _COPIES_EACH_SYNC,
) -> None:
    story = Story(groups)
    total = changes_on_the_disk(disk, directory / "sound.db", story, tuning)
    assert total > 50
    refused = 0
    for number in range(1, total + 1):
        path = directory / f"{number}.db"
        life = Life(path, story, tuning)
        disk.count, disk.fail_at, disk.fault, disk.times, disk.failed = 0, number, fault, times, 0
        if fault == "killed":
            life.until_killed()
        else:
            life.to_the_end()
        assert disk.failed > 0
        refused += life.refused
        disk.heal()
        store = SqliteStore(path)
        try:
            alive = {job.number for job in store.load().jobs}
            drain(store.tidy())
            found = snapshot(store, story.numbers)
            assert parts_in(path) == parts_of(found, tuning), number
            whole = found == story.after(life.written)[0]
            assert whole or (fault == "killed" and found == story.after(life.written + 1)[0]), number
            done = life.written if whole else life.written + 1
            assert positions(store) == story.after(done)[1], number
            assert lost_streams_in(path) == 0
            assert alive == set(found.jobs) - set(found.dead)
        finally:
            store.close()
    # It was not that nobody noticed. Where the disk was full but once, the store has made room by itself, and
    # only what fails while it is opened is refused: so much, however long the story is.
    is_tried_again = fault == "full" and times == 1
    assert refused > (40 if is_tried_again else total / 5)


@pytest.mark.parametrize("tuning", [_COPIES_EACH_SYNC, _PACKS], ids=["rows", "packs"])
@pytest.mark.parametrize("fault", ["full", "broken", "killed"])
def test_the_nth_change_on_the_disk_fails(disk: Disk, tmp_path: Path, fault: Fault, tuning: Tuning) -> None:
    check_each(disk, tmp_path, fault, lives(seed=1, groups=5), times=1, tuning=tuning)


@pytest.mark.parametrize("fault", ["full", "broken", "killed"])
def test_the_nth_change_on_the_disk_fails_where_bodies_are_in_parts(
    disk: Disk, tmp_path: Path, fault: Fault
) -> None:
    check_each(disk, tmp_path, fault, lives(seed=1, groups=3), times=1, tuning=_IN_PARTS)


def parts_in(path: Path) -> int:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT count(*) FROM parts").fetchone()[0])


def lost_streams_in(path: Path) -> int:
    """Rows with parts of streams whose jobs are gone."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        query = "SELECT count(*) FROM streams WHERE number NOT IN (SELECT number FROM jobs)"
        more = " AND number NOT IN (SELECT number FROM records WHERE number IS NOT NULL)"
        return int(connection.execute(query + more).fetchone()[0])


def parts_of(found: Snapshot, tuning: Tuning) -> int:
    """The parts of all bodies that a store has."""
    bodies = [job.workload for job in found.jobs.values()] + [end.body for end in found.ends.values()]
    sizes = [len(body) for body in bodies if not isinstance(body, int) and len(body) > tuning.part]
    return sum(-(-size // (tuning.part // 4)) for size in sizes)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fault", ["full", "broken", "killed"])
def test_the_nth_change_on_the_disk_fails_in_long_stories(
    disk: Disk, tmp_path: Path, fault: Fault, seed: int
) -> None:
    tuning = _PACKS if seed % 2 else _COPIES_EACH_SYNC
    check_each(disk, tmp_path, fault, lives(seed, groups=20), times=1 + seed, tuning=tuning)


def test_a_full_disk_refuses_until_there_is_room(disk: Disk, tmp_path: Path) -> None:
    with_room = [a_job(1, b"x" * 5000)]
    store = SqliteStore(tmp_path / "jobs.db")
    store.write(with_room)
    disk.fail_at, disk.fault, disk.times = disk.count + 1, "full", 1 << 30
    for _ in range(10):
        with pytest.raises(StoreError, match=r"jobs\.db cannot grow: .* make room"):
            store.write([a_job(2)])
        assert store.job(1) == with_room[0]
        assert store.job(2) is None
    disk.heal()
    store.write([a_job(2)])
    assert jobs_of(store.load()) == [a_job(1, 5000), a_job(2)]
    store.close()


def test_a_full_disk_takes_what_fits_into_the_files_that_are_there(tmp_path: Path) -> None:
    with faulty_disk() as disk:
        store = SqliteStore(tmp_path / "jobs.db")
        for start in (1, 1001):
            numbers = range(start, start + 100)
            store.write([a_job(number, b"x" * 5000) for number in numbers])
            store.write([Forgotten(number) for number in numbers])
            if start == 1:
                store.log.copy()  # now the main file has the pages that will be written again
        disk.may_grow = False
        for number in range(1, 500):
            store.write([a_job(number, b"y" * 5000), Forgotten(number - 3)])
        assert jobs_of(store.load()) == [a_job(number, 5000) for number in (497, 498, 499)]
        store.close()
    store = SqliteStore(tmp_path / "jobs.db")
    assert jobs_of(store.load()) == [a_job(number, 5000) for number in (497, 498, 499)]
    store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=40m", "none", str(directory)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may not mount a tmpfs here: only root may")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def fill(store: SqliteStore) -> int:
    """How many jobs it takes."""
    for taken in itertools.count():
        try:
            store.write([a_job(taken + 1, b"x" * 30_000)])
        except StoreError:
            return taken
    raise AssertionError


def test_jobs_that_fill_the_disk_can_end_and_others_take_their_place(small_disk: Path) -> None:
    store = SqliteStore(small_disk / "jobs.db", tuning=Tuning(full_disk_retry=0.0))
    for _ in range(3):
        last = fill(store)
        assert 500 < last < 2000
        for number in range(1, last + 1):
            store.write([Forgotten(number)])
    assert jobs_of(store.load()) == []
    store.close()


# ------------------------------------------------------------------------------------------- real processes

_WRITER: Final = """
import os, sys
from gearflow.stores import SqliteStore
from gearflow.stores.sqlite.tuning import Tuning
from tests.stores.scenario import lives
from tests.stores.test_crash import drain, write_with_large_bodies

path, (seed, groups, start, part, pack) = sys.argv[1], map(int, sys.argv[2:])
tuning = Tuning(checkpoint=200_000, blocking_checkpoint=400_000, log_file=100_000, part=part, pack=pack)
store = SqliteStore(path, tuning=tuning)
for job in store.load().jobs:
    pass
os.write(1, b"ready\\n")
for number, group in enumerate(lives(seed, groups)[start:], start):
    write_with_large_bodies(store, group)
    os.write(1, b"%d\\n" % number)
    drain(store.tidy())
    if number % 5 == 0:
        store.sync()
os.write(1, b"end\\n")
sys.stdin.read()
"""


def until_killed(
    path: Path, seed: int, groups: int, start: int, tuning: Tuning, chance: random.Random
) -> int:
    """Has a process write groups from ``start`` on, and kills it somewhere; how many are acknowledged."""
    numbers = seed, groups, start, tuning.part, tuning.pack
    command = [sys.executable, "-c", _WRITER, str(path), *map(str, numbers)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        lines = [process.stdout.readline() for _ in range(chance.randrange(1 + (groups - start) // 2))]
        process.kill()
        lines += process.stdout.readlines()
        process.wait(_TIMEOUT)
    return start + sum(line[:1].isdigit() and line.endswith(b"\n") for line in lines)


def kill_often(path: Path, seed: int, rounds: int, tuning: Tuning) -> None:
    story = lives(seed, 400)
    numbers = numbers_in(story)
    chance = random.Random(seed)
    written = 0
    for _ in range(rounds):
        acknowledged = until_killed(path, seed, len(story), written, tuning, chance)
        store = SqliteStore(path)
        try:
            jobs_of(store.load())
            found = snapshot(store, numbers), positions(store)
        finally:
            store.close()
        possible = range(acknowledged, min(acknowledged + 1, len(story)) + 1)
        written = next(groups for groups in possible if found == all_after(story[:groups], numbers))


def all_after(story: list[list[Change]], numbers: int) -> tuple[Snapshot, dict[int, tuple[int, int]]]:
    return expected(story, numbers), positions(after(story))


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_process_has_kept_what_it_acknowledged(tmp_path: Path, seed: int) -> None:
    kill_often(tmp_path / "jobs.db", seed, rounds=4, tuning=Tuning(pack=1) if seed else Tuning())


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_process_leaves_no_half_body(tmp_path: Path, seed: int) -> None:
    kill_often(tmp_path / "jobs.db", seed, rounds=4, tuning=Tuning(part=2500))


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 130))
def test_a_killed_process_has_kept_what_it_acknowledged_many_times(tmp_path: Path, seed: int) -> None:
    kill_often(tmp_path / "jobs.db", seed, rounds=12, tuning=Tuning(pack=1) if seed % 2 else Tuning())


_LIMITED: Final = """
import os, resource, sys
from gearflow.errors import StoreError
from gearflow.stores import SqliteStore
from tests.stores.values import a_job

store = SqliteStore(sys.argv[1])
written, refused = [], 0
for number in range(1, 200):
    if number % 2:  # so much may the log grow, and not a byte more
        room = os.path.getsize(sys.argv[1] + "-wal") + 997 * number
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    try:
        store.write([a_job(number, b"x" * 500 * number)])
    except StoreError:
        refused += 1
    else:
        written.append(number)
assert [job.number for job in store.load().jobs] == written
store.close()
store = SqliteStore(sys.argv[1])
assert [job.number for job in store.load().jobs] == written
assert set(range(2, 200, 2)) <= set(written)
print(refused)
"""


def test_the_kernel_refuses_to_write_more(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _LIMITED, str(tmp_path / "jobs.db")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_TIMEOUT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5
