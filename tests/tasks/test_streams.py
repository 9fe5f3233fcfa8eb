"""Reading streams from real workers, through both servers, on both event loops, and without one."""

import gc
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from contextvars import copy_context
from typing import Any, cast

import anyio
import pytest
from anyio.lowlevel import checkpoint
from anyio.streams.text import TextReceiveStream

from gearflow import Context, Ended, Started, TaskFailed, connect, task
from gearflow.client import Admin, SyncClient
from gearflow.errors import PayloadInvalid, UnsupportedByServer
from gearflow.protocol.packets import JobCreated, SubmitJob
from gearflow.tasks.streams import AsyncStream, AsyncStreamJob, Stream
from gearflow.testing.peer import ScriptedServer
from tests.tasks.conftest import Serve, ServeSync


class OutOfInk(Exception):
    pass


class Signal:
    """Set by a run, also of another thread."""

    def __init__(self) -> None:
        self.event = threading.Event()

    async def wait(self) -> None:
        with anyio.fail_after(20):
            await anyio.to_thread.run_sync(self.event.wait, abandon_on_cancel=True)


left = Signal()
running = Signal()


@task
async def count(to: int) -> AsyncIterator[int]:
    for number in range(1, to + 1):
        yield number


@task
def words(text: str) -> Iterator[str]:
    yield from text.split()


@task
def blobs(sizes: list[int]) -> Iterator[bytes]:
    for size in sizes:
        yield bytes(size)


@task
def nothing() -> Iterator[int]:
    yield from ()


@task
def fail(after: int) -> Iterator[int]:
    yield from range(1, after + 1)
    raise OutOfInk("blue")


@task
async def endless(ctx: Context) -> AsyncIterator[int]:
    number = 0
    try:
        while True:
            number += 1
            yield number
            await checkpoint()
    finally:
        left.event.set()


@pytest.fixture(autouse=True)
def fresh_event() -> None:
    left.event.clear()
    running.event.clear()


# ---------------------------------------------------------------------------------------------- reading


async def test_the_values_come_in_order_with_their_types(serve: Serve) -> None:
    async with serve(count, words):
        assert [number async for number in count.astream(1000)] == list(range(1, 1001))
        assert [word async for word in words.astream("pear plum")] == ["pear", "plum"]


async def test_the_position_counts_the_values(serve: Serve) -> None:
    async with serve(count), count.astream(100) as stream:
        assert (stream.position, bool(stream.handle)) == (0, True)
        async for number in stream:
            assert stream.position == number
        assert stream.position == 100


async def test_a_stream_may_have_no_values(serve: Serve) -> None:
    async with serve(nothing):
        assert [number async for number in nothing.astream()] == []


@pytest.mark.parametrize("after", [0, 1, 200])
async def test_the_values_come_before_the_error(serve: Serve, after: int) -> None:
    async with serve(fail):
        stream = fail.astream(after)
        for number in range(1, after + 1):
            assert await anext(stream) == number
        with pytest.raises(OutOfInk, match="blue") as caught:
            await anext(stream)
        assert isinstance(caught.value, TaskFailed)
        assert caught.value.handle == stream.handle
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_large_values_arrive(serve: Serve) -> None:
    sizes = [0, 3 << 20, 1, 5 << 20, 100]
    async with serve(blobs):
        assert [len(blob) async for blob in blobs.astream(sizes)] == sizes


async def test_many_streams_share_a_connection(serve: Serve) -> None:
    async with serve(count), anyio.create_task_group() as tasks:

        async def read() -> None:
            assert [number async for number in count.astream(500)] == list(range(1, 501))

        for _ in range(5):
            tasks.start_soon(read)


async def test_arguments_that_do_not_fit_are_refused_at_once() -> None:
    with pytest.raises(PayloadInvalid):
        count.astream(cast(Any, "many"))


@pytest.mark.parametrize("after", [-1, True, "newest", 1.5])
def test_a_position_is_a_number(after: Any) -> None:
    with pytest.raises(ValueError, match="after="):
        count.ref("H:1").astream(after)


# ---------------------------------------------------------------------------------------- leaving early


async def leave_by_break(stream: AsyncStream[int]) -> None:
    async for number in stream:
        if number == 3:
            break


async def leave_by_exception(stream: AsyncStream[int]) -> None:
    with suppress(OutOfInk):
        async for _ in stream:
            raise OutOfInk


async def leave_by_closing(stream: AsyncStream[int]) -> None:
    assert await anext(stream) == 1
    await stream.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def leave_by_block(stream: AsyncStream[int]) -> None:
    async with stream:
        assert await anext(stream) == 1


async def leave_by_cancellation(stream: AsyncStream[int]) -> None:
    async with anyio.create_task_group() as tasks:
        async for _ in stream:
            tasks.cancel_scope.cancel()
            await anyio.sleep_forever()


@pytest.mark.parametrize(
    "leave",
    [leave_by_break, leave_by_exception, leave_by_closing, leave_by_block, leave_by_cancellation],
)
async def test_leaving_early_cancels_the_job(bundled_serve: Serve, leave: Callable[..., Any]) -> None:
    async with bundled_serve(endless):
        await leave(endless.astream())
        gc.collect()
        await left.wait()


async def test_streams_that_are_left_at_any_moment_leave_no_job(
    bundled_serve: Serve, bundled: str, function: str
) -> None:
    @task(name=function)
    async def once() -> AsyncIterator[int]:
        yield 1
        await anyio.sleep_forever()

    async with bundled_serve(once) as client:
        for moment in range(40):
            stream = once.astream()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anext, stream, 0)
                for _ in range(moment**2 // 4):  # before, while and after it is submitted
                    await checkpoint()
                tasks.cancel_scope.cancel()
            del stream
        gc.collect()
        # A job that is left at this moment ends soon. One that nobody has left would be there for ever.
        while any(row.total for row in await Admin(bundled).status() if row.name == function.encode()):
            await client.echo(b"")


async def test_a_wait_that_is_cancelled_cancels_the_job(bundled_serve: Serve) -> None:
    async with bundled_serve(silent):
        stream = silent.astream()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anext, stream)
            await running.wait()
            tasks.cancel_scope.cancel()
        await left.wait()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_a_stream_that_is_closed_while_a_task_waits_ends(bundled_serve: Serve) -> None:
    async with bundled_serve(silent), anyio.create_task_group() as tasks:
        stream = silent.astream()

        async def read() -> None:
            assert [number async for number in stream] == []

        tasks.start_soon(read)
        await running.wait()
        await stream.aclose()
        await left.wait()


async def test_a_stream_that_is_closed_while_it_is_submitted_leaves_no_job() -> None:
    async with ScriptedServer() as server, connect(server.address), anyio.create_task_group() as tasks:
        stream = count.astream(3)

        async def read() -> None:
            assert [number async for number in stream] == []

        tasks.start_soon(read)
        peer = await server.accept()
        await peer.shake_hands(gearflow=True)
        await peer.expect_a(SubmitJob)
        await stream.aclose()
        await peer.send(JobCreated(b"H:1"))
        assert (await peer.expect_a(SubmitJob)).function == b"gearflow:detach"


@task
async def silent() -> AsyncIterator[int]:
    running.event.set()
    try:
        await anyio.sleep_forever()
        yield 1
    finally:
        left.event.set()


# ------------------------------------------------------------------------------------- without a loop


def test_the_blocking_form_is_the_same(serve_sync: ServeSync) -> None:
    with serve_sync(count, words, fail, nothing):
        assert list(count.stream(1000)) == list(range(1, 1001))
        assert list(words.stream("pear plum")) == ["pear", "plum"]
        assert list(nothing.stream()) == []
        with count.stream(100) as stream:
            assert (stream.position, bool(stream.handle)) == (0, True)
            for number in stream:
                assert stream.position == number
        failing = fail.stream(5)
        with pytest.raises(OutOfInk):
            for _ in failing:
                pass
        assert failing.position == 5
        assert list(failing) == []


def leave_blocking_by_break(stream: Stream[int]) -> None:
    for number in stream:
        if number == 3:
            break


def leave_blocking_by_closing(stream: Stream[int]) -> None:
    assert next(stream) == 1
    stream.close()
    assert list(stream) == []


def leave_blocking_by_block(stream: Stream[int]) -> None:
    with stream:
        assert next(stream) == 1


@pytest.mark.parametrize(
    "leave", [leave_blocking_by_break, leave_blocking_by_closing, leave_blocking_by_block]
)
def test_leaving_a_blocking_stream_early_cancels_the_job(
    bundled_serve_sync: ServeSync, leave: Callable[..., Any]
) -> None:
    with bundled_serve_sync(endless):
        leave(endless.stream())
        gc.collect()
        assert left.event.wait(20)


@pytest.mark.parametrize("owns", [True, False])
def test_a_blocking_stream_that_is_closed_while_a_thread_waits_ends(
    bundled_serve_sync: ServeSync, owns: bool
) -> None:
    with bundled_serve_sync(silent), ThreadPoolExecutor() as threads:
        job = None if owns else silent.submit()
        stream = silent.stream() if job is None else job.stream()
        context = copy_context()  # with the client of ``connect``
        values = threads.submit(lambda: context.run(lambda: list(stream)))
        assert running.event.wait(20)
        stream.close()
        assert values.result(20) == []
        if job is not None:
            assert not job.done
            job.cancel()
        assert left.event.wait(20)


INTERRUPTED = """
import sys
from collections.abc import Iterator
from gearflow import task

@task(name=sys.argv[1], foreign=True)
def numbers() -> Iterator[int]: ...

try:
    for number in numbers.stream():
        print(number, flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("after", [0, 3])
async def test_ctrl_c_ends_a_blocking_stream_and_cancels_its_job(
    bundled_serve: Serve, bundled: str, after: int
) -> None:
    command = [sys.executable, "-c", INTERRUPTED, stalling.name]
    async with bundled_serve(stalling):
        stalls_after.append(after)
        async with await anyio.open_process(
            command, env={"GEARMAN_SERVERS": bundled}, stdin=subprocess.PIPE, stderr=None
        ) as caller:
            assert caller.stdout is not None
            lines = TextReceiveStream(caller.stdout)
            await running.wait()
            seen = ""
            while seen.count("\n") < after:
                seen += await lines.receive()
            caller.send_signal(signal.SIGINT)
            await left.wait()  # while the caller still lives, and has its connection
            assert "interrupted" in seen + await lines.receive()
            assert caller.stdin is not None
            await caller.stdin.aclose()
            assert await caller.wait() == 0


def test_an_interrupt_between_two_values_cancels_the_job(bundled_serve_sync: ServeSync) -> None:
    def interrupt(part: bytes) -> bytes:
        if part == b"2":
            raise KeyboardInterrupt
        return part

    with bundled_serve_sync(endless):
        with pytest.raises(KeyboardInterrupt) as caught:
            for _ in Stream(endless.prepare((), {}), interrupt):
                pass
        assert left.event.wait(20)
        assert caught.traceback  # in which the stream is still to be found


stalls_after: list[int] = []


@task
async def stalling() -> AsyncIterator[int]:
    for number in range(stalls_after.pop()):
        yield number
    running.event.set()
    try:
        await anyio.sleep_forever()
    finally:
        left.event.set()


def test_a_blocking_stream_refuses_a_thread_with_an_event_loop(serve_sync: ServeSync) -> None:
    stream = Stream("H:1", bytes)

    async def read() -> None:
        with pytest.raises(RuntimeError, match="astream"):
            next(stream)

    anyio.run(read)


def test_few_turns_of_the_threads_bring_many_values(
    serve_sync: ServeSync, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = 0
    run = SyncClient.run

    def counted(self: SyncClient, function: Callable[..., Any]) -> Any:
        nonlocal turns
        turns += 1
        return run(self, function)

    monkeypatch.setattr(SyncClient, "run", counted)
    with serve_sync(count):
        assert len(list(count.stream(5000))) == 5000
    assert turns < 2500


# ------------------------------------------------------------------------------------------------- jobs


async def test_a_submitted_job_is_read_and_waited_for(serve: Serve) -> None:
    async with serve(count):
        job = await count.asubmit(50)
        assert [number async for number in job.astream()] == list(range(1, 51))
        await job


def test_a_submitted_job_is_read_without_a_loop(serve_sync: ServeSync) -> None:
    with serve_sync(count):
        job = count.submit(50)
        assert list(job.stream()) == list(range(1, 51))
        job.result(20)


async def test_a_job_that_nobody_reads_ends(serve: Serve) -> None:
    async with serve(count):
        job = await count.asubmit(5000)
        await job.result(20)


@pytest.mark.parametrize("times", range(3))
async def test_a_job_that_has_ended_is_read(serve: Serve, times: int) -> None:
    async with serve(count):
        job = await count.asubmit(times)
        with anyio.fail_after(20):
            while not job.done:
                await checkpoint()
        assert [number async for number in job.astream()] == list(range(1, times + 1))


async def drop(job: AsyncStreamJob[int]) -> None:
    """The caller of this has no reference to it either."""


async def only_wait(job: AsyncStreamJob[int]) -> None:
    await job


async def only_watch(job: AsyncStreamJob[int]) -> None:
    job.aevents()


async def open_a_stream_and_leave_it(job: AsyncStreamJob[int]) -> None:
    job.astream()


@pytest.mark.parametrize("use", [drop, only_wait, only_watch, open_a_stream_and_leave_it])
async def test_a_job_does_not_wait_for_nobody(bundled_serve: Serve, use: Callable[..., Any]) -> None:
    async with bundled_serve(marking):
        await use(await marking.asubmit(1000))
        gc.collect()
        await running.wait()


@task
async def marking(to: int) -> AsyncIterator[int]:
    for number in range(1, to + 1):
        yield number
    running.event.set()


async def test_two_tasks_cannot_share_a_stream(bundled_serve: Serve) -> None:
    async with bundled_serve(silent), anyio.create_task_group() as tasks:
        stream = silent.astream()
        tasks.start_soon(anext, stream)
        await running.wait()
        with pytest.raises(RuntimeError, match="another task"):
            await anext(stream)
        assert not left.event.is_set()
        tasks.cancel_scope.cancel()


async def test_a_job_waits_for_its_reader(bundled_serve: Serve) -> None:
    async with bundled_serve(marking):
        job = await marking.asubmit(1000)
        await anyio.wait_all_tasks_blocked()
        assert not running.event.is_set()
        assert [number async for number in job.astream()] == list(range(1, 1001))


@pytest.mark.parametrize("is_joined", [False, True])
async def test_the_values_of_a_job_that_is_cancelled_here_end(
    bundled_serve: Serve, bundled: str, function: str, is_joined: bool
) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(bundled_serve(silent))
        job = await silent.options(unique=function).asubmit()
        if is_joined:
            await stack.enter_async_context(connect(bundled))
            await stack.enter_async_context(silent.options(unique=function).astream())
        stream, events = job.astream(), job.aevents()
        await running.wait()
        assert isinstance(await anext(events), Started)
        async with anyio.create_task_group() as tasks:

            async def read() -> None:
                with pytest.raises(CancelledError):
                    await anext(stream)

            async def watch() -> None:
                assert [event async for event in events] == [Ended("cancelled")]

            tasks.start_soon(read)
            tasks.start_soon(watch)
            await anyio.wait_all_tasks_blocked()
            assert job.cancel()


async def test_leaving_the_values_of_a_job_leaves_the_job(serve: Serve) -> None:
    async with serve(count):
        job = await count.asubmit(2000)
        async for number in job.astream():
            if number == 3:
                break
        await job.result(20)


async def test_on_gearmand_background_streams_cannot_be_read(gearmand: str) -> None:
    async with connect(gearmand):
        ref = await count.abackground(3)
        with pytest.raises(UnsupportedByServer, match="stream\\(\\) and astream\\(\\) give them"):
            await anext(ref.astream())
