"""Connections that are refused, or closed by their peer: they end soon, and cost little until then."""

import logging
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, TypeAlias

import pytest
from pydantic import SecretStr

from gearflow.protocol import packets as p
from gearflow.protocol.codec import encode
from gearflow.server import JobServer, ServerSettings
from gearflow.server.engine import Engine, Timings
from tests.authority import Authority
from tests.server.wire import TIMEOUT, Wire, running, server_process

MIB: Final = 1 << 20
GARBAGE: Final = b"\0\1\2\3garbage garbage"
NOT_GEARMAN: Final = "closed a connection that does not speak Gearman"

Connect: TypeAlias = Callable[[], Wire]
Deed: TypeAlias = Callable[[Wire], None]


def send_garbage(wire: Wire) -> None:
    wire.send(GARBAGE)


def close_sending_side(wire: Wire) -> None:
    wire.socket.shutdown(socket.SHUT_WR)


deeds = pytest.mark.parametrize("deed", [send_garbage, close_sending_side], ids=["garbage", "half-close"])


def wait_until_dropped(wire: Wire) -> None:
    """Wait for the RST of a connection that is not read from."""
    poller = select.poll()
    poller.register(wire.socket, 0)
    assert poller.poll(TIMEOUT * 1000), "the connection stays"


@pytest.fixture(params=["plain", "TLS"])
def tls(request: pytest.FixtureRequest, authority: Authority) -> tuple[Path, ssl.SSLContext] | None:
    return (authority.server, authority.context()) if request.param == "TLS" else None


@pytest.fixture
def server(tls: tuple[Path, ssl.SSLContext] | None) -> Iterator[Engine]:
    """A server at which every reader that has to wait is congested."""
    settings = ServerSettings(port=0, max_pending_bytes=1, tls_cert=tls and tls[0], max_packet_time=0.1)
    with running(settings, Timings(last_read=0.2, packet_check=0.02)) as engine:
        yield engine


@pytest.fixture
def connect(server: Engine, tls: tuple[Path, ssl.SSLContext] | None) -> Iterator[Connect]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Wire(server.port, tls and tls[1]))


def deafen(server: Engine, deaf: Wire, other: Wire) -> None:
    """Ask and do not read until a few answers wait in the server."""
    while not server.congested:
        deaf.send(p.EchoReq(bytes(4000)))
        other.sync()
        other.sync()  # whichever was answered first


@deeds
def test_a_connection_ends_although_its_peer_does_not_read(
    server: Engine, connect: Connect, deed: Deed
) -> None:
    deaf, other = connect(), connect()
    deafen(server, deaf, other)
    deed(deaf)
    wait_until_dropped(deaf)
    other.sync()
    assert server.connections == 1


@deeds
def test_the_job_of_such_a_worker_goes_to_another_at_once(connect: Connect, deed: Deed) -> None:
    client, deaf, second = connect(), connect(), connect()
    workload = bytes(30 * MIB)
    client.send(p.SubmitJob(b"work", b"", workload))
    handle = client.handle()
    deaf.send(p.CanDo(b"work"), p.GrabJob())
    client.wait_for_counts(b"work", 1, 1, 1)
    second.send(p.CanDo(b"work"), p.PreSleep())
    second.sync()
    deed(deaf)
    assert second.receive() == p.Noop()
    second.send(p.GrabJob())
    assert second.receive() == p.JobAssign(handle, b"work", workload)
    wait_until_dropped(deaf)


def test_a_refused_peer_in_the_middle_of_a_packet_is_logged_once(
    server: Engine, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    deaf, other = connect(), connect()
    deafen(server, deaf, other)
    deaf.send(encode(p.EchoReq(b"x"))[:-1])
    wait_until_dropped(deaf)
    assert [record.getMessage() for record in caplog.records] == [NOT_GEARMAN]


def test_nothing_of_a_refused_peer_is_handled(connect: Connect) -> None:
    client, bad = connect(), connect()
    bad.send(p.CanDo(b"before"), GARBAGE, p.SubmitJobBg(b"after", b"", b""))
    with suppress(ConnectionError):
        bad.send(p.SubmitJobBg(b"after", b"", b""))
    with suppress(ConnectionError):
        assert bad.receive() is None
    assert [row.split(b"\t")[0] for row in client.table(b"status")] == [b"before"]
    assert client.counts(b"before") == (0, 0, 0)


def test_peers_without_the_token_cost_little_however_much_they_ask(tmp_path: Path) -> None:
    with server_process(tmp_path / "log", token="sesame") as server, ExitStack() as stack:
        strangers = [stack.enter_context(Wire(server.port)) for _ in range(10)]
        before = server.memory()
        for stranger in strangers:
            with suppress(ConnectionError):
                for _ in range(50):
                    stranger.send(encode(p.OptionReq(b"gearflow")) * 10_000)
                pytest.fail("it may go on")
        assert server.peak_memory() - before < 16 * MIB
        assert "refused a connection that does not know the token" in server.log


def test_a_peer_without_the_token_gets_its_answers(caplog: pytest.LogCaptureFixture) -> None:
    with JobServer(port=0, token=SecretStr("sesame")) as server, Wire(server.port) as stranger:
        stranger.send(*[p.OptionReq(b"exceptions")] * 33)
        for _ in range(32):
            assert stranger.receive() == p.OptionRes(b"exceptions")
        refused = stranger.receive()
        assert isinstance(refused, p.Error)
        assert refused.code == b"UNAUTHORIZED"
        assert stranger.receive() is None
    assert len(caplog.records) == 1


def test_many_refusals_are_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    count = 300
    with JobServer(port=0) as server:
        for _ in range(count):
            with Wire(server.port) as bad:
                bad.send(GARBAGE)
                assert bad.receive() is None
    logged = [record for record in caplog.records if NOT_GEARMAN in record.getMessage()]
    assert len(logged) < count / 10
    assert sum(vars(record).get("count", 1) for record in logged) == count


def test_many_notices_are_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    count = 300
    with JobServer(port=0, max_body=100) as server, Wire(server.port) as wire:
        for size in range(count):
            wire.send(p.SubmitJob(b"work", b"", bytes(100 + size)))
            assert isinstance(wire.receive(), p.Error)
    logged = [record for record in caplog.records if "refused a body of" in record.getMessage()]
    assert len(logged) < count / 10
    assert sum(vars(record).get("count", 1) for record in logged) == count


def test_connections_that_only_have_to_be_written_to_count(caplog: pytest.LogCaptureFixture) -> None:
    settings = ServerSettings(port=0, max_pending_bytes=1, max_connections=2)
    with running(settings, Timings()) as server, Wire(server.port) as deaf, Wire(server.port) as other:
        deafen(server, deaf, other)
        deaf.send(GARBAGE)
        other.sync()
        with Wire(server.port) as third:
            assert third.receive() is None
        assert "the connection limit is reached" in caplog.text


def test_many_packets_that_are_late_at_once_are_all_refused(caplog: pytest.LogCaptureFixture) -> None:
    settings = ServerSettings(port=0, max_packet_time=0.2)
    with running(settings, Timings(packet_check=0.1)) as server, ExitStack() as stack:
        late = [stack.enter_context(Wire(server.port)) for _ in range(250)]
        for wire in late:
            wire.send(encode(p.EchoReq(b"x"))[:-1])
        for wire in late:
            assert wire.receive() is None
        deadline = time.monotonic() + TIMEOUT
        while server.connections:
            assert time.monotonic() < deadline
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_what_a_refused_peer_sent_before_is_not_handled_later(caplog: pytest.LogCaptureFixture) -> None:
    """It sends more than is handled in a turn, and is refused for what it does not read meanwhile."""
    settings = ServerSettings(port=0, max_pending_bytes=1, max_stall=0.1)
    count = 200_000
    sent = encode(p.EchoReq(bytes(4000))) * 10_000 + encode(p.SubmitJobBg(b"work", b"", b"")) * count
    with running(settings, Timings(last_read=0.1)) as server, Wire(server.port) as other:
        with Wire(server.port) as deaf, suppress(ConnectionError):
            deaf.send(sent)
            pytest.fail("it may send everything")
        other.sync()
        assert other.counts(b"work") == (0, 0, 0)
    assert "stalls others because it does not read" in caplog.text


@pytest.mark.parametrize(("size", "count"), [(MIB // 2, 240), (8 * MIB, 15)], ids=["512 KiB", "8 MiB"])
def test_a_worker_is_sent_no_more_jobs_than_it_reads(tmp_path: Path, size: int, count: int) -> None:
    with (
        server_process(
            tmp_path / "log", data=str(tmp_path), max_pending_bytes=8 * MIB, max_stall=1.0
        ) as server,
        ExitStack() as stack,
    ):
        client, deaf, worker = (stack.enter_context(Wire(server.port)) for _ in range(3))
        for _ in range(count):
            client.send(p.SubmitJobBg(b"work", b"", bytes(size)))
            client.handle()
        server.forget_peak()
        before = server.memory()
        deaf.send(p.CanDo(b"work"), *[p.GrabJob()] * count)
        wait_until_dropped(deaf)
        assert server.peak_memory() - before < 64 * MIB
        assert "stalls others because it does not read" in server.log
        worker.send(p.CanDo(b"work"))
        for _ in range(3):
            worker.send(p.GrabJob())
            job = worker.receive()
            assert isinstance(job, p.JobAssign)
            worker.send(p.WorkComplete(job.handle, b""))
        client.wait_for_counts(b"work", count - 3, 0, 1)


def test_a_worker_that_reads_slowly_gets_every_large_job_it_asked_for(tmp_path: Path) -> None:
    size, count = 2 * MIB, 20
    with (
        server_process(tmp_path / "log", data=str(tmp_path), max_pending_bytes=MIB) as server,
        Wire(server.port) as client,
        Wire(server.port) as worker,
    ):
        for number in range(count):
            client.send(p.SubmitJobBg(b"work", b"", bytes([number]) * size))
            client.handle()
        worker.send(p.CanDo(b"work"), *[p.GrabJob()] * (count + 1), p.EchoReq(b"last"))
        for number in range(count):
            client.sync()
            job = worker.receive()
            assert isinstance(job, p.JobAssign)
            assert job.workload == bytes([number]) * size
        assert worker.receive() == p.NoJob()
        assert worker.receive() == p.EchoRes(b"last")
