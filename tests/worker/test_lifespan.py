"""A worker's lifespan hooks: when they are entered and left, and what tasks see of them."""

import logging
import threading
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import pytest

from gearflow.client import connect
from gearflow.errors import StartupFailed
from gearflow.protocol.codec import encode
from gearflow.protocol.packets import SetClientId
from gearflow.tasks import task
from gearflow.tasks.hooks import Hooks, hooks, lifespan
from gearflow.worker import Worker
from gearflow.worker.event_loop import open_loop
from tests.worker.scripted import scripted_server

Fresh = Callable[..., str]

pool: ContextVar[str] = ContextVar("pool", default="none")


async def test_hooks_are_around_all_runs_which_see_their_variables(bundled: str, fresh: Fresh) -> None:
    steps: list[str] = []

    async def outer() -> AsyncIterator[None]:
        steps.append("enter outer")
        pool.set("outer's pool")
        yield
        steps.append("leave outer")

    async def inner() -> AsyncIterator[None]:
        steps.append(f"enter inner with {pool.get()}")
        yield
        steps.append("leave inner")

    @task(name=fresh("on_loop"))
    async def on_loop() -> str:
        return pool.get()

    @task(name=fresh("in_thread"))
    def in_thread() -> str:
        return pool.get()

    with anyio.fail_after(10):
        async with (
            connect(bundled),
            Worker([on_loop, in_thread], servers=[bundled], lifespan=[outer, inner]),
        ):
            assert await on_loop.acall() == "outer's pool"
            assert await in_thread.acall() == "outer's pool"
            steps.append("work")
    assert steps == ["enter outer", "enter inner with outer's pool", "work", "leave inner", "leave outer"]


async def test_without_saying_a_worker_has_the_registered_ones(
    bundled: str, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in vars(Hooks()).items():
        monkeypatch.setattr(hooks, name, value)
    entered: list[str] = []

    @lifespan
    async def registered() -> AsyncIterator[None]:
        entered.append("registered")
        yield

    @task(name=function)
    async def nothing() -> None: ...

    with anyio.fail_after(10):
        async with Worker([nothing], servers=[bundled]), Worker([nothing], servers=[bundled], lifespan=[]):
            assert entered == ["registered"]


@contextmanager
def synchronous() -> Generator[None]:
    yield


def says_nothing_is_returned() -> None: ...


@pytest.mark.parametrize("function", [synchronous, says_nothing_is_returned])
def test_what_is_not_asynchronous_is_refused_where_it_is_written(function: Any) -> None:
    with pytest.raises(
        TypeError, match="cannot be a lifespan hook: it has to be 'async def', and yield once"
    ):
        lifespan(function)


async def test_a_hook_that_returns_no_context_manager_is_told_what_it_has_to_be(function: str) -> None:
    def returns_nothing():  # type: ignore[no-untyped-def]
        pass

    @task(name=function)
    async def nothing() -> None: ...

    hook: Any = returns_nothing
    told = "returns_nothing failed: TypeError: it returned None, .*: write it as 'async def', and yield once"
    with anyio.fail_after(10), pytest.raises(StartupFailed, match=told):
        await Worker([nothing], servers=["127.0.0.1:1"], lifespan=[hook]).run()


async def test_without_its_hooks_a_worker_does_not_connect(function: str) -> None:
    async def fails() -> AsyncIterator[None]:
        raise ConnectionRefusedError("no database")
        yield

    @task(name=function)
    async def nothing() -> None: ...

    with anyio.fail_after(10):
        async with scripted_server() as server:
            with pytest.raises(StartupFailed, match="fails failed: ConnectionRefusedError: no database"):
                await Worker([nothing], servers=[server.address], lifespan=[fails]).run()
            with pytest.raises(StartupFailed, match="no database"):
                async with Worker([nothing], servers=[server.address], lifespan=[fails]):
                    pytest.fail("the block is not for a worker that has not started")
            host, _, port = server.address.partition(":")
            async with await anyio.connect_tcp(host, int(port)) as marker:
                await marker.send(encode(SetClientId(b"marker")))
                peer = await server.accept()
                assert await peer.expect_a(SetClientId) == SetClientId(b"marker")


async def test_a_cold_stop_leaves_the_hooks_after_the_runs(bundled: str, function: str) -> None:
    steps: list[str] = []
    running = anyio.Event()

    async def hook() -> AsyncIterator[None]:
        yield
        await anyio.lowlevel.checkpoint()  # it is not cancelled
        steps.append("left")

    @task(name=function)
    async def hangs() -> None:
        try:
            running.set()
            await anyio.sleep_forever()
        finally:
            steps.append("run ended")

    with anyio.fail_after(10):
        async with connect(bundled), anyio.create_task_group() as tasks:
            worker = Worker([hangs], servers=[bundled], lifespan=[hook])
            await tasks.start(worker.run)
            job = await hangs.asubmit()
            await running.wait()
            worker.leave()
            job.cancel()
    assert steps == ["run ended", "left"]


async def test_what_a_thread_has_started_sees_the_variables_as_well() -> None:
    seen: list[str] = []
    done = anyio.Event()

    async def look() -> None:
        seen.append(pool.get())
        done.set()

    pool.set("the worker's")
    started: list[object] = []
    with anyio.fail_after(10):
        async with open_loop() as loop:
            threading.Thread(target=lambda: loop.post(lambda: started.append(loop.start(look())))).start()
            await done.wait()
    assert seen == ["the worker's"]


@pytest.mark.parametrize("end", [Worker.stop, Worker.leave])
async def test_a_start_that_hangs_is_given_up_and_the_hooks_before_are_left(
    bundled: str, function: str, end: Callable[[Worker], None]
) -> None:
    steps: list[str] = []
    hanging = anyio.Event()

    async def before() -> AsyncIterator[None]:
        yield
        await anyio.lowlevel.checkpoint()  # it is not cancelled
        steps.append("left")

    async def hangs() -> AsyncIterator[None]:
        async with anyio.create_task_group():
            hanging.set()
            await anyio.sleep_forever()
            yield

    async def after() -> AsyncIterator[None]:
        steps.append("entered after all")
        yield

    @task(name=function)
    async def nothing() -> None: ...

    worker = Worker([nothing], servers=[bundled], lifespan=[before, hangs, after])
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run)
            await hanging.wait()
            assert worker.starting
            end(worker)
    assert steps == ["left"]
    assert not worker.ready.is_set()


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise SystemExit


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (SystemExit("no DATABASE_URL"), "SystemExit: no DATABASE_URL"),
        (BaseException("no luck"), "BaseException: no luck"),
        (Unspeakable(), "Unspeakable: <no text>"),
    ],
)
async def test_whatever_a_hook_raises_keeps_the_worker_from_starting(
    function: str, error: BaseException, told: str
) -> None:
    left: list[str] = []

    async def first() -> AsyncIterator[None]:
        try:
            yield
        finally:
            left.append("first")

    async def fails() -> AsyncIterator[None]:
        raise error
        yield

    @task(name=function)
    async def nothing() -> None: ...

    with anyio.fail_after(10), pytest.raises(StartupFailed, match=f"fails failed: {told}$"):
        await Worker([nothing], servers=["127.0.0.1:1"], lifespan=[first, fails]).run()
    assert left == ["first"]


async def test_a_hook_that_exits_as_it_is_left_does_not_keep_the_others_from_being_left(
    bundled: str, function: str, caplog: pytest.LogCaptureFixture
) -> None:
    left: list[str] = []

    async def first() -> AsyncIterator[None]:
        yield
        left.append("first")

    async def exits() -> AsyncIterator[None]:
        yield
        raise SystemExit(4)

    @task(name=function)
    async def nothing() -> None: ...

    with anyio.fail_after(10):
        async with Worker([nothing], servers=[bundled], lifespan=[first, exits]) as worker:
            pass
    assert left == ["first"]
    assert worker.failed_hook is None
    assert f"lifespan hook {__name__}.{exits.__qualname__} failed as it was left" in caplog.messages


async def test_a_hook_whose_task_fails_ends_the_worker_and_is_known(bundled: str, function: str) -> None:
    async def feed() -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail)
            yield

    async def fail() -> None:
        raise ValueError("no more feed")

    @task(name=function)
    async def nothing() -> None: ...

    worker = Worker([nothing], servers=[bundled], lifespan=[feed])
    with anyio.fail_after(10), pytest.raises(ExceptionGroup):
        await worker.run()
    assert worker.failed_hook == f"{__name__}.{feed.__qualname__}"


async def test_what_a_hook_makes_of_its_cancellation_does_not_matter_any_more(
    bundled: str, function: str, caplog: pytest.LogCaptureFixture
) -> None:
    hanging = anyio.Event()

    async def hangs() -> AsyncIterator[None]:
        try:
            hanging.set()
            await anyio.sleep_forever()
        finally:
            raise ConnectionError("interrupted")
        yield

    @task(name=function)
    async def nothing() -> None: ...

    worker = Worker([nothing], servers=[bundled], lifespan=[hangs])
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run)
            await hanging.wait()
            worker.stop()
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        f"lifespan hook {__name__}.{hangs.__qualname__} failed as it was cancelled"
    ]


async def test_a_block_whose_worker_was_stopped_at_its_start_is_entered_all_the_same(
    bundled: str, function: str
) -> None:
    hanging = anyio.Event()

    async def hangs() -> AsyncIterator[None]:
        hanging.set()
        await anyio.sleep_forever()
        yield

    @task(name=function)
    async def nothing() -> None: ...

    worker = Worker([nothing], servers=[bundled], lifespan=[hangs])

    async def stop() -> None:
        await hanging.wait()
        worker.stop()

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stop)
            async with worker:
                assert worker.stopping
