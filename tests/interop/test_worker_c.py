"""A gearflow worker serves the C tool ``gearman``, through gearmand and the bundled server."""

from collections.abc import Callable
from typing import TypeAlias

import anyio
import pytest

from gearflow.tasks import AsyncTask, Context, task
from tests.interop.conftest import serving

CommandLine: TypeAlias = Callable[..., list[str]]


@pytest.fixture
def gearman(program: Callable[[str], str]) -> CommandLine:
    """``gearman(server, ...)``: the command line of the C client."""

    def command(server: str, *arguments: str) -> list[str]:
        host, _, port = server.partition(":")
        return [program("gearman"), "-h", host, "-p", port, *arguments]

    return command


def add_task(name: str) -> AsyncTask[[int, int], int]:
    @task(name=name)
    async def add(a: int, b: int) -> int:
        return a + b

    return add


async def test_a_typed_task_is_called_with_json(gearman: CommandLine, any_server: str, function: str) -> None:
    async with serving(any_server, add_task(function)):
        done = await anyio.run_process(gearman(any_server, "-f", function, '{"a": 1, "b": 2}'))
    assert done.stdout == b"3"


async def test_raw_bytes_pass_unchanged_in_both_directions(
    gearman: CommandLine, any_server: str, function: str
) -> None:
    @task(name=function)
    def mirror(data: bytes) -> bytes:
        return data[::-1]

    payload = bytes(range(256)) * 500
    async with serving(any_server, mirror):
        done = await anyio.run_process(gearman(any_server, "-f", function), input=payload)
    assert done.stdout == payload[::-1]


async def test_progress_and_warnings_are_shown(gearman: CommandLine, any_server: str, function: str) -> None:
    @task(name=function)
    async def warns(ctx: Context, data: str) -> str:
        ctx.progress(1, 2)
        ctx.warn("careful")
        return data.upper()

    async with serving(any_server, warns):
        done = await anyio.run_process(gearman(any_server, "-f", function, "text"))
    assert b"TEXT" in done.stdout
    assert b"50% Complete" in done.stdout
    assert done.stderr == b"careful"


async def test_a_payload_that_does_not_validate_ends_the_call_and_the_worker_goes_on(
    gearman: CommandLine, any_server: str, function: str
) -> None:
    async with serving(any_server, add_task(function)):
        bad = await anyio.run_process(gearman(any_server, "-f", function, "nonsense"), check=False)
        good = await anyio.run_process(gearman(any_server, "-f", function, '{"a": 20, "b": 22}'))
    assert b"fail" in (bad.stdout + bad.stderr).lower()
    assert good.stdout == b"42"


async def test_background_jobs_run(gearman: CommandLine, any_server: str, function: str) -> None:
    ran: list[str] = []
    all_ran = anyio.Event()

    @task(name=function)
    async def collect(text: str) -> None:
        ran.append(text)
        if len(ran) == 2:
            all_ran.set()

    async with serving(any_server, collect):
        for text in ("one", "two"):
            await anyio.run_process(gearman(any_server, "-b", "-f", function, text))
        await all_ran.wait()
    assert ran == ["one", "two"]
