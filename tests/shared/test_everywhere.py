"""What one server of a group knows, or does, holds at all of them."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import anyio
import pytest

from gearflow import connect
from gearflow.client import Client
from gearflow.client.operate import pause, server_info
from tests.postgres.cluster import TIMEOUT
from tests.shared import tasks
from tests.shared.callers import KEEP
from tests.shared.group import Group
from tests.soak.tasks import answer


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The servers and workers are other processes: one loop is enough here."""
    return "asyncio"


def at(group: Group, number: int) -> AbstractAsyncContextManager[Client]:
    """A client of one server alone."""
    return connect(group.addresses[number], discover=False)


async def until(is_so: Callable[[], bool]) -> None:
    with anyio.fail_after(TIMEOUT):
        while not is_so():  # noqa: ASYNC110  (other processes tell, in a file)
            await anyio.sleep(0.02)


def has_begun(group: Group, key: str) -> Callable[[], bool]:
    return lambda: group.runs.exists() and f" {key} " in group.runs.read_text()


async def test_a_result_is_had_at_every_server(group: Group, fresh: Callable[[], str]) -> None:
    key = fresh()
    async with at(group, 0):
        ref = await answer.options(keep=KEEP).abackground(key)
    for number in range(3):
        async with at(group, number):
            assert await answer.ref(ref.handle).aresult(TIMEOUT) == f"did {key}"


async def test_a_pause_holds_at_all_servers_and_after_their_start(
    group: Group, fresh: Callable[[], str]
) -> None:
    function, keys = "tests.soak.tasks.answer", [fresh() for _ in range(3)]
    async with at(group, 1) as client:
        await pause(client, function)
    try:
        for number, key in enumerate(keys):
            async with at(group, number) as client:
                await is_paused(client, function)
                await answer.options(keep=KEEP).abackground(key)
        await anyio.to_thread.run_sync(group.kill, 0)
        await anyio.to_thread.run_sync(group.start, 0)
        async with at(group, 0) as client:
            await is_paused(client, function)
        assert not any(has_begun(group, key)() for key in keys)
    finally:
        async with at(group, 2) as client:
            await pause(client, function, False)
    for key in keys:
        await until(has_begun(group, key))


async def is_paused(client: Client, function: str) -> None:
    with anyio.fail_after(TIMEOUT):
        while function not in (await server_info(client)).paused:  # noqa: ASYNC110  (its next beat tells it)
            await anyio.sleep(0.02)


async def test_a_stream_is_read_at_another_server_while_that_of_the_job_is_killed(
    group: Group, fresh: Callable[[], str], tmp_path: Path
) -> None:
    path = tmp_path / fresh()
    async with at(group, 0):
        ref = await tasks.numbers.options(keep=KEEP).abackground(20, path)
    values: list[int] = []
    async with at(group, 1):
        with anyio.fail_after(2 * TIMEOUT):
            async for number in tasks.numbers.ref(ref.handle).astream():
                values.append(number)
                if number == 10:
                    await anyio.to_thread.run_sync(group.kill, 0)
                    path.touch()
    assert values == list(range(20))
