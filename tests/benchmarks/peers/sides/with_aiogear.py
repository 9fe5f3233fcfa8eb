"""aiogear on a Gearman server: a connection for each slot, all in one process; two processes for CPU work."""

import asyncio
from contextlib import asynccontextmanager

import harness
from aiogear import Client, Worker

host, _, port = harness.BROKER.rpartition(":")


async def noop(job: object) -> str:
    harness.mark()
    return ""


async def spin(job: object) -> str:
    harness.spin()
    return ""


async def nap(job: object) -> str:
    await harness.async_nap()
    return ""


async def hang(job: object) -> str:
    await harness.async_hang()
    return ""


async def _serve(slots: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(slots):
        await loop.create_connection(lambda: Worker(noop, spin, nap, hang, loop=loop), host, int(port))
    await asyncio.Event().wait()


class Aiogear:
    @asynccontextmanager
    async def connected(self):
        loop = asyncio.get_running_loop()
        _, self.client = await loop.create_connection(lambda: Client(loop=loop), host, int(port))
        yield
        await self.client.disconnect()  # else its __del__ does, when the loop is closed

    def work(self, kind: str, slots: int) -> None:
        processes = slots if kind == "cpu" else 1
        harness.in_processes(processes, lambda: asyncio.run(_serve(slots // processes)))

    async def enqueue(self, name: str, count: int) -> None:
        for number in range(count):
            await self.client.submit_job_bg(name, str(number))

    async def submit(self) -> None:
        await self.client.submit_job_bg("noop", "1")

    async def call(self) -> None:
        await self._result(await self.client.submit_job("noop", "1"))

    async def gather(self, count: int) -> None:
        jobs = [await self.client.submit_job("noop", str(number)) for number in range(count)]
        for job in jobs:
            await self._result(job)

    async def _result(self, created) -> None:
        await self.client.wait_job(created.handle)


SIDE = Aiogear()
