"""What signals do to a worker."""

import os
import signal

import anyio
import anyio.lowlevel

from gearflow.client import Client
from gearflow.tasks import task
from gearflow.worker import Worker, run_with_signals


async def test_the_first_signal_finishes_what_runs(any_server: str, function: str) -> None:
    began, go_on = anyio.Event(), anyio.Event()
    ended: list[int | None] = []

    @task(name=function)
    async def slow() -> None:
        began.set()
        await go_on.wait()

    worker = Worker([slow], servers=[any_server])

    async def serve() -> None:
        ended.append(await run_with_signals(worker))

    with anyio.fail_after(10):
        async with Client([any_server]) as client, anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            job = await client.submit(function, b"{}")
            await began.wait()
            os.kill(os.getpid(), signal.SIGTERM)
            while not worker.stopping:
                await anyio.lowlevel.checkpoint()
            go_on.set()
            assert await job.result() == b"null"
    assert ended == [None]


async def test_the_second_signal_leaves_at_once_and_is_named(any_server: str, function: str) -> None:
    began, over = anyio.Event(), anyio.Event()
    ended: list[int | None] = []

    @task(name=function)
    async def hangs() -> None:
        began.set()
        await anyio.sleep_forever()

    worker = Worker([hangs], servers=[any_server])

    async def serve() -> None:
        ended.append(await run_with_signals(worker))
        over.set()

    with anyio.fail_after(10):
        async with Client([any_server]) as client, anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            job = await client.submit(function, b"{}")
            await began.wait()
            os.kill(os.getpid(), signal.SIGTERM)
            while not worker.stopping:
                await anyio.lowlevel.checkpoint()
            os.kill(os.getpid(), signal.SIGINT)
            await over.wait()
            assert ended == [signal.SIGINT]
            assert (await client.status(job.handle)).known
            job.cancel()
