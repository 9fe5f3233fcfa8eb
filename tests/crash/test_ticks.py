"""Servers with schedules die again and again, each at a write around a tick: each tick makes one job.

The schedules are due every second, so a server lives for a second or two. A worker runs what there is.
"""

from __future__ import annotations

import json
import signal
import threading
from collections import defaultdict
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Final

import pytest

from gearflow.protocol import packets as p
from gearflow.protocol.schedules import SCHEDULE, ScheduleRequest, ScheduleSpec, ScheduleWhen
from gearflow.server.settings import FILE_NAME
from gearflow.stores import SqliteStore
from tests.crash.faults import Fault, How
from tests.crash.nest import TIMEOUT, Nest, NotStarted
from tests.server.wire import Wire

_NAMES: Final = ("a", "b", "c")
_DEATHS: Final[tuple[How, ...]] = ("killed before", "killed within", "killed after")
_WRITES: Final = 4
"""The write in which a server dies, at most."""


class Runs:
    """Which jobs were run for which unique."""

    def __init__(self) -> None:
        self.handles: defaultdict[bytes, set[bytes]] = defaultdict(set)

    def work(self, port: int) -> None:
        """Run all jobs of a server until it is gone."""
        wire = Wire(port)
        with closing(wire.socket), suppress(OSError):
            wire.send(p.CanDo(b"work"), p.GrabJobUniq())
            while (packet := wire.receive()) is not None:
                match packet:
                    case p.JobAssignUniq(handle, _, unique, _):
                        self.handles[unique].add(handle)
                        wire.send(p.WorkComplete(handle, b""), p.GrabJobUniq())
                    case p.NoJob():
                        wire.send(p.PreSleep())
                    case _:
                        wire.send(p.GrabJobUniq())


@contextmanager
def a_worker(port: int, runs: Runs) -> Generator[None]:
    """A worker in a thread, which ends with the server."""

    def work() -> None:
        with suppress(OSError):
            runs.work(port)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield
    thread.join(TIMEOUT)
    assert not thread.is_alive()


def put(nest: Nest, data: Path, sync: str) -> None:
    """Put the schedules on a server that then dies."""
    server = nest.start(data, sync=sync)
    when = ScheduleWhen(every=1, missed="all", overlap="allow")
    specs = tuple(ScheduleSpec(name=name, function="work", when=when) for name in _NAMES)
    wire = Wire(server.port)
    with closing(wire.socket):
        wire.send(p.SubmitJob(SCHEDULE, b"", ScheduleRequest(do="put", schedules=specs).to_wire()))
        assert isinstance(wire.receive(), p.JobCreated)
        assert isinstance(wire.receive(), p.WorkComplete)
    server.kill()


def die(nest: Nest, data: Path, sync: str, runs: Runs, fault: Fault) -> None:
    """One more server lives until its fault."""
    with suppress(NotStarted):  # it died while it started
        server = nest.start(data, fault, sync=sync)
        with a_worker(server.port, runs):
            assert server.wait() == -signal.SIGKILL, server.why("it died")
        assert "Traceback" not in server.log, server.log


def check(data: Path, runs: Runs) -> int:
    """Each tick of each schedule has one job, from the first one to the last. Returns how many there are."""
    with closing(SqliteStore(data / FILE_NAME, keep_bytes=None)) as store:
        contents = store.load()
        for job in contents.jobs:
            runs.handles[job.unique].add(b"%d" % job.number)
        schedules = [setting for setting in contents.settings if setting.kind == "schedule"]
    states = {schedule.name.decode(): json.loads(schedule.value)["state"] for schedule in schedules}
    made = 0
    for name in _NAMES:
        times = {_unix(unique): handles for unique, handles in runs.handles.items() if _is_of(unique, name)}
        numbers = {
            unix: {handle.rpartition(b":")[2] for handle in handles} for unix, handles in times.items()
        }
        assert all(len(each) == 1 for each in numbers.values()), numbers
        last = int(states[name]["next"]) - 1
        assert sorted(times) == list(range(int(states[name]["first"]) + 1, last + 1))
        assert states[name]["ticks"] == len(times)
        made += len(times)
    return made


def _is_of(unique: bytes, name: str) -> bool:
    return unique.startswith(b"cron:%b:" % name.encode())


def _unix(unique: bytes) -> int:
    return int(datetime.fromisoformat(unique.decode().split(":", 2)[2]).timestamp())


def kill_servers(nest: Nest, directory: Path, sync: str, deaths: int) -> None:
    data, runs = directory / "data", Runs()
    put(nest, data, sync)
    for number in range(deaths):
        place, how = number // len(_DEATHS) % _WRITES, _DEATHS[number % len(_DEATHS)]
        die(nest, data, sync, runs, Fault("write", 1 + place, how))
    made = check(data, runs)
    assert made >= deaths / _WRITES


@pytest.mark.parametrize("sync", ["batch", "always"])
def test_a_tick_makes_one_job_however_its_server_dies(nest: Nest, tmp_path: Path, sync: str) -> None:
    kill_servers(nest, tmp_path, sync, len(_DEATHS) * _WRITES)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_a_tick_makes_one_job_however_a_thousand_servers_die(nest: Nest, tmp_path: Path) -> None:
    kill_servers(nest, tmp_path, "batch", 1000)
