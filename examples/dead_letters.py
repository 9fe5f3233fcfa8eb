"""Jobs that failed for good are kept: read them, mend what was wrong, run them again.

    python examples/dead_letters.py

``gearflow dead list``, ``show``, ``replay`` and ``purge`` do in the shell what is done here in Python.
"""

import asyncio
import logging

from gearflow import JobServer, TaskFailed, connect, task
from gearflow.client.operate import dead_letter, dead_letters, purge_dead, replay
from gearflow.worker import Worker

PRICES = {"pear": 30}


@task
def price(fruit: str, number: int) -> int:
    """What it costs, in cents."""
    return PRICES[fruit] * number


async def main() -> None:
    """Fail, look, mend, replay."""
    logging.getLogger("gearflow.worker").setLevel(logging.CRITICAL)  # it would tell of the failures, too
    async with (
        JobServer(port=0) as server,
        Worker([price], servers=[server.address]),
        connect(server.address) as client,
    ):
        plum = await price.abackground("plum", 2)
        rock = await price.abackground("rock", 1)
        for ref in (plum, rock):
            try:
                await ref.aresult(timeout=30)
            except TaskFailed as error:
                print("failed:", error)

        for job in await dead_letters(client):
            assert job.failure is not None
            print("a dead letter:", job.state, job.failure.type, job.failure.message)
        print("its payload:", (await dead_letter(client, plum.handle)).text)

        PRICES["plum"] = 20  # a new version of the worker, as it were
        print("replayed:", (await replay(client, plum.handle)).jobs)
        print("the result:", await plum.aresult(timeout=30))

        print("purged:", await purge_dead(client, function=price.name))
        print("dead letters:", len(await dead_letters(client)))


if __name__ == "__main__":
    asyncio.run(main())
