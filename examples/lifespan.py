"""What a worker's tasks share is opened once, and each run is wrapped.

    python examples/lifespan.py

The hook opens a shop's books before the first job comes, and closes them when the last run has ended. The
middleware is around each run: it notes who failed, and lets the failure pass on to the caller.
"""

import asyncio
from collections.abc import AsyncIterator
from contextvars import ContextVar

from gearflow import JobServer, Proceed, RunInfo, connect, lifespan, middleware, task
from gearflow.worker import Worker

books: ContextVar[dict[str, int]] = ContextVar("books")


@lifespan
async def opened_books() -> AsyncIterator[None]:
    """The books, which all tasks find in a context variable."""
    print("the books are opened")
    books.set({"pear": 30, "plum": 5})
    yield
    print("the books are closed")


@middleware
async def noted(run: RunInfo, proceed: Proceed) -> None:
    """Note how each run ends."""
    try:
        await proceed()
    except KeyError as error:
        print(f"{run.task}, attempt {run.attempt}: there is no {error}")
        raise
    print(f"{run.task}, attempt {run.attempt}: done")


@task
def price(fruit: str, number: int) -> int:
    """What so many cost."""
    return books.get()[fruit] * number


async def main() -> None:
    """Ask for a price that is in the books, and for one that is not."""
    async with (
        JobServer(port=0) as server,
        Worker([price], servers=[server.address]),
        connect(server.address),
    ):
        print("three pears:", await price.acall("pear", 3))
        try:
            await price.acall("rock", 1)
        except KeyError:
            print("no rocks today")


if __name__ == "__main__":
    asyncio.run(main())
