"""Results in packs: each is found, and goes, as if it had a row of its own."""

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from itertools import count
from math import inf
from pathlib import Path

import pytest

from gearflow.broker.storage import DamagedEntry, Forgotten, JobRecord
from gearflow.errors import StoreError
from gearflow.stores import SqliteStore
from gearflow.stores.sqlite.packs import PACKED, Pack, PackedNumbers, pack_row
from gearflow.stores.sqlite.recovery import recover
from gearflow.stores.sqlite.rows import GENERATION, OVERHEAD, DamagedRow
from gearflow.stores.sqlite.tuning import Tuning
from tests.stores.faulty import Fault, faulty_disk
from tests.stores.values import a_dead_letter, an_end, jobs_of, tamper

MANY = range(1, 3 * PACKED)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


def opened(path: Path, keep_bytes: int | None = None, pack: int = Tuning().pack) -> SqliteStore:
    store = SqliteStore(path, keep_bytes=keep_bytes, tuning=Tuning(pack=pack))
    assert jobs_of(store.load()) == []
    return store


_PACKS = "SELECT attempt FROM records WHERE number IS NULL ORDER BY place"


def packs_in(path: Path) -> list[int]:
    """The results in each pack."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return [count for (count,) in connection.execute(_PACKS)]


def found(store: SqliteStore, numbers: Sequence[int] = MANY) -> list[int]:
    return [number for number in numbers if store.ended(number) == an_end(number)]


def test_results_that_come_together_lie_together_and_are_found_after_a_restart(path: Path) -> None:
    store = opened(path)
    store.write([an_end(number) for number in MANY])
    assert packs_in(path) == [PACKED, PACKED, PACKED - 1]
    for _ in range(2):
        assert found(store) == list(MANY)
        assert store.latest(b"resize", b"key-70") == an_end(70)
        assert [store.ended(number) for number in (0, MANY[-1] + 1)] == [None, None]
        store.close()
        store = opened(path)
    store.close()


@pytest.mark.parametrize("last", ["a row", "a pack"])
def test_the_last_result_of_a_unique_is_found_among_rows_and_packs(path: Path, last: str) -> None:
    store = opened(path)
    ends: list[JobRecord] = [an_end(number) for number in MANY]
    ends.insert(0 if last == "a pack" else len(ends), a_dead_letter(1000, unique=b"key-9"))
    store.write(ends)
    for _ in range(2):
        latest = store.latest(b"resize", b"key-9")
        assert latest is not None
        assert latest.number == (9 if last == "a pack" else 1000)
        store.close()
        store = opened(path)
    store.close()


def test_a_result_is_what_was_given(path: Path) -> None:
    store = opened(path, pack=1)
    ends = [
        an_end(1, b"", function=b"\xff\0", unique=b"\0", worker=b"", notes=b'{"a":1}', expires=inf),
        an_end(1 << 60, bytes(range(256)) * 4, unique=b"", submitted=0.0, attempt=1 << 40, deaths=1 << 40),
        an_end(3, memoryview(b"view"), unique="schlüssel".encode()),
    ]
    store.write(ends)
    assert packs_in(path) == [3]
    assert [store.ended(end.number) for end in ends] == [*ends[:2], ends[2]._replace(body=b"view")]
    store.close()


def test_results_that_expire_go_before_others_of_their_pack(path: Path) -> None:
    store = opened(path)
    store.write([an_end(number, expires=5000.0 + number % 2) for number in MANY])
    assert store.expire(4999.0, 1000) is False
    assert packs_in(path) == [PACKED, PACKED, PACKED - 1]
    assert store.expire(5000.0, 1000) is False
    for _ in range(2):
        left = [number for number in MANY if store.ended(number) is not None]
        assert left == [number for number in MANY if number % 2]
        assert store.latest(b"resize", b"key-3") == an_end(3, expires=5001.0)
        assert store.latest(b"resize", b"key-4") is None
        store.close()
        store = opened(path)
    assert store.expire(5001.0, 1000) is False
    assert [number for number in MANY if store.ended(number) is not None] == []
    store.close()


def test_one_result_can_be_forgotten_or_written_again(path: Path) -> None:
    store = opened(path)
    store.write([an_end(number) for number in MANY])
    store.write([Forgotten(5)])
    store.write([an_end(70, b"again")])
    for _ in range(2):
        assert found(store) == [number for number in MANY if number not in (5, 70)]
        assert store.ended(70) == an_end(70, b"again")
        assert store.latest(b"resize", b"key-70") == an_end(70, b"again")
        store.close()
        store = opened(path)
    store.write([Forgotten(70)])
    assert store.ended(70) is None
    store.close()


def step(store: SqliteStore, number: int) -> None:
    """One of four steps that dissolve packs."""
    if number == 0:
        store.write([Forgotten(5)])
    elif number == 2:
        store.write([an_end(7, b"again", expires=6000.0), an_end(100)])
    else:
        store.expire(5000.0, 1000)
    store.sync()
    store.log.join()


@pytest.mark.parametrize("fault", ["full", "broken", "killed"])
def test_the_nth_change_on_the_disk_fails_while_packs_are_dissolved(
    path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    def no_power_is_lost(_: int) -> None: ...

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, no_power_is_lost)
    store = opened(path)
    store.write([an_end(number, expires=5000.0 + number % 2) for number in MANY])
    store.close()
    number = refused = 0
    for number in count(1):
        copy = path.with_name(f"{number}.db")
        copy.write_bytes(path.read_bytes())
        with faulty_disk() as disk:
            store = SqliteStore(copy, tuning=Tuning(checkpoint=1, pack=1))
            jobs_of(store.load())
            disk.fail_at, disk.fault = disk.count + number, fault
            for each in range(4):
                try:
                    step(store, each)
                except StoreError:
                    refused += 1
                    if fault == "killed":
                        break
                    step(store, each)
            store.close()
            disk.heal()
        check_dissolved(copy, all_done=fault != "killed" or not disk.failed)
        if not disk.failed:
            break
    assert number > 15
    assert refused


def check_dissolved(path: Path, *, all_done: bool) -> None:
    """Nothing has gone that may not, and the rest goes."""
    store = opened(path)
    odd = {number: an_end(number, expires=5001.0) for number in MANY if number % 2}
    changed = {5: odd.pop(5), 7: odd.pop(7)}
    for number, before in changed.items():
        assert store.ended(number) in (before, None, an_end(number, b"again", expires=6000.0))
    assert {number: store.ended(number) for number in odd} == odd
    while store.expire(5000.0, 1000):
        pass
    left = {number for number in MANY if store.ended(number) is not None}
    assert odd.keys() <= left <= odd.keys() | changed.keys()
    if all_done:
        assert (store.ended(5), store.ended(7)) == (None, an_end(7, b"again", expires=6000.0))
        assert store.latest(b"resize", b"key-7") == an_end(7, b"again", expires=6000.0)
    store.close()


def test_no_more_goes_than_is_over_the_limit(path: Path) -> None:
    size = OVERHEAD + len(b"result")
    store = opened(path, keep_bytes=100 * size)
    store.write([an_end(number) for number in MANY])
    while store.expire(0.0, 1000):
        pass
    for _ in range(2):
        assert found(store) == list(MANY)[-100:]
        store.close()
        store = opened(path, keep_bytes=100 * size)
    store.close()


ALTERED = [
    "CAST(substr(body, 1, 2000) || x'ffff' || substr(body, 2003) AS BLOB)",
    "substr(body, 1, 2000) || x'ffff' || substr(body, 2003)",
    "substr(body, 1, 2000)",
    "NULL",
]


def test_uniques_are_found_after_all_older_results_have_gone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gearflow.stores.sqlite.rows.GENERATION", PACKED)
    store = opened(path)
    store.write([an_end(number, expires=1.0 + number) for number in MANY])
    for number in MANY:
        store.expire(float(number), 1000)
        assert store.latest(b"resize", b"key-%d" % number) == an_end(number, expires=1.0 + number)
    store.close()


def damage(path: Path, altered: str = ALTERED[0]) -> None:
    """Alter the second pack."""
    tamper(
        path,
        f"UPDATE records SET body = {altered} WHERE number IS NULL AND place = {PACKED + 1}",
    )


@pytest.mark.parametrize("altered", ALTERED)
def test_a_damaged_pack_is_named_and_harms_no_other(path: Path, altered: str) -> None:
    store = opened(path)
    store.write([an_end(number, expires=5000.0 + number % 2) for number in MANY])
    store.close()
    damage(path, altered)
    store = opened(path)
    with pytest.raises(DamagedEntry, match="the result of job 40") as fault:
        store.ended(40)
    assert fault.value.number == 40
    with pytest.raises(StoreError, match="is damaged"):
        store.latest(b"resize", b"key-40")
    assert store.ended(1) is not None
    for _ in range(3):  # it cannot be divided, and goes as a whole
        store.expire(5000.0, 1000)
    assert packs_in(path) == [PACKED]
    assert store.expire(5001.0, 1000) is False
    assert packs_in(path) == []
    store.close()
    opened(path).close()


def test_all_but_a_damaged_pack_is_recovered(path: Path) -> None:
    store = opened(path)
    store.write([an_end(number) for number in MANY])
    store.close()
    damage(path)
    recovered = recover(path)
    assert (recovered.kept_records, recovered.lost_records) == (2 * PACKED - 1, PACKED)
    store = opened(path)
    assert found(store) == [number for number in MANY if not PACKED < number <= 2 * PACKED]
    store.close()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM records WHERE place = 1",
        "UPDATE records SET attempt = 63 WHERE place = 1",
        "UPDATE records SET attempt = NULL WHERE place = 1",
        "UPDATE records SET number = 7 WHERE place = 1",
        "UPDATE records SET kept = kept + 1 WHERE place = 1",
        "UPDATE records SET token = token + 1 WHERE place = 1",
        "UPDATE records SET notes = zeroblob(length(notes)) WHERE place = 1",
        "UPDATE records SET ended = 1.0 WHERE place = 1",
        "UPDATE records SET expires = 1.0 WHERE place = 1",
        "UPDATE records SET dead = 1 WHERE place = 1",
        "UPDATE records SET crc = NULL WHERE place = 1",
        "UPDATE records SET notes = 7 WHERE place = 1",
    ],
)
def test_a_pack_that_is_not_what_was_written_is_noticed_at_the_start(path: Path, statement: str) -> None:
    store = opened(path)
    store.write([an_end(number) for number in MANY])
    store.close()
    tamper(path, statement)
    store = SqliteStore(path)
    with pytest.raises(StoreError, match="is damaged"):
        store.load()
    store.close()
    assert recover(path).kept_records == len(MANY) - PACKED


def test_a_pack_belongs_to_its_place() -> None:
    one, other = pack_row([an_end(1)], 1), pack_row([an_end(2)], 2)
    assert list(Pack(one)) == [an_end(1)]
    with pytest.raises(DamagedRow):
        Pack((*one[:-1], other[-1]))
    with pytest.raises(DamagedRow):
        Pack((2, *one[1:]))


def test_the_index_finds_a_number_in_each_generation() -> None:
    numbers = PackedNumbers()
    far = 1 << 40
    given = [*range(10), *range(far, far + 3 * GENERATION), 3, (1 << 33) + 3, *range(50, 60)]
    for place, number in enumerate(given):
        numbers.add([number], place)
    for number in given:
        assert given.index(number) in numbers.find(number)
    assert next(numbers.find(3)) == given.index((1 << 33) + 3) - 1
    assert list(numbers.find(12345)) == []
    numbers.forget_before(2 * GENERATION)
    assert list(numbers.find(0)) == []
    assert given.index(far + 2 * GENERATION) in numbers.find(far + 2 * GENERATION)
