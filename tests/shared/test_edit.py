"""Jobs of servers that share a PostgreSQL are edited, and replaced by debounced submissions."""

from __future__ import annotations

import json

import anyio
import pytest

from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from gearflow.protocol.server_calls import EDIT
from tests.shared.group import Group
from tests.shared.test_far_jobs import DEADLINE, Peers, peers


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def debounced(all_peers: Peers, server: int, payload: bytes, debounce: float) -> str:
    """The handle of the job, or the message of the fault."""
    peer = await all_peers.connect(server)
    options = {"function": all_peers.function, "detached": True, "unique": "k", "debounce": debounce}
    await peer.send(p.SubmitJob(api.SUBMIT, b"", json.dumps(options).encode() + b"\n" + payload))
    assert isinstance(await peer.receive(), p.JobCreated)
    answer = await peer.receive()
    if isinstance(answer, p.WorkException):
        return str(json.loads(answer.data)["message"])
    assert isinstance(answer, p.WorkComplete)
    return str(json.loads(answer.result)["handle"])


async def test_a_job_is_edited_through_any_server(group: Group) -> None:
    async with peers(group) as all_peers:
        handle = await all_peers.submit(0)
        for server, priority in ((0, "low"), (1, "high")):
            change = {"handle": handle, "priority": priority, "delay": 3600, "expires": 7200}
            assert json.loads(await all_peers.answer(server, EDIT, **change)) == {"jobs": 1}
            info = api.JobInfo.model_validate_json(await all_peers.answer(2, api.INFO, handle=handle))
            assert (info.state, info.priority) == ("delayed", priority)
        assert json.loads(await all_peers.answer(2, EDIT, handle=handle, delay=0)) == {"jobs": 1}
        worker = await all_peers.worker(0, handle)
        await worker.send(p.WorkComplete(handle.encode(), b"r"))


async def test_the_latest_payload_is_in_the_database_also_while_the_one_before_runs(group: Group) -> None:
    async with peers(group) as all_peers:
        running = await debounced(all_peers, 0, b"0", 0)
        await all_peers.worker(0, running)
        waits = await debounced(all_peers, 0, b"1", 3600)
        assert waits != running
        assert await debounced(all_peers, 0, b"2" * 5000, 3600) == waits
        assert "only that server can replace it" in await debounced(all_peers, 1, b"3", 3600)
        group.kill(0)
        group.start(0)
        assert json.loads(await all_peers.answer(1, EDIT, handle=waits, delay=0)) == {"jobs": 1}
        seen: dict[str, bytes] = {}
        takers = [await all_peers.connect(server) for server in range(3)]
        for taker in takers:
            await taker.send(p.CanDo(all_peers.function.encode()))
        with anyio.fail_after(DEADLINE):
            while len(seen) < 2:
                for taker in takers:
                    await taker.send(p.GrabJob())
                    job = await taker.receive()
                    if isinstance(job, p.JobAssign):
                        seen[job.handle.decode()] = bytes(job.workload)
                        await taker.send(p.WorkComplete(job.handle, b""))
        assert seen == {running: b"0", waits: b"2" * 5000}
