"""A file that was changed at rest: either all of it is there, or there is a message. Never a silent loss.

What is damaged is a copy of a small file with all kinds of rows in it, whose tables have many pages. Small
files are checked whole by SQLite; that is switched off in half of the cases, so that what large files rely on
is tested, too.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from gearflow.broker.store import Outcome
from gearflow.errors import StoreError
from gearflow.stores import SqliteStore, check, recover
from tests.stores.scenario import Snapshot, lives, numbers_in, snapshot
from tests.stores.values import jobs_of

PAGE: Final = 4096


class Whole(NamedTuple):
    """A file as it should be."""

    path: Path
    numbers: int
    content: Snapshot


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Closed in good order."""
    path = tmp_path_factory.mktemp("whole") / "jobs.db"
    return Whole(path, *_written(path))


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """As a process that was killed left it: much is only in the log."""
    path = tmp_path_factory.mktemp("killed") / "jobs.db"
    copy = tmp_path_factory.mktemp("copy")
    content = _written(path, copy_to=copy)
    return Whole(copy / "jobs.db", *content)


def _written(path: Path, copy_to: Path | None = None) -> tuple[int, Snapshot]:
    story = lives(seed=5, groups=150)
    store = SqliteStore(path)
    for group in story:
        store.write(group)
    content = snapshot(store, numbers_in(story))
    if copy_to is not None:  # by another process: SQLite's locks are lost if this one closes its files
        subprocess.run(["cp", "-a", f"{path.parent}/.", str(copy_to)], check=True)
    store.close()
    return numbers_in(story), content


@pytest.fixture(params=["small", "large"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of the file, as the store sees it."""
    if request.param == "large":
        monkeypatch.setattr(check, "SMALL", 0)
    return str(request.param)


def copied(whole: Whole, directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(whole.path.parent, directory)
    return directory / whole.path.name


def loaded(path: Path, numbers: int) -> Snapshot:
    """All that is there; raises StoreError."""
    store = SqliteStore(path)
    try:
        jobs_of(store.load())
        return snapshot(store, numbers)
    finally:
        store.close()


def check_damaged(whole: Whole, path: Path) -> bool:
    """Whether the damage was noticed; then all that is saved from it must be right, and counted."""
    try:
        found = loaded(path, whole.numbers)
    except StoreError as error:
        assert str(path) in str(error)
    else:
        assert found == whole.content
        return False
    all_jobs, all_ends = len(whole.content.jobs), len(whole.content.ends)
    try:
        recovered = recover(path)
    except StoreError as error:
        assert "nothing in" in str(error)
        return True
    rest = loaded(path, whole.numbers)
    assert len(rest.jobs) == recovered.kept_jobs
    if recovered.lost_jobs is not None and not recovered.lost_groups:
        assert recovered.kept_jobs + recovered.lost_jobs == all_jobs
        assert recovered.lost_records is not None
        assert recovered.kept_records + recovered.lost_records == all_ends
    if not recovered.lost_groups:  # else some are as they were before
        assert rest.jobs.items() <= whole.content.jobs.items()
        # a dead letter whose end is lost has one that says nothing
        known = {number: end for number, end in rest.ends.items() if end.outcome is not Outcome.FAILED}
        assert known.items() <= whole.content.ends.items()
        assert len(known) == recovered.kept_records
    assert recovered.moved_to.exists()
    return True


def flip(path: Path, chance: random.Random, at: range | None = None) -> str:
    """One byte is another one from now on; where, for the message."""
    content = bytearray(path.read_bytes())
    place = chance.choice(at or range(len(content)))
    old = content[place]
    content[place] ^= chance.randrange(1, 256)
    path.write_bytes(content)
    return f"byte {place} (page {place // PAGE + 1}, {place % PAGE} in it) was {old}, is {content[place]}"


def flip_often(whole: Whole, directory: Path, seeds: range, where: Callable[[Path], range | None]) -> int:
    """How often it was noticed."""
    noticed = 0
    for seed in seeds:
        path = copied(whole, directory / "flipped")
        place = flip(path, random.Random(seed), where(path))
        try:
            noticed += check_damaged(whole, path)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {place}") from error
    return noticed


def anywhere(_: Path) -> None:
    return None


def in_the_structure(path: Path) -> range:
    """The first bytes of pages: where SQLite keeps what holds the rows together."""
    return range(path.stat().st_size)


@pytest.mark.usefixtures("size")
def test_a_flipped_byte_is_noticed_or_does_no_harm(whole: Whole, tmp_path: Path) -> None:
    assert flip_often(whole, tmp_path, range(60), anywhere) > 20


def test_a_whole_file_is_whole(whole: Whole, killed: Whole, tmp_path: Path) -> None:
    assert loaded(copied(whole, tmp_path / "whole"), whole.numbers) == whole.content
    assert loaded(copied(killed, tmp_path / "killed"), killed.numbers) == killed.content
