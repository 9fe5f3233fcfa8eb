"""A job that nobody wants any more while it runs here, and threads that go on after the end of theirs."""

import logging
import threading
from collections.abc import Callable

import anyio
import pytest

from gearflow.client import Admin, Client
from gearflow.client.current import connect
from gearflow.client.operate import workers
from gearflow.errors import ServerError, TaskFailed, TaskTimeout
from gearflow.protocol.packets import (
    CanDo,
    GrabJobUniq,
    JobCreated,
    NoJob,
    OptionReq,
    OptionRes,
    PreSleep,
    SetClientId,
    SubmitJob,
    WorkComplete,
)
from gearflow.protocol.server_calls import EVENTS
from gearflow.protocol.workers import REPORT
from gearflow.tasks import Context, task
from gearflow.worker import Worker
from tests.worker.scripted import scripted_server

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
    assert ("gearflow.worker", logging.INFO, "job cancelled") in caplog.record_tuples


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


async def test_a_coroutine_has_time_to_tidy_up_and_is_not_disturbed(bundled: str, fresh: Fresh) -> None:
    started, tidying, may_end = anyio.Event(), anyio.Event(), anyio.Event()
    tidied = False

    @task(name=fresh())
    async def careful() -> None:
        nonlocal tidied
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):  # which trio wants
                tidying.set()
                await may_end.wait()
                tidied = True

    with anyio.fail_after(10):
        async with connect(bundled) as client, Worker([careful], servers=[bundled]) as worker:
            job = await careful.asubmit()
            await started.wait()
            job.cancel()
            await tidying.wait()
            with pytest.raises(ServerError, match="UNKNOWN_JOB"):
                await Admin(bundled).cancel_job(job.handle)  # again
            await client.echo(b"the worker has been told")
            assert worker.running == 1
            may_end.set()
    assert tidied


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("first", ["the caller", "the limit"])
async def test_a_coroutine_that_is_cancelled_for_two_reasons_is_cancelled_once(
    bundled: str, fresh: Fresh, caplog: pytest.LogCaptureFixture, first: str
) -> None:
    limit = 0.1
    started, tidying, may_end = anyio.Event(), anyio.Event(), anyio.Event()
    tidied = False

    @task(name=fresh(), timeout=limit)
    async def careful() -> None:
        nonlocal tidied
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            tidying.set()
            await may_end.wait()
            tidied = True

    caplog.set_level(logging.INFO, "gearflow.worker")
    with anyio.fail_after(10):
        async with connect(bundled) as client, Worker([careful], servers=[bundled]) as worker:
            job = await careful.asubmit()
            await (started if first == "the caller" else tidying).wait()
            job.cancel()
            await tidying.wait()
            await client.echo(b"the worker has been told")
            await anyio.sleep(limit)
            assert worker.running == 1
            may_end.set()
    assert tidied
    assert ("gearflow.worker", logging.INFO, "job cancelled") in caplog.record_tuples


async def test_a_thread_learns_that_its_caller_has_gone(bundled: str, fresh: Fresh) -> None:
    started, seen = threading.Event(), threading.Event()

    @task(name=fresh())
    def watchful(ctx: Context) -> str:
        started.set()
        while not ctx.cancelled:
            pass
        seen.set()
        return "too late"

    with anyio.fail_after(10):
        async with Worker([watchful], servers=[bundled]):
            async with connect(bundled):
                await watchful.asubmit()
                await anyio.to_thread.run_sync(started.wait)
            await anyio.to_thread.run_sync(seen.wait)


async def test_the_server_knows_of_threads_that_overran(bundled: str, fresh: Fresh) -> None:
    let_go = threading.Event()

    @task(name=fresh(), timeout=0.01)
    def slow() -> None:
        let_go.wait(10)

    @task(name=fresh())
    async def other() -> int:
        return 1

    async def overdue(client: Client) -> dict[str, int]:
        (mine,) = [row for row in await workers(client) if slow.name in row.functions]
        return mine.overdue

    with anyio.fail_after(10):
        async with connect(bundled) as client, Worker([slow, other], servers=[bundled], concurrency=1):
            with pytest.raises(TaskTimeout):
                await slow.acall()
            assert await overdue(client) == {slow.name: 1}
            let_go.set()
            assert await other.acall() == 1  # it has the slot
            assert await overdue(client) == {}


async def test_a_worker_reports_which_of_its_tasks_take_a_text(bundled: str, fresh: Fresh) -> None:
    @task(name=fresh())
    def greet(ctx: Context, name: str) -> str:
        return name

    @task(name=fresh())
    def repeat(text: str, times: int = 2) -> str:
        return text * times

    @task(name=fresh())
    def add(a: int) -> int:
        return a

    with anyio.fail_after(10):
        async with connect(bundled) as client, Worker([greet, repeat, add], servers=[bundled]):
            await greet.acall("Bob")  # its worker sends the report before the result
            (mine,) = [each for each in await workers(client) if greet.name in each.functions]
            assert mine.texts == {greet.name: "name"}


async def test_a_server_that_comes_back_is_told_again(fresh: Fresh) -> None:
    let_go = threading.Event()

    @task(name=fresh(), timeout=0.01)
    def slow() -> None:
        let_go.wait(10)

    report = {"overdue": {slow.name: 1}}
    with anyio.fail_after(10):
        async with (
            scripted_server() as server,
            Worker([slow], servers=[server.address], concurrency=1, first_retry=0.001, drain=0),
        ):
            peer = await server.accept()
            (function,) = await peer.register()
            await peer.assign(function, b"{}")
            assert await peer.answered(REPORT) == report
            await peer.close()
            peer = await server.accept()  # it is asked for nothing: no slot is free
            for kind in (OptionReq, SetClientId, CanDo):
                await peer.expect_a(kind)
            await peer.send(OptionRes(b"gearflow"))
            told: set[bytes] = set()
            for _ in range(2):
                call = await peer.expect_a(SubmitJob)
                told.add(call.function)
                await peer.send(JobCreated(call.function))
                if call.function == REPORT:
                    await peer.send(WorkComplete(REPORT, b'{"jobs":1}'))
            assert told == {EVENTS, REPORT}
            let_go.set()
            assert await peer.answered(REPORT) == {}
            await peer.expect_a(GrabJobUniq)
            await peer.send(NoJob())
            await peer.expect_a(PreSleep)
