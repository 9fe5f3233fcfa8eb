"""What the soak's workers run: tasks that write down that they begin, and that they have ended."""

import asyncio
import os
import time
from functools import cache

from gearflow import Context, task
from tests.soak.audit import Mark
from tests.soak.census import Census, census

LOG = "SOAK_LOG"
"""The environment variable that names the file."""


@task
async def answer(ctx: Context, key: str, pause: float = 0.0) -> str:
    """Wait so many seconds on the event loop."""
    write_mark(ctx, key, ended=False)
    await asyncio.sleep(pause)
    write_mark(ctx, key, ended=True)
    return f"did {key}"


@task
def note(ctx: Context, key: str, pause: float = 0.0) -> str:
    """Wait so many seconds in a thread."""
    write_mark(ctx, key, ended=False)
    time.sleep(pause)
    write_mark(ctx, key, ended=True)
    return f"did {key}"


@task
async def count() -> Census:
    """What the worker's own process holds."""
    return census(os.getpid(), tasks=len(asyncio.all_tasks()))


def write_mark(ctx: Context, key: str, *, ended: bool) -> None:
    """Note that a run begins, or has ended."""
    mark = Mark(time.monotonic(), key, ctx.handle, os.getpid(), ended)
    os.write(_log(), mark.to_line())  # in one write: many processes append to the file


@cache
def _log() -> int:
    return os.open(os.environ[LOG], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
