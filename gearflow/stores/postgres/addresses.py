"""The addresses of a database's servers, so that libpq need not look them up, for which it would wait.

Hosts come from the connection string, from a service in a service file, or from the environment, in this
order, as libpq has it.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def with_service(params: dict[str, str]) -> dict[str, str]:
    """The parameters, with those of the service that they or the environment name.

    If no file has it, libpq says so.
    """
    name = params.get("service") or os.environ.get("PGSERVICE", "")
    for path in _service_files() if name else ():
        with suppress(OSError, UnicodeDecodeError):
            found = _section(path.read_text(), name)
            if found is not None:
                return found | {key: value for key, value in params.items() if key != "service"}
    return params


def _service_files() -> Iterator[Path]:
    named = os.environ.get("PGSERVICEFILE")
    with suppress(RuntimeError):  # there is no home
        yield Path(named) if named else Path.home() / ".pg_service.conf"
    if "PGSYSCONFDIR" in os.environ:
        yield Path(os.environ["PGSYSCONFDIR"]) / "pg_service.conf"


def _section(text: str, name: str) -> dict[str, str] | None:
    found: dict[str, str] | None = None
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            if found is not None:
                break
            if line == f"[{name}]":
                found = {}
        elif found is not None and "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key.strip(), value.strip())
    return found


async def find_addresses(params: dict[str, str], timeout: float, failures: list[str]) -> list[dict[str, str]]:
    """The parameters for each address of each host.

    ``failures`` gets a line for each host that has none.
    """
    hosts = _listed(params, "host", "PGHOST")
    addresses = _listed(params, "hostaddr", "PGHOSTADDR")
    ports = _listed(params, "port", "PGPORT")
    found: list[dict[str, str]] = []
    for index in range(max(len(hosts), len(addresses), 1)):
        given = {
            "host": hosts[index] if index < len(hosts) else "",
            "hostaddr": addresses[index] if index < len(addresses) else "",
            "port": ports[index if len(ports) > 1 else 0] if index < len(ports) or len(ports) == 1 else "",
        }
        one = {key: value for key, value in params.items() if key not in given}
        one |= {key: value for key, value in given.items() if value}
        host = one.get("host", "")
        if not host or host.startswith(("/", "@")) or "hostaddr" in one:
            found.append(one)
            continue
        try:
            async with asyncio.timeout(timeout):
                entries = await asyncio.get_running_loop().getaddrinfo(
                    host, None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
                )
        except (OSError, TimeoutError) as error:
            failures.append(f"{host}: {str(error) or 'its address was not found in time'}")
            continue
        found += [one | {"hostaddr": str(entry[4][0])} for entry in entries]
    return found


def _listed(params: dict[str, str], key: str, variable: str) -> list[str]:
    text = params.get(key) or os.environ.get(variable, "")
    return text.split(",") if text else []


def place_of(params: dict[str, str]) -> str:
    """An address in words."""
    host = params.get("hostaddr") or params.get("host") or "the local socket"
    return f"{host}:{params.get('port', '5432')}"
