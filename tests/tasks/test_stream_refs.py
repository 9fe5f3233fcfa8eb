"""Streams of background jobs and of joined jobs on gearflow's server, read by typed references."""

import pickle
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import CancelledError
from datetime import timedelta
from typing import Any

import anyio
import pytest

from gearflow import (
    Context,
    Ended,
    Part,
    Progress,
    Started,
    StreamGap,
    StreamRef,
    TaskFailed,
    UnknownJob,
    Warned,
    task,
)
from gearflow.client import connect
from gearflow.protocol.packets import Packet, WorkComplete, WorkData
from tests.client.conftest import working as working
from tests.tasks.conftest import Serve, ServeSync


@task
async def count(to: int) -> AsyncIterator[int]:
    for number in range(1, to + 1):
        yield number


@task(stream_keep=1600)
async def forgetful(to: int) -> AsyncIterator[int]:
    for number in range(1, to + 1):
        yield number


@task
def fail(after: int) -> Iterator[int]:
    yield from range(1, after + 1)
    raise ValueError("out of ink")


@task
async def report(ctx: Context) -> AsyncIterator[str]:
    ctx.progress(1, 2, "half")
    yield "pear"
    ctx.warn("slow today")


@task
async def endless() -> AsyncIterator[int]:
    number = 0
    while True:
        number += 1
        yield number


@task(foreign=True)
def tail(file: str) -> Iterator[bytes]:  # type: ignore[empty-body]  # never runs
    ...


# --------------------------------------------------------------------------------------- background jobs


async def test_a_background_stream_is_read_live_and_again(bundled_serve: Serve) -> None:
    async with bundled_serve(count):
        ref = await count.abackground(300)
        assert [number async for number in ref.astream()] == list(range(1, 301))
        assert [number async for number in ref.astream()] == list(range(1, 301))
        await ref.aresult(20)


def test_a_background_stream_is_read_without_a_loop(bundled_serve_sync: ServeSync) -> None:
    with bundled_serve_sync(count):
        ref = count.background(300)
        assert list(ref.stream()) == list(range(1, 301))
        stream = ref.stream(after=290)
        assert next(stream) == 291
        assert stream.position == 291
        ref.result(timedelta(seconds=20))


@pytest.mark.parametrize("after", [0, 1, 150, 299, 300])
async def test_reading_begins_after_a_position(bundled_serve: Serve, after: int) -> None:
    async with bundled_serve(count):
        ref = await count.abackground(300)
        async with ref.astream(after=after) as stream:
            async for number in stream:
                assert number == stream.position
            assert stream.position == 300


async def test_only_new_values_are_read_from_the_latest_on(bundled_serve: Serve) -> None:
    async with bundled_serve(endless):
        ref = await endless.abackground()
        assert await anext(ref.astream(after=200)) == 201
        stream = ref.astream(after="latest")
        number = await anext(stream)
        assert number == stream.position > 1
        await ref.acancel()


async def test_values_that_were_dropped_are_a_gap(bundled_serve: Serve) -> None:
    async with bundled_serve(forgetful):
        ref = await forgetful.abackground(1000)
        await ref.aresult(20)
        stream = ref.astream()
        with pytest.raises(StreamGap) as caught:
            await anext(stream)
        first = caught.value.first
        assert first > 800
        assert stream.position == first - 1
        assert [number async for number in stream] == list(range(first, 1001))


async def test_a_reader_that_skips_does_not_stop_the_job(bundled_serve: Serve) -> None:
    async with bundled_serve(forgetful):
        ref = await forgetful.abackground(5000)
        stream = ref.astream(lag="skip")
        assert await anext(stream) == 1
        await ref.aresult(20)
        with pytest.raises(StreamGap) as caught:
            async for _ in stream:
                pass
        assert [number async for number in stream] == list(range(caught.value.first, 5001))


async def test_the_values_of_a_failed_job_come_before_its_error(bundled_serve: Serve) -> None:
    async with bundled_serve(fail):
        ref = await fail.abackground(3)
        stream = ref.astream()
        assert [await anext(stream) for _ in range(3)] == [1, 2, 3]
        with pytest.raises(ValueError, match="out of ink") as caught:
            await anext(stream)
        assert isinstance(caught.value, TaskFailed)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_a_stream_that_is_cancelled_says_so(bundled_serve: Serve) -> None:
    async with bundled_serve(endless):
        ref = await endless.abackground()
        stream = ref.astream()
        await anext(stream)
        assert await ref.acancel()
        with pytest.raises(CancelledError):
            async for _ in stream:
                pass


async def test_leaving_a_background_stream_leaves_the_job(bundled_serve: Serve) -> None:
    async with bundled_serve(count):
        ref = await count.abackground(1000)
        async for number in ref.astream():
            if number == 3:
                break
        await ref.aresult(20)


async def test_a_wait_for_the_next_value_may_time_out_and_be_repeated(
    bundled_serve: Serve, bundled: str
) -> None:
    async with connect(bundled):
        ref = await count.abackground(3)
        stream = ref.astream()
        with anyio.move_on_after(0.05) as scope:
            await anext(stream)
        assert scope.cancelled_caught
        async with bundled_serve(count):
            assert [number async for number in stream] == [1, 2, 3]


async def test_a_reference_travels(bundled_serve: Serve) -> None:
    async with bundled_serve(count):
        ref = await count.abackground(3)
        pickled: StreamRef[int] = pickle.loads(pickle.dumps(ref))
        named = count.ref(str(ref))
        for same in (pickled, named):
            assert same == ref
            assert [number async for number in same.astream()] == [1, 2, 3]


async def test_the_stream_of_a_unique_is_read(bundled_serve: Serve, function: str) -> None:
    async with bundled_serve(count):
        await count.options(unique=function).abackground(3)
        assert [number async for number in count.ref(unique=function).astream()] == [1, 2, 3]
        with pytest.raises(UnknownJob):
            await anext(count.ref(unique=f"no {function}").astream())


# ------------------------------------------------------------------------------------------ joined jobs


async def test_two_callers_of_one_unique_see_the_same_positions(bundled_serve: Serve, function: str) -> None:
    async with bundled_serve(count):
        joined = count.options(unique=function)
        async with joined.astream(200) as one, joined.astream(200) as other:
            assert one.handle == other.handle
            for number in range(1, 201):
                assert (await anext(one), one.position) == (number, number)
                assert (await anext(other), other.position) == (number, number)


async def test_a_job_goes_on_for_the_one_that_stays(bundled_serve: Serve, function: str) -> None:
    async with bundled_serve(count):
        joined = count.options(unique=function)
        async with joined.astream(200) as one:
            async with joined.astream(200) as other:
                assert await anext(other) == 1
            assert [number async for number in one] == list(range(1, 201))


async def test_a_kept_stream_is_used_again(bundled_serve: Serve, function: str) -> None:
    async with bundled_serve(count):
        ref = await count.options(unique=function).abackground(3)
        await ref.aresult(20)
        again = count.options(unique=function, reuse=True)
        assert [number async for number in again.astream(3)] == [1, 2, 3]


# -------------------------------------------------------------------------------------- other programs


async def test_the_parts_of_another_program_are_a_stream(
    any_server: str, function: str, working: Any
) -> None:
    def answer(job: Any) -> list[Packet]:
        handle = job.handle
        return [WorkData(handle, b"one"), WorkData(handle, b"two"), WorkComplete(handle, b"three")]

    foreign = task(name=function, foreign=True)(tail.function)
    async with working(any_server, function, answer), connect(any_server):
        with anyio.fail_after(20):
            assert [part async for part in foreign.astream("log")] == [b"one", b"two", b"three"]


# ---------------------------------------------------------------------------------------------- events


async def test_the_events_of_a_stream_have_its_values(bundled_serve: Serve, bundled: str) -> None:
    events: list[object] = []
    async with connect(bundled), anyio.create_task_group() as tasks:
        ref = await report.abackground()

        async def watch() -> None:
            events.extend([event async for event in ref.aevents()])

        tasks.start_soon(watch)
        await anyio.wait_all_tasks_blocked()
        async with bundled_serve(report):
            await ref.aresult(20)
    progress, *between, end = (event for event in events if not isinstance(event, Started))
    assert (progress, end) == (Progress(1, 2, "half"), Ended("completed"))
    assert Part("pear", 1) in between  # a value of a background job is shown once it is kept
    assert Warned("slow today") in between
    assert len(between) == 2


def test_events_come_without_a_loop(bundled_serve_sync: ServeSync) -> None:
    with bundled_serve_sync(fail):
        events = list(fail.background(1).events())
        last = events[-1]
        assert isinstance(last, Ended)
        assert last.state == "raised"
        assert isinstance(last.failure, ValueError)
        *_, ended = fail.submit(1).events()
        assert isinstance(ended, Ended)
        assert ended.state == "raised"


def test_a_reference_says_of_what_kind_it_is() -> None:
    assert repr(tail.ref("H:1@jobs:4730")) == "<StreamRef H:1 on jobs:4730>"
    assert repr(tail.ref("H:1")) == "<StreamRef H:1>"
