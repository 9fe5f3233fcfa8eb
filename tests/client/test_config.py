"""Server addresses as people write them."""

import re
from typing import Any

import pytest

from gearflow.client import ServerAddress, connect, default_servers, parse_servers


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost", "localhost", 4730),
        ("localhost:4731", "localhost", 4731),
        (" 10.0.0.7:1 ", "10.0.0.7", 1),
        ("[::1]", "::1", 4730),
        ("[::1]:65535", "::1", 65535),
        ("::1", "::1", 4730),
        ("fe80::1%eth0", "fe80::1%eth0", 4730),
    ],
)
def test_every_usual_form_is_understood(text: str, host: str, port: int) -> None:
    address = ServerAddress.parse(text)
    assert address == ServerAddress(host, port)
    assert ServerAddress.parse(str(address)) == address


@pytest.mark.parametrize(
    "entry",
    [
        "host:",
        "host:0",
        "host:65536",
        "host:x",
        "host:-1",
        "host:٤٧",
        ":4730",
        "[::1",
        "[::1]x",
        "a b",
        "a/b",
        "[]",
    ],
)
def test_what_is_no_address_is_named_with_the_forms_that_are(entry: str) -> None:
    with pytest.raises(ValueError, match="is no server address") as caught:
        ServerAddress.parse(entry)
    assert repr(entry) in str(caught.value)
    assert "host:port" in str(caught.value)


def test_a_list_keeps_its_order_and_names_each_server_once() -> None:
    expected = (ServerAddress("b"), ServerAddress("a", 1))
    assert parse_servers("b, a:1, b:4730,") == expected
    assert parse_servers(["b", ServerAddress("a", 1)]) == expected


@pytest.mark.parametrize("entry", [["a", "b"], None, 4730])
def test_what_is_no_text_is_told_how_addresses_are_given(entry: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(f"{entry!r} is no server address")) as caught:
        connect(entry)
    assert "connect('a:4730', 'b:4730')" in str(caught.value)


@pytest.mark.parametrize("nothing", ["", " , ", []])
def test_a_list_of_nothing_is_an_error(nothing: str | list[str]) -> None:
    with pytest.raises(ValueError, match="no server is named"):
        parse_servers(nothing)


def test_the_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEARMAN_SERVERS", raising=False)
    assert default_servers() == (ServerAddress("127.0.0.1", 4730),)
    monkeypatch.setenv("GEARMAN_SERVERS", "x:1,y")
    assert default_servers() == (ServerAddress("x", 1), ServerAddress("y"))


def test_a_fault_in_the_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEARMAN_SERVERS", "x:one")
    with pytest.raises(ValueError, match=r"GEARMAN_SERVERS: 'x:one' is no server address: 'one' is no port"):
        default_servers()
