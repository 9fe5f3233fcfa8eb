"""Three servers that share the load: C gearmands, gearflow's own, and both; one is killed and comes back."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import anyio
import pytest

from gearflow import connect, task
from gearflow.client import Client, ServerAddress
from gearflow.client.pool import rendezvous_order
from gearflow.errors import NoServer
from gearflow.tasks import AsyncTask
from gearflow.worker import Worker
from tests.crash.nest import Nest, Server
from tests.ports import free_port

CALLS = 30


class Gearmand:
    """A C gearmand that can be killed."""

    def __init__(self, program: str, log: Path, port: int) -> None:
        options = ["--port", str(port), "--listen", "127.0.0.1", "--log-file", str(log)]
        self._process = subprocess.Popen([program, *options])

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Servers:
    """Three of them, on ports that are theirs until the end of the test. Owns their processes."""

    def __init__(self, kinds: tuple[str, ...], nest: Nest, gearmand: str, folder: Path) -> None:
        self._kinds = kinds
        self._nest = nest
        self._gearmand = gearmand
        self._folder = folder
        self._ports = [free_port() for _ in kinds]
        self.addresses = [f"127.0.0.1:{port}" for port in self._ports]
        self._running: dict[int, Gearmand | Server] = {}

    def start(self, place: int) -> None:
        """Start one; a gearmand listens a little later."""
        log, port = self._folder / f"{place}.log", self._ports[place]
        if self._kinds[place] == "gearmand":
            self._running[place] = Gearmand(self._gearmand, log, port)
        else:
            self._running[place] = self._nest.start(self._folder / str(place), port=port)

    def kill(self, place: int) -> None:
        self._running.pop(place).kill()

    def close(self) -> None:
        for place in list(self._running):
            self.kill(place)


@pytest.fixture(scope="module")
def nest() -> Iterator[Nest]:
    with Nest() as nest:
        yield nest


@pytest.fixture(
    params=[("gearmand",) * 3, ("bundled",) * 3, ("gearmand", "bundled", "gearmand")],
    ids=["gearmand", "bundled", "mixed"],
)
def three(
    request: pytest.FixtureRequest, nest: Nest, program: Callable[[str], str], tmp_path: Path
) -> Iterator[Servers]:
    servers = Servers(request.param, nest, program("gearmand"), tmp_path)
    for place in range(3):
        servers.start(place)
    yield servers
    servers.close()


async def listening(address: str) -> None:
    """Return when a server answers there."""
    async with Client([address]) as client:
        while True:
            try:
                await client.echo(b"")
            except NoServer:
                await anyio.sleep(0.01)
            else:
                return


async def all_listening(servers: Servers) -> None:
    for address in servers.addresses:
        await listening(address)


async def test_calls_are_spread_and_each_finds_its_worker(three: Servers, function: str) -> None:
    @task(name=function, unique=True)
    async def double(number: int) -> int:
        return 2 * number

    with anyio.fail_after(20):
        await all_listening(three)
        async with (
            Worker([double], servers=three.addresses, concurrency=3),
            connect(*three.addresses, spread=True),
        ):
            assert await double.amap(range(CALLS)) == [2 * number for number in range(CALLS)]
            jobs = [await double.asubmit(number) for number in range(CALLS)]
            assert {str(job.server) for job in jobs} == set(three.addresses)
            assert [await job for job in jobs] == [2 * number for number in range(CALLS)]


async def test_a_killed_server_costs_no_call_that_may_be_submitted_again(
    three: Servers, function: str
) -> None:
    runs = Counter[int]()
    all_begun, go_on = anyio.Event(), anyio.Event()

    @task(name=function, unique=True, resubmit=True)
    async def wait(number: int) -> int:
        runs[number] += 1
        if len(runs) == CALLS:
            all_begun.set()
        await go_on.wait()
        return number

    with anyio.fail_after(20):
        await all_listening(three)
        async with (
            Worker([wait], servers=three.addresses, concurrency=2 * CALLS, first_retry=0.01),
            connect(*three.addresses, spread=True),
        ):
            jobs = [await wait.asubmit(number) for number in range(CALLS)]
            await all_begun.wait()
            lost = {number for number, job in enumerate(jobs) if str(job.server) == three.addresses[0]}
            three.kill(0)
            go_on.set()
            assert [await job for job in jobs] == list(range(CALLS))
            assert {job.server for job in jobs} <= {*map(ServerAddress.parse, three.addresses[1:])}
            assert {number for number, times in runs.items() if times > 1} == lost != set()
            three.start(0)
            await listening(three.addresses[0])
            await _is_used_again(wait, three.addresses[0], three)


async def _is_used_again(wait: AsyncTask[[int], int], address: str, three: Servers) -> None:
    """Return when the server has submissions of the client and the services of the worker again."""
    ours = (
        number
        for number in count(CALLS)
        if rendezvous_order(three.addresses, f"{wait.name}\0{number}".encode())[0] == address
    )
    while True:
        number = next(ours)
        job = await wait.options(unique=str(number)).asubmit(number)
        assert await job == number
        if str(job.server) == address:
            return
        await anyio.sleep(0.01)  # it still rests
