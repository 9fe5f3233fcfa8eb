"""What type checkers say of tasks: this file is checked, not run.

Every wrong use stands under an ignore for mypy and one for pyright. Both report ignores that are not needed
(pyright with the settings beside this file: ``pyright -p tests/typing``), so a mistake that is no longer
found is an error here.
"""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import assert_type

import gearflow
from gearflow import (
    AsyncJob,
    AsyncResults,
    AsyncTask,
    Context,
    Job,
    Priority,
    Ref,
    Results,
    Retry,
    Task,
    TaskFailed,
    task,
)
from gearflow.client import Client, JobHandle, JobStatus, ServerAddress, SubmitOptions, SyncClient
from gearflow.client.operate import dead_letters
from gearflow.protocol.server_calls import JobInfo
from gearflow.tasks import AsyncOutcome, Outcome
from gearflow.worker import Worker, WorkerSettings


@task
def add(a: int, b: int = 2, *, c: int = 0) -> int:
    return a + b + c


@task
async def resize(url: str, width: int = 640) -> bytes:
    return url.encode() * width


@task
def with_context(ctx: Context, n: int) -> str:
    return ctx.handle * n


@task(timeout=30, unique=True, retries=Retry(3, on=OSError), priority="high", keep=timedelta(hours=1))
async def with_everything(ctx: Context, n: int) -> float:
    ctx.progress(n, n)
    return n / 2


@task(executor="process")
def in_process(ctx: Context, n: int) -> str:
    return str(n)


@task(name="reverse", foreign=True)
def reverse(text: str) -> str:
    raise NotImplementedError


@task
def add_up(numbers: list[int]) -> int:
    return sum(numbers)


@task
def count(blobs: list[bytes]) -> str:
    return str(len(blobs))


# ------------------------------------------------------------------------------------- what decorates


assert_type(add(1), int)
assert_type(with_context(3), str)
assert_type(reverse("x"), str)

task(retries=0, expires=timedelta(minutes=1), keep=0, resubmit=True)
task(resubmit="always")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
task(retries="3")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
task(reuse=True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
task(name=3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
task(bind=True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
task(timout=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
task(priority="urgent")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


def kinds() -> None:
    plain: Task[[int], str] = with_context
    asynchronous: AsyncTask[[int], float] = with_everything
    decorate: Callable[[Callable[[int], str]], Task[[int], str]] = task(name="x")
    del plain, asynchronous, decorate


# ------------------------------------------------------------------------------------------ what returns


async def results() -> None:
    assert_type(await resize("x"), bytes)
    assert_type(await with_everything(3), float)

    assert_type(add.call(1), int)
    assert_type(add.submit(1), Job[int])
    assert_type(add.submit(1).result(timeout=3), int)
    assert_type(in_process.submit(1).result(), str)
    assert_type(add.background(1), Ref[int])
    assert_type(await add.acall(1), int)
    assert_type(await add.asubmit(1), AsyncJob[int])
    assert_type(await (await add.asubmit(1)), int)
    assert_type(await (await add.asubmit(1)).result(timeout=3), int)
    assert_type(await add.abackground(1), Ref[int])

    # what a coroutine function returns is what its task returns
    assert_type(resize.call("x"), bytes)
    assert_type(await resize.acall("x", width=3), bytes)
    assert_type(resize.submit("x").result(), bytes)
    assert_type(await with_everything.acall(3), float)
    assert_type(await with_everything.options(timeout=3).asubmit(3), AsyncJob[float])

    # options leave the signature alone
    assert_type(add.options(priority="high").call(1, b=3), int)
    assert_type(add.options(priority=Priority.LOW, unique="k").background(1), Ref[int])
    assert_type(add.options(delay=timedelta(minutes=1)).options(unique=True).background(1), Ref[int])
    assert_type(add.options(at=datetime.now(UTC), keep=3, reuse=True, expires=3), Task[[int, int], int])  # type: ignore[assert-type]  # pyright: ignore[reportAssertTypeFailure]
    assert_type(add.options(debounce=5, max_wait=timedelta(minutes=1), unique="k").background(1), Ref[int])
    assert_type(await resize.options(retries=3, timeout=1.5)("x"), bytes)


async def references() -> None:
    ref = add.background(1)
    assert_type(ref.result(timeout=3), int)
    assert_type(await ref.aresult(), int)
    ref.edit(priority="high", delay=3, expires=timedelta(minutes=1))
    await ref.aedit(at=datetime.now(UTC))
    ref.edit(keep=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    assert_type(ref.status(), JobStatus)
    assert_type(await ref.astatus(), JobStatus)
    assert_type(ref.info(), JobInfo)
    assert_type(await ref.ainfo(), JobInfo)
    assert_type(ref.cancel(), bool)
    assert_type(await ref.acancel(), bool)
    assert_type(ref.handle, str)
    assert_type(ref.server, ServerAddress | None)
    assert_type(await (await resize.abackground("x")).aresult(), bytes)

    # made elsewhere
    assert_type(add.ref("H:host-store:7"), Ref[int])
    assert_type(resize.ref("H:host-store:7", server="127.0.0.1:4730"), Ref[bytes])
    assert_type(add.ref(unique="k"), Ref[int])
    assert_type(await add.options(keep=3).ref(str(ref)).aresult(timeout=1), int)

    # many at once
    assert_type(add.background_many([1, 2]), list[Ref[int]])
    assert_type(await resize.abackground_many(url for url in "ab"), list[Ref[bytes]])
    assert_type(await resize.options(delay=1, retries=Retry(2)).abackground_many(["a"]), list[Ref[bytes]])
    assert_type(with_context.background_many(range(3))[0].result(), str)
    try:
        add.background_many([1])
    except gearflow.PartlySubmitted as error:
        assert_type(error.failures, dict[int, Exception])


async def clients(client: Client, blocking: SyncClient) -> None:
    handle = await client.submit_background("f", b"", options=SubmitOptions(keep=3))
    assert_type(handle, JobHandle)
    assert_type(await client.result(handle, 3), bytes)
    assert_type(blocking.info(handle), JobInfo)
    assert_type(await dead_letters(client), tuple[JobInfo, ...])
    assert_type(blocking.run(dead_letters), tuple[JobInfo, ...])
    await client.submit("f", b"", options={"keep": 3})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    SubmitOptions(keep="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    SubmitOptions(kept=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def control() -> None:
    raise gearflow.TryAgain(after=timedelta(seconds=3)) from gearflow.Snooze(3)


async def batches() -> None:
    urls = ["a", "b"]

    async def streamed() -> AsyncIterator[str]:
        yield "a"

    assert_type(resize.map(urls), Results[bytes])
    assert_type(resize.amap(urls, window=3), AsyncResults[bytes])
    assert_type(resize.amap(streamed()), AsyncResults[bytes])
    assert_type(resize.map(urls).results(), list[bytes])
    assert_type(await resize.amap(urls), list[bytes])
    assert_type(await resize.options(priority="low").amap(urls), list[bytes])
    assert_type(await with_context.amap([1]), list[str])
    assert_type(await with_everything.amap([1]), list[float])
    for blob in resize.map(urls):
        assert_type(blob, bytes)
    async for blob in resize.amap(urls):
        assert_type(blob, bytes)

    # failures are in the type if they are collected
    assert_type(resize.map(urls, errors="raise"), Results[bytes])
    assert_type(resize.map(urls, errors="collect"), Results[bytes | TaskFailed])
    assert_type(resize.amap(urls, errors="collect"), AsyncResults[bytes | TaskFailed])

    assert_type(add.map([1]).reduce(add_up), Outcome[int])
    assert_type(add.map([1]).reduce(add_up, fan_in=3).result(timeout=3), int)
    assert_type(add.amap([1]).reduce(add_up), AsyncOutcome[int])
    assert_type(await add.amap([1]).reduce(add_up), int)
    assert_type(resize.map(urls).then(count).result(), str)
    assert_type(await resize.amap(urls).then(count), str)


# ------------------------------------------------------------------------------------- what is refused


async def wrong_types() -> None:
    add.delay(1)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    add("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.call("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.submit("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.background("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await add.acall("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await add.asubmit("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await add.abackground("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.map(["x"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    add.amap(["x"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]

    add.options(priority="high").call("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.options(priority="high").submit("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.options(priority="high").background("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await add.options(unique=True).acall("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await add.options(unique=True).asubmit("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await add.options(delay=3).abackground("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.options(priority="high").map(["x"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]

    await resize(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await resize.acall("x", width="wide")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await resize.options(timeout=3).acall("x", width="wide")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def wrong_calls() -> None:
    add.call()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    add.call(1, 2, 3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    add.call(1, d=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    add.options(priority="high").submit()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await add.options(priority="high").acall(1, d=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

    # the context is the worker's to give
    with_context.call(Context(handle="", function="", send=print), 3)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    await with_everything.acall(ctx=3, n=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def wrong_references() -> None:
    add.ref()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    add.ref("H:1", unique="k")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    add.ref(7)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    add.background_many(["x"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    await add.abackground_many(["x"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    wrong: str = add.ref("H:1").result()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    del wrong
    gearflow.TryAgain(after="soon")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    gearflow.Snooze()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    gearflow.Discard(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    gearflow.Fail(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Retry(on=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def wrong_options() -> None:
    add.options(priorty="high")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    add.options(priority="urgent")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.options(delay="soon")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.options(unique=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.options(timeout=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    task(executor="fork")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    resize.options(retries="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def settings() -> None:
    gearflow.JobServer(port=0, token="secret", keep=60)
    gearflow.JobServer(gearflow.ServerSettings(), max_deaths=None)
    Worker([add], servers=["a:1"], concurrency=3, drain=None)

    gearflow.JobServer(prot=0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    gearflow.JobServer(port="0")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    gearflow.ServerSettings(prot=0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Worker([add], concurency=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Worker([add], concurrency="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    WorkerSettings(concurency=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def wrong_batches() -> None:
    @task
    def of_two(a: int, b: int) -> int:
        return a + b

    of_two.map([1])  # type: ignore[misc, arg-type]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    add.map([1]).reduce(count)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    resize.map(["a"]).then(add_up)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.map([1], errors="ignore")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    add.map([1], windows=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


async def wrong_results() -> None:
    wrong: str = add.call(1)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    wrong = await resize.acall("x")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    wrong = add.submit(1).result()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    del wrong
