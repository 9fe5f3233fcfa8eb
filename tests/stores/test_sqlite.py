"""What only a store in a file promises: it is there again, has one owner, and does not grow for ever."""

from __future__ import annotations

import errno
import itertools
import os
import re
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final
from zlib import crc32

import pytest

from gearflow.broker.storage import Forgotten, Paused, Renumbered, Rescheduled, Reserved, Revived
from gearflow.errors import StoreError
from gearflow.stores import SqliteStore, Sync, backup, recover
from gearflow.stores.sqlite import schema
from gearflow.stores.sqlite import wal as log_module
from gearflow.stores.sqlite.errors import failed
from gearflow.stores.sqlite.rows import paused_row
from gearflow.stores.sqlite.tuning import Tuning
from tests.conftest import ROOT
from tests.stores.scenario import lives, numbers_in, snapshot
from tests.stores.values import (
    a_dead_letter,
    a_job,
    an_end,
    jobs_of,
    read,
    tamper,
    whole_result,
    with_workload,
)

_TIMEOUT: Final = 60.0  # seconds


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


def write_once(path: Path, *groups: list[object]) -> None:
    store = SqliteStore(path)
    for group in groups:
        store.write(group)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    store.close()


# ------------------------------------------------------------------------------------------- there again


@pytest.mark.parametrize("sync", ["always", "batch", "off"])
def test_all_is_there_again(path: Path, sync: Sync) -> None:
    story = lives(seed=2, groups=60)
    store = SqliteStore(path, sync=sync)
    name = store.load().name
    for group in story:
        store.write(group)
    content = snapshot(store, numbers_in(story))
    store.close()
    store = SqliteStore(path, sync=sync)
    contents = store.load()
    assert contents.name == name
    assert {job.number for job in contents.jobs} == content.jobs.keys() - set(content.dead)
    assert snapshot(store, numbers_in(story)) == content
    store.close()


def test_jobs_are_loaded_by_number_without_long_workloads(path: Path) -> None:
    jobs = [a_job(7, b"x" * 1024), a_job(3, b"x" * 1025), a_job(5, b""), a_job(1, b"x" * 50_000, due=9.5)]
    write_once(path, [*jobs, a_dead_letter(2), an_end(4)])
    store = SqliteStore(path)
    assert jobs_of(store.load()) == [
        a_job(1, 50_000, due=9.5),
        a_job(3, 1025),
        a_job(5, b""),
        a_job(7, b"x" * 1024),
    ]
    store.close()


def test_what_was_changed_is_loaded_as_it_is_now(path: Path) -> None:
    write_once(path, [a_job(1), a_job(2), a_job(3)], [Rescheduled(1, 7.5, 2, 1), Forgotten(2)])
    write_once(path, [a_dead_letter(3, 7)], [Revived(3)])
    store = SqliteStore(path)
    assert jobs_of(store.load()) == [a_job(1, due=7.5, attempt=2, deaths=1), a_job(3)]
    store.close()


def test_reserved_numbers_never_become_fewer(path: Path) -> None:
    store = SqliteStore(path)
    assert store.load().reserved == 1
    store.write([Reserved(1000)])
    store.write([Reserved(500)])
    store.close()
    store = SqliteStore(path)
    assert store.load().reserved == 1000
    store.close()


def test_two_stores_have_two_names(tmp_path: Path) -> None:
    names: set[bytes] = set()
    for number in range(5):
        store = SqliteStore(tmp_path / str(number))
        names.add(store.load().name)
        store.close()
    assert len(names) == 5


def test_a_loss_of_power_leaves_a_gap_in_the_numbers(path: Path) -> None:
    script = "import sys; from gearflow.stores import SqliteStore; from gearflow.broker.storage import *\n"
    script += "s = SqliteStore(sys.argv[1]); s.write([Reserved(1000)]); import os; os._exit(0)"
    subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT, check=True, timeout=_TIMEOUT)
    store = SqliteStore(path)
    assert store.load().reserved == 1000  # only the process had ended
    store.close()
    subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT, check=True, timeout=_TIMEOUT)
    lock = path.with_name("jobs.db-lock")
    lock.write_bytes(re.sub(rb"boot \S+", b"boot another-boot", lock.read_bytes()))
    store = SqliteStore(path)
    assert store.load().reserved == 1000 + (1 << 32)
    store.close()
    store = SqliteStore(path)  # after an orderly end, nothing is in doubt
    assert store.load().reserved == 1000 + (1 << 32)
    store.close()


# ------------------------------------------------------------------------------------------------- one owner


def test_a_second_owner_is_refused_with_the_name_of_the_first(path: Path) -> None:
    store = SqliteStore(path)
    with pytest.raises(StoreError, match=rf"jobs\.db is in use by process {os.getpid()} since 2\d\d\d-"):
        SqliteStore(path)
    link = path.with_name("link.db")
    link.symlink_to(path)
    with pytest.raises(StoreError, match="in use"):
        SqliteStore(link)
    store.write([a_job(1)])
    store.close()
    store = SqliteStore(link)
    assert jobs_of(store.load()) == [a_job(1)]
    store.close()


@contextmanager
def owner_process(path: Path) -> Generator[subprocess.Popen[bytes]]:
    """A process that has the file open."""
    script = "import sys; from gearflow.stores import SqliteStore; s = SqliteStore(sys.argv[1]); "
    script += "print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process


def test_another_process_is_refused_until_the_first_has_been_killed(path: Path) -> None:
    with owner_process(path) as process:
        with pytest.raises(StoreError, match=f"in use by process {process.pid} "):
            SqliteStore(path)
        process.kill()
    SqliteStore(path).close()


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the database itself is locked on Linux only")


@linux_only
def test_a_second_owner_is_refused_after_the_lock_file_was_removed(path: Path) -> None:
    store = SqliteStore(path)
    path.with_name("jobs.db-lock").unlink()
    for open_it in (SqliteStore, recover):
        with pytest.raises(StoreError, match=rf"jobs\.db is in use by process {os.getpid()}, .* was removed"):
            open_it(path)
    store.write([a_job(1)])
    store.close()
    write_once(path, [a_job(2)])
    store = SqliteStore(path)
    assert jobs_of(store.load()) == [a_job(1), a_job(2)]
    store.close()


@linux_only
def test_a_second_owner_is_refused_under_another_name_of_the_file(path: Path, tmp_path: Path) -> None:
    write_once(path, [a_job(1)])
    other = tmp_path / "elsewhere" / "jobs.db"
    other.parent.mkdir()
    other.hardlink_to(path)
    store = SqliteStore(path)
    for open_it in (SqliteStore, recover):
        with pytest.raises(StoreError, match=rf"elsewhere/jobs\.db is in use by process {os.getpid()}, "):
            open_it(other)
    assert not other.with_name("jobs.db-wal").exists()
    store.write([a_job(2)])
    store.close()
    store = SqliteStore(other)
    assert jobs_of(store.load()) == [a_job(1), a_job(2)]
    store.close()


@linux_only
def test_a_process_that_was_killed_leaves_the_database_free(path: Path) -> None:
    with owner_process(path) as process:
        path.with_name("jobs.db-lock").unlink()
        with pytest.raises(StoreError, match=f"in use by process {process.pid}, "):
            SqliteStore(path)
        process.kill()
    SqliteStore(path).close()


def test_a_file_that_was_removed_is_noticed_and_stays_readable(path: Path) -> None:
    store = SqliteStore(path)
    store.write([a_job(1)])
    store.sync()
    path.unlink()
    for step in (store.sync, store.reopen, store.sync):
        with pytest.raises(
            StoreError, match=r"jobs\.db was moved, removed or replaced .*let the workers finish"
        ):
            step()
        assert store.job(1) == a_job(1)
    assert not path.exists()
    store.write([an_end(1)])
    store.close()


def test_a_file_that_was_moved_can_be_moved_back(path: Path) -> None:
    store = SqliteStore(path)
    store.write([a_job(1)])
    path.rename(path.with_name("elsewhere.db"))
    path.touch()
    with pytest.raises(
        StoreError, match=r"jobs\.db was moved, removed or replaced .*run 'gearflow server reopen'"
    ):
        store.sync()
    path.with_name("elsewhere.db").rename(path)
    store.reopen()
    store.sync()
    store.close()
    store = SqliteStore(path)
    assert jobs_of(store.load()) == [a_job(1)]
    store.close()


def test_a_store_that_could_not_be_opened_leaves_the_file_free(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to be taken for one" * 100)
    for _ in range(2):
        with pytest.raises(StoreError, match="is not an SQLite file"):
            SqliteStore(path)
    path.unlink()
    SqliteStore(path).close()


def test_a_closed_store_says_so(path: Path) -> None:
    store = SqliteStore(path)
    store.close()
    store.close()
    with pytest.raises(StoreError, match="has been closed"):
        store.write([a_job(1)])
    with pytest.raises(StoreError, match="has been closed"):
        store.job(1)
    with pytest.raises(StoreError, match="has been closed"):
        store.load()
    with pytest.raises(StoreError, match="has been closed"):
        store.sync()


# --------------------------------------------------------------------------------------------- its opening


def test_only_its_owner_can_read_the_file(path: Path) -> None:
    write_once(path, [a_job(1)])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is a directory; name a file in it"):
        SqliteStore(tmp_path)


def test_there_must_be_a_directory(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="none is not a directory; create it"):
        SqliteStore(tmp_path / "none" / "jobs.db")


def test_a_file_that_may_not_be_written_is_refused(path: Path) -> None:
    write_once(path, [a_job(1)])
    path.parent.chmod(0o500)
    path.chmod(0o400)
    script = (
        "import os, sys; from gearflow.stores import SqliteStore; from gearflow.errors import StoreError\n"
    )
    script += "if os.geteuid() == 0: os.setuid(65534)  # root may write all\n"
    script += "try: SqliteStore(sys.argv[1])\nexcept StoreError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT, capture_output=True, text=True)
    path.parent.chmod(0o700)
    assert f"{path} cannot be opened for writing (Permission denied); may this user write" in done.stdout


def test_a_disk_without_room_for_shared_memory_is_called_full(path: Path) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorname = "SQLITE_IOERR_SHMSIZE"
    assert "the disk or the quota is full; make room" in str(failed(path, error))


def test_a_file_of_another_application_is_refused(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE photos (name TEXT)")
    other.execute("INSERT INTO photos VALUES ('me')")
    other.commit()
    other.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"jobs\.db is a file of another application"):
        SqliteStore(path)
    assert path.read_bytes() == before


def test_a_later_version_is_refused_with_both_versions(path: Path) -> None:
    write_once(path, [a_job(1)])
    later = sqlite3.connect(path)
    later.execute("PRAGMA user_version = 99")
    later.close()
    with pytest.raises(
        StoreError, match=r"jobs\.db has version 99, .* up to 7; use the gearflow that wrote it"
    ):
        SqliteStore(path)


def test_an_earlier_version_is_brought_forward(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_once(path, [a_job(1), an_end(2)])

    def add_a_table(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE notes (number INTEGER PRIMARY KEY, text TEXT)")

    monkeypatch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, add_a_table])
    store = SqliteStore(path)
    assert jobs_of(store.load()) == [a_job(1)]
    assert store.ended(2) == an_end(2)
    store.close()
    assert schema_of(path) == (8, True)
    monkeypatch.undo()
    with pytest.raises(StoreError, match="has version 8, and this gearflow knows versions up to 7"):
        SqliteStore(path)


def test_a_migration_that_fails_leaves_the_file_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_once(path, [a_job(1)])

    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE notes (number INTEGER PRIMARY KEY)")
        connection.execute("CREATE TABLE notes (number INTEGER PRIMARY KEY)")

    monkeypatch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, fail])
    with pytest.raises(StoreError, match="already exists"):
        SqliteStore(path)
    monkeypatch.undo()
    assert schema_of(path) == (7, False)
    write_once(path)


def test_the_first_version_knew_of_no_paused_functions(path: Path, first_version: None) -> None:
    connection = sqlite3.connect(path)
    tables = schema.tables_of(connection)
    connection.close()
    assert crc32(repr(tables).encode()) == 0x3562C54B  # files of it are out there: it is what it was
    store = SqliteStore(path)
    contents = store.load()
    assert (jobs_of(contents), contents.paused) == ([a_job(1)], ())
    assert store.ended(2) == an_end(2)
    store.write([Paused(b"resize", True)])
    store.close()
    store = SqliteStore(path)
    assert store.load().paused == (b"resize",)
    store.close()


def test_a_damaged_file_of_the_first_version_is_recovered(path: Path, first_version: None) -> None:
    with path.open("r+b") as file:
        file.write(bytes(16))
    recovered = recover(path)
    assert (recovered.kept_jobs, recovered.kept_records) == (1, 1)
    write_once(path)


def make_old(path: Path, version: int) -> None:
    """Make a file one of an earlier version, which has nothing of a later one."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("DROP TABLE settings")
        connection.execute("DELETE FROM meta WHERE id = 3")
        if version < 6:
            connection.execute("DROP TABLE renumbered")
            connection.execute("DROP TABLE streams")
            connection.execute("DELETE FROM meta WHERE id = 2")
        if version == 1:
            connection.execute("DROP TABLE paused")
        connection.execute(f"PRAGMA user_version = {version}")
        assert schema.tables_of(connection) == schema.expected_tables(version)


@pytest.fixture
def first_version(path: Path) -> None:
    """At ``path`` is a file of the first version of the schema."""
    write_once(path, [a_job(1), an_end(2)])
    make_old(path, 1)


def test_the_third_version_knew_of_no_packs(path: Path) -> None:
    ends = [an_end(number) for number in range(1, 40)]
    write_once(path, [a_job(100), a_dead_letter(200)])
    store = SqliteStore(path, tuning=Tuning(pack=1000))
    store.load()
    store.write(ends)
    store.close()
    make_old(path, 3)
    for number in range(300, 302):  # the first of the next server, and one that finds packs
        store = SqliteStore(path)
        assert jobs_of(store.load()) == [a_job(100)]
        assert [whole_result(store, end.number) for end in ends] == ends
        assert store.latest(b"resize", b"key-7") == an_end(7)
        store.write([an_end(number * 100 + more) for more in range(30)])
        assert store.ended(number * 100 + 29) == an_end(number * 100 + 29)
        store.close()


def test_a_damaged_file_of_the_third_version_is_recovered(path: Path) -> None:
    write_once(path, [a_job(1), an_end(2)])
    make_old(path, 3)
    with path.open("r+b") as file:
        file.write(bytes(16))
    recovered = recover(path)
    assert (recovered.kept_jobs, recovered.kept_records) == (1, 1)
    write_once(path)


def test_a_copy_of_a_file_of_the_third_version_is_whole(path: Path) -> None:
    write_once(path, [a_job(1), an_end(2)])
    make_old(path, 3)
    copy = path.with_name("copy.db")
    backup(path, copy)
    store = SqliteStore(copy)
    assert jobs_of(store.load()) == [a_job(1)]
    assert store.ended(2) == an_end(2)
    store.close()


@pytest.mark.parametrize(
    "functions",
    [
        (),
        (b"resize",),
        ("größe".encode(), b"\x80\xff", b'"', b"\0"),
        tuple(b"f%d" % n * 9 for n in range(2000)),
    ],
)
def test_paused_functions_come_back_as_they_were_given(path: Path, functions: tuple[bytes, ...]) -> None:
    before = [Paused(b"before", True), a_job(1), Paused(b"before", False)]
    write_once(path, [*before, *(Paused(function, True) for function in functions)])
    store = SqliteStore(path)
    contents = store.load()
    assert sorted(contents.paused) == sorted(functions)
    assert jobs_of(contents) == [a_job(1)]
    store.close()


def test_a_pause_holds_until_the_function_goes_on_however_often_each_is_written(path: Path) -> None:
    write_once(path, [Paused(b"resize", True), Paused(b"resize", True)])
    write_once(path, [Paused(b"thumb", True), Paused(b"never", False)])
    store = SqliteStore(path)
    assert sorted(store.load().paused) == [b"resize", b"thumb"]
    store.write([Paused(b"resize", False)] * 2)
    assert store.load().paused == (b"thumb",)
    store.close()


@pytest.mark.parametrize("functions", [(), (b"resize",), ("größe".encode(), b"\x80\xff", b"\0")])
def test_functions_that_the_second_version_paused_stay_paused(
    path: Path, second_version: Callable[[tuple[bytes, ...]], None], functions: tuple[bytes, ...]
) -> None:
    second_version(functions)
    store = SqliteStore(path)
    contents = store.load()
    assert (jobs_of(contents), sorted(contents.paused)) == ([a_job(1)], sorted(functions))
    store.write([Paused(b"thumb", True), *(Paused(function, False) for function in functions)])
    store.close()
    store = SqliteStore(path)
    assert store.load().paused == (b"thumb",)
    store.close()


def test_a_damaged_file_of_the_second_version_keeps_what_was_paused(
    path: Path, second_version: Callable[[tuple[bytes, ...]], None]
) -> None:
    second_version((b"resize", b"thumb"))
    with path.open("r+b") as file:
        file.write(bytes(16))
    recovered = recover(path)
    assert (recovered.kept_jobs, recovered.same_paused) == (1, True)
    store = SqliteStore(path)
    assert sorted(store.load().paused) == [b"resize", b"thumb"]
    store.close()


@pytest.fixture
def second_version(path: Path) -> Callable[[tuple[bytes, ...]], None]:
    """Makes a file of the second version of the schema, which had all paused functions in one row."""

    def make(functions: tuple[bytes, ...]) -> None:
        write_once(path, [a_job(1)])
        make_old(path, 2)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("UPDATE paused SET functions = ?, crc = ?", paused_row(functions))

    return make


def test_names_of_stores_whose_jobs_were_copied_survive_a_recovery(path: Path) -> None:
    ranges = Renumbered(b"0badcafe", 1, 9, 100), Renumbered(b"0badcafe", 20, 29, 90)
    write_once(path, [a_job(1)])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        schema.write_renumbered(connection, ranges)
    assert recover(path).same_renumbered
    store = SqliteStore(path)
    assert store.load().renumbered == ranges
    store.close()


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM renumbered",
        "DELETE FROM renumbered WHERE id = 1",
        "UPDATE renumbered SET first = 2 WHERE id = 1",
    ],
)
def test_names_of_stores_whose_jobs_were_copied_are_not_lost_without_a_message(
    path: Path, damage: str
) -> None:
    write_once(path, [a_job(1)])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        schema.write_renumbered(connection, [Renumbered(b"0badcafe", 1, 9, 100)])
        connection.execute(damage)
    store = SqliteStore(path)
    with pytest.raises(StoreError, match="whose jobs were copied is not what was written"):
        store.load()
    store.close()
    assert not recover(path).same_renumbered


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE paused SET functions = '[]'",
        "DELETE FROM paused",
        "DELETE FROM paused WHERE id > 1",
        "DELETE FROM paused WHERE id = 1",
        "UPDATE paused SET functions = '[\"thumb\"]' WHERE id > 1",
    ],
)
def test_a_pause_is_not_lost_in_silence(path: Path, damage: str) -> None:
    write_once(path, [Paused(b"resize", True), a_job(1)])
    tamper(path, damage)
    store = SqliteStore(path)
    with pytest.raises(StoreError, match="is damaged: which functions are paused is not what was written"):
        store.load()
    store.close()
    recovered = recover(path)
    assert (recovered.kept_jobs, recovered.same_paused) == (1, False)
    store = SqliteStore(path)
    assert store.load().paused == ()
    store.close()


def schema_of(path: Path) -> tuple[int, bool]:
    """The version, and whether there is a table ``notes``."""
    connection = sqlite3.connect(path)
    version = schema.version_of(connection)
    tables = [name for _, name, _ in schema.tables_of(connection)]
    connection.close()
    return version, "notes" in tables


# --------------------------------------------------------------------------------------- sync, and the log


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The descriptors that are synced; by us, not by SQLite."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    return synced


def test_a_sync_syncs_the_log(path: Path, syncs: list[int]) -> None:
    store = SqliteStore(path)
    store.write([a_job(1)])
    assert syncs == []
    store.sync()
    assert [Path(f"/proc/self/fd/{fd}").readlink() for fd in syncs] == [Path(f"{path}-wal")]
    store.close()


def test_without_sync_nothing_is_synced(path: Path, syncs: list[int]) -> None:
    store = SqliteStore(path, sync="off", tuning=Tuning(checkpoint=1))
    store.write([a_job(1)])
    store.sync()
    store.log.join()
    assert syncs == []
    store.close()


def test_after_a_failed_sync_no_other_succeeds_until_the_file_is_opened_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    store = SqliteStore(path)
    store.write([a_job(1)])
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fail)
        with pytest.raises(StoreError, match=r"jobs\.db could not be synced \(Input/output error\)"):
            store.sync()
    store.write([a_job(2)])
    with pytest.raises(StoreError, match=r"could not be synced .* restart the server"):
        store.sync()  # the kernel would say that all is well
    assert store.job(1) == a_job(1)
    log = Path(f"{path}-wal").read_bytes()
    store.close()
    assert Path(f"{path}-wal").read_bytes() == log  # nobody but the next one looks whether it is whole
    store = SqliteStore(path)
    assert jobs_of(store.load()) == [a_job(1), a_job(2)]
    store.sync()
    store.close()


@pytest.fixture
def disk_that_fails(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A disk that takes no sync until the patch is undone."""

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fail)
        yield patched


def test_after_a_failed_sync_the_file_can_be_opened_again_in_place(
    path: Path, disk_that_fails: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(path, tuning=Tuning(part=8000))
    steps = store.write_ahead(a_job(3, _LARGE))
    next(steps)
    store.write([a_job(1), a_job(2), an_end(2)])
    for attempt in (store.sync, store.reopen, store.sync):
        with pytest.raises(StoreError, match="could not be synced"):
            attempt()
    store.write([a_job(4)])  # as before
    disk_that_fails.undo()
    with pytest.raises(StoreError, match="could not be synced"):
        store.sync()
    store.reopen()
    assert Path(f"{path}-wal").stat().st_size < 50_000  # it is all in the main file
    store.sync()
    drain(steps)
    store.write([a_job(3, _LARGE)])
    store.write([an_end(4, unique=b"key-2")])
    latest = store.latest(b"resize", b"key-2")
    assert latest is not None
    assert latest.number == 4
    assert with_workload(store, a_job(3)) == a_job(3, _LARGE)
    store.close()
    store = SqliteStore(path)
    assert jobs_of(store.load()) == [a_job(1), a_job(3, len(_LARGE))]
    store.close()


def test_a_file_that_lost_changes_is_not_opened_again(
    path: Path, disk_that_fails: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(path)
    store.write([a_job(1)])
    with pytest.raises(StoreError, match="could not be synced"):
        store.sync()
    store.write([a_job(2)])
    disk_that_fails.undo()
    with Path(f"{path}-wal").open("r+b") as log:  # what the disk did not take
        log.seek(1000)
        log.write(b"\xff" * 1000)
    before = Path(f"{path}-wal").read_bytes()
    for _ in range(2):
        with pytest.raises(StoreError, match="is damaged: the last changes are not in it"):
            store.reopen()
        with pytest.raises(StoreError, match="could not be opened again"):
            store.write([a_job(3)])
        with pytest.raises(StoreError, match="could not be opened again"):
            store.job(1)
    assert Path(f"{path}-wal").read_bytes() == before
    store.close()
    with pytest.raises(StoreError, match="groups of changes are not there"):
        SqliteStore(path)


def test_a_file_that_is_read_by_another_is_not_opened_again(
    path: Path, disk_that_fails: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(path)
    store.write([a_job(1)])
    with pytest.raises(StoreError, match="could not be synced"):
        store.sync()
    disk_that_fails.undo()
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM meta").fetchone()
        store.write([a_job(2)])
        with pytest.raises(StoreError, match="another program reads it"):
            store.reopen()
        assert store.job(1) == a_job(1)
    store.reopen()
    store.sync()
    store.close()


def test_a_file_whose_syncs_are_good_stays_open(path: Path) -> None:
    store = SqliteStore(path)
    store.write([a_job(1)])
    store.reopen()
    assert store.job(1) == a_job(1)
    store.close()
    with pytest.raises(StoreError, match="has been closed"):
        store.reopen()


def test_a_log_that_is_always_written_to_restarts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = Tuning(checkpoint=1 << 20, blocking_checkpoint=2 << 20, log_file=100_000)
    copy = log_module.checkpoint
    copied: list[int] = []

    def copy_while_others_write(connection: sqlite3.Connection) -> int:
        if store.log.gate.locked():
            copied.append(copy(connection))
        else:
            reader.execute("BEGIN")  # what comes after this is not copied
            reader.execute("SELECT count(*) FROM jobs").fetchone()
            store.write([a_job(next(numbers))])
            copied.append(copy(connection))
            reader.execute("COMMIT")
        return copied[-1]

    numbers = itertools.count(1)
    store = SqliteStore(path, tuning=tuning)
    reader = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    for _ in range(30):
        store.write([a_job(next(numbers), b"x" * 100_000)])
    long = store.log.length()
    monkeypatch.setattr(log_module, "checkpoint", copy_while_others_write)
    store.sync()
    store.log.join()
    assert len(copied) == 5
    assert copied == sorted(copied)
    reader.close()
    store.write([a_job(next(numbers))])
    assert store.log.length() < long / 10
    assert [job.number for job in store.load().jobs] == list(range(1, next(numbers)))
    store.close()


def test_after_an_orderly_end_there_is_one_file(path: Path) -> None:
    write_once(path, [a_job(1)])
    assert {entry.name for entry in path.parent.iterdir()} == {"jobs.db", "jobs.db-lock"}


def test_space_is_used_again(path: Path) -> None:
    store = SqliteStore(path)
    sizes: list[int] = []
    for turn in range(4):
        numbers = range(turn * 1000, turn * 1000 + 1000)
        store.write([a_job(number, b"x" * 1000) for number in numbers])
        store.write([an_end(number, b"y" * 1000, expires=1.0) for number in numbers])
        while store.expire(2.0, 100):
            pass
        store.sync()
        store.log.copy()
        sizes.append(path.stat().st_size)
    assert max(sizes) < 1.1 * sizes[0]
    store.close()


def test_what_has_no_room_in_the_main_file_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteStore(path)
    store.write([a_job(1)])
    with monkeypatch.context() as patched:
        patched.setattr(store.log.space, "allocate", _no_space)
        with pytest.raises(StoreError, match="make room"):
            store.write([a_job(2, b"x" * 2_000_000)])
        store.write([a_job(3)])
    store.write([a_job(4, b"x" * 2_000_000)])
    assert [job.number for job in store.load().jobs] == [1, 3, 4]
    store.close()


def _no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_that_is_mostly_empty_shrinks_when_it_is_opened(path: Path) -> None:
    write_once(path, [a_job(number, b"x" * 10_000) for number in range(1, 1001)])
    write_once(path, [Forgotten(number) for number in range(1, 991)])
    large = path.stat().st_size
    store = SqliteStore(path, tuning=Tuning(vacuum=1 << 20))
    assert len(jobs_of(store.load())) == 10
    assert path.stat().st_size < large / 20
    store.close()


# ------------------------------------------------------------------------------------------ large bodies

_LARGE: Final = b"0123456789" * 5000


def parts_in(path: Path) -> int:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT count(*) FROM parts").fetchone()[0])


def drain(steps: Iterator[None]) -> int:
    """How many steps there are."""
    return sum(1 for _ in steps)


def test_a_large_body_is_written_read_and_removed_in_small_transactions(path: Path) -> None:
    store = SqliteStore(path, tuning=Tuning(part=8000))
    assert drain(store.write_ahead(a_job(1, _LARGE))) >= 25
    store.write([a_job(1, _LARGE)])
    assert parts_in(path) == 25
    assert drain(store.fetch(1)) == 25
    store.write([Forgotten(1)])
    assert parts_in(path) == 25
    assert drain(store.tidy()) >= 25
    assert parts_in(path) == 0
    store.close()


def test_a_large_result_is_its_length_until_it_is_read_in_steps(path: Path) -> None:
    store = SqliteStore(path, tuning=Tuning(part=8000))
    store.write([an_end(1, _LARGE)])
    for record in store.ended(1), store.latest(b"resize", b"key-1"):
        assert record == an_end(1)._replace(body=len(_LARGE))
    assert drain(store.fetch_result(1)) == 25
    assert whole_result(store, 1) == an_end(1, _LARGE)
    store.close()


@pytest.mark.parametrize("steps", [0, 1, 24])
def test_a_large_result_may_go_or_be_replaced_while_it_is_read(path: Path, steps: int) -> None:
    store = SqliteStore(path, tuning=Tuning(part=8000))
    for next_result in None, _LARGE[::-1], b"short":
        store.write([an_end(1, _LARGE)])
        reading = store.fetch_result(1)
        for _ in range(steps):
            next(reading)
        store.write([Forgotten(1)])
        drain(store.tidy())
        if next_result is not None:
            store.write([an_end(1, next_result)])
        assert read(reading) == (None if next_result is None else an_end(1, next_result))
        store.write([Forgotten(1)])
        drain(store.tidy())
    store.close()


def test_a_body_has_256_parts_at_most(path: Path) -> None:
    store = SqliteStore(path, tuning=Tuning(part=400))
    drain(store.write_ahead(a_job(1, _LARGE)))
    store.write([a_job(1, _LARGE)])
    assert 200 < parts_in(path) <= 256
    assert with_workload(store, a_job(1)) == a_job(1, _LARGE)
    store.close()


def test_parts_without_a_job_are_removed_after_the_next_start(path: Path) -> None:
    store = SqliteStore(path, tuning=Tuning(part=8000))
    store.write([a_job(1, _LARGE), a_job(2), an_end(2, _LARGE)])
    drain(store.write_ahead(a_job(3, _LARGE)))
    drain(store.write_ahead(an_end(4, _LARGE)))
    steps = store.write_ahead(a_job(5, _LARGE))
    next(steps)
    steps.close()
    store.close()
    assert parts_in(path) > 100
    store = SqliteStore(path, tuning=Tuning(part=8000))
    assert jobs_of(store.load()) == [a_job(1, len(_LARGE))]
    assert store.untidy
    drain(store.tidy())
    assert parts_in(path) == 50
    assert with_workload(store, a_job(1)) == a_job(1, _LARGE)
    assert [store.job(3), store.ended(4), store.job(5)] == [None] * 3
    store.close()


def test_a_refused_removal_leaves_the_parts(path: Path) -> None:
    store = SqliteStore(path, tuning=Tuning(part=8000))
    store.write([a_job(1, _LARGE)])
    with pytest.raises(StoreError, match="the workload of job 9 is not in this store"):
        store.write([Forgotten(1), a_job(9, 5)])
    drain(store.tidy())
    assert with_workload(store, a_job(1)) == a_job(1, _LARGE)
    store.close()


def test_a_result_that_may_not_be_kept_leaves_no_parts(path: Path) -> None:
    store = SqliteStore(path, keep_bytes=10_000, tuning=Tuning(part=8000))
    store.write([a_job(1)])
    drain(store.write_ahead(an_end(1, _LARGE)))
    store.write([an_end(1, _LARGE)])
    drain(store.tidy())
    assert parts_in(path) == 0
    store.close()


def test_a_copy_and_a_recovered_file_have_large_bodies_and_no_loose_parts(path: Path) -> None:
    store = SqliteStore(path, tuning=Tuning(part=8000))
    store.write([a_job(1, _LARGE)])
    drain(store.write_ahead(a_job(2, _LARGE)))
    copy = path.with_name("copy.db")
    backup(path, copy)
    store.close()
    recover(path)
    for file in (path, copy):
        store = SqliteStore(file)
        assert jobs_of(store.load()) == [a_job(1, len(_LARGE))]
        drain(store.tidy())
        assert with_workload(store, a_job(1)) == a_job(1, _LARGE)
        store.close()
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT count(*) FROM parts").fetchone() == (25,)


def test_a_call_removes_results_up_to_some_bytes(path: Path) -> None:
    store = SqliteStore(path, tuning=Tuning(expire=50_000))
    store.write([an_end(number, b"x" * 20_000, expires=1.0) for number in range(1, 10)])
    assert store.expire(2.0, 1000) is True
    assert sum(store.ended(number) is not None for number in range(1, 10)) == 6
    while store.expire(2.0, 1000):
        pass
    store.close()
