"""taskiq on Redis streams (which acknowledge), results in Redis.

Coroutines, on uvloop; two processes for CPU work and for tasks that do nothing.
"""

import asyncio

import harness
import uvloop
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

broker = RedisStreamBroker(f"redis://{harness.BROKER}/0", consumer_id="0").with_result_backend(
    RedisAsyncResultBackend(f"redis://{harness.BROKER}/1")
)


@broker.task
async def noop(number: int) -> None:
    harness.mark()


@broker.task
async def spin(number: int) -> None:
    harness.spin()


@broker.task
async def nap(number: int) -> None:
    await harness.async_nap()


@broker.task
async def hang(number: int) -> None:
    await harness.async_hang()


TASKS = {"noop": noop, "spin": spin, "nap": nap, "hang": hang}
POLL = 0.001  # seconds; its default is 0.2
AT_ONCE = 100


class Connected:
    async def __aenter__(self) -> None:
        await broker.startup()

    async def __aexit__(self, *_: object) -> None:
        await broker.shutdown()


class Taskiq:
    connected = Connected
    loop_factory = staticmethod(uvloop.new_event_loop)

    def work(self, kind: str, slots: int) -> None:
        processes = 2 if kind in ("cpu", "noop") else 1
        options = ("--workers", processes, "--max-async-tasks", slots // processes, "--log-level", "ERROR")
        harness.become("taskiq", "worker", "with_taskiq:broker", *options)

    async def enqueue(self, name: str, count: int) -> None:
        numbers = iter(range(count))

        async def submitter() -> None:
            for number in numbers:
                await TASKS[name].kiq(number)

        await asyncio.gather(*(submitter() for _ in range(AT_ONCE)))

    async def submit(self) -> None:
        await noop.kiq(1)

    async def call(self) -> None:
        await (await noop.kiq(1)).wait_result(check_interval=POLL)

    async def gather(self, count: int) -> None:
        waits = [(await noop.kiq(number)).wait_result(check_interval=0.02) for number in range(count)]
        await asyncio.gather(*waits)


SIDE = Taskiq()
