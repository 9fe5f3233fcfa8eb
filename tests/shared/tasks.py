"""What the workers of a group run beside the tasks of the soak."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio

from gearflow import Context, task
from tests.soak.tasks import write_mark


@task
def work(ctx: Context, key: str, pause: float = 0.0, padding: str = "", fails: int = 0) -> str:
    """Wait in a thread, and return the padding. So many runs fail first."""
    write_mark(ctx, key, ended=False)
    time.sleep(pause)
    if ctx.attempt <= fails:
        raise ConnectionError("not yet")
    write_mark(ctx, key, ended=True)
    return padding


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
