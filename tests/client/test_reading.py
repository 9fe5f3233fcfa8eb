"""Readers of streams against a scripted server: positions, gaps, restarts, acknowledgements, reconnects."""

import gc
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup

from gearflow.client import (
    Backoff,
    Client,
    JobFailed,
    JobHandle,
    JobKey,
    JobRequest,
    ServerAddress,
    SubmitOptions,
)
from gearflow.client.part_feed import MOST_PARTS, PartFeed
from gearflow.client.reading import StreamReader
from gearflow.errors import (
    ConnectionLost,
    NoServer,
    StreamGap,
    StreamRestarted,
    UnknownJob,
    UnsupportedByServer,
)
from gearflow.protocol.packets import (
    EchoReq,
    EchoRes,
    JobCreated,
    SubmitJob,
    WorkComplete,
    WorkData,
    WorkException,
    WorkFail,
    WorkStatus,
)
from gearflow.testing.peer import ScriptedPeer, ScriptedServer
from tests.client.conftest import Call, Scripted, asked, request

SOON = Backoff(first=0.001, most=0.001)

Script = tuple[Client, ScriptedServer]


@asynccontextmanager
async def serving() -> AsyncGenerator[Script]:
    """A client, and the server that it will ask."""
    async with ScriptedServer() as server, Client([server.address], backoff=SOON) as client:
        yield client, server


def mark(call: bytes, position: int, run: int = 1) -> WorkStatus:
    return WorkStatus(call, b"%d" % position, b"%d" % run)


def parts(call: bytes, *numbers: int) -> list[WorkData]:
    return [WorkData(call, b"part %d" % number) for number in numbers]


def named(*numbers: int) -> list[bytes]:
    return [b"part %d" % number for number in numbers]


class Reading:
    """Takes parts one by one, beside the script."""

    def __init__(self, reader: StreamReader) -> None:
        self.reader = reader
        self.position = 0
        self._parts: list[bytes] = []

    async def next(self) -> bytes | None:
        """The next part; None at the end."""
        if not self._parts:
            with anyio.fail_after(20):
                batch = await self.reader.take()
            if not batch.parts:
                return None
            self.position = batch.start
            self._parts = list(batch.parts)
        self.position += 1
        return self._parts.pop(0)

    async def next_few(self, count: int) -> list[bytes | None]:
        return [await self.next() for _ in range(count)]


async def begun(
    client: Client, server: ScriptedServer, tasks: TaskGroup, count: int | None = None, **how: Any
) -> tuple[Reading, Call, ScriptedPeer, dict[str, Any]]:
    """Begin to read a job, one part or so many. Also returns the peer that was asked, and for what."""
    reading = Reading(StreamReader(client.pool, "H:1", **how))
    call = Call(reading.next) if count is None else Call(reading.next_few, count)
    tasks.start_soon(call.run)
    peer, fields = await asked(server, b"C:1")
    return reading, call, peer, fields


# ------------------------------------------------------------------------------------------- one server


async def test_parts_come_in_order_and_then_the_end() -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        reading, call, peer, fields = await begun(client, server, tasks, 3)
        assert fields == {"handle": "H:1"}
        await peer.send(mark(b"C:1", 0), *parts(b"C:1", 1, 2), WorkComplete(b"C:1", b""))
        assert await call.outcome() == [*named(1, 2), None]
        assert reading.position == 2
        assert await reading.next() is None


async def test_a_result_that_is_not_empty_is_one_more_part() -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        reading, call, peer, _ = await begun(client, server, tasks, 3)
        await peer.send(mark(b"C:1", 0), *parts(b"C:1", 1), WorkComplete(b"C:1", b"the rest"))
        assert await call.outcome() == [b"part 1", b"the rest", None]
        assert reading.position == 2


async def test_the_values_come_before_the_error() -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        reading, call, peer, _ = await begun(client, server, tasks, 2)
        await peer.send(mark(b"C:1", 0), *parts(b"C:1", 1, 2), WorkException(b"C:1", b"out of ink"))
        assert await call.outcome() == named(1, 2)
        with pytest.raises(JobFailed) as caught:
            await reading.next()
        assert caught.value.exception == b"out of ink"
        assert await reading.next() is None


async def test_a_reader_may_begin_at_the_newest_part() -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        reading, call, peer, fields = await begun(client, server, tasks, after="latest", lag="skip")
        assert fields == {"handle": "H:1", "after": "latest", "lag": "skip"}
        await peer.send(mark(b"C:1", 40), *parts(b"C:1", 41))
        assert await call.outcome() == b"part 41"
        assert reading.position == 41


async def test_a_gap_is_raised_where_it_is_and_the_reading_goes_on() -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        reading, call, peer, fields = await begun(client, server, tasks, after=3)
        assert fields == {"handle": "H:1", "after": 3}
        await peer.send(mark(b"C:1", 10), *parts(b"C:1", 11, 12), mark(b"C:1", 20), *parts(b"C:1", 21))
        with pytest.raises(StreamGap, match="parts 4 to 10 are gone") as caught:
            await call.outcome()
        assert (caught.value.first, caught.value.last) == (11, 3)
        assert await reading.next_few(2) == named(11, 12)
        with pytest.raises(StreamGap) as caught:
            await reading.next()
        assert (caught.value.first, caught.value.last) == (21, 12)
        assert await reading.next() == b"part 21"
        assert reading.position == 21


async def test_a_restart_is_raised_where_it_is_and_the_reading_goes_on() -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        reading, call, peer, _ = await begun(client, server, tasks, 2)
        await peer.send(
            mark(b"C:1", 0), *parts(b"C:1", 1, 2), mark(b"C:1", 0, run=2), *parts(b"C:1", 1, 2, 3)
        )
        assert await call.outcome() == named(1, 2)
        with pytest.raises(StreamRestarted) as caught:
            await reading.next()
        assert caught.value.run == 2
        assert await reading.next_few(3) == named(1, 2, 3)
        assert reading.position == 3


async def test_a_restart_whose_first_parts_are_gone_is_both() -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        reading, call, peer, _ = await begun(client, server, tasks)
        await peer.send(mark(b"C:1", 0), *parts(b"C:1", 1), mark(b"C:1", 5, run=2), *parts(b"C:1", 6))
        assert await call.outcome() == b"part 1"
        with pytest.raises(StreamRestarted):
            await reading.next()
        with pytest.raises(StreamGap) as caught:
            await reading.next()
        assert caught.value.first == 6
        assert await reading.next() == b"part 6"


async def test_a_run_that_had_delivered_nothing_restarts_unnoticed() -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        _, call, peer, _ = await begun(client, server, tasks)
        await peer.send(mark(b"C:1", 0), mark(b"C:1", 0, run=2), *parts(b"C:1", 1))
        assert await call.outcome() == b"part 1"


async def test_a_position_from_before_the_last_restart_is_a_restart() -> None:
    """The job has fewer parts than the reader had when it left."""
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        reading, call, peer, fields = await begun(client, server, tasks, after=100)
        assert fields["after"] == 100
        await peer.send(mark(b"C:1", 7, run=2))
        with pytest.raises(StreamRestarted) as caught:
            await call.outcome()
        assert caught.value.run == 2
        call = Call(reading.next)
        tasks.start_soon(call.run)
        assert await request(peer, b"gearflow:detach") == {"handle": "C:1"}
        assert await request(peer) == {"handle": "H:1"}
        await peer.send(JobCreated(b"C:2"), JobCreated(b"C:3"), mark(b"C:3", 0, run=2), *parts(b"C:3", 1))
        assert await call.outcome() == b"part 1"


async def test_a_position_that_a_first_run_has_not_reached_is_waited_for() -> None:
    """Nothing has begun again, so this is no restart."""
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        _, call, peer, _ = await begun(client, server, tasks, after=9)
        await peer.send(mark(b"C:1", 7), *parts(b"C:1", 8, 9, 10))
        assert await call.outcome() == b"part 10"


async def test_parts_are_acknowledged() -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        reader = StreamReader(client.pool, "H:1")
        call = Call(reader.take)
        tasks.start_soon(call.run)
        peer, _ = await asked(server, b"C:1")
        await peer.send(mark(b"C:1", 0), *parts(b"C:1", *range(1, 41)))
        await call.outcome()
        reader.acknowledge(16)
        await peer.expect(WorkStatus(b"C:1", b"16", b"0"))
        reader.acknowledge(32)
        await peer.expect(WorkStatus(b"C:1", b"32", b"0"))


async def test_a_reader_that_leaves_says_so_and_the_job_stays() -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        reader = StreamReader(client.pool, "H:1")
        call = Call(reader.take)
        tasks.start_soon(call.run)
        peer, _ = await asked(server, b"C:1")
        await peer.send(mark(b"C:1", 0), *parts(b"C:1", 1))
        await call.outcome()
        reader.close()
        assert await request(peer, b"gearflow:detach") == {"handle": "C:1"}
        assert (await reader.take()).parts == ()


async def test_a_reader_that_is_closed_while_it_waits_ends() -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        reader = StreamReader(client.pool, "H:1")
        call = Call(reader.take)
        tasks.start_soon(call.run)
        peer, _ = await asked(server, b"C:1")
        await anyio.wait_all_tasks_blocked()
        reader.close()
        assert (await call.outcome()).parts == ()
        assert await request(peer, b"gearflow:detach") == {"handle": "C:1"}


async def test_a_wait_that_is_cancelled_loses_no_part() -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        reading, call, peer, _ = await begun(client, server, tasks)
        await peer.send(mark(b"C:1", 0), *parts(b"C:1", 1))
        assert await call.outcome() == b"part 1"
        call = Call(reading.next)
        tasks.start_soon(call.run)
        await anyio.wait_all_tasks_blocked()
        call.scope.cancel()
        await peer.send(*parts(b"C:1", 2))
        assert await reading.next() == b"part 2"


async def test_an_unknown_job_is_an_error() -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        call = Call(StreamReader(client.pool, "H:1").take)
        tasks.start_soon(call.run)
        peer, _ = await asked(server, b"C:1")
        await peer.send(WorkException(b"C:1", b'{"type":"gearflow:unknown","message":"no such job"}'))
        with pytest.raises(UnknownJob, match="no such job"):
            await call.outcome()


async def test_other_servers_keep_no_parts(scripted: Scripted) -> None:
    async with scripted() as (client, _):
        with pytest.raises(UnsupportedByServer, match="gearflow:stream"):
            await StreamReader(client.pool, "H:1").take()


async def test_a_server_that_was_never_reached_is_no_server() -> None:
    async with ScriptedServer() as server:
        await server.stop_listening()
        async with Client([server.address], backoff=SOON) as client:
            with pytest.raises(NoServer):
                await StreamReader(client.pool, "H:1").take()


# -------------------------------------------------------------------------------------------- reconnects


@pytest.mark.parametrize("position", range(6))
async def test_a_lost_connection_at_any_position_loses_and_repeats_nothing(position: int) -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        _, call, peer, _ = await begun(client, server, tasks, 6)
        await peer.send(mark(b"C:1", 0), *parts(b"C:1", *range(1, position + 1)))
        await peer.close()
        peer, fields = await asked(server, b"C:1")
        assert fields.get("after", 0) == position
        rest = parts(b"C:1", *range(position + 1, 6))
        await peer.send(mark(b"C:1", position), *rest, WorkComplete(b"C:1", b""))
        assert await call.outcome() == [*named(*range(1, 6)), None]


async def test_a_connection_that_is_lost_before_the_first_mark_is_asked_for_the_newest_again() -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        _, call, peer, _ = await begun(client, server, tasks, after="latest")
        await peer.close()
        peer, fields = await asked(server, b"C:1")
        assert fields["after"] == "latest"
        await peer.send(mark(b"C:1", 9), *parts(b"C:1", 10))
        assert await call.outcome() == b"part 10"


async def test_a_server_that_stops_is_waited_for() -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        _, call, peer, _ = await begun(client, server, tasks, 2)
        await peer.send(mark(b"C:1", 0), *parts(b"C:1", 1))
        await server.stop_listening()
        await peer.close()
        async with ScriptedServer(port=server.port) as again:
            peer, fields = await asked(again, b"C:1")
            assert fields["after"] == 1
            await peer.send(mark(b"C:1", 1), *parts(b"C:1", 2))
            assert await call.outcome() == named(1, 2)


@pytest.mark.parametrize("position", [0, 1, 2, 7])
async def test_a_restart_during_a_lost_connection_is_noticed(position: int) -> None:
    """Also if the new run has as many parts as the old one, or more."""
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        reading, call, peer, _ = await begun(client, server, tasks, 3)
        await peer.send(mark(b"C:1", 0), *parts(b"C:1", 1, 2))
        await peer.close()
        peer, fields = await asked(server, b"C:1")
        assert fields["after"] == 2
        await peer.send(mark(b"C:1", position, run=2))
        with pytest.raises(StreamRestarted):
            await call.outcome()
        call = Call(reading.next)
        tasks.start_soon(call.run)
        if position:
            assert await request(peer, b"gearflow:detach") == {"handle": "C:1"}
            assert await request(peer) == {"handle": "H:1"}
            await peer.send(JobCreated(b"C:8"), JobCreated(b"C:9"), mark(b"C:9", 0, run=2), *parts(b"C:9", 1))
        else:
            await peer.send(*parts(b"C:1", 1))
        assert await call.outcome() == b"part 1"
        assert reading.position == 1


async def test_parts_that_a_server_did_not_keep_and_that_come_again_are_skipped() -> None:
    """A server that was killed may have sent parts that its file does not have."""
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        reading, call, peer, _ = await begun(client, server, tasks, 7)
        await peer.send(mark(b"C:1", 0), *parts(b"C:1", 1, 2, 3, 4, 5))
        await peer.close()
        peer, fields = await asked(server, b"C:1")
        assert fields["after"] == 5
        await peer.send(mark(b"C:1", 3), *parts(b"C:1", 4))
        await peer.send(*parts(b"C:1", 5, 6, 7))
        assert await call.outcome() == named(1, 2, 3, 4, 5, 6, 7)
        assert reading.position == 7


# ----------------------------------------------------------------------------------------- attached jobs


def streamed(*, resubmit: bool = False) -> JobRequest:
    order = JobRequest("f", b"x", options=SubmitOptions(resubmit=resubmit), detached=False)
    return order.streamed()


async def submitted(server: ScriptedServer, handle: bytes = b"H:1", *, gearflow: bool = True) -> ScriptedPeer:
    """A connection on which a job was submitted."""
    peer = await server.accept()
    await peer.shake_hands(gearflow=gearflow)
    if gearflow:
        await request(peer, b"gearflow:submit")
    else:
        await peer.expect(SubmitJob(b"f", b"", b"x"))
    await peer.send(JobCreated(handle))
    return peer


async def attach(client: Client, peer: ScriptedPeer, order: JobRequest, *, gearflow: bool = False) -> Any:
    """An attached job that a server has accepted."""
    async with anyio.create_task_group() as tasks:
        submission = Call(client.attach, order)
        tasks.start_soon(submission.run)
        if gearflow:
            await request(peer, b"gearflow:submit")
        else:
            await peer.expect(SubmitJob(b"f", b"", b"x"))
        await peer.send(JobCreated(b"H:1"))
        return await submission.outcome()


async def read_two(client: Client, server: ScriptedServer, tasks: TaskGroup) -> tuple[Reading, Call]:
    """Read two parts of a job that is submitted again. gearflow's server brings the first, and is lost."""
    submission = Call(client.attach, streamed(resubmit=True))
    tasks.start_soon(submission.run)
    peer = await submitted(server)
    reading = Reading(StreamReader(None, await submission.outcome()))
    call = Call(reading.next_few, 2)
    tasks.start_soon(call.run)
    await request(peer)
    await peer.send(JobCreated(b"C:1"), mark(b"C:1", 0), *parts(b"C:1", 1))
    await peer.close()
    return reading, call


async def read_two_elsewhere(
    client: Client, server: ScriptedServer, tasks: TaskGroup
) -> tuple[Reading, Call]:
    """The same, and the first server is of another kind."""
    submission = Call(client.attach, streamed(resubmit=True))
    tasks.start_soon(submission.run)
    peer = await submitted(server, gearflow=False)
    await peer.send(*parts(b"H:1", 1))
    reading = Reading(StreamReader(None, await submission.outcome()))
    call = Call(reading.next_few, 2)
    tasks.start_soon(call.run)
    await anyio.wait_all_tasks_blocked()
    await peer.close()
    return reading, call


async def test_an_attached_job_is_read_on_its_own_connection(scripted: Scripted) -> None:
    async with scripted(gearflow=True) as (client, peer), anyio.create_task_group() as tasks:
        submission = Call(client.attach, streamed())
        tasks.start_soon(submission.run)
        assert await request(peer, b"gearflow:submit") == {"function": "f", "parts": "wait"}
        await peer.send(JobCreated(b"H:1"))
        reading = Reading(StreamReader(None, await submission.outcome()))
        call = Call(reading.next_few, 2)
        tasks.start_soon(call.run)
        assert await request(peer) == {"handle": "H:1"}
        await peer.send(WorkComplete(b"H:1", b""), JobCreated(b"C:1"), mark(b"C:1", 0), *parts(b"C:1", 1))
        await peer.send(WorkComplete(b"C:1", b""))
        assert await call.outcome() == [b"part 1", None]


def feeds() -> set[int]:
    """The feeds that are in memory."""
    gc.collect()
    return {id(known) for known in gc.get_objects() if isinstance(known, PartFeed)}


async def test_a_job_does_not_remember_the_readers_that_have_left(scripted: Scripted) -> None:
    async with scripted(gearflow=True) as (client, peer), anyio.create_task_group() as tasks:
        job = await attach(client, peer, streamed(), gearflow=True)
        before = feeds()
        reader = StreamReader(None, job)
        call = Call(reader.take)
        tasks.start_soon(call.run)
        await request(peer)
        await peer.send(JobCreated(b"C:1"), mark(b"C:1", 0), *parts(b"C:1", 1))
        await call.outcome()
        reader.close()
        assert await request(peer, b"gearflow:detach") == {"handle": "C:1"}
        await peer.send(JobCreated(b"C:2"), WorkComplete(b"C:2", b"{}"))
        del reader, call
        with anyio.fail_after(20):
            while not feeds() <= before:  # noqa: ASYNC110  (the client has still to read the answer)
                await anyio.sleep(0.01)
        assert not job.done


async def test_the_lost_connection_of_an_attached_job_is_an_error_after_the_parts(scripted: Scripted) -> None:
    async with scripted(gearflow=True) as (client, peer), anyio.create_task_group() as tasks:
        job = await attach(client, peer, streamed(), gearflow=True)
        reading = Reading(StreamReader(None, job))
        call = Call(reading.next)
        tasks.start_soon(call.run)
        await request(peer)
        await peer.send(JobCreated(b"C:1"), mark(b"C:1", 0), *parts(b"C:1", 1))
        await peer.close()
        assert await call.outcome() == b"part 1"
        with pytest.raises(ConnectionLost, match="job H:1"):
            await reading.next()


async def test_a_job_that_was_refused_says_why(scripted: Scripted) -> None:
    async with scripted(gearflow=True) as (client, peer), anyio.create_task_group() as tasks:
        job = await attach(client, peer, streamed(), gearflow=True)
        call = Call(StreamReader(None, job).take)
        tasks.start_soon(call.run)
        await request(peer)
        await peer.send(WorkFail(b"H:1"), JobCreated(b"C:1"))
        await peer.send(WorkException(b"C:1", b'{"type":"gearflow:unknown","message":"no such job"}'))
        with pytest.raises(JobFailed):
            await call.outcome()


async def test_a_job_that_is_submitted_again_is_a_restart_once_parts_were_taken() -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        reading, call = await read_two(client, server, tasks)
        peer = await submitted(server, b"H:2")
        assert await request(peer) == {"handle": "H:2"}
        await peer.send(JobCreated(b"C:1"), mark(b"C:1", 0), *parts(b"C:1", 1, 2))
        with pytest.raises(StreamRestarted, match="submitted again"):
            await call.outcome()
        assert await reading.next_few(2) == named(1, 2)


async def test_a_job_that_is_joined_again_goes_on() -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        _, call = await read_two(client, server, tasks)
        peer = await submitted(server)
        assert await request(peer) == {"handle": "H:1", "after": 1}
        await peer.send(JobCreated(b"C:1"), mark(b"C:1", 1), *parts(b"C:1", 2))
        assert await call.outcome() == named(1, 2)


# ----------------------------------------------------------------------------------- servers of other kinds


async def test_on_another_server_the_parts_are_those_of_the_job(scripted: Scripted) -> None:
    async with scripted() as (client, peer):
        job = await attach(client, peer, streamed())
        reading = Reading(StreamReader(None, job))
        status = WorkStatus(b"H:1", b"1", b"2")
        await peer.send(*parts(b"H:1", 1), status, *parts(b"H:1", 2), WorkComplete(b"H:1", b"the rest"))
        assert await reading.next_few(4) == [*named(1, 2), b"the rest", None]
        assert reading.position == 3
        assert await job.next_event() == status


async def test_on_another_server_unread_parts_stop_the_connection(scripted: Scripted) -> None:
    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        job = await attach(client, peer, streamed())
        reading = Reading(StreamReader(None, job))
        total = 4 * MOST_PARTS
        big = 1 << 14  # so that the buffers of the system do not hold many
        sent = 0

        async def work() -> None:
            nonlocal sent
            for number in range(1, total + 1):
                await peer.send(WorkData(b"H:1", b"%08d" % number + bytes(big)))
                sent = number
            await peer.send(WorkComplete(b"H:1", b""))

        tasks.start_soon(work)
        assert await reading.next() is not None
        quiet = 0  # turns of the event loop in which nothing was sent
        while quiet < 100:
            before = sent
            await anyio.lowlevel.checkpoint()
            quiet = quiet + 1 if sent == before else 0
        assert sent < 3 * MOST_PARTS
        for number in range(2, total + 1):
            part = await reading.next()
            assert part is not None
            assert int(part[:8]) == number
        assert await reading.next() is None


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_on_another_server_a_job_that_has_ended_does_not_stop_the_connection(
    scripted: Scripted, is_cancelled: bool
) -> None:
    async with scripted() as (client, peer), anyio.create_task_group() as tasks:
        job = await attach(client, peer, streamed())
        last = WorkStatus(b"H:1", b"1", b"1") if is_cancelled else WorkComplete(b"H:1", b"")
        await peer.send(*parts(b"H:1", *range(1, MOST_PARTS + 2)), last)
        if is_cancelled:
            assert await job.next_event() == last  # so all parts have come
            job.cancel()
        else:
            await job.result()
        call = Call(client.echo, b"hello")
        tasks.start_soon(call.run)
        await peer.expect(EchoReq(b"hello"))
        await peer.send(EchoRes(b"hello"))
        assert await call.outcome() == b"hello"


async def test_on_another_server_a_job_that_is_not_read_keeps_its_last_parts(scripted: Scripted) -> None:
    async with scripted() as (client, peer):
        job = await attach(client, peer, JobRequest("f", b"x", detached=False).streamed(unread=True))
        await peer.send(*parts(b"H:1", *range(1, MOST_PARTS + 11)), WorkComplete(b"H:1", b""))
        await job.result()
        reading = Reading(StreamReader(None, job))
        with pytest.raises(StreamGap) as caught:
            await reading.next()
        assert (caught.value.first, caught.value.last) == (11, 0)
        assert await reading.next() == b"part 11"


async def test_on_another_server_a_job_that_is_submitted_again_is_a_restart() -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        reading, call = await read_two_elsewhere(client, server, tasks)
        peer = await submitted(server, gearflow=False)
        await peer.send(*parts(b"H:1", 1, 2), WorkComplete(b"H:1", b""))
        with pytest.raises(StreamRestarted, match="submitted again"):
            await call.outcome()
        assert await reading.next_few(3) == [*named(1, 2), None]


async def test_a_job_may_be_submitted_again_to_a_server_of_another_kind() -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        reading, call = await read_two_elsewhere(client, server, tasks)
        peer = await submitted(server, b"H:gearflow:1")
        assert await request(peer) == {"handle": "H:gearflow:1"}
        await peer.send(JobCreated(b"C:1"), mark(b"C:1", 0), *parts(b"C:1", 1, 2), WorkComplete(b"C:1", b""))
        with pytest.raises(StreamRestarted):
            await call.outcome()
        assert await reading.next_few(3) == [*named(1, 2), None]


async def test_the_job_of_a_unique_is_found_first() -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        call = Call(StreamReader(client.pool, JobKey("f", "u")).take)
        tasks.start_soon(call.run)
        peer = await server.accept()
        await peer.shake_hands(gearflow=True)
        assert await request(peer, b"gearflow:info") == {"function": "f", "unique": "u"}
        info = b'{"handle":"H:7","function":"f","unique":"u","state":"running"}'
        await peer.send(JobCreated(b"C:1"), WorkComplete(b"C:1", info))
        assert await request(peer) == {"handle": "H:7"}
        await peer.send(JobCreated(b"C:2"), mark(b"C:2", 0), *parts(b"C:2", 1))
        assert (await call.outcome()).parts == named(1)


async def test_the_server_in_the_name_of_a_job_is_asked() -> None:
    async with serving() as (client, _), ScriptedServer() as other, anyio.create_task_group() as tasks:
        call = Call(StreamReader(client.pool, JobHandle("H:1", ServerAddress.parse(other.address))).take)
        tasks.start_soon(call.run)
        peer, _ = await asked(other, b"C:1")
        await peer.send(mark(b"C:1", 0), *parts(b"C:1", 1))
        assert (await call.outcome()).parts == named(1)
