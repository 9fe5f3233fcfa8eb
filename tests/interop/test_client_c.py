"""A gearflow client calls the workers of C's ``gearman`` tool, through gearmand and the bundled server."""

from collections.abc import Callable
from typing import TypeAlias

import anyio
import pytest

from gearflow.client import Client, JobFailed, Priority
from gearflow.protocol.packets import WorkData
from tests.interop.conftest import Start

Serve: TypeAlias = Callable[..., None]


@pytest.fixture
def serve(start: Start, any_server: str, function: str) -> Serve:
    """``serve("wc", "-c")``: a worker that runs this command, the workload on its standard input."""
    host, _, port = any_server.rpartition(":")

    def run(*command: str, option: str = "-w") -> None:
        start("gearman", "-h", host, "-p", port, "-w", option, "-f", function, "--", *command)

    return run


async def test_what_the_command_prints_is_the_result(serve: Serve, any_server: str, function: str) -> None:
    serve("tr", "a-z", "A-Z")
    async with Client([any_server]) as client:
        with anyio.fail_after(20):
            job = await client.submit(function, b"hello\0there", priority=Priority.HIGH)
            assert await job.result() == b"HELLO\0THERE"


async def test_every_byte_comes_back_as_it_went(serve: Serve, any_server: str, function: str) -> None:
    serve("cat")
    workload = bytes(range(256)) * 100  # the tool writes all before it reads, so it must fit into a pipe
    async with Client([any_server]) as client:
        with anyio.fail_after(20):
            job = await client.submit(function, workload)
            assert await job.result() == workload


async def test_a_large_workload_arrives_whole(serve: Serve, any_server: str, function: str) -> None:
    serve("wc", "-c")
    async with Client([any_server]) as client:
        with anyio.fail_after(20):
            job = await client.submit(function, bytes(8_000_000))
            assert await job.result() == b"8000000\n"


async def test_many_jobs_on_one_connection_get_each_their_own_result(
    serve: Serve, any_server: str, function: str
) -> None:
    serve("cat")
    async with Client([any_server]) as client:
        with anyio.fail_after(20):
            jobs = [await client.submit(function, b"%d" % n) for n in range(20)]
            assert [await job.result() for job in jobs] == [b"%d" % n for n in range(20)]


async def test_an_empty_result_is_empty(serve: Serve, any_server: str, function: str) -> None:
    serve("true")
    async with Client([any_server]) as client:
        with anyio.fail_after(20):
            job = await client.submit(function, b"x")
            assert await job.result() == b""


async def test_a_command_that_prints_line_by_line_sends_data(
    serve: Serve, any_server: str, function: str
) -> None:
    serve("cat", option="-n")
    async with Client([any_server]) as client:
        with anyio.fail_after(20):
            job = await client.submit(function, b"one\ntwo\n")
            events = [event async for event in job.events()]
            await job.result()
    # The tool sends all that it has by then, each time.
    assert [event.data for event in events if isinstance(event, WorkData)] == [b"one\n", b"one\ntwo\n"]


async def test_a_command_that_fails_fails_the_job(serve: Serve, any_server: str, function: str) -> None:
    serve("false")
    async with Client([any_server]) as client:
        with anyio.fail_after(20):
            job = await client.submit(function, b"x")
            with pytest.raises(JobFailed) as failure:
                await job.result()
    assert failure.value.exception is None
