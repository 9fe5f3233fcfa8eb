"""A server that is killed while it acts on many jobs."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Literal

import pytest

from gearflow.client import SyncClient
from gearflow.client.operate import bulk, jobs
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from gearflow.protocol.jobs import BULK, JobFilter, ListedState
from tests.crash.nest import TIMEOUT, Nest
from tests.server.wire import Wire

COUNT = 1000

DEAD = JobFilter(states=("dead",))
WAITING = JobFilter(states=("waiting",))


def submit(port: int, *, dead: bool) -> set[str]:
    """Jobs that wait, or that are dead letters because they have expired."""
    options: dict[str, object] = {"function": "work", "detached": True}
    request = json.dumps(options | ({"expires": 0} if dead else {})).encode() + b"\nx"
    handles: set[str] = set()
    with Wire(port) as wire:
        wire.send(*[p.SubmitJob(api.SUBMIT, b"", request)] * COUNT)
        while len(handles) < COUNT:
            packet = wire.receive()
            if isinstance(packet, p.WorkComplete):
                handles.add(json.loads(packet.result)["handle"])
    wanted = DEAD if dead else WAITING
    deadline = time.monotonic() + TIMEOUT
    with SyncClient([f"127.0.0.1:{port}"]) as client:
        while count(client, wanted) < COUNT:
            assert time.monotonic() < deadline
    return handles


def count(client: SyncClient, select: JobFilter) -> int:
    return client.run(partial(bulk, do="count", select=select)).matched


def listed(client: SyncClient, *states: ListedState) -> list[str]:
    found: list[str] = []
    after = ""
    while True:
        page = client.run(partial(jobs, select=JobFilter(states=states), after=after, limit=1000))
        found += [job.job.handle for job in page.jobs]
        after = page.next
        if not after:
            return found


@pytest.mark.parametrize("do", ["replay", "purge", "cancel"])
def test_what_was_done_is_done_and_the_rest_is_as_it_was(
    nest: Nest, tmp_path: Path, do: Literal["replay", "purge", "cancel"]
) -> None:
    server = nest.start(tmp_path / "data")
    handles = submit(server.port, dead=do != "cancel")
    before = WAITING if do == "cancel" else DEAD
    with Wire(server.port) as wire, SyncClient([f"127.0.0.1:{server.port}"]) as client:
        wire.send(p.SubmitJob(BULK, b"", json.dumps({"do": do}).encode()))
        while count(client, before) == COUNT:
            pass
        server.kill()
    server = nest.start(tmp_path / "data")
    with SyncClient([f"127.0.0.1:{server.port}"]) as client:
        left = listed(client, *before.states)
        done = listed(client, "cancelled" if do == "cancel" else "waiting")
        assert len(left) + len(done) == len({*left, *done})
        assert {*left, *done} <= handles
        if do != "purge":
            assert {*left, *done} == handles
        again = client.run(partial(bulk, do=do, expected=len(left)))
        assert (again.matched, again.done) == (len(left), len(left))
        assert listed(client, *before.states) == []
        if do == "replay":
            assert {*listed(client, "waiting")} == handles
    server.stop()
