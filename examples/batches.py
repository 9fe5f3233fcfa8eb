"""A function that takes many items at once, and callers that have one each.

    python examples/batches.py

The worker collects the jobs of ``embed`` and calls it with up to 100 texts. Each caller gets the result of
its own text, or its own failure.
"""

import asyncio
import logging

from gearflow import Batch, JobServer, TaskFailed, connect, task
from gearflow.worker import Worker

sizes: list[int] = []  # of the batches
words = [f"word {number}" for number in range(250)]


def vector(text: str) -> list[float]:
    """The vector of a text; not a good one."""
    return [float(len(text)), float(sum(map(ord, text)))]


@task(batch=Batch(100, wait=0.2))
def embed(texts: list[str]) -> list[list[float] | Exception]:
    """The vector of each text."""
    sizes.append(len(texts))
    return [vector(text) if text else ValueError("there is no text") for text in texts]


async def use() -> None:
    """Call it for one text, for many, and for none."""
    print("one:", await embed.acall("hello"))
    print("many:", len(await embed.amap(words)))
    try:
        await embed.acall("")
    except TaskFailed as error:
        print("none:", error)


async def main() -> None:
    """Run a server, a worker and the calls."""
    logging.getLogger("gearflow.worker").setLevel(logging.CRITICAL)  # it would tell of the failure, too
    async with (
        JobServer(port=0) as server,
        connect(server.address),
        Worker([embed], servers=[server.address]),
    ):
        await use()
    print("called", "often" if len(sizes) > 100 else "a few times")


asyncio.run(main())
