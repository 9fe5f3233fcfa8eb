"""A copy of a store that is in use: whole, one file, and not taken for the original."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from gearflow.broker.storage import Paused, Reserved
from gearflow.errors import StoreError
from gearflow.stores import SqliteStore, backup, recover
from tests.conftest import ROOT
from tests.stores.faulty import faulty_disk
from tests.stores.scenario import lives, numbers_in, snapshot
from tests.stores.values import a_job, jobs_of, tamper

_COPY: Final = "import sys; from gearflow.stores import backup; print(backup(sys.argv[1], sys.argv[2]))"


def copy_in_another_process(path: Path, target: Path) -> int:
    command = [sys.executable, "-c", _COPY, str(path), str(target)]
    return int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60).stdout)


def test_a_live_store_is_copied_as_it_is(tmp_path: Path) -> None:
    path, target = tmp_path / "jobs.db", tmp_path / "copy.db"
    story = lives(seed=3, groups=40)
    store = SqliteStore(path)
    for group in story:
        store.write(group)
    content = snapshot(store, numbers_in(story))
    assert copy_in_another_process(path, target) == target.stat().st_size
    store.write([a_job(100_000)])
    assert {entry.name for entry in tmp_path.iterdir() if entry.name.startswith("copy")} == {"copy.db"}
    copy = SqliteStore(target)
    jobs_of(copy.load())
    assert snapshot(copy, numbers_in(story)) == content
    assert copy.job(100_000) is None
    copy.close()
    assert store.job(100_000) == a_job(100_000)
    store.close()


def test_a_store_that_nobody_has_is_copied(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    store = SqliteStore(path)
    store.write([a_job(1), Paused(b"resize", True)])
    store.close()
    backup(path, tmp_path / "copy.db")
    for file in (path, tmp_path / "copy.db"):
        store = SqliteStore(file)
        contents = store.load()
        assert (jobs_of(contents), contents.paused) == ([a_job(1)], (b"resize",))
        store.close()


def test_the_copy_of_a_damaged_store_is_kept_and_reported(tmp_path: Path) -> None:
    path, target = tmp_path / "jobs.db", tmp_path / "copy.db"
    store = SqliteStore(path)
    store.write([a_job(number, b"%d" % number * 20) for number in range(1, 2001)])
    store.close()
    content = bytearray(path.read_bytes())
    content[40 * 4096 : 41 * 4096] = bytes(4096)
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"jobs\.db is damaged: .* --recover .*copy\.db has the same damage"):
        backup(path, target)
    assert {entry.name for entry in tmp_path.iterdir() if entry.name.startswith("copy")} == {"copy.db"}
    recovered = recover(target)
    assert recovered.lost_jobs
    assert recovered.kept_jobs + recovered.lost_jobs == 2000


def test_a_damaged_job_in_a_copy_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    store = SqliteStore(path)
    store.write([a_job(1), a_job(2)])
    store.close()
    tamper(path, "UPDATE jobs SET priority = 2 WHERE number = 2")
    with pytest.raises(StoreError, match=r"jobs\.db is damaged: job 2 is not what was written"):
        backup(path, tmp_path / "copy.db")


def test_what_a_killed_server_left_is_copied(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    script = (
        "import sys, os; from gearflow.stores import SqliteStore; from tests.stores.values import a_job; "
    )
    script += "s = SqliteStore(sys.argv[1]); s.write([a_job(1)]); os._exit(0)"
    subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT, check=True, timeout=60)
    backup(path, tmp_path / "copy.db")
    store = SqliteStore(tmp_path / "copy.db")
    assert jobs_of(store.load()) == [a_job(1)]
    store.close()


def test_copies_give_numbers_that_the_original_does_not(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    store = SqliteStore(path)
    name = store.load().name
    store.write([Reserved(1000)])
    store.close()
    reserved: set[int] = set()
    for number in range(3):
        target = tmp_path / f"{number}.db"
        backup(path, target)
        for _ in range(2):  # it jumps once
            copy = SqliteStore(target)
            contents = copy.load()
            assert contents.name == name  # so that handles are still good
            reserved.add(contents.reserved)
            copy.close()
    assert len(reserved) == 3
    assert min(reserved) >= 1000 + (1 << 32)


@pytest.mark.parametrize("what", ["file", "directory", "broken link"])
def test_nothing_is_overwritten(tmp_path: Path, what: str) -> None:
    path, target = tmp_path / "jobs.db", tmp_path / "copy.db"
    SqliteStore(path).close()
    if what == "file":
        target.write_text("precious")
    elif what == "directory":
        target.mkdir()
    else:
        target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreError, match=r"copy\.db is there already"):
        backup(path, target)
    assert what != "file" or target.read_text() == "precious"
    assert not (tmp_path / "copy.db-partial").exists()


def test_only_a_store_is_copied(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no file"):
        backup(tmp_path / "jobs.db", tmp_path / "copy.db")
    (tmp_path / "jobs.db").write_text("once upon a time\n" * 1000)
    with pytest.raises(StoreError, match=r"jobs\.db is damaged|is not a store"):
        backup(tmp_path / "jobs.db", tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists()


def test_a_target_must_be_possible(tmp_path: Path) -> None:
    SqliteStore(tmp_path / "jobs.db").close()
    with pytest.raises(StoreError, match="none is not a directory"):
        backup(tmp_path / "jobs.db", tmp_path / "none" / "copy.db")


def test_a_copy_for_which_there_is_no_room_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    store = SqliteStore(path)
    store.write([a_job(number, b"x" * 5000) for number in range(1, 100)])
    store.close()
    with faulty_disk() as disk:
        disk.fail_at, disk.times = 30, 1 << 30
        with pytest.raises(StoreError, match=r"copy\.db-partial cannot grow"):
            backup(path, tmp_path / "copy.db")
    assert {entry.name for entry in tmp_path.iterdir() if entry.name.startswith("copy")} == set()
    backup(path, tmp_path / "copy.db")
