"""A server is stopped by SIGSTOP, or its machine sleeps: what it does when it goes on harms nobody."""

import time

import pytest

from tests.postgres.cluster import eventually
from tests.shared.callers import Habits, callers
from tests.shared.group import LEASE, Group

LOADED = 40


def test_a_pause_within_the_lease_costs_no_ownership(group: Group) -> None:
    with callers(group.addresses, group.runs) as ledger:
        ledger.wait_for(LOADED)
        before = group.owners()
        with group.paused(0):
            time.sleep(LEASE / 4)  # how long the pause is: no wait for anything
        ledger.wait_for(LOADED)
        assert before.items() <= group.owners().items()
    ledger.settle(group.database)


@pytest.mark.parametrize("more", [0, LOADED, 8 * LOADED])
def test_a_server_that_slept_past_its_lease_finds_its_jobs_with_others(group: Group, more: int) -> None:
    with callers(group.addresses, group.runs) as ledger:
        ledger.wait_for(LOADED)
        mine = group.lots_of(0)
        assert mine
        with group.paused(0):
            eventually(lambda: not mine & group.lots_of(0), "its lots are adopted", 10 * LEASE)
            ledger.wait_for(more)
        eventually(lambda: bool(group.lots_of(0)), "it has new lots")
        ledger.wait_for(LOADED)
    with callers(group.addresses, group.runs, Habits(only=group.addresses[0])) as later:
        later.wait_for(LOADED)
    ledger.settle(group.database)
    later.settle(group.database)


def test_two_of_three_that_sleep_past_their_lease_lose_nothing(group: Group) -> None:
    with callers(group.addresses, group.runs) as ledger:
        ledger.wait_for(LOADED)
        both = group.lots_of(0) | group.lots_of(1)
        with group.paused(0), group.paused(1):
            eventually(lambda: both <= group.lots_of(2), "the third has adopted them", 10 * LEASE)
        ledger.wait_for(LOADED)
    ledger.settle(group.database)
