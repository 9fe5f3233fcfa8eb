"""Tokens with rights on the server's port: large packets, and the file of tokens that is read again."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from gearflow.protocol import packets as p
from gearflow.protocol.constants import AUTH
from gearflow.protocol.rights import Right
from gearflow.security.tokens import BadTokens, token_line
from gearflow.server import JobServer
from tests.authority import Authority
from tests.server.wire import Wire

VIEWER: Final = "a token that may look"
WORKER: Final = "a token that may work"
OTHER: Final = "a token that may submit"
ALL: Final = f"{token_line(VIEWER, Right.VIEW, 'wall')}\n{token_line(WORKER, Right.WORK | Right.SUBMIT)}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text(ALL)
    return file


@pytest.fixture
def server(file: Path) -> Iterator[JobServer]:
    with JobServer(port=0, token_file=file) as server:
        yield server


def admitted(wire: Wire, token: str) -> Wire:
    """The connection, once it has sent its token."""
    wire.send(p.SubmitJob(AUTH, b"", token.encode()))
    wire.handle()
    assert isinstance(wire.receive(), p.WorkComplete)
    return wire


def refused(wire: Wire, packet: p.Packet) -> bool:
    """Whether a submission is refused for lack of rights."""
    wire.send(packet)
    answer = wire.receive()
    return isinstance(answer, p.Error) and answer.code == b"FORBIDDEN"


NEW: Final = p.SubmitJobBg(b"new", b"", b"x")


@pytest.mark.parametrize("size", [10, 100_000, 4 << 20])
def test_large_packets_are_refused_too(
    server: JobServer, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), Wire(server.port) as wire:
        admitted(wire, VIEWER)
        assert refused(wire, p.SubmitJobBg(b"new", b"", b"x" * size))
        wire.send(p.SubmitJob(b"gearflow:submit", b"", b'{"function":"new"}\n' + b"x" * size))
        handle = wire.handle()
        warning, failure = wire.receive(), wire.receive()
        assert isinstance(warning, p.WorkWarning)
        assert warning.data.startswith(b"gearflow:submit needs the right submit")
        assert failure == p.WorkFail(handle)
        wire.send(p.GetStatusUnique(b"u"))
        assert isinstance(wire.receive(), p.StatusResUnique)
    record = caplog.records[0]
    assert record.getMessage().startswith(
        "refused, as the token of the connection has no right to it: SUBMIT"
    )
    assert (vars(record)["subject"], vars(record)["peer"]) == ("view (wall)", "127.0.0.1")


def test_a_worker_without_the_right_is_closed_and_logged(
    server: JobServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), Wire(server.port) as wire:
        admitted(wire, VIEWER).send(p.CanDo(b"new"), p.GrabJob())
        error = wire.receive()
        assert isinstance(error, p.Error)
        assert error.code == b"FORBIDDEN"
        assert wire.receive() is None
    assert [record.getMessage() for record in caplog.records] == [
        "closed a connection whose token has no right to work"
    ]


@pytest.mark.parametrize("with_tls", [False, True], ids=["plain", "tls"])
def test_a_removed_token_ends_its_connections_and_its_jobs_are_queued_again(
    file: Path, with_tls: bool, authority: Authority
) -> None:
    cert = authority.server if with_tls else None
    context = authority.context() if with_tls else None
    with (
        JobServer(port=0, token_file=file, tls_cert=cert) as server,
        Wire(server.port, context) as viewer,
        Wire(server.port, context) as worker,
        Wire(server.port, context) as other,
    ):
        admitted(viewer, VIEWER)
        admitted(worker, WORKER).send(p.CanDo(b"new"), NEW)
        handle = worker.handle()
        worker.send(p.GrabJob())
        assert worker.receive() == p.JobAssign(handle, b"new", b"x")
        file.write_text(
            f"view:{VIEWER.replace(' ', '-')}\n{token_line(VIEWER, Right.VIEW)}\nwork:{OTHER[-6:]}"
        )
        server.reload_tls()
        server.reload_tokens()
        assert worker.receive() is None
        viewer.send(p.GetStatus(handle))
        assert viewer.receive() == p.StatusRes(handle, b"1", b"0", b"0", b"0")
        admitted(other, OTHER[-6:]).send(p.CanDo(b"new"), p.GrabJob())
        assert other.receive() == p.JobAssign(handle, b"new", b"x")
        with Wire(server.port, context) as again:
            again.send(p.SubmitJob(AUTH, b"", WORKER.encode()))
            assert again.receive() == p.Error(b"UNAUTHORIZED", b"that is not the token")


def test_new_rights_hold_at_once(server: JobServer, file: Path) -> None:
    with Wire(server.port) as wire:
        assert refused(admitted(wire, VIEWER), NEW)
        file.write_text(token_line(VIEWER, Right.VIEW | Right.SUBMIT))
        server.reload_tokens()
        wire.send(p.EchoReq(b"x"))  # behind the reload, on the server's loop
        assert wire.receive() == p.EchoRes(b"x")
        assert not refused(wire, NEW)


def test_a_bad_new_file_is_logged_and_the_old_tokens_stay(
    server: JobServer, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Wire(server.port) as wire:
        admitted(wire, VIEWER)
        for content in ("", f"view:{VIEWER.replace(' ', '')}\nsubmit"):
            file.write_text(content)
            server.reload_tokens()
            wire.send(p.EchoReq(b"x"))
            assert wire.receive() == p.EchoRes(b"x")
        with Wire(server.port) as other:
            admitted(other, WORKER)
    records = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage() for record in records] == ["cannot reload the tokens"] * 2
    assert vars(records[0])["reason"] == f"there is no token in {file}; make one with: gearflow token"


def test_a_file_that_others_can_change_is_reported(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.chmod(0o666)
    with JobServer(port=0, token_file=file):
        pass
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.getMessage() == "the file of tokens is open to others"
    assert "can change it" in vars(warning)["reason"]


def test_a_server_does_not_start_with_a_bad_file(tmp_path: Path) -> None:
    with pytest.raises(BadTokens, match="cannot be read: no such file or directory"):
        JobServer(port=0, token_file=tmp_path / "none").__enter__()


def test_one_token_and_a_file_of_tokens_are_too_much(file: Path) -> None:
    with pytest.raises(ValueError, match="give one of them"):
        JobServer(token="one", token_file=file)
