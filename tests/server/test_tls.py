"""TLS on the server's port: which connections it accepts, and the errors on both sides."""

import asyncio
import logging
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gearflow.protocol import packets as p
from gearflow.protocol.codec import encode
from gearflow.security.tls import BadCertificate
from gearflow.server import JobServer, ServerSettings
from gearflow.server.engine import Timings
from tests.authority import Authority
from tests.server.wire import TIMEOUT, Wire, running

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gearflow.server")


@pytest.fixture
def server(authority: Authority) -> Iterator[JobServer]:
    """One with TLS, in a thread of its own."""
    with JobServer(port=0, tls_cert=authority.server) as server:
        yield server


def line(caplog: pytest.LogCaptureFixture, start: str) -> dict[str, Any]:
    """The fields of the one record whose sentence begins so, once there is."""
    deadline = time.monotonic() + TIMEOUT
    while not (found := [record for record in caplog.records if record.getMessage().startswith(start)]):
        assert time.monotonic() < deadline, f"the log does not say {start!r}"
    (record,) = found
    return vars(record)


def ending(wire: Wire) -> str:
    """Why TLS ended, as the client sees it."""
    with pytest.raises(ssl.SSLError) as raised:
        wire.receive()
    return str(raised.value.reason)


# -------------------------------------------------------------------------------------------- the bytes


@pytest.mark.parametrize("size", [0, 1, 16_384, 65_535, 65_536, 300_000, 4 * MIB])
def test_bodies_of_any_size_go_there_and_back(server: JobServer, authority: Authority, size: int) -> None:
    body = bytes(range(251)) * (size // 251 + 1)
    body = body[:size]
    with Wire(server.port, authority.context()) as client, Wire(server.port, authority.context()) as worker:
        client.send(p.SubmitJob(b"work", b"", body))
        handle = client.handle()
        worker.send(p.CanDo(b"work"), p.GrabJob())
        assert worker.receive() == p.JobAssign(handle, b"work", body)
        worker.send(p.WorkComplete(handle, body))
        assert client.receive() == p.WorkComplete(handle, body)


def test_packets_in_any_cut_are_understood(server: JobServer, authority: Authority) -> None:
    data = encode(p.EchoReq(b"x")) + b"version\n"
    with Wire(server.port, authority.context()) as wire:
        for position in range(len(data)):
            wire.send(data[position : position + 1])  # each a record of its own
        assert wire.receive() == p.EchoRes(b"x")
        answer = wire.receive()
        assert isinstance(answer, bytes)
        assert answer.startswith(b"OK gearflow")


def test_many_packets_in_one_record_are_answered(server: JobServer, authority: Authority) -> None:
    with Wire(server.port, authority.context()) as wire:
        wire.send(encode(p.EchoReq(b"x" * 100)) * 1000)
        assert [wire.receive() for _ in range(1000)] == [p.EchoRes(b"x" * 100)] * 1000


async def test_it_serves_on_the_loop_of_its_caller_too(authority: Authority) -> None:
    async with JobServer(port=0, tls_cert=authority.server) as server:
        reader, writer = await asyncio.open_connection(server.host, server.port, ssl=authority.context())
        writer.write(encode(p.EchoReq(b"x" * MIB)))
        assert (await reader.readexactly(12 + MIB))[-1:] == b"x"
        writer.close()
        await writer.wait_closed()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_a_slow_reader_holds_its_feeder_and_gets_everything(authority: Authority) -> None:
    count = 64
    with (
        JobServer(port=0, tls_cert=authority.server, max_pending_bytes=MIB) as server,
        Wire(server.port, authority.context()) as reader,
        Wire(server.port, authority.context()) as feeder,
    ):
        reader.send(p.SubmitJob(b"work", b"", b""))
        handle = reader.handle()
        feeder.send(p.CanDo(b"work"), p.GrabJob())
        assert feeder.receive() == p.JobAssign(handle, b"work", b"")
        said = p.WorkData(handle, b"x" * MIB)
        feeding = threading.Thread(target=feeder.send, args=[encode(said) * count])
        feeding.start()
        for _ in range(count):
            assert reader.receive() == said
        feeding.join()


def test_a_client_that_says_goodbye_is_gone(server: JobServer, authority: Authority) -> None:
    wire = Wire(server.port, authority.context())
    with Wire(server.port, authority.context()) as watcher:
        wire.send(p.CanDo(b"work"), p.EchoReq(b"x"))
        assert wire.receive() == p.EchoRes(b"x")
        watcher.wait_for_counts(b"work", 0, 0, 1)
        assert isinstance(wire.socket, ssl.SSLSocket)
        wire.socket.unwrap().close()  # waits for the server's goodbye
        watcher.wait_for_counts(b"work", 0, 0, 0)


def test_a_client_that_is_cut_off_is_gone(server: JobServer, authority: Authority) -> None:
    wire = Wire(server.port, authority.context())
    with Wire(server.port, authority.context()) as watcher:
        wire.send(p.CanDo(b"work"), p.EchoReq(b"x"))
        assert wire.receive() == p.EchoRes(b"x")
        wire.reset()
        watcher.wait_for_counts(b"work", 0, 0, 0)


def test_a_server_that_stops_says_goodbye_and_does_not_wait_for_an_answer(authority: Authority) -> None:
    with JobServer(port=0, tls_cert=authority.server) as server:
        wire = Wire(server.port, authority.context())
        wire.send(p.EchoReq(b"x"))
        assert wire.receive() == p.EchoRes(b"x")
    assert wire.receive() is None  # and no complaint of a connection that was cut off
    wire.socket.close()


# ------------------------------------------------------------------------------------- who does not fit


@pytest.mark.parametrize(
    "sent", [p.OptionReq(b"exceptions"), p.CanDo(b"work"), p.SubmitJobBg(b"w", b"", b"")]
)
def test_a_client_without_tls_gets_an_error(
    server: JobServer, caplog: pytest.LogCaptureFixture, sent: p.Packet
) -> None:
    with Wire(server.port) as wire:
        wire.send(sent)
        assert wire.receive() == p.Error(b"TLS_REQUIRED", b"this port speaks TLS only")
        assert wire.receive() is None
    said = line(caplog, "refused a connection without TLS")
    assert (said["levelname"], said["peer"]) == ("WARNING", "127.0.0.1")


def test_a_text_command_without_tls_gets_an_error_as_text(server: JobServer) -> None:
    with Wire(server.port) as wire:
        wire.send(b"status\n")
        assert wire.receive() == b"ERR TLS_REQUIRED this+port+speaks+TLS+only"
        assert wire.receive() is None


def test_tls_before_1_2_is_refused(
    server: JobServer, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    context = authority.context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        Wire(server.port, context)
    said = line(caplog, "refused a connection: its TLS handshake failed")
    assert said["reason"] == "it speaks no version of TLS from 1.2 on"


def test_1_2_itself_is_spoken(server: JobServer, authority: Authority) -> None:
    context = authority.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with Wire(server.port, context) as wire:
        wire.send(p.EchoReq(b"x"))
        assert wire.receive() == p.EchoRes(b"x")


def test_a_client_that_does_not_trust_the_server_is_logged(
    server: JobServer, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        Wire(server.port, ssl.create_default_context())
    said = line(caplog, "refused a connection: its TLS handshake failed")
    assert said["reason"] == "it does not trust this server's certificate"


def test_a_client_that_stops_in_the_middle_of_the_handshake_is_closed(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ServerSettings(port=0, tls_cert=authority.server)
    with (
        running(settings, Timings(handshake=0.05)) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT) as idle,
    ):
        idle.sendall(b"\x16\x03\x01")
        assert idle.recv(1) == b""
    assert "it took more than" in line(caplog, "refused a connection: its TLS")["reason"]


def test_nonsense_behind_a_handshake_ends_that_connection_alone(
    server: JobServer, authority: Authority
) -> None:
    with Wire(server.port, authority.context()) as good, Wire(server.port, authority.context()) as bad:
        good.send(p.EchoReq(b"x"))
        assert good.receive() == p.EchoRes(b"x")
        assert isinstance(bad.socket, ssl.SSLSocket)
        raw = socket.socket(fileno=bad.socket.fileno())
        raw.sendall(b"this is no record of TLS")
        raw.detach()
        assert ending(bad)
        good.send(p.EchoReq(b"y"))
        assert good.receive() == p.EchoRes(b"y")


def test_nonsense_behind_a_packet_keeps_nothing_from_others(server: JobServer, authority: Authority) -> None:
    with Wire(server.port, authority.context()) as worker, Wire(server.port, authority.context()) as bad:
        worker.send(p.CanDo(b"work"), p.PreSleep())
        worker.sync()
        bad.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)  # all of it is to arrive at once
        bad.send(p.SubmitJobBg(b"work", b"", b""))
        raw = socket.socket(fileno=bad.socket.fileno())
        raw.sendall(b"this is no record of TLS")
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        raw.detach()
        assert worker.receive() == p.Noop()
        assert ending(bad)


# ---------------------------------------------------------------------------- certificates of clients


@pytest.fixture
def strict(authority: Authority) -> Iterator[JobServer]:
    """A server that wants certificates."""
    with JobServer(port=0, tls_cert=authority.server, tls_ca=authority.ca) as server:
        yield server


def test_a_client_with_a_certificate_is_served(strict: JobServer, authority: Authority) -> None:
    with Wire(strict.port, authority.context(authority.client)) as wire:
        wire.send(p.EchoReq(b"x"))
        assert wire.receive() == p.EchoRes(b"x")


def test_a_client_without_a_certificate_gets_an_alert(
    strict: JobServer, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    with Wire(strict.port, authority.context()) as wire:
        assert ending(wire) == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    assert line(caplog, "refused a connection: its TLS")["reason"] == "it shows no certificate"


def test_a_client_with_a_certificate_of_another_authority_gets_an_alert(
    strict: JobServer, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Wire(strict.port, authority.context(Authority(tmp_path).client)) as wire:
        assert ending(wire) in ("TLSV1_ALERT_UNKNOWN_CA", "TLSV1_ALERT_DECRYPT_ERROR")
    assert line(caplog, "refused a connection: its TLS")["reason"].startswith("its certificate is refused: ")


def test_a_client_with_an_expired_certificate_gets_an_alert(strict: JobServer, authority: Authority) -> None:
    expired = authority.certificate("late@example.org", expired=True)
    with Wire(strict.port, authority.context(expired)) as wire:
        assert ending(wire) == "SSLV3_ALERT_CERTIFICATE_EXPIRED"


def test_too_many_connections_are_closed_before_their_handshake(authority: Authority) -> None:
    with (
        JobServer(port=0, tls_cert=authority.server, max_connections=1) as server,
        Wire(server.port, authority.context()) as first,
    ):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            Wire(server.port, authority.context())
        first.send(p.EchoReq(b"x"))
        assert first.receive() == p.EchoRes(b"x")


# ------------------------------------------------------------------------------------ files, and new ones


def test_a_bad_file_keeps_it_from_starting(tmp_path: Path) -> None:
    with pytest.raises(BadCertificate, match=r"none\.pem.*cannot be read: no such file or directory"):
        JobServer(port=0, tls_cert=tmp_path / "none.pem").__enter__()


def test_new_files_hold_for_new_connections_and_old_ones_live_on(
    authority: Authority, tmp_path: Path
) -> None:
    own = tmp_path / "own.pem"
    shutil.copy(authority.server, own)
    newer = Authority(tmp_path)
    with (
        JobServer(port=0, tls_cert=own) as server,
        Wire(server.port, authority.context()) as old,
    ):
        shutil.copy(newer.server, own)
        server.reload_tls()
        old.send(p.EchoReq(b"x"))  # behind the reload, on the server's loop
        assert old.receive() == p.EchoRes(b"x")
        with Wire(server.port, newer.context()) as new:
            new.send(p.EchoReq(b"y"))
            assert new.receive() == p.EchoRes(b"y")
        with pytest.raises(ssl.SSLCertVerificationError):
            Wire(server.port, authority.context())
        old.send(p.EchoReq(b"z"))
        assert old.receive() == p.EchoRes(b"z")


def test_a_bad_new_file_is_logged_and_the_old_one_stays(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = tmp_path / "own.pem"
    shutil.copy(authority.server, own)
    with JobServer(port=0, tls_cert=own) as server:
        own.write_text("nothing")
        server.reload_tls()
        with Wire(server.port, authority.context()) as wire:
            wire.send(p.EchoReq(b"x"))
            assert wire.receive() == p.EchoRes(b"x")
    said = line(caplog, "cannot reload the TLS files")
    assert said["levelname"] == "ERROR"
    assert said["reason"] == f"there is no certificate in {own}; is it a PEM file, and the right one?"
