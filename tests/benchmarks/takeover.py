"""How the jobs of one server come to another, seen from connections to that other server.

A worker waits there for the first job, ``status`` counts those that have come, and a connection that has
nothing to do with either sends one echo after another.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from gearflow.protocol.codec import encode
from gearflow.protocol.packets import CanDo, EchoReq, GrabJob, PreSleep
from tests.benchmarks.database import fresh, member
from tests.benchmarks.load import Generator as LoadGenerator
from tests.benchmarks.load import Load, run
from tests.benchmarks.servers import Server
from tests.postgres.cluster import Cluster

_LIMIT: Final = 300.0
"""Seconds after which the jobs are given up."""

_LOOK: Final = 0.005
"""Seconds between two looks at how many jobs are there."""

_STEADY: Final = 2.0
"""Seconds of echoes before anything happens, for comparison."""

_FUNCTION: Final = b"load"
_NOOP, _JOB_ASSIGN = 6, 11


@dataclass
class Echoes:
    """How long the answers of one connection took."""

    longest: float = 0.0
    count: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def send(self, server: Server) -> None:
        """Send one echo after another until it is over."""
        packet = encode(EchoReq(b"there?"))
        with _connected(server) as peer:
            while not self.over.is_set():
                began = time.perf_counter()
                peer.sendall(packet)
                _read(peer, len(packet))
                self.longest = max(self.longest, time.perf_counter() - began)
                self.count += 1
                time.sleep(0.0005)


@contextmanager
def echoing(server: Server) -> Generator[Echoes]:
    """Echoes for the time of the block."""
    echoes = Echoes()
    thread = threading.Thread(target=echoes.send, args=(server,), daemon=True)
    thread.start()
    try:
        yield echoes
    finally:
        echoes.over.set()
        thread.join()


class FirstJob:
    """A worker that waits for one job, and keeps it."""

    def __init__(self, server: Server) -> None:
        self.came = 0.0
        self._peer = _connected(server)
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        peer = self._peer
        peer.sendall(encode(CanDo(_FUNCTION)) + encode(GrabJob()))
        with suppress(OSError):  # it is closed
            while (kind := _packet(peer)) != _JOB_ASSIGN:
                peer.sendall(encode(GrabJob() if kind == _NOOP else PreSleep()))
            self.came = time.perf_counter()

    def close(self) -> None:
        with suppress(OSError):
            self._peer.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._peer.close()


def takeover(
    cluster: Cluster, made: LoadGenerator, jobs: int, lease: float, ending: signal.Signals
) -> dict[str, float]:
    """Seconds: one server of two has so many jobs, and ends by a signal."""
    with (
        fresh(cluster) as database,
        member(database, lease=lease) as first,
        member(database, lease=lease) as second,
    ):
        run(made, first, Load("enqueue", jobs, 8, 256, payload=60, fresh=True))
        with echoing(second) as before:
            time.sleep(_STEADY)
        worker = FirstJob(second)
        try:
            with _connected(second) as admin, echoing(second) as echoes:
                began = time.perf_counter()
                os.kill(first.pid, ending)
                seen, complete = _count(admin, jobs)
        finally:
            worker.close()
    return {
        "to the first run": worker.came - began,
        "until all are there": complete - began,
        "from the first to the last": complete - seen,
        "longest wait for an echo": echoes.longest,
        "the same before": before.longest,
    }


def _count(admin: socket.socket, jobs: int) -> tuple[float, float]:
    """When a job was not yet there, and when all were."""
    none, now = time.perf_counter(), time.perf_counter()
    deadline = now + _LIMIT
    while (there := _there(admin)) < jobs:
        now = time.perf_counter()
        if there == 0:
            none = now
        if now > deadline:
            raise SystemExit(f"only {there:,} of {jobs:,} jobs came within {_LIMIT:g} s")
        time.sleep(_LOOK)
    return none, time.perf_counter()


def _there(admin: socket.socket) -> int:
    """How many jobs a server has, with those that run."""
    admin.sendall(b"status\n")
    said = b""
    while not said.endswith(b".\n"):
        said += admin.recv(1 << 16)
    rows = [line.split(b"\t") for line in said.splitlines()]
    return next((int(row[1]) for row in rows if row[0] == _FUNCTION), 0)


def _connected(server: Server) -> socket.socket:
    peer = socket.create_connection(("127.0.0.1", server.port))
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return peer


def _packet(peer: socket.socket) -> int:
    """The type of the next packet."""
    head = _read(peer, 12)
    _read(peer, int.from_bytes(head[8:], "big"))
    return int.from_bytes(head[4:8], "big")


def _read(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        some = peer.recv(size - len(data))
        if not some:
            raise ConnectionError("the server closed the connection")
        data += some
    return data
