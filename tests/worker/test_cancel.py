"""A job that is cancelled at gearflow's own server while it runs here."""

import logging
import threading
from collections.abc import Callable

import anyio
import pytest

from gearflow.client import Admin
from gearflow.client.ambient import connect
from gearflow.errors import TaskFailed
from gearflow.tasks import Context, task
from gearflow.worker import Worker

Fresh = Callable[..., str]


async def running(server: str, function: str) -> int:
    rows = await Admin(server).status()
    return next(row.running for row in rows if row.name == function.encode())


async def test_a_coroutine_is_cancelled_and_the_caller_hears_a_failure(
    bundled: str, fresh: Fresh, caplog: pytest.LogCaptureFixture
) -> None:
    started, cleaned_up = anyio.Event(), anyio.Event()

    @task(name=fresh())
    async def endless() -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            cleaned_up.set()

    @task(name=fresh())
    async def other() -> int:
        return 1

    caplog.set_level(logging.INFO, "gearflow.worker")
    with anyio.fail_after(10):
        async with connect(bundled), Worker([endless, other], servers=[bundled]) as worker:
            job = await endless.asubmit()
            await started.wait()
            await Admin(bundled).cancel_job(job.handle)
            with pytest.raises(TaskFailed):
                await job
            await cleaned_up.wait()
            assert await other.acall() == 1  # its end came after that of the cancelled one
            assert await running(bundled, endless.name) == 0
            assert worker.running == 0
    assert "job cancelled" in caplog.text


async def test_a_thread_is_told_and_its_slot_is_free_when_it_has_ended(bundled: str, fresh: Fresh) -> None:
    started = threading.Event()
    seen = threading.Event()

    @task(name=fresh())
    def watchful(ctx: Context) -> str:
        started.set()
        while not ctx.cancelled:
            pass
        seen.set()
        return "too late"

    @task(name=fresh())
    async def other() -> bool:
        return seen.is_set()

    with anyio.fail_after(10):
        async with connect(bundled), Worker([watchful, other], servers=[bundled], concurrency=1):
            job = await watchful.asubmit()
            await anyio.to_thread.run_sync(started.wait)
            await Admin(bundled).cancel_job(job.handle)
            with pytest.raises(TaskFailed):
                await job
            assert await other.acall()
            assert await running(bundled, watchful.name) == 0
