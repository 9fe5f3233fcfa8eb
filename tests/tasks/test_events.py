"""The events of jobs, against a scripted server: the newest state first, and what a lost connection does."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup

from gearflow import Ended, Part, Progress, Ref, Retrying, Started, StreamRef, TaskFailed, Warned
from gearflow.client import Client, ClientJob, JobRequest, SubmitOptions, connect
from gearflow.client.watching import MOST_EVENTS, WatchFeed
from gearflow.errors import ConnectionLost, UnknownJob, UnsupportedByServer
from gearflow.protocol.packets import (
    JobCreated,
    SubmitJob,
    WorkComplete,
    WorkData,
    WorkException,
    WorkFail,
    WorkStatus,
    WorkWarning,
)
from gearflow.protocol.server_events import part_event, read_watch_event, watch_event
from gearflow.tasks import AsyncJob
from gearflow.tasks.watching import RESTARTED, AsyncEvents
from gearflow.testing.peer import ScriptedPeer, ScriptedServer
from tests.client import conftest
from tests.client.conftest import Call, request


@asynccontextmanager
async def serving() -> AsyncGenerator[tuple[Client, ScriptedServer]]:
    """The client that calls use, and its server."""
    async with ScriptedServer() as server, connect(server.address) as client:
        yield client, server


class Watching:
    """Takes events one by one, beside the script."""

    def __init__(self, events: AsyncIterator[Any]) -> None:
        self._events = events

    async def next(self) -> Any:
        with anyio.fail_after(20):
            return await anext(self._events, None)

    async def next_few(self, count: int) -> list[Any]:
        return [await self.next() for _ in range(count)]


def decoded(data: bytes) -> str:
    return data.decode()


asked = partial(conftest.asked, function=b"gearflow:watch")


def event(call: bytes, kind: str, **fields: object) -> WorkData:
    return WorkData(call, watch_event(kind, **fields))


def running(call: bytes, attempt: int = 1, **fields: object) -> WorkData:
    return event(call, "state", state="running", attempt=attempt, worker="w", **fields)


async def started(server: ScriptedServer, tasks: TaskGroup, count: int) -> tuple[Any, Any, Any]:
    watching = Watching(Ref[Any]("H:1", "f").aevents())
    call = Call(watching.next_few, count)
    tasks.start_soon(call.run)
    peer, fields = await asked(server, b"C:1")
    assert fields == {"handle": "H:1"}
    return watching, call, peer


async def test_a_watcher_sees_what_happens() -> None:
    async with serving() as (_, server), anyio.create_task_group() as tasks:
        _, call, peer = await started(server, tasks, 8)
        await peer.send(
            event(b"C:1", "state", state="waiting", attempt=0, progress=None, message="", parts=0, worker=""),
            event(b"C:1", "started", attempt=1, worker="w"),
            event(b"C:1", "progress", done=1, total=3, message="one"),
            event(b"C:1", "warned", text="slow today"),
            event(b"C:1", "retrying", attempt=1, delay=2.5, reason="OSError: no disk"),
            event(b"C:1", "started", attempt=2, worker="v"),
            event(b"C:1", "later than this version", wind="north"),
            WorkComplete(b"C:1", b"3"),
        )
        assert await call.outcome() == [
            Started(1, "w"),
            Progress(1, 3, "one"),
            Warned("slow today"),
            Retrying(1, 2.5, "OSError: no disk"),
            Started(2, "v"),
            Ended("completed"),
            None,
            None,
        ]


async def test_a_late_watcher_gets_the_newest_state_first() -> None:
    async with serving() as (_, server), anyio.create_task_group() as tasks:
        _, call, peer = await started(server, tasks, 2)
        await peer.send(running(b"C:1", attempt=3, progress=[812, 1000], message="half"))
        assert await call.outcome() == [Started(3, "w"), Progress(812, 1000, "half")]


@pytest.mark.parametrize(
    ("end", "state", "kind"),
    [
        (WorkException(b"C:1", b'{"type":"KeyError","message":"pear"}'), "raised", "KeyError"),
        (WorkException(b"C:1", b'{"type":"Expired","message":"late"}'), "expired", "Expired"),
        (WorkException(b"C:1", b'{"type":"WorkersDied","message":"3"}'), "workers_died", "WorkersDied"),
    ],
)
async def test_the_last_event_says_how_the_job_ended(end: Any, state: str, kind: str) -> None:
    async with serving() as (_, server), anyio.create_task_group() as tasks:
        _, call, peer = await started(server, tasks, 2)
        await peer.send(running(b"C:1"), end)
        _, last = await call.outcome()
        assert isinstance(last, Ended)
        assert last.state == state
        assert last.failure is not None
        assert last.failure.type == kind


@pytest.mark.parametrize("state", ["cancelled", "failed"])
async def test_a_job_that_was_cancelled_has_not_failed(state: str) -> None:
    async with serving() as (_, server), anyio.create_task_group() as tasks:
        _, call, peer = await started(server, tasks, 2)
        await peer.send(running(b"C:1"), WorkFail(b"C:1"))
        await request(peer, b"gearflow:info")
        info = {"handle": "H:1", "function": "f", "state": state}
        await peer.send(JobCreated(b"C:2"), WorkComplete(b"C:2", json.dumps(info).encode()))
        _, last = await call.outcome()
        assert last.state == state
        assert (last.failure is None) == (state == "cancelled")


async def test_the_values_of_a_stream_are_events() -> None:
    async with serving() as (_, server), anyio.create_task_group() as tasks:
        watching = Watching(StreamRef("H:1", "f", decoded).aevents())
        call = Call(watching.next_few, 4)
        tasks.start_soon(call.run)
        peer, fields = await asked(server, b"C:1")
        assert fields == {"handle": "H:1", "parts": True}
        await peer.send(running(b"C:1", parts=6), WorkData(b"C:1", part_event(7, b"pear\nplum")))
        await peer.send(event(b"C:1", "gap", position=9), WorkData(b"C:1", part_event(10, b"fig")))
        await peer.send(WorkComplete(b"C:1", b""))
        assert await call.outcome() == [
            Started(1, "w"),
            Part("pear\nplum", 7),
            Part("fig", 10),
            Ended("completed"),
        ]


async def test_a_lost_connection_is_no_event() -> None:
    async with serving() as (_, server), anyio.create_task_group() as tasks:
        watching, call, peer = await started(server, tasks, 2)
        await peer.send(running(b"C:1", progress=[1, 3], message=""))
        assert await call.outcome() == [Started(1, "w"), Progress(1, 3)]
        call = Call(watching.next)
        tasks.start_soon(call.run)
        await anyio.wait_all_tasks_blocked()
        await peer.close()
        peer, _ = await asked(server, b"C:1")
        await peer.send(running(b"C:1", progress=[1, 3], message=""))
        await peer.send(event(b"C:1", "progress", done=2, total=3, message=""))
        assert await call.outcome() == Progress(2, 3)


@pytest.mark.parametrize("state", ["waiting", "delayed"])
async def test_a_restart_of_the_server_is_one_event(state: str) -> None:
    async with serving() as (_, server), anyio.create_task_group() as tasks:
        watching, call, peer = await started(server, tasks, 2)
        await peer.send(running(b"C:1", progress=[1, 3], message=""))
        await call.outcome()
        call = Call(watching.next_few, 3)
        tasks.start_soon(call.run)
        await server.stop_listening()
        await peer.close()
        async with ScriptedServer(port=server.port) as again:
            peer, _ = await asked(again, b"C:1")
            await peer.send(event(b"C:1", "state", state=state, attempt=1, progress=None))
            await peer.send(event(b"C:1", "started", attempt=1, worker="w"))
            await peer.send(event(b"C:1", "progress", done=1, total=3, message=""))
            assert await call.outcome() == [Retrying(1, 0.0, RESTARTED), Started(1, "w"), Progress(1, 3)]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param({"attempt": 1}, {"attempt": 2}, id="another attempt"),
        pytest.param({"since": 1000.25}, {"since": 1001.5}, id="like the last one, but later"),
    ],
)
async def test_a_run_that_began_during_a_lost_connection_is_seen(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    async with serving() as (_, server), anyio.create_task_group() as tasks:
        watching, call, peer = await started(server, tasks, 1)
        await peer.send(running(b"C:1", **before))
        await call.outcome()
        call = Call(watching.next_few, 2)
        tasks.start_soon(call.run)
        await anyio.wait_all_tasks_blocked()
        await peer.close()
        peer, _ = await asked(server, b"C:1")
        await peer.send(running(b"C:1", **after))
        attempt = after.get("attempt", 1)
        assert await call.outcome() == [Retrying(1, 0.0, RESTARTED), Started(attempt, "w")]


async def test_an_unknown_job_is_an_error_and_then_the_end() -> None:
    async with serving() as (_, server), anyio.create_task_group() as tasks:
        watching, call, peer = await started(server, tasks, 1)
        await peer.send(WorkException(b"C:1", b'{"type":"gearflow:unknown","message":"no such job"}'))
        with pytest.raises(UnknownJob):
            await call.outcome()
        assert await watching.next() is None


async def test_a_watcher_that_leaves_says_so() -> None:
    async with serving() as (_, server), anyio.create_task_group() as tasks:
        events = Ref[Any]("H:1", "f").aevents()
        call = Call(Watching(events).next)
        tasks.start_soon(call.run)
        peer, _ = await asked(server, b"C:1")
        await peer.send(running(b"C:1"))
        await call.outcome()
        del events, call
        assert await request(peer, b"gearflow:detach") == {"handle": "C:1"}


async def test_a_watcher_that_is_closed_while_it_waits_ends() -> None:
    async with serving() as (_, server), anyio.create_task_group() as tasks:
        events = AsyncEvents[Any]("H:1")
        call = Call(Watching(events).next_few, 2)
        tasks.start_soon(call.run)
        peer, _ = await asked(server, b"C:1")
        await peer.send(running(b"C:1"))
        await anyio.wait_all_tasks_blocked()
        await events.aclose()
        assert await call.outcome() == [Started(1, "w"), None]
        assert await request(peer, b"gearflow:detach") == {"handle": "C:1"}


async def test_two_tasks_cannot_share_an_iterator() -> None:
    async with serving() as (_, server), anyio.create_task_group() as tasks:
        watching = Watching(Ref[Any]("H:1", "f").aevents())
        call = Call(watching.next)
        tasks.start_soon(call.run)
        peer, _ = await asked(server, b"C:1")
        with pytest.raises(RuntimeError, match="another task"):
            await watching.next()
        await peer.send(running(b"C:1"))
        assert await call.outcome() == Started(1, "w")


# ------------------------------------------------------------------------------------------ attached jobs


async def attached(
    client: Client, peer: ScriptedPeer, tasks: TaskGroup, *, resubmit: bool = False
) -> ClientJob:
    options = SubmitOptions(resubmit=True) if resubmit else None
    submission = Call(client.attach, JobRequest("f", b"x", options=options, detached=False))
    tasks.start_soon(submission.run)
    await peer.expect(SubmitJob(b"f", b"", b"x"))
    await peer.send(JobCreated(b"H:1"))
    job: ClientJob = await submission.outcome()
    return job


async def connected(
    server: ScriptedServer, client: Client, tasks: TaskGroup, *, gearflow: bool
) -> ScriptedPeer:
    tasks.start_soon(client.features)
    peer = await server.accept()
    await peer.shake_hands(gearflow=gearflow)
    return peer


async def test_an_attached_job_is_watched_on_its_connection() -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        peer = await connected(server, client, tasks, gearflow=True)
        job = await attached(client, peer, tasks)
        call = Call(Watching(AsyncJob(job, decoded).aevents()).next_few, 3)
        tasks.start_soon(call.run)
        assert await request(peer, b"gearflow:watch") == {"handle": "H:1"}
        await peer.send(JobCreated(b"C:1"), running(b"C:1"))
        await peer.send(WorkComplete(b"H:1", b"3"), WorkComplete(b"C:1", b"3"))
        assert await call.outcome() == [Started(1, "w"), Ended("completed"), None]
        assert [item async for item in AsyncJob(job, decoded).aevents()] == [Ended("completed")]


async def test_the_lost_connection_of_an_attached_job_is_an_error() -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        peer = await connected(server, client, tasks, gearflow=True)
        job = await attached(client, peer, tasks)
        watching = Watching(AsyncJob(job, decoded).aevents())
        call = Call(watching.next_few, 2)
        tasks.start_soon(call.run)
        await request(peer, b"gearflow:watch")
        await peer.send(JobCreated(b"C:1"), running(b"C:1"))
        await peer.close()
        with pytest.raises(ConnectionLost, match="job H:1"):
            await call.outcome()
        assert await watching.next() is None


async def test_a_job_that_is_submitted_again_is_one_event() -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        peer = await connected(server, client, tasks, gearflow=True)
        job = await attached(client, peer, tasks, resubmit=True)
        watching = Watching(AsyncJob(job, decoded).aevents())
        call = Call(watching.next_few, 3)
        tasks.start_soon(call.run)
        await request(peer, b"gearflow:watch")
        await peer.send(JobCreated(b"C:1"), running(b"C:1"))
        await anyio.wait_all_tasks_blocked()
        await peer.close()
        peer = await server.accept()
        await peer.shake_hands(gearflow=True)
        await peer.expect(SubmitJob(b"f", b"", b"x"))
        await peer.send(JobCreated(b"H:2"))
        assert await request(peer, b"gearflow:watch") == {"handle": "H:2"}
        await peer.send(JobCreated(b"C:1"), running(b"C:1"))
        first, again, second = await call.outcome()
        assert (first, second) == (Started(1, "w"), Started(1, "w"))
        assert isinstance(again, Retrying)
        assert "submitted again" in again.reason


async def test_on_other_servers_the_events_are_the_packets_of_the_job() -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        peer = await connected(server, client, tasks, gearflow=False)
        job = await attached(client, peer, tasks)
        await peer.send(
            WorkStatus(b"H:1", b"1", b"3"), WorkData(b"H:1", b"pear"), WorkWarning(b"H:1", b"slow")
        )
        await peer.send(WorkException(b"H:1", b'{"type":"KeyError","message":"pear"}'))
        watching = Watching(AsyncEvents(job, decoded))
        assert await watching.next_few(3) == [Progress(1, 3), Part("pear", 1), Warned("slow")]
        last = await watching.next()
        assert (last.state, type(last.failure).__name__) == ("raised", "KeyError")
        assert isinstance(last.failure, TaskFailed)


async def test_on_other_servers_background_jobs_cannot_be_watched() -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        await connected(server, client, tasks, gearflow=False)
        with pytest.raises(UnsupportedByServer):
            await anext(Ref[Any]("H:1", "f").aevents())


# ------------------------------------------------------------------------------------ what is buffered


def buffered(*events: bytes) -> list[Any]:
    feed = WatchFeed()
    for data in events:
        feed.add_data(data)
    return feed.take()


def test_what_a_watcher_does_not_read_is_bounded() -> None:
    many = [watch_event("progress", done=done, total=0) for done in range(10 * MOST_EVENTS)]
    left = buffered(watch_event("started", attempt=1, worker="w"), *many)
    assert len(left) <= MOST_EVENTS
    assert left[0][0]["event"] == "started"
    assert left[-1][0]["done"] == 10 * MOST_EVENTS - 1


def test_parts_are_dropped_before_what_happened() -> None:
    parts = [part_event(position, bytes(1 << 16)) for position in range(1, 1000)]
    left = buffered(watch_event("warned", text="slow today"), *parts)
    assert left[0] == read_watch_event(watch_event("warned", text="slow today"))
    assert sum(len(part) for _, part in left) <= 1 << 20
    assert left[-1][0]["position"] == 999


def test_of_warnings_the_newest_are_kept() -> None:
    left = buffered(*(watch_event("warned", text=str(number)) for number in range(10 * MOST_EVENTS)))
    assert len(left) <= MOST_EVENTS
    assert left[-1][0]["text"] == str(10 * MOST_EVENTS - 1)
