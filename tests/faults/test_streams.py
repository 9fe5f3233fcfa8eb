"""Streams under faults: lost connections, killed servers and workers, slow readers beside fast ones."""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.from_thread import BlockingPortal

import gearflow
from gearflow import AsyncStream, ConnectionLost, Ended, Part, Retrying, Started, StreamRestarted, connect
from gearflow.client import Backoff, Client, JobName
from gearflow.client.reading import StreamReader
from gearflow.tasks.stream_task import StreamTask
from gearflow.worker import Worker
from tests.cli.shell import Running, Shell
from tests.conftest import ROOT
from tests.crash.nest import Nest, Server
from tests.faults import tasks
from tests.faults.proxy import proxied

PATIENCE = 60.0
"""Seconds after which a stream is taken for stuck."""

SOON = Backoff(first=0.001, most=0.01)
SHELL = Shell(ROOT)

pytestmark = pytest.mark.parametrize("anyio_backend", ["asyncio"])

either = pytest.mark.parametrize("task", [tasks.count, tasks.resume], ids=["from the start", "resumable"])


class Reading:
    """Reads the numbers of a job, one by one."""

    def __init__(self, client: Client, job: JobName, after: int = 0) -> None:
        self._reader = StreamReader(client.pool, job, after)
        self._parts: list[bytes] = []
        self.position = after

    async def next(self) -> int | None:
        if not self._parts:
            with anyio.fail_after(PATIENCE):
                self._reader.acknowledge(self.position)
                arrivals = await self._reader.take()
            if not arrivals.parts:
                return None
            self.position, self._parts = arrivals.start, list(arrivals.parts)
        self.position += 1
        return int(self._parts.pop(0))

    async def rest(self) -> list[int]:
        numbers: list[int] = []
        while (number := await self.next()) is not None:
            numbers.append(number)
        return numbers


@contextmanager
def worker(server: Server) -> Generator[Running]:
    """A worker in a process of its own, once it has registered."""
    address = f"127.0.0.1:{server.port}"
    with SHELL.start("worker", "tests.faults.tasks", "-s", address) as process:
        process.until("registered with a server")
        process.drain()
        yield process


@either
async def test_a_reader_survives_a_lost_connection_at_each_position(
    nest: Nest, tmp_path: Path, portal: BlockingPortal, task: StreamTask[[int], int]
) -> None:
    server = nest.start(tmp_path / "data")
    address = f"127.0.0.1:{server.port}"
    with proxied(portal, address, "positions") as proxy:
        proxy.calm()
        async with (
            Worker([task], servers=[address], drain=0),
            Client([proxy.address], backoff=SOON) as client,
        ):
            async with connect(address):
                ref = await task.abackground(40)
            reading = Reading(client, ref.handle)
            for number in range(1, 41):
                proxy.calm()
                assert await reading.next() == number
            assert await reading.next() is None
    server.stop()


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "stopped"])
async def test_a_reader_goes_on_when_the_server_restarts_in_the_middle(
    nest: Nest, tmp_path: Path, kill: bool
) -> None:
    server = nest.start(tmp_path / "data")
    address = f"127.0.0.1:{server.port}"
    async with Worker([tasks.resume], servers=[address], drain=0), Client([address], backoff=SOON) as client:
        async with connect(address):
            ref = await tasks.resume.abackground(1000)
        reading = Reading(client, ref.handle)
        for number in range(1, 301):
            assert await reading.next() == number
        await anyio.to_thread.run_sync(server.kill if kill else server.stop)
        server = nest.start(tmp_path / "data", port=server.port)
        assert await reading.rest() == list(range(301, 1001))
    server.stop()


async def test_a_restart_of_the_server_begins_a_stream_again(nest: Nest, tmp_path: Path) -> None:
    server = nest.start(tmp_path / "data")
    address = f"127.0.0.1:{server.port}"
    async with Worker([tasks.count], servers=[address], drain=0), Client([address], backoff=SOON) as client:
        async with connect(address):
            ref = await tasks.count.abackground(1000)
        reading = Reading(client, ref.handle)
        for number in range(1, 301):
            assert await reading.next() == number
        await anyio.to_thread.run_sync(server.kill)
        server = nest.start(tmp_path / "data", port=server.port)
        expected = 301
        with pytest.raises(StreamRestarted):  # noqa: PT012  (values may come before it)
            while await reading.next() == expected:
                expected += 1
        assert await reading.rest() == list(range(1, 1001))
    server.stop()


async def test_a_stream_that_has_ended_is_replayed_after_a_restart(nest: Nest, tmp_path: Path) -> None:
    server = nest.start(tmp_path / "data")
    address = f"127.0.0.1:{server.port}"
    async with Worker([tasks.count], servers=[address], drain=0), connect(address):
        ref = await tasks.count.abackground(500)
        await ref.aresult(PATIENCE)
    server.stop()
    server = nest.start(tmp_path / "data", port=server.port)
    async with connect(address):
        assert [number async for number in ref.astream()] == list(range(1, 501))
        assert [number async for number in ref.astream(after=490)] == list(range(491, 501))
        assert [number async for number in ref.astream(after="latest")] == []
    server.stop()


@asynccontextmanager
async def killed_after_five(
    nest: Nest, tmp_path: Path, task: StreamTask[[str, int, int], int], attached: bool
) -> AsyncGenerator[AsyncStream[int]]:
    """A stream of 1 to 100 whose worker was killed after 5, while another worker is there."""
    server = nest.start(tmp_path / "data")
    with ExitStack() as stack:
        first = stack.enter_context(worker(server))
        async with connect(f"127.0.0.1:{server.port}"):
            call = (str(tmp_path / "flag"), 5, 100)
            stream = task.astream(*call) if attached else (await task.abackground(*call)).astream()
            with anyio.fail_after(PATIENCE):
                assert [await anext(stream) for _ in range(5)] == [1, 2, 3, 4, 5]
                stack.enter_context(worker(server))
                first.signal(signal.SIGKILL)
                yield stream
    server.stop()


either_way = pytest.mark.parametrize("attached", [True, False], ids=["attached", "background"])


@either_way
async def test_a_worker_that_is_killed_between_two_parts_begins_the_stream_again(
    nest: Nest, tmp_path: Path, attached: bool
) -> None:
    async with killed_after_five(nest, tmp_path, tasks.halt, attached) as stream:
        with pytest.raises(StreamRestarted):
            await anext(stream)
        assert stream.position == 0
        assert [number async for number in stream] == list(range(1, 101))


@either_way
async def test_a_resumable_stream_goes_on_when_its_worker_is_killed(
    nest: Nest, tmp_path: Path, attached: bool
) -> None:
    async with killed_after_five(nest, tmp_path, tasks.halt_and_resume, attached) as stream:
        assert [number async for number in stream] == list(range(6, 101))


@pytest.mark.parametrize("resubmit", [True, False])
async def test_an_attached_stream_survives_its_server_only_if_it_may_be_submitted_again(
    nest: Nest, tmp_path: Path, resubmit: bool
) -> None:
    server = nest.start(tmp_path / "data")
    address = f"127.0.0.1:{server.port}"
    async with Worker([tasks.count], servers=[address], drain=0), connect(address):
        stream = tasks.count.options(resubmit=resubmit).astream(1000)
        with anyio.fail_after(PATIENCE):
            assert [await anext(stream) for _ in range(10)] == list(range(1, 11))
            await anyio.to_thread.run_sync(server.kill)
            server = nest.start(tmp_path / "data", port=server.port)
            expected = 11
            with pytest.raises(StreamRestarted if resubmit else ConnectionLost):  # noqa: PT012  (values may come before it)
                while await anext(stream) == expected:
                    expected += 1
            rest = [number async for number in stream]
            assert rest == (list(range(1, 1001)) if resubmit else [])
    server.stop()


async def test_the_slowest_of_two_readers_sets_the_pace(bundled: str) -> None:
    async with Worker([tasks.count], servers=[bundled], drain=0), connect(bundled):
        with anyio.fail_after(PATIENCE):
            ref = await tasks.count.options(unique="two readers").abackground(2000)
            fast, slow = ref.astream(), ref.astream()
            assert await anext(slow) == 1
            read: list[int] = []

            async def read_all() -> None:
                read.extend([number async for number in fast])

            async with anyio.create_task_group() as group:
                group.start_soon(read_all)
                assert [number async for number in slow] == list(range(2, 2001))
            assert read == list(range(1, 2001))


async def test_another_job_goes_on_beside_a_stream_that_nobody_takes(bundled: str) -> None:
    worker = Worker([tasks.count, tasks.triple], servers=[bundled], drain=0)
    async with worker, connect(bundled), tasks.count.astream(100_000) as stream:
        assert await anext(stream) == 1
        with anyio.fail_after(PATIENCE):
            for number in range(20):
                assert await tasks.triple.acall(number) == 3 * number
        assert stream.position == 1


async def test_a_watcher_sees_the_restart_of_the_server_once(nest: Nest, tmp_path: Path) -> None:
    server = nest.start(tmp_path / "data")
    address = f"127.0.0.1:{server.port}"
    seen: list[Any] = []
    async with Worker([wait_for_the_gate], servers=[address], drain=0), connect(address):
        ref = await wait_for_the_gate.abackground()
        with anyio.fail_after(PATIENCE):
            async for event in ref.aevents():
                seen.append(event)
                if event == Part(1, 1) and not any(map(is_retry, seen)):
                    await anyio.to_thread.run_sync(server.kill)
                    server = nest.start(tmp_path / "data", port=server.port)
                elif is_retry(event):
                    gate.set()
    assert seen[-1] == Ended("completed"), seen
    assert isinstance(seen[0], Started)
    assert sum(map(is_retry, seen)) == 1, seen
    server.stop()


gate = anyio.Event()


@gearflow.task
async def wait_for_the_gate() -> AsyncIterator[int]:
    yield 1
    await gate.wait()


def is_retry(event: object) -> bool:
    return isinstance(event, Retrying)
