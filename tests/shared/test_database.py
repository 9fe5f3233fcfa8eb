"""PostgreSQL itself is stopped, killed and restarted under load, as a whole or session by session."""

import os
import signal
import time
from collections.abc import Callable

import anyio
import pytest

from gearflow import connect
from tests.postgres.cluster import Cluster, eventually
from tests.shared.callers import Habits, callers
from tests.shared.group import LEASE, STORE_TIMEOUT, Group, refusal_of
from tests.soak.tasks import answer

LOADED = 40

ENDS: dict[str, Callable[[Cluster], None]] = {
    "immediate": lambda cluster: cluster.stop("immediate"),
    "fast": lambda cluster: cluster.stop("fast"),
    "kill": lambda cluster: cluster.kill(),
}


def sessions(group: Group) -> str:
    """A query for the pids of the servers' sessions."""
    name = group.database.name
    return f"SELECT pid FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()"


@pytest.mark.parametrize("end", ENDS)
def test_a_restart_loses_nothing_and_refuses_nothing(group: Group, end: str) -> None:
    cluster = group.database.cluster
    with callers(group.addresses, group.runs) as ledger:
        ledger.wait_for(LOADED)
        ENDS[end](cluster)
        cluster.start()
        ledger.wait_for(LOADED)
    ledger.settle(group.database)
    assert not ledger.refused
    assert not ledger.unknown


def test_nobody_adopts_anything_when_all_were_cut_off_for_longer_than_a_lease(group: Group) -> None:
    cluster = group.database.cluster
    with callers(group.addresses, group.runs) as ledger:
        ledger.wait_for(LOADED)
        before = group.owners()
        cluster.stop("immediate")
        time.sleep(1.5 * LEASE)  # how long it is away: no wait for anything
        cluster.start()
        ledger.wait_for(LOADED)
        assert before.items() <= group.owners().items()
    ledger.settle(group.database)


def test_submitters_are_refused_while_it_is_away_for_long_and_served_when_it_is_back(group: Group) -> None:
    cluster = group.database.cluster
    with callers(group.addresses, group.runs, Habits(callers=12)) as ledger:
        ledger.wait_for(LOADED)
        cluster.stop("fast")
        eventually(lambda: len(ledger.refused) > LOADED, "submitters are refused", 5 * STORE_TIMEOUT)
        eventually(lambda: all(map(refusal_of, group.addresses)), "each server says so")
        assert all("the database cannot be reached" in refusal_of(each) for each in group.addresses)
        cluster.start()
        ledger.wait_for(LOADED)
        eventually(lambda: not any(map(refusal_of, group.addresses)), "each server says that it is back")
    ledger.settle(group.database)
    assert any("the database cannot be reached" in why for why in ledger.refused.values()), ledger.refused


def test_attached_calls_go_on_while_it_is_away(group: Group) -> None:
    async def call(address: str) -> None:
        async with connect(address, discover=False):
            for number in range(10):
                assert await answer.acall(f"attached-{number}") == f"did attached-{number}"

    async def call_all() -> None:
        async with anyio.create_task_group() as calls:
            for address in group.addresses:
                calls.start_soon(call, address)

    cluster = group.database.cluster
    for leases in (0, 1.2):
        cluster.stop("immediate")
        time.sleep(leases * LEASE)  # how long it is away: no wait for anything
        anyio.run(call_all)
        cluster.start()


def test_a_server_starts_while_the_others_wait_for_postgresql(group: Group) -> None:
    cluster = group.database.cluster
    with callers(group.addresses, group.runs) as ledger:
        ledger.wait_for(LOADED)
        group.kill(0)
        cluster.restart("immediate")
        group.start(0)
        ledger.wait_for(LOADED)
    ledger.settle(group.database)


def test_sessions_that_are_terminated_lose_nothing_and_refuse_nothing(group: Group) -> None:
    database = group.database
    with callers(group.addresses, group.runs) as ledger:
        for _ in range(4):
            ledger.wait_for(LOADED)
            assert database.cluster.terminate(database=database.name)
        ledger.wait_for(LOADED)
    ledger.settle(database)
    assert not ledger.refused
    assert not ledger.unknown


def test_each_session_of_a_server_may_be_terminated_by_itself(group: Group) -> None:
    database = group.database
    with callers(group.addresses, group.runs) as ledger:
        for pid in database.psql(sessions(group), role="postgres").splitlines():
            ledger.wait_for(5)
            database.psql(f"SELECT pg_terminate_backend({pid})", role="postgres")
        ledger.wait_for(LOADED)
    ledger.settle(database)
    assert not ledger.refused


def test_a_killed_backend_that_takes_all_of_postgresql_with_it_loses_nothing(group: Group) -> None:
    database = group.database
    with callers(group.addresses, group.runs) as ledger:
        ledger.wait_for(LOADED)
        backend, *_ = database.psql(sessions(group), role="postgres").splitlines()
        os.kill(int(backend), signal.SIGKILL)
        ledger.wait_for(LOADED)
    ledger.settle(database)
    assert not ledger.refused
    assert not ledger.unknown
