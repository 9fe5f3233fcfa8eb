"""What type checkers say of tasks that yield: checked, not run, as ``check_tasks.py`` says."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import assert_type

import gearflow
from gearflow import (
    AsyncStream,
    AsyncStreamJob,
    AsyncStreamTask,
    Context,
    Progress,
    Stream,
    StreamJob,
    StreamRef,
    StreamTask,
    Task,
    task,
)
from gearflow.worker import Worker


@task
def tokens(text: str) -> Iterator[str]:
    yield from text


@task
def generated(ctx: Context, count: int, step: int = 1) -> Generator[int, None, str]:
    yield from range(ctx.parts, count, step)
    return "done"


@task(stream_keep="16MiB", resumable=True, retries=3, timeout=60)
async def slowly(ctx: Context, count: int) -> AsyncIterator[float]:
    for number in range(ctx.parts, count):
        yield number / 2


@task
async def async_generated(path: str) -> AsyncGenerator[bytes, None]:
    yield path.encode()


@task(executor="process", stream_keep=1 << 20)
def in_process(count: int) -> Iterator[list[int]]:
    yield [count]


@task(name="tail", foreign=True)
def tail(path: str) -> Iterator[bytes]: ...  # type: ignore[empty-body]  # never runs


@task(name="follow", foreign=True)
def follow(path: str) -> AsyncIterator[bytes]: ...  # type: ignore[empty-body]  # never runs


@task
def plain(items: list[str]) -> list[str]:
    return items


def kinds() -> None:
    stream: StreamTask[[str], str] = tokens
    asynchronous: AsyncStreamTask[[str], bytes] = async_generated
    with_context: StreamTask[[int, int], int] = generated
    foreign: StreamTask[[str], bytes] = tail
    async_foreign: AsyncStreamTask[[str], bytes] = follow
    of_lists: StreamTask[[int], list[int]] = in_process
    no_stream: Task[[list[str]], list[str]] = plain
    decorate: Callable[[Callable[[int], Iterator[str]]], StreamTask[[int], str]] = task(name="x")
    del stream, asynchronous, with_context, foreign, async_foreign, of_lists, no_stream, decorate
    Worker([tokens, slowly, plain])


async def values() -> None:
    for token in tokens.stream("hi"):
        assert_type(token, str)
    async for token in tokens.astream("hi"):
        assert_type(token, str)
    for number in generated.stream(3, step=2):
        assert_type(number, int)
    for half in slowly.stream(3):
        assert_type(half, float)
    async for piece in async_generated.astream("file"):
        assert_type(piece, bytes)
    for numbers in in_process.stream(3):
        assert_type(numbers, list[int])
    for line in tail.stream("/var/log/x"):
        assert_type(line, bytes)

    async with slowly.astream(3) as stream:
        assert_type(stream, AsyncStream[float])
        assert_type(stream.position, int)
        assert_type(stream.handle, str)
    with tokens.stream("hi") as blocking:
        assert_type(blocking, Stream[str])
        assert_type(next(blocking), str)


async def local_calls() -> None:
    assert_type(tokens("hi"), Iterator[str])
    assert_type(generated(3), Iterator[int])
    assert_type(slowly(3), AsyncIterator[float])
    async for number in slowly(3):
        assert_type(number, float)


async def jobs() -> None:
    job = tokens.submit("hi")
    assert_type(job, StreamJob[str])
    assert_type(job.stream(after=3), Stream[str])
    assert_type(job.result(), None)
    awaited = await tokens.asubmit("hi")
    assert_type(awaited, AsyncStreamJob[str])
    assert_type(awaited.astream(after="latest"), AsyncStream[str])

    ref = slowly.background(3)
    assert_type(ref, StreamRef[float])
    assert_type(ref.stream(after=3), Stream[float])
    assert_type(ref.astream(after="latest", lag="skip"), AsyncStream[float])
    assert_type(await slowly.abackground(3), StreamRef[float])
    assert_type(slowly.ref("H:host-store:7"), StreamRef[float])
    assert_type(slowly.ref(unique="k"), StreamRef[float])
    assert_type(tokens.background_many(["a"]), list[StreamRef[str]])
    assert_type(await generated.abackground_many(range(3)), list[StreamRef[int]])


def options() -> None:
    assert_type(tokens.options(lag="skip", priority="high").stream("hi"), Stream[str])
    assert_type(slowly.options(stream_keep="16MiB", delay=3).background(3), StreamRef[float])
    assert_type(slowly.options(timeout=3)(3), AsyncIterator[float])


def contexts(ctx: Context) -> None:
    assert_type(ctx.parts, int)
    assert_type(ctx.previous, Progress | None)


# ------------------------------------------------------------------------------------- what is refused


async def wrong() -> None:
    tokens.stream(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tokens.astream()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    tokens.submit(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await tokens.asubmit(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tokens.background(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tokens.background_many([3])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    generated.stream(3, stride=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    slowly.stream(Context(handle="", function="", send=print), 3)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    tokens.call("hi")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    tokens.map(["hi"])  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    plain.stream(["hi"])  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    number: int = next(tokens.stream("hi"))  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    del number


def wrong_options() -> None:
    tokens.options(lag="drop")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tokens.options(stream_keep=1.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    plain.options(lag="skip")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    task(resumable="yes")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    gearflow.task(stream_keep=1.5)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
