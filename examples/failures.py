"""What goes wrong, and how the caller hears of it.

    python examples/failures.py

A shop that sells pears only. What does not fit the types is refused before it is sent. What the task
raises on the worker is raised at the caller: as ``TaskFailed``, and as its own class as well. A task that
takes too long is stopped on the worker; a caller who has waited too long just stops waiting.
"""

import asyncio
import logging
from typing import Any, cast

from gearflow import JobServer, NoServer, PayloadInvalid, TaskFailed, TaskTimeout, connect, task
from gearflow.worker import Worker

PRICES = {"pear": 30}


@task
def price(fruit: str, number: int) -> int:
    """What it costs, in cents."""
    return PRICES[fruit] * number


@task(timeout=0.1)
async def ripen(seconds: float) -> str:
    """May take a tenth of a second."""
    await asyncio.sleep(seconds)
    return "ripe"


async def main() -> None:
    """Make every mistake once."""
    logging.getLogger("gearflow.worker").setLevel(logging.CRITICAL)  # it would tell of the failures, too
    async with JobServer(port=0) as server, connect(server.address):
        async with Worker([price, ripen], servers=[server.address]):
            print("three pears:", await price.acall("pear", 3))

            try:
                await price.acall("pear", cast(Any, "a few"))  # a type checker would tell
            except PayloadInvalid as error:
                print("not sent:", error.errors[0]["loc"], error.errors[0]["msg"])

            try:
                await price.acall("plum", 1)
            except KeyError as error:
                print("on the worker:", repr(error))
                print("also a TaskFailed:", isinstance(error, TaskFailed))

            try:
                await ripen.acall(3600)
            except TaskTimeout as error:
                print("stopped there:", error)

            job = await ripen.options(timeout=60).asubmit(0.3)
            try:
                await job.result(timeout=0.01)
            except TimeoutError:
                print("waited too long; the job runs on, and can be waited for again:", await job)

        address = server.address
    try:
        async with connect(address):
            await price.acall("pear", 1)
    except NoServer as error:
        print("nobody there:", type(error).__name__)


if __name__ == "__main__":
    asyncio.run(main())
