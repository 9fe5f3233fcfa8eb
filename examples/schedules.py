"""Tasks that run by the clock: the server makes the jobs, also those of times that have passed.

    python examples/schedules.py

``@task(schedule=...)`` declares a schedule, and ``gearflow cron apply`` gives it to a server. Schedules of
users come and go while the program runs, so code puts them with ``client.schedules``.
"""

import asyncio
from datetime import UTC, datetime

from gearflow import Context, Cron, Every, JobServer, connect, task
from gearflow.worker import Worker


@task
async def report(ctx: Context, city: str) -> None:
    """What a user wants to read in the morning."""
    await ran.put(f"{city}: the report of {ctx.scheduled_at}")


ran: asyncio.Queue[str] = asyncio.Queue()


async def main() -> None:
    """Make schedules, and wait for their jobs."""
    async with (
        JobServer(port=0) as server,
        Worker([report], servers=[server.address], concurrency=1),
        connect(server.address) as client,
    ):
        mornings = Cron("0 8 * * *", tz="Europe/Paris")
        await client.schedules.put("report-42", report, mornings, args={"city": "Paris"})
        await client.schedules.put("report-43", report, Every(seconds=1), args={"city": "Oslo"})
        print((await ran.get()).partition(":")[0], "has its report each second")
        await client.schedules.delete("report-43")

        start, end = datetime(2026, 3, 28, tzinfo=UTC), datetime(2026, 3, 29, 12, tzinfo=UTC)
        made = await client.schedules.backfill("report-42", start, end)
        print(f"{made.jobs} mornings that have passed:")
        seen: set[str] = set()
        while len(seen) < made.jobs:
            line = await ran.get()
            seen |= {line} if line.startswith("Paris") else set()
        print("\n".join(sorted(seen)))


if __name__ == "__main__":
    asyncio.run(main())
