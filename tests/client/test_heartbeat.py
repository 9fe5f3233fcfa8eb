"""Whether a server that says nothing is still there: asked while a job is attached, and only then."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest

from gearflow.client import Client, ClientJob
from gearflow.errors import ConnectionLost
from gearflow.protocol.heartbeat import CHECKS, HeartbeatMonitor, PeerState
from gearflow.protocol.packets import (
    EchoReq,
    EchoRes,
    JobCreated,
    SubmitJob,
    SubmitJobBg,
    WorkComplete,
    WorkStatus,
)
from gearflow.testing.peer import ScriptedPeer, ScriptedServer
from tests.client.conftest import Call

BEAT = EchoReq(b"heartbeat")
SHORT = 0.1  # seconds


def test_silence_is_counted_in_checks_and_starts_again_when_something_is_heard() -> None:
    monitor = HeartbeatMonitor()

    def check(*heard: bool) -> list[PeerState]:
        return [monitor.check(heard=each) for each in heard]

    alive, ping, dead = PeerState.ALIVE, PeerState.PING, PeerState.DEAD
    long = (False,) * (CHECKS - 1)
    assert check(*long, True, *long) == [alive] * (2 * CHECKS - 1)
    assert check(False) == [ping]
    assert check(*long, True, *long, False) == [alive] * (2 * CHECKS - 1) + [ping]
    assert check(*long, False, False) == [alive] * (CHECKS - 1) + [dead] * 2


def test_a_peer_that_owes_another_answer_is_pinged_and_not_dead() -> None:
    monitor = HeartbeatMonitor()
    states = [monitor.check(heard=False, is_busy=True) for _ in range(3 * CHECKS)]
    assert states.count(PeerState.PING) == 1
    assert PeerState.DEAD not in states
    assert monitor.check(heard=False) is PeerState.DEAD


@asynccontextmanager
async def watched(heartbeat: float = SHORT) -> AsyncGenerator[tuple[Client, ScriptedPeer]]:
    """A client that listens to its server's heart, past the handshake."""
    async with (
        ScriptedServer() as server,
        Client([server.address], heartbeat=heartbeat) as client,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(client.features)
        peer = await server.accept()
        await peer.shake_hands()
        yield client, peer


async def attached(client: Client, peer: ScriptedPeer) -> ClientJob:
    call = Call(client.submit, "f", b"x")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call.run)
        await peer.expect(SubmitJob(b"f", b"", b"x"))
        await peer.send(JobCreated(b"H:1"))
    job: ClientJob = await call.outcome()
    return job


async def test_a_silent_server_is_lost_when_it_does_not_answer() -> None:
    async with watched() as (client, peer):
        job = await attached(client, peer)
        await peer.expect(BEAT)
        await peer.expect_end()
        with pytest.raises(ConnectionLost, match=r"silent for 0.2 s"):
            await job.result()


async def test_one_that_fell_silent_is_not_waited_for_again() -> None:
    async with (
        ScriptedServer() as first,
        ScriptedServer() as second,
        Client([first.address, second.address], heartbeat=SHORT, connect_timeout=60) as client,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(client.features)
        peer = await first.accept()
        await peer.shake_hands()
        job = await attached(client, peer)
        with pytest.raises(ConnectionLost, match="silent"):
            await job.result()
        tasks.start_soon(client.echo, b"next")  # the first accepts connections, and says nothing
        peer = await second.accept()
        await peer.shake_hands()
        await peer.expect(EchoReq(b"next"))
        tasks.cancel_scope.cancel()


async def test_one_that_answers_has_all_the_time_it_needs() -> None:
    async with watched() as (client, peer):
        job = await attached(client, peer)
        for _ in range(3):
            await peer.expect(BEAT)
            await peer.send(EchoRes(b"heartbeat"))
        await peer.send(WorkComplete(b"H:1", b"late"))
        assert await job.result() == b"late"


async def test_one_that_owes_an_answer_may_be_at_its_disk() -> None:
    """Its answers come in order: while one is due, that of the heartbeat cannot come."""
    async with watched() as (client, peer), anyio.create_task_group() as tasks:
        job = await attached(client, peer)
        waiting = Call(client.submit_background, "f", b"x")
        tasks.start_soon(waiting.run)
        await peer.expect(SubmitJobBg(b"f", b"", b"x"), BEAT)
        await anyio.sleep(4 * SHORT)  # nothing happens
        await peer.send(JobCreated(b"H:2"), EchoRes(b"heartbeat"), WorkComplete(b"H:1", b""))
        assert (await waiting.outcome()).handle == "H:2"
        assert await job.result() == b""


async def test_one_that_talks_is_there_though_its_answer_has_not_come_yet() -> None:
    """It may stand behind a large result."""
    async with (
        ScriptedServer() as server,
        Client([server.address], heartbeat=SHORT, answer_timeout=SHORT) as client,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(client.features)
        peer = await server.accept()
        await peer.shake_hands()
        job = await attached(client, peer)
        await peer.expect(BEAT)
        for _ in range(8):
            await anyio.sleep(SHORT / 2)
            await peer.send(WorkStatus(b"H:1", b"1", b"2"))
        await peer.send(EchoRes(b"heartbeat"), WorkComplete(b"H:1", b"large"))
        with anyio.fail_after(20):
            assert await job.result() == b"large"


async def test_nobody_is_asked_for_whom_no_job_waits() -> None:
    async with watched() as (client, peer), anyio.create_task_group() as tasks:
        job = await attached(client, peer)
        await peer.send(WorkComplete(b"H:1", b""))
        await job.result()
        await anyio.sleep(4 * SHORT)  # nothing happens
        tasks.start_soon(client.echo, b"next")
        await peer.expect(EchoReq(b"next"))
        await peer.send(EchoRes(b"next"))
