"""arq on uvloop: coroutines in one process; two for CPU work and for tasks that do nothing.

It polls its queue; the pause is set low.
"""

import asyncio
from contextlib import asynccontextmanager
from functools import partial

import harness
import uvloop
from arq import create_pool, run_worker
from arq.connections import RedisSettings

host, _, port = harness.BROKER.rpartition(":")
REDIS = RedisSettings(host or "127.0.0.1", int(port or 6379))
POLL = 0.001  # seconds; its default is 0.5
AT_ONCE = 100


async def noop(ctx: object, number: int) -> None:
    harness.mark()


async def spin(ctx: object, number: int) -> None:
    harness.spin()


async def nap(ctx: object, number: int) -> None:
    await harness.async_nap()


async def hang(ctx: object, number: int) -> None:
    await harness.async_hang()


class Settings:
    functions = (noop, spin, nap, hang)
    redis_settings = REDIS
    poll_delay = 0.01  # seconds; its default is 0.5


class Arq:
    loop_factory = staticmethod(uvloop.new_event_loop)

    @asynccontextmanager
    async def connected(self):
        self.pool = await create_pool(REDIS)
        yield
        await self.pool.aclose()

    def work(self, kind: str, slots: int) -> None:
        processes = 2 if kind in ("cpu", "noop") else 1
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        harness.in_processes(processes, partial(run_worker, Settings, max_jobs=slots // processes))

    async def enqueue(self, name: str, count: int) -> None:
        numbers = iter(range(count))

        async def submitter() -> None:
            for number in numbers:
                await self.pool.enqueue_job(name, number)

        await asyncio.gather(*(submitter() for _ in range(AT_ONCE)))

    async def submit(self) -> None:
        await self.pool.enqueue_job("noop", 1)

    async def call(self) -> None:
        job = await self.pool.enqueue_job("noop", 1)
        await job.result(poll_delay=POLL)

    async def gather(self, count: int) -> None:
        jobs = [await self.pool.enqueue_job("noop", number) for number in range(count)]
        await asyncio.gather(*(job.result(poll_delay=0.02) for job in jobs))


SIDE = Arq()
