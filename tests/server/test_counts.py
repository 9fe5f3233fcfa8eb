"""What a real server has counted: read in its own process, kept over a restart, of bytes and commits."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gearflow.broker.history import MINUTE
from gearflow.broker.storage import HISTORY
from gearflow.protocol import packets as p
from gearflow.protocol.metrics import ALL, FunctionMinute, Metrics
from gearflow.server import JobServer
from gearflow.server.settings import FILE_NAME
from gearflow.stores import SqliteStore
from tests.server.wire import Wire


def run_jobs(server: JobServer, function: bytes, count: int) -> None:
    """So many background jobs run and end."""
    client, worker = Wire(server.port), Wire(server.port)
    worker.send(p.CanDo(function))
    for _ in range(count):
        client.send(p.SubmitJobBg(function, b"", b"x"))
        assert isinstance(client.receive(), p.JobCreated)
        worker.send(p.GrabJob())
        job = worker.receive()
        assert isinstance(job, p.JobAssign)
        worker.send(p.WorkComplete(job.handle, b"r"))
    worker.send(p.EchoReq(b"all is handled"))
    assert worker.receive() == p.EchoRes(b"all is handled")
    client.socket.close()
    worker.socket.close()


def succeeded(found: Metrics, function: str) -> int:
    """So many jobs in the minutes that are over. A minute in which nothing happened has no functions."""
    return sum(minute.functions.get(function, FunctionMinute()).succeeded for minute in found.history)


@pytest.fixture(scope="module")
def server() -> Iterator[JobServer]:
    with JobServer(port=0) as running:
        yield running


def test_the_process_of_a_server_reads_what_it_has_counted(server: JobServer) -> None:
    before = server.metrics()
    run_jobs(server, b"resize", 3)
    found = server.metrics(["resize", "unknown"])
    (resize,) = found.functions
    assert (resize.function, resize.submitted, resize.started, resize.succeeded) == ("resize", 3, 3, 3)
    assert found.accepted == before.accepted + 2
    assert before.started == found.started <= before.time <= found.time <= time.time() + 1


def test_the_bytes_of_connections_are_counted(server: JobServer) -> None:
    before = server.metrics()
    wire = Wire(server.port)
    for size in (10, 3_000_000):
        wire.send(p.EchoReq(b"x" * size))
        assert isinstance(wire.receive(), p.EchoRes)
    after = server.metrics()
    assert after.received - before.received == after.sent - before.sent == 3_000_010 + 2 * 12
    wire.socket.close()


async def test_the_thread_that_serves_cannot_wait_for_itself() -> None:
    with pytest.raises(RuntimeError, match="enter its block first"):
        JobServer(port=0).metrics()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_server_on_the_loop_of_the_caller_is_read_from_another_thread() -> None:
    async with JobServer(port=0) as server:
        with pytest.raises(RuntimeError, match="await asyncio"):
            server.metrics()
        assert isinstance(await asyncio.to_thread(server.metrics), Metrics)


def test_commits_are_counted_and_the_history_is_there_after_a_restart(tmp_path: Path) -> None:
    began = time.time()
    for run in (1, 2):
        with JobServer(port=0, data=tmp_path) as server:
            run_jobs(server, b"resize", 3)
            found = server.metrics(since=began - 60)
            assert sum(found.commits.counts) >= 3
            assert found.kept >= 3
            # A minute may have ended, also between two of these jobs.
            assert 3 * (run - 1) <= succeeded(found, ALL) <= 3 * run
    with JobServer(port=0, data=tmp_path) as server:
        found = server.metrics(["resize"], since=began - 60)
        assert succeeded(found, "resize") == 6
        assert found.functions == ()


def test_the_history_begins_with_the_minute_in_which_the_server_starts(tmp_path: Path) -> None:
    began = time.time()
    with JobServer(port=0, data=tmp_path):
        pass
    with closing(SqliteStore(tmp_path / FILE_NAME)) as store:
        rows = [setting for setting in store.load().settings if setting.kind == HISTORY]
    minutes = {json.loads(row.value)[0] for row in rows}
    assert minutes <= set(range(int(began // MINUTE), int(time.time() // MINUTE) + 1))


def test_a_server_without_a_file_has_no_commits(server: JobServer) -> None:
    run_jobs(server, b"resize", 1)
    assert server.metrics().commits.counts == ()
