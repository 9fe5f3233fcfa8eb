"""The servers that share a database, as the shell knows them."""

from __future__ import annotations

from typing import NamedTuple


class ServerGroup(NamedTuple):
    """The group of a server. The shell replaces it when it changes.

    Attributes:
        name: The same at all servers of the group, and at no other.
        server: Distinguishes this server from all others. It is a new one at each start.
        servers: The addresses of all live servers, as clients and workers reach them.
        address: That of this server among them.
    """

    name: str
    server: str
    servers: tuple[str, ...]
    address: str = ""
