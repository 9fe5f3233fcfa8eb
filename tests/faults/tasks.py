"""What workers run while they are replaced."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio

from gearflow import Context, task


@task
async def triple(number: int) -> int:
    """Takes a moment on the event loop, so that a stop finds some of them running."""
    await anyio.sleep(0.02)
    return number * 3


@task
def double(number: int) -> int:
    """Takes a moment in a thread."""
    time.sleep(0.02)
    return number * 2


@task
async def count(to: int) -> AsyncIterator[int]:
    """Yields numbers as fast as they are taken."""
    for number in range(1, to + 1):
        yield number


@task(resumable=True)
async def resume(ctx: Context, to: int) -> AsyncIterator[int]:
    """Yields the same numbers, and goes on where the last run was."""
    for number in range(ctx.parts + 1, to + 1):
        yield number


def is_first(flag: str) -> bool:
    """Whether no run was here before. A file says so to the runs of other processes."""
    try:
        Path(flag).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@task
async def halt(flag: str, at: int, to: int) -> AsyncIterator[int]:
    """The first run stops at a number, until its worker is killed. The file says that it was there."""
    for number in range(1, to + 1):
        yield number
        if number == at and is_first(flag):
            await anyio.sleep_forever()


@task(resumable=True)
async def halt_and_resume(ctx: Context, flag: str, at: int, to: int) -> AsyncIterator[int]:
    """The same, and goes on where the last run was."""
    for number in range(ctx.parts + 1, to + 1):
        yield number
        if number == at and is_first(flag):
            await anyio.sleep_forever()
