"""What ``gearflow:group`` shows of the database."""

from __future__ import annotations

import time

import pytest

from tests.conftest import own_postgres
from tests.postgres.adapter import SyncStore
from tests.postgres.cluster import eventually, folder
from tests.stores.values import a_dead_letter, a_job, an_end


def test_servers_are_shown_with_their_lots_and_jobs(one: SyncStore, other: SyncStore) -> None:
    one.run(one.store.take_lots(2))
    one.commit(*(a_job(one.number(n)) for n in range(1, 8)))
    one.commit(an_end(one.number(1)), a_dead_letter(one.number(2), 7))
    other.commit(a_job(other.number(1)))
    info = other.run(other.store.group())
    assert info.group == one.contents.name.decode()
    assert info.jobs == 6
    found = {server.server: server for server in info.servers}
    assert set(found) == {one.store.server, other.store.server}
    shown = found[one.store.server]
    assert (shown.address, shown.version, shown.lots, shown.jobs) == ("localhost:4730", "1.0", 3, 5)
    assert (found[other.store.server].lots, found[other.store.server].jobs) == (1, 1)
    assert 0 <= shown.beat < 60


def test_a_lot_with_many_jobs_is_estimated(one: SyncStore) -> None:
    for start in range(0, 20_000, 4000):
        one.commit(*(a_job(one.number(n), b"", unique=b"") for n in range(start, start + 4000)))
    one.psql("ANALYZE {s}.jobs")
    assert one.run(one.store.group()).jobs == pytest.approx(20_000, rel=0.1)


def test_an_old_transaction_and_the_last_vacuum_are_shown(one: SyncStore) -> None:
    assert one.run(one.store.group()).last_vacuum is None
    one.psql("VACUUM {s}.jobs")
    with one.hold("SELECT pg_current_xact_id()"):
        eventually(lambda: one.run(one.store.group()).oldest_snapshot is not None, "it is seen")
        info = one.run(one.store.group())
    assert info.last_vacuum == pytest.approx(time.time(), abs=60)
    assert info.oldest_snapshot is not None
    assert 0 <= info.oldest_snapshot < 60


def test_standbys_are_shown_to_a_role_that_may_see_them() -> None:
    with own_postgres() as primary, folder() as directory, primary.database() as database:
        store = SyncStore(database)
        standby = primary.standby(directory)
        try:
            store.open()
            primary.psql("GRANT pg_monitor TO gearflow")
            (shown,) = store.run(store.store.group()).standbys
            assert (shown.state, shown.sync) == ("streaming", "async")
        finally:
            store.close()
            standby.stop("immediate")
