"""What can be read of a damaged file is saved, and the damaged file is kept."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Final, Literal

import pytest

from gearflow.broker.storage import Forgotten, JobOutcome, JobRecord, Paused, Rescheduled
from gearflow.errors import StoreError
from gearflow.stores import SqliteStore, backup, recover
from gearflow.stores.sqlite.files import FileLock
from gearflow.stores.sqlite.recovery import Recovered
from gearflow.stores.sqlite.tuning import Tuning
from tests.conftest import ROOT
from tests.stores.faulty import faulty_disk
from tests.stores.scenario import lives, numbers_in, snapshot
from tests.stores.values import a_dead_letter, a_job, an_end, jobs_of, tamper, with_workload

PAGE = 4096

TIMEOUT: Final = 60.0  # seconds

INTERRUPTED: Final = """
import os, signal, sys
from gearflow.stores import recover

path, how, number = sys.argv[1], sys.argv[2], int(sys.argv[3])

def on_event(event, _):
    global number
    if event in ("open", "os.chmod", "os.rename", "os.remove"):
        number -= 1
        if number == 0:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(5, "this error was planned")

sys.addaudithook(on_event)
recover(path)
sys.exit(3 if number > 0 else 0)
"""
NOT_REACHED: Final = 3


def written(path: Path, jobs: int = 2000, pack: int = 1000) -> bytes:
    """A file with so many jobs and as many results, which are in packs if there may be; its name."""
    store = SqliteStore(path, tuning=Tuning(pack=pack))
    name = store.load().name
    for start in range(0, jobs, 100):
        store.write([a_job(number, b"%d" % number * 20) for number in range(start + 1, start + 101)])
        ends = range(start + 1 + max(jobs, 10_000), start + 101 + max(jobs, 10_000))
        store.write([an_end(number, b"%d" % number * 20) for number in ends])
    store.close()
    return name


def overwrite(path: Path, pages: range, content: bytes = b"\xa5" * PAGE) -> None:
    with path.open("r+b") as file:
        for page in pages:
            file.seek((page - 1) * PAGE)
            file.write(content)


def test_rows_on_both_sides_of_damaged_pages_are_saved(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    name = written(path)
    pages = path.stat().st_size // PAGE
    for page in random.Random(3).sample(range(20, pages), 5):
        overwrite(path, range(page, page + 1))
    before = path.read_bytes()
    recovered = recover(path)
    assert recovered.lost_jobs is not None
    assert recovered.lost_records is not None
    assert recovered.kept_jobs + recovered.lost_jobs == 2000
    assert recovered.kept_records + recovered.lost_records == 2000
    assert 0 < recovered.lost_jobs + recovered.lost_records < 600  # some tens of rows are on a page
    assert recovered.same_name
    assert recovered.moved_to.read_bytes() == before
    assert recovered.moved_to.name.startswith("jobs.db.damaged-2")
    store = SqliteStore(path)
    contents = store.load()
    assert contents.name == name
    assert contents.reserved > 1 << 32  # more numbers than we know of may have been given
    assert len(jobs_of(contents)) == recovered.kept_jobs
    store.close()


def test_no_row_of_a_readable_page_is_lost_beside_a_missing_one(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    written(path)
    os.truncate(path, path.stat().st_size // PAGE // 2 * PAGE)
    content = path.read_bytes()
    pages = [content[start : start + PAGE] for start in range(PAGE, len(content), PAGE)]
    rows = sum(int.from_bytes(page[3:5], "big") for page in pages if page[0] == 0x0D)  # leaves of tables
    recovered = recover(path)
    others = 5  # three rows of meta, one of paused, one of renumbered
    assert recovered.kept_jobs + recovered.kept_records == rows - others


def inner_pages(path: Path, table: str) -> list[int]:
    """The pages between the root and the leaves of a table, after its root."""
    with closing(sqlite3.connect(path)) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    content = path.read_bytes()
    found = [root]
    for page in found:
        start = (page - 1) * PAGE
        count = int.from_bytes(content[start + 3 : start + 5], "big")
        cells = [start + 12 + 2 * cell for cell in range(count)]
        pointers = [start + int.from_bytes(content[at : at + 2], "big") for at in cells]
        children = [int.from_bytes(content[at : at + 4], "big") for at in (*pointers, start + 8)]
        found += [child for child in children if content[(child - 1) * PAGE] == 5]
    return found


@pytest.fixture(scope="module")
def folder_of_20_000(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    written(folder / "jobs.db", 20_000)
    return folder


def test_no_pack_below_a_damaged_page_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    written(path, pack=1)
    (root,) = inner_pages(path, "records")
    overwrite(path, range(root, root + 1))
    assert recover(path)[:4] == (2000, 0, 2000, 0)


@pytest.fixture
def with_20_000(folder_of_20_000: Path, tmp_path: Path) -> Path:
    """A file with so many jobs, and as many results, whose tables have inner pages below their roots."""
    return shutil.copytree(folder_of_20_000, tmp_path / "copy") / "jobs.db"


@pytest.mark.parametrize(("table", "number"), [("jobs", 0), ("records", 1)])
def test_no_row_below_a_damaged_inner_page_is_lost(with_20_000: Path, table: str, number: int) -> None:
    path = with_20_000
    pages = inner_pages(path, table)
    assert len(pages) > 2
    overwrite(path, range(pages[number], pages[number] + 1))
    with pytest.raises(StoreError, match=r"jobs\.db is damaged: .+; stop the server and run"):  # on one line
        SqliteStore(path)
    assert recover(path)[:4] == (20_000, 0, 20_000, 0)
    store = SqliteStore(path)
    assert {job.number for job in jobs_of(store.load())} == set(range(1, 20_001))
    assert store.job(12_345) == a_job(12_345, b"%d" % 12_345 * 20)
    assert store.ended(32_345) == an_end(32_345, b"32345" * 20)
    store.close()


def test_no_long_body_below_damaged_inner_pages_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    jobs = [a_job(number, b"%06d" % number * (number % 2000)) for number in range(1, 2001)]
    ends = [an_end(number + 10_000, b"%06d" % number * (number % 1500)) for number in range(1, 2001)]
    store = SqliteStore(path, tuning=Tuning(part=5000))
    store.write([*jobs, *ends])
    store.close()
    for table in ("jobs", "records", "parts"):
        overwrite(path, range((root := inner_pages(path, table)[0]), root + 1))
    assert recover(path)[:4] == (2000, 0, 2000, 0)
    store = SqliteStore(path)
    jobs_of(store.load())
    assert [with_workload(store, job) for job in jobs] == jobs
    assert [store.ended(end.number) for end in ends] == ends
    store.close()


def test_rows_below_a_damaged_inner_page_are_saved_as_the_log_has_them(
    with_20_000: Path, tmp_path: Path
) -> None:
    page = inner_pages(with_20_000, "jobs")[1]
    store = SqliteStore(with_20_000)
    store.write([Forgotten(number) for number in range(101, 201)])
    store.write([Rescheduled(number, 7.5, 2, 1) for number in range(201, 301)])
    shutil.copytree(with_20_000.parent, tmp_path / "left")  # as if it had been killed now
    store.close()
    path = tmp_path / "left" / "jobs.db"
    overwrite(path, range(page, page + 1))
    assert recover(path)[:4] == (19_900, 0, 20_000, 0)
    store = SqliteStore(path)
    jobs = {job.number: job for job in jobs_of(store.load())}
    assert not jobs.keys() & set(range(101, 201))
    assert {jobs[number].due for number in range(201, 301)} == {7.5}
    store.close()


def forget_most(path: Path) -> None:
    """Forget jobs, so that their pages are free."""
    store = SqliteStore(path)
    jobs_of(store.load())
    store.write([Forgotten(number) for number in range(1, 15_001)])
    store.close()


def test_jobs_that_ended_do_not_come_back_from_free_pages(with_20_000: Path) -> None:
    path = with_20_000
    forget_most(path)
    overwrite(path, range((root := inner_pages(path, "jobs")[0]), root + 1))
    assert recover(path)[:4] == (5000, 0, 20_000, 0)
    store = SqliteStore(path)
    assert {job.number for job in jobs_of(store.load())} == set(range(15_001, 20_001))
    assert store.dead(None, 0, 10) == []
    store.close()


def test_jobs_that_may_have_ended_become_dead_letters(with_20_000: Path) -> None:
    path = with_20_000
    forget_most(path)
    trunk = int.from_bytes(path.read_bytes()[32:36], "big")
    for page in (trunk, inner_pages(path, "jobs")[0]):
        overwrite(path, range(page, page + 1))
    recovered = recover(path)
    assert recovered.doubtful_jobs > 5000
    assert recovered[:4] == (0, 5000, 20_000, 0)
    store = SqliteStore(path)
    assert jobs_of(store.load()) == []
    letters = store.dead(b"resize", 0, 30_000)
    assert {letter.number for letter in letters} >= set(range(15_001, 20_001))
    assert {letter.notes for letter in letters if isinstance(letter, JobRecord)} == {
        b'{"warnings": ["the file was damaged, and this job may have ended before"]}'
    }
    store.close()


@pytest.mark.parametrize("byte", [3, 4])  # of the number of rows on a page
@pytest.mark.parametrize("forgotten", [range(8, 11), range(1, 4), range(4, 6), range(1)])
def test_jobs_that_ended_do_not_come_back_from_the_gaps_of_a_page(
    tmp_path: Path, forgotten: range, byte: int
) -> None:
    path = tmp_path / "jobs.db"
    store = SqliteStore(path)
    store.write([a_job(number, b"%d" % number * 20) for number in range(1, 11)])
    store.write([Forgotten(number) for number in forgotten])
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'jobs'").fetchone()
    alive = set(range(1, 11)) - set(forgotten)
    before = path.read_bytes()
    for bit in (0, 1, 3, 7):
        content = bytearray(before)
        content[(root - 1) * PAGE + byte] ^= 1 << bit
        path.write_bytes(content)
        recovered = recover(path)
        store = SqliteStore(path)
        jobs = {job.number for job in jobs_of(store.load())}
        letters = {letter.number for letter in store.dead(None, 0, 100)}
        store.close()
        assert jobs <= alive
        assert jobs | letters >= alive
        assert len(letters) == recovered.doubtful_jobs
        if byte == 3 or not forgotten:
            assert (jobs, letters) == (alive, set()), bit


def test_all_is_saved_where_only_the_first_page_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    name = written(path)
    overwrite(path, range(1, 2))
    with pytest.raises(StoreError, match="is damaged: it does not begin as an SQLite file does"):
        SqliteStore(path)
    recovered = recover(path)
    assert (recovered.kept_jobs, recovered.kept_records) == (2000, 2000)
    assert recovered.same_name
    store = SqliteStore(path)
    contents = store.load()
    assert contents.name == name
    assert len(jobs_of(contents)) == 2000
    store.close()


@pytest.mark.parametrize("pack", [1, 1000])
def test_the_first_page_can_be_replaced_after_a_vacuum(tmp_path: Path, pack: int) -> None:
    path = tmp_path / "jobs.db"
    written(path, pack=pack)
    tamper(path, "VACUUM")
    overwrite(path, range(1, 2))
    assert recover(path)[:4] == (2000, 0, 2000, 0)


def test_a_sound_file_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    story = lives(seed=9, groups=60)
    store = SqliteStore(path)
    for group in story:
        store.write(group)
    content = snapshot(store, numbers_in(story))
    store.close()
    recovered = recover(path)
    assert recovered.lost_jobs == recovered.lost_records == recovered.lost_groups == 0
    store = SqliteStore(path)
    jobs_of(store.load())
    assert snapshot(store, numbers_in(story)) == content
    store.close()


def test_paused_functions_stay_paused(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    written(path, jobs=100)
    store = SqliteStore(path)
    store.write([Paused(b"resize", True), Paused(b"crop", True)])
    store.close()
    overwrite(path, range(1, 2))
    assert recover(path).same_paused
    store = SqliteStore(path)
    assert sorted(store.load().paused) == [b"crop", b"resize"]
    store.close()


def test_without_metadata_it_is_not_known_what_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    written(path, jobs=100)
    tamper(path, "UPDATE meta SET reserved = reserved - 1")
    with pytest.raises(StoreError, match="the table meta is not what was written"):
        SqliteStore(path)
    recovered = recover(path)
    assert recovered[:4] == (100, None, 100, None)
    assert recovered.same_name  # which the lock file knows
    store = SqliteStore(path)
    assert store.load().reserved > 10_100
    store.close()


def test_a_dead_letter_without_its_end_can_still_be_found(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    store = SqliteStore(path)
    store.write([a_dead_letter(1), a_dead_letter(2)])
    store.close()
    tamper(path, "DELETE FROM records WHERE number = 1")
    recovered = recover(path)
    assert recovered[:4] == (2, 0, 1, 1)
    store = SqliteStore(path)
    assert jobs_of(store.load()) == []
    assert [(end.number, end.outcome) for end in store.dead(None, 0, 10) if isinstance(end, JobRecord)] == [
        (1, JobOutcome.FAILED),
        (2, JobOutcome.RAISED),
    ]
    assert store.job(1) == a_dead_letter(1).letter
    store.close()


def test_an_end_without_its_dead_letter_is_kept_as_a_result(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    store = SqliteStore(path)
    store.write([a_dead_letter(1)])
    store.close()
    tamper(path, "DELETE FROM jobs WHERE number = 1")
    assert recover(path)[:4] == (0, 1, 1, 0)
    store = SqliteStore(path)
    assert store.dead(None, 0, 10) == []
    assert store.ended(1) == a_dead_letter(1)._replace(letter=None)
    store.close()


def test_a_file_in_use_is_not_recovered(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "jobs.db")
    with pytest.raises(StoreError, match=r"jobs\.db is in use by process \d+"):
        recover(tmp_path / "jobs.db")
    store.write([a_job(1)])
    store.close()


@pytest.mark.parametrize("content", [b"", b"once upon a time " * 1000])
def test_what_is_no_store_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "jobs.db"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"nothing in .*jobs\.db can be read, or it is no store's file"):
        recover(path)
    assert path.read_bytes() == content
    assert {entry.name for entry in tmp_path.iterdir()} == {"jobs.db", "jobs.db-lock"}


def test_a_file_that_is_not_there_is_not_recovered(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no file"):
        recover(tmp_path / "jobs.db")
    assert list(tmp_path.iterdir()) == []


def test_if_there_is_no_room_all_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    written(path)
    before = path.read_bytes()
    with faulty_disk() as disk:
        disk.fail_at, disk.times = 100, 1 << 30
        with pytest.raises(StoreError, match="make room, and run this again"):
            recover(path)
    assert path.read_bytes() == before
    assert {entry.name for entry in tmp_path.iterdir()} == {"jobs.db", "jobs.db-lock"}
    assert recover(path).kept_jobs == 2000


def test_what_is_saved_is_as_private_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    written(path, 100)
    recover(path)
    assert path.stat().st_mode & 0o777 == 0o600


# ------------------------------------------------------------------------------------------- cut short


def left_by_a_kill(folder: Path) -> Path:
    """A file without its first page, with a log that has half of the jobs."""
    at_work = folder.with_name("at work")
    at_work.mkdir()
    written(at_work / "jobs.db", 200)
    store = SqliteStore(at_work / "jobs.db")
    store.write([a_job(number, b"%d" % number) for number in range(1001, 1101)])
    shutil.copytree(at_work, folder)  # as if it had been killed now
    store.close()
    with (folder / "jobs.db").open("r+b") as file:
        file.write(b"not what was there")
    return folder / "jobs.db"


def interrupted(path: Path, how: Literal["killed", "failed"], number: int) -> int:
    """Recover a file until the ``number``-th use of a file's name; the exit code."""
    command = [sys.executable, "-c", INTERRUPTED, str(path), how, str(number)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=TIMEOUT)
    expected = -signal.SIGKILL if how == "killed" else 1
    assert process.returncode in (0, NOT_REACHED, expected), process.stderr.decode()
    if process.returncode == 1:
        assert b"this error was planned" in process.stderr, process.stderr.decode()
    return process.returncode


def contents(path: Path) -> dict[str, bytes]:
    """The damaged file and its log, wherever they are, and whatever else there is but of the owner's."""
    return {
        entry.name: entry.read_bytes()
        for entry in path.parent.iterdir()
        if not entry.name.endswith(("-shm", "-lock"))
    }


@pytest.mark.parametrize("how", ["killed", "failed"])
def test_a_rescue_that_is_cut_short_anywhere_loses_nothing(
    tmp_path: Path, how: Literal["killed", "failed"]
) -> None:
    left = left_by_a_kill(tmp_path / "left")
    before = contents(left)
    cut_short = 0
    for number in itertools.count(1):
        path = shutil.copytree(left.parent, tmp_path / f"{number}") / "jobs.db"
        if interrupted(path, how, number) == NOT_REACHED:
            break
        cut_short += path.with_name("jobs.db-swap").exists()
        look_at_the_end(path, before)
        shutil.rmtree(path.parent)
    assert cut_short >= 5  # three files are moved away, one takes their place, and the plan goes


def refuse(*_: object) -> None:
    raise OSError(errno.EIO, "this error was planned")


def look_at_the_end(path: Path, before: dict[str, bytes]) -> None:
    """The old file is in its place, or the new one, or a server refuses both; a rescue then ends well."""
    now = contents(path)
    if path.with_name("jobs.db-swap").exists():
        with pytest.raises(StoreError, match=r"its rescue was cut short .* --recover"):
            SqliteStore(path)
        assert contents(path) == now
    elif now.items() >= before.items():
        with pytest.raises(StoreError, match="is damaged: it does not begin as an SQLite file does"):
            SqliteStore(path)
    else:
        look_at_the_rescue(path)
        return
    recovered = recover(path)
    assert recovered == Recovered(300, 0, 200, 0, 0, True, recovered.moved_to, True)
    name = recovered.moved_to.name
    after = contents(path)
    assert after.keys() == {"jobs.db", name, f"{name}-wal"}
    assert (after[name], after[f"{name}-wal"]) == (before["jobs.db"], before["jobs.db-wal"])
    look_at_the_rescue(path)


def look_at_the_rescue(path: Path) -> None:
    store = SqliteStore(path)
    assert {job.number for job in jobs_of(store.load())} == {*range(1, 201), *range(1001, 1101)}
    store.close()


def with_a_planned_rescue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a file was that has been moved away, and its rescue has yet to take its place."""
    path = left_by_a_kill(tmp_path / "left")
    with monkeypatch.context() as patch:
        patch.setattr(FileLock, "expect_nothing", refuse)
        with pytest.raises(StoreError, match="this error was planned"):
            recover(path)
    return path


def test_a_file_that_was_put_in_its_place_meanwhile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = with_a_planned_rescue(tmp_path, monkeypatch)
    assert not path.exists()
    path.write_bytes(b"a copy")
    with pytest.raises(StoreError, match="its rescue was cut short"):
        backup(path, tmp_path / "copy")
    with pytest.raises(StoreError, match=r"jobs\.db is there again, .* remove \S+jobs\.db-swap"):
        recover(path)
    assert path.read_bytes() == b"a copy"
    path.unlink()
    assert recover(path).kept_jobs == 300
    look_at_the_rescue(path)


@pytest.mark.parametrize("garbage", [b"", b"[]", b"{}", b"\xff", b'{"store": 1}'])
def test_the_error_of_a_damaged_plan_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, garbage: bytes
) -> None:
    path = with_a_planned_rescue(tmp_path, monkeypatch)
    plan = path.with_name("jobs.db-swap")
    plan.write_bytes(garbage)
    with pytest.raises(StoreError, match=r"jobs.db-swap is damaged\. .* rename jobs\.db-recovered"):
        recover(path)
    path.with_name("jobs.db-recovered").rename(path)  # as it says
    plan.unlink()
    recover(path)
    look_at_the_rescue(path)
