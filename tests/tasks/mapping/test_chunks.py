"""Small items share jobs, and each still has its own result, error, limit and retries."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack
from itertools import count
from typing import Any, TypeAlias, cast

import anyio
import pytest

from gearflow.client import Client, ClientJob, SyncClient, connect
from gearflow.errors import PayloadInvalid, RemoteProtocolError, TaskCrashed, TaskFailed, TaskTimeout
from gearflow.server import JobServer
from gearflow.tasks import Context, Discard, Fail, RunInfo, Snooze, TryAgain, task
from gearflow.tasks.hooks import Proceed
from gearflow.worker import Worker

Serve: TypeAlias = Callable[..., AbstractAsyncContextManager[Client]]
ServeSync: TypeAlias = Callable[..., AbstractContextManager[SyncClient]]
Fresh: TypeAlias = Callable[..., str]


@task
async def square(n: int) -> int:
    return n * n


@task
def halve(n: int) -> int:
    if n % 2:
        raise LookupError(n)
    return n // 2


@task
async def join(parts: list[str]) -> str:
    return "".join(parts)


@task
async def spell(n: int, times: int = 1) -> str:
    return f"{n} " * times


@task(executor="process")
def in_process(n: int) -> int:
    if n == 2:
        os._exit(3)
    if n == 3:
        raise LookupError(n)
    return n


@task
async def blob(data: bytes) -> bytes:
    return data


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches of jobs that are submitted."""
    sizes: list[int] = []
    attach, attach_many = Client.attach, Client.attach_many

    async def one(client: Client, request: Any) -> ClientJob:
        sizes.append(1)
        return await attach(client, request)

    async def many(client: Client, orders: Any) -> Any:
        sizes.append(len(orders))
        return await attach_many(client, orders)

    monkeypatch.setattr(Client, "attach", one)
    monkeypatch.setattr(Client, "attach_many", many)
    return sizes


# ---------------------------------------------------------------------------------------------- results


@pytest.mark.parametrize("size", [0, 1, 2, 9, 10, 11, 1000])
async def test_items_share_jobs_and_results_stay_theirs(serve: Serve, jobs: list[int], size: int) -> None:
    async with serve(square, halve):
        assert await square.amap(range(size), chunk=10) == [n * n for n in range(size)]
        assert sum(jobs) == -(-size // 10)
        assert await halve.amap(range(0, 2 * size, 2), chunk=10) == list(range(size))


async def test_results_of_chunks_may_come_as_jobs_end(serve: Serve) -> None:
    async with serve(square):
        results = square.amap(range(100), chunk=7, ordered=False, window=3)
        assert sorted(await results) == [n * n for n in range(100)]


async def test_tuples_of_arguments_share_jobs(serve: Serve) -> None:
    async with serve(spell):
        assert await spell.astarmap([(1, 2), (3, 1)], chunk=2) == ["1 1 ", "3 "]


async def test_a_reduction_of_chunks_keeps_the_order(serve: Serve) -> None:
    async with serve(spell, join):
        for size in (0, 1, 50):
            reduced = await spell.amap(range(size), chunk=4).reduce(join, fan_in=3)
            assert reduced == "".join(f"{n} " for n in range(size))


def test_the_blocking_face_has_chunks(serve_sync: ServeSync) -> None:
    with serve_sync(square, halve):
        assert square.map(range(100), chunk=8).results() == [n * n for n in range(100)]
        results = halve.map(range(20), chunk=8, errors="skip")
        assert results.results() == list(range(10))
        assert results.failed == 10


async def test_payloads_of_any_bytes_share_jobs(serve: Serve) -> None:
    blobs = [b"", b"\0gf1", b"\0gfc", b"\0" * 100, b"x" * 70_000, bytes(range(256))]
    async with serve(blob):
        assert await blob.amap(blobs, chunk=3) == blobs
        assert await blob.options(timeout=30).amap(blobs, chunk=6) == blobs


async def test_large_payloads_fill_a_chunk(serve: Serve, jobs: list[int]) -> None:
    async with serve(blob):
        blobs = [bytes(600_000)] * 6
        assert await blob.amap(blobs, chunk=100) == blobs
        assert sum(jobs) == 3


async def test_items_that_are_not_there_yet_are_not_waited_for(serve: Serve) -> None:
    send, receive = anyio.create_memory_object_stream[int](10)
    async with serve(square), receive, send:
        results = aiter(square.amap(receive, chunk=100))
        for n in range(5):
            send.send_nowait(n)
            assert await anext(results) == n * n
        send.close()
        with pytest.raises(StopAsyncIteration):
            await anext(results)


async def test_progress_counts_items_and_not_jobs(serve: Serve) -> None:
    told: list[int] = []
    async with serve(square):
        await square.amap(range(5), chunk=5, progress=lambda done, _: told.append(done))
    assert told == [1, 2, 3, 4, 5]


async def test_endless_items_are_taken_as_there_is_room(serve: Serve) -> None:
    items = count()
    async with serve(square):
        results = aiter(square.amap(items, chunk=5, window=2))
        for n in range(50):
            assert await anext(results) == n * n
        assert next(items) <= 50 + 15


# --------------------------------------------------------------------------------------------- failures


async def test_each_item_has_its_own_error(serve: Serve) -> None:
    async with serve(halve):
        results = await halve.amap(range(6), chunk=4, errors="collect")
    assert [isinstance(each, LookupError) for each in results] == [False, True] * 3
    error = results[1]
    assert isinstance(error, TaskFailed)
    assert (error.message, error.handle is not None) == ("1", True)
    assert "raise LookupError(n)" in (error.traceback or "")


async def test_the_first_failure_in_a_chunk_is_raised(serve: Serve) -> None:
    async with serve(halve):
        results = halve.amap([0, 2, 3, 5], chunk=4)
        with pytest.raises(LookupError, match="3"):
            await results
    assert [(failed.index, failed.item) for failed in results.errors] == [(2, 3)]


async def test_each_item_is_validated_on_its_own(serve: Serve, fresh: Fresh) -> None:
    wrong: Any = [1, "two", 3]
    async with serve(square):
        results = square.amap(wrong, chunk=3, errors="skip")
        assert await results == [1, 9]
        assert isinstance(results.errors[0].error, PayloadInvalid)
        with pytest.raises(PayloadInvalid):
            await square.amap(wrong, chunk=3)

    @task(name=fresh())
    async def wrong_result(n: int) -> int:
        result = n or cast(Any, "none")
        return cast(int, result)

    async with serve(wrong_result):
        results = wrong_result.amap(range(3), chunk=3, errors="skip")
        assert await results == [1, 2]
        assert isinstance(results.errors[0].error, PayloadInvalid)


async def test_what_decides_about_a_job_decides_about_an_item(serve: Serve, fresh: Fresh) -> None:
    @task(name=fresh())
    async def decided(n: int) -> int:
        if n == 1:
            raise Discard("not this one")
        if n == 2:
            raise Fail
        return n

    async with serve(decided):
        _, discarded, failed, last = await decided.amap(range(4), chunk=4, errors="collect")
    assert isinstance(discarded, TaskFailed)
    assert "not this one" in discarded.message
    assert isinstance(failed, TaskFailed)
    assert failed.type is None
    assert last == 3


async def test_an_item_runs_again_as_often_as_without_a_chunk(serve: Serve, fresh: Fresh) -> None:
    attempts: list[tuple[int, int]] = []

    @task(name=fresh(), retries=2)
    async def third_time(ctx: Context, n: int) -> int:
        attempts.append((n, ctx.attempt))
        if n == 1 and ctx.attempt < 3:
            raise OSError("not yet")
        if n == 2:
            raise OSError("never")
        return n

    async with serve(third_time):
        results = third_time.amap(range(4), chunk=4, errors="skip")
        assert await results == [0, 1, 3]
    assert [(failed.index, failed.error.message) for failed in results.errors] == [(2, "never")]
    assert sorted(attempts) == [(0, 1), (1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (3, 1)]


async def test_an_item_may_ask_for_another_run(serve: Serve, fresh: Fresh) -> None:
    seen: list[tuple[int, int]] = []

    @task(name=fresh())
    async def later(ctx: Context, n: int) -> int:
        seen.append((n, ctx.attempt))
        if seen.count((n, ctx.attempt)) == 1 and ctx.attempt == 1:
            if n == 1:
                raise Snooze(0)
            if n == 2:
                raise TryAgain(0)
        return n

    async with serve(later):
        assert await later.amap(range(3), chunk=3) == [0, 1, 2]
    assert sorted(seen) == [(0, 1), (1, 1), (1, 1), (2, 1), (2, 2)]


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_limit_is_that_of_an_item(serve: Serve, fresh: Fresh, kind: str) -> None:
    released = threading.Event()

    @task(name=fresh(), timeout=1)
    async def sleepy(n: int) -> int:
        if n == 1:
            await anyio.sleep_forever()
        return n  # the items after it begin when its time is up

    @task(name=fresh(), timeout=1)
    def blocked(n: int) -> int:
        if n == 1:
            released.wait(60)
        return n

    called = sleepy if kind == "async" else blocked
    async with serve(called):
        results = called.amap(range(8), chunk=8, errors="skip")
        assert await results == [0, 2, 3, 4, 5, 6, 7]
        released.set()
    assert isinstance(results.errors[0].error, TaskTimeout)


async def test_the_deadline_is_that_of_an_item(serve: Serve, fresh: Fresh) -> None:
    @task(name=fresh(), timeout=30)
    async def deadline(ctx: Context, n: int) -> float:
        await anyio.sleep(0.01)  # the clock goes on
        assert ctx.deadline is not None
        return ctx.deadline

    async with serve(deadline):
        first, second, third = await deadline.amap(range(3), chunk=3)
    assert first < second < third


async def test_processes_run_each_item_and_a_crash_is_that_of_its_item(serve: Serve, fresh: Fresh) -> None:
    async with serve(in_process):
        results = in_process.amap(range(1, 6), chunk=5, errors="skip")
        assert await results == [1, 4, 5]
    crashed, raised = results.errors
    assert isinstance(crashed.error, TaskCrashed)
    assert isinstance(raised.error, LookupError)


async def test_middleware_is_called_around_each_item(any_server: str, fresh: Fresh) -> None:
    seen: list[tuple[str, int]] = []

    @task(name=fresh())
    def plain(n: int) -> int:
        return 1 // n

    async def count_runs(info: RunInfo, proceed: Proceed) -> None:
        try:
            await proceed()
        except ZeroDivisionError:
            seen.append(("failed", info.attempt))
            raise
        seen.append(("done", info.attempt))

    async with Worker([plain], servers=[any_server], middleware=[count_runs], drain=0) as worker:
        await worker.ready.wait()
        async with connect(any_server):
            assert await plain.amap([1, 0, 1], chunk=3, errors="skip") == [1, 1]
    assert seen == [("done", 1), ("failed", 1), ("done", 1)]


KILLER = """
import os, sys
from gearflow import task
from gearflow.worker import Worker
import anyio

@task(name=sys.argv[2])
def deadly(n: int) -> int:
    if n == 3:
        os._exit(1)
    return n

async def main():
    async with Worker([deadly], servers=[sys.argv[1]], concurrency=int(sys.argv[3])) as worker:
        await anyio.sleep_forever()

anyio.run(main)
"""


@pytest.mark.parametrize("slots", [1, 10])
def test_an_item_that_kills_its_workers_fails_alone(fresh: Fresh, slots: int) -> None:
    @task(name=fresh())
    def deadly(n: int) -> int: ...  # type: ignore[empty-body]  # never runs

    with JobServer(port=0, max_deaths=1) as server, ExitStack() as stack, connect(server.address):
        for _ in range(3):  # two of them die
            command = [sys.executable, "-c", KILLER, server.address, deadly.name, str(slots)]
            worker = stack.enter_context(subprocess.Popen(command))
            stack.callback(worker.kill)
        results = deadly.map(range(5), chunk=5, errors="skip")
        assert results.results(timeout=60) == [0, 1, 2, 4]
    assert [(failed.index, failed.error.type) for failed in results.errors] == [(3, "WorkersDied")]


# ------------------------------------------------------------------------------------------- cancellation


async def test_leaving_a_batch_stops_its_chunks(bundled: str, fresh: Fresh) -> None:
    begun, stopped = anyio.Event(), anyio.Event()

    @task(name=fresh())
    async def endless(n: int) -> int:
        if n:
            begun.set()
            try:
                await anyio.sleep_forever()
            finally:
                stopped.set()
        return n

    async with Worker([endless], servers=[bundled], drain=0) as worker, connect(bundled):
        await worker.ready.wait()
        with anyio.move_on_after(60) as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(endless.amap(range(3), chunk=3).results)
                await begun.wait()
                tasks.cancel_scope.cancel()
            await stopped.wait()
        assert not scope.cancelled_caught


@pytest.mark.parametrize("timeout", [None, 60.0])
async def test_a_thread_makes_no_further_calls_of_a_chunk_that_nobody_wants(
    bundled: str, fresh: Fresh, timeout: float | None
) -> None:
    begun = anyio.Event()
    calls: list[int] = []

    @task(name=fresh(), timeout=timeout)
    def noted(ctx: Context, n: int) -> int:
        calls.append(n)
        client.post(begun.set)
        while not ctx.cancelled:
            time.sleep(0.001)  # a thread has to look, because nothing wakes it
        return n

    with anyio.fail_after(60):
        async with Worker([noted], servers=[bundled], drain=0) as worker, connect(bundled) as client:
            await worker.ready.wait()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(noted.amap(range(100), chunk=100).results)
                await begun.wait()
                tasks.cancel_scope.cancel()
            while worker.runs():  # noqa: ASYNC110  (nothing says when a run for nobody has ended)
                await anyio.sleep(0.01)
    assert calls == [0]


# -------------------------------------------------------------------------------------------------- misuse


def test_what_cannot_share_jobs_is_refused() -> None:
    @task(name="elsewhere", foreign=True)
    def elsewhere(n: int) -> int: ...  # type: ignore[empty-body]  # never runs

    @task(name="keyed", unique=True)
    def keyed(n: int) -> int: ...  # type: ignore[empty-body]  # never runs

    with pytest.raises(TypeError, match="another program runs elsewhere"):
        elsewhere.map([1], chunk=2)
    with pytest.raises(ValueError, match=r"chunk= and unique=.*options\(unique=False\)"):
        keyed.amap([1], chunk=2)
    keyed.options(unique=False).amap([1], chunk=2)
    with pytest.raises(ValueError, match="chunk= and options="):
        square.amap([1], chunk=2, options=lambda _: {"priority": "high"})
    with pytest.raises(ValueError, match="chunk=0"):
        square.amap([1], chunk=0)


async def test_a_worker_of_another_kind_is_told_apart(
    bundled: str, fresh: Fresh, program: Callable[[str], str]
) -> None:
    @task(name=fresh())
    async def ours(n: int) -> int: ...  # type: ignore[empty-body]  # never runs

    host, _, port = bundled.partition(":")
    command = [program("gearman"), "-h", host, "-p", port, "-w", "-f", ours.name, "cat"]
    async with await anyio.open_process(command, stderr=None) as process, connect(bundled):
        with pytest.raises(RemoteProtocolError, match="leave out chunk="):
            await ours.amap([1, 2], chunk=2)
        process.kill()
