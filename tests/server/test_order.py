"""Answers come in the order of the requests, and soon, whatever has to wait for the store."""

import threading
from collections.abc import Generator
from typing import Final, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gearflow.protocol import packets as p
from gearflow.protocol import server_calls
from gearflow.protocol.codec import encode
from gearflow.protocol.packets import Packet
from gearflow.server import JobServer
from gearflow.stores import Sync
from tests.server.wire import Wire

Request: TypeAlias = tuple[str, int]
"""Of what kind, and how large."""

LARGE: Final = 200_000
SIZES: Final = st.sampled_from([0, 10, 70_000, LARGE])
REQUESTS: Final = st.lists(
    st.tuples(st.sampled_from(["background", "attached", "reuse", "echo", "status", "text"]), SIZES),
    min_size=1,
    max_size=12,
)


@pytest.fixture(scope="module", params=["memory", "off", "always"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[JobServer]:
    mode: str = request.param
    sync: Sync = "always" if mode == "always" else "off"
    data = None if mode == "memory" else tmp_path_factory.mktemp("data")
    with JobServer(port=0, data=data, sync=sync) as server:
        yield server


def asked(place: int, request: Request) -> bytes:
    """A request as bytes; its place makes it different from all others."""
    kind, size = request
    body = b"%d " % place * (size // 2 + 1)
    match kind:
        case "background":
            return encode(p.SubmitJobBg(b"order", b"", body))
        case "attached":
            return encode(p.SubmitJob(b"order", b"", body))
        case "reuse":
            options = server_calls.SubmitRequest(function="order", unique=f"unique-{place}", reuse=True)
            return encode(p.SubmitJob(server_calls.SUBMIT, b"", options.to_wire() + b"\n" + body))
        case "echo":
            return encode(p.EchoReq(body))
        case "status":
            return encode(p.GetStatus(b"H:nobody:%d" % place))
        case _:
            return b"version\n"


def is_answered(asked: bytes, kind: str, answer: Packet | bytes | None) -> bool:
    match answer:
        case p.JobCreated():
            return kind in ("background", "attached", "reuse")
        case p.EchoRes(data):
            return kind == "echo" and asked.endswith(data)
        case p.StatusRes(handle):
            return kind == "status" and asked.endswith(handle)
        case bytes():
            return kind == "text" and answer.startswith(b"OK gearflow")
        case _:
            return False


@settings(deadline=None, max_examples=60)
@given(requests=REQUESTS)
def test_answers_come_in_the_order_of_the_requests(server: JobServer, requests: list[Request]) -> None:
    packets = [asked(place, request) for place, request in enumerate(requests)]
    wire = Wire(server.port)
    sending = threading.Thread(target=wire.socket.sendall, args=(b"".join(packets),))
    sending.start()
    try:
        numbers: list[int] = []
        for packet, (kind, _) in zip(packets, requests, strict=True):
            answer = wire.receive()
            assert is_answered(packet, kind, answer), f"{kind} was answered with {answer!r}"
            if isinstance(answer, p.JobCreated):
                numbers.append(int(answer.handle.rpartition(b":")[2]))
        assert numbers == sorted(numbers)
    finally:
        sending.join()
        wire.socket.close()


def test_what_is_sent_behind_a_background_job_is_no_text(server: JobServer) -> None:
    body = b"create function smuggled\n" * 120_000
    with Wire(server.port) as wire:
        sending = threading.Thread(
            target=wire.socket.sendall,
            args=(encode(p.SubmitJobBg(b"order", b"", b"x")) + encode(p.EchoReq(body)),),
        )
        sending.start()
        assert isinstance(wire.receive(), p.JobCreated)
        assert wire.receive() == p.EchoRes(body)
        sending.join()
        wire.socket.sendall(b"status\n")
        lines = iter(wire.receive, b".")
        assert not any(isinstance(line, bytes) and b"smuggled" in line for line in lines)


@pytest.mark.parametrize(
    "bad",
    [
        encode(p.EchoReq(b""))[:4] + b"\0\0\0\x12\0\0\0\1f",
        encode(p.SubmitJobBg(b"f" * 9000, b"", b"")),
        b"\0nonsense",
    ],
    ids=["too few fields", "a name that is too long", "no packet"],
)
def test_what_was_accepted_is_acknowledged_before_what_is_behind_it_ends_the_connection(
    server: JobServer, bad: bytes
) -> None:
    good = encode(p.SubmitJobBg(b"order", b"", b"x"))
    with Wire(server.port) as wire:
        wire.socket.sendall(good + good + bad)
        assert isinstance(wire.receive(), p.JobCreated)
        assert isinstance(wire.receive(), p.JobCreated)
        while (answer := wire.receive()) is not None:
            assert isinstance(answer, p.Error)
