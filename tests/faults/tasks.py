"""What workers run while they are replaced."""

import time

import anyio

from gearflow import task


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
