"""Workers are replaced and servers go away under load: no call that somebody waits for fails."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from gearflow import connect
from gearflow.worker import Worker
from tests.cli.shell import Running, Shell
from tests.conftest import ROOT
from tests.crash.nest import Nest
from tests.faults import tasks
from tests.faults.load import PATIENCE, under_load

SHELL = Shell(ROOT)

processes = pytest.mark.parametrize("anyio_backend", ["asyncio"])
"""What is tested are other processes: one kind of event loop here is enough."""


@contextmanager
def worker(address: str, *options: str) -> Generator[Running]:
    """The command, once it has registered with the server."""
    with SHELL.start("worker", "tests.faults.tasks", "-s", address, *options) as process:
        process.until("registered with a server")
        process.drain()
        yield process


def children(process: Running) -> set[int]:
    """The pids of the workers that a supervisor has."""
    pid = process.process.pid
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def stopped(process: Running) -> int:
    """Tell a worker to stop warm; its exit code when it has."""
    process.signal(signal.SIGTERM)
    return process.process.wait(30)


@processes
async def test_workers_are_replaced_one_by_one_and_no_call_fails(any_server: str) -> None:
    with ExitStack() as stack:
        old = [stack.enter_context(worker(any_server)) for _ in range(2)]
        async with connect(any_server), under_load() as load:
            for process in old:
                await anyio.to_thread.run_sync(stack.enter_context, worker(any_server))
                assert await anyio.to_thread.run_sync(stopped, process) == 0
                await load.goes_on()


@processes
async def test_a_killed_workers_calls_end_at_another(any_server: str) -> None:
    with ExitStack() as stack:
        victim = stack.enter_context(worker(any_server))
        stack.enter_context(worker(any_server))
        async with connect(any_server), under_load() as load:
            victim.signal(signal.SIGKILL)
            await load.goes_on()


@processes
async def test_a_fleet_takes_up_new_code_and_no_call_fails(bundled: str) -> None:
    with worker(bundled, "--processes", "2") as fleet:
        async with connect(bundled), under_load() as load:
            before = children(fleet)
            fleet.signal(signal.SIGHUP)
            with anyio.fail_after(PATIENCE):
                while before & children(fleet):  # noqa: ASYNC110  (the system tells of no such event)
                    await anyio.sleep(0.05)
            await load.goes_on()
        assert len(children(fleet)) == 2


@pytest.mark.parametrize("gone", [1, 2])
async def test_calls_go_on_when_servers_of_three_are_gone(nest: Nest, tmp_path: Path, gone: int) -> None:
    servers = [nest.start(tmp_path / f"{number}") for number in range(3)]
    addresses = [f"127.0.0.1:{server.port}" for server in servers]
    async with (
        Worker([tasks.triple, tasks.double], servers=addresses, concurrency=20, drain=0),
        connect(*addresses, spread=True),
        under_load(resubmit=True) as load,
    ):
        for server in servers[:gone]:
            server.kill()
            await load.goes_on()
    for server in servers[gone:]:
        server.stop()
