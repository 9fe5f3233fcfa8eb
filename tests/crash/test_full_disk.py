"""No room on the disk: submitters get ERROR, all else goes on, and once there is room, so does the rest."""

from __future__ import annotations

import re
import resource
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from gearflow.protocol import packets as p
from gearflow.protocol import server_calls
from gearflow.protocol.packets import Packet
from gearflow.server.settings import FILE_NAME
from tests.crash.caller import Caller
from tests.crash.ledger import Ledger
from tests.crash.nest import TIMEOUT, Nest, NotStarted, Server
from tests.crash.test_nth_write import wait_until_recorded
from tests.server.wire import Wire

_SIZE: Final = 4 << 20  # of the small disk


class Disk(ABC):
    """Where a server's folder is, and how to take its room and give it back."""

    def __init__(self, directory: Path) -> None:
        self.data = directory / "data"

    @abstractmethod
    def fill(self, server: Server | None) -> None:
        """Leave no room."""

    @abstractmethod
    def make_room(self, server: Server | None) -> None:
        """Have as much room as before."""


class SmallDisk(Disk):
    """A file system of its own, which a large file fills."""

    def fill(self, server: Server | None) -> None:
        with suppress(OSError), (self.data.parent / "filler").open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def make_room(self, server: Server | None) -> None:
        (self.data.parent / "filler").unlink()


class Quota(Disk):
    """A limit on the size of each file that a server writes: EFBIG is to the server what ENOSPC is."""

    def fill(self, server: Server | None) -> None:
        assert server is not None
        log = self.data / f"{FILE_NAME}-wal"
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (log.stat().st_size, resource.RLIM_INFINITY))

    def make_room(self, server: Server | None) -> None:
        assert server is not None
        unlimited = resource.RLIM_INFINITY, resource.RLIM_INFINITY
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, unlimited)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A real file system without room; only root may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "gearflow-test", str(place)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False, timeout=TIMEOUT)
        reason = mounted.stderr.decode() if mounted.returncode else ""
    except OSError as error:
        reason = str(error)
    if reason:
        pytest.skip(f"a small file system cannot be mounted here: {reason}")
    try:
        yield SmallDisk(place)
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=TIMEOUT)


@pytest.fixture(params=["small disk", "quota"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    if request.param == "quota":
        return Quota(tmp_path)
    disk: SmallDisk = request.getfixturevalue("small_disk")
    return disk


def answer(client: Wire, *sent: Packet | bytes) -> Packet | bytes | None:
    client.send(*sent)
    return client.receive()


def until_refused(client: Wire, size: int) -> tuple[list[bytes], p.Error]:
    """Submit until it is refused, as there may be room in the file itself: the handles until then."""
    accepted: list[bytes] = []
    while isinstance(created := answer(client, p.SubmitJobBg(b"work", b"", bytes(size))), p.JobCreated):
        accepted.append(created.handle)
        assert len(accepted) < 10_000
    assert isinstance(created, p.Error)
    return accepted, created


def until_accepted(client: Wire, packet: Packet) -> bytes:
    """Submit until it is accepted; the handle."""
    deadline = time.monotonic() + TIMEOUT
    while not isinstance(created := answer(client, packet), p.JobCreated):
        assert isinstance(created, p.Error)
        assert time.monotonic() < deadline, created
    return created.handle


def test_submitters_get_an_error_and_all_else_goes_on_until_there_is_room(
    nest: Nest, disk: Disk, tmp_path: Path
) -> None:
    server = nest.start(disk.data, sync="batch")
    ledger = Ledger(tmp_path / "runs")
    with Wire(server.port) as worker, Wire(server.port) as client, Caller(server.port, ledger) as caller:
        client.send(*(p.SubmitJobBg(b"work", b"", b"%d" % number) for number in range(20)))
        handles = [client.handle() for _ in range(20)]
        worker.send(p.CanDo(b"work"), p.CanDo(b"attached"))
        for handle in handles[:10]:
            assert answer(worker, p.GrabJob()) == p.JobAssign(handle, b"work", b"%d" % handles.index(handle))
        disk.fill(server)

        for size in (9000, 1000):
            accepted, refusal = until_refused(client, size)
            handles += accepted
            assert refusal.code == b"QUEUE_ERROR"
            assert b"the job could not be stored" in refusal.text
            assert f"{disk.data / FILE_NAME}".encode() in refusal.text
        request = server_calls.SubmitRequest(function="work", detached=True, unique="v" * 60)
        while "handle" in (fault := caller.ask(server_calls.SUBMIT, request)):
            handles.append(fault["handle"].encode())
            request = request.model_copy(update={"unique": f"{len(handles):060}"})
        assert fault["type"] == "gearflow:store", fault

        created = answer(client, p.SubmitJobHigh(b"attached", b"", b"now"))
        assert isinstance(created, p.JobCreated)
        assert answer(worker, p.GrabJob()) == p.JobAssign(created.handle, b"attached", b"now")
        assert answer(client, b"version\n") is not None
        worker.send(p.WorkComplete(created.handle, b"done"))
        assert client.receive() == p.WorkComplete(created.handle, b"done")

        worker.send(*(p.WorkComplete(handle, b"r" * 5000) for handle in handles[:10]))
        worker.sync()  # that cannot be recorded now
        assert server.log.count("cannot record that jobs have ended") <= 1

        disk.make_room(server)
        handles.append(until_accepted(client, p.SubmitJobBg(b"work", b"", b"there is room")))
        wait_until_recorded(disk.data, len(handles) - 10)
    server.kill()
    server = nest.start(disk.data)
    with Wire(server.port) as worker:
        worker.send(p.CanDo(b"work"))
        for handle in handles[10:]:
            assigned = answer(worker, p.GrabJob())
            assert isinstance(assigned, p.JobAssign)
            assert assigned.handle == handle
        assert answer(worker, p.GrabJob()) == p.NoJob()
    with Caller(server.port, ledger) as caller:
        for handle in handles[:10]:
            info = caller.ask(server_calls.INFO, server_calls.InfoRequest(handle=handle.decode()))
            assert (info["state"], info["size"]) == ("completed", 5000)
    server.stop()


def test_a_large_job_that_does_not_fit_is_refused_and_gives_its_room_back(nest: Nest, disk: Disk) -> None:
    server = nest.start(disk.data)
    large, small = bytes(5 << 20), bytes(200_000)
    with Wire(server.port) as client, Wire(server.port) as other, Wire(server.port) as worker:
        handles = [until_accepted(client, p.SubmitJobBg(b"work", b"", small))]
        if isinstance(disk, Quota):
            disk.fill(server)
        for _ in range(3):
            other.send(p.SubmitJobBg(b"work", b"", large))
            refusal = other.receive()
            assert isinstance(refusal, p.Error)
            assert refusal.code == b"QUEUE_ERROR"
            assert f"{disk.data / FILE_NAME}".encode() in refusal.text
        assert "cannot write to the store" in server.log
        if isinstance(disk, Quota):
            disk.make_room(server)
        handles += [until_accepted(client, p.SubmitJobBg(b"work", b"", small)) for _ in range(3)]
        worker.send(p.CanDo(b"work"))
        for handle in handles:
            assert answer(worker, p.GrabJob()) == p.JobAssign(handle, b"work", small)
        assert answer(worker, p.GrabJob()) == p.NoJob()
    server.stop()


def test_the_log_says_when_jobs_are_refused_and_when_that_is_over(nest: Nest, disk: Disk) -> None:
    server = nest.start(disk.data)
    with Wire(server.port) as client:
        disk.fill(server)
        until_refused(client, 9000)
        for _ in range(19):
            assert isinstance(answer(client, p.SubmitJobBg(b"work", b"", bytes(9000))), p.Error)
        assert server.log.count("cannot write to the store") == 1
        assert "the store can be written again" not in server.log
        disk.make_room(server)
        until_accepted(client, p.SubmitJobBg(b"work", b"", bytes(9000)))
        over = re.search(r"the store can be written again .* (\d+)$", server.log, re.MULTILINE)
        assert over is not None
        assert int(over[1]) >= 20
    server.stop()


def test_a_server_that_is_started_without_room_serves_what_it_has_or_says_why_not(
    nest: Nest, small_disk: SmallDisk
) -> None:
    server = nest.start(small_disk.data)
    with Wire(server.port) as client:
        client.send(*(p.SubmitJobBg(b"work", b"", bytes(1000)) for _ in range(100)))
        handles = [client.handle() for _ in range(100)]
    server.kill()
    small_disk.fill(None)
    try:
        server = nest.start(small_disk.data)
    except NotStarted as error:
        refusal = str(error)
        small_disk.make_room(None)
        server = nest.start(small_disk.data)
    else:
        refusal = ""
    assert not refusal or re.search(r"gearflow\.db.*make room", refusal), refusal
    with Wire(server.port) as worker:
        worker.send(p.CanDo(b"work"))
        for handle in handles:
            assert answer(worker, p.GrabJob()) == p.JobAssign(handle, b"work", bytes(1000))
    server.stop()


def test_a_server_that_fills_the_disk_itself_goes_on_when_its_jobs_are_done(
    nest: Nest, small_disk: SmallDisk
) -> None:
    """Nobody makes room but the server: what has been done needs none any more."""
    server = nest.start(small_disk.data, keep=0)
    with Wire(server.port) as client, Wire(server.port) as worker:
        accepted, _ = until_refused(client, 9000)
        assert len(accepted) > 50
        worker.send(p.CanDo(b"work"))
        for handle in accepted:
            work(worker, handle)
        for _ in accepted:
            until_accepted(client, p.SubmitJobBg(b"work", b"", bytes(9000)))
    server.stop()


def test_a_server_that_is_stopped_while_the_disk_is_full_keeps_what_it_had(
    nest: Nest, small_disk: SmallDisk
) -> None:
    server = nest.start(small_disk.data)
    with Wire(server.port) as client:
        client.send(*(p.SubmitJobBg(b"work", b"", bytes(1000)) for _ in range(100)))
        handles = [client.handle() for _ in range(100)]
        small_disk.fill(server)
    server.stop()
    small_disk.make_room(None)
    server = nest.start(small_disk.data)
    with Wire(server.port) as worker:
        worker.send(p.CanDo(b"work"))
        for handle in handles:
            assert answer(worker, p.GrabJob()) == p.JobAssign(handle, b"work", bytes(1000))
    server.stop()


def test_room_in_the_file_itself_is_used_while_the_disk_is_full(nest: Nest, small_disk: SmallDisk) -> None:
    """Jobs that were done have left room in the file; the log must not need more than it has."""
    server = nest.start(small_disk.data, keep=0)
    with Wire(server.port) as client, Wire(server.port) as worker:
        client.send(*(p.SubmitJobBg(b"work", b"", bytes(9000)) for _ in range(100)))
        handles = [client.handle() for _ in range(100)]
        worker.send(p.CanDo(b"work"))
        for handle in handles:
            work(worker, handle)
    server.stop()  # the file has room for a hundred jobs now
    server = nest.start(small_disk.data, keep=0)
    with Wire(server.port) as client, Wire(server.port) as worker:
        client.send(*(p.SubmitJobBg(b"work", b"", bytes(9000)) for _ in range(20)))
        handles = [client.handle() for _ in range(20)]
        small_disk.fill(server)
        worker.send(p.CanDo(b"work"))
        for _ in range(300):  # ten times what there is room for in the log
            work(worker, handles.pop(0))
            handles.append(until_accepted(client, p.SubmitJobBg(b"work", b"", bytes(9000))))
    server.kill()
    small_disk.make_room(None)
    server = nest.start(small_disk.data)
    with Wire(server.port) as worker:
        worker.send(p.CanDo(b"work"))
        for handle in handles:
            work(worker, handle)
    server.stop()


def work(worker: Wire, handle: bytes) -> None:
    assert answer(worker, p.GrabJob()) == p.JobAssign(handle, b"work", bytes(9000))
    worker.send(p.WorkComplete(handle, b""))
    worker.sync()
