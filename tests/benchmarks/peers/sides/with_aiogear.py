"""aiogear on a Gearman server, on uvloop: a connection for each slot, all in one process; two for CPU work.

A client waits for JOB_CREATED of one submission before it can tell the next one's apart, and remembers each
background job for as long as it is connected. So many jobs go through many connections, side by side.
"""

import asyncio
from contextlib import asynccontextmanager

import harness
import uvloop
from aiogear import Client, Worker

host, _, port = harness.BROKER.rpartition(":")
CONNECTIONS = 200


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
    loop_factory = staticmethod(uvloop.new_event_loop)

    @asynccontextmanager
    async def connected(self):
        loop = asyncio.get_running_loop()
        made = [
            loop.create_connection(lambda: Client(loop=loop), host, int(port)) for _ in range(CONNECTIONS)
        ]
        self.clients = [client for _, client in await asyncio.gather(*made)]
        yield
        for client in self.clients:
            await client.disconnect()  # else its __del__ does, when the loop is closed

    def work(self, kind: str, slots: int) -> None:
        processes = slots if kind == "cpu" else 1
        harness.in_processes(processes, lambda: uvloop.run(_serve(slots // processes)))

    async def enqueue(self, name: str, count: int) -> None:
        numbers = iter(range(count))

        async def submitter(client) -> None:
            for number in numbers:
                await client.submit_job_bg(name, str(number))

        await asyncio.gather(*map(submitter, self.clients))

    async def submit(self) -> None:
        await self.clients[0].submit_job_bg("noop", "1")

    async def call(self) -> None:
        await self._result(self.clients[0], 1)

    async def gather(self, count: int) -> None:
        clients = [self.clients[number % CONNECTIONS] for number in range(count)]
        await asyncio.gather(*map(self._result, clients, range(count)))

    async def _result(self, client, number: int) -> None:
        job = await client.submit_job("noop", str(number))
        await client.wait_job(job.handle)


SIDE = Aiogear()
