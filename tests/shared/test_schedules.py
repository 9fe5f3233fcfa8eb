"""Servers of a group share their schedules: each tick makes one job, whichever of them are killed."""

import json
import threading
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gearflow.protocol import packets as p
from gearflow.protocol.schedules import SCHEDULE, ScheduleRequest, ScheduleSpec, ScheduleWhen
from tests.conftest import own_postgres
from tests.postgres.cluster import eventually
from tests.server.wire import Wire
from tests.shared.group import Group

NAMES = ("a", "b", "c", "d", "e")


class Ticks:
    """The schedules of a group, as its database has them."""

    def __init__(self, group: Group, function: str) -> None:
        self._group = group
        self.function = function

    def put(self, number: int, **when: Any) -> None:
        """Put them at a server of the group."""
        plan = ScheduleWhen(every=1, overlap="allow", **when)
        specs = tuple(ScheduleSpec(name=name, function=self.function, when=plan, keep=600) for name in NAMES)
        self.call(number, ScheduleRequest(do="put", schedules=specs))

    def call(self, number: int, request: ScheduleRequest) -> None:
        """Change them at a server of the group."""
        _, _, port = self._group.addresses[number].rpartition(":")
        with closing((wire := Wire(int(port))).socket):
            wire.send(p.OptionReq(b"exceptions"))
            wire.receive()
            wire.send(p.SubmitJob(SCHEDULE, b"", request.to_wire()))
            wire.receive()
            answer = wire.receive()
        assert isinstance(answer, p.WorkComplete), answer

    def states(self) -> dict[str, Any]:
        """How far each has come."""
        rows = self._group.database.psql(
            "SELECT encode(name, 'escape'), encode(value, 'escape') FROM gearflow.settings "
            "WHERE kind = 'schedule' AND value <> ''",
            role="postgres",
        )
        found = [row.split("\t") for row in rows.splitlines()]
        return {name: json.loads(value)["state"] for name, value in found}

    def count(self) -> int:
        """How many ticks there were of all of them."""
        return sum(state.get("ticks", 0) for state in self.states().values())

    def pass_by(self, ticks: int) -> None:
        """Wait until there were so many more."""
        goal = self.count() + ticks
        eventually(lambda: self.count() >= goal, f"{ticks} ticks")

    def check(self) -> None:
        """Each tick has made one job, and none is missing."""
        for number in range(len(self._group.addresses)):
            with suppress(OSError):
                for name in NAMES:
                    self.call(number, ScheduleRequest(do="pause", name=name))
                break
        states = self.states()
        rows = self._group.database.psql(
            "SELECT encode(uniq, 'escape'), number FROM gearflow.jobs WHERE uniq LIKE 'cron:%' UNION "
            "SELECT encode(uniq, 'escape'), number FROM gearflow.records WHERE uniq LIKE 'cron:%'",
            role="postgres",
        )
        uniques = [row.split("\t")[0] for row in rows.splitlines()]
        for name in NAMES:
            times = sorted(_unix(unique) for unique in uniques if unique.startswith(f"cron:{name}:"))
            state = states[name]
            assert times == list(range(int(state["first"]) + 1, int(state["next"]))), name
            assert state["ticks"] == len(times)


def _unix(unique: str) -> int:
    return int(datetime.fromisoformat(unique.split(":", 2)[2]).timestamp())


@contextmanager
def workers(group: Group, function: str) -> Generator[None]:
    """A worker of each server, which connects again when the server is there again."""
    over = threading.Event()

    def work(address: str) -> None:
        _, _, port = address.rpartition(":")
        while not over.wait(0.05):
            with suppress(OSError, AssertionError), closing((wire := Wire(int(port))).socket):
                wire.socket.settimeout(1)
                wire.send(p.CanDo(function.encode()), p.GrabJob())
                while not over.is_set() and (packet := wire.receive()) is not None:
                    if isinstance(packet, p.JobAssign):
                        wire.send(p.WorkComplete(packet.handle, b""), p.GrabJob())
                    else:
                        wire.send(p.PreSleep() if isinstance(packet, p.NoJob) else p.GrabJob())

    threads = [threading.Thread(target=work, args=(address,), daemon=True) for address in group.addresses]
    for thread in threads:
        thread.start()
    yield
    over.set()
    for thread in threads:
        thread.join(20)


@pytest.fixture
def own_group(tmp_path: Path) -> Generator[Group]:
    """Three servers that no other test has."""
    with own_postgres() as cluster, cluster.database() as database:
        group = Group(tmp_path, database, servers=3, workers=0)
        with group.running():
            yield group


def test_each_tick_makes_one_job_whichever_servers_are_killed(own_group: Group) -> None:
    chance = Random(7)
    ticks = Ticks(own_group, "ticked")
    with workers(own_group, "ticked"):
        ticks.put(0, missed="all")
        ticks.pass_by(10)
        for _ in range(2):
            victims = chance.sample(range(3), chance.choice((1, 1, 2)))
            for number in victims:
                own_group.kill(number)
            ticks.pass_by(chance.randrange(5, 15))
            for number in victims:
                own_group.start(number)
            ticks.pass_by(5)
        for number in range(3):
            own_group.kill(number)
        own_group.start(1)
        ticks.pass_by(10)
        own_group.recover()
        before = ticks.count()
        cluster = own_group.database.cluster
        cluster.kill()
        eventually(lambda: "cannot be reached" in own_group.servers[1].log, "the database is missed")
        cluster.start()
        eventually(lambda: ticks.count() >= before + 5 * len(NAMES), "the ticks of the outage are made")
        ticks.check()
