"""C's gearadmin reads what the bundled server answers."""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import TypeAlias

import pytest

from gearflow.protocol.codec import encode
from gearflow.protocol.packets import CanDo, EchoReq, GrabJob, Packet, SetClientId, SubmitJobBg

Peer: TypeAlias = Callable[..., None]


@pytest.fixture
def peer(bundled: str) -> Iterator[Peer]:
    """``peer(packet, ...)``: a connection that says this, is understood, and stays until the test is over."""
    connections: list[socket.socket] = []

    def say(*packets: Packet) -> None:
        host, _, port = bundled.rpartition(":")
        connection = socket.create_connection((host, int(port)), timeout=20)
        connections.append(connection)
        connection.sendall(b"".join(map(encode, (*packets, EchoReq(b"the end")))))
        received = b""
        while not received.endswith(b"the end"):
            received += connection.recv(4096) or pytest.fail(f"closed after {received!r}")

    try:
        yield say
    finally:
        for connection in connections:
            connection.close()


@pytest.fixture
def gearadmin(program: Callable[[str], str], bundled: str) -> Callable[[str], list[str]]:
    """``gearadmin("--status")``: the lines it prints."""
    host, _, port = bundled.rpartition(":")

    def ask(option: str) -> list[str]:
        command = [program("gearadmin"), "-h", host, "-p", port, option]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=30
        ).stdout.splitlines()

    return ask


def test_status_counts_jobs_and_workers(
    gearadmin: Callable[[str], list[str]], peer: Peer, function: str
) -> None:
    name = function.encode()
    peer(*[SubmitJobBg(name, b"", b"%d" % n) for n in range(3)])
    peer(CanDo(name), GrabJob())
    peer(CanDo(name))
    lines = gearadmin("--status")
    assert f"{function}\t3\t1\t2" in lines
    assert lines[-1] == "."


def test_workers_shows_ids_and_functions(
    gearadmin: Callable[[str], list[str]], peer: Peer, fresh: Callable[..., str]
) -> None:
    client_id, function = fresh("an id with blanks"), fresh()
    peer(SetClientId(client_id.encode()), CanDo(function.encode()))
    lines = gearadmin("--workers")
    assert [line.split(" ", 2)[1:] for line in lines if client_id in line] == [
        ["127.0.0.1", f"{client_id} : {function}"]
    ]
    assert lines[-1] == "."


def test_version_and_pid_are_those_of_this_process(gearadmin: Callable[[str], list[str]]) -> None:
    assert gearadmin("--getpid") == [str(os.getpid())]
    [version] = gearadmin("--server-version")
    assert version.startswith("gearflow-")
