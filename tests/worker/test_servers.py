"""One worker on several servers: all at once, none of them starves, and each may go and come."""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

import anyio

from gearflow.client import Client
from gearflow.server import JobServer
from gearflow.tasks import task
from gearflow.worker import Worker
from tests.worker.scripted import scripted_server

JOBS = 60  # of each server


async def test_servers_with_much_to_do_are_served_in_turn(fresh: Callable[..., str]) -> None:
    all_slots_taken, go_on, all_begun = anyio.Event(), anyio.Event(), anyio.Event()
    runs: list[int] = []

    @task(name=fresh("ping"))
    async def ping() -> None: ...

    @task(name=fresh())
    async def work(server: int) -> None:
        runs.append(server)
        if len(runs) == 4:  # perhaps by the jobs of one server
            all_slots_taken.set()
        if len(runs) == 3 * JOBS:
            all_begun.set()
        await go_on.wait()

    with anyio.fail_after(20), ExitStack() as stack:
        servers = [stack.enter_context(JobServer(port=0)).address for _ in range(3)]
        async with Worker([ping, work], servers=servers, concurrency=4):
            for server in servers:
                async with Client([server]) as client:
                    await (await client.submit(ping.name, b"")).result()  # it is connected there
            for number, server in enumerate(servers):
                async with Client([server]) as client:
                    for _ in range(JOBS):
                        await client.submit_background(work.name, b'{"server": %d}' % number)
            await all_slots_taken.wait()
            go_on.set()
            await all_begun.wait()
    assert Counter(runs) == dict.fromkeys(range(3), JOBS)
    midst = Counter(runs[45:120])  # before that, the worker may not have heard of all servers' jobs
    assert min(midst[server] for server in range(3)) >= 12, runs


async def test_functions_are_registered_anew_with_each_connection(fresh: Callable[..., str]) -> None:
    names = [fresh("one"), fresh("two")]

    def made() -> None: ...

    tasks = [task(name=name)(made) for name in names]
    with anyio.fail_after(10):
        async with scripted_server() as server, Worker(tasks, servers=[server.address], first_retry=0.01):
            for _ in range(3):
                peer = await server.accept()
                assert await peer.sleeping(2) == [name.encode() for name in names]
                await peer.close()
