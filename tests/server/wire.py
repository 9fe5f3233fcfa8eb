"""What tests of the server share: a blocking connection in packets, and a server in a process of its own."""

import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

from gearflow.protocol import admin
from gearflow.protocol import packets as p
from gearflow.protocol.codec import decode, encode
from gearflow.protocol.constants import HEADER, HEADER_SIZE, RES
from gearflow.protocol.packets import Packet
from gearflow.server import ServerSettings
from gearflow.server.engine import Engine, Timings
from gearflow.server.server import engine_thread

TIMEOUT: Final = 20.0
"""Seconds after which a socket that hears nothing fails its test."""

_SERVER: Final = """\
import json, logging, resource, sys
from gearflow.server import ServerSettings, tune_garbage_collection
from gearflow.server.engine import Timings
from gearflow.server.server import engine_thread
settings, timings, files = json.loads(sys.argv[1])
if files:
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
logging.basicConfig(level="INFO", format="%(levelname)s %(message)s")
tune_garbage_collection()
thread = engine_thread(ServerSettings(port=0, **{"max_deaths": None, **settings}), Timings(**timings))
print(thread.start().port, flush=True)
sys.stdin.read()
thread.stop()
"""


@contextmanager
def running(settings: ServerSettings, timings: Timings) -> Generator[Engine]:
    """A server in a thread, with time limits of the test's own."""
    thread = engine_thread(settings, timings)
    engine = thread.start()
    try:
        yield engine
    finally:
        thread.stop()


class Answers:
    """Cuts what a server sends into packets, and lines of any length. Owns what is not whole yet."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Packet | bytes]:
        """What the data completes; it fails where that is not what a server may send."""
        rest = self._rest
        rest += data
        while rest:
            if rest[0]:
                end = rest.find(b"\n") + 1
                if not end:
                    return
                yield bytes(rest[:end]).rstrip(b"\r\n")
            else:
                if len(rest) < HEADER_SIZE:
                    return
                magic, kind, size = HEADER.unpack_from(rest)
                assert magic == RES, f"{bytes(rest[:80])!r} is no answer"
                end = HEADER_SIZE + size
                if len(rest) < end:
                    return
                yield decode(kind, bytes(memoryview(rest)[HEADER_SIZE:end]))
            del rest[:end]


class Wire:
    """A blocking connection to a server, in packets, with TLS if it has a context; closed with its block."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="127.0.0.1")
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # no 40 ms between two sends
        self._answers = Answers()
        self._received: list[Packet | bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *sent: Packet | bytes) -> None:
        self.socket.sendall(b"".join(item if isinstance(item, bytes) else encode(item) for item in sent))

    def receive(self) -> Packet | bytes | None:
        """The next packet or line; None when the server has closed the connection."""
        while not self._received:
            data = self.socket.recv(1 << 20)
            if not data:
                return None
            self._received.extend(self._answers.feed(data))
        return self._received.pop(0)

    def handle(self) -> bytes:
        """The handle in JOB_CREATED, which has to come next."""
        created = self.receive()
        assert isinstance(created, p.JobCreated)
        return created.handle

    def sync(self) -> None:
        """Everything sent before this has been handled once it returns. Nothing else may come meanwhile."""
        self.send(p.EchoReq(b"sync"))
        assert self.receive() == p.EchoRes(b"sync")

    def table(self, command: bytes) -> list[bytes]:
        """The rows that a text command answers."""
        self.send(command + b"\n")
        rows: list[bytes] = []
        while (row := self.receive()) != admin.END:
            assert isinstance(row, bytes)
            rows.append(row)
        return rows

    def counts(self, function: bytes) -> tuple[int, int, int]:
        """What ``status`` tells of a function: its jobs, those that run, its workers; zeros if unknown."""
        for row in admin.parse_status(self.table(b"status")):
            if row.name == function:
                return row.total, row.running, row.workers
        return 0, 0, 0

    def wait_for_counts(self, function: bytes, total: int, running: int, workers: int) -> None:
        """Ask until the server has noticed what happened on other connections."""
        deadline = time.monotonic() + TIMEOUT
        while (counts := self.counts(function)) != (total, running, workers):
            assert time.monotonic() < deadline, f"{function!r} has {counts}"

    def grab_all(self, function: bytes) -> dict[bytes, bytes]:
        """Take all jobs that wait, as a worker. By handle, with their workloads."""
        self.send(p.CanDo(function))
        jobs: dict[bytes, bytes] = {}
        while True:
            self.send(p.GrabJob())
            match self.receive():
                case p.JobAssign(handle, _, workload):
                    jobs[handle] = workload
                case answer:
                    assert answer == p.NoJob()
                    return jobs

    def leave(self) -> None:
        """Hang up and wait until the server has noticed."""
        self.socket.shutdown(socket.SHUT_WR)
        while self.socket.recv(1 << 16):
            pass
        self.socket.close()

    def reset(self) -> None:
        """Hang up without a goodbye: the server gets RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class ServerProcess:
    """A job server that runs in a process of its own, so that its memory and its death can be seen."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self._process = process
        self._log = log
        self.port = port

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def log(self) -> str:
        """What it has logged."""
        return self._log.read_text()

    def memory(self) -> int:
        """Bytes of memory that are resident."""
        return self._status("VmRSS")

    def peak_memory(self) -> int:
        """The most that was resident since ``forget_peak``."""
        return self._status("VmHWM")

    def forget_peak(self) -> None:
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")

    def _status(self, name: str) -> int:
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"the server process has no {name}: it is dead")


@contextmanager
def server_process(
    log: Path, *, files: int | None = None, timings: Mapping[str, float] | None = None, **settings: Any
) -> Generator[ServerProcess]:
    """A server for the time of the block; ``files`` is its limit of descriptors, ``log`` a file it writes to.

    ``timings`` are fields of ``Timings``.

    Raises:
        AssertionError: It did not live until the end, or wrote of an exception.
    """
    command = [sys.executable, "-c", _SERVER, json.dumps([settings, timings or {}, files])]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, env={**os.environ}
        )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, f"the server did not start: {log.read_text()}"
            yield ServerProcess(process, int(line), log)
            assert process.poll() is None, f"the server is dead: {log.read_text()[-2000:]}"
        finally:
            process.stdin.close()
            try:
                process.wait(TIMEOUT)
            finally:
                process.kill()
    logged = log.read_text()
    assert process.returncode == 0, logged[-2000:]
    assert "Traceback" not in logged, logged[logged.index("Traceback") :][:2000]
