"""What computes for long gets a process of its own: it holds up nobody, and can be stopped.

    python examples/cpu_bound.py

A worker counts prime numbers in two processes at once, while a coroutine of the same worker goes on. A
search that would never end is killed when its time is over. One that takes its process down fails alone, and
its caller hears how.
"""

import asyncio
import logging
import os
import re

from gearflow import Context, JobServer, TaskCrashed, TaskTimeout, connect, task
from gearflow.worker import Worker


@task(executor="process")
def primes(ctx: Context, start: int, stop: int) -> int:
    """How many there are."""
    found = 0
    for number in ctx.track(range(max(start, 2), stop)):
        found += all(number % factor for factor in range(2, int(number**0.5) + 1))
    return found


@task(executor="process", timeout=0.2)
def is_boring(text: str) -> bool:
    """Asked in a way that takes some billion years for the wrong text, without letting other threads run."""
    return re.fullmatch(r"(a+)+", text) is not None


@task(executor="process")
def reckless() -> None:
    """Ends its process."""
    print("here goes nothing")
    os._exit(3)


@task
async def greet(name: str) -> str:
    """Runs on the worker's event loop."""
    return f"hello {name}"


async def main() -> None:
    """Compute, and be stopped."""
    logging.getLogger("gearflow.worker").setLevel(logging.CRITICAL)  # it would tell of the failures, too
    async with (
        JobServer(port=0) as server,
        connect(server.address),
        Worker([primes, is_boring, reckless, greet], servers=[server.address]),
    ):
        halves = [await primes.asubmit(0, 10_000), await primes.asubmit(10_000, 20_000)]
        print(await greet.acall("there"))
        print("primes below 20000:", sum([await half for half in halves]))

        print("boring:", await is_boring.acall("aaaa"))
        try:
            await is_boring.acall("a" * 64 + "b")
        except TaskTimeout as error:
            print("stopped:", error)

        try:
            await reckless.acall()
        except TaskCrashed as error:
            first, *lines = str(error).splitlines()
            print("crashed:", first.partition(";")[0])
            print("its last words:", *lines)


if __name__ == "__main__":
    asyncio.run(main())
