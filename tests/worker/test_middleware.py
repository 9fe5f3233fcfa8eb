"""Middleware around runs, on a real server."""

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar

import anyio
import pytest

from gearflow.client import connect
from gearflow.errors import TaskFailed
from gearflow.tasks import AsyncTask, Retry, TryAgain, task
from gearflow.tasks.hooks import Middleware, Proceed, RunInfo
from gearflow.worker import Worker

Fresh = Callable[..., str]

tenant: ContextVar[str] = ContextVar("tenant", default="none")


def dividing(function: str, retries: Retry | None = None) -> AsyncTask[[int, int], int]:
    @task(name=function, retries=retries)
    async def divide(a: int, b: int) -> int:
        return a // b

    return divide


async def result(
    server: str, middleware: list[Middleware], called: AsyncTask[[int, int], int], by: int
) -> int:
    """What a call gives on a worker with that middleware."""
    with anyio.fail_after(10):
        async with connect(server), Worker([called], servers=[server], middleware=middleware):
            return await called.acall(6, by)


async def test_the_first_is_the_outermost(bundled: str, function: str) -> None:
    steps: list[str] = []

    def noting(name: str) -> Middleware:
        async def note(run: RunInfo, proceed: Proceed) -> None:
            steps.append(f"{name} in")
            await proceed()
            steps.append(f"{name} out")

        return note

    assert await result(bundled, [noting("a"), noting("b")], dividing(function), by=2) == 3
    assert steps == ["a in", "b in", "b out", "a out"]


async def test_it_is_told_which_run_it_is(any_server: str, function: str) -> None:
    seen: list[RunInfo] = []

    async def note(run: RunInfo, proceed: Proceed) -> None:
        seen.append(run)
        await proceed()

    before = time.time()
    with pytest.raises(TaskFailed):
        await result(any_server, [note], dividing(function, Retry(2, backoff=0)), by=0)
    assert [(run.task, run.server, run.attempt) for run in seen] == [
        (function, any_server, 1),
        (function, any_server, 2),
    ]
    assert seen[0].handle == seen[1].handle
    assert before <= seen[0].started <= seen[1].started <= time.time()


async def test_variables_it_sets_are_seen_by_that_run_only(bundled: str, fresh: Fresh) -> None:
    async def choose(run: RunInfo, proceed: Proceed) -> None:
        if run.task in (on_loop.name, in_thread.name):
            tenant.set(run.task)
        await proceed()

    @task(name=fresh("on_loop"))
    async def on_loop() -> str:
        return tenant.get()

    @task(name=fresh("in_thread"))
    def in_thread() -> str:
        return tenant.get()

    @task(name=fresh("other"))
    async def other() -> str:
        return tenant.get()

    with anyio.fail_after(10):
        async with (
            connect(bundled),
            Worker([on_loop, in_thread, other], servers=[bundled], concurrency=1, middleware=[choose]),
        ):
            assert await on_loop.acall() == on_loop.name
            assert await in_thread.acall() == in_thread.name
            assert await other.acall() == "none"


async def test_it_sees_what_the_task_raises_as_does_the_caller(bundled: str, function: str) -> None:
    seen: list[Exception] = []

    async def watch(run: RunInfo, proceed: Proceed) -> None:
        try:
            await proceed()
        except Exception as error:
            seen.append(error)
            raise

    with pytest.raises(ZeroDivisionError):
        await result(bundled, [watch], dividing(function), by=0)
    assert [type(error) for error in seen] == [ZeroDivisionError]


async def refuses(run: RunInfo, proceed: Proceed) -> None:
    raise PermissionError("not today")


async def objects(run: RunInfo, proceed: Proceed) -> None:
    await proceed()
    raise PermissionError("too late")


async def translates(run: RunInfo, proceed: Proceed) -> None:
    try:
        await proceed()
    except ZeroDivisionError:
        raise PermissionError("it was zero") from None


async def swallows(run: RunInfo, proceed: Proceed) -> None:
    with suppress(ZeroDivisionError):
        await proceed()


async def forgets(run: RunInfo, proceed: Proceed) -> None:
    pass


async def repeats(run: RunInfo, proceed: Proceed) -> None:
    await proceed()
    await proceed()


@pytest.mark.parametrize(
    ("middleware", "by", "raised", "said"),
    [
        (refuses, 2, PermissionError, "not today"),
        (objects, 2, PermissionError, "too late"),
        (translates, 0, PermissionError, "it was zero"),
        (swallows, 0, ZeroDivisionError, "by zero"),
        (
            forgets,
            2,
            RuntimeError,
            r"middleware \S*test_middleware.forgets returned before .* 'await proceed\(\)'",
        ),
        (repeats, 2, RuntimeError, r"middleware \S*test_middleware.repeats called proceed\(\) twice"),
    ],
)
async def test_how_middleware_fails_a_run(
    bundled: str, function: str, middleware: Middleware, by: int, raised: type[Exception], said: str
) -> None:
    with pytest.raises(raised, match=said):
        await result(bundled, [middleware], dividing(function), by)


async def test_it_may_have_a_run_tried_again(bundled: str, function: str) -> None:
    async def only_in_the_second_run(run: RunInfo, proceed: Proceed) -> None:
        if run.attempt == 1:
            raise TryAgain(after=0)
        await proceed()

    assert await result(bundled, [only_in_the_second_run], dividing(function, Retry(2)), by=2) == 3


async def test_a_run_that_is_cancelled_is_left_through_it(bundled: str, function: str) -> None:
    steps: list[str] = []
    running = anyio.Event()

    async def note(run: RunInfo, proceed: Proceed) -> None:
        try:
            await proceed()
        finally:
            steps.append("out")

    @task(name=function)
    async def hangs() -> None:
        running.set()
        await anyio.sleep_forever()

    with anyio.fail_after(10):
        async with connect(bundled), anyio.create_task_group() as tasks:
            worker = Worker([hangs], servers=[bundled], middleware=[note])
            await tasks.start(worker.run)
            job = await hangs.asubmit()
            await running.wait()
            worker.leave()
            job.cancel()
    assert steps == ["out"]


def test_what_is_none_is_refused(function: str) -> None:
    def plain(run: RunInfo, proceed: Proceed) -> Awaitable[None]:
        return proceed()

    with pytest.raises(TypeError, match="plain cannot be middleware"):
        Worker([dividing(function)], middleware=[plain])
