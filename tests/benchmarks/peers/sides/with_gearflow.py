"""gearflow: coroutines; CPU work in two worker processes. ``submit`` is its blocking client's."""

import harness
import uvloop

from gearflow import configure, connect, task

if harness.BROKER:
    configure(harness.BROKER)


@task
async def noop(number: int) -> None:
    harness.mark()


@task
async def spin(number: int) -> None:
    harness.spin()


@task
async def nap(number: int) -> None:
    await harness.async_nap()


@task
async def hang(number: int) -> None:
    await harness.async_hang()


TASKS = {"noop": noop, "spin": spin, "nap": nap, "hang": hang}


class Gearflow:
    connected = staticmethod(connect)
    loop_factory = staticmethod(uvloop.new_event_loop)

    def work(self, kind: str, slots: int) -> None:
        shape = ("--processes", slots, "-c", 1) if kind == "cpu" else ("-c", slots)
        options = ("-s", harness.BROKER, "--log-level", "warning", *shape)
        harness.become("python", "-m", "gearflow_cli", "worker", "with_gearflow", *options)

    async def enqueue(self, name: str, count: int) -> None:
        await TASKS[name].abackground_many(range(count))

    def submit(self) -> None:
        noop.background(1)

    async def call(self) -> None:
        await noop.acall(1)

    async def gather(self, count: int) -> None:
        await noop.amap(range(count), window=count)


SIDE = Gearflow()
