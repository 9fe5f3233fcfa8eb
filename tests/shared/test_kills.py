"""Servers are killed and stopped under load: what any of them acknowledged is run by the others."""

import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

from tests.conftest import own_postgres
from tests.postgres.cluster import eventually
from tests.shared.callers import Habits, callers
from tests.shared.group import Group, c_worker

LOADED = 40
"""Jobs that are acknowledged between two blows."""


def test_jobs_of_a_killed_server_are_run_through_the_others(group: Group) -> None:
    with callers(group.addresses, group.runs, Habits(only=group.addresses[0], delays=(0, 1))) as ledger:
        ledger.wait_for(LOADED)
        group.kill(0)
    assert ledger.settle(group.database).ended


def test_a_group_goes_on_with_one_server_of_three(group: Group) -> None:
    with callers(group.addresses, group.runs) as ledger:
        ledger.wait_for(LOADED)
        group.kill(0)
        ledger.wait_for(LOADED)
        group.kill(1)
        ledger.wait_for(LOADED)
    ledger.settle(group.database)


@pytest.mark.parametrize("seed", [1, 2])
def test_servers_that_are_killed_at_random_and_come_back_lose_nothing(group: Group, seed: int) -> None:
    chance = Random(seed)
    with callers(group.addresses, group.runs) as ledger:
        for _ in range(4):
            ledger.wait_for(chance.randrange(LOADED))
            victims = chance.sample(range(3), chance.choice((1, 1, 2)))
            for number in victims:
                group.kill(number)
            ledger.wait_for(chance.randrange(2 * LOADED))
            for number in victims:
                group.start(number)
    ledger.settle(group.database)


def test_one_server_that_starts_after_all_were_killed_runs_the_jobs_of_all(group: Group) -> None:
    with callers(group.addresses, group.runs, Habits(delays=(0, 2))) as ledger:
        ledger.wait_for(3 * LOADED)
    for number in range(3):
        group.kill(number)
    group.start(1)
    ledger.settle(group.database)


def test_jobs_of_a_stopped_server_wait_for_no_lease(tmp_path: Path) -> None:
    with own_postgres() as cluster, cluster.database() as database:
        group = Group(tmp_path, database, servers=2, workers=1, options=["--lease", "300s"])
        with group.running():
            with callers(
                group.addresses, group.runs, Habits(only=group.addresses[0], delays=(0, 1))
            ) as ledger:
                ledger.wait_for(LOADED)
                group.stop(0)
            ledger.settle(database)


def test_stops_and_starts_one_after_the_other_lose_nothing_and_refuse_nothing(group: Group) -> None:
    with callers(group.addresses, group.runs) as ledger:
        for number in range(3):
            ledger.wait_for(LOADED)
            group.stop(number)
            ledger.wait_for(LOADED)
            group.start(number)
    ledger.settle(group.database)
    assert not ledger.refused


def test_libgearmans_workers_run_the_jobs_of_a_killed_server(
    group: Group, program: Callable[[str], str], fresh: Callable[[], str], tmp_path: Path
) -> None:
    gearman, function, log = program("gearman"), fresh(), tmp_path / "done"
    host, _, port = group.addresses[0].rpartition(":")
    submitted = {f"job-{number}" for number in range(20)}
    command = [gearman, "-b", "-h", host, "-p", port, "-f", function]
    for payload in submitted:
        subprocess.run([*command, payload], check=True)
    group.kill(0)
    with ExitStack() as stack:
        for address in group.addresses[1:]:
            stack.enter_context(c_worker(gearman, address, function, log))
        eventually(lambda: all(payload in log.read_text() for payload in submitted), "all have run")
