"""Jobs with the same uniques, at all servers at once: one job each at a time, and no deadlock."""

from random import Random

import anyio

from gearflow import connect
from tests.shared.callers import KEEP, Habits, callers
from tests.shared.group import Group
from tests.shared.ledger import Ledger, Promise
from tests.soak import tasks


def test_one_job_of_a_unique_lives_at_a_time_in_the_whole_group(group: Group) -> None:
    uniques = [f"shared-{number}" for number in range(8)]
    habits = Habits(
        callers=9, pause=0.01, uniques=uniques, delays=(0,), durations=(0, 0.01, 0.05), kept=1, failing=0
    )
    with callers(group.addresses, group.runs, habits) as ledger:
        ledger.wait_for(400)
    ledger.settle(group.database)
    assert not ledger.overlapping(uniques)
    assert not ledger.errors


def test_overlapping_uniques_in_random_orders_do_not_deadlock(group: Group) -> None:
    """Each round, all servers get the same uniques at the same time, each in an order of its own."""
    ledger = Ledger(group.runs)
    logged = len(group.database.cluster.log)

    async def submit(address: str, keys: list[str]) -> None:
        Random(address + keys[0]).shuffle(keys)
        async with connect(address), anyio.create_task_group() as group:
            for key in keys:
                group.start_soon(submit_one, key)

    async def submit_one(key: str) -> None:
        ref = await tasks.note.options(unique=key, keep=KEEP).abackground(key)
        ledger.promised(Promise(key, ref.handle, kept=True))

    async def rounds() -> None:
        for number in range(10):
            async with anyio.create_task_group() as group_:
                for address in group.addresses:
                    group_.start_soon(submit, address, [f"round-{number}-{key}" for key in range(40)])

    anyio.run(rounds)
    ledger.settle(group.database)
    assert "deadlock" not in group.database.cluster.log[logged:]
    assert not ledger.overlapping({promise.key for promise in ledger.promises})


def test_uniques_go_on_while_a_server_is_killed(group: Group) -> None:
    uniques = [f"during-{number}" for number in range(8)]
    habits = Habits(callers=9, pause=0.01, uniques=uniques, delays=(0, 0.2), durations=(0, 0.05), kept=1)
    with callers(group.addresses, group.runs, habits) as ledger:
        ledger.wait_for(100)
        group.kill(0)
        ledger.wait_for(100)
        group.start(0)
        ledger.wait_for(100)
    ledger.settle(group.database)
