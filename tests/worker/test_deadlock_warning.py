"""Tasks that wait for other tasks of their worker, until it has no slot left for these."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError
from typing import Any

import anyio
import pytest

from gearflow.client import Admin, Client, connect
from gearflow.protocol.packets import WorkWarning
from gearflow.tasks import Context, Ref, Task, task
from gearflow.worker import Worker

Fresh = Callable[..., str]
Double = Task[[int], int]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.fixture
def inner(fresh: Fresh) -> Double:
    @task(name=fresh("inner"))
    def double(number: int) -> int:
        return 2 * number

    return double


@pytest.fixture
def told() -> Iterator[threading.Event]:
    """Set when there was a warning."""
    event = threading.Event()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            event.set()

    handler, logger = Handler(logging.WARNING), logging.getLogger("gearflow.worker")
    logger.addHandler(handler)
    yield event
    logger.removeHandler(handler)


@pytest.fixture
def patient(fresh: Fresh, told: threading.Event) -> Double:
    """The same, but it has to be waited for until there was a warning."""

    @task(name=fresh("inner"))
    def double(number: int) -> int:
        assert told.wait(10)
        return 2 * number

    return double


async def submitted(inner: Double) -> int:
    job = await inner.asubmit(3)
    return await job


async def referred(inner: Double) -> int:
    ref = await inner.abackground(3)
    return await ref.aresult(timeout=10)


async def mapped(inner: Double) -> int:
    return sum(await inner.amap([1, 2]))


ASYNC: dict[str, Callable[[Double], Coroutine[Any, Any, int]]] = {
    "acall": lambda inner: inner.acall(3),
    "await job": submitted,
    "await ref": referred,
    "amap": mapped,
}
SYNC: dict[str, Callable[[Double], int]] = {
    "call": lambda inner: inner.call(3),
    "job.result": lambda inner: inner.submit(3).result(),
    "ref.result": lambda inner: inner.background(3).result(timeout=10),
    "map": lambda inner: sum(inner.map([1, 2])),
}


@pytest.mark.parametrize("way", [*ASYNC, *SYNC])
async def test_a_task_that_waits_with_the_last_slot_is_warned_of(
    bundled: str, fresh: Fresh, patient: Double, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    if way in ASYNC:

        @task(name=fresh("outer"))
        async def waits() -> int:
            return await ASYNC[way](patient)

        outer: Task[[], int] = waits
    else:

        @task(name=fresh("outer"))
        def blocks() -> int:
            return SYNC[way](patient)

        outer = blocks

    with anyio.fail_after(20):
        async with (
            Client([bundled]) as client,
            Worker([outer, patient], servers=[bundled], concurrency=1),
            Worker([patient], servers=[bundled]),
        ):
            job = await client.submit(outer.name, b"{}")
            assert await job.result() == b"6"
            [told] = [event.data.decode() async for event in job.events() if isinstance(event, WorkWarning)]
    assert warnings_in(caplog) == [told]
    assert told.startswith(
        f"all slots of a worker (1) are taken by tasks that wait for others ({outer.name}), "
        f"so it cannot run {patient.name}, "
    )


async def test_the_reductions_of_a_batch_are_waited_for_as_well(
    bundled: str, fresh: Fresh, inner: Double, told: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    @task(name=fresh("total"))
    def total(numbers: list[int]) -> int:
        assert told.wait(10)
        return sum(numbers)

    @task(name=fresh("outer"))
    async def outer() -> int:
        return await inner.amap([1, 2, 3]).reduce(total)

    with anyio.fail_after(20):
        async with (
            connect(bundled),
            Worker([outer, total], servers=[bundled], concurrency=1),
            Worker([inner, total], servers=[bundled]),
        ):
            assert await outer.acall() == 12
    assert len(warnings_in(caplog)) == 1
    assert f"so it cannot run {total.name}, " in warnings_in(caplog)[0]


async def test_it_is_told_once_in_a_while_and_names_all_that_wait(
    bundled: str, fresh: Fresh, inner: Double, caplog: pytest.LogCaptureFixture
) -> None:
    both = anyio.Event()
    waiting: list[int] = []

    async def wait(number: int) -> int:
        waiting.append(number)
        if len(waiting) == 2:
            both.set()
        await both.wait()
        return await inner.acall(number)

    @task(name=fresh("one"))
    async def one() -> int:
        return await wait(1)

    @task(name=fresh("other"))
    async def other() -> int:
        return await wait(2)

    with anyio.fail_after(20):
        async with connect(bundled), Worker([one, other, inner], servers=[bundled], concurrency=2):
            jobs = [await one.asubmit(), await other.asubmit()]
            await both.wait()
            async with Worker([inner], servers=[bundled]):
                assert [await job for job in jobs] == [2, 4]
                assert [await each for each in [await one.asubmit(), await other.asubmit()]] == [2, 4]
    assert len(warnings_in(caplog)) == 1
    assert f"({one.name}, {other.name})" in warnings_in(caplog)[0]


async def test_nothing_is_said_while_there_is_a_slot_or_where_others_run_the_task(
    bundled: str, fresh: Fresh, inner: Double, caplog: pytest.LogCaptureFixture
) -> None:
    @task(name=fresh("outer"))
    async def outer() -> int:
        results: list[int] = []

        async def call(number: int) -> None:
            results.append(await inner.acall(number))

        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(call, number)
        return sum(results)

    with anyio.fail_after(20):
        async with connect(bundled), Worker([inner], servers=[bundled]):
            async with Worker([outer, inner], servers=[bundled], concurrency=2):
                for _ in range(3):  # what has waited does not any more
                    assert await outer.acall() == 20
            async with Worker([outer], servers=[bundled], concurrency=1):
                assert await outer.acall() == 20
    assert warnings_in(caplog) == []


async def test_a_run_that_has_waited_and_goes_on_is_not_counted(
    bundled: str, fresh: Fresh, inner: Double, caplog: pytest.LogCaptureFixture
) -> None:
    has_waited, end = anyio.Event(), anyio.Event()

    @task(name=fresh("works"))
    async def works() -> None:
        await inner.acall(1)
        has_waited.set()
        await end.wait()

    @task(name=fresh("waits"))
    async def waits() -> int:
        return await inner.acall(2)

    with anyio.fail_after(20):
        async with (
            connect(bundled),
            Worker([works, waits, inner], servers=[bundled], concurrency=2),
            Worker([inner], servers=[bundled]),
        ):
            job = await works.asubmit()
            await has_waited.wait()
            assert await waits.acall() == 4
            end.set()
            await job
    assert warnings_in(caplog) == []


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_a_task_has_left_behind_takes_no_slot(
    bundled: str, fresh: Fresh, caplog: pytest.LogCaptureFixture
) -> None:
    left: list[asyncio.Task[int]] = []
    running: list[int] = []
    both = anyio.Event()

    @task(name=fresh("inner"))
    async def inner(number: int) -> int:
        running.append(number)
        if len(running) == 2:
            both.set()
        await both.wait()
        return number

    async def call() -> int:
        return await inner.acall(1)

    @task(name=fresh("outer"))
    async def outer() -> None:
        left.append(asyncio.create_task(call()))

    @task(name=fresh("waits"))
    async def waits() -> int:
        return await inner.acall(2)

    with anyio.fail_after(20):
        async with (
            connect(bundled),
            Worker([outer, inner, waits], servers=[bundled], concurrency=2),
            Worker([inner], servers=[bundled]),
        ):
            await outer.acall()
            assert await waits.acall() == 2
            assert await left[0] == 1
    assert warnings_in(caplog) == []


# ----------------------------------------------------------------------- waits that nobody wants any more


async def jobs_of(server: str, function: str) -> int:
    return sum(row.total for row in await Admin(server).status() if row.name == function.encode())


@pytest.mark.parametrize("reason", ["cancelled", "overran", "left"])
@pytest.mark.parametrize("way", SYNC)
async def test_a_thread_that_waits_for_a_task_is_woken_when_nobody_wants_its_run(
    bundled: str, fresh: Fresh, way: str, reason: str
) -> None:
    began, woken = threading.Event(), threading.Event()
    raised: list[type[BaseException]] = []

    @task(name=fresh("nowhere"))
    def nowhere(number: int) -> int:
        """No worker runs it."""
        return number

    @task(name=fresh("outer"), timeout=0.05 if reason == "overran" else None)
    def outer() -> int:
        began.set()
        try:
            return SYNC[way](nowhere)
        except BaseException as error:
            raised.append(type(error))
            raise
        finally:
            woken.set()

    @task(name=fresh("other"))
    async def other() -> str:
        return "the slot is free"

    with anyio.fail_after(20):
        async with Client([bundled]) as client:
            async with Worker([outer, other], servers=[bundled], concurrency=1) as worker:
                job = await client.submit(outer.name, b"{}")
                await anyio.to_thread.run_sync(began.wait)
                if reason == "cancelled":
                    job.cancel()
                if reason == "left":
                    worker.leave()
                else:
                    async with connect(bundled):
                        assert await other.acall() == "the slot is free"
            await anyio.to_thread.run_sync(woken.wait)
            assert raised == [CancelledError]
            while way in ("call", "map") and await jobs_of(bundled, nowhere.name):
                pass  # those which nobody but the run wanted are cancelled


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_run_that_nobody_wants_has_no_further_waits_but_can_call_in_the_background(
    bundled: str, fresh: Fresh
) -> None:
    cancelled, ended = threading.Event(), threading.Event()
    raised: list[type[BaseException]] = []

    @task(name=fresh("later"))
    async def later() -> str:
        return "tidied up"

    refs: list[Ref[str]] = []

    @task(name=fresh("outer"))
    def outer(ctx: Context) -> None:
        cancelled.set()
        while not ctx.cancelled:
            pass
        for wait in (later.call, lambda: asyncio.run(later.acall())):
            try:
                wait()
            except (CancelledError, asyncio.CancelledError) as error:
                raised.append(type(error))
        refs.append(later.background())
        ended.set()

    with anyio.fail_after(20):
        async with connect(bundled):
            async with Worker([outer], servers=[bundled]):
                job = await outer.asubmit()
                await anyio.to_thread.run_sync(cancelled.wait)
                job.cancel()
                await anyio.to_thread.run_sync(ended.wait)
            async with Worker([later], servers=[bundled]):
                assert await refs[0].aresult(10) == "tidied up"
    assert raised == [CancelledError, asyncio.CancelledError]
