"""What type checkers say of lifespan hooks and middleware: checked, not run, as ``check_tasks.py`` says."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import assert_type

from gearflow import Proceed, RunInfo, lifespan, middleware, task
from gearflow.worker import Worker


@task
def nothing() -> None: ...


@lifespan
async def as_iterator() -> AsyncIterator[str]:
    yield "a pool"


@lifespan
async def as_generator() -> AsyncGenerator[None]:
    yield


@lifespan
@asynccontextmanager
async def as_manager() -> AsyncGenerator[int]:
    yield 3


@middleware
async def timed(run: RunInfo, proceed: Proceed) -> None:
    assert_type(run.attempt, int)
    await proceed()


class Counting:
    async def __call__(self, run: RunInfo, proceed: Proceed) -> None:
        await proceed()


async def right() -> None:
    assert_type(as_iterator(), AbstractAsyncContextManager[object])
    assert_type(middleware(Counting()), Counting)
    worker = Worker([nothing], lifespan=[as_manager], middleware=[timed, Counting()], on_retire=print)
    assert_type(worker.runs(), list[RunInfo])


def plain() -> Iterator[None]:
    yield


async def no_yield() -> None: ...


async def with_parameter(number: int) -> AsyncIterator[None]:
    yield


async def one_argument(run: RunInfo) -> None: ...


def not_async(run: RunInfo, proceed: Proceed) -> None: ...


def wrong() -> None:
    lifespan(plain)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    lifespan(no_yield)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    lifespan(with_parameter)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    middleware(one_argument)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    middleware(not_async)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    Worker([nothing], lifespan=[timed])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
