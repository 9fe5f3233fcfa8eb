"""A worker on real servers: C gearmand and gearflow's own, on both event loops."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from pydantic import BaseModel

from gearflow.client import Client, JobFailed
from gearflow.client.current import connect
from gearflow.errors import PayloadInvalid, TaskFailed, TaskTimeout
from gearflow.protocol.envelope import wrap
from gearflow.protocol.packets import Packet, WorkStatus, WorkWarning
from gearflow.tasks import Context, Ref, task
from gearflow.worker import Worker, WorkerSettings
from tests.worker.conftest import Gearmand

Fresh = Callable[..., str]

colour: ContextVar[str] = ContextVar("colour", default="none")


class Point(BaseModel):
    x: int
    y: int


async def test_async_and_plain_tasks_run_and_return_typed_results(any_server: str, fresh: Fresh) -> None:
    @task(name=fresh("mirror"))
    async def mirror(point: Point) -> Point:
        return Point(x=-point.x, y=point.y)

    @task(name=fresh("total"))
    def total(numbers: list[int], start: int = 0) -> int:
        return sum(numbers, start)

    with anyio.fail_after(10):
        async with connect(any_server), Worker([mirror, total], servers=[any_server]):
            assert await mirror.acall(Point(x=1, y=2)) == Point(x=-1, y=2)
            assert await total.acall([1, 2, 3], start=4) == 10


async def test_a_task_that_blocks_does_not_hold_up_the_others(any_server: str, fresh: Fresh) -> None:
    release = threading.Event()

    @task(name=fresh("blocks"))
    def blocks() -> str:
        return "released" if release.wait(10) else "forgotten"

    @task(name=fresh("releases"))
    async def releases() -> None:
        release.set()

    with anyio.fail_after(10):
        async with connect(any_server), Worker([blocks, releases], servers=[any_server], concurrency=2):
            job = await blocks.asubmit()
            await releases.acall()
            assert await job == "released"


async def test_no_more_jobs_run_at_once_than_there_are_slots(any_server: str, fresh: Fresh) -> None:
    running, most = 0, 0
    all_slots_taken = anyio.Event()

    @task(name=fresh("counted"))
    async def counted(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 3:
            all_slots_taken.set()
        await all_slots_taken.wait()
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        running -= 1
        return number

    with anyio.fail_after(20):
        async with connect(any_server), Worker([counted], servers=[any_server], concurrency=3):
            jobs = [await counted.asubmit(number) for number in range(50)]
            assert [await job for job in jobs] == list(range(50))
    assert most == 3


async def test_a_plain_task_reports_in_order_before_its_result(any_server: str, function: str) -> None:
    @task(name=function)
    def reports(ctx: Context) -> str:
        ctx.progress(1, 2)
        ctx.warn("half")
        ctx.progress(2, 2)
        return ctx.handle

    with anyio.fail_after(10):
        async with Client([any_server]) as client, Worker([reports], servers=[any_server]):
            job = await client.submit(function, b"{}")
            events: list[Packet] = [event async for event in job.events()]
            handle = job.handle.encode()
            assert events == [
                WorkStatus(handle, b"1", b"2"),
                WorkWarning(handle, b"half"),
                WorkStatus(handle, b"2", b"2"),
            ]
            assert await job.result() == b'"%b"' % handle or await job.result() == handle


async def test_of_progress_that_nothing_could_be_sent_between_the_first_and_the_last_are_sent(
    any_server: str, function: str
) -> None:
    @task(name=function)
    async def hasty(ctx: Context) -> None:
        for step in range(10_000):
            ctx.progress(step + 1, 10_000)

    with anyio.fail_after(10):
        async with Client([any_server]) as client, Worker([hasty], servers=[any_server]):
            job = await client.submit(function, b"{}")
            events = [event async for event in job.events()]
            handle = job.handle.encode()
            assert events == [WorkStatus(handle, b"1", b"10000"), WorkStatus(handle, b"10000", b"10000")]


async def test_a_thread_sees_the_context_variables_of_the_worker(any_server: str, function: str) -> None:
    @task(name=function)
    def look() -> str:
        return colour.get()

    colour.set("blue")
    with anyio.fail_after(10):
        async with connect(any_server), Worker([look], servers=[any_server]):
            assert await look.acall() == "blue"


async def test_a_thread_may_run_an_event_loop_of_its_own(any_server: str, function: str) -> None:
    @task(name=function)
    def nested() -> int:
        async def answer() -> int:
            return 42

        return anyio.run(answer)

    with anyio.fail_after(10):
        async with connect(any_server), Worker([nested], servers=[any_server]):
            assert await nested.acall() == 42


async def test_a_task_may_call_another_task(any_server: str, fresh: Fresh) -> None:
    @task(name=fresh("inner"))
    async def inner(number: int) -> int:
        return number + 1

    @task(name=fresh("outer"))
    async def outer(number: int) -> int:
        return 10 * await inner.acall(number)

    with anyio.fail_after(10):
        async with connect(any_server), Worker([inner, outer], servers=[any_server]):
            assert await outer.acall(1) == 20


# --------------------------------------------------------------------------------------------- failures


async def test_what_a_task_raises_reaches_the_caller_and_the_worker_goes_on(
    any_server: str, fresh: Fresh
) -> None:
    @task(name=fresh("fails"))
    async def fails(key: str) -> None:
        raise KeyError(key)

    @task(name=fresh("fails_in_thread"))
    def fails_in_thread(key: str) -> None:
        raise KeyError(key)

    with anyio.fail_after(10):
        async with connect(any_server), Worker([fails, fails_in_thread], servers=[any_server]):
            for failing in (fails, fails_in_thread, fails):
                with pytest.raises(TaskFailed, match="lost") as caught:
                    await failing.acall("lost")
                assert isinstance(caught.value, KeyError)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_a_task_cannot_end_its_worker(any_server: str, fresh: Fresh, kind: type[BaseException]) -> None:
    @task(name=fresh("exits"))
    async def exits() -> None:
        raise kind("bye")

    @task(name=fresh("exits_in_thread"))
    def exits_in_thread() -> None:
        raise kind("bye")

    with anyio.fail_after(10):
        async with connect(any_server), Worker([exits, exits_in_thread], servers=[any_server]):
            for leaving in (exits, exits_in_thread, exits):
                with pytest.raises(TaskFailed, match="bye"):
                    await leaving.acall()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancellation_that_a_task_makes_up_is_its_own_failure(any_server: str, fresh: Fresh) -> None:
    @task(name=fresh("cancels"))
    async def cancels() -> None:
        raise asyncio.CancelledError("of my own")

    @task(name=fresh("cancels_in_thread"))
    def cancels_in_thread() -> None:
        raise asyncio.CancelledError("of my own")

    with anyio.fail_after(10):
        async with connect(any_server), Worker([cancels, cancels_in_thread], servers=[any_server]):
            for cancelling in (cancels, cancels_in_thread, cancels):
                with pytest.raises(TaskFailed, match="of my own"):
                    await cancelling.acall()


async def test_a_payload_that_does_not_validate_fails_with_the_list_of_errors(
    any_server: str, function: str
) -> None:
    ran = False

    @task(name=function)
    async def strict(count: int, name: str = "x") -> int:
        nonlocal ran
        ran = True
        return count

    with anyio.fail_after(10):
        async with Client([any_server]) as client, Worker([strict], servers=[any_server]):
            job = await client.submit(function, b'{"count": "many", "name": 1}')
            with pytest.raises(JobFailed, match="PayloadInvalid") as caught:
                await job.result()
            assert caught.value.exception is not None
            assert b'"loc": ["count"]' in caught.value.exception
            assert not ran
            good = await client.submit(function, b'{"count": 3}')
            assert await good.result() == b"3"


async def test_a_result_that_does_not_fit_is_a_failure_that_names_it(any_server: str, function: str) -> None:
    @task(name=function)
    async def lies() -> int:
        return "text"  # type: ignore[return-value]  # pyright: ignore[reportReturnType]  # which is tested

    with anyio.fail_after(10):
        async with connect(any_server), Worker([lies], servers=[any_server]):
            with pytest.raises(PayloadInvalid, match="what it returned does not fit"):
                await lies.acall()


# --------------------------------------------------------------------------------------------- timeouts


async def test_an_async_task_that_overruns_is_cancelled(any_server: str, function: str) -> None:
    stopped = anyio.Event()

    @task(name=function, timeout=0.05)
    async def sleepy() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            stopped.set()

    with anyio.fail_after(10):
        async with connect(any_server), Worker([sleepy], servers=[any_server]):
            with pytest.raises(TaskTimeout, match=rf"{function}.*0\.05 s"):
                await sleepy.acall()
            assert stopped.is_set()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_async_task_that_overruns_is_cancelled_once_and_may_tidy_up(
    any_server: str, fresh: Fresh
) -> None:
    cancelled: list[str] = []

    @task(name=fresh("tidies"), timeout=0.01)
    async def tidies() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            cancelled.append("tidies")
            await asyncio.sleep(0)
            cancelled.append("tidied")

    @task(name=fresh("swallows"), timeout=0.01)
    async def swallows() -> str:
        for pause in (10, *[0] * 20):
            try:
                await asyncio.sleep(pause)
            except asyncio.CancelledError:
                cancelled.append("swallows")
        return "its result all the same"

    with anyio.fail_after(10):
        async with connect(any_server), Worker([tidies, swallows], servers=[any_server]):
            with pytest.raises(TaskTimeout, match="it was cancelled"):
                await tidies.acall()
            assert await swallows.acall() == "its result all the same"
    assert cancelled == ["tidies", "tidied", "swallows"]


async def test_what_a_task_raises_in_answer_to_its_time_limit_is_the_overrun_as_well(
    any_server: str, function: str
) -> None:
    @task(name=function, timeout=0.01)
    async def translates() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise TimeoutError("of its own")

    with anyio.fail_after(10):
        async with connect(any_server), Worker([translates], servers=[any_server]):
            with pytest.raises(TaskTimeout, match="overran") as caught:
                await translates.acall()
            assert "of its own" in str(caught.value.traceback)


async def test_a_thread_that_overruns_is_reported_at_once_and_holds_its_slot_until_it_ends(
    any_server: str, fresh: Fresh
) -> None:
    release = threading.Event()
    seen: list[bool] = []

    @task(name=fresh("stuck"), timeout=0.05)
    def stuck(ctx: Context) -> None:
        release.wait(10)
        seen.append(ctx.cancelled)

    @task(name=fresh("after"))
    async def after() -> str:
        return "slot free"

    with anyio.fail_after(10):
        async with connect(any_server), Worker([stuck, after], servers=[any_server], concurrency=1) as worker:
            with pytest.raises(TaskTimeout, match=rf"{stuck.name}.*0\.05 s"):
                await stuck.acall()
            assert worker.overdue == 1
            job = await after.asubmit()
            with pytest.raises(TimeoutError):
                await job.result(timeout=0.1)
            release.set()
            assert await job == "slot free"
            assert worker.overdue == 0
    assert seen == [True]


async def test_a_stop_does_not_wait_for_a_thread_that_overran(any_server: str, function: str) -> None:
    release = threading.Event()

    @task(name=function, timeout=0.05)
    def stuck() -> None:
        release.wait(10)

    with anyio.fail_after(20):
        async with connect(any_server), Worker([stuck], servers=[any_server]):
            with pytest.raises(TaskTimeout):
                await stuck.acall()
    release.set()


async def test_a_timeout_error_of_the_tasks_own_is_no_timeout_of_the_task(
    any_server: str, function: str
) -> None:
    @task(name=function, timeout=10)
    async def impatient() -> None:
        raise TimeoutError("the database did not answer")

    with anyio.fail_after(10):
        async with connect(any_server), Worker([impatient], servers=[any_server]):
            with pytest.raises(TimeoutError, match="the database") as caught:
                await impatient.acall()
            assert isinstance(caught.value, TaskFailed)
            assert not isinstance(caught.value, TaskTimeout)


async def test_the_timeout_of_a_call_overrides_that_of_the_task(any_server: str, function: str) -> None:
    @task(name=function, timeout=3600)
    async def sleepy() -> None:
        await anyio.sleep_forever()

    with anyio.fail_after(10):
        async with Client([any_server]) as client, Worker([sleepy], servers=[any_server]):
            job = await client.submit(function, wrap(b"{}", timeout=0.05))
            with pytest.raises(JobFailed, match="TaskTimeout"):
                await job.result()


# ---------------------------------------------------------------------------- servers that come and go


async def test_a_worker_waits_for_its_server_to_start(
    own_gearmand: Gearmand, function: str, caplog: pytest.LogCaptureFixture
) -> None:
    @task(name=function)
    async def ping() -> str:
        return "pong"

    with anyio.fail_after(20):
        async with Worker([ping], servers=[own_gearmand.address], first_retry=0.01) as worker:
            while not caplog.records:
                await anyio.lowlevel.checkpoint()
            own_gearmand.start()
            await worker.ready.wait()
            async with connect(own_gearmand.address):
                assert await ping.acall() == "pong"
    [warning] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert own_gearmand.address in warning.getMessage()


async def test_a_server_that_dies_in_the_middle_of_a_job_cancels_it_and_the_worker_returns(
    own_gearmand: Gearmand, fresh: Fresh
) -> None:
    began, cancelled = anyio.Event(), anyio.Event()
    told: list[bool] = []
    thread_began, release, thread_ended = threading.Event(), threading.Event(), threading.Event()

    @task(name=fresh("waits"))
    async def waits() -> None:
        began.set()
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    @task(name=fresh("thread"))
    def thread(ctx: Context) -> None:
        thread_began.set()
        release.wait(10)
        told.append(ctx.cancelled)
        thread_ended.set()

    @task(name=fresh("ping"))
    async def ping() -> str:
        return "pong"

    own_gearmand.start()
    with anyio.fail_after(20):
        async with Worker(
            [waits, thread, ping], servers=[own_gearmand.address], concurrency=2, first_retry=0.01
        ) as worker:
            await worker.ready.wait()
            async with Client([own_gearmand.address]) as client:
                await client.submit(waits.name, b"{}")
                await client.submit(thread.name, b"{}")
                await began.wait()
                await anyio.to_thread.run_sync(thread_began.wait)
                own_gearmand.kill()
                await cancelled.wait()
            release.set()
            await anyio.to_thread.run_sync(thread_ended.wait)
            own_gearmand.start()
            async with Client([own_gearmand.address]) as client:
                job = await until_submitted(client, ping.name)
                assert await job == b"pong"
    assert told == [True]


async def until_submitted(client: Client, function: str) -> Awaitable[bytes]:
    """Submit as soon as the server listens."""
    from gearflow.errors import NoServer

    while True:
        try:
            job = await client.submit(function, b"{}")
        except NoServer:
            await anyio.lowlevel.checkpoint()
        else:
            return job.result()


async def test_a_dead_server_does_not_hinder_the_others(
    own_gearmand: Gearmand, any_server: str, function: str
) -> None:
    @task(name=function)
    async def ping() -> str:
        return "pong"

    with anyio.fail_after(10):
        async with (
            connect(any_server),
            Worker([ping], servers=[own_gearmand.address, any_server], concurrency=1),
        ):
            for _ in range(20):
                assert await ping.acall() == "pong"


async def test_one_worker_serves_several_servers(gearmand: str, bundled: str, function: str) -> None:
    @task(name=function)
    async def double(number: int) -> int:
        return 2 * number

    with anyio.fail_after(20):
        async with (
            Worker([double], servers=[gearmand, bundled], concurrency=2),
            Client([gearmand]) as left,
            Client([bundled]) as right,
        ):
            jobs = [
                await client.submit(function, b'{"number": %d}' % number)
                for number in range(100)
                for client in (left, right)
            ]
            results = [await job.result() for job in jobs]
    assert results == [b"%d" % (2 * number) for number in range(100) for _ in "ab"]


async def test_a_delayed_job_runs_though_gearmand_wakes_nobody(gearmand: str, function: str) -> None:
    import time

    ran = anyio.Event()

    @task(name=function)
    async def later() -> None:
        ran.set()

    with anyio.fail_after(10):
        async with Worker([later], servers=[gearmand], poll=0.05) as worker, Client([gearmand]) as client:
            await worker.ready.wait()
            await client.submit_background(function, b"{}", at=time.time() + 1)
            await ran.wait()


# ------------------------------------------------------------------------------------- begin and end


async def test_leaving_the_block_finishes_what_runs(any_server: str, function: str) -> None:
    began, go_on = anyio.Event(), anyio.Event()

    @task(name=function)
    async def slow() -> str:
        began.set()
        await go_on.wait()
        return "finished"

    with anyio.fail_after(10):
        async with connect(any_server):
            async with Worker([slow], servers=[any_server]):
                job = await slow.asubmit()
                await began.wait()
                go_on.set()
            assert await job.result(timeout=5) == "finished"


async def test_leaving_cold_hands_the_job_to_another_worker(any_server: str, function: str) -> None:
    began, never = anyio.Event(), anyio.Event()
    runs: list[str] = []

    @task(name=function)
    async def first_hangs() -> str:
        runs.append("run")
        if len(runs) == 1:
            began.set()
            await never.wait()
        return "done by another"

    with anyio.fail_after(10):
        async with connect(any_server):
            async with Worker([first_hangs], servers=[any_server]) as worker:
                job = await first_hangs.asubmit()
                await began.wait()
                worker.leave()
            async with Worker([first_hangs], servers=[any_server]):
                assert await job == "done by another"
    assert runs == ["run", "run"]


async def test_leaving_cold_does_not_wait_for_threads(any_server: str, function: str) -> None:
    began, release = threading.Event(), threading.Event()

    @task(name=function)
    def blocks() -> None:
        began.set()
        release.wait(10)

    with anyio.fail_after(20):
        async with connect(any_server), Worker([blocks], servers=[any_server]) as worker:
            await blocks.asubmit()
            await anyio.to_thread.run_sync(began.wait)
            worker.leave()
    release.set()


async def test_an_error_in_the_block_is_raised_as_it_is_and_waits_for_no_job(
    any_server: str, function: str
) -> None:
    began = anyio.Event()

    @task(name=function)
    async def hangs() -> None:
        began.set()
        await anyio.sleep_forever()

    with anyio.fail_after(20):
        async with connect(any_server):
            with pytest.raises(LookupError, match="mine"):  # noqa: PT012  (the block is what is tested)
                async with Worker([hangs], servers=[any_server]):
                    await hangs.asubmit()
                    await began.wait()
                    raise LookupError("mine")


async def test_cancelling_the_block_leaves_cold(any_server: str, function: str) -> None:
    began, stopped = anyio.Event(), anyio.Event()

    @task(name=function)
    async def hangs() -> None:
        began.set()
        try:
            await anyio.sleep_forever()
        finally:
            stopped.set()

    with anyio.fail_after(20):
        async with connect(any_server):
            with anyio.CancelScope() as scope:
                async with Worker([hangs], servers=[any_server]):
                    await hangs.asubmit()
                    await began.wait()
                    scope.cancel()
                    await anyio.sleep_forever()
            assert stopped.is_set()


@pytest.mark.parametrize("ends", ["returns", "raises"])
def test_the_end_of_asyncio_run_hands_on_what_runs(
    bundled: str, fresh: Fresh, caplog: pytest.LogCaptureFixture, ends: str
) -> None:
    began = {"coroutine": threading.Event(), "thread": threading.Event()}
    release = threading.Event()

    @task(name=fresh("coroutine"))
    async def coroutine() -> str:
        if began["coroutine"].is_set():
            return "done by another"
        began["coroutine"].set()
        try:
            await asyncio.sleep(10)
        finally:
            raise LookupError("what it makes of its cancellation")

    @task(name=fresh("thread"))
    def thread() -> str:
        if began["thread"].is_set():
            return "done by another"
        began["thread"].set()
        release.wait(10)
        return "dropped"

    async def program() -> None:
        left_behind.append(asyncio.create_task(Worker(tasks, servers=[bundled]).run()))
        async with connect(bundled):
            refs.extend([await each.abackground() for each in tasks])
        for event in began.values():
            await anyio.to_thread.run_sync(event.wait)
        if ends == "raises":
            raise LookupError("the program's own")

    async def results() -> list[str]:
        async with connect(bundled), Worker(tasks, servers=[bundled]):
            got = [await ref.aresult(10) for ref in refs]
            assert [(await ref.ainfo()).deaths for ref in refs] == [0, 0]
            return got

    tasks = [coroutine, thread]
    refs: list[Ref[str]] = []
    left_behind: list[asyncio.Task[None]] = []
    with suppress(LookupError):
        asyncio.run(program())
    release.set()
    said = [record.__dict__["outcome"] for record in caplog.records if hasattr(record, "outcome")]
    assert said == ["handed on", "handed on"]
    assert asyncio.run(results()) == ["done by another", "done by another"]


async def test_a_worker_that_was_stopped_before_it_ran_ends_at_once(function: str) -> None:
    @task(name=function)
    async def ping() -> None: ...

    worker = Worker([ping], servers=["127.0.0.1:1"])
    worker.stop()
    with anyio.fail_after(20):
        await worker.run()
    with pytest.raises(RuntimeError, match="only once"):
        await worker.run()


def test_a_worker_needs_a_task_of_its_own(fresh: Fresh) -> None:
    @task(name=fresh(), foreign=True)
    def foreign() -> None: ...

    with pytest.raises(ValueError, match="no task to run"):
        Worker([foreign])


def test_options_replace_single_settings_and_are_validated(function: str) -> None:
    @task(name=function)
    async def ping() -> None: ...

    settings = WorkerSettings(concurrency=3, servers=("a:1",))
    worker = Worker([ping], settings, servers=["b:2"])
    assert (worker.settings.concurrency, worker.settings.servers) == (3, ("b:2",))
    with pytest.raises(ValueError, match="concurrency"):
        Worker([ping], concurrency=0)


# ------------------------------------------------------------------------------------------------ logs


async def test_each_job_is_one_line_of_the_log_without_its_payload(
    any_server: str, fresh: Fresh, caplog: pytest.LogCaptureFixture
) -> None:
    @task(name=fresh("good"))
    async def good(secret: str) -> str:
        return secret

    @task(name=fresh("bad"))
    async def bad(number: int) -> None:
        raise ValueError("no good")

    caplog.set_level(logging.INFO, "gearflow.worker")
    with anyio.fail_after(10):
        async with Client([any_server]) as client, Worker([good, bad], servers=[any_server]):
            done = await client.submit(good.name, b"hunter2")
            await done.result()
            for workload in (b'{"number": 1}', b'{"number": "hunter2"}'):
                job = await client.submit(bad.name, workload)
                with pytest.raises(JobFailed):
                    await job.result()
    jobs = [record for record in caplog.records if hasattr(record, "handle")]
    fields = [(record.__dict__["task"], record.__dict__["outcome"]) for record in jobs]
    assert fields == [(good.name, "done"), (bad.name, "failed"), (bad.name, "invalid")]
    assert jobs[0].__dict__["handle"] == done.handle
    assert all(0 <= record.__dict__["duration"] < 10 for record in jobs)
    assert "no good" in caplog.text
    assert "hunter2" not in caplog.text


async def test_calls_that_a_task_makes_go_to_the_workers_own_servers(any_server: str, fresh: Fresh) -> None:
    @task(name=fresh("inner"))
    async def inner(number: int) -> int:
        return number + 1

    @task(name=fresh("outer"))
    async def outer(number: int) -> int:
        return await inner.acall(number)

    @task(name=fresh("blocking"))
    def blocking(number: int) -> int:
        return inner.call(number)

    with anyio.fail_after(10):
        async with Worker([inner, outer, blocking], servers=[any_server]), Client([any_server]) as client:
            for caller in (outer, blocking):
                job = await client.submit(caller.name, b'{"number": 1}')
                assert await job.result() == b"2"


async def test_a_worker_that_is_given_no_servers_uses_those_of_the_connection_around_it(
    any_server: str, fresh: Fresh
) -> None:
    @task(name=fresh())
    async def echo(text: str) -> str:
        return text

    with anyio.fail_after(10):
        async with connect(any_server), Worker([echo]):
            assert await echo.acall("hello") == "hello"


def test_what_is_no_task_is_refused_with_the_remedy() -> None:
    def plain() -> None: ...

    with pytest.raises(TypeError, match="put @task"):
        Worker([plain])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]  # which is tested


async def test_a_plain_task_may_raise_stop_iteration(any_server: str, fresh: Fresh) -> None:
    @task(name=fresh())
    def first() -> int:
        return next(iter([]))

    with anyio.fail_after(10):
        async with connect(any_server), Worker([first]):
            with pytest.raises(TaskFailed) as caught:
                await first.acall()
            assert caught.value.type == "StopIteration"
