"""Workers and clients that are killed, in real processes, and a server that stops under load."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from gearflow.protocol import packets as p
from gearflow.protocol import server_calls
from tests.cli.shell import Shell
from tests.crash.caller import Caller, payload, plain
from tests.crash.crew import clients, workers
from tests.crash.ledger import Ledger, Promise
from tests.crash.nest import TIMEOUT, Nest
from tests.crash.test_matrix import end_in_peace, wait_until_idle
from tests.server.wire import Wire

_PROMISED: Final = """\
import os, sys
from gearflow.protocol import packets as p
from tests.crash.caller import payload
from tests.server.wire import Wire

port, log, name = int(sys.argv[1]), os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.argv[3]
with Wire(port) as wire:
    for burst in range(1_000_000):
        keys = [f"{name}-{burst}-{number}" for number in range(20)]
        wire.send(*(p.SubmitJobBg(b"work", b"", payload(key, "complete")) for key in keys))
        for key in keys:
            os.write(log, b"%b %b\\n" % (wire.handle(), key.encode()))
"""
"""A client that submits for ever, and writes down what it was promised."""


@pytest.mark.parametrize("restarted", [False, True])
def test_a_job_that_kills_its_workers_is_a_dead_letter_after_three(
    nest: Nest, tmp_path: Path, *, restarted: bool
) -> None:
    ledger = Ledger(tmp_path / "runs")
    server = nest.start(tmp_path / "data")
    job = p.SubmitJobBg(b"work", b"", payload("deadly", "die always"))
    with Wire(server.port) as client:
        client.send(job)
        handle = client.handle().decode()
        if restarted:  # one of the three deaths is before the restart
            with Wire(server.port) as worker:
                worker.send(p.CanDo(b"work"), p.GrabJob())
                assert isinstance(worker.receive(), p.JobAssign)
            client.wait_for_counts(b"work", 1, 0, 0)
            client.send(p.SubmitJobBg(b"other", b"", b""))
            client.handle()  # what happened before this is kept
            server.kill()
            server = nest.start(tmp_path / "data")
    with workers(server.port, tmp_path, 2):
        with Caller(server.port, ledger) as caller:
            caller.call([plain("harmless")])
            caller.drain(ledger.promises, TIMEOUT)
            request = server_calls.ResultRequest(handle=handle, timeout=TIMEOUT)
            assert caller.ask(server_calls.RESULT, request)["type"] == "WorkersDied"
            info = caller.ask(server_calls.INFO, server_calls.InfoRequest(handle=handle))
            assert (info["state"], info["deaths"], info["dead"]) == ("workers_died", 3, True)
            letters = caller.ask(server_calls.DEAD, server_calls.DeadRequest(action="list"))["letters"]
            assert [letter["handle"] for letter in letters] == [handle]
        server.kill()
    runs = [run.key for run in ledger.runs()]
    assert runs.count("deadly") == 3 - restarted
    server = nest.start(tmp_path / "data")
    with Wire(server.port) as worker:
        worker.send(p.CanDo(b"work"), p.GrabJob())
        assert worker.receive() == p.NoJob()
    server.stop()


def test_what_a_killed_client_was_promised_runs(nest: Nest, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "runs")
    server = nest.start(tmp_path / "data")
    log = tmp_path / "promised"
    chance = random.Random(7)
    with workers(server.port, tmp_path, 2):
        for name in ("first", "second", "third"):
            before = _length(log)
            command = [sys.executable, "-c", _PROMISED, str(server.port), str(log), name]
            with subprocess.Popen(command) as process:
                _wait_for_length(log, before + chance.randrange(1, 5_000), process)
                process.kill()
        promises = [
            _promise(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")
        ]
        assert {promise.key.partition("-")[0] for promise in promises} == {"first", "second", "third"}
        for promise in promises:
            ledger.promised(promise)
            ledger.given(promise.handle, promise.key)
        with Caller(server.port, ledger) as caller:
            caller.drain(ledger.promises, TIMEOUT)
            wait_until_idle(caller)
        server.kill()
    ledger.check()
    ledger.check_all_ran()


def _promise(line: str) -> Promise:
    handle, key = line.split()
    return Promise(key, "complete", handle, "", shared=False, kept=True)


def _length(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _wait_for_length(log: Path, length: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while _length(log) < length:
        assert process.poll() is None, "the client has ended by itself"
        assert time.monotonic() < deadline
        os.sched_yield()


@pytest.mark.parametrize("sync", ["batch", "always"])
def test_a_server_that_stops_under_load_has_kept_everything(nest: Nest, tmp_path: Path, sync: str) -> None:
    ledger = Ledger(tmp_path / "runs")
    for number in range(3):
        server = nest.start(tmp_path / "data", sync=sync)
        with workers(server.port, tmp_path, 2), clients(server.port, ledger, f"stop.{sync}.{number}", 3):
            ledger.wait_for(ledger.happened() + 200)
            server.stop()
        ledger.check()
        assert not (tmp_path / "data" / "gearflow.db-wal").exists()  # it is all in the file itself
    end_in_peace(nest, tmp_path, ledger, sync)


def test_the_command_that_stops_under_load_keeps_everything(nest: Nest, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "runs")
    with Shell(tmp_path).start("server", "-p", "0", "--data", "data") as server:
        port = int(server.until("listens on").split("listens on ")[1].split(";")[0].rpartition(":")[2])
        with workers(port, tmp_path, 2), clients(port, ledger, "command", 3):
            ledger.wait_for(300)
            server.signal(signal.SIGTERM)
            code, said = server.end()
        assert (code, said) == (0, "")
    ledger.check()
    end_in_peace(nest, tmp_path, ledger, "batch")
