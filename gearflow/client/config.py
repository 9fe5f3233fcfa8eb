"""Where a server listens: text such as ``localhost``, ``10.0.0.7:4731``, ``[::1]:4730`` <-> host and port."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self

from gearflow.protocol.constants import DEFAULT_PORT

ENVIRONMENT: Final = "GEARMAN_SERVERS"
DEFAULT_HOST: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """The host and the TCP port of a server.

    Attributes:
        host: A name or an address, IPv6 without brackets.
        port: The TCP port.
    """

    host: str
    port: int = DEFAULT_PORT

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse an address in the form ``host``, ``host:port``, ``[ipv6]``, ``[ipv6]:port`` or a bare IPv6
        address.

        Raises:
            ValueError: The text has none of these forms. The message shows the text and the forms.
        """
        entry = text.strip()
        if entry.startswith("["):
            host, bracket, rest = entry[1:].partition("]")
            if not bracket:
                raise _bad(entry, "the bracket is not closed")
            if rest and not rest.startswith(":"):
                raise _bad(entry, f"{rest!r} stands behind the bracket")
            port = rest[1:] if rest else None
        elif entry.count(":") > 1:  # IPv6 without brackets is ambiguous, so it has no port
            host, port = entry, None
        else:
            host, colon, port_text = entry.partition(":")
            port = port_text if colon else None
        if not host or any(character.isspace() or character in "/,[]" for character in host):
            raise _bad(entry, "there is no host in it" if not host else f"{host!r} is no host")
        return cls(host, DEFAULT_PORT if port is None else _port(port, entry))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_servers(servers: str | Iterable[str | ServerAddress]) -> tuple[ServerAddress, ...]:
    """Return the addresses in one or several texts, in order, each once. A text may have several, separated
    by commas.

    Args:
        servers: The texts.

    Raises:
        ValueError: An entry is not an address, or there is none. The message names the entry and the remedy.
        TypeError: An entry is not a text.
    """
    entries = servers.split(",") if isinstance(servers, str) else servers
    found: dict[ServerAddress, None] = {}
    for entry in entries:
        if isinstance(entry, ServerAddress):
            found[entry] = None
        elif not isinstance(entry, str):  # pyright: ignore[reportUnnecessaryIsInstance]  (not all callers are checked)
            raise TypeError(
                f"{entry!r} is no server address: give each as a text of its own, "
                "as in connect('a:4730', 'b:4730') or configure(['a:4730', 'b:4730'])"
            )
        elif entry.strip():
            found[ServerAddress.parse(entry)] = None
    if not found:
        raise ValueError(
            f"no server is named in {servers!r}; give host:port, such as {DEFAULT_HOST}:{DEFAULT_PORT}"
        )
    return tuple(found)


def default_servers() -> tuple[ServerAddress, ...]:
    """Return the servers in the environment variable GEARMAN_SERVERS (comma-separated), else 127.0.0.1:4730.

    Raises:
        ValueError: The variable is not a list of addresses.
    """
    return _from_environment(os.environ.get(ENVIRONMENT, ""))


@lru_cache(maxsize=8)
def _from_environment(value: str) -> tuple[ServerAddress, ...]:
    if not value.strip():
        return (ServerAddress(DEFAULT_HOST),)
    try:
        return parse_servers(value)
    except ValueError as error:
        raise ValueError(f"the environment variable {ENVIRONMENT}: {error}") from None


def _port(text: str, entry: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise _bad(entry, f"{text!r} is no port (1 to 65535)")
    return int(text)


def _bad(entry: str, fault: str) -> ValueError:
    return ValueError(
        f"{entry!r} is no server address: {fault}; write host, host:port or [ipv6]:port "
        f"(port {DEFAULT_PORT} if left out)"
    )
