"""Kept parts of streams: they are there in order until they may go, and go with their jobs."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from gearflow.broker.parser import Body
from gearflow.broker.storage import (
    Change,
    DamagedEntry,
    Forgotten,
    JobPart,
    JobRecord,
    PartsDropped,
    Rescheduled,
    Revived,
    Store,
    StoredParts,
)
from gearflow.errors import StoreError
from gearflow.stores import OVERHEAD, SqliteStore, backup, recover
from gearflow.stores.sqlite.rows import PART_OVERHEAD
from gearflow.stores.sqlite.streams import ROW_BYTES, ROW_PARTS
from gearflow.stores.sqlite.tuning import Tuning
from tests.conftest import ROOT
from tests.stores.test_contract import expire_all
from tests.stores.values import STORES, a_dead_letter, a_job, an_end, jobs_of, tamper

_ALL: Final = 1 << 30
_MANY: Final = 3 * ROW_PARTS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


def opened(path: Path, tuning: Tuning | None = None, keep_bytes: int | None = None) -> SqliteStore:
    store = SqliteStore(path, tuning=tuning, keep_bytes=keep_bytes)
    try:
        jobs_of(store.load())
    except StoreError:
        store.close()
        raise
    return store


def parts(number: int, positions: Iterable[int], body: Body = b"", run: int = 1) -> list[JobPart]:
    """Parts with these positions, each with its own body unless one is given."""
    return [JobPart(number, position, body or body_of(number, position), run) for position in positions]


def body_of(number: int, position: int) -> bytes:
    return b"%d of %d" % (position, number)


def kept(store: Store, number: int, after: int = 0) -> list[int]:
    """The positions of the parts that are kept, which are what was given."""
    found: list[int] = []
    while some := store.parts(number, after, _ALL):
        assert all(body == body_of(number, position) for position, body in some)
        found += [position for position, _ in some]
        after = found[-1]
    return found


def drain(steps: Iterator[None]) -> int:
    return sum(1 for _ in steps)


# ------------------------------------------------------------------------------------------ every store


def test_parts_come_back_in_order_from_each_position(store: Store) -> None:
    store.write([a_job(1), a_job(2)])
    store.write([JobPart(1, 1, b"one"), JobPart(2, 1, b"other"), JobPart(1, 2, memoryview(b"two"))])
    store.write([JobPart(1, 3, b""), JobPart(1, 4, bytes(range(256)))])
    assert store.parts(1, 0, _ALL) == [(1, b"one"), (2, b"two"), (3, b""), (4, bytes(range(256)))]
    assert store.parts(1, 2, _ALL) == [(3, b""), (4, bytes(range(256)))]
    assert store.parts(1, 4, _ALL) == []
    assert store.parts(2, 0, _ALL) == [(1, b"other")]
    assert store.parts(3, 0, _ALL) == []


@pytest.mark.parametrize("at_once", [1, 7, _MANY])
def test_many_parts_come_back_however_they_came(store: Store, at_once: int) -> None:
    store.write([a_job(1)])
    for start in range(1, _MANY + 1, at_once):
        store.write(parts(1, range(start, min(start + at_once, _MANY + 1))))
    assert kept(store, 1) == list(range(1, _MANY + 1))
    assert kept(store, 1, after=ROW_PARTS) == list(range(ROW_PARTS + 1, _MANY + 1))


def test_what_is_read_is_limited(store: Store) -> None:
    store.write([a_job(1), *parts(1, range(1, 101), b"x" * 100)])
    assert [position for position, _ in store.parts(1, 10, 350)] == [11, 12, 13]
    assert [position for position, _ in store.parts(1, 10, 300)] == [11, 12, 13]
    assert [position for position, _ in store.parts(1, 10, 5)] == [11]
    assert [position for position, _ in store.parts(1, 10, _ALL, 2)] == [11, 12]
    assert len(store.parts(1, 0, _ALL)) == 64


def test_parts_that_are_there_already_are_not_kept_twice(store: Store) -> None:
    store.write([a_job(1), JobPart(1, 0, b""), *parts(1, range(1, 4))])
    store.write([JobPart(1, 0, b""), *parts(1, range(2, 6))])
    store.write(parts(1, range(1, 6)))
    assert kept(store, 1) == [1, 2, 3, 4, 5]


def test_a_gap_stays_a_gap(store: Store) -> None:
    store.write([a_job(1), *parts(1, [1, 2, 5, 6])])
    store.write(parts(1, [9]))
    assert kept(store, 1) == [1, 2, 5, 6, 9]
    assert kept(store, 1, after=3) == [5, 6, 9]


def test_dropped_parts_go_and_later_ones_stay(store: Store) -> None:
    store.write([a_job(1), a_job(2), *parts(2, [1])])
    for start in range(1, 101, 10):
        store.write(parts(1, range(start, start + 10)))
    store.write([PartsDropped(1, 51)])
    assert kept(store, 1) == list(range(51, 101))
    store.write([*parts(1, [101]), PartsDropped(1, 91)])
    assert kept(store, 1) == list(range(91, 102))
    assert kept(store, 2) == [1]
    store.write([PartsDropped(3, 5), PartsDropped(2, 0)])
    assert kept(store, 2) == [1]


def test_the_position_is_known_when_all_parts_are_gone(store: Store) -> None:
    store.write([a_job(1), *parts(1, range(1, 6)), PartsDropped(1, 6)])
    for last in (5, 6, 7):
        assert kept(store, 1) == []
        assert store.load().parts == {1: StoredParts(last + 1, last, 0, 1)}
        store.write([*parts(1, [last + 1]), PartsDropped(1, last + 2)])
    store.write(parts(1, [9, 10]))
    assert store.load().parts == {1: StoredParts(9, 10, 13, 1)}


def test_parts_begin_again_in_another_run(store: Store) -> None:
    store.write([a_job(1), JobPart(1, 0, b""), *parts(1, range(1, 6))])
    assert store.load().parts == {1: StoredParts(1, 5, 30, 1)}
    store.write([PartsDropped(1), JobPart(1, 0, b"", 2)])
    assert kept(store, 1) == []
    assert store.load().parts == {1: StoredParts(0, 0, 0, 2)}
    store.write(parts(1, [1, 2], run=2))
    assert kept(store, 1) == [1, 2]
    store.write([*parts(1, [3], run=2), JobPart(1, 0, b"", 3), *parts(1, [1], run=3)])
    assert kept(store, 1) == [1]
    assert store.load().parts == {1: StoredParts(1, 1, 6, 3)}
    store.write([PartsDropped(1)])
    assert store.load().parts == {}
    store.write(parts(1, [1, 2]))
    assert kept(store, 1) == [1, 2]


def test_parts_stay_with_the_result_and_go_with_it(store: Store) -> None:
    store.write([a_job(number) for number in range(1, 5)])
    for number in range(1, 5):
        store.write(parts(number, range(1, 6)))
    store.write([*parts(1, [6]), an_end(1, expires=10.0), a_dead_letter(2, 7, expires=20.0)])
    store.write([an_end(3, expires=30.0), Rescheduled(4, 5.0, 1, 0)])
    assert kept(store, 1) == [1, 2, 3, 4, 5, 6]
    assert store.load().parts.keys() == {4}
    expire_all(store, 10.0)
    assert [kept(store, number) for number in (1, 2, 3)] == [[], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]
    store.write([Forgotten(2), Forgotten(4)])
    assert [kept(store, number) for number in (2, 3, 4)] == [[], [1, 2, 3, 4, 5], []]
    expire_all(store, 30.0)
    drain(store.tidy())
    assert kept(store, 3) == []


def test_a_dead_letter_that_runs_again_begins_without_parts(store: Store) -> None:
    store.write([a_job(1), *parts(1, range(1, 6))])
    store.write([a_dead_letter(1, 7)])
    store.write([Revived(1)])
    assert kept(store, 1) == []
    assert store.load().parts == {}
    store.write(parts(1, [1, 2]))
    drain(store.tidy())
    assert kept(store, 1) == [1, 2]
    store.write([an_end(1)])
    assert kept(store, 1) == [1, 2]


def test_a_job_and_its_whole_life_may_come_in_one_group(store: Store) -> None:
    life: list[Change] = [a_job(1), *parts(1, [1, 2]), a_dead_letter(1, 7)]
    life += [Revived(1), *parts(1, [1]), an_end(1)]
    store.write(life)
    assert kept(store, 1) == [1]
    life = [Forgotten(1), a_job(2), *parts(2, [1]), Forgotten(2)]
    life += [a_job(3), *parts(3, [1]), an_end(3)]
    store.write(life)
    assert [kept(store, number) for number in (1, 2, 3)] == [[], [], [1]]


def test_an_end_that_is_written_again_keeps_its_parts(store: Store) -> None:
    group: list[Change] = [*parts(1, [1, 2]), an_end(1)]
    store.write([a_job(1)])
    store.write(group)
    store.write(group)
    assert kept(store, 1) == [1, 2]
    expire_all(store, 1e9)
    assert kept(store, 1) == []
    assert store.ended(1) is None


def test_parts_count_as_kept_when_their_job_has_ended(make: Callable[..., Store]) -> None:
    store = make(keep_bytes=3 * OVERHEAD + 2 * PART_OVERHEAD + 4000)
    store.write([a_job(1), a_job(2), *parts(1, [1], b"x" * 2000), an_end(1, b"")])
    store.write([an_end(3, b"")])
    expire_all(store, 0.0)
    assert [store.ended(number) is None for number in (1, 3)] == [False, False]
    store.write([*parts(2, [1], b"x" * 2100), an_end(2, b"")])
    expire_all(store, 0.0)
    drain(store.tidy())
    assert [store.ended(number) is None for number in (1, 2, 3)] == [True, False, False]
    assert [store.parts(number, 0, _ALL) for number in (1, 2)] == [[], [(1, b"x" * 2100)]]


def test_a_result_is_kept_without_its_parts_if_they_are_too_many(make: Callable[..., Store]) -> None:
    store = make(keep_bytes=2 * OVERHEAD + 1000)
    store.write([a_job(1), a_job(2), an_end(3, b"")])
    store.write([*parts(1, [1, 2], b"x" * 1000), an_end(1, b"result")])
    expire_all(store, 0.0)
    assert store.ended(1) == an_end(1, b"result")
    assert [position for position, _ in store.parts(1, 0, _ALL)] in ([], [2])
    store.write([*parts(2, [1], b"x" * 10), an_end(2, b"x" * 5000)])
    expire_all(store, 0.0)
    drain(store.tidy())
    assert store.ended(2) is None
    assert store.parts(2, 0, _ALL) == []


def test_results_of_streams_are_found_among_others(store: Store) -> None:
    store.write([a_job(number) for number in range(1, 101)])
    ends: list[JobRecord | JobPart] = []
    for number in range(1, 101):
        ends += [*parts(number, [1]), an_end(number)] if number % 10 == 0 else [an_end(number)]
    store.write(ends)
    for number in range(1, 101):
        assert store.ended(number) == an_end(number)
        assert kept(store, number) == ([1] if number % 10 == 0 else [])


# ------------------------------------------------------------------------------------------- in memory


def test_in_memory_the_oldest_parts_of_the_quietest_job_go_first() -> None:
    store = STORES["memory"](Path(), 200 * PART_OVERHEAD)
    store.write([*parts(1, range(1, 40)), *parts(2, range(1, 40)), an_end(3), *parts(1, [40])])
    store.write(parts(4, range(1, 121)))
    assert store.ended(3) is None  # a result goes before parts of jobs that run
    assert kept(store, 1) == list(range(1, 41))
    assert kept(store, 2)[-1:] in ([], [39])
    assert len(kept(store, 2)) < 39
    assert kept(store, 4) == list(range(1, 121))


def test_in_memory_a_part_that_is_larger_than_all_that_may_be_kept_is_a_gap() -> None:
    store = STORES["memory"](Path(), 1000)
    store.write([JobPart(1, 1, b"1 of 1"), JobPart(1, 2, b"x" * 1000), JobPart(1, 3, b"3 of 1")])
    assert kept(store, 1) == [1, 3]


# ------------------------------------------------------------------------------------------- in a file


def rows_in(path: Path) -> int:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT count(*) FROM streams").fetchone()[0])


def test_parts_of_one_group_share_rows(path: Path) -> None:
    store = opened(path)
    store.write([a_job(1), a_job(2)])
    positions = range(1, ROW_PARTS + 1)
    store.write([part for each in positions for number in (1, 2) for part in parts(number, [each])])
    assert rows_in(path) == 2
    store.write([*parts(1, range(101, 103), b"x" * (ROW_BYTES // 2)), JobPart(1, 103, b"y")])
    assert rows_in(path) == 4
    store.close()


@pytest.mark.parametrize("tuning", [Tuning(), Tuning(loose=0)], ids=["few", "many"])
def test_parts_are_there_after_a_restart(path: Path, tuning: Tuning) -> None:
    store = opened(path, tuning)
    store.write([a_job(number) for number in range(1, 6)])
    for number in range(1, 6):
        store.write([JobPart(number, 0, b""), *parts(number, range(1, 6))])
    store.write([PartsDropped(1, 3), *parts(1, [6])])
    store.write([PartsDropped(2, 6)])
    store.write([PartsDropped(3), JobPart(3, 0, b"", 7)])
    store.write([an_end(4), a_dead_letter(5, 7)])
    store.write([Revived(5)])
    for _ in range(2):
        assert store.load().parts == {
            1: StoredParts(1, 6, 36, 1),
            2: StoredParts(6, 5, 0, 1),
            3: StoredParts(0, 0, 0, 7),
        }
        assert [kept(store, number) for number in range(1, 6)] == [[*range(1, 7)], [], [], [*range(1, 6)], []]
        store.close()
        store = opened(path, tuning)
    drain(store.tidy())
    store.write([*parts(2, [6]), *parts(3, [1], run=7), *parts(5, [1])])
    assert [kept(store, number) for number in (2, 3, 5)] == [[6], [1], [1]]
    store.close()
    opened(path).close()


def test_the_parts_of_a_job_that_is_not_there_are_not_kept(path: Path) -> None:
    store = opened(path)
    store.write([a_job(1), an_end(2), a_dead_letter(3)])
    store.write([*parts(4, [1]), *parts(2, [1]), *parts(3, [1]), *parts(1, [1])])
    assert [kept(store, number) for number in (1, 2, 3, 4)] == [[1], [], [], []]
    assert rows_in(path) == 1
    store.close()


def test_a_part_that_is_too_long_is_a_gap(path: Path) -> None:
    store = opened(path, Tuning(part=100))
    store.write([a_job(1), *parts(1, [1]), JobPart(1, 2, b"x" * 101), *parts(1, [3])])
    store.write([JobPart(1, 4, b"x" * 100), JobPart(1, 5, b"x" * 101)])
    for _ in range(2):
        assert [position for position, _ in store.parts(1, 0, _ALL)] == [1, 3, 4]
        assert store.load().parts == {1: StoredParts(1, 5, 112, 1)}
        store.close()
        store = opened(path, Tuning(part=100))
    store.close()


def test_many_parts_are_removed_in_steps(path: Path) -> None:
    store = opened(path)
    store.write([a_job(1), a_job(2), a_job(3), a_job(4)])
    for number in (1, 2, 3, 4):
        for position in range(1, 61):
            store.write([JobPart(number, position, b"x" * 60_000)])
    store.write([an_end(1), a_dead_letter(2, 7)])
    assert rows_in(path) == 240
    store.write([Forgotten(1), Revived(2), PartsDropped(3), JobPart(3, 0, b"", 2), *parts(3, [1], run=2)])
    for _ in range(2):
        assert rows_in(path) > 240
        assert store.untidy
        assert [kept(store, number) for number in (1, 2, 3)] == [[], [], [1]]
        store.close()  # what is loose is known after a restart, too
        store = opened(path)
    assert drain(store.tidy()) > 10
    assert not store.untidy
    assert rows_in(path) == 60 + 3  # a mark for each of two jobs, and one part
    assert store.load().parts == {3: StoredParts(1, 1, 6, 2), 4: StoredParts(1, 60, 3_600_000, 1)}
    assert len(store.parts(4, 0, _ALL)) == 60
    store.close()


def test_many_parts_are_dropped_in_steps(path: Path) -> None:
    store = opened(path)
    store.write([a_job(1)])
    for position in range(1, 101):
        store.write([JobPart(1, position, b"x" * 60_000)])
    store.write([PartsDropped(1, 91)])
    assert 50 < rows_in(path) < 100
    assert drain(store.tidy()) > 3
    assert [position for position, _ in store.parts(1, 0, _ALL)] == list(range(91, 101))
    assert not store.untidy
    store.close()


def test_dropped_positions_are_not_those_of_the_next_run(path: Path) -> None:
    store = opened(path)
    store.write([a_job(1)])
    for position in range(1, 21):
        store.write([JobPart(1, position, b"x" * 60_000)])
    store.write([PartsDropped(1, 20)])
    assert store.untidy
    store.write([PartsDropped(1), *parts(1, range(1, 10), run=2)])
    drain(store.tidy())
    assert kept(store, 1) == list(range(1, 10))
    store.close()


def test_a_refused_group_changes_no_parts(path: Path) -> None:
    store = opened(path, Tuning(loose=0))
    store.write([a_job(1), *parts(1, [1, 2])])
    refused = a_dead_letter(9, 7)  # whose workload is nowhere
    for changes in ([*parts(1, [3])], [PartsDropped(1)], [an_end(1)], [Forgotten(1)], [PartsDropped(1, 9)]):
        with pytest.raises(StoreError, match="job 9 "):
            store.write([*changes, refused])
        assert kept(store, 1) == [1, 2]
        drain(store.tidy())
    store.write([*parts(1, [3]), an_end(1, expires=1.0)])
    assert kept(store, 1) == [1, 2, 3]
    store.expire(1.0, 10)
    drain(store.tidy())
    assert rows_in(path) == 0
    store.close()


# ---------------------------------------------------------------------------------------------- damage


def with_three_rows(path: Path) -> None:
    """A job that is to run, and one that has ended, with three rows of parts each."""
    store = opened(path)
    store.write([a_job(1), a_job(2)])
    for start in (1, 11, 21):
        store.write([part for number in (1, 2) for part in parts(number, range(start, start + 10))])
    store.write([an_end(2)])
    store.close()


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    "damage",
    [
        "parts = CAST(substr(parts, 1, 50) || x'ff' || substr(parts, 52) AS BLOB)",
        "parts = substr(parts, 2)",
        "parts = NULL",
        "parts = 7",
        "run = 2",
        "crc = NULL",
    ],
)
def test_a_damaged_row_is_named_and_hides_no_other(path: Path, number: int, damage: str) -> None:
    with_three_rows(path)
    tamper(path, f"UPDATE streams SET {damage} WHERE number = {number} AND last = 20")
    store = opened(path)
    other = 3 - number
    assert kept(store, other) == list(range(1, 31))
    assert [position for position, _ in store.parts(number, 0, _ALL)] == list(range(1, 11))
    with pytest.raises(DamagedEntry, match=rf"the stream of job {number} .*--recover") as fault:
        store.parts(number, 10, _ALL)
    assert (fault.value.number, fault.value.function, fault.value.unique, fault.value.position) == (
        number,
        b"resize",
        b"key-%d" % number,
        20,
    )
    assert kept(store, number, after=fault.value.position) == list(range(21, 31))
    store.close()
    recovered = recover(path)
    assert not recovered.same_parts
    assert recovered[:4] == (1, 0, 1, 0)
    store = opened(path)
    assert kept(store, number) == [*range(1, 11), *range(21, 31)]
    assert kept(store, other) == list(range(1, 31))
    assert store.load().parts.keys() == {1}
    expire_all(store, 1e9)
    drain(store.tidy())
    assert kept(store, 2) == []
    store.close()
    opened(path).close()


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM streams WHERE number = 1 AND last = 20",
        "DELETE FROM streams",
        "UPDATE streams SET size = 1 WHERE number = 1 AND last = 20",
        "UPDATE meta SET records = 5 WHERE id = 2",
        "DELETE FROM meta WHERE id = 2",
    ],
)
def test_missing_rows_are_noticed_at_the_start(path: Path, damage: str) -> None:
    with_three_rows(path)
    tamper(path, damage)
    with pytest.raises(StoreError, match=r"jobs\.db is damaged: .*--recover"):
        opened(path)
    recovered = recover(path)
    assert recovered.kept_jobs == recovered.kept_records == 1
    opened(path).close()


def test_parts_whose_index_does_not_fit_are_noticed(path: Path) -> None:
    with_three_rows(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        entry = connection.execute("SELECT * FROM sqlite_master WHERE name = 'streams_number'").fetchone()
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("DELETE FROM sqlite_master WHERE name = 'streams_number'")
        connection.execute("PRAGMA writable_schema = RESET")
        connection.execute("UPDATE streams SET last = 99 WHERE number = 1 AND last = 20")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", entry)
    with pytest.raises(StoreError, match=r"the index streams_number does not fit|is damaged"):
        opened(path, Tuning(full_check=0))
    assert recover(path).same_parts is False


def test_parts_are_saved_when_the_first_page_is_damaged(path: Path) -> None:
    with_three_rows(path)
    with path.open("r+b") as file:
        file.write(bytes(4096))
    recovered = recover(path)
    assert recovered[:4] == (1, 0, 1, 0)
    assert recovered.same_parts
    store = opened(path)
    assert [kept(store, number) for number in (1, 2)] == [list(range(1, 31))] * 2
    store.close()


def test_parts_of_lost_jobs_go_after_a_recovery(path: Path) -> None:
    with_three_rows(path)
    tamper(path, "UPDATE jobs SET priority = 2")
    tamper(path, "UPDATE records SET outcome = 2")
    with pytest.raises(StoreError):
        opened(path)
    assert recover(path)[:4] == (0, 1, 0, 1)
    store = opened(path)
    drain(store.tidy())
    assert rows_in(path) == 0
    store.close()


def test_parts_are_in_a_copy(path: Path) -> None:
    with_three_rows(path)
    backup(path, path.with_name("copy.db"))
    store = opened(path.with_name("copy.db"))
    assert [kept(store, number) for number in (1, 2)] == [list(range(1, 31))] * 2
    store.close()
    tamper(path, "DELETE FROM streams WHERE number = 1 AND last = 20")
    with pytest.raises(StoreError, match="has the same damage"):
        backup(path, path.with_name("other.db"))


_WRITER: Final = """
import os, sys
from tests.stores.test_streams import opened, parts
from tests.stores.values import a_job
from pathlib import Path
store = opened(Path(sys.argv[1]))
store.write([a_job(1)])
position = 0
while True:
    store.write(parts(1, range(position + 1, position + 4)))
    position += 3
    os.write(1, b"%d\\n" % position)
"""


def test_the_position_is_exact_after_a_kill(path: Path) -> None:
    command = [sys.executable, "-c", _WRITER, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(50)]
        process.kill()
        lines += process.stdout.readlines()
    last = int([line for line in lines if line.endswith(b"\n")][-1])
    store = SqliteStore(path)
    found = store.load().parts[1]
    assert found.last in (last, last + 3)
    assert kept(store, 1) == list(range(1, found.last + 1))
    store.close()
