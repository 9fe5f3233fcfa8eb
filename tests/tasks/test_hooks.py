"""Lifespan hooks and middleware: how they are defined, and how hooks are entered and left."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import pytest

from gearflow import RunInfo, lifespan, middleware
from gearflow.errors import StartupFailed
from gearflow.tasks.hooks import Hooks, Lifespan, Proceed, as_lifespan, hooks, lifetime

Steps = list[str]

colour: ContextVar[str] = ContextVar("colour", default="none")


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Hooks:
    """The hooks of this process, of which there are none at the beginning."""
    for name, value in vars(Hooks()).items():
        monkeypatch.setattr(hooks, name, value)
    return hooks


def hook(steps: Steps, name: str) -> Lifespan:
    """A hook that notes when it is entered and left."""

    @asynccontextmanager
    async def noting() -> AsyncGenerator[None]:
        steps.append(f"enter {name}")
        try:
            yield
        finally:
            steps.append(f"leave {name}")

    return noting


# ------------------------------------------------------------------------------------------- definitions


async def test_hooks_are_kept_in_the_order_of_their_definition(registered: Hooks) -> None:
    @lifespan
    async def first() -> AsyncIterator[None]:
        yield

    @lifespan
    @asynccontextmanager
    async def second() -> AsyncGenerator[None]:
        yield

    @middleware
    async def outer(run: RunInfo, proceed: Proceed) -> None: ...

    @middleware
    async def inner(run: RunInfo, proceed: Proceed) -> None: ...

    assert registered.lifespans() == (first, second)
    assert registered.middleware() == (outer, inner)


async def test_what_is_defined_again_takes_the_place_of_the_one_before(registered: Hooks) -> None:
    steps: Steps = []

    def define(word: str) -> None:
        source = f"@lifespan\nasync def hook():\n    steps.append({word!r})\n    yield\n"
        exec(source, {"__name__": "shop", "lifespan": lifespan, "steps": steps})

    define("old")
    lifespan(hook(steps, "other"))
    define("new")
    async with lifetime(registered.lifespans()):
        assert steps == ["new", "enter other"]


async def test_what_one_function_has_made_several_of_is_kept(registered: Hooks) -> None:
    steps: Steps = []
    lifespan(hook(steps, "a"))
    lifespan(hook(steps, "b"))
    async with lifetime(registered.lifespans()):
        assert steps == ["enter a", "enter b"]
    counting = [middleware(Counting()), middleware(Counting())]
    assert registered.middleware() == tuple(counting)


async def test_a_hook_can_be_entered_by_a_test(registered: Hooks) -> None:
    @lifespan
    async def connected() -> AsyncIterator[str]:
        yield "a connection"

    async with connected() as connection:
        assert connection == "a connection"


async def plain_coroutine() -> None: ...


def generator() -> Iterator[None]:
    yield


async def with_parameter(of: str) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            plain_coroutine,
            "plain_coroutine cannot be a lifespan hook: it has to be 'async def', and yield once",
        ),
        (generator, "generator cannot be a lifespan hook: it has to be 'async def', and yield once"),
        (
            with_parameter,
            "with_parameter cannot be a lifespan hook: it has to be a function without parameters",
        ),
        (3, "builtins.int cannot be a lifespan hook: it has to be a function without parameters"),
    ],
)
def test_what_cannot_be_a_hook_is_refused_with_the_remedy(
    registered: Hooks, function: Any, said: str
) -> None:
    with pytest.raises(TypeError, match=said):
        lifespan(function)
    assert registered.lifespans() == ()


async def one_argument(run: RunInfo) -> None: ...


def not_async(run: RunInfo, proceed: Proceed) -> None: ...


class Counting:
    """Middleware with a state of its own."""

    async def __call__(self, run: RunInfo, proceed: Proceed) -> None:
        await proceed()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (one_argument, "one_argument cannot be middleware: it has to take two arguments, run and proceed"),
        (not_async, "not_async cannot be middleware: it has to be 'async def', and await proceed"),
        (3, "builtins.int cannot be middleware"),
        (Counting, "Counting cannot be middleware"),
    ],
)
def test_what_cannot_be_middleware_is_refused_with_the_remedy(
    registered: Hooks, function: Any, said: str
) -> None:
    with pytest.raises(TypeError, match=said):
        middleware(function)
    assert registered.middleware() == ()


# ---------------------------------------------------------------------------------------------- lifetime


async def test_hooks_are_left_in_reverse() -> None:
    steps: Steps = []
    async with lifetime([hook(steps, "a"), hook(steps, "b")]):
        steps.append("work")
    assert steps == ["enter a", "enter b", "work", "leave b", "leave a"]


async def test_variables_of_a_hook_are_set_in_the_block() -> None:
    async def paints() -> AsyncIterator[None]:
        colour.set("green")
        yield

    async with lifetime([as_lifespan(paints)]):
        assert colour.get() == "green"


async def test_a_hook_that_fails_is_named_and_those_before_it_are_left() -> None:
    steps: Steps = []

    async def fails() -> AsyncIterator[None]:
        raise ConnectionRefusedError("no database")
        yield

    with pytest.raises(StartupFailed, match=r"fails failed: ConnectionRefusedError: no database") as caught:
        async with lifetime([hook(steps, "a"), as_lifespan(fails), hook(steps, "b")]):
            steps.append("work")
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    assert steps == ["enter a", "leave a"]


async def test_a_function_that_gives_no_context_manager_is_named() -> None:
    with pytest.raises(StartupFailed, match=r"dict failed: .*'dict' object"):
        async with lifetime([dict]):  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
            pass


async def awaits_a_task_that_it_cancels() -> None:
    background = asyncio.create_task(asyncio.sleep(3600))
    await asyncio.sleep(0)
    background.cancel()
    await background


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_hook_that_cancels_itself_is_named_and_those_before_it_are_left() -> None:
    steps: Steps = []

    async def fails() -> AsyncIterator[None]:
        await awaits_a_task_that_it_cancels()
        yield

    with pytest.raises(StartupFailed, match=r"fails failed: CancelledError"):
        async with lifetime([hook(steps, "a"), as_lifespan(fails)]):
            steps.append("work")
    assert steps == ["enter a", "leave a"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_hook_that_cancels_itself_as_it_is_left_is_logged_and_the_others_are_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    steps: Steps = []

    async def fails() -> AsyncIterator[None]:
        yield
        await awaits_a_task_that_it_cancels()

    async with lifetime([hook(steps, "a"), as_lifespan(fails), hook(steps, "b")]):
        steps.append("work")
    assert steps == ["enter a", "enter b", "work", "leave b", "leave a"]
    [record] = caplog.records
    assert record.getMessage().endswith("fails failed as it was left")


async def test_a_hook_that_fails_as_it_is_left_is_logged_and_the_others_are_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    steps: Steps = []

    async def fails() -> AsyncIterator[None]:
        yield
        raise OSError("no goodbye")

    async with lifetime([hook(steps, "a"), as_lifespan(fails), hook(steps, "b")]):
        steps.append("work")
    assert steps == ["enter a", "enter b", "work", "leave b", "leave a"]
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().endswith("fails failed as it was left")
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "no goodbye"


async def test_what_the_block_raises_is_raised_also_if_a_hook_fails_then() -> None:
    async def fails() -> AsyncIterator[None]:
        try:
            yield
        finally:
            raise OSError("no goodbye")

    with pytest.raises(KeyError, match="work"):
        async with lifetime([as_lifespan(fails)]):
            raise KeyError("work")


async def test_a_task_of_a_hook_that_fails_ends_the_block() -> None:
    steps: Steps = []

    async def crash() -> None:
        raise OSError("the connection broke")

    async def in_background() -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(crash)
            yield

    with anyio.fail_after(20), pytest.raises(ExceptionGroup) as caught:
        async with lifetime([hook(steps, "a"), as_lifespan(in_background)]):
            await anyio.sleep_forever()
    assert str(caught.value.exceptions[0]) == "the connection broke"
    assert steps == ["enter a", "leave a"]
