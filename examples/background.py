"""Jobs that nobody waits for: priorities, one run for identical calls, a delay.

    python examples/background.py

The jobs are put on the server's queue before any worker is there. The worker that comes later takes the
high priority first; the two reports for May are one job, because they have one ``unique``; and the
reminder comes when its time has come.
"""

import asyncio

from gearflow import JobServer, connect, task
from gearflow.worker import Worker

done: asyncio.Queue[str] = asyncio.Queue()


@task
async def remind(of: str) -> None:
    """Remind of something."""
    await done.put(f"remember: {of}")


@task(unique=True)
async def report(month: str) -> None:
    """Make the report of a month; asked for twice, it is made once."""
    await done.put(f"the report for {month}")


async def main() -> None:
    """Queue, then work."""
    async with JobServer(port=0) as server, connect(server.address):
        await remind.options(delay=1).abackground("the milk")
        april = await report.abackground("April")
        may = await report.abackground("May")
        again = await report.abackground("May")
        await remind.options(priority="high").abackground("the house is on fire")
        print("May twice, one job:", may == again)
        print("April is waiting:", await april.astatus())

        async with Worker([remind, report], servers=[server.address], concurrency=1):
            for _ in range(4):
                print(await done.get())


if __name__ == "__main__":
    asyncio.run(main())
