"""A file that was changed at rest: either all of it is there, or there is a message. Never a silent loss.

What is damaged is a copy of a small file with all kinds of rows in it, whose tables have many pages. Small
files are checked whole by SQLite; that is switched off in half of the cases, so that what large files rely on
is tested, too.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from gearflow.broker.storage import JobOutcome
from gearflow.errors import StoreError
from gearflow.stores import SqliteStore, recover
from gearflow.stores.sqlite.tuning import Tuning
from tests.stores.scenario import Snapshot, lives, longest_part, numbers_in, snapshot
from tests.stores.values import a_job, an_end, jobs_of, tamper, with_workload

PAGE: Final = 4096


class Whole(NamedTuple):
    """A file as it should be."""

    path: Path
    numbers: int
    content: Snapshot
    tuning: Tuning = Tuning()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Closed in good order."""
    path = tmp_path_factory.mktemp("whole") / "jobs.db"
    return Whole(path, *_written(path))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The same with its results in packs."""
    path = tmp_path_factory.mktemp("packed") / "jobs.db"
    return Whole(path, *_written(path, Tuning(pack=1)), Tuning(full_check=0, pack=1))


@pytest.fixture(scope="module", params=[Tuning(), Tuning(pack=1)], ids=["rows", "packs"])
def killed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """As a process that was killed left it: much is only in the log."""
    path = tmp_path_factory.mktemp("killed") / "jobs.db"
    copy = tmp_path_factory.mktemp("copy")
    content = _written(path, request.param, copy_to=copy)
    return Whole(copy / "jobs.db", *content)


def _written(path: Path, tuning: Tuning | None = None, copy_to: Path | None = None) -> tuple[int, Snapshot]:
    story = lives(seed=5, groups=150)
    store = SqliteStore(path, tuning=tuning)
    for group in story:
        store.write(group)
    content = snapshot(store, numbers_in(story))
    if copy_to is not None:  # by another process: SQLite's locks are lost if this one closes its files
        subprocess.run(["cp", "-a", f"{path.parent}/.", str(copy_to)], check=True)
    store.close()
    return numbers_in(story), content


@pytest.fixture(params=["small", "large", "packed"])
def sized(request: pytest.FixtureRequest, whole: Whole, packed: Whole) -> Whole:
    """``whole``, as a small or a large file to the store, or the same with packs."""
    if request.param == "packed":
        return packed
    return whole._replace(tuning=Tuning(full_check=0)) if request.param == "large" else whole


def copied(whole: Whole, directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(whole.path.parent, directory)
    return directory / whole.path.name


def loaded(path: Path, whole: Whole) -> Snapshot:
    """All that is there; raises StoreError."""
    store = SqliteStore(path, tuning=whole.tuning)
    try:
        jobs_of(store.load())
        for _ in store.tidy():
            pass
        return snapshot(store, whole.numbers)
    finally:
        store.close()


def check_damaged(whole: Whole, path: Path) -> bool:
    """Whether the damage was noticed; then all that is saved from it must be right, and counted."""
    try:
        found = loaded(path, whole)
    except StoreError as error:
        text = str(error)
    else:
        assert found == whole.content
        return False
    assert str(path) in text
    all_jobs, all_ends = len(whole.content.jobs), len(whole.content.ends)
    try:
        recovered = recover(path)
    except StoreError as error:
        return "nothing in" in str(error)
    rest = loaded(path, whole)
    doubtful = {number for number, end in rest.ends.items() if b"may have ended before" in end.notes}
    assert doubtful <= set(rest.dead)
    assert len(doubtful) == recovered.doubtful_jobs
    assert len(rest.jobs) == recovered.kept_jobs + recovered.doubtful_jobs
    if recovered.lost_jobs is not None and not recovered.lost_groups:
        assert recovered.kept_jobs + recovered.lost_jobs == all_jobs
        assert recovered.lost_records is not None
        assert recovered.kept_records + recovered.lost_records == all_ends
    if not recovered.lost_groups:  # else some are as they were before
        sure = {number: job for number, job in rest.jobs.items() if number not in doubtful}
        assert sure.items() <= whole.content.jobs.items()
        # a dead letter whose end is lost has one that says nothing
        known = {number: end for number, end in rest.ends.items() if end.outcome is not JobOutcome.FAILED}
        assert known.items() <= whole.content.ends.items()
        assert len(known) == recovered.kept_records
        check_parts(whole.content, rest, all_there=recovered.same_parts)
    assert recovered.moved_to.exists()
    return True


def check_parts(whole: Snapshot, rest: Snapshot, *, all_there: bool) -> None:
    """The parts of streams that were saved are right."""
    for number, parts in rest.parts.items():
        assert number in rest.jobs or number in rest.ends
        for position, body in parts:
            assert longest_part(number, position).startswith(body)
    if all_there:
        kept = rest.jobs.keys() | rest.ends.keys()
        assert rest.parts == {number: parts for number, parts in whole.parts.items() if number in kept}


def flip(path: Path, chance: random.Random, at: range | None = None) -> str:
    """One byte is another one from now on; where, for the message."""
    content = bytearray(path.read_bytes())
    place = chance.choice(at or range(len(content)))
    old = content[place]
    content[place] ^= chance.randrange(1, 256)
    path.write_bytes(content)
    return f"byte {place} (page {place // PAGE + 1}, {place % PAGE} in it) was {old}, is {content[place]}"


def check_many(
    whole: Whole, directory: Path, seeds: range, change: Callable[[Path, random.Random], str]
) -> int:
    """How often it was noticed that a copy had been changed."""
    noticed = 0
    for seed in seeds:
        path = copied(whole, directory / "changed")
        place = change(path, random.Random(seed))
        try:
            noticed += check_damaged(whole, path)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {place}") from error
    return noticed


def flip_in_structure(path: Path, chance: random.Random) -> str:
    """Where SQLite keeps what holds the rows together: at the beginning of a page."""
    page = chance.randrange(path.stat().st_size // PAGE)
    start = page * PAGE + (100 if page == 0 else 0)
    return flip(path, chance, range(start, start + 60))


def cut(path: Path, chance: random.Random) -> str:
    length = path.stat().st_size
    rest = chance.randrange(length)
    with path.open("r+b") as file:
        file.truncate(rest)
    return f"{rest} of {length} bytes are left"


def flip_log(path: Path, chance: random.Random) -> str:
    return flip(log_of(path), chance)


def cut_log(path: Path, chance: random.Random) -> str:
    return cut(log_of(path), chance)


def log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


# ----------------------------------------------------------------------------------------------- at random


def test_what_is_whole_is_loaded(whole: Whole, killed: Whole, tmp_path: Path) -> None:
    assert loaded(copied(whole, tmp_path / "whole"), whole) == whole.content
    assert loaded(copied(killed, tmp_path / "killed"), killed) == killed.content
    assert len(whole.content.jobs) > 100 < len(whole.content.ends)


def test_a_flipped_byte_is_noticed_or_does_no_harm(sized: Whole, tmp_path: Path) -> None:
    assert check_many(sized, tmp_path, range(25), flip) > 10
    assert check_many(sized, tmp_path, range(40), flip_in_structure) > 10


def test_a_cut_file_is_noticed(whole: Whole, tmp_path: Path) -> None:
    assert check_many(whole, tmp_path, range(10), cut) == 10


def test_a_flipped_byte_in_the_log_is_noticed_or_does_no_harm(killed: Whole, tmp_path: Path) -> None:
    assert check_many(killed, tmp_path, range(20), flip_log) > 10


def test_a_cut_log_is_noticed(killed: Whole, tmp_path: Path) -> None:
    assert check_many(killed, tmp_path, range(20), cut_log) == 20


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_damage_is_noticed_many_times(sized: Whole, killed: Whole, tmp_path: Path) -> None:
    seeds = range(1000, 1800)
    assert check_many(sized, tmp_path, seeds, flip) > 400
    assert check_many(sized, tmp_path, seeds, flip_in_structure) > 400
    assert check_many(sized, tmp_path, seeds, cut) == len(seeds)
    assert check_many(killed, tmp_path, seeds, flip_log) > 400
    assert check_many(killed, tmp_path, seeds, cut_log) == len(seeds)


# ------------------------------------------------------------------------------------------------- in detail


def test_a_removed_log_is_noticed(killed: Whole, tmp_path: Path) -> None:
    path = copied(killed, tmp_path / "copy")
    log_of(path).unlink()
    with pytest.raises(StoreError, match=r"the last \d+ groups of changes are not there, .*--recover.*-lock"):
        SqliteStore(path)
    path.with_name(path.name + "-lock").unlink()
    assert loaded(path, killed) != killed.content  # for that was asked for


@pytest.mark.parametrize("what", ["empty", "removed"])
def test_a_file_that_is_empty_or_gone_is_not_replaced_by_a_new_one(
    whole: Whole, tmp_path: Path, what: str
) -> None:
    path = copied(whole, tmp_path / "copy")
    path.unlink()
    if what == "empty":
        path.touch()
    with pytest.raises(StoreError, match=r"is empty, but it was not: .* remove jobs\.db-lock"):
        SqliteStore(path)
    path.with_name(path.name + "-lock").unlink()
    assert loaded(path, whole) == Snapshot({}, {}, [], {}, {}, set())


def test_a_job_that_is_not_what_was_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    store = SqliteStore(path)
    store.write([a_job(1), a_job(4711, b"find me"), a_job(4712, b"find me, too" * 500)])
    store.write([an_end(5, b"a result")])
    store.close()
    content = path.read_bytes()
    path.write_bytes(content.replace(b"find me", b"lost me").replace(b"a result", b"A result"))
    store = SqliteStore(path)
    with pytest.raises(
        StoreError, match=r"jobs\.db is damaged: job 4711 .* 'gearflow server --recover --data \S+'"
    ):
        jobs_of(store.load())
    with pytest.raises(StoreError, match="job 4711 "):
        store.job(4711)
    with pytest.raises(StoreError, match="job 4712 "):  # its workload is not looked at before
        store.job(4712)
    with pytest.raises(StoreError, match="result of job 5 "):
        store.ended(5)
    assert store.job(1) == a_job(1)
    store.close()
    recovered = recover(path)
    assert recovered[:4] == (1, 2, 0, 1)
    assert recovered.same_name


def test_a_missing_part_of_a_body_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    store = SqliteStore(path, tuning=Tuning(part=4096))
    store.write([a_job(1, b"x" * 10_000), a_job(2, b"y" * 10_000)])
    store.close()
    tamper(path, "DELETE FROM parts WHERE id = (SELECT max(id) FROM parts WHERE id < 1024)")
    store = SqliteStore(path)
    with pytest.raises(StoreError, match="a part of the body of job 1 is missing"):
        store.load()
    with pytest.raises(StoreError, match="job 1 is not what was written"):
        store.job(1)
    store.close()
    assert recover(path)[:2] == (1, 1)
    store = SqliteStore(path)
    assert jobs_of(store.load()) == [a_job(2, 10_000)]
    assert with_workload(store, a_job(2)) == a_job(2, b"y" * 10_000)
    store.close()


@pytest.mark.parametrize("table", ["jobs", "records"])
def test_rows_that_are_gone_are_noticed(sized: Whole, tmp_path: Path, table: str) -> None:
    path = copied(sized, tmp_path / "copy")
    tamper(path, f"DELETE FROM {table} WHERE number = (SELECT max(number) FROM {table} WHERE dead = 0)")
    with pytest.raises(StoreError, match=r"\d+ (jobs|results)"):
        loaded(path, sized)


@pytest.mark.parametrize("table", ["jobs", "records"])
def test_a_wrong_key_between_pages_is_noticed(sized: Whole, tmp_path: Path, table: str) -> None:
    path = copied(sized, tmp_path / "copy")
    connection = sqlite3.connect(path)
    (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    connection.close()
    content = bytearray(path.read_bytes())
    start = (root - 1) * PAGE
    assert content[start] == 5  # a page between others: children, each with the highest key in it
    last = start + 10 + 2 * int.from_bytes(content[start + 3 : start + 5], "big")
    cell = start + int.from_bytes(content[last : last + 2], "big")
    assert content[cell + 4] > 128  # the first of two bytes
    content[cell + 4] -= 1  # 128 rows are not in that child any more, to who seeks them
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        loaded(path, sized)
    assert recover(path)[:4] == (len(sized.content.jobs), 0, len(sized.content.ends), 0)


@pytest.mark.parametrize("index", ["records_number", "records_expires", "records_dead", "records_letter"])
def test_an_index_that_does_not_fit_is_noticed(sized: Whole, tmp_path: Path, index: str) -> None:
    path = copied(sized, tmp_path / "copy")
    connection = sqlite3.connect(path, isolation_level=None)
    entry = connection.execute("SELECT * FROM sqlite_master WHERE name = ?", (index,)).fetchone()
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute("DELETE FROM sqlite_master WHERE name = ?", (index,))
    connection.execute("PRAGMA writable_schema = RESET")
    change = "UPDATE records SET number = number + 100000, expires = expires + 3, dead = dead + 1 "
    connection.execute(f"{change} WHERE place = (SELECT min(place) FROM records WHERE dead > 0)")
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", entry)
    connection.close()
    with pytest.raises(StoreError, match=f"the index {index} does not fit"):
        loaded(path, sized)
    assert recover(path)[:2] == (len(sized.content.jobs), 0)
