"""Jobs that are run again, on real servers: C gearmand and gearflow's own, on both event loops."""

import threading
from collections.abc import Callable, Iterator

import anyio
import anyio.to_thread
import pytest

from gearflow.client import Admin, Client
from gearflow.client.current import connect
from gearflow.errors import TaskFailed, TaskTimeout
from gearflow.protocol.envelope import wrap
from gearflow.protocol.limits import POLICY, Policy, PolicyRequest
from gearflow.protocol.packets import WorkWarning
from gearflow.protocol.server_calls import RetryPlan
from gearflow.server import JobServer
from gearflow.tasks import Context, Retry, task
from gearflow.tasks.control_flow import Discard, Snooze, TryAgain
from gearflow.worker import Worker

Fresh = Callable[..., str]


@pytest.fixture
def one_death() -> Iterator[str]:
    """A server of gearflow's own on which a job whose worker dies once is a dead letter."""
    with JobServer(port=0, max_deaths=1) as server:
        yield f"127.0.0.1:{server.port}"


async def total(server: str, function: str) -> int:
    rows = await Admin(server).status()
    return next(row.total for row in rows if row.name == function.encode())


async def test_a_task_that_fails_twice_then_succeeds_gives_its_caller_the_result(
    any_server: str, function: str
) -> None:
    attempts: list[int] = []

    @task(name=function, retries=Retry(3, backoff=0.01))
    async def flaky(number: int) -> int:
        attempts.append(len(attempts) + 1)
        if len(attempts) < 3:
            raise ConnectionError("not yet")
        return number

    with anyio.fail_after(20):
        async with connect(any_server), Worker([flaky], servers=[any_server], concurrency=1):
            assert await flaky.acall(7) == 7
    assert attempts == [1, 2, 3]


async def test_a_task_in_a_thread_is_retried_too_and_knows_its_attempt(
    any_server: str, function: str
) -> None:
    handles: set[str] = set()

    @task(name=function, retries=Retry(3, backoff=0))
    def flaky(ctx: Context) -> int:
        handles.add(ctx.handle)
        if ctx.attempt < 3:
            raise ConnectionError("not yet")
        return ctx.attempt

    with anyio.fail_after(20):
        async with connect(any_server), Worker([flaky], servers=[any_server]):
            assert await flaky.acall() == 3
    assert len(handles) == 1


async def test_a_run_that_overran_in_its_thread_is_retried_while_the_thread_goes_on(
    any_server: str, function: str
) -> None:
    release = threading.Event()

    @task(name=function, retries=Retry(2, backoff=0), timeout=0.05)
    def slow_once(ctx: Context) -> int:
        if ctx.attempt == 1:
            release.wait(10)
            ctx.warn("this is said to nobody")
        return ctx.attempt

    with anyio.fail_after(20):
        async with (
            Client([any_server]) as client,
            Worker([slow_once], servers=[any_server], concurrency=2) as worker,
        ):
            job = await client.submit(function, b"{}")
            events = [event async for event in job.events()]
            assert await job.result() == b"2"
            assert worker.overdue == 1
            release.set()
    [warning] = events
    assert isinstance(warning, WorkWarning)
    assert b"TaskTimeout" in warning.data


async def test_whoever_waits_is_told_of_each_failed_attempt(any_server: str, function: str) -> None:
    @task(name=function, retries=Retry(3, backoff=0))
    async def hopeless() -> None:
        raise ConnectionError("never")

    with anyio.fail_after(20):
        async with Client([any_server]) as client, Worker([hopeless], servers=[any_server]):
            job = await client.submit(function, b"{}")
            events = [event async for event in job.events()]
    assert [event.data for event in events if isinstance(event, WorkWarning)] == [
        b"attempt 1 of 3 failed: ConnectionError: never; again in 0 s",
        b"attempt 2 of 3 failed: ConnectionError: never; again in 0 s",
    ]


async def test_when_no_attempts_are_left_the_caller_gets_the_last_failure(
    any_server: str, fresh: Fresh
) -> None:
    runs: list[str] = []

    @task(name=fresh(), retries=Retry(2, backoff=0))
    async def hopeless() -> None:
        runs.append("hopeless")
        raise ConnectionError(f"failure {len(runs)}")

    @task(name=fresh())
    async def asks() -> None:
        runs.append("asks")
        raise TryAgain(after=0) from ConnectionError("the reason")

    @task(name=fresh(), retries=5)
    async def discards() -> None:
        runs.append("discards")
        raise Discard("closed")

    with anyio.fail_after(20):
        async with connect(any_server), Worker([hopeless, asks, discards], servers=[any_server]):
            with pytest.raises(ConnectionError, match="failure 2"):
                await hopeless.acall()
            with pytest.raises(ConnectionError, match="the reason"):
                await asks.acall()
            with pytest.raises(TaskFailed, match="closed"):
                await discards.acall()
    assert runs == ["hopeless", "hopeless", "asks", "asks", "asks", "discards"]


async def test_a_snoozed_job_comes_back_as_often_as_it_likes_and_counts_no_attempt(
    any_server: str, function: str
) -> None:
    attempts: list[int] = []

    @task(name=function)
    async def early(ctx: Context) -> int:
        attempts.append(ctx.attempt)
        if len(attempts) < 6:
            raise Snooze(0.001)
        return ctx.attempt

    with anyio.fail_after(20):
        async with connect(any_server), Worker([early], servers=[any_server]):
            assert await early.acall() == 1
    assert attempts == [1] * 6


@pytest.mark.parametrize("backoff", [0, 0.01])
async def test_a_detached_job_is_run_until_it_succeeds_and_none_is_left(
    any_server: str, function: str, backoff: float
) -> None:
    attempts: list[int] = []
    done = anyio.Event()

    @task(name=function, retries=Retry(3, backoff=backoff))
    async def flaky(ctx: Context) -> None:
        attempts.append(ctx.attempt)
        if ctx.attempt < 3:
            raise ConnectionError("not yet")
        done.set()

    with anyio.fail_after(20):
        async with Client([any_server]) as client:
            async with Worker([flaky], servers=[any_server], poll=0.05):
                # Gearflow's own server knows by itself that nobody waits.
                await client.submit_background(function, wrap(b"{}", detached=True))
                await done.wait()
            assert await total(any_server, function) == 0
    assert attempts == [1, 2, 3]


async def test_another_worker_may_take_the_next_run_of_a_detached_job(any_server: str, function: str) -> None:
    ran: list[int] = []
    done = anyio.Event()

    @task(name=function, retries=Retry(3, backoff=0.1, jitter=False))
    async def flaky(ctx: Context) -> None:
        ran.append(ctx.attempt)
        if ctx.attempt == 1:
            first.stop()
            raise ConnectionError("not yet")
        done.set()

    with anyio.fail_after(20):
        async with Client([any_server]) as client:
            first = Worker([flaky], servers=[any_server], poll=0.05)
            await client.submit_background(function, wrap(b"{}", detached=True))
            await first.run()
            assert ran == [1]
            async with Worker([flaky], servers=[any_server], poll=0.05):
                await done.wait()
    assert ran == [1, 2]


# -------------------------------------------------------------------------- workers that go on purpose


async def test_a_cold_stop_is_no_death(one_death: str, function: str) -> None:
    began = anyio.Event()
    runs: list[int] = []

    @task(name=function)
    async def first_hangs(ctx: Context) -> str:
        runs.append(ctx.attempt)
        if len(runs) < 3:
            began.set()
            await anyio.sleep_forever()
        return "done by another"

    with anyio.fail_after(20):
        async with connect(one_death):
            job = await first_hangs.asubmit()
            async with Worker([first_hangs], servers=[one_death]) as worker:
                await began.wait()
                worker.leave()
            began = anyio.Event()
            with anyio.CancelScope() as scope:
                async with Worker([first_hangs], servers=[one_death]):
                    await began.wait()
                    scope.cancel()
                    await anyio.sleep_forever()
            async with Worker([first_hangs], servers=[one_death]):
                assert await job == "done by another"
    assert runs == [1, 1, 1]  # a release is no attempt either


async def test_a_cold_stop_of_a_thread_is_no_death(one_death: str, function: str) -> None:
    began, release = threading.Event(), threading.Event()
    runs: list[str] = []

    @task(name=function)
    def first_blocks() -> str:
        runs.append("run")
        if len(runs) == 1:
            began.set()
            release.wait(10)
        return "done by another"

    with anyio.fail_after(20):
        async with connect(one_death):
            job = await first_blocks.asubmit()
            async with Worker([first_blocks], servers=[one_death]) as worker:
                await anyio.to_thread.run_sync(began.wait)
                worker.leave()
            async with Worker([first_blocks], servers=[one_death]):
                assert await job == "done by another"
    release.set()


async def test_a_task_without_retries_is_retried_as_the_policy_of_its_function_says(
    bundled: str, function: str
) -> None:
    attempts: list[int] = []

    @task(name=function)
    async def flaky(ctx: Context, number: int) -> int:
        attempts.append(ctx.attempt)
        if ctx.attempt < 3:
            raise ConnectionError("not yet")
        return number

    policy = Policy(retries=RetryPlan(delays=(0.01, 0.01)))
    with anyio.fail_after(20):
        async with connect(bundled) as client, Worker([flaky], servers=[bundled]):
            await client.call_reserved(POLICY, PolicyRequest(action="set", function=function, policy=policy))
            ref = await flaky.abackground(7)
            assert await ref.aresult() == 7
    assert attempts == [1, 2, 3]


async def test_a_task_has_the_time_that_the_policy_of_its_function_says(bundled: str, function: str) -> None:
    @task(name=function)
    async def slow() -> None:
        await anyio.sleep_forever()

    with anyio.fail_after(20):
        async with connect(bundled) as client, Worker([slow], servers=[bundled]):
            policy = PolicyRequest(action="set", function=function, policy=Policy(timeout=0.05))
            await client.call_reserved(POLICY, policy)
            with pytest.raises(TaskTimeout):
                await slow.acall()
