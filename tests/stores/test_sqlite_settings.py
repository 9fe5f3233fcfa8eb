"""Settings in a file: what is damaged is named, and nothing else is lost with it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import pytest

from gearflow.broker.storage import Edited, Setting, Ticked
from gearflow.errors import StoreError
from gearflow.stores import SqliteStore, backup, recover
from gearflow.stores.sqlite.tuning import Tuning
from tests.stores.faulty import faulty_disk
from tests.stores.values import a_job, jobs_of, tamper

MANY: Final = {
    Setting(b"limit-%d" % number, "limit", b'{"count": %d}' % number) for number in range(1000)
} | {Setting(b"nightly", "schedule", b'{"next": 1}'), Setting("größe".encode(), "function", b'{"x": "\xff"}')}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with settings and a job."""
    store = SqliteStore(tmp_path / "jobs.db")
    store.load()
    store.write([*sorted(MANY), a_job(1)])
    store.close()
    return tmp_path / "jobs.db"


def settings_in(path: Path) -> set[Setting]:
    store = SqliteStore(path)
    contents = store.load()
    assert jobs_of(contents) == [a_job(1)]
    store.close()
    return set(contents.settings)


def fault_of(path: Path) -> str:
    store = SqliteStore(path)
    with pytest.raises(StoreError) as error:
        store.load()
    store.close()
    return str(error.value)


def test_settings_are_there_after_a_restart(path: Path) -> None:
    assert settings_in(path) == MANY
    store = SqliteStore(path)
    store.load()
    store.write([Setting(b"limit-7", "limit", b""), Ticked(b"nightly", b"", b'{"next": 2}', None)])
    store.close()
    changed = {Setting(b"limit-7", "limit", b'{"count": 7}'), Setting(b"nightly", "schedule", b'{"next": 1}')}
    assert settings_in(path) == MANY - changed | {Setting(b"nightly", "schedule", b'{"next": 2}')}


@pytest.mark.parametrize(
    "damage",
    [
        "value = '{\"count\": 8}'",
        "value = NULL",
        "value = x'00'",
        "crc = crc + 1",
        "kind = 'schedule'",
        "name = 'limit-8888'",
        "id = id + 1",
    ],
)
def test_a_damaged_setting_is_named_and_lost_alone(path: Path, damage: str) -> None:
    tamper(path, f"UPDATE settings SET {damage} WHERE name = 'limit-7'")
    name = "limit-8888" if "name" in damage else "limit-7"
    kind = "schedule" if "kind" in damage else "limit"
    assert f"the setting {kind} {name} is not what was written" in fault_of(path)
    recovered = recover(path)
    assert (recovered.damaged_settings, recovered.lost_settings) == ((f"{kind} {name}",), 1)
    assert (recovered.kept_jobs, recovered.lost_jobs) == (1, 0)
    assert settings_in(path) == MANY - {Setting(b"limit-7", "limit", b'{"count": 7}')}


def test_a_missing_setting_is_noticed(path: Path) -> None:
    tamper(path, "DELETE FROM settings WHERE name IN ('limit-7', 'limit-8')")
    assert f"{len(MANY) - 2} settings are there, and not {len(MANY)}" in fault_of(path)
    recovered = recover(path)
    assert (recovered.damaged_settings, recovered.lost_settings) == ((), 2)
    assert len(settings_in(path)) == len(MANY) - 2


def test_without_its_row_of_the_metadata_settings_are_noticed(path: Path) -> None:
    tamper(path, "DELETE FROM meta WHERE id = 3")
    assert f"{len(MANY)} settings are there, and not 0" in fault_of(path)
    assert recover(path).lost_settings == 0
    assert settings_in(path) == MANY


def test_with_damaged_metadata_settings_are_saved(path: Path) -> None:
    tamper(path, "UPDATE meta SET records = records + 1")
    recovered = recover(path)
    assert (recovered.damaged_settings, recovered.lost_settings) == ((), None)
    assert settings_in(path) == MANY


def test_settings_below_a_damaged_page_are_saved(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'settings'").fetchone()
        (page,) = connection.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((root - 1) * page)
        assert file.read(1) == b"\5"  # it leads to leaves
        file.seek((root - 1) * page)
        file.write(b"\xa5" * page)
    recovered = recover(path)
    assert (recovered.damaged_settings, recovered.lost_settings) == ((), 0)
    assert settings_in(path) == MANY


def test_settings_that_were_removed_do_not_come_back_with_a_damaged_page(path: Path) -> None:
    store = SqliteStore(path)
    store.load()
    gone = {setting for setting in MANY if setting.name.startswith(b"limit-5")}
    store.write([setting._replace(value=b"") for setting in gone])
    store.close()
    left = MANY - gone
    with closing(sqlite3.connect(path)) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'settings'").fetchone()
    with path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xa5" * 4096)
    recover(path)
    assert settings_in(path) == left


def test_settings_are_saved_where_the_first_page_is_damaged(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(16))
    recovered = recover(path)
    assert (recovered.damaged_settings, recovered.lost_settings) == ((), 0)
    assert settings_in(path) == MANY


def test_a_copy_has_the_settings(path: Path) -> None:
    copy = path.with_name("copy.db")
    backup(path, copy)
    assert settings_in(copy) == MANY
    tamper(path, "UPDATE settings SET value = '[]' WHERE name = 'nightly'")
    with pytest.raises(StoreError, match="the setting schedule nightly is not what was written"):
        backup(path, path.with_name("second.db"))


def test_a_file_of_the_sixth_version_knew_of_no_settings(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("DROP TABLE settings")
        connection.execute("DELETE FROM meta WHERE id = 3")
        connection.execute("PRAGMA user_version = 6")
    assert settings_in(path) == set()
    store = SqliteStore(path)
    store.load()
    store.write([Setting(b"nightly", "schedule", b"1")])
    store.close()
    assert settings_in(path) == {Setting(b"nightly", "schedule", b"1")}


def test_a_job_that_is_edited_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "jobs.db", tuning=Tuning(part=4096))
    store.load()
    store.write([a_job(1, b"a" * 20_000)])
    steps = store.fetch(1)
    next(steps)
    store.write([Edited(1, 1, 0.0, b"", b"b" * 30_000)])
    found = None
    while found is None:
        try:
            next(steps)
        except StopIteration as end:
            found = end.value
    assert bytes(found.workload) == b"b" * 30_000
    store.close()


# ----------------------------------------------------------------------------------------- kills at a tick

TICKS: Final = 6


def ticks_until(path: Path) -> int:
    """Have a schedule tick until the disk is gone. How many ticks were acknowledged."""
    done = 0
    with suppress(StoreError):
        store = SqliteStore(path, tuning=Tuning(checkpoint=1))
        try:
            store.load()
            store.write([Setting(b"nightly", "schedule", b"0")])
            for n in range(1, TICKS + 1):
                job = a_job(n, b"w" * 3000, unique=b"cron:nightly:%d" % n)
                store.write([Ticked(b"nightly", b"%d" % (n - 1), b"%d" % n, job)])
                done = n
                store.sync()
                store.log.join()  # so that the n-th write is always the same
        finally:
            store.close()
    return done


def _done(_: int) -> None:
    pass


def test_a_kill_at_any_write_around_a_tick_leaves_the_next_time_with_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fsync", "fdatasync"):  # no power is lost here
        monkeypatch.setattr(os, name, _done)
    with faulty_disk() as disk:
        assert ticks_until(tmp_path / "sound.db") == TICKS
        total, seen = disk.count, set[int]()
        assert total > 50
        for number in range(1, total + 1):
            path = tmp_path / f"{number}.db"
            disk.count, disk.fail_at, disk.fault, disk.times, disk.failed = 0, number, "killed", 1, 0
            done = ticks_until(path)
            assert disk.failed > 0
            disk.heal()
            store = SqliteStore(path)
            contents = store.load()
            jobs = [job.number for job in contents.jobs]
            store.close()
            last = int(contents.settings[0].value) if contents.settings else 0
            assert jobs == list(range(1, last + 1)), number  # one job a tick, and none without its next time
            assert last in (done, done + 1), number
            seen.add(last)
        assert seen >= set(range(TICKS))
