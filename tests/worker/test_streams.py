"""Tasks that yield: their values as parts, how they wait for those who read, and how they end.

The tasks are in ``heavy``. They run in a thread, in a process and on the event loop, and behave alike.
"""

import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from gearflow import Context, StreamTask, TaskTimeout, connect, task
from gearflow.client import Client, ClientJob, JobFailed
from gearflow.protocol.constants import WINDOW_PARTS
from gearflow.protocol.packets import (
    CanDo,
    EchoReq,
    EchoRes,
    Error,
    GrabJobUniq,
    JobCreated,
    OptionReq,
    OptionRes,
    Packet,
    SetClientId,
    SubmitJob,
    WorkComplete,
    WorkData,
    WorkException,
    WorkFail,
    WorkStatus,
    WorkWarning,
)
from gearflow.protocol.server_calls import RELEASE, RETRY
from gearflow.protocol.server_events import EVENTS, cancel_event, credit_event
from gearflow.protocol.workers import REPORT
from gearflow.tasks.remote_errors import decode_failure
from gearflow.worker import Worker
from gearflow.worker.parts import PROCESS_PARTS, PartWindow, RunOver
from tests.worker import heavy
from tests.worker.scripted import Peer, scripted_server

Fresh = Callable[..., str]
Counts = StreamTask[[str, int, int, str], str]

PATIENCE = 20  # seconds; starting a process takes some tenths of one

HANDLE = b"H:1"


@pytest.fixture(params=["thread", "process", "loop"])
def counts(request: pytest.FixtureRequest) -> Counts:
    """The same task in each place."""
    found: dict[str, Any] = {
        "thread": heavy.counts_in_thread,
        "process": heavy.counts_in_process,
        "loop": heavy.counts_on_loop,
    }
    counts: Counts = found[request.param]
    return counts


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    return tmp_path / "diary"


def ends(diary: Path) -> str:
    """How the stream was closed. Empty if it came to its end."""
    return diary.read_text() if diary.exists() else ""


# --------------------------------------------------------------------------------------- on both servers


async def packets_of(job: ClientJob) -> list[Packet]:
    return [event async for event in job.events()]


@asynccontextmanager
async def at_work(server: str, *tasks: Any, **options: Any) -> AsyncGenerator[Client]:
    with anyio.fail_after(PATIENCE):
        async with connect(server) as client, Worker(tasks, servers=[server], **options):
            yield client


def payload(stream: Any, *arguments: Any) -> bytes:
    encoded: bytes = stream.payload.encode(arguments, {})
    return encoded


def parts(packets: list[Packet]) -> list[bytes]:
    return [packet.data for packet in packets if isinstance(packet, WorkData)]


async def test_each_value_is_one_part_and_the_end_is_empty(
    any_server: str, counts: Counts, diary: Path
) -> None:
    async with at_work(any_server, counts) as client:
        job = await client.submit(counts.name, payload(counts, str(diary), 3))
        assert parts(await packets_of(job)) == [b"0", b"1", b"2"]
        assert await job.result() == b""
    assert ends(diary) == ""


async def test_many_values_come_in_order(any_server: str, counts: Counts, diary: Path) -> None:
    async with at_work(any_server, counts) as client:
        job = await client.submit(counts.name, payload(counts, str(diary), 1000))
        assert parts(await packets_of(job)) == [b"%d" % number for number in range(1000)]


async def test_values_that_are_larger_than_the_window_come_one_by_one(
    any_server: str, counts: Counts, diary: Path
) -> None:
    async with at_work(any_server, counts) as client:
        job = await client.submit(counts.name, payload(counts, str(diary), 4, 3 << 20))
        assert [len(part) for part in parts(await packets_of(job))] == [1 + (3 << 20)] * 4


async def test_the_values_come_first_and_then_the_error(any_server: str, counts: Counts, diary: Path) -> None:
    async with at_work(any_server, counts) as client:
        job = await client.submit(counts.name, payload(counts, str(diary), 3, 0, "raise"))
        assert parts(await packets_of(job)) == [b"0", b"1", b"2"]
        with pytest.raises(JobFailed) as caught:
            await job.result()
    assert isinstance(decode_failure(caught.value.exception, job.handle), heavy.OutOfInk)


async def test_a_value_that_does_not_fit_ends_the_job_behind_those_that_do(
    any_server: str, counts: Counts, diary: Path
) -> None:
    async with at_work(any_server, counts) as client:
        job = await client.submit(counts.name, payload(counts, str(diary), 2, 0, "invalid"))
        assert parts(await packets_of(job)) == [b"0", b"1"]
        with pytest.raises(JobFailed) as caught:
            await job.result()
    assert "what it yielded does not fit its types" in str(decode_failure(caught.value.exception, job.handle))
    assert ends(diary) == "closed, False"


async def test_values_are_json_and_those_of_bytes_are_raw(any_server: str, fresh: Fresh) -> None:
    @task(name=fresh("numbers"))
    async def numbers() -> AsyncIterator[dict[str, int]]:
        yield {"a": 1}

    @task(name=fresh("raw"))
    def raw() -> Iterator[bytes]:
        return iter([b"\0", b"", b"x"])

    async with at_work(any_server, numbers, raw) as client:
        assert parts(await packets_of(await client.submit(numbers.name, b"{}"))) == [b'{"a":1}']
        assert parts(await packets_of(await client.submit(raw.name, b"{}"))) == [b"\0", b"", b"x"]


async def test_a_stream_that_never_yields_ends_at_its_time_limit(any_server: str, fresh: Fresh) -> None:
    @task(name=fresh(), timeout=0.05)
    async def silent() -> AsyncIterator[int]:
        await anyio.sleep_forever()
        yield 1

    async with at_work(any_server, silent) as client:
        with pytest.raises(JobFailed) as caught:
            await (await client.submit(silent.name, b"{}")).result()
    assert isinstance(decode_failure(caught.value.exception, ""), TaskTimeout)


async def test_a_stream_without_values_is_just_its_end(any_server: str, fresh: Fresh) -> None:
    @task(name=fresh())
    def nothing() -> Iterator[int]:
        yield from ()

    @task(name=fresh())
    def no_iterator() -> Iterator[int]:
        return None  # type: ignore[return-value]  # pyright: ignore[reportReturnType]  # which is tested

    async with at_work(any_server, nothing, no_iterator) as client:
        job = await client.submit(nothing.name, b"{}")
        assert await packets_of(job) == []
        assert await job.result() == b""
        with pytest.raises(JobFailed, match="NoneType"):
            await (await client.submit(no_iterator.name, b"{}")).result()


async def test_middleware_is_around_a_stream_as_around_any_run(any_server: str, fresh: Fresh) -> None:
    seen: list[str] = []

    async def notes(run: Any, proceed: Any) -> None:
        seen.append("before")
        await proceed()
        seen.append("after")

    @task(name=fresh())
    async def one() -> AsyncIterator[int]:
        seen.append("value")
        yield 1

    async with at_work(any_server, one, middleware=[notes]) as client:
        assert parts(await packets_of(await client.submit(one.name, b"{}"))) == [b"1"]
    assert seen == ["before", "value", "after"]


async def test_a_run_sees_its_envelope(any_server: str, counts: Counts, diary: Path) -> None:
    workload = wrap_with(payload(counts, str(diary), 5), parts=3)
    async with at_work(any_server, counts) as client:
        assert parts(await packets_of(await client.submit(counts.name, workload))) == [b"3", b"4"]


def wrap_with(payload: bytes, **options: Any) -> bytes:
    head = json.dumps(options).encode()
    return b"\0gf1" + len(head).to_bytes(4, "big") + head + payload


async def test_the_next_attempt_sees_the_last_progress_with_its_message(any_server: str) -> None:
    async with at_work(any_server, heavy.steps) as client:
        job = await client.submit(heavy.steps.name, b"{}")
        packets = [packet for packet in await packets_of(job) if not isinstance(packet, WorkWarning)]
    handle = job.handle.encode()
    assert parts(packets) == [
        b"1 0 None",
        b"2 0 (1, 3, 'attempt 1')",
        b"3 0 (2, 3, 'attempt 2')",
    ]
    assert WorkStatus(handle, b"3", b"3") in packets


async def test_a_resumable_stream_goes_on_after_its_parts_when_it_is_retried(
    any_server: str, fresh: Fresh
) -> None:
    @task(name=fresh(), retries=3, resumable=True)
    def resumes(ctx: Context) -> Iterator[int]:
        for number in range(ctx.parts, 6):
            yield number
            if number % 2:
                raise ValueError(number)

    async with at_work(any_server, resumes) as client:
        job = await client.submit(resumes.name, b"{}")
        assert parts(await packets_of(job)) == [b"0", b"1", b"2", b"3", b"4", b"5"]


# -------------------------------------------------------------------------------------------- the window


@asynccontextmanager
async def scripted(*tasks: Any, gearflow: bool = True, **options: Any) -> AsyncGenerator[tuple[Peer, Worker]]:
    """A worker at a server that the test plays, with a GRAB in flight."""
    with anyio.fail_after(PATIENCE):
        async with scripted_server() as server, Worker(tasks, servers=[server.address], **options) as worker:
            peer = await server.accept()
            await registered(peer, len(tasks), gearflow=gearflow)
            yield peer, worker
            worker.leave()


async def registered(peer: Peer, tasks: int = 1, *, gearflow: bool = True) -> list[Packet]:
    """Take the registration of a worker that reports what it can resume. Returns what came with the GRAB."""
    peer.frozen = True
    await peer.expect_a(OptionReq)
    await peer.expect_a(SetClientId)
    for _ in range(tasks):
        await peer.expect_a(CanDo)
    await peer.expect_a(EchoReq)  # no GRAB yet
    peer.frozen = False
    if not gearflow:
        await peer.send(Error(b"UNKNOWN_OPTION", b"no such option"))
        return [await peer.expect_a(GrabJobUniq)]
    await peer.send(OptionRes(b"gearflow"))
    first: list[Packet] = []
    while GrabJobUniq() not in first:
        first.append(await peer.expect_a(Packet))
    calls = [packet.function for packet in first if isinstance(packet, SubmitJob)]
    if EVENTS not in calls:
        assert (await peer.expect_a(SubmitJob)).function == EVENTS
        calls.append(EVENTS)
    for function in calls:
        await peer.send(JobCreated(b"H:events" if function == EVENTS else b"H:report"))
    return first


def window(counts: Counts) -> int:
    """So many parts the worker sends. A process has a part of the window to itself."""
    return WINDOW_PARTS - (PROCESS_PARTS if counts.executor == "process" else 0)


async def credit(peer: Peer, position: int, handle: bytes = HANDLE) -> None:
    await peer.send(WorkData(b"H:events", credit_event(handle, position)))


async def taken_in(peer: Peer, count: int) -> list[bytes]:
    """So many parts, with nothing in between but GRABs."""
    found: list[bytes] = []
    while len(found) < count:
        packet = await peer.receive()
        if isinstance(packet, WorkData):
            found.append(packet.data)
        else:
            assert packet == GrabJobUniq()
    return found


async def end_of(peer: Peer) -> Packet:
    """The next packet that is no GRAB and no call."""
    while True:
        packet = await peer.expect_a(Packet)
        if not isinstance(packet, GrabJobUniq | SubmitJob):
            return packet


def other(name: str) -> Any:
    @task(name=name)
    async def ping() -> int:
        return 1

    return ping


async def test_a_stream_waits_for_credit_while_other_jobs_of_the_connection_go_on(
    counts: Counts, diary: Path, fresh: Fresh
) -> None:
    ping = other(fresh())
    async with scripted(counts, ping, concurrency=2) as (peer, _):
        await peer.assign(counts.name.encode(), payload(counts, str(diary), 200))
        sent = await taken_in(peer, window(counts))
        for _ in range(3):
            await peer.assign(ping.name.encode(), b"{}", b"H:2")
            assert await end_of(peer) == WorkComplete(b"H:2", b"1")  # and no part before it
        await credit(peer, 32)
        sent += await taken_in(peer, 32)
        while len(sent) < 200:
            await credit(peer, len(sent) + 3)  # more than was sent
            sent += await taken_in(peer, min(window(counts), 200 - len(sent)))
        assert await end_of(peer) == WorkComplete(HANDLE, b"")
    assert sent == [b"%d" % number for number in range(200)]


async def test_a_stream_of_exactly_a_window_ends_without_credit(counts: Counts, diary: Path) -> None:
    async with scripted(counts) as (peer, _):
        await peer.assign(counts.name.encode(), payload(counts, str(diary), window(counts)))
        await taken_in(peer, window(counts))
        assert await end_of(peer) == WorkComplete(HANDLE, b"")


async def test_large_values_wait_after_a_mebibyte(counts: Counts, diary: Path, fresh: Fresh) -> None:
    ping, size = other(fresh()), 256 << 10
    room = 3 if counts.executor == "process" else 4
    async with scripted(counts, ping, concurrency=2) as (peer, _):
        await peer.assign(counts.name.encode(), payload(counts, str(diary), room + 2, size))
        assert [len(part) for part in await taken_in(peer, room)] == [size + 1] * room
        await peer.assign(ping.name.encode(), b"{}", b"H:2")
        assert await end_of(peer) == WorkComplete(b"H:2", b"1")
        await credit(peer, 2)
        assert len(await taken_in(peer, 2)) == 2
        assert await end_of(peer) == WorkComplete(HANDLE, b"")


async def test_a_run_that_goes_on_counts_from_its_position(counts: Counts, diary: Path, fresh: Fresh) -> None:
    ping = other(fresh())
    async with scripted(counts, ping, concurrency=2) as (peer, _):
        workload = wrap_with(payload(counts, str(diary), 1164), parts=1000)
        await peer.assign(counts.name.encode(), workload)
        sent = await taken_in(peer, window(counts))
        await credit(peer, 1032)
        sent += await taken_in(peer, 32)
        await peer.assign(ping.name.encode(), b"{}", b"H:2")
        assert await end_of(peer) == WorkComplete(b"H:2", b"1")
    assert sent == [b"%d" % (1000 + number) for number in range(len(sent))]


async def test_on_other_servers_a_stream_is_not_far_ahead_of_what_is_written(fresh: Fresh) -> None:
    yielded = 0

    @task(name=fresh(), resumable=True)
    def large() -> Iterator[bytes]:
        nonlocal yielded
        for _ in range(200):
            yielded += 1
            yield bytes(256 << 10)

    async with scripted(large, gearflow=False, concurrency=1) as (peer, _):
        peer.slow_down(0.001)
        await peer.assign(large.name.encode(), b"{}")
        for received in range(1, 201):
            await taken_in(peer, 1)
            assert yielded - received < 80  # 20 MiB, with the buffers of two sockets
        assert await end_of(peer) == WorkComplete(HANDLE, b"")


# ---------------------------------------------------------------------------- runs that end while they wait


async def waiting(peer: Peer, counts: Counts, diary: Path, **envelope: Any) -> None:
    """Give the worker a stream, and let it come to its wait for credit."""
    workload = payload(counts, str(diary), 10_000)
    await peer.assign(counts.name.encode(), wrap_with(workload, **envelope) if envelope else workload)
    await taken_in(peer, window(counts))


async def test_a_cancelled_stream_is_closed_where_it_waits(counts: Counts, diary: Path) -> None:
    async with scripted(counts) as (peer, _):
        await waiting(peer, counts, diary)
        await peer.send(WorkData(b"H:events", cancel_event(HANDLE)))
        assert await end_of(peer) == WorkFail(HANDLE)
    assert ends(diary) == "closed, True"


async def test_a_stream_that_waits_for_its_reader_ends_at_its_time_limit(counts: Counts, diary: Path) -> None:
    async with scripted(counts, concurrency=1) as (peer, _):
        await waiting(peer, counts, diary, timeout=1.0)
        end = await end_of(peer)
        assert isinstance(end, WorkException)
        assert isinstance(decode_failure(end.data, ""), TaskTimeout)
        if counts is heavy.counts_in_thread:  # it is closed a little later
            await peer.answered(REPORT)  # that nothing is overdue any more
    if counts is not heavy.counts_in_process:  # which is killed
        assert ends(diary).startswith("closed")


async def test_a_stream_whose_connection_is_lost_is_closed_where_it_waits(
    counts: Counts, diary: Path
) -> None:
    with anyio.fail_after(PATIENCE):
        async with scripted_server() as server, Worker([counts], servers=[server.address]) as worker:
            peer = await server.accept()
            await registered(peer)
            await waiting(peer, counts, diary)
            await peer.close()
            await registered(await server.accept())
            while worker.running:  # nothing says when a run has ended whose job is elsewhere
                await anyio.lowlevel.checkpoint()
            worker.leave()
    if counts is not heavy.counts_in_process:  # which is killed
        assert ends(diary).startswith("closed")


async def test_a_cold_stop_leaves_no_thread_that_waits(fresh: Fresh) -> None:
    closed = threading.Event()

    @task(name=fresh())
    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    with anyio.fail_after(PATIENCE):
        async with scripted_server() as server, Worker([endless], servers=[server.address]) as worker:
            peer = await server.accept()
            (name,) = await peer.register()
            await peer.assign(name, b"{}")
            await taken_in(peer, WINDOW_PARTS)
            worker.leave()
            while not (isinstance(call := await peer.receive(), SubmitJob) and call.function == RELEASE):
                pass
            await peer.close()
        assert await anyio.to_thread.run_sync(closed.wait, PATIENCE)


async def test_a_warm_stop_lets_a_stream_come_to_its_end(counts: Counts, diary: Path) -> None:
    with anyio.fail_after(PATIENCE):
        async with (
            scripted_server() as server,
            Worker([counts], servers=[server.address], concurrency=1) as worker,
        ):
            peer = await server.accept()
            await registered(peer)
            await peer.assign(counts.name.encode(), payload(counts, str(diary), 80))
            await taken_in(peer, window(counts))
            worker.stop()
            await credit(peer, window(counts))
            await taken_in(peer, 80 - window(counts))
            assert await end_of(peer) == WorkComplete(HANDLE, b"")
            await peer.close()  # nobody answers the GRAB


async def test_a_stream_that_ignores_its_cancellation_ends_at_its_next_yield(fresh: Fresh) -> None:
    @task(name=fresh(), resumable=True)
    async def stubborn() -> AsyncIterator[int]:
        while True:
            try:
                yield 1
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                pass

    async with scripted(stubborn) as (peer, _):
        await peer.assign(stubborn.name.encode(), b"{}")
        await taken_in(peer, 1)
        await peer.send(WorkData(b"H:events", cancel_event(HANDLE)))
        assert await end_of(peer) == WorkFail(HANDLE)


async def test_a_stream_that_ignores_its_time_limit_ends_at_its_next_yield(fresh: Fresh) -> None:
    @task(name=fresh(), resumable=True, timeout=0.05)
    async def stubborn() -> AsyncIterator[int]:
        while True:
            try:
                yield 1
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                pass

    async with scripted(stubborn) as (peer, _):
        await peer.assign(stubborn.name.encode(), b"{}")
        await taken_in(peer, 1)
        end = await end_of(peer)
        assert isinstance(end, WorkException)
        assert isinstance(decode_failure(end.data, ""), TaskTimeout)


# ---------------------------------------------------------------------------------------------- reports


async def test_what_can_be_resumed_is_reported_before_the_first_grab() -> None:
    with anyio.fail_after(PATIENCE):
        async with (
            scripted_server() as server,
            Worker([heavy.counts_in_thread], servers=[server.address]) as worker,
        ):
            first = await registered(await server.accept())
            worker.leave()
    reports = [packet for packet in first if isinstance(packet, SubmitJob) and packet.function == REPORT]
    assert [json.loads(report.workload) for report in reports] == [{"resumable": ["heavy.counts.thread"]}]


async def test_a_server_that_takes_no_reports_gets_the_grab_all_the_same_once_it_has_answered() -> None:
    async with scripted(heavy.counts_in_thread, gearflow=False):
        pass


async def test_a_server_that_does_not_know_the_option_gets_the_grab_once_it_answers_the_ping() -> None:
    with anyio.fail_after(PATIENCE):
        async with (
            scripted_server() as server,
            Worker([heavy.counts_in_thread], servers=[server.address]) as worker,
        ):
            peer = await server.accept()
            peer.frozen = True
            for kind in (OptionReq, SetClientId, CanDo):
                await peer.expect_a(kind)
            ping = await peer.expect_a(EchoReq)
            await peer.send(EchoRes(ping.data))
            await peer.expect_a(GrabJobUniq)
            worker.leave()


async def test_the_last_progress_comes_before_the_end_and_takes_its_message_along(fresh: Fresh) -> None:
    @task(name=fresh(), resumable=True)
    async def busy(ctx: Context) -> AsyncIterator[int]:
        for step in range(10_000):
            ctx.progress(step + 1, 10_000, f"step {step + 1}")
        yield 1

    async with scripted(busy) as (peer, _):
        await peer.assign(busy.name.encode(), b"{}")
        packets: list[Packet] = []
        while not isinstance(packet := await end_of(peer), WorkComplete):
            packets.append(packet)
    reports = [packet for packet in packets if isinstance(packet, WorkStatus)]
    assert reports[0] == WorkStatus(HANDLE, b"1", b"10000\0step 1")
    assert reports[-1] == WorkStatus(HANDLE, b"10000", b"10000\0step 10000")
    assert len(reports) < 20


async def test_a_failed_run_asks_for_another_behind_its_parts(fresh: Fresh) -> None:
    @task(name=fresh(), resumable=True, retries=1)
    def fails(ctx: Context) -> Iterator[int]:
        yield 1
        ctx.progress(1, 3)
        raise ValueError("x")

    async with scripted(fails, concurrency=1) as (peer, _):
        await peer.assign(fails.name.encode(), b"{}")
        await taken_in(peer, 1)
        assert await end_of(peer) == WorkStatus(HANDLE, b"1", b"3")
        assert (await peer.called(RETRY))["handle"] == "H:1"
        await peer.send(WorkComplete(b"H:call", b'{"jobs":1}'))


# -------------------------------------------------------------------------------------- the window itself


def test_a_window_that_is_closed_sends_nothing_and_ends_the_wait_of_a_thread() -> None:
    sent: list[bytes] = []
    window = PartWindow(sent.append, parts=1)
    window.put(b"a")
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            window.put(b"b")
        except RunOver as over:
            failures.append(over)

    waiter = threading.Thread(target=wait)
    waiter.start()
    window.close()
    waiter.join(PATIENCE)
    assert len(failures) == 1
    assert sent == [b"a"]


def test_credit_is_counted_in_parts_and_in_bytes() -> None:
    sent: list[bytes] = []
    window = PartWindow(sent.append, position=10, parts=3, size=100)
    assert [window.send(b"x" * 60), window.send(b"y" * 60), window.send(b"z")] == [True, True, False]
    window.taken(10)  # which is nothing of this run
    window.taken(5)
    assert not window.send(b"z")
    window.taken(11)
    assert window.send(b"z")
    assert window.position == 13
    window.taken(99)
    assert window.send(b"")
