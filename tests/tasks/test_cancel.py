"""A caller that wants a job no more, by every verb: gearflow's server ends it, on gearmand it runs on."""

import gc
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from typing import TypeAlias, cast

import anyio
import anyio.to_thread
import pytest

from gearflow.client import Admin, Client, SyncClient, connect
from gearflow.tasks import task

Serve: TypeAlias = Callable[..., AbstractAsyncContextManager[Client]]
ServeSync: TypeAlias = Callable[..., AbstractContextManager[SyncClient]]
Fresh: TypeAlias = Callable[..., str]

on_gearflow = pytest.mark.parametrize("any_server", ["bundled"], indirect=True)
on_gearmand = pytest.mark.parametrize("any_server", ["gearmand"], indirect=True)


class Endless:
    """A task that goes on until it is cancelled, or let go; for workers in the test's own loop."""

    def __init__(self, name: str) -> None:
        self.running = 0
        self.started = anyio.Event()
        self.cancelled = anyio.Event()
        self.let_go = anyio.Event()

        @task(name=name)
        async def endless(n: int = 0) -> int:
            self.running += 1
            self.started.set()
            try:
                await self.let_go.wait()
            except anyio.get_cancelled_exc_class():
                self.cancelled.set()
                raise
            finally:
                self.running -= 1
            return n

        self.task = endless


@pytest.fixture
def endless(fresh: Fresh) -> Endless:
    return Endless(fresh())


@task
async def echo(n: int) -> int:
    return n


async def jobs(server: str, function: str) -> int:
    rows = await Admin(server).status()
    return next((row.total for row in rows if row.name == function.encode()), 0)


# ------------------------------------------------------------------------------------------ by every verb


@on_gearflow
async def test_a_cancelled_acall_cancels(serve: Serve, endless: Endless) -> None:
    async with serve(endless.task), anyio.create_task_group() as callers:
        callers.start_soon(endless.task.acall)
        await endless.started.wait()
        callers.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await endless.cancelled.wait()


@on_gearflow
async def test_cancel_is_heard_at_once_here_and_then_by_the_worker(serve: Serve, endless: Endless) -> None:
    async with serve(endless.task, echo):
        job = await endless.task.asubmit()
        await endless.started.wait()
        assert job.cancel()
        assert job.done
        with pytest.raises(CancelledError, match="it ends unless others wait for it"):
            await job
        assert not endless.cancelled.is_set()
        await endless.cancelled.wait()
        assert await echo.acall(1) == 1


@on_gearflow
async def test_a_job_that_waits_is_not_run(serve: Serve, endless: Endless, bundled: str) -> None:
    async with serve(endless.task, concurrency=1) as client:
        first = await endless.task.asubmit()
        await endless.started.wait()
        second = await endless.task.asubmit()
        assert await jobs(bundled, endless.task.name) == 2
        second.cancel()
        await client.echo(b"all before is taken in")
        assert await jobs(bundled, endless.task.name) == 1
        endless.let_go.set()
        assert await first == 0


@on_gearflow
@pytest.mark.parametrize("limit", [None, 0.01])
async def test_giving_up_a_wait_leaves_the_job_attached(
    serve: Serve, endless: Endless, limit: float | None
) -> None:
    async with serve(endless.task):
        job = await endless.task.asubmit(7)
        await endless.started.wait()
        if limit is None:
            with anyio.move_on_after(0):
                await job
        else:
            with pytest.raises(TimeoutError, match="runs on"):
                await job.result(limit)
        endless.let_go.set()
        assert await job == 7
        assert not endless.cancelled.is_set()


@on_gearflow
async def test_leaving_a_batch_early_cancels_what_is_in_flight(serve: Serve, fresh: Fresh) -> None:
    others_started, others_ended = anyio.Event(), anyio.Event()
    running = 0

    @task(name=fresh())
    async def first_only(n: int) -> int:
        nonlocal running
        if n == 0:
            await others_started.wait()
            return 0
        running += 1
        if running == 3:
            others_started.set()
        try:
            await anyio.sleep_forever()
        finally:
            running -= 1
            if not running:
                others_ended.set()
        return n

    async with serve(first_only):
        async for n in first_only.amap(range(4)):
            assert n == 0
            break
        await others_ended.wait()


class Owner:
    """Has a batch, and itself, so that only a garbage collection ends it."""

    def __init__(self, run: AsyncIterator[int]) -> None:
        self.run = run
        self.me = self


@on_gearflow
async def test_a_batch_that_is_collected_in_another_thread_cancels_too(
    serve: Serve, fresh: Fresh, endless: Endless
) -> None:
    @task(name=fresh())
    async def first_only(n: int) -> int:
        return await endless.task(n) if n else 0

    async def begin() -> None:
        owner = Owner(aiter(first_only.amap(range(2))))
        assert await anext(owner.run) == 0

    async with serve(first_only):
        await begin()
        await endless.started.wait()
        await anyio.to_thread.run_sync(gc.collect)
        await endless.cancelled.wait()


@on_gearflow
def test_a_blocking_batch_that_is_collected_anywhere_cancels_too(serve_sync: ServeSync, fresh: Fresh) -> None:
    started, cancelled = threading.Event(), threading.Event()

    @task(name=fresh())
    async def first_only(n: int) -> int:
        if n:
            started.set()
            try:
                await anyio.sleep_forever()
            finally:
                cancelled.set()
        return n

    async def collect(_: Client) -> None:
        gc.collect()

    with serve_sync(first_only) as client:
        cycle: list[object] = [iter(first_only.map(range(2)))]
        cycle.append(cycle)
        assert next(cast("Iterator[int]", cycle[0])) == 0
        assert started.wait(10)
        del cycle
        client.run(collect)  # in the thread that a blocking call would wait for
        assert cancelled.wait(10)


@on_gearflow
def test_a_blocking_callers_cancel_is_heard_too(serve_sync: ServeSync, fresh: Fresh) -> None:
    started, cancelled = threading.Event(), threading.Event()

    @task(name=fresh())
    async def endless() -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    with serve_sync(endless):
        job = endless.submit()
        assert started.wait(10)
        assert job.cancel()
        with pytest.raises(CancelledError):
            job.result()
        assert cancelled.wait(10)


INTERRUPTED = """
import signal, sys
from gearflow import task

@task(name=sys.argv[1], foreign=True)
def endless(n: int = 0) -> int: ...

try:
    endless.call()
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.stdin.read()
"""


@on_gearflow
async def test_an_interrupted_call_cancels(serve: Serve, endless: Endless, any_server: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED, endless.task.name]
    async with (
        serve(endless.task),
        await anyio.open_process(
            command, env={"GEARMAN_SERVERS": any_server}, stdin=subprocess.PIPE, stderr=None
        ) as caller,
    ):
        await endless.started.wait()
        caller.send_signal(signal.SIGINT)
        await endless.cancelled.wait()  # while the caller still lives, and has its connection
        assert caller.stdin is not None
        assert caller.stdout is not None
        assert await caller.stdout.receive() == b"interrupted\n"
        await caller.stdin.aclose()
        assert await caller.wait() == 0


@on_gearflow
async def test_a_caller_whose_connection_closes_wants_its_jobs_no_more(
    serve: Serve, endless: Endless, any_server: str
) -> None:
    async with serve(endless.task):
        async with connect(any_server):
            await endless.task.asubmit()
            await endless.started.wait()
        await endless.cancelled.wait()


# -------------------------------------------------------------------------------------- others want it too


@asynccontextmanager
async def joined(endless: Endless, server: str) -> AsyncGenerator[None]:
    """Within the block one caller has joined the job of another, on its own connection, and cancelled."""
    async with connect(server) as client:
        job = await endless.task.options(unique="k").asubmit(7)
        await endless.started.wait()
        job.cancel()
        await client.echo(b"all before is taken in")
        yield


@on_gearflow
async def test_another_caller_still_gets_the_result(serve: Serve, endless: Endless, any_server: str) -> None:
    async with serve(endless.task):
        kept = await endless.task.options(unique="k").asubmit(7)
        async with joined(endless, any_server):
            endless.let_go.set()
            assert await kept == 7
    assert not endless.cancelled.is_set()


@on_gearflow
async def test_another_call_of_the_same_process_still_gets_the_result(serve: Serve, endless: Endless) -> None:
    unique = endless.task.options(unique="k")
    async with serve(endless.task) as client:
        kept, gone = await unique.asubmit(7), await unique.asubmit(7)
        await endless.started.wait()
        gone.cancel()
        await client.echo(b"all before is taken in")
        endless.let_go.set()
        assert await kept == 7
    assert not endless.cancelled.is_set()


@on_gearflow
async def test_a_job_that_was_joined_in_the_background_lives_on(
    serve: Serve, endless: Endless, any_server: str
) -> None:
    async with serve(endless.task):
        ref = await endless.task.options(unique="k").abackground(7)
        async with joined(endless, any_server):
            endless.let_go.set()
            assert await ref.aresult() == 7
    assert not endless.cancelled.is_set()


# ------------------------------------------------------------------------------------------- on gearmand


@on_gearmand
async def test_gearmand_is_not_told_and_the_job_runs_on(serve: Serve, endless: Endless) -> None:
    async with serve(endless.task, echo):
        job = await endless.task.asubmit()
        await endless.started.wait()
        assert job.cancel()
        with pytest.raises(CancelledError, match="the job may run on"):
            await job
        assert await echo.acall(1) == 1
        assert endless.running == 1
        endless.let_go.set()
    assert not endless.cancelled.is_set()
