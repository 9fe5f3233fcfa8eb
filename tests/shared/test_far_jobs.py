"""Servers are asked about jobs that another one has."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import uuid4

import anyio
import pytest

from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from gearflow.protocol.server_events import read_watch_event
from gearflow.testing.peer import ScriptedPeer
from tests.postgres.cluster import eventually
from tests.shared.group import Group

DEADLINE = 30.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Peers:
    """Connections to the servers of a group, and the function of the test."""

    def __init__(self, group: Group, stack: AsyncExitStack) -> None:
        self.function = f"far-{uuid4().hex}"
        self._group = group
        self._stack = stack

    async def connect(self, server: int) -> ScriptedPeer:
        host, _, port = self._group.addresses[server].rpartition(":")
        peer = await ScriptedPeer.connect(host, int(port), timeout=DEADLINE)
        await self._stack.enter_async_context(peer)
        await peer.send(p.OptionReq(b"exceptions"))
        assert await peer.receive() == p.OptionRes(b"exceptions")
        return peer

    async def submit(self, server: int) -> str:
        """A background job. Its handle."""
        client = await self.connect(server)
        request = {"function": self.function, "detached": True, "stream_keep": 1 << 20}
        await client.send(p.SubmitJobBg(api.SUBMIT, b"", json.dumps(request).encode() + b"\nx"))
        created = await client.receive()
        assert isinstance(created, p.JobCreated), created
        return created.handle.decode()

    async def worker(self, server: int, handle: str) -> ScriptedPeer:
        """A worker that runs the job."""
        worker = await self.connect(server)
        await worker.send(p.CanDo(self.function.encode()), p.GrabJob())
        job = await worker.receive()
        assert isinstance(job, p.JobAssign), job
        assert job.handle.decode() == handle
        return worker

    async def ask(self, server: int, function: bytes, **request: object) -> ScriptedPeer:
        """A connection that has made a call."""
        peer = await self.connect(server)
        await peer.send(p.SubmitJob(function, b"", json.dumps(request).encode()))
        assert isinstance(await peer.receive(), p.JobCreated)
        return peer

    async def answer(self, server: int, function: bytes, **request: object) -> bytes:
        peer = await self.ask(server, function, **request)
        answer = await peer.receive()
        assert isinstance(answer, p.WorkComplete), answer
        return answer.result


@asynccontextmanager
async def peers(group: Group) -> AsyncGenerator[Peers]:
    async with AsyncExitStack() as stack:
        yield Peers(group, stack)


async def test_what_becomes_of_a_job_is_seen_at_another_server(group: Group) -> None:
    async with peers(group) as all_peers:
        handle = await all_peers.submit(0)
        info = api.JobInfo.model_validate_json(await all_peers.answer(1, api.INFO, handle=handle))
        assert (info.state, info.owner) == ("waiting", group.addresses[0])
        worker = await all_peers.worker(0, handle)
        result, stream, watch = [
            await all_peers.ask(1, function, handle=handle)
            for function in (api.RESULT, api.STREAM, api.WATCH)
        ]
        event = await watch.receive()
        assert isinstance(event, p.WorkData)
        assert read_watch_event(event.data)[0]["state"] == "waiting"
        await worker.send(*(p.WorkData(handle.encode(), b"%d" % number) for number in range(1, 101)))
        seen: list[bytes] = []
        while len(seen) < 100:
            packet = await stream.receive()
            if isinstance(packet, p.WorkData):
                seen.append(bytes(packet.data))
                await stream.send(p.WorkStatus(packet.handle, b"%d" % len(seen), b"0"))
        assert seen == [b"%d" % number for number in range(1, 101)]
        await worker.send(p.WorkComplete(handle.encode(), b"r"))
        for asker in (result, watch, stream):
            answer = await asker.receive()
            while isinstance(answer, p.WorkStatus):
                answer = await asker.receive()
            assert isinstance(answer, p.WorkComplete), answer
            assert answer.result == b"r"


async def test_a_job_is_cancelled_through_another_server(group: Group) -> None:
    async with peers(group) as all_peers:
        handle = await all_peers.submit(0)
        assert json.loads(await all_peers.answer(2, api.CANCEL, handle=handle)) == {"jobs": 1}
        worker = await all_peers.connect(0)
        await worker.send(p.CanDo(all_peers.function.encode()), p.GrabJob())
        assert await worker.receive() == p.NoJob()


async def test_a_dead_letter_is_replayed_through_another_server(group: Group) -> None:
    async with peers(group) as all_peers:
        handle = await all_peers.submit(0)
        worker = await all_peers.worker(0, handle)
        await worker.send(p.WorkFail(handle.encode()))
        asker = await all_peers.ask(1, api.RESULT, handle=handle)
        assert isinstance(await asker.receive(), p.WorkFail)
        answer = await all_peers.answer(1, api.DEAD, action="replay", handle=handle)
        assert json.loads(answer) == {"jobs": 1}
        again = await all_peers.worker(0, handle)
        await again.send(p.WorkComplete(handle.encode(), b"r"))
        assert await all_peers.answer(1, api.RESULT, handle=handle) == b"r"


async def run_anywhere(all_peers: Peers, workers: list[ScriptedPeer]) -> None:
    """One of the servers has the job soon."""
    for worker in workers:
        await worker.send(p.CanDo(all_peers.function.encode()))
    with anyio.fail_after(DEADLINE):
        while True:
            for worker in workers:
                await worker.send(p.GrabJob())
                answer = await worker.receive()
                if isinstance(answer, p.JobAssign):
                    await worker.send(p.WorkComplete(answer.handle, b"r"))
                    return
            await anyio.sleep(0.05)


async def test_who_waits_gets_the_result_of_a_job_whose_server_was_killed(group: Group) -> None:
    async with peers(group) as all_peers:
        handle = await all_peers.submit(0)
        askers = [await all_peers.ask(server, api.RESULT, handle=handle) for server in (1, 2)]
        lots = group.lots_of(0)
        group.kill(0)
        owners = group.owners
        before = {lot: owners()[lot][0] for lot in lots}
        eventually(
            lambda: all(owners().get(lot, (None,))[0] != before[lot] for lot in lots), "adopted", DEADLINE
        )
        workers = [await all_peers.connect(server) for server in (1, 2)]
        await run_anywhere(all_peers, workers)
        for asker in askers:
            answer = await asker.receive()
            assert isinstance(answer, p.WorkComplete), answer
            assert answer.result == b"r"
