"""A server that is killed between debounced submissions."""

import json
import random
import time
from pathlib import Path

import pytest

from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from tests.crash.nest import TIMEOUT, Nest
from tests.server.wire import Wire

ROUNDS = 12


def request(number: int, debounce: float = 0.01) -> p.SubmitJob:
    options = {"function": "work", "detached": True, "unique": "k", "debounce": debounce}
    return p.SubmitJob(api.SUBMIT, b"", json.dumps(options).encode() + b"\n%d" % number)


def acknowledged(wire: Wire) -> int:
    """How many submissions are answered until the server is gone."""
    count = 0
    try:
        while (packet := wire.receive()) is not None:
            assert isinstance(packet, (p.JobCreated, p.WorkComplete))
            count += isinstance(packet, p.WorkComplete)
    except ConnectionError:
        pass
    return count


def runs(port: int, count: int) -> list[int]:
    """The payloads of so many jobs, once they are due. Then there are no others."""
    deadline = time.monotonic() + TIMEOUT
    with Wire(port) as worker:
        found: dict[bytes, bytes] = {}
        while len(found) < count:
            assert time.monotonic() < deadline, found
            found |= worker.grab_all(b"work")
        for handle in found:
            worker.send(p.WorkComplete(handle, b""))
        worker.wait_for_counts(b"work", 0, 0, 1)
    return sorted(map(int, found.values()))


@pytest.mark.parametrize("one_runs", [False, True])
def test_the_latest_that_was_acknowledged_runs_once(nest: Nest, tmp_path: Path, *, one_runs: bool) -> None:
    chance = random.Random(one_runs)
    for _ in range(ROUNDS):
        server = nest.start(tmp_path / "data")
        with Wire(server.port) as wire, Wire(server.port) as worker:
            if one_runs:  # and is not replaced
                wire.send(request(0, 0))
                wire.handle()
                assert isinstance(wire.receive(), p.WorkComplete)
                assert list(worker.grab_all(b"work").values()) == [b"0"]
            wire.send(*(request(number, 60) for number in range(1, 50)))
            count = chance.randrange(1, 40)
            done = 0
            while done < count:
                done += isinstance(wire.receive(), p.WorkComplete)
            server.kill()
            done += acknowledged(wire)
        server = nest.start(tmp_path / "data")
        with Wire(server.port) as wire:  # that comes soon, and is not lost either
            wire.send(p.GetStatusUnique(b"k"))
            status = wire.receive()
            assert isinstance(status, p.StatusResUnique)
            assert status.known == b"1"
            wire.send(api_edit(wire))
            while not isinstance(wire.receive(), p.WorkComplete):
                pass
        *others, latest = runs(server.port, 1 + one_runs)
        assert others == [0] * one_runs
        assert done <= latest < 50
        server.stop()


def api_edit(wire: Wire) -> p.SubmitJob:
    """The job of the unique is to start at once, whatever its payload is."""
    wire.send(p.SubmitJob(api.INFO, b"", b'{"function": "work", "unique": "k"}'))
    wire.handle()
    answer = wire.receive()
    assert isinstance(answer, p.WorkComplete)
    edit = {"handle": json.loads(answer.result)["handle"], "delay": 0}
    return p.SubmitJob(b"gearflow:edit", b"", json.dumps(edit).encode())
