"""The network before PostgreSQL fails: for one server or all, on one way or both, at any byte."""

import time
from contextlib import ExitStack

import anyio
import pytest

from gearflow import connect
from tests.postgres.cluster import eventually
from tests.postgres.proxy import Fault, Way, What
from tests.shared.callers import KEEP, Habits, callers
from tests.shared.group import LEASE, Group
from tests.shared.ledger import Ledger, Promise
from tests.soak import tasks

LOADED = 40

WAYS = {
    "both": frozenset(Way),
    "up": frozenset({Way.UP}),
    "down": frozenset({Way.DOWN}),
}


@pytest.mark.parametrize("what", [What.HOLD, What.SWALLOW], ids=lambda what: what.name.lower())
@pytest.mark.parametrize("ways", WAYS)
def test_a_server_that_is_cut_off_loses_its_lots_and_nothing_else(
    group: Group, what: What, ways: str
) -> None:
    with callers(group.addresses, group.runs, Habits(delays=(0, 1, 2, 4), failing=0)) as ledger:
        ledger.wait_for(2 * LOADED)
        mine = group.lots_of(0)
        with group.proxies[0].failing(Fault(what, WAYS[ways])):
            eventually(lambda: not mine & group.lots_of(0), "its lots are adopted", 10 * LEASE)
            adopted = time.monotonic()
            ledger.wait_for(LOADED)
        ledger.wait_for(LOADED)
    ledger.settle(group.database)
    assert not ledger.given_out_twice(adopted)


@pytest.mark.parametrize("what", [What.HOLD, What.SWALLOW, What.RESET], ids=lambda what: what.name.lower())
def test_nobody_adopts_anything_when_all_are_cut_off(group: Group, what: What) -> None:
    with callers(group.addresses, group.runs) as ledger, ExitStack() as cut:
        ledger.wait_for(LOADED)
        before = group.owners()
        for proxy in group.proxies:
            cut.enter_context(proxy.failing(what))
        time.sleep(1.5 * LEASE)  # how long they are cut off: no wait for anything
        cut.close()
        ledger.wait_for(LOADED)
        assert before.items() <= group.owners().items()
    ledger.settle(group.database)


def test_connections_that_are_reset_lose_nothing_and_refuse_nothing(group: Group) -> None:
    with callers(group.addresses, group.runs) as ledger:
        for number in (0, 1, 2, 0, 1, 2):
            ledger.wait_for(LOADED // 2)
            with group.proxies[number].failing(What.RESET):
                pass
        ledger.wait_for(LOADED)
    ledger.settle(group.database)
    assert not ledger.refused
    assert not ledger.unknown


def test_a_server_on_a_slow_line_loses_nothing(group: Group) -> None:
    with callers(group.addresses, group.runs) as ledger:
        ledger.wait_for(LOADED)
        with group.proxies[0].failing(What.SLOW):
            ledger.wait_for(LOADED)
            time.sleep(LEASE)  # how long it is slow: no wait for anything
        ledger.wait_for(LOADED)
    ledger.settle(group.database)


@pytest.mark.parametrize(("what", "places"), [(What.RESET, 24), (What.SWALLOW, 3)], ids=["reset", "swallow"])
def test_a_submission_is_settled_wherever_its_group_is_cut(group: Group, what: What, places: int) -> None:
    """After so many bytes of the write with the job in it, from none of them to all."""
    proxy, ledger = group.proxies[0], Ledger(group.runs)
    length = 1500  # more than the group has, so that the last ones get through, or nearly

    async def submit(number: int) -> None:
        key = f"marked-{what.name}-{number}-{time.monotonic_ns()}"
        after = number * length // (places - 1)
        proxy.fail(Fault(what, marker=key.encode(), after=after, once=True))
        async with connect(group.addresses[0]):
            ref = await tasks.note.options(keep=KEEP).abackground(key)
        ledger.promised(Promise(key, ref.handle, kept=True))
        proxy.heal()

    async def submit_all() -> None:
        for number in range(places):
            await submit(number)

    anyio.run(submit_all)
    ledger.settle(group.database)
