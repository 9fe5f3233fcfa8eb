"""The wall clocks of servers differ by minutes: due times are those of PostgreSQL."""

import time
from pathlib import Path

import anyio

from gearflow import connect
from tests.conftest import own_postgres
from tests.shared.callers import KEEP, callers
from tests.shared.group import Group
from tests.shared.ledger import Ledger, Promise
from tests.soak.tasks import note

LOADED = 40
DELAY = 1.5


def test_jobs_are_run_when_they_are_due_whatever_the_servers_clocks_say(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "runs")
    due: dict[str, float] = {}

    async def submit() -> None:
        for number, address in enumerate(group.addresses):
            async with connect(address, discover=False):
                for count in range(5):
                    key = f"due-{number}-{count}"
                    ref = await note.options(keep=KEEP, delay=DELAY, expires=60).abackground(key)
                    due[key] = time.monotonic() + DELAY
                    ledger.promised(Promise(key, ref.handle, kept=True))

    with own_postgres() as cluster:
        group = Group(tmp_path, cluster.new_database(), servers=3, workers=1, clocks=(120, -120, 0))
        with group.running():
            anyio.run(submit)
            group.kill(0)  # another one is to run its jobs, when they are due
            ledger.settle(group.database)
            with callers(group.addresses[1:], group.runs) as others:
                others.wait_for(LOADED)
                group.start(0)
                others.wait_for(LOADED)
                group.kill(1)
                others.wait_for(LOADED)
            others.settle(group.database)
    early = [mark for mark in ledger.marks() if mark.key in due and mark.at < due[mark.key] - 0.5]
    assert not early
