"""The clock of a machine is set by an hour while a real server runs: no tick is doubled, and none is lost."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Final

import pytest

from gearflow.protocol import server_calls
from gearflow.protocol.schedules import (
    SCHEDULE,
    SCHEDULES,
    Missed,
    ScheduledJobs,
    ScheduleInfo,
    ScheduleRequest,
    Schedules,
    ScheduleSpec,
    SchedulesRequest,
    ScheduleWhen,
)
from gearflow.server.settings import FILE_NAME
from gearflow.stores import SqliteStore
from tests.cli.shell import Running, Shell
from tests.conftest import missing
from tests.crash.test_failed_sync import ask
from tests.postgres.cluster import eventually
from tests.server.wire import Wire

_HOUR: Final = 3600
_MISSED: Final[tuple[Missed, ...]] = ("once", "skip", "all")
_MINUTES: Final = 600
"""Seconds between two ticks."""

_LIBRARIES: Final = ("usr/lib/*/faketime/libfaketimeMT.so.1", "usr/lib*/faketime/libfaketimeMT.so.1")


def library() -> str:
    """The library that has programs see another time."""
    found = next((path for pattern in _LIBRARIES for path in Path("/").glob(pattern)), None)
    if found is None:
        missing("libfaketime is not installed (Debian: apt install faketime), so no clock can be set")
    return str(found)


class Machine:
    """A machine whose clock can be set, with a server that has a schedule for each way to treat ticks that
    were missed."""

    def __init__(self, directory: Path) -> None:
        self._offset = directory / "offset"
        self.data = directory / "data"
        environment = {
            "LD_PRELOAD": library(),
            "FAKETIME_TIMESTAMP_FILE": str(self._offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self._shell = Shell(directory, environment)
        self.set_clock(0)

    def set_clock(self, seconds: int) -> None:
        """From now on the clock is so much ahead."""
        new = self._offset.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self._offset)

    def serve(self) -> AbstractContextManager[Running]:
        """A server on its file."""
        return self._shell.start("server", "-p", "0", "--data", str(self.data))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def shown(client: Wire) -> dict[str, ScheduleInfo]:
    answer = Schedules.model_validate_json(ask(client, SCHEDULES, SchedulesRequest()))
    return {info.schedule.name: info for info in answer.schedules}


def clock_of(client: Wire) -> float:
    """The time that the server sees."""
    made = ScheduledJobs.model_validate_json(
        ask(client, SCHEDULE, ScheduleRequest(do="trigger", name="once"))
    )
    request = server_calls.InfoRequest(handle=made.handle)
    info = server_calls.JobInfo.model_validate_json(ask(client, server_calls.INFO, request))
    assert info.submitted is not None
    return info.submitted


def until_counted(client: Wire) -> dict[str, ScheduleInfo]:
    """All schedules, once nothing of them is due."""

    def is_done() -> bool:
        now = clock_of(client)
        return all(info.next[0] > now for info in shown(client).values())

    eventually(is_done, "all ticks are made or counted")
    found = shown(client)
    for info in found.values():
        first = info.first // _MINUTES * _MINUTES + _MINUTES
        assert info.ticks + info.missed == (info.next[0] - first) / _MINUTES
    return found


def test_a_clock_that_is_set_by_an_hour_neither_doubles_nor_loses_a_tick(machine: Machine) -> None:
    with machine.serve() as server:
        found = re.search(r"listens on \S+:(\d+);", server.until("listens on"))
        assert found is not None
        with Wire(int(found[1])) as client:
            specs = tuple(
                ScheduleSpec(
                    name=missed,
                    function="work",
                    when=ScheduleWhen(cron="*/10 * * * *", missed=missed, overlap="allow"),
                )
                for missed in _MISSED
            )
            ask(client, SCHEDULE, ScheduleRequest(do="put", schedules=specs))
            start = clock_of(client)
            machine.set_clock(_HOUR)
            eventually(lambda: clock_of(client) > start + _HOUR - 60, "the server sees the new time")
            ahead = until_counted(client)
            assert ahead["all"].ticks >= 6
            assert ahead["once"].ticks >= 1
            assert ahead["once"].missed <= 5
            assert ahead["skip"].missed >= 5

            machine.set_clock(0)
            eventually(lambda: clock_of(client) < start + _HOUR / 2, "the server sees the old time")
            back = shown(client)
            assert {name: info.next for name, info in back.items()} == {
                name: info.next for name, info in ahead.items()
            }
            machine.set_clock(_HOUR)
            eventually(lambda: clock_of(client) > start + _HOUR - 60, "the server sees the new time again")
            again = until_counted(client)
            assert again["all"].ticks - ahead["all"].ticks <= 1  # that of the last minutes
            machine.set_clock(2 * _HOUR)
            eventually(lambda: clock_of(client) > start + 2 * _HOUR - 60, "the server sees a later time")
            last = until_counted(client)
            assert last["all"].ticks >= 12
    with closing(SqliteStore(machine.data / FILE_NAME, keep_bytes=None)) as store:
        uniques = Counter(job.unique for job in store.load().jobs)
    assert set(uniques.values()) == {1}
    assert sum(unique.startswith(b"cron:all:") for unique in uniques) == last["all"].ticks
