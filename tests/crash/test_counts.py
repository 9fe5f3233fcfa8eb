"""The counts of a server equal a ledger, after a storm in which workers and clients are killed.

All connections go through a witness, which writes down what the server has got and what it has said. When a
process is killed, the witness has the server answer all that it got before it closes the connection.
"""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Final, Self

import pytest

from gearflow.protocol import packets as p
from gearflow.protocol.codec import encode
from gearflow.protocol.constants import PacketType
from gearflow.protocol.metrics import METRICS, FunctionMetrics, Metrics
from gearflow.protocol.packets import Packet
from tests.crash.nest import Nest
from tests.server.wire import TIMEOUT, Answers, Wire

_PROCESS: Final = """
import socket, struct, sys

port, role, function = int(sys.argv[1]), sys.argv[2], sys.argv[3].encode()
peer, data = socket.create_connection(("127.0.0.1", port)), b""


def packed(kind, *fields):
    body = b"\\0".join(fields)
    return struct.pack(">4sII", b"\\0REQ", kind, len(body)) + body


def receive():
    global data
    while len(data) < 12 or len(data) < 12 + struct.unpack_from(">I", data, 8)[0]:
        more = peer.recv(1 << 16)
        if not more:
            sys.exit()
        data += more
    kind, size = struct.unpack_from(">II", data, 4)
    body, data = data[12 : 12 + size], data[12 + size :]
    return kind, body


if role == "worker":
    peer.sendall(packed(1, function))
    while True:
        peer.sendall(packed(9))
        kind, body = receive()
        if kind == 10:  # NO_JOB
            peer.sendall(packed(4))
            receive()
        elif kind == 11:
            handle, _, payload = body.split(b"\\0", 2)
            ends = {b"fail": packed(14, handle), b"raise": packed(25, handle, b"no")}
            peer.sendall(ends.get(payload, packed(13, handle, b"r")))
kinds = {"background": (18, 8), "attached": (7, 13)}
kind, answer = kinds[role]
while True:
    does = [b"fail" if place % 7 == 0 else b"raise" if place % 9 == 0 else b"x" for place in range(20)]
    peer.sendall(b"".join(packed(kind, function, b"", do) for do in does))
    ended = 0
    while ended < len(does):
        ended += receive()[0] in (answer, 14, 25)
"""
"""A worker or a client, by the standard library alone."""

_SUBMISSIONS: Final = frozenset({PacketType.SUBMIT_JOB, PacketType.SUBMIT_JOB_BG})

_ENDS: Final = {
    PacketType.WORK_COMPLETE: "succeeded",
    PacketType.WORK_FAIL: "unsuccessful",
    PacketType.WORK_EXCEPTION: "unsuccessful",
}

_END: Final = b"all that came before is handled"

_BACKGROUND: Final = b"\0\0\0\x12"
"""The type of SUBMIT_JOB_BG, as it is sent."""

_MOST: Final = 200
"""Background jobs that may wait."""

_STARTS: Final = 30
"""Runs from one kill to the next."""

_KILLS: Final = 15


class Witness:
    """Passes connections on to a server, and keeps the ledger."""

    def __init__(self, port: int) -> None:
        self.ledger: Counter[tuple[str, str]] = Counter()
        self.open = 0
        self.changed = threading.Condition()
        self._server = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(TIMEOUT)

    def wait(self, holds: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(holds, TIMEOUT), dict(self.ledger)

    @property
    def started(self) -> int:
        return self.ledger["work", "started"] + self.ledger["calls", "started"]

    def has_started(self, target: int) -> bool:
        return self.started >= target

    def has_room(self) -> bool:
        """Whether not too many background jobs wait, so that they are done at the end."""
        ended = self.ledger["work", "succeeded"] + self.ledger["work", "unsuccessful"]
        return self.ledger["work", "submitted"] - ended < _MOST

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                with self.changed:
                    self.open += 1
                    self.changed.notify_all()
                _Witnessed(self, peer, socket.create_connection(("127.0.0.1", self._server))).start()


class _Witnessed(threading.Thread):
    """One connection: this thread passes on what the peer sends, and another one the answers."""

    def __init__(self, witness: Witness, peer: socket.socket, server: socket.socket) -> None:
        super().__init__(daemon=True)
        self._witness = witness
        self._peer = peer
        self._server = server
        self._submitted: list[str] = []  # functions of submissions that are not answered
        self._held: dict[bytes, str] = {}  # jobs of the worker, with their functions
        self._answered = threading.Event()

    def run(self) -> None:
        answers = threading.Thread(target=self._pass_answers, daemon=True)
        answers.start()
        with suppress(OSError):
            self._pass_requests()
        self._server.sendall(encode(p.EchoReq(_END)))
        assert self._answered.wait(TIMEOUT)
        self._server.shutdown(socket.SHUT_WR)
        answers.join(TIMEOUT)
        self._server.close()
        self._peer.close()
        with self._witness.changed:
            for function in self._held.values():
                self._witness.ledger[function, "retried"] += 1
            self._witness.open -= 1
            self._witness.changed.notify_all()

    def _pass_requests(self) -> None:
        data = b""
        while more := self._peer.recv(1 << 16):
            data += more
            while len(data) >= 12 and len(data) >= (end := 12 + int.from_bytes(data[8:12], "big")):
                packet, data = data[:end], data[end:]
                if packet[4:8] == _BACKGROUND:
                    self._witness.wait(self._witness.has_room)
                self._note_request(PacketType(int.from_bytes(packet[4:8], "big")), packet[12:])
                self._server.sendall(packet)

    def _note_request(self, kind: PacketType, body: bytes) -> None:
        first = body.partition(b"\0")[0]
        with self._witness.changed:
            if kind in _SUBMISSIONS:
                self._submitted.append(first.decode())
            elif kind in _ENDS and first in self._held:
                self._witness.ledger[self._held.pop(first), _ENDS[kind]] += 1

    def _pass_answers(self) -> None:
        answers, passes = Answers(), True
        while more := self._server.recv(1 << 16):
            for packet in answers.feed(more):
                if packet == p.EchoRes(_END):
                    self._answered.set()
                else:
                    self._note_answer(packet)
            if passes:
                try:
                    self._peer.sendall(more)
                except OSError:
                    passes = False

    def _note_answer(self, packet: Packet | bytes) -> None:
        with self._witness.changed:
            if isinstance(packet, p.JobCreated):
                self._witness.ledger[self._submitted.pop(0), "submitted"] += 1
            elif isinstance(packet, p.JobAssign):
                function = packet.function.decode()
                self._held[packet.handle] = function
                self._witness.ledger[function, "started"] += 1
            self._witness.changed.notify_all()


class Crew:
    """Processes, each of which is replaced when it is killed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._processes: dict[subprocess.Popen[bytes], tuple[str, str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_all()

    def add(self, role: str, function: str) -> None:
        command = [sys.executable, "-S", "-E", "-c", _PROCESS, str(self._port), role, function]
        self._processes[subprocess.Popen(command)] = role, function

    def kill_one(self, chance: random.Random, *roles: tuple[str, str]) -> None:
        """Kill one of these, and have another one take its place."""
        able = [process for process, role in self._processes.items() if role in roles]
        process = chance.choice(able)
        self._kill(process)
        self.add(*self._processes.pop(process))

    def kill_all(self, role: str = "") -> None:
        for process in [process for process, (its, _) in self._processes.items() if role in ("", its)]:
            self._kill(process)
            del self._processes[process]

    @staticmethod
    def _kill(process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGKILL)
        process.wait(TIMEOUT)


def metrics_of(port: int) -> Metrics:
    with Wire(port) as wire:
        wire.send(p.SubmitJob(METRICS, b"", b"{}"))
        wire.handle()
        complete = wire.receive()
        assert isinstance(complete, p.WorkComplete)
        return Metrics.model_validate_json(complete.result)


def wait_for(port: int, holds: Callable[[Metrics], bool]) -> dict[str, FunctionMetrics]:
    """What the server has counted, once that holds."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        found = metrics_of(port)
        if holds(found):
            return {function.function: function for function in found.functions}
        assert time.monotonic() < deadline, found


def is_idle(metrics: Metrics) -> bool:
    return not any(sum(function.waiting) + function.running for function in metrics.functions)


@pytest.mark.parametrize("seed", [1])
def test_the_counts_equal_the_ledger_after_workers_and_clients_were_killed(
    nest: Nest, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    server = nest.start(tmp_path / "data", max_deaths=None)
    with Witness(server.port) as witness, Crew(witness.port) as crew, ExitStack() as stack:
        stack.callback(server.kill)
        for role, function in (("worker", "work"), ("background", "work"), ("attached", "calls")):
            crew.add(role, function)
            crew.add(role, function)
        crew.add("worker", "calls")
        for _ in range(_KILLS):
            target = witness.started + _STARTS
            witness.wait(partial(witness.has_started, target))
            crew.kill_one(chance, ("worker", "work"), ("background", "work"), ("attached", "calls"))
        crew.kill_all("background")
        crew.kill_all("attached")
        witness.wait(lambda: witness.open == 3)
        wait_for(server.port, is_idle)
        crew.kill_all()
        witness.wait(lambda: witness.open == 0)
        found = wait_for(server.port, lambda metrics: metrics.connections == 1)
        ledger = witness.ledger
    work, calls = found["work"], found["calls"]
    for name, counted in found.items():
        assert counted.submitted == ledger[name, "submitted"]
        assert counted.started == sum(counted.wait.counts) == ledger[name, "started"]
        assert counted.succeeded == ledger[name, "succeeded"]
        assert counted.retried == ledger[name, "retried"]
        assert counted.dead + counted.failed == ledger[name, "unsuccessful"]
    assert work.dead == ledger["work", "unsuccessful"]
    assert work.submitted == work.succeeded + work.dead
    assert work.started == work.submitted + work.retried
    assert work.retried > 0
    assert calls.failed == ledger["calls", "unsuccessful"]
    assert calls.cancelled == calls.submitted - calls.started > 0
