"""The disk does not take what was written (fdatasync: EIO): no job is promised any more, all else goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

import pytest

from gearflow.protocol import packets as p
from gearflow.protocol import server_calls
from gearflow.protocol.schedules import (
    SCHEDULE,
    SCHEDULES,
    ScheduleInfo,
    ScheduleRequest,
    Schedules,
    ScheduleSpec,
    SchedulesRequest,
    ScheduleWhen,
)
from gearflow.server.settings import FILE_NAME
from tests.cli.shell import Running, Shell, outcome
from tests.crash.caller import Caller
from tests.crash.ledger import Ledger
from tests.crash.test_full_disk import answer
from tests.server.wire import TIMEOUT, Wire

_BREAKABLE: Final = """\
import errno, os

_fdatasync = os.fdatasync

def fdatasync(fd):
    if os.path.exists(os.environ["DISK_IS_BROKEN"]):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    _fdatasync(fd)

os.fdatasync = fdatasync
"""
"""The interpreter runs it first (as ``sitecustomize``): a disk that breaks when a file is there."""


class Machine:
    """A real ``gearflow server`` and the disk below it."""

    def __init__(self, directory: Path) -> None:
        self._broken = directory / "broken"
        self.data = directory / "data"
        (directory / "site").mkdir()
        (directory / "site" / "sitecustomize.py").write_text(_BREAKABLE)
        path = os.pathsep.join([str(directory / "site"), os.environ.get("PYTHONPATH", "")])
        self._shell = Shell(directory, {"PYTHONPATH": path, "DISK_IS_BROKEN": str(self._broken)})

    @contextmanager
    def serve(self, sync: str) -> Generator[tuple[Running, int]]:
        """A server on its file, and the port."""
        arguments = ["-p", "0", "--data", str(self.data), "--sync", sync]
        with self._shell.start("server", *arguments) as server:
            found = re.search(r"listens on \S+:(\d+);", server.until("listens on"))
            assert found is not None
            yield server, int(found[1])

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run another command: the exit code, and what it said on stdout and on stderr."""
        return outcome(self._shell.run(*arguments))

    def break_disk(self) -> None:
        self._broken.touch()

    def mend_disk(self) -> None:
        self._broken.unlink()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def submit(client: Wire, payload: bytes) -> p.JobCreated | p.Error:
    created = answer(client, p.SubmitJobBg(b"work", b"", payload))
    assert isinstance(created, p.JobCreated | p.Error)
    return created


def until_refused(client: Wire, sync: str) -> tuple[list[bytes], p.Error]:
    """Submit until it is refused: the handles until then, of which there is none where each job is synced."""
    accepted: list[bytes] = []
    while isinstance(created := submit(client, b"%d" % (len(accepted) + 1)), p.JobCreated):
        assert sync == "batch"
        accepted.append(created.handle)
    return accepted, created


@pytest.mark.parametrize("sync", ["always", "batch"])
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_promised_that_the_disk_does_not_have(
    machine: Machine, tmp_path: Path, sync: str, end: signal.Signals
) -> None:
    with machine.serve(sync) as (server, port), Wire(port) as client, Wire(port) as worker:
        worker.send(p.CanDo(b"attached"), p.CanDo(b"ended"))
        client.send(p.SubmitJobBg(b"ended", b"", b""), p.SubmitJobBg(b"work", b"", b"0"))
        ended, first = client.handle(), client.handle()
        machine.break_disk()
        accepted, refusal = until_refused(client, sync)
        for error in (refusal, submit(client, b"the next one")):
            assert isinstance(error, p.Error)
            assert error.code == b"QUEUE_ERROR"
            assert re.search(
                rb"the job could not be stored: \S+%b could not be synced \(Input/output error\): .*"
                rb"restart the server" % re.escape(FILE_NAME.encode()),
                error.text,
            )
        request = server_calls.SubmitRequest(function="work", detached=True)
        with Caller(port, Ledger(tmp_path / "runs")) as caller:
            assert caller.ask(server_calls.SUBMIT, request)["type"] == "gearflow:store"

        created = answer(client, p.SubmitJobHigh(b"attached", b"", b"now"))
        assert isinstance(created, p.JobCreated)
        assert answer(worker, p.GrabJob()) == p.JobAssign(created.handle, b"attached", b"now")
        worker.send(p.WorkComplete(created.handle, b"done"))
        assert client.receive() == p.WorkComplete(created.handle, b"done")
        assert answer(worker, p.GrabJob()) == p.JobAssign(ended, b"ended", b"")
        worker.send(p.WorkComplete(ended, b"well"))
        with Caller(port, Ledger(tmp_path / "runs")) as caller:
            info = caller.ask(server_calls.INFO, server_calls.InfoRequest(handle=ended.decode()))
            assert info["state"] == "completed"

        server.signal(end)
        _, logged = server.end()
    lines = logged.splitlines()
    assert len(lines) == 1, logged
    assert "ERROR" in lines[0]
    assert f"{machine.data / FILE_NAME} could not be synced (Input/output error)" in lines[0]
    assert "restart the server" in lines[0]

    if end is signal.SIGTERM:  # SQLite would have copied it without looking whether it is what was written
        assert (machine.data / f"{FILE_NAME}-wal").stat().st_size > 0
    machine.mend_disk()
    with machine.serve(sync) as (_, port), Wire(port) as client, Wire(port) as worker:
        worker.send(p.CanDo(b"work"), p.CanDo(b"ended"))
        for number, handle in enumerate([first, *accepted]):
            assert answer(worker, p.GrabJob()) == p.JobAssign(handle, b"work", b"%d" % number)
        assert answer(worker, p.GrabJob()) == p.NoJob()  # neither what was refused nor what had ended
        assert isinstance(submit(client, b"all is well"), p.JobCreated)


@pytest.mark.parametrize("sync", ["always", "batch"])
def test_an_operator_who_repaired_the_disk_has_the_server_go_on(machine: Machine, sync: str) -> None:
    with machine.serve(sync) as (server, port), Wire(port) as client:
        at = f"127.0.0.1:{port}"
        assert machine.run("server", "reopen", "-s", at) == (
            0,
            f"{at}: accepts background jobs already\n",
            "",
        )
        client.send(p.SubmitJobBg(b"work", b"", b"0"))
        handles = [client.handle()]
        machine.break_disk()
        accepted, _ = until_refused(client, sync)
        handles += accepted

        reason = r"refuses background jobs since \S+ \S+: \S+ could not be synced \(Input/output error\)"
        for command in (["status"], ["worker", "--check"]):
            code, out, err = machine.run(*command, "-s", at)
            assert code == 0
            assert re.search(rf"{at}  ?(answers, but )?{reason}", out + err)
        (row,) = json.loads(machine.run("status", "-s", at, "--json")[1])
        assert row["closed"]["since"] <= time.time()
        assert "could not be synced" in row["closed"]["reason"]

        code, _, err = machine.run("server", "reopen", "-s", at)
        assert code != 0
        assert "could not be synced (Input/output error)" in err
        assert isinstance(submit(client, b"still refused"), p.Error)

        machine.mend_disk()
        assert machine.run("server", "reopen", "-s", at)[1] == f"{at}: accepts background jobs again\n"
        client.send(p.SubmitJobBg(b"work", b"", b"%d" % len(handles)))
        handles.append(client.handle())
        (row,) = json.loads(machine.run("status", "-s", at, "--json")[1])
        assert row["closed"] is None
        server.signal(signal.SIGKILL)
        _, logged = server.end()
    assert [line.split()[1] for line in logged.splitlines()] == ["ERROR", "WARNING", "WARNING"], logged
    assert "background jobs are accepted again" in logged.splitlines()[-1]
    with machine.serve(sync) as (_, port), Wire(port) as worker:
        worker.send(p.CanDo(b"work"))
        for number, handle in enumerate(handles):
            assert answer(worker, p.GrabJob()) == p.JobAssign(handle, b"work", b"%d" % number)
        assert answer(worker, p.GrabJob()) == p.NoJob()


@pytest.mark.parametrize("sync", ["always", "batch"])
def test_ticks_that_cannot_be_kept_are_made_up_for_when_the_disk_is_repaired(
    machine: Machine, sync: str
) -> None:
    spec = ScheduleSpec(name="s", function="work", when=ScheduleWhen(every=1, missed="all", overlap="allow"))
    with machine.serve(sync) as (server, port), Wire(port) as client:
        at = f"127.0.0.1:{port}"
        ask(client, SCHEDULE, ScheduleRequest(do="put", schedules=(spec,)))
        until_shown(client, lambda shown: shown.ticks >= 1)
        machine.break_disk()
        broken = until_shown(client, lambda shown: bool(shown.fault))
        assert "could not be synced" in broken.fault
        assert broken.next[0] == (broken.last or 0) + 1
        machine.mend_disk()
        machine.run("server", "reopen", "-s", at)
        last = until_shown(client, lambda shown: not shown.fault and shown.ticks >= broken.ticks + 2)
        server.signal(signal.SIGKILL)
        server.end()
    with machine.serve(sync) as (_, port), Wire(port) as worker:
        worker.send(p.CanDo(b"work"))
        uniques: list[bytes] = []
        while isinstance(job := answer(worker, p.GrabJobUniq()), p.JobAssignUniq):
            uniques.append(job.unique)
    times = [datetime.fromisoformat(unique.decode()[len("cron:s:") :]).timestamp() for unique in uniques]
    assert times[: last.ticks] == [int(last.first) + 1 + place for place in range(last.ticks)]
    assert len(times) == len(set(times))


def until_shown(client: Wire, is_so: Callable[[ScheduleInfo], bool]) -> ScheduleInfo:
    """The only schedule, once it is so."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        answered = ask(client, SCHEDULES, SchedulesRequest())
        (shown,) = Schedules.model_validate_json(answered).schedules
        if is_so(shown):
            return shown
        assert time.monotonic() < deadline, shown


def ask(client: Wire, function: bytes, request: server_calls.Message) -> bytes:
    """The answer of a reserved function."""
    assert isinstance(answer(client, p.SubmitJob(function, b"", request.to_wire())), p.JobCreated)
    answered = client.receive()
    assert isinstance(answered, p.WorkComplete)
    return answered.result


def test_a_file_that_lost_changes_keeps_the_server_closed(machine: Machine) -> None:
    with machine.serve("batch") as (server, port), Wire(port) as client, Wire(port) as worker:
        worker.send(p.CanDo(b"attached"))
        machine.break_disk()
        until_refused(client, "batch")
        machine.mend_disk()
        with (machine.data / f"{FILE_NAME}-wal").open("r+b") as log:
            log.seek(1000)
            log.write(b"\xff" * 1000)
        code, _, err = machine.run("server", "reopen", "-s", f"127.0.0.1:{port}")
        assert code != 0
        assert "is damaged: the last changes are not in it" in err
        assert "gearflow server --recover" in err
        assert isinstance(submit(client, b"refused"), p.Error)
        created = answer(client, p.SubmitJob(b"attached", b"", b"now"))
        assert isinstance(created, p.JobCreated)
        assert answer(worker, p.GrabJob()) == p.JobAssign(created.handle, b"attached", b"now")
        server.signal(signal.SIGTERM)
        server.end()
