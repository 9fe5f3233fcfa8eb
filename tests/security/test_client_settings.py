"""What a connection is secured with, as values: given, and from the environment."""

import re
from pathlib import Path
from typing import Any

import pytest

from gearflow.client import TLS, Client, SyncClient, configure, connect, current
from gearflow.security.tls import Security
from tests.authority import Authority

TOKEN = "open sesame"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TLS", "TLS_CA", "TLS_CERT", "TLS_KEY", "TLS_SERVER_NAME", "TOKEN", "TOKEN_FILE"):
        monkeypatch.delenv(f"GEARFLOW_{name}", raising=False)


def test_it_is_nothing_by_default() -> None:
    assert Security.of() == Security() == Client(["localhost"]).security


@pytest.mark.parametrize(
    ("environment", "tls"),
    [
        ({}, None),
        ({"TLS": "1"}, TLS()),
        ({"TLS": "yes", "TLS_SERVER_NAME": "queue"}, TLS(server_name="queue")),
        ({"TLS_CA": "ca.pem"}, TLS(ca="ca.pem")),
        (
            {"TLS_CERT": "127.0.0.1.pem", "TLS_KEY": "127.0.0.1.pem"},
            TLS(None, "127.0.0.1.pem", "127.0.0.1.pem"),
        ),
        ({"TLS": "0", "TLS_CA": "ca.pem"}, None),
        ({"TLS": "", "TLS_CA": ""}, None),
    ],
)
def test_the_environment_says_how_to_speak_tls(
    environment: dict[str, str], tls: TLS | None, monkeypatch: pytest.MonkeyPatch, authority: Authority
) -> None:
    monkeypatch.chdir(authority.server.parent)
    for name, value in environment.items():
        monkeypatch.setenv(f"GEARFLOW_{name}", value)
    assert Security.of().tls == tls


def test_the_environment_has_the_token_or_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("of the file\n")
    monkeypatch.setenv("GEARFLOW_TOKEN_FILE", str(tmp_path / "token"))
    assert Security.of().token == "of the file"
    monkeypatch.setenv("GEARFLOW_TOKEN", TOKEN)
    assert Security.of().token == TOKEN


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("TLS", "perhaps", "GEARFLOW_TLS: 'perhaps' is neither 1 nor 0"),
        ("TLS_CA", "no/ca.pem", "no/ca.pem, the file of a certificate, cannot be read: no such file"),
        ("TLS_KEY", "key.pem", "the key key.pem has no certificate beside it: give cert, too"),
        ("TOKEN_FILE", "no/token", "the token in no/token cannot be read: no such file or directory"),
        ("TOKEN", "two\nlines", "the token in the environment variable GEARFLOW_TOKEN has characters"),
        ("TOKEN", "x" * 1025, "GEARFLOW_TOKEN has 1025 bytes, over the limit of 1024"),
    ],
)
def test_what_makes_no_sense_in_it_is_told(
    name: str, value: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"GEARFLOW_{name}", value)
    with pytest.raises(ValueError, match=re.escape(told)) as refused:
        Client(["localhost"])
    assert "lines" not in str(refused.value)


def test_what_is_given_goes_before_it(monkeypatch: pytest.MonkeyPatch, authority: Authority) -> None:
    monkeypatch.setenv("GEARFLOW_TLS", "1")
    monkeypatch.setenv("GEARFLOW_TOKEN", TOKEN)
    assert Client(["localhost"]).security == Security(TLS(), TOKEN)
    assert Client(["localhost"], tls=False, token="").security == Security()
    mine = TLS(ca=authority.ca)
    assert SyncClient(["localhost"], tls=mine, token="x").security == Security(mine, "x")


def test_a_bad_file_or_token_is_told_when_a_client_is_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.pem"):
        Client(["localhost"], tls=TLS(ca=tmp_path / "none.pem"))
    with pytest.raises(ValueError, match="characters in it that cannot be printed"):
        Client(["localhost"], token="a\nb")


def test_what_is_no_tls_is_told_where_it_is_written() -> None:
    takes: list[Any] = [connect, configure, Client]
    for take in takes:
        with pytest.raises(
            TypeError, match=re.escape("tls is True, False or a gearflow.TLS(ca=...), and not 'yes'")
        ):
            take("localhost", tls="yes")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_token_with_the_line_break_of_its_file_is_told_so(end: str) -> None:
    with pytest.raises(ValueError, match=r"line break at its end, .*strip\(\)") as refused:
        Client(["localhost"], token=f"{TOKEN}{end}")
    assert TOKEN not in str(refused.value)


def test_what_is_configured_holds_and_connect_goes_before_it(authority: Authority) -> None:
    tls = TLS(ca=authority.ca)
    try:
        configure(tls=tls, token=TOKEN)
        assert current.target().client().security == Security(tls, TOKEN)
        with connect("127.0.0.1:1", tls=False) as client:
            assert client.security == Security(None, TOKEN)
            assert current.target().sync_client().security == Security(None, TOKEN)
    finally:
        configure()
    assert current.target().client().security == Security()


def test_a_token_is_not_shown() -> None:
    assert TOKEN not in repr(Security(TLS(), TOKEN)) + repr(current.Target((), token=TOKEN))
