"""Durable jobs by the ten thousand: neither the server's memory nor its file grows with their number."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import pytest

from gearflow.protocol import packets as p
from gearflow.protocol import server_calls
from gearflow.protocol.codec import encode
from gearflow.server.settings import FILE_NAME
from gearflow.stores import OVERHEAD
from gearflow.stores.sqlite.tuning import Tuning
from tests.crash.nest import TIMEOUT, Nest, Server
from tests.server.wire import Wire

_BURST: Final = 500
_PAYLOAD: Final = b"x" * 200
_RESULT: Final = b"y" * 1000
_KEEP: Final = 2_000 * (1000 + OVERHEAD)
"""Bytes of results that may be kept, so that two thousand are, and those of the last half second."""

_WARM: Final = 20_000
"""Jobs after which memory must not grow any more."""

_CACHE: Final = 16 << 20
"""Bytes of SQLite's page cache, which may not be full by then."""

_FILE: Final = 16 << 20
"""Bytes that the file may have, whatever the number of jobs: all 40,000 results would be four times that."""


def burst(client: Wire, worker: Wire) -> bytes:
    """Submit jobs, run them, and complete them; the last handle."""
    client.send(encode(p.SubmitJobBg(b"work", b"", _PAYLOAD)) * _BURST)
    handles = [client.handle() for _ in range(_BURST)]
    worker.send(encode(p.GrabJob()) * _BURST)
    for handle in handles:
        assigned = worker.receive()
        assert isinstance(assigned, p.JobAssign)
        assert assigned.handle == handle
    worker.send(*(p.WorkComplete(handle, _RESULT) for handle in handles))
    worker.sync()
    return handles[-1]


def result(client: Wire, handle: bytes) -> bytes:
    """The result of a job, or why there is none."""
    request = server_calls.ResultRequest(handle=handle.decode(), timeout=TIMEOUT)
    client.send(p.SubmitJob(server_calls.RESULT, b"", request.to_wire()))
    client.handle()
    answer = client.receive()
    assert isinstance(answer, (p.WorkComplete, p.WorkException))
    return answer.result if isinstance(answer, p.WorkComplete) else answer.data


def size(data: Path) -> int:
    """Bytes of the file; without its log, whose length has limits of its own."""
    return (data / FILE_NAME).stat().st_size


def run_many(server: Server, data: Path, count: int) -> None:
    """So many jobs; with the first of them the server has as much memory as after all."""
    memory = longest = 0
    with Wire(server.port) as client, Wire(server.port) as worker:
        client.send(p.OptionReq(b"exceptions"))
        client.receive()
        worker.send(p.CanDo(b"work"))
        first = last = burst(client, worker)
        assert result(client, first) == _RESULT
        for done in range(_BURST, count, _BURST):
            last = burst(client, worker)
            longest = max(longest, (data / f"{FILE_NAME}-wal").stat().st_size)
            if done <= _WARM:
                memory = server.memory()
        assert result(client, last) == _RESULT
        assert b"gearflow:unknown" in result(client, first)  # it had to go for later ones
    assert server.memory() < memory + _CACHE, f"{memory} bytes became {server.memory()}"
    assert longest < 2 * Tuning().stalling_checkpoint
    server.stop()
    assert size(data) < _FILE


def test_memory_and_file_do_not_grow_with_the_number_of_jobs(nest: Nest, tmp_path: Path) -> None:
    run_many(nest.start(tmp_path / "data", keep_bytes=_KEEP), tmp_path / "data", 40_000)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("sync", ["batch", "always", "off"])
def test_the_same_with_a_hundred_thousand(nest: Nest, tmp_path: Path, sync: str) -> None:
    run_many(nest.start(tmp_path / "data", keep_bytes=_KEEP, sync=sync), tmp_path / "data", 100_000)


def test_what_has_expired_goes_by_itself_and_its_room_is_used_again(nest: Nest, tmp_path: Path) -> None:
    data = tmp_path / "data"
    server = nest.start(data, keep=0.5)
    with Wire(server.port) as client, Wire(server.port) as worker:
        client.send(p.OptionReq(b"exceptions"))
        client.receive()
        worker.send(p.CanDo(b"work"))
        for _ in range(3):
            handles = [burst(client, worker) for _ in range(4)]
            deadline = time.monotonic() + TIMEOUT
            while not all(b"gearflow:unknown" in result(client, handle) for handle in handles):
                assert time.monotonic() < deadline
    server.stop()
    assert size(data) < 8 << 20
