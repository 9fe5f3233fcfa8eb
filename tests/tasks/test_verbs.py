"""Calling tasks on real workers, through both servers, on both event loops, and without one."""

import math
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import timedelta
from typing import Any, TypeAlias

import anyio
import pytest
from anyio.lowlevel import checkpoint
from pydantic import BaseModel

from gearflow.client import Client, JobFailed, SyncClient, connect
from gearflow.errors import (
    NoServer,
    PayloadInvalid,
    TaskFailed,
    TaskTimeout,
    UnsupportedByServer,
)
from gearflow.protocol.packets import WorkStatus, WorkWarning
from gearflow.tasks import Context, Task, task
from gearflow.tasks.remote_errors import decode_failure

Serve: TypeAlias = Callable[..., AbstractAsyncContextManager[Client]]
ServeSync: TypeAlias = Callable[..., AbstractContextManager[SyncClient]]
Fresh: TypeAlias = Callable[..., str]

NOWHERE = "127.0.0.1:1"  # nothing listens there


class Picture(BaseModel):
    url: str
    data: bytes = b"\xff\0"


class OutOfInk(Exception):
    def __init__(self, colour: str, page: int) -> None:
        super().__init__(f"no {colour} on page {page}")


@task
def add(a: int, b: int = 2, *, c: int = 0) -> int:
    return a + b + c


@task
async def shrink(ctx: Context, picture: Picture) -> list[Picture]:
    ctx.progress(1, 2)
    ctx.warn("small already")
    return [picture, Picture(url=ctx.handle, data=ctx.function.encode())]


@task
def reverse(data: bytes) -> bytes:
    return data[::-1]


@task
def fail(colour: str, page: int) -> None:
    raise OutOfInk(colour, page)


@task(timeout=0.05)
async def hang() -> None:
    await anyio.sleep_forever()


@task
async def sleep(seconds: float) -> None:
    await anyio.sleep(seconds)


class Gate:
    """A task that waits until the test lets it go; for tests whose worker is in their own loop."""

    def __init__(self, name: str) -> None:
        self.entered = anyio.Event()
        self.open = anyio.Event()
        self.runs = 0

        @task(name=name)
        async def wait() -> int:
            self.runs += 1
            self.entered.set()
            await self.open.wait()
            return self.runs

        self.task = wait


@pytest.fixture
def gate(fresh: Fresh) -> Gate:
    return Gate(fresh())


# ----------------------------------------------------------------------------------------------- waiting


async def test_a_call_returns_what_the_task_returned(serve: Serve) -> None:
    async with serve(add, reverse, shrink):
        assert await add.acall(1) == 3
        assert await add.acall(1, b=5, c=10) == 16
        assert await reverse.acall(b"\0\xff\1") == b"\1\xff\0"
        first, second = await shrink.acall(Picture(url="x"))
        assert first == Picture(url="x")
        assert second.url.startswith("H:")
        assert second.data == shrink.name.encode()


async def test_what_the_task_raised_is_raised_as_itself_and_as_task_failed(serve: Serve) -> None:
    async with serve(fail):
        with pytest.raises(OutOfInk, match="no red on page 7") as caught:
            await fail.acall("red", page=7)
        failure: object = caught.value
        assert isinstance(failure, TaskFailed)
        assert failure.traceback is not None
        assert "raise OutOfInk" in failure.traceback
        assert "/gearflow/worker/" not in failure.traceback


async def test_the_worker_goes_on_after_failures(serve: Serve) -> None:
    async with serve(add, fail):
        for _ in range(20):
            with pytest.raises(OutOfInk):
                await fail.acall("red", 7)
        assert await add.acall(1) == 3


async def test_a_payload_that_the_worker_refuses_comes_back_with_its_faults(serve: Serve) -> None:
    async with serve(add) as client:
        job = await client.submit(add.name, b'{"a":"x","z":1}')
        with pytest.raises(JobFailed) as caught:
            await job.result()
        failure = decode_failure(caught.value.exception, job.handle)
        assert isinstance(failure, PayloadInvalid)
        assert [error["loc"] for error in failure.errors] == [["a"], ["z"]]
        assert await add.acall(1) == 3


async def test_a_run_limit_stops_the_task(serve: Serve) -> None:
    async with serve(hang, sleep):
        with pytest.raises(TaskTimeout, match=r"hang.*0\.05 s"):
            await hang.acall()
        with pytest.raises(TaskTimeout):
            await sleep.options(timeout=0.05).acall(3600)
        await sleep.options(timeout=30).acall(0)


async def test_the_calls_limit_replaces_the_tasks(serve: Serve, fresh: Fresh) -> None:
    @task(name=fresh(), timeout=0.001)
    async def quick() -> str:
        await anyio.sleep(0.05)
        return "done"

    async with serve(quick):
        assert await quick.options(timeout=30).acall() == "done"


async def test_limiting_the_wait_leaves_the_job_running_and_attached(serve: Serve, gate: Gate) -> None:
    async with serve(gate.task):
        job = await gate.task.asubmit()
        with pytest.raises(TimeoutError, match="runs on") as caught:
            await job.result(timeout=timedelta(milliseconds=10))
        with pytest.raises(ValueError, match="timeout=nan: it is a number of seconds"):
            await job.result(timeout=math.nan)
        assert not isinstance(caught.value, TaskFailed)
        assert not job.done
        gate.open.set()
        assert await job == 1
        assert await job.result() == 1
        assert job.done


async def test_a_job_knows_its_handle_server_and_status(serve: Serve, gate: Gate, any_server: str) -> None:
    async with serve(gate.task):
        job = await gate.task.asubmit()
        await gate.entered.wait()
        status = await job.status()
        assert (status.known, status.running) == (True, True)
        assert job.handle.startswith("H:")
        assert str(job.server) == any_server
        gate.open.set()
        await job


async def test_progress_and_warnings_reach_an_attached_client(serve: Serve) -> None:
    async with serve(shrink) as client:
        job = await client.submit(shrink.name, shrink.payload.encode((Picture(url="x"),), {}))
        events = [type(event) async for event in job.events()]
        assert events == [WorkStatus, WorkWarning]
        await job.result()


async def test_a_result_that_does_not_fit_the_callers_type_is_payload_invalid(
    serve: Serve, fresh: Fresh
) -> None:
    name = fresh()

    @task(name=name)
    def text() -> str:
        return "no number"

    foreign: Task[[], int] = Task(add_up_nothing, name=name, foreign=True)
    async with serve(text):
        with pytest.raises(PayloadInvalid, match="the result"):
            await foreign.acall()


def add_up_nothing() -> int:
    raise NotImplementedError


# ---------------------------------------------------------------------------------------- before sending


async def test_nothing_is_sent_that_does_not_fit() -> None:
    async with connect(NOWHERE):
        wrong: Any = "many"
        with pytest.raises(PayloadInvalid):
            await add.acall(wrong)
        with pytest.raises(PayloadInvalid):
            await add.abackground(wrong)
        with pytest.raises(TypeError, match="multiple values"):
            await add.acall(1, a=1)  # type: ignore[misc]  # pyright: ignore[reportCallIssue]
        with pytest.raises(ValueError, match="give unique="):
            await add.options(reuse=True).acall(1)
        with pytest.raises(NoServer):
            await add.acall(1)


async def test_a_blocking_verb_in_an_event_loop_names_its_twin() -> None:
    await checkpoint()
    blocking: list[tuple[Callable[[int], object], str]] = [
        (add.call, "acall"),
        (add.submit, "asubmit"),
        (add.background, "abackground"),
    ]
    for verb, twin in blocking:
        with pytest.raises(RuntimeError, match=rf"await add\.{twin}\("):
            verb(1)
    with pytest.raises(RuntimeError, match=r"await double\.amap"):
        double.map([1]).results()


@task
def double(a: int) -> int:
    return 2 * a


# -------------------------------------------------------------------------------------------- background


async def test_a_background_job_runs_for_nobody(serve: Serve, gate: Gate) -> None:
    async with serve(gate.task):
        ref = await gate.task.abackground()
        await gate.entered.wait()
        assert (await ref.astatus()).running
        gate.open.set()


async def test_a_delayed_job_waits_at_the_server(any_server: str, fresh: Fresh) -> None:
    later: Task[[], int] = Task(add_up_nothing, name=fresh())
    async with connect(any_server):
        ref = await later.options(delay=3600).abackground()
        status = await ref.astatus()
        assert (status.known, status.running) == (True, False)


async def test_on_gearmand_a_delayed_job_has_normal_priority(gearmand: str, fresh: Fresh) -> None:
    later: Task[[], int] = Task(add_up_nothing, name=fresh())
    async with connect(gearmand):
        with pytest.raises(UnsupportedByServer, match="priority"):
            await later.options(delay=3600, priority="high").abackground()


async def test_priorities_decide_among_waiting_jobs(serve: Serve, any_server: str, fresh: Fresh) -> None:
    ran: list[str] = []
    name = fresh()

    async def function(word: str) -> None:
        ran.append(word)

    note: Task[[str], None] = Task(function, name=name)
    async with connect(any_server):
        jobs = [
            await note.options(priority=priority).asubmit(priority) for priority in ("low", "normal", "high")
        ]
        async with serve(note, concurrency=1):
            for job in jobs:
                await job
    assert ran == ["high", "normal", "low"]


async def test_calls_with_one_unique_are_one_run(serve: Serve, gate: Gate) -> None:
    async with serve(gate.task):
        coalesced = gate.task.options(unique=True)
        first = await coalesced.asubmit()
        second = await coalesced.asubmit()
        assert first.handle == second.handle
        gate.open.set()
        assert [await first, await second] == [1, 1]
        assert gate.runs == 1


# ---------------------------------------------------------------------------------- without an event loop


def test_the_blocking_verbs_do_the_same(serve_sync: ServeSync) -> None:
    with serve_sync(add, fail, reverse):
        assert add.call(1, c=5) == 8
        assert reverse.call(b"ab") == b"ba"
        with pytest.raises(OutOfInk, match="no red"):
            fail.call("red", 7)
        job = add.submit(1)
        assert job.result(timeout=30) == 3
        assert job.done
        assert not job.cancel()
        assert not job.status().known
        ref = add.background(1)
        assert ref.handle.startswith("H:")
        assert isinstance(ref.status().known, bool)


def test_several_threads_share_a_client(serve_sync: ServeSync, any_server: str) -> None:
    sums: list[int] = []

    def count() -> None:
        with connect(any_server):
            sums.extend(add.call(n) for n in range(10))

    with serve_sync(add):
        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(sums) == sorted([n + 2 for n in range(10)] * 4)


async def test_a_blocking_job_is_not_waited_for_in_an_event_loop(serve: Serve) -> None:
    async with serve(add):
        job = await anyio.to_thread.run_sync(lambda: add.submit(1))
        for blocking in (job.result, job.status):
            with pytest.raises(RuntimeError, match=r"await add\.asubmit\("):
                blocking()
        assert await anyio.to_thread.run_sync(job.result) == 3
