"""A paused function is one for the next server, too, however this one ends."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from gearflow.protocol import packets as p
from gearflow.protocol import server_calls
from tests.crash.caller import Caller
from tests.crash.faults import Fault
from tests.crash.ledger import Ledger
from tests.crash.nest import Nest, Server
from tests.crash.test_full_disk import answer
from tests.server.wire import Wire


def end(server: Server, how: signal.Signals) -> None:
    if how is signal.SIGKILL:
        server.kill()
    else:
        server.stop()


def pause(caller: Caller, function: str, *, paused: bool = True) -> dict[str, object]:
    return caller.ask(server_calls.PAUSE, server_calls.PauseRequest(function=function, paused=paused))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_stays_paused_until_it_is_resumed(nest: Nest, tmp_path: Path, how: signal.Signals) -> None:
    data, ledger = tmp_path / "data", Ledger(tmp_path / "runs")
    server = nest.start(data)
    with Wire(server.port) as client, Caller(server.port, ledger) as caller:
        client.send(p.SubmitJobBg(b"paused", b"", b"1"), p.SubmitJobBg(b"resumed", b"", b"2"))
        first, second = client.handle(), client.handle()
        assert pause(caller, "paused") == {"jobs": 1}
        assert pause(caller, "resumed") == {"jobs": 1}
        assert pause(caller, "nobody knows it yet") == {"jobs": 0}
        assert pause(caller, "resumed", paused=False) == {"jobs": 1}
    end(server, how)
    server = nest.start(data)
    with Wire(server.port) as worker, Caller(server.port, ledger) as caller:
        worker.send(p.CanDo(b"paused"), p.CanDo(b"resumed"), p.CanDo(b"nobody knows it yet"))
        assert answer(worker, p.SubmitJobBg(b"nobody knows it yet", b"", b"")) is not None
        assert answer(worker, p.GrabJob()) == p.JobAssign(second, b"resumed", b"2")
        assert answer(worker, p.GrabJob()) == p.NoJob()
        worker.send(p.WorkComplete(second, b""), p.PreSleep())
        assert pause(caller, "paused", paused=False) == {"jobs": 1}
        assert worker.receive() == p.Noop()
        assert answer(worker, p.GrabJob()) == p.JobAssign(first, b"paused", b"1")
    end(server, how)
    server = nest.start(data)
    with Wire(server.port) as worker:
        worker.send(p.CanDo(b"paused"))
        assert answer(worker, p.GrabJob()) == p.JobAssign(first, b"paused", b"1")
    end(server, how)


def test_a_dropped_function_is_not_paused_any_more(nest: Nest, tmp_path: Path) -> None:
    server = nest.start(tmp_path / "data")
    with Wire(server.port) as client, Caller(server.port, Ledger(tmp_path / "runs")) as caller:
        assert pause(caller, "work") == {"jobs": 0}
        assert answer(client, b"drop function work\n") == b"OK"
    server.stop()
    server = nest.start(tmp_path / "data")
    with Wire(server.port) as worker:
        assert isinstance(created := answer(worker, p.SubmitJobBg(b"work", b"", b"")), p.JobCreated)
        worker.send(p.CanDo(b"work"))
        assert answer(worker, p.GrabJob()) == p.JobAssign(created.handle, b"work", b"")
    server.stop()


def test_a_pause_that_could_not_be_written_is_an_error(nest: Nest, tmp_path: Path) -> None:
    server = nest.start(tmp_path / "data", Fault("write", 2, "refused", 2))  # the group, and each of it
    with Caller(server.port, Ledger(tmp_path / "runs")) as caller:
        fault = pause(caller, "work")
        assert fault["type"] == "gearflow:store"
        assert "paused, but that could not be written" in str(fault["message"])
        assert pause(caller, "work") == {"jobs": 0}
    server.stop()
