"""What the workers of a group run beside the tasks of the soak."""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio

from gearflow import Context, task


@task
def read(path: Path) -> str:
    """Fails as long as there is no such file."""
    return path.read_text()


@task
async def hold(path: Path) -> str:
    """Runs until there is such a file."""
    await _until_there_is(path)
    return await anyio.Path(path).read_text()


@task(resumable=True)
async def numbers(ctx: Context, to: int, path: Path) -> AsyncIterator[int]:
    """Yields numbers, and goes on where the last run was. In the middle it waits for a file."""
    for number in range(ctx.parts, to):
        yield number
        if number == to // 2:
            await _until_there_is(path)


async def _until_there_is(path: Path) -> None:
    while not await anyio.Path(path).exists():  # noqa: ASYNC110  (a file of another process wakes nobody)
        await anyio.sleep(0.02)
