"""procrastinate on PostgreSQL. The variant is the database.

Coroutines, on uvloop. Jobs come from a NOTIFY, and from a poll. A worker deletes the jobs that it has done,
or keeps them (``kept``). Its pool has a connection for each slot.
"""

import asyncio

import harness
import uvloop
from procrastinate import App, PsycopgConnector

HOST, _, PORT = harness.BROKER.partition(":")
BATCH = 1000
SLOTS = 20

app = App(
    connector=PsycopgConnector(
        conninfo=f"host={HOST} port={PORT} dbname={harness.VARIANT} user=gearflow", min_size=1, max_size=SLOTS
    )
)


@app.task(name="noop")
async def noop(number: int) -> None:
    harness.mark()


class Connected:
    async def __aenter__(self) -> None:
        await app.open_async()
        if not await app.check_connection_async():
            await app.schema_manager.apply_schema_async()

    async def __aexit__(self, *_: object) -> None:
        await app.close_async()


class Procrastinate:
    connected = Connected
    loop_factory = staticmethod(uvloop.new_event_loop)

    def work(self, kind: str, slots: int) -> None:
        with asyncio.Runner(loop_factory=self.loop_factory) as runner:
            runner.run(self._work("never" if kind == "kept" else "successful", slots))

    async def _work(self, delete_jobs: str, slots: int) -> None:
        async with Connected():
            await app.run_worker_async(
                concurrency=slots, delete_jobs=delete_jobs, install_signal_handlers=False
            )

    async def enqueue(self, name: str, count: int) -> None:
        for start in range(0, count, BATCH):
            numbers = range(start, min(start + BATCH, count))
            await noop.batch_defer_async(*({"number": number} for number in numbers))

    async def submit(self) -> None:
        await noop.defer_async(number=1)


SIDE = Procrastinate()
