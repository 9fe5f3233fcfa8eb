"""What type checkers say of batch tasks: checked, not run, as ``check_tasks.py`` says."""

from collections.abc import Sequence
from datetime import timedelta
from typing import assert_type

from gearflow import (
    AsyncBatchTask,
    AsyncResults,
    Batch,
    BatchTask,
    Context,
    Job,
    Ref,
    Results,
    Task,
    TaskFailed,
    task,
)
from gearflow.worker import Worker


@task(batch=Batch(100, wait=0.2))
def embed(texts: list[str]) -> list[list[float]]:
    return [[1.0] for _ in texts]


@task(batch=Batch(100), timeout=30, retries=3, priority="high")
def embed_some(ctx: Context, texts: list[str]) -> list[list[float] | Exception]:
    return [[1.0] if item.attempt == 1 else ValueError() for _, item in zip(texts, ctx.items, strict=True)]


@task(batch=Batch(10, wait=timedelta(seconds=1)))
async def look_up(ctx: Context, keys: list[tuple[int, str]]) -> list[str | None]:
    return [key for _, key in keys]


@task(batch=Batch(10))
async def look_up_some(keys: list[int]) -> list[bytes | Exception | None]:
    return [None for _ in keys]


@task(batch=Batch(10), executor="process")
def of_a_sequence(rows: Sequence[bytes]) -> list[None]:
    return [None for _ in rows]


def kinds() -> None:
    plain: BatchTask[str, list[float]] = embed
    asynchronous: AsyncBatchTask[tuple[int, str], str | None] = look_up
    of_one: Task[[str], list[float]] = embed
    with_failures: Task[[str], list[float]] = embed_some
    del plain, asynchronous, of_one, with_failures
    Worker([embed, look_up, of_a_sequence])


async def results() -> None:
    assert_type(embed.call("x"), list[float])
    assert_type(await embed.acall("x"), list[float])
    assert_type(embed.submit("x"), Job[list[float]])
    assert_type(embed.background("x"), Ref[list[float]])
    assert_type(embed.background_many(["x"]), list[Ref[list[float]]])
    assert_type(embed.map(["x"]), Results[list[float]])
    assert_type(embed.map(["x"], errors="collect"), Results[list[float] | TaskFailed])
    assert_type(embed.options(timeout=3).call("x"), list[float])
    assert_type(embed_some.call("x"), list[float])
    assert_type(await look_up.acall((1, "x")), str | None)
    assert_type(look_up.amap([(1, "x")]), AsyncResults[str | None])
    assert_type(await look_up_some.acall(3), bytes | None)
    assert_type(of_a_sequence.call(b"x"), None)


async def local_calls() -> None:
    assert_type(embed(["x"]), list[list[float]])
    assert_type(embed_some(["x"]), list[list[float] | Exception])
    assert_type(await look_up([(1, "x")]), list[str | None])
    assert_type(await look_up_some([3]), list[bytes | Exception | None])


def not_a_list(text: str) -> list[str]:
    return [text]


def no_list(texts: list[str]) -> str:
    return texts[0]


def wrong() -> None:
    embed.call(["x"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    embed.call(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    embed.map([3])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    embed("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    task(batch=3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    task(batch=Batch(3), timout=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    task(batch=Batch(3))(not_a_list)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    task(batch=Batch(3))(no_list)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    Batch("100")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
