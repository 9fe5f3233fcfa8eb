"""map and amap, and what is made of their results."""

import gc
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, aclosing
from datetime import timedelta
from itertools import count
from typing import Any, TypeAlias, cast

import anyio
import pytest

from gearflow.client import Client, ClientJob, SyncClient
from gearflow.errors import PayloadInvalid, TaskFailed
from gearflow.tasks import task

Serve: TypeAlias = Callable[..., AbstractAsyncContextManager[Client]]
ServeSync: TypeAlias = Callable[..., AbstractContextManager[SyncClient]]
Fresh: TypeAlias = Callable[..., str]


@task
async def square(n: int) -> int:
    return n * n


@task
async def spell(n: int) -> str:
    return f"{n} "


@task
async def join(parts: list[str]) -> str:
    return "".join(parts)


@task
async def total(numbers: list[int]) -> int:
    return sum(numbers)


@task
async def odd(n: int) -> int:
    if n % 2 == 0:
        raise LookupError(n)
    return n


class Counted:
    """Numbers from 0 on, and how many were taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[int]:
        for n in count():
            self.taken += 1
            yield n


async def numbers(size: int) -> AsyncGenerator[int]:
    for n in range(size):
        yield n


def spelled(size: int) -> str:
    return "".join(f"{n} " for n in range(size))


# ----------------------------------------------------------------------------------------------- results


async def test_results_come_in_the_order_of_the_items(serve: Serve) -> None:
    async with serve(square):
        assert await square.amap(range(100)) == [n * n for n in range(100)]
        assert [n async for n in square.amap(range(100), window=1)] == [n * n for n in range(100)]
        assert await square.amap([]) == []


async def test_the_order_holds_whichever_ends_first(serve: Serve, fresh: Fresh) -> None:
    released = anyio.Event()

    @task(name=fresh())
    async def later_first(n: int) -> int:
        if n == 3:
            released.set()
        await released.wait()
        return n

    async with serve(later_first):
        assert await later_first.amap(range(4), window=4) == [0, 1, 2, 3]


async def test_results_may_come_as_jobs_end(serve: Serve, fresh: Fresh) -> None:
    gates = [anyio.Event() for _ in range(3)]

    @task(name=fresh())
    async def wait(n: int) -> int:
        await gates[n].wait()
        return n

    async with serve(wait):
        seen: list[int] = []
        gates[2].set()
        async for n in wait.amap(range(3), ordered=False):
            seen.append(n)
            gates[n - 1].set()
    assert seen == [2, 1, 0]


async def test_items_may_come_from_an_async_iterable(serve: Serve) -> None:
    async with serve(square), aclosing(numbers(50)) as items:
        assert await square.amap(items, window=7) == [n * n for n in range(50)]


async def test_a_result_does_not_wait_for_the_next_item(serve: Serve) -> None:
    send, receive = anyio.create_memory_object_stream[int](10)
    async with serve(square), receive, send:
        results = aiter(square.amap(receive))
        for n in range(5):  # as a crawler: the next item comes of the last result
            send.send_nowait(n)
            assert await anext(results) == n * n
        send.close()
        with pytest.raises(StopAsyncIteration):
            await anext(results)


async def test_an_async_iterable_is_not_read_further_than_there_is_room(serve: Serve) -> None:
    taken = 0

    async def endless() -> AsyncGenerator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    async with serve(square), aclosing(endless()) as items:
        results = aiter(square.amap(items, window=5))
        for n in range(1, 20):
            assert await anext(results) == n * n
            assert taken <= n + 2 * 5


async def test_what_an_async_iterable_raises_is_raised(serve: Serve) -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise LookupError("no more")

    async with serve(square):
        with pytest.raises(LookupError, match="no more"):
            await square.amap(broken())


async def test_items_without_end_are_taken_as_there_is_room(serve: Serve) -> None:
    async with serve(square):
        items = Counted()
        results = aiter(square.amap(items, window=5))
        for n in range(20):
            assert await anext(results) == n * n
            assert items.taken <= n + 1 + 5


async def test_without_a_window_short_jobs_are_more_at_a_time_and_no_more_than_a_thousand(
    serve: Serve, fresh: Fresh
) -> None:
    @task(name=fresh())
    async def short(n: int) -> int:
        return n

    ahead = 0
    items = Counted()
    async with serve(short, concurrency=100):
        results = aiter(short.amap(items))
        for n in range(4000):  # the window doubles from 32 on, and reaches the thousand after 2,000
            assert await anext(results) == n
            ahead = max(ahead, items.taken - n)
    assert 32 < ahead <= 1001


async def test_never_more_jobs_than_the_window_are_in_flight(serve: Serve, fresh: Fresh) -> None:
    running = most = 0

    @task(name=fresh())
    async def crowd(n: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(0.002)
        running -= 1
        return n

    async with serve(crowd):
        await crowd.amap(range(60), window=4)
    assert 1 < most <= 4


async def test_progress_is_told_after_each_job(serve: Serve) -> None:
    async with serve(square):
        told: list[tuple[int, int | None]] = []
        await square.amap(range(3), progress=lambda done, of: told.append((done, of)))
        assert told == [(1, 3), (2, 3), (3, 3)]
        told.clear()
        await square.amap(iter(range(2)), progress=lambda done, of: told.append((done, of)))
        assert told == [(1, None), (2, None)]


async def test_a_batch_can_be_run_once(serve: Serve) -> None:
    async with serve(square):
        batch = square.amap(range(3))
        await batch
        with pytest.raises(RuntimeError, match="once"):
            await batch


@pytest.mark.parametrize("items", [None, 3])
async def test_what_cannot_be_iterated_over_is_told_so(items: Any, serve: Serve) -> None:
    async with serve(square):
        with pytest.raises(TypeError, match="is not iterable"):
            await square.amap(items)


def test_a_task_of_several_arguments_is_told_how_to_be_mapped() -> None:
    @task(name="add")
    def add(a: int, b: int) -> int: ...  # type: ignore[empty-body]

    several: Any = add
    for verb in (several.map, several.amap, several.background_many):
        with pytest.raises(TypeError, match=r"wants 'a', 'b', .*'def f\(p: tuple\[int, int\]\)'"):
            verb([(1, 2)])


@pytest.mark.parametrize("verb", ["map", "amap"])
def test_results_go_to_tasks_alone(verb: str) -> None:
    batch: Any = getattr(square, verb)([1])
    for use in (batch.reduce, batch.then):
        with pytest.raises(TypeError, match=r"<built-in function sum> is no task; put @task"):
            use(sum)


def test_nothing_runs_before_it_is_asked_for() -> None:
    items = Counted()
    square.amap(items)
    square.map(items)
    square.amap(items).reduce(total)
    assert items.taken == 0


def test_nonsense_is_refused() -> None:
    wrong: Any = "ignore"
    with pytest.raises(ValueError, match="window"):
        square.amap([], window=0)
    with pytest.raises(ValueError, match="errors"):
        square.amap([], errors=wrong)


# ---------------------------------------------------------------------------------------------- failures


async def test_the_first_failure_is_raised_and_the_rest_is_let_go(serve: Serve) -> None:
    async with serve(odd, square):
        items = Counted()
        with pytest.raises(LookupError) as caught:
            await odd.amap(items, window=8)
        assert isinstance(caught.value, TaskFailed)
        assert items.taken <= 16
        assert await square.acall(3) == 9


async def test_failures_may_be_collected_in_their_place(serve: Serve) -> None:
    async with serve(odd):
        first, second, third = await odd.amap(range(3), errors="collect")
        assert (isinstance(first, LookupError), second, isinstance(third, TaskFailed)) == (True, 1, True)


async def test_an_item_that_does_not_fit_is_raised(serve: Serve) -> None:
    async with serve(square):
        items: Any = [1, 2, "three", 4]
        with pytest.raises(PayloadInvalid):
            await square.amap(items)


async def test_waiting_for_all_can_be_limited(serve: Serve, fresh: Fresh) -> None:
    @task(name=fresh())
    async def never(n: int) -> int:
        await anyio.sleep_forever()
        return n

    async with serve(never):
        with pytest.raises(TimeoutError, match="in flight are cancelled"):
            await never.amap(range(3)).results(timeout=timedelta(milliseconds=10))
        with pytest.raises(ValueError, match="timeout='1': it is a number of seconds"):
            await never.amap(range(3)).results(timeout=cast(Any, "1"))


# --------------------------------------------------------------------------------------------- leaving it


async def test_leaving_the_iteration_cancels_what_is_in_flight(
    serve: Serve, fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled: list[ClientJob] = []
    begun = anyio.Event()
    cancel = ClientJob.cancel

    def noted(job: ClientJob) -> bool:
        cancelled.append(job)
        begun.set()
        return cancel(job)

    monkeypatch.setattr(ClientJob, "cancel", noted)
    opened, four_run = anyio.Event(), anyio.Event()
    running: set[int] = set()

    @task(name=fresh())
    async def first_only(n: int) -> int:
        if n >= 100:
            running.add(n)
            if len(running) == 4:
                four_run.set()
        if n:
            await opened.wait()
        return n

    async with serve(first_only) as client:
        async for n in first_only.amap(count(), window=4):
            assert n == 0
            break
        gc.collect()
        await begun.wait()
        assert all(job.done for job in cancelled)

        cancelled.clear()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first_only.amap(count(100), window=4).results)
            await four_run.wait()
            await client.echo(b"")  # so that the client knows all of these jobs, too
            tasks.cancel_scope.cancel()
        assert len(cancelled) == 4
        opened.set()


# ------------------------------------------------------------------------------------------ reduce, then


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 50])
async def test_a_reduction_keeps_the_order(serve: Serve, size: int) -> None:
    async with serve(spell, join):
        assert await spell.amap(range(size), window=7).reduce(join, fan_in=3) == spelled(size)


async def test_a_reduction_takes_results_as_they_come(serve: Serve) -> None:
    async with serve(spell, join):
        batch = spell.amap(numbers(40), ordered=False)
        assert await batch.reduce(join, fan_in=2).result(timeout=30) == spelled(40)


async def test_a_failure_ends_a_reduction(serve: Serve, fresh: Fresh) -> None:
    @task(name=fresh())
    async def broken(numbers: list[int]) -> int:
        raise LookupError(len(numbers))

    async with serve(odd, square, total, broken):
        with pytest.raises(LookupError):
            await odd.amap(range(1, 40)).reduce(total)
        with pytest.raises(LookupError):
            await square.amap(range(40)).reduce(broken)


async def test_all_results_may_go_to_one_call(serve: Serve) -> None:
    async with serve(square, total):
        assert await square.amap(range(10)).then(total) == 285


# ---------------------------------------------------------------------------------- without an event loop


def test_the_blocking_face_does_the_same(serve_sync: ServeSync) -> None:
    with serve_sync(square, spell, join, total, odd):
        assert square.map(range(50)).results() == [n * n for n in range(50)]
        assert sorted(square.map(range(50), ordered=False, window=3)) == [n * n for n in range(50)]
        for size in (0, 1, 5, 40):
            assert spell.map(range(size)).reduce(join, fan_in=3).result(timeout=30) == spelled(size)
        assert square.map(range(10)).then(total).result() == 285
        told: list[tuple[int, int | None]] = []
        assert square.map([1, 2], progress=lambda done, of: told.append((done, of))).results() == [1, 4]
        assert told == [(1, 2), (2, 2)]
        with pytest.raises(LookupError):
            odd.map(range(3)).results()
        assert isinstance(odd.map(range(3), errors="collect").results()[0], TaskFailed)


def test_the_blocking_face_tells_what_cannot_be_iterated_over(serve_sync: ServeSync) -> None:
    nothing: Any = None
    with serve_sync(square), pytest.raises(TypeError, match="'NoneType' object is not iterable"):
        square.map(nothing).results()


def test_the_blocking_face_takes_items_lazily_and_in_its_own_thread(serve_sync: ServeSync) -> None:
    threads: set[int] = set()

    def items() -> Iterator[int]:
        for n in count():
            threads.add(threading.get_ident())
            yield n

    with serve_sync(square):
        for n, result in enumerate(square.map(items(), window=4)):
            assert result == n * n
            if n == 20:
                break
    assert threads == {threading.get_ident()}


def test_the_blocking_wait_can_be_limited(serve_sync: ServeSync, fresh: Fresh) -> None:
    @task(name=fresh())
    async def never(n: int) -> int:
        await anyio.sleep_forever()
        return n

    with serve_sync(never, total):
        with pytest.raises(TimeoutError, match="in flight are cancelled"):
            never.map(range(3)).results(timeout=0.01)
        with pytest.raises(TimeoutError):
            never.map(range(3)).reduce(total).result(timeout=0.01)
