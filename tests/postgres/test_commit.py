"""Groups of changes: kept once, or not at all, and only by the server that owns their lots."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
import uvloop

from gearflow.broker.storage import (
    Change,
    Edited,
    Forgotten,
    JobOf,
    JobPart,
    JobRecord,
    Joined,
    Ordered,
    PartsDropped,
    Paused,
    Rescheduled,
    Revived,
    Setting,
    StoredJob,
    StoredParts,
    Ticked,
)
from gearflow.errors import StoreError
from gearflow.protocol.uniques import fresh_unique
from gearflow.stores.postgres.rows import key_of
from gearflow.stores.shared import Away, Fenced, OtherLot
from tests.postgres.adapter import SyncStore
from tests.postgres.cluster import Database, eventually
from tests.stores.values import a_dead_letter, a_job, an_end

UNKNOWN = 999


def lot_of(store: SyncStore) -> OtherLot:
    (lot,) = store.lots
    row = store.psql(f"SELECT owner, epoch, beat FROM {{s}}.lots WHERE lot = {lot}")
    owner, epoch, beat = row.split("\t")
    return OtherLot(lot, owner, int(epoch), int(beat))


def dead(number: int) -> Change:
    """The end of a job that is there."""
    return a_dead_letter(number, 7)


def steal(thief: SyncStore, store: SyncStore) -> None:
    assert thief.run(thief.store.adopt(lot_of(store))) is not None


def everything(store: SyncStore) -> str:
    """All rows, as text."""
    tables = ("jobs", "records", "stream_parts", "paused", "orders", "bodies", "settings")
    return "\n".join(
        store.psql(f'SELECT t.* FROM {{s}}.{table} AS t ORDER BY t::text COLLATE "C"') for table in tables
    )


def group_of_all_kinds(store: SyncStore) -> list[Change]:
    """Changes of jobs 1 to 11, which are there."""
    number = store.number
    return [
        a_job(number(21), unique=b"new"),
        a_job(number(1), 7, options=b"{}"),
        Rescheduled(number(2), 5.0, 1, 0),
        an_end(number(3)),
        a_dead_letter(number(4), 7),
        a_dead_letter(number(22), b"whole"),
        Forgotten(number(5)),
        Revived(number(6)),
        JobPart(number(7), 1, b"part"),
        PartsDropped(number(8)),
        PartsDropped(number(9), 2),
        Edited(number(10), 0, 7.0, b"{}"),
        Edited(number(11), 0, 7.0, b"{}", b"other"),
        Ticked(b"nightly", b"1", b"2", a_job(number(23), unique=b"cron:nightly:1")),
        Paused(b"resize", True),
        Setting(b"shopify", "limit", b"{}"),
        Ticked(b"new", b"", b"1", None),
        Ticked(b"skipped", b"1", b"2", None),
    ]


def prepare(store: SyncStore) -> None:
    number = store.number
    store.commit(*(a_job(number(n)) for n in range(1, 12)))
    store.commit(*(Setting(name, "schedule", b"1") for name in (b"nightly", b"skipped")))
    store.commit(a_dead_letter(number(6), 7), *(JobPart(number(n), p, b"p") for n in (8, 9) for p in (1, 2)))


def test_a_server_that_has_lost_its_lot_keeps_nothing_more(one: SyncStore, other: SyncStore) -> None:
    prepare(one)
    before = everything(one)
    steal(other, one)
    for change in group_of_all_kinds(one)[:-4]:
        with pytest.raises(Fenced):
            one.commit(change)
    with pytest.raises(Fenced):
        one.commit(*group_of_all_kinds(one))
    with pytest.raises(Fenced):
        one.commit(a_job(one.number(30)), Rescheduled(one.number(30), 5.0, 1, 0))
    assert everything(one) == before


def test_a_server_that_adopts_its_lot_again_is_fenced_with_the_old_epoch(
    one: SyncStore, other: SyncStore
) -> None:
    steal(other, one)
    steal(one, one)
    with pytest.raises(Fenced):
        one.commit(a_job(one.number(1)))


def test_a_group_that_comes_twice_is_kept_once(one: SyncStore) -> None:
    prepare(one)
    group = group_of_all_kinds(one)
    assert one.commit(*group) == [None] * len(group)
    after = everything(one)
    assert one.commit(*group) == [None] * len(group)
    assert everything(one) == after


def test_a_job_that_is_forgotten_in_its_group_does_not_come_back_when_the_group_does(one: SyncStore) -> None:
    group: list[Change] = [a_job(one.number(1)), a_job(one.number(2)), Forgotten(one.number(1))]
    for _ in range(2):
        assert one.commit(*group) == [None] * 3
        assert one.job(one.number(1)) is None


def test_a_history_that_is_written_again_ends_in_the_same(one: SyncStore) -> None:
    number = one.number(1)
    groups: list[list[Change]] = [
        [a_job(number)],
        [Rescheduled(number, 9.0, 1, 0), JobPart(number, 1, b"part")],
        [a_dead_letter(number, 7)],
        [Revived(number)],
        [an_end(number)],
        [a_job(one.number(2), unique=b"key-1")],
    ]
    for group in groups:
        one.commit(*group)
    after = everything(one)
    for start in range(len(groups)):
        for group in groups[start:]:
            one.commit(*group)
        assert everything(one) == after


def test_a_job_whose_unique_lives_elsewhere_has_joined(one: SyncStore, other: SyncStore) -> None:
    assert one.commit(a_job(one.number(1), unique=b"k")) == [None]
    group = [a_job(other.number(1)), a_job(other.number(2), unique=b"k"), a_job(other.number(3))]
    assert other.commit(*group) == [None, Joined(one.number(1)), None]
    assert other.job(other.number(2)) is None
    assert other.job(other.number(3)) is not None
    assert other.commit(*group) == [None, Joined(one.number(1)), None]
    other_function = a_job(other.number(4), unique=b"k", function=b"other")
    assert other.commit(other_function) == [None]


@pytest.mark.parametrize("end", [an_end, Forgotten, dead])
def test_a_unique_is_free_when_its_job_has_ended(
    one: SyncStore, other: SyncStore, end: Callable[[int], Change]
) -> None:
    one.commit(a_job(one.number(1), unique=b"k"))
    one.commit(end(one.number(1)))
    assert other.commit(a_job(other.number(1), unique=b"k")) == [None]
    assert one.commit(a_job(one.number(2), unique=b"k")) == [Joined(other.number(1))]


def test_a_unique_that_ends_in_the_group_in_which_it_comes_again_is_stored(one: SyncStore) -> None:
    one.commit(*(a_job(one.number(n), unique=b"k%d" % n) for n in range(1, 50)))
    group: list[Change] = [an_end(one.number(n)) for n in range(1, 50)]
    group += [a_job(one.number(100 + n), unique=b"k%d" % n) for n in range(1, 50)]
    assert one.commit(*group) == [None] * len(group)
    assert all(one.job(one.number(100 + n)) is not None for n in range(1, 50))


def test_uniques_that_mean_nothing_do_not_join(one: SyncStore, other: SyncStore) -> None:
    fresh = fresh_unique().encode()
    for unique, workload in ((b"", b"x"), (fresh, b"x"), (b"-", b"")):
        for store in (one, other):
            number = store.number(int(store.psql("SELECT count(*) + 1 FROM {s}.jobs")))
            assert store.commit(a_job(number, workload, unique=unique)) == [None]


def test_equal_workloads_join_by_a_dash(one: SyncStore, other: SyncStore) -> None:
    assert one.commit(a_job(one.number(1), b"same", unique=b"-")) == [None]
    assert other.commit(a_job(other.number(1), b"other", unique=b"-")) == [None]
    assert other.commit(a_job(other.number(2), b"same", unique=b"-")) == [Joined(one.number(1))]


def test_a_change_without_its_workload_says_so_and_the_others_are_kept(one: SyncStore) -> None:
    group: list[Change] = [a_job(one.number(1)), a_dead_letter(one.number(2), 7), a_job(one.number(3), 7)]
    first, second, third = one.commit(*group)
    assert first is None
    assert f"job {one.number(2)} " in str(second)
    assert f"job {one.number(3)} " in str(third)
    assert one.job(one.number(1)) is not None
    assert one.ended(one.number(2)) is None


def test_a_group_with_bad_data_keeps_nothing(one: SyncStore) -> None:
    for bad in (a_job(one.number(2), attempt=1 << 31), a_job(one.number(2), priority=1 << 15)):
        with pytest.raises(StoreError, match="does not fit"):
            one.commit(a_job(one.number(1)), bad)
    assert one.job(one.number(1)) is None
    one.psql("ALTER TABLE {s}.jobs ADD CHECK (function <> 'evil')")
    with pytest.raises(StoreError, match="check constraint"):
        one.commit(
            a_job(one.number(1)), Rescheduled(one.number(1), 0, 1, 0), a_job(one.number(2), function=b"evil")
        )
    assert one.job(one.number(1)) is None
    assert one.commit(a_job(one.number(1))) == [None]


def test_dead_letters_of_other_lots_can_be_forgotten_and_live_jobs_not(
    one: SyncStore, other: SyncStore
) -> None:
    one.commit(*(a_job(one.number(n)) for n in (1, 2, 3)))
    one.commit(a_dead_letter(one.number(1), 7), an_end(one.number(2)))
    outcomes = other.commit(*(Forgotten(one.number(n)) for n in (1, 2, 3)))
    assert outcomes == [None, *(f"job {one.number(n)} was replayed meanwhile" for n in (2, 3))]
    assert other.commit(Forgotten(one.number(1))) == [None]
    assert [one.job(one.number(n)) is None for n in (1, 2, 3)] == [True, True, False]
    assert [one.ended(one.number(n)) is None for n in (1, 2)] == [True, False]


def test_a_dead_letter_that_is_gone_is_not_revived(one: SyncStore, other: SyncStore) -> None:
    letters = [one.number(n) for n in (1, 2)]
    one.commit(*(a_dead_letter(number, b"x") for number in letters))
    forgets = "; ".join(
        f"DELETE FROM {{s}}.{table} WHERE number = {letters[0]}" for table in ("records", "jobs")
    )
    outcomes: list[str | Joined | None] = []
    revive = threading.Thread(target=lambda: outcomes.extend(one.commit(*map(Revived, letters))))
    with one.hold(forgets) as commit:
        revive.start()
        waits = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%rev AS%'"
        )
        eventually(lambda: one.psql(waits) == "1", "it waits for the end of the other transaction")
        commit()
        revive.join(20)
    gone, revived = outcomes
    assert f"job {letters[0]} is not in the store any more" in str(gone)
    assert revived is None
    assert one.commit(Revived(letters[1])) == [None]


def test_other_changes_of_other_lots_are_a_bug(one: SyncStore, other: SyncStore) -> None:
    with pytest.raises(AssertionError):
        other.commit(Rescheduled(one.number(1), 0.0, 1, 0))


def test_pauses_are_of_one_function_each(one: SyncStore, other: SyncStore) -> None:
    changed = one.contents.changed
    one.commit(Paused(b"resize", True), Paused(b"other", True))
    other.commit(Paused(b"third", True), Paused(b"third", False), Paused(b"other", False))
    assert one.run(one.store.paused()) == {b"resize"}
    now = one.run(one.store.beat([])).changed
    assert now > changed
    one.commit(Paused(b"resize", True), Paused(b"never", False))
    assert one.run(one.store.beat([])).changed == now


def test_parts_of_a_stream_begin_again_with_a_run(one: SyncStore) -> None:
    number = one.number(1)
    one.commit(a_job(number), JobPart(number, 0, b"", 1), JobPart(number, 1, b"a"), JobPart(number, 2, b"b"))
    one.commit(JobPart(number, 3, b"c"), JobPart(number, 0, b"", 2), JobPart(number, 1, b"d", 2))
    assert one.parts(number, 0, 1000) == [(1, b"d")]

    async def adopted() -> dict[int, StoredParts]:
        (lot,) = one.lots
        return {n: parts async for part in one.store.jobs_of(lot, 0) for n, parts in part.parts.items()}

    assert one.run(adopted()) == {number: StoredParts(1, 1, 1, 2)}
    one.commit(JobPart(number, 0, b"", 3))
    assert one.run(adopted()) == {number: StoredParts(0, 0, 0, 3)}
    one.commit(PartsDropped(number))
    assert one.run(adopted()) == {}


def test_the_last_part_is_known_after_all_were_dropped(one: SyncStore) -> None:
    number = one.number(1)
    one.commit(a_job(number), *(JobPart(number, position, b"x") for position in range(1, 6)))
    one.commit(PartsDropped(number, 4))
    assert [position for position, _ in one.parts(number, 0, 1000)] == [4, 5]
    one.commit(PartsDropped(number, 99))
    assert [position for position, _ in one.parts(number, 0, 1000)] == [5]


def test_orders_reach_the_owner_until_it_has_done_them(one: SyncStore, other: SyncStore) -> None:
    one.commit(a_job(one.number(1)))
    other.commit(Ordered(one.number(1), "cancel"), Ordered(one.number(1), "replay"))
    other.commit(Ordered(one.number(1), "cancel"))  # as after a lost answer
    assert other.run(other.store.beat([])).orders == []
    orders = one.run(one.store.beat([])).orders
    assert [(order.number, order.verb) for order in orders] == [
        (one.number(1), "cancel"),
        (one.number(1), "replay"),
    ]
    assert one.run(one.store.beat([])).orders == orders
    assert one.run(one.store.beat([orders[0].id])).orders == orders[1:]


def test_two_servers_with_the_same_uniques_do_not_wait_for_each_other(
    one: SyncStore, other: SyncStore, one_database: Database
) -> None:
    """Both wait while a third transaction has one of the keys. If each has another then, neither goes on."""
    by_key = {key_of(b"resize", unique, b"") or b"": unique for unique in (b"1", b"2", b"3", b"4", b"5")}
    keys = sorted(by_key)
    uniques = [by_key[key] for key in keys]
    outcomes: dict[SyncStore, list[str | Joined | None]] = {}

    def submit(store: SyncStore, uniques: list[bytes]) -> None:
        outcomes[store] = store.commit(*(a_job(store.number(n), unique=u) for n, u in enumerate(uniques, 1)))

    held = (
        "INSERT INTO {s}.jobs (number, key, submitted, due, attempt, deaths, priority, function, uniq, "
        f"options) VALUES (1, '{keys[2].hex()}', 0, 0, 0, 0, 0, '', '', '')"
    )
    threads = [
        threading.Thread(target=submit, args=given) for given in ((one, uniques), (other, uniques[::-1]))
    ]
    with one.hold(held):
        for thread in threads:
            thread.start()
        waits = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
            "AND datname = current_database() AND query LIKE '%INSERT%'"
        )
        eventually(lambda: one.psql(waits) == "2", "both wait")
    for thread in threads:
        thread.join(20)
    assert sorted(outcome is None for outcome in outcomes[one] + outcomes[other]) == [False] * 5 + [True] * 5
    assert "deadlock detected" not in one_database.cluster.log


def test_a_group_of_a_table_that_is_gone_is_refused_and_one_after_it_is_not(one: SyncStore) -> None:
    one.psql("ALTER TABLE {s}.records RENAME TO gone")
    with pytest.raises(StoreError, match="has somebody changed the schema") as caught:
        one.commit(an_end(one.number(1)))
    assert not isinstance(caught.value, Away)
    assert one.commit(a_job(one.number(1))) == [None]
    one.psql("ALTER TABLE {s}.gone RENAME TO records")
    assert one.commit(an_end(one.number(1))) == [None]


@pytest.mark.parametrize(
    "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
def test_a_group_may_be_larger_than_what_the_kernel_takes_at_once(
    make: Callable[..., SyncStore], new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    store = make(new_loop=new_loop, timeout=30.0)
    body = bytes(range(256)) * 1000
    numbers = [store.number(n) for n in range(1, 101)]
    assert store.commit(*(a_job(number, body) for number in numbers)) == [None] * 100
    answers = store.run(store.store.answer([JobOf(number) for number in numbers]))
    assert answers == [a_job(number, body) for number in numbers]


def test_pieces_go_with_what_they_are_of(make: Callable[..., SyncStore]) -> None:
    store = make(large=1000, piece=400)
    number, body = store.number, b"0123456789" * 150

    def count() -> str:
        return store.psql("SELECT (SELECT count(*) FROM {s}.bodies), (SELECT count(*) FROM {s}.pieces)")

    def write(*changes: StoredJob | JobRecord) -> None:
        for change in changes:
            store.run(store.store.write_ahead(change))
        assert store.commit(*changes) == [None] * len(changes)

    write(*(a_job(number(n), body) for n in range(1, 6)))
    assert count() == "5\t20"
    write(an_end(number(1), body), an_end(number(2), body))
    assert count() == "5\t20"
    store.commit(Forgotten(number(3)), a_dead_letter(number(4), len(body)))
    assert count() == "4\t16"
    assert store.job(number(4)) == a_dead_letter(number(4), body).letter
    store.commit(Revived(number(4)))
    assert store.job(number(4)) == a_job(number(4), body)
    store.commit(Forgotten(number(1)), a_dead_letter(number(5), len(body)))
    assert count() == "3\t12"
    assert store.expire(1e9, 100) is False
    assert count() == "1\t4"
    store.run(store.store.write_ahead(a_job(number(6), body)))
    store.psql("UPDATE {s}.bodies SET made = made - interval '1 day'")
    for _ in range(100):
        store.expire(0.0, 100)
    assert count() == "1\t4"
    assert store.job(number(4)) == a_job(number(4), body)
