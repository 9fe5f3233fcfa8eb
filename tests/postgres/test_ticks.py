"""Settings and ticks of several servers in one database: one job a tick, whoever comes first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import pytest

from gearflow.broker.storage import HISTORY, Change, Edited, Forgotten, Joined, Overtaken, Setting, Ticked
from gearflow.stores.shared import Away, Beat, Fenced
from tests.postgres.adapter import SyncStore
from tests.postgres.cluster import Database
from tests.postgres.proxy import Fault, Proxy, Way, What
from tests.postgres.test_commit import steal
from tests.stores.values import a_job, an_end

UP, DOWN = frozenset({Way.UP}), frozenset({Way.DOWN})


def tick(
    store: SyncStore, n: int, before: bytes = b"1", value: bytes = b"2", name: bytes = b"nightly"
) -> Ticked:
    """A tick of a schedule, with a job of this number."""
    return Ticked(name, before, value, a_job(store.number(n), unique=b"cron:%b:%b" % (name, before)))


def set_schedule(store: SyncStore, value: bytes = b"1", name: bytes = b"nightly") -> None:
    assert store.commit(Setting(name, "schedule", value)) == [None]


def value_of(store: SyncStore, name: str = "nightly") -> str:
    return store.psql(
        f"SELECT encode(value, 'escape') FROM {{s}}.settings WHERE encode(name, 'escape') = '{name}'"
    )


def jobs(store: SyncStore) -> int:
    return int(store.psql("SELECT count(*) FROM {s}.jobs"))


def overtaken(outcomes: Sequence[object]) -> bytes:
    """The value that a tick has met."""
    (outcome,) = outcomes
    assert isinstance(outcome, Overtaken)
    return outcome.value


# ----------------------------------------------------------------------------------------------- ticks


def test_of_two_servers_that_tick_one_has_the_job_and_the_other_gets_the_value(
    one: SyncStore, other: SyncStore
) -> None:
    set_schedule(one)
    assert one.commit(tick(one, 1, value=b"one")) == [None]
    assert overtaken(other.commit(tick(other, 1, value=b"other"))) == b"one"
    assert (value_of(one), jobs(one)) == ("one", 1)


def test_a_tick_that_is_committed_again_changes_nothing(one: SyncStore) -> None:
    set_schedule(one)
    for _ in range(3):
        assert one.commit(tick(one, 1)) == [None]
        assert (value_of(one), jobs(one)) == ("2", 1)


def test_a_tick_that_was_kept_is_known_to_be_after_others_have_gone_on(
    one: SyncStore, other: SyncStore
) -> None:
    set_schedule(one)
    assert one.commit(tick(one, 1)) == [None]
    assert other.commit(tick(other, 1, b"2", b"3")) == [None]
    assert one.commit(tick(one, 1)) == [None]
    assert one.commit(an_end(one.number(1))) == [None]
    assert one.commit(tick(one, 1)) == [None]
    assert (value_of(one), jobs(one)) == ("3", 1)


def test_ticks_of_a_schedule_may_follow_each_other_in_a_group_that_comes_again(one: SyncStore) -> None:
    set_schedule(one)
    group: list[Change] = [
        tick(one, 1, b"1", b"2"),
        Ticked(b"nightly", b"2", b"3", None),
        tick(one, 2, b"3", b"4"),
        Forgotten(one.number(2)),
        Ticked(b"nightly", b"4", b"5", None),
    ]
    for _ in range(2):
        assert one.commit(*group) == [None] * len(group)
        assert (value_of(one), jobs(one)) == ("5", 1)


def test_each_tick_of_a_group_has_an_outcome_of_its_own(one: SyncStore, other: SyncStore) -> None:
    for name in (b"a", b"b", b"c", b"d"):
        set_schedule(one, name=name)
    assert other.commit(tick(other, 1, name=b"b", value=b"theirs")) == [None]
    assert other.commit(a_job(other.number(2), unique=b"cron:c:1")) == [None]
    outcomes = one.commit(*(tick(one, n, name=name) for n, name in enumerate((b"a", b"b", b"c", b"d"), 1)))
    assert overtaken(outcomes[1:2]) == b"theirs"
    assert outcomes[:1] + outcomes[2:] == [None, Joined(other.number(2)), None]
    assert [value_of(one, name) for name in "abcd"] == ["2", "theirs", "2", "2"]


def test_a_tick_whose_unique_lives_elsewhere_has_joined_and_the_schedule_goes_on(
    one: SyncStore, other: SyncStore
) -> None:
    set_schedule(one)
    theirs = a_job(other.number(1), unique=b"cron:nightly:1")
    assert other.commit(theirs) == [None]
    for _ in range(2):
        assert one.commit(tick(one, 1)) == [Joined(other.number(1))]
        assert (value_of(one), jobs(one)) == ("2", 1)


def test_a_skipped_tick_is_kept_without_a_job(one: SyncStore, other: SyncStore) -> None:
    set_schedule(one)
    skipped = Ticked(b"nightly", b"1", b"2", None)
    assert one.commit(skipped) == [None]
    assert other.commit(skipped) == [None]
    assert overtaken(other.commit(skipped._replace(value=b"3"))) == b"2"
    assert (value_of(one), jobs(one)) == ("2", 0)


def test_a_schedule_that_was_removed_does_not_tick(one: SyncStore, other: SyncStore) -> None:
    assert overtaken(one.commit(tick(one, 1))) == b""
    set_schedule(one)
    set_schedule(other, b"")
    assert overtaken(one.commit(tick(one, 1))) == b""
    assert jobs(one) == 0


def test_a_schedule_is_added_once(one: SyncStore, other: SyncStore) -> None:
    assert one.commit(Ticked(b"nightly", b"", b"one", None)) == [None]
    assert one.commit(Ticked(b"nightly", b"", b"one", None)) == [None]
    assert overtaken(other.commit(Ticked(b"nightly", b"", b"other", None))) == b"one"
    set_schedule(one, b"")
    assert other.commit(Ticked(b"nightly", b"", b"other", None)) == [None]
    assert value_of(one) == "other"


def test_a_server_that_has_lost_its_lot_does_not_tick(one: SyncStore, other: SyncStore) -> None:
    set_schedule(one)
    steal(other, one)
    with pytest.raises(Fenced):
        one.commit(tick(one, 1))
    assert (value_of(one), jobs(one)) == ("1", 0)


def test_servers_that_tick_many_schedules_at_once_store_one_job_a_tick(
    one: SyncStore, make: Callable[..., SyncStore]
) -> None:
    names = [b"s-%d" % n for n in range(60)]
    one.commit(*(Setting(name, "schedule", b"0") for name in names))
    stores = [one, make(), make()]
    together = threading.Barrier(len(stores))
    kept: list[int] = []

    def tick_all(store: SyncStore, order: Sequence[bytes]) -> None:
        for turn in range(5):
            before, value = b"%d" % turn, b"%d" % (turn + 1)
            together.wait(20)
            group = [tick(store, 100 * turn + n, before, value, name) for n, name in enumerate(order)]
            kept.append(store.commit(*group).count(None))
            together.wait(20)

    orders = names, names[::-1], [*names[30:], *names[:30]]
    threads = [
        threading.Thread(target=tick_all, args=each, daemon=True) for each in zip(stores, orders, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(kept) == 15
    assert one.psql("SELECT count(*), count(DISTINCT uniq) FROM {s}.jobs") == "300\t300"
    assert one.psql("SELECT DISTINCT encode(value, 'escape') FROM {s}.settings") == "5"


# ------------------------------------------------------------------------------------- the network is cut


@pytest.fixture
def proxy(one_database: Database) -> Iterator[Proxy]:
    with Proxy(one_database.cluster.port).running() as proxy:
        yield proxy


@pytest.mark.parametrize("way", Way, ids=["tick", "answer"])
def test_a_tick_that_is_cut_anywhere_is_kept_with_its_job_or_not_at_all(
    make: Callable[..., SyncStore], one_database: Database, proxy: Proxy, way: Way
) -> None:
    far = make(conninfo=one_database.cluster.conninfo(one_database.name, port=proxy.port))
    near = make()
    set_schedule(near, b"0")

    def tick_once(n: int) -> list[object]:
        return list(far.commit(tick(far, n, b"%d" % (n - 1), b"%d" % n)))

    assert tick_once(1) == [None]  # prepares the statement
    before = proxy.passed[way]
    assert tick_once(2) == [None]
    length = proxy.passed[way] - before - (way is Way.DOWN)
    n = 2
    for place in sorted({place * length // 29 for place in range(30)}):
        n += 1
        marker = b"cron:nightly:%d" % (n - 1)
        fault = (
            Fault(What.RESET, UP, place, marker=marker, once=True)
            if way is Way.UP
            else Fault(What.RESET, DOWN, place, once=True)
        )
        proxy.fail(fault)
        with suppress(Away):
            assert tick_once(n) == [None]
        proxy.heal()
        # Never a next time without its job, and never a job without its next time.
        assert (int(value_of(near)), jobs(near)) in ((n - 1, n - 1), (n, n))
        assert tick_once(n) == [None]
        assert (int(value_of(near)), jobs(near)) == (n, n)


def test_a_tick_of_a_server_that_is_gone_is_made_by_another(one: SyncStore, other: SyncStore) -> None:
    set_schedule(one)
    with one.hold("LOCK TABLE {s}.settings IN SHARE MODE"):
        one.shorten(0.3)
        with pytest.raises(Away):
            one.commit(tick(one, 1))
    one.close()
    outcomes = other.commit(tick(other, 1))
    assert outcomes == [None] or isinstance(outcomes[0], Overtaken)
    assert (value_of(other), jobs(other)) == ("2", 1)


# ----------------------------------------------------------------------------------------------- beats


def beat(store: SyncStore) -> Beat:
    return store.run(store.store.beat([]))


def changed(store: SyncStore) -> set[Setting]:
    found = beat(store)
    assert not found.all_settings
    return set(found.settings)


def test_a_beat_brings_the_settings_that_others_have_changed(one: SyncStore, other: SyncStore) -> None:
    limit = Setting(b"shopify", "limit", b"1")
    one.commit(limit, Setting(b"nightly", "schedule", b"1"))
    first = beat(other)
    assert first.all_settings
    assert {limit, Setting(b"nightly", "schedule", b"1")} == set(first.settings)
    changed(other)
    assert changed(other) == set()
    one.commit(tick(one, 1))
    assert changed(other) == {Setting(b"nightly", "schedule", b"2")}
    one.commit(limit._replace(value=b""))
    assert limit._replace(value=b"") in changed(other)


def test_a_setting_that_was_written_long_before_its_commit_is_not_missed(
    one: SyncStore, other: SyncStore
) -> None:
    beat(other)
    with one.hold("INSERT INTO {s}.settings (kind, name, value) VALUES ('limit', 'late', '1')") as commit:
        one.commit(Setting(b"early", "limit", b"1"))
        assert Setting(b"early", "limit", b"1") in changed(other)
        commit()
    assert Setting(b"late", "limit", b"1") in changed(other)


def test_a_new_connection_brings_all_settings(one: SyncStore, other: SyncStore) -> None:
    one.commit(Setting(b"shopify", "limit", b"1"), Setting(b"gone", "limit", b"1"))
    beat(other)
    one.commit(Setting(b"gone", "limit", b""))
    other.store.sessions[1].close()
    found = beat(other)
    assert found.all_settings
    assert [setting for setting in found.settings if setting.value] == [Setting(b"shopify", "limit", b"1")]


def test_a_server_that_starts_has_all_settings(one: SyncStore, make: Callable[..., SyncStore]) -> None:
    given = {Setting("größe".encode(), "limit", b"\xff\x00"), Setting(b"n", "schedule", b"1" * 100_000)}
    one.commit(*given, Setting(b"gone", "limit", b"1"))
    one.commit(Setting(b"gone", "limit", b""))
    assert set(make().contents.settings) == given


def test_settings_that_come_from_a_cluster_with_more_transactions_are_not_read_with_each_beat(
    one: SyncStore,
) -> None:
    one.commit(Setting(b"shopify", "limit", b"1"))
    one.psql("UPDATE {s}.settings SET changed = '1000000000000'")
    beat(one)
    assert changed(one) == {Setting(b"shopify", "limit", b"1")}
    assert one.run(one.store.expire(10)) is False
    changed(one)
    assert changed(one) == set()


def test_settings_that_were_removed_a_day_ago_are_forgotten(one: SyncStore) -> None:
    one.commit(Setting(b"a", "limit", b"1"), Setting(b"b", "limit", b"1"), Setting(b"c", "limit", b"1"))
    one.commit(Setting(b"a", "limit", b""), Setting(b"b", "limit", b""))
    one.psql("UPDATE {s}.settings SET removed = removed - interval '25 h' WHERE encode(name, 'escape') = 'a'")
    assert one.run(one.store.expire(10)) is False
    assert one.psql("SELECT encode(name, 'escape') FROM {s}.settings ORDER BY 1") == "b\nc"


# ------------------------------------------------------------------------------------------ edited jobs


def test_the_pieces_of_a_workload_go_when_it_is_replaced(make: Callable[..., SyncStore]) -> None:
    store = make(large=2000, piece=500)
    job = a_job(store.number(1), b"x" * 5000)
    for _ in store.write_ahead(job):
        pass
    assert store.commit(job) == [None]
    assert store.psql("SELECT count(*) FROM {s}.pieces") == "10"
    assert store.commit(Edited(job.number, 1, 0.0, b"", b"y" * 3000)) == [None]
    assert store.psql("SELECT count(*) FROM {s}.pieces") == "0"
    assert store.psql("SELECT count(*) FROM {s}.bodies") == "0"
    found = store.job(job.number)
    assert found is not None
    assert found.workload == b"y" * 3000


# -------------------------------------------------------------------------------------------- history


def minute(address: str, place: int, value: bytes = b"[1,{}]") -> Setting:
    """A minute of the history of a server."""
    return Setting(b"%b %d" % (address.encode(), place), HISTORY, value)


def test_the_history_of_a_server_is_there_for_the_next_one_of_its_address_and_for_nobody_else(
    make: Callable[..., SyncStore],
) -> None:
    one, other = make(address="one:4730"), make(address="one:473")
    beat(other)
    assert one.commit(minute("one:4730", 7), minute("one:4730", 8, b"[2,{}]")) == [None, None]
    assert other.commit(minute("one:473", 7)) == [None]
    assert one.commit(minute("one:4730", 7, b"[3,{}]")) == [None]
    assert changed(other) == set()
    assert one.contents.history == ()
    contents = make(address="one:4730").contents
    assert set(contents.history) == {minute("one:4730", 7, b"[3,{}]"), minute("one:4730", 8, b"[2,{}]")}
    assert contents.history_prefix == b"one:4730 "
    assert contents.settings == ()


def test_a_new_connection_brings_no_history(one: SyncStore, other: SyncStore) -> None:
    one.commit(minute("localhost:4730", 7))
    assert list(beat(other).settings) == []
    assert other.run(other.store.settings()) == ()


def test_history_is_forgotten_after_a_day(one: SyncStore) -> None:
    one.commit(minute("a:1", 7), minute("a:1", 8))
    one.psql(
        "UPDATE {s}.settings SET removed = removed - interval '25 h' WHERE encode(name, 'escape') = 'a:1 7'"
    )
    one.run(one.store.expire(10))
    assert one.psql("SELECT encode(name, 'escape') FROM {s}.settings") == "a:1 8"
