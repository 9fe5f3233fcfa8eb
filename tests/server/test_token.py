"""The token on the server's port: who says it is served, who does not is logged and gone."""

import hashlib
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from gearflow.protocol import packets as p
from gearflow.protocol.constants import AUTH
from gearflow.server import JobServer, ServerSettings
from gearflow.server.engine import Timings
from tests.authority import Authority
from tests.server.wire import TIMEOUT, Wire, running

TOKEN = "open sesame, 32 thieves"
REFUSED = "refused a connection that does not know the token"


@pytest.fixture
def server() -> Iterator[JobServer]:
    with JobServer(port=0, token=TOKEN) as server:
        yield server


def say(wire: Wire, token: str = TOKEN) -> None:
    wire.send(p.SubmitJob(AUTH, b"", token.encode()))


def welcome(wire: Wire) -> None:
    """The answer to the right token."""
    handle = wire.handle()
    assert wire.receive() == p.WorkComplete(handle, b"{}")


def test_a_connection_with_the_token_is_served(server: JobServer) -> None:
    with Wire(server.port) as wire:
        say(wire)
        wire.send(p.EchoReq(b"x"), b"getpid\n")
        welcome(wire)
        assert wire.receive() == p.EchoRes(b"x")
        answer = wire.receive()
        assert isinstance(answer, bytes)
        assert answer.startswith(b"OK ")


def test_a_connection_with_another_token_gets_an_error_and_is_closed(
    server: JobServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), Wire(server.port) as wire:
        wire.send(p.CanDo(b"work"))
        refused = wire.receive()
        assert isinstance(refused, p.Error)
        assert refused.code == b"UNAUTHORIZED"
        assert wire.receive() is None
    (record,) = caplog.records
    assert (record.getMessage(), vars(record)["peer"]) == (REFUSED, "127.0.0.1")


def test_a_wrong_token_is_logged_and_not_shown(server: JobServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), Wire(server.port) as wire:
        say(wire, "abracadabra")
        assert wire.receive() == p.Error(b"UNAUTHORIZED", b"that is not the token")
        assert wire.receive() is None
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert (record.getMessage(), vars(record)["reason"]) == (REFUSED, "a wrong token")
    assert not any("abracadabra" in str(vars(record)) for record in caplog.records)


def test_a_connection_that_sends_no_token_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    with (
        running(ServerSettings(port=0, token=SecretStr(TOKEN)), Timings(authentication=0.05)) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT) as idle,
        Wire(server.port) as known,
    ):
        say(known)
        welcome(known)
        assert idle.recv(1) == b""
        known.send(p.EchoReq(b"x"))
        assert known.receive() == p.EchoRes(b"x")
    assert [record.getMessage() for record in caplog.records] == [REFUSED]


def test_a_token_goes_with_tls(authority: Authority) -> None:
    with JobServer(port=0, token=TOKEN, tls_cert=authority.server) as server:
        with Wire(server.port, authority.context()) as wire:
            say(wire)
            welcome(wire)
        with Wire(server.port, authority.context()) as wire:
            wire.send(b"status\n")
            answer = wire.receive()
            assert isinstance(answer, bytes)
            assert answer.startswith(b"ERR UNAUTHORIZED ")


def test_a_token_is_not_shown_by_the_settings(tmp_path: Path) -> None:
    settings = ServerSettings.model_validate({"token": TOKEN, "tls_cert": tmp_path})
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    for shown in (repr(settings), str(settings), settings.model_dump_json(), repr(JobServer(settings))):
        assert TOKEN not in shown
        assert digest not in shown


@pytest.mark.parametrize("token", ["", "x" * 1025, "two\nlines", "nul\0"])
def test_what_can_be_no_token_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ValidationError, match="a good one comes from: gearflow token") as refused:
        JobServer(token=token)
    assert not token or token not in str(refused.value)


def test_a_key_without_a_certificate_is_refused(tmp_path: Path) -> None:
    for given in ({"tls_key": tmp_path}, {"tls_ca": tmp_path}):
        with pytest.raises(ValidationError, match="give tls_cert"):
            ServerSettings.model_validate(given)
