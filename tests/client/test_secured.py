"""Clients with TLS and a token: what they reach, and why not."""

import logging
from pathlib import Path
from typing import Any

import anyio
import pytest

from gearflow.client import (
    TLS,
    Admin,
    Client,
    ServerAddress,
    SubmitOptions,
    SyncAdmin,
    SyncClient,
    connect,
    operate,
)
from gearflow.client.transport import Unreachable, open_stream
from gearflow.errors import NoServer, ServerError
from gearflow.protocol import packets as p
from gearflow.protocol.constants import AUTH
from gearflow.protocol.rights import Right
from gearflow.security.tls import Security
from gearflow.security.tokens import token_line
from gearflow.server import JobServer
from gearflow.testing.peer import ScriptedServer
from tests.authority import TOKEN, Authority


async def reason(address: str, **security: Any) -> str:
    """Why a client does not reach a server."""
    with pytest.raises(NoServer) as told:
        async with Client([address], **security) as client:
            await client.echo(b"x")
    return told.value.reasons[address]


async def admin_reason(address: str, **security: Any) -> str:
    """Why the text protocol does not."""
    with pytest.raises(NoServer) as told:
        await Admin(address, **security).version()
    return told.value.reasons[address]


# ----------------------------------------------------------------------------------------- what works


async def test_a_client_is_served(strict: str, known: dict[str, Any]) -> None:
    async with Client([strict], **known) as client:
        assert (await client.features()).gearflow
        for size in (0, 1, 100_000, 4 << 20):
            assert await client.echo(b"x" * size) == b"x" * size


async def test_many_calls_at_once_get_their_own_answers(strict: str, known: dict[str, Any]) -> None:
    answers: dict[int, bytes] = {}
    async with Client([strict], **known) as client, anyio.create_task_group() as tasks:

        async def ask(number: int) -> None:
            answers[number] = await client.echo(b"%d" % number * 500)

        for number in range(200):
            tasks.start_soon(ask, number)
    assert answers == {number: b"%d" % number * 500 for number in range(200)}


def test_a_blocking_client_is_served(strict: str, known: dict[str, Any], function: str) -> None:
    with SyncClient([strict], **known) as client:
        assert client.echo(b"x") == b"x"
        handle = client.submit_background(function, b"x")
        assert client.status(handle).known


async def test_the_text_protocol_is_served(strict: str, known: dict[str, Any]) -> None:
    assert (await Admin(strict, **known).version()).startswith("gearflow-")


def test_the_blocking_one_too(strict: str, known: dict[str, Any]) -> None:
    assert SyncAdmin(strict, **known).pid()


async def test_connect_takes_them(strict: str, known: dict[str, Any]) -> None:
    async with connect(strict, **known) as client:
        assert await client.echo(b"x") == b"x"


async def test_the_environment_says_the_same(
    strict: str, known: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(f"  {TOKEN}\n")
    monkeypatch.setenv("GEARFLOW_TLS_CA", str(known["tls"].ca))
    monkeypatch.setenv("GEARFLOW_TLS_CERT", str(known["tls"].cert))
    monkeypatch.setenv("GEARFLOW_TOKEN_FILE", str(tmp_path / "token"))
    async with Client([strict]) as client:
        assert await client.echo(b"x") == b"x"
    assert await Admin(strict).pid()
    assert "speaks TLS only" in await reason(strict, tls=False)
    assert "knows its token" in await reason(strict, token="")


async def test_a_certificate_for_another_name_is_taken_by_that_name(authority: Authority) -> None:
    certificate = authority.certificate("queue.example.org")
    with JobServer(port=0, tls_cert=certificate) as server:
        async with Client(
            [server.address], tls=TLS(ca=authority.ca, server_name="queue.example.org")
        ) as client:
            assert await client.echo(b"x") == b"x"
        told = await reason(server.address, tls=TLS(ca=authority.ca))
    assert told.startswith("its certificate is for another name (ip address mismatch, ")
    assert told.endswith("or give that one with server_name (--tls-server-name)")


async def test_renewed_files_are_used_by_new_connections(
    authority: Authority, strict: str, tmp_path: Path
) -> None:
    own = tmp_path / "own.pem"
    own.write_bytes(Authority(tmp_path).client.read_bytes())
    tls = TLS(ca=authority.ca, cert=own)
    async with Client([strict], tls=tls, token=TOKEN) as client:
        with pytest.raises(NoServer, match="refuses our certificate"):
            await client.echo(b"x")
        own.write_bytes(authority.client.read_bytes())
        assert await client.echo(b"x") == b"x"


# ------------------------------------------------------------------------------------ why it does not


async def test_an_authority_that_is_not_trusted_is_told(strict: str, tmp_path: Path) -> None:
    for tls in (TLS(ca=Authority(tmp_path).ca), True):
        told = await reason(strict, tls=tls)
        assert told.startswith("its certificate is not trusted: ")
        assert told.endswith("name its authority's certificate with ca (--tls-ca)")


async def test_an_expired_certificate_is_told(authority: Authority) -> None:
    with JobServer(port=0, tls_cert=authority.certificate("127.0.0.1", expired=True)) as server:
        told = await reason(server.address, tls=TLS(ca=authority.ca))
    assert told == "its certificate has expired; it needs a new one, or a clock is wrong"


async def test_the_want_of_a_certificate_is_told(strict: str, authority: Authority) -> None:
    for token in ("", TOKEN):
        for why in (reason, admin_reason):
            told = await why(strict, tls=TLS(ca=authority.ca), token=token)
            assert told.startswith("it requires a certificate from us; give one with cert and key")


async def test_a_certificate_that_is_refused_is_told(
    strict: str, authority: Authority, tmp_path: Path
) -> None:
    tls = TLS(ca=authority.ca, cert=Authority(tmp_path).client)
    for why in (reason, admin_reason):
        assert await why(strict, tls=tls) == "it refuses our certificate: its authority is not trusted there"


@pytest.mark.parametrize("token", ["", TOKEN])
async def test_a_client_without_tls_is_told_so(strict: str, token: str) -> None:
    for why in (reason, admin_reason):
        assert (await why(strict, token=token)).startswith("it speaks TLS only; see tls= in Python")


async def test_a_server_without_tls_is_told(any_server: str) -> None:
    with anyio.fail_after(20):
        told = await reason(any_server, tls=True, connect_timeout=0.5)
    assert "does it speak it?" in told or told == "it does not speak TLS"


async def test_a_token_that_is_wrong_or_missing_is_told(strict: str, known: dict[str, Any]) -> None:
    for why in (reason, admin_reason):
        assert await why(strict, tls=known["tls"], token="x") == "it does not accept our token"
        told = await why(strict, tls=known["tls"])
        assert told.startswith("it serves only who knows its token; see token= in Python")


async def test_a_file_that_has_become_bad_is_told(authority: Authority, strict: str, tmp_path: Path) -> None:
    own = tmp_path / "own.pem"
    own.write_bytes(authority.client.read_bytes())
    async with Client([strict], tls=TLS(ca=authority.ca, cert=own), token=TOKEN) as client:
        own.unlink()
        with pytest.raises(NoServer, match=r"own\.pem, .*cannot be read: no such file"):
            await client.echo(b"x")


# ------------------------------------------------------------------------------- who hears the token


async def test_a_server_that_wants_no_token_is_not_told_it(bundled: str) -> None:
    async with Client([bundled], token=TOKEN) as client:
        assert await client.echo(b"x") == b"x"
    async with ScriptedServer() as server, anyio.create_task_group() as tasks:
        tasks.start_soon(Admin(server.address, token=TOKEN, timeout=1).version)
        peer = await server.accept()
        await peer.expect(p.OptionReq(b"gearflow"))
        await peer.send(p.OptionRes(b"gearflow"))
        await peer.expect(b"version")
        await peer.send(b"OK gearflow-1\n")


async def test_gearmand_is_not_told_it(gearmand: str) -> None:
    told = await reason(gearmand, token=TOKEN)
    assert told == "it knows no tokens, as only gearflow's own server does; it was not told ours"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ([p.Error(b"unknown_option", b"what?")], "it knows no tokens"),
        ([b"ERR unknown_command\r\n"], "it broke the protocol: a line of text came"),
        ([p.EchoRes(b"gearflow")], "it knows no tokens"),
        ([p.OptionRes(AUTH), p.Error(b"UNAUTHORIZED", b"no")], "it does not accept our token"),
        ([], "it closed the connection before it answered"),
    ],
)
async def test_what_a_server_says_to_a_token_is_told(answer: list[Any], told: str) -> None:
    failures: list[str] = []

    async def call(address: str) -> None:
        try:
            await open_stream(ServerAddress.parse(address), Security(token=TOKEN), 5)
        except Unreachable as failure:
            failures.append(str(failure))

    async with ScriptedServer() as server, anyio.create_task_group() as tasks:
        tasks.start_soon(call, server.address)
        peer = await server.accept()
        await peer.expect(p.OptionReq(b"gearflow"))
        await peer.send(*answer)
        await peer.close()
    assert failures[0].startswith(told)


async def test_a_server_that_answers_nothing_is_given_up() -> None:
    async with ScriptedServer() as server:
        address = ServerAddress.parse(server.address)
        with pytest.raises(Unreachable, match=r"no answer to OPTION_REQ .* within 0\.05 s"):
            await open_stream(address, Security(token=TOKEN), 0.05)
        with pytest.raises(Unreachable, match=r"no TLS .* within 0\.05 s"):
            await open_stream(address, Security(tls=TLS()), 0.05)


async def test_a_token_is_in_no_text(
    strict: str, known: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        client = Client([strict], **known)
        async with client:
            await client.echo(b"x")
        told = await reason(strict, tls=known["tls"], token="abracadabra")
    shown = [repr(client.security), repr(connect(strict, **known)), told, str(client.security)]
    shown += [str(vars(record)) for record in caplog.records]
    assert not [text for text in shown if TOKEN in text or "abracadabra" in text]


async def test_a_client_learns_what_its_token_gives_no_right_to(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    token = "a token that may look"
    file.write_text(token_line(token, Right.VIEW))
    with JobServer(port=0, token_file=file) as server:
        async with Client([server.address], token=token) as client:
            reason = "needs the right submit, and the token of this connection has: view"
            with pytest.raises(ServerError, match=f"SUBMIT_JOB_BG {reason}") as refused:
                await client.submit_background("f", b"x")
            assert refused.value.code == "FORBIDDEN"
            with pytest.raises(ServerError, match=f"gearflow:submit {reason}") as refused:
                await client.submit_background("f", b"x", options=SubmitOptions(delay=1))
            assert refused.value.code == "FORBIDDEN"
            with pytest.raises(ServerError, match="gearflow:pause needs the right operate") as refused:
                await operate.pause(client, "f")
            assert refused.value.code == "gearflow:forbidden"
            assert await operate.workers(client) == ()
        assert await Admin(server.address, token=token).status() == []
        with pytest.raises(ServerError, match="the command create needs the right operate"):
            await Admin(server.address, token=token).create_function("f")
