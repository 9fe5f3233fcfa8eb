"""Which of several servers gets a submission, where they share the load. Pure.

Rendezvous hashing: for a key every server has a weight, a hash of both, and the heaviest has the key. Every
process that names the servers alike finds the same order, so equal keys meet on one server. When a server
is away, each of its keys goes to the next in that key's own order, and no other key moves.
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import TypeVar

from gearflow.client.environment import flag

T = TypeVar("T")


def ranked(servers: Iterable[T], key: bytes) -> list[T]:
    """The servers in the order in which they are to be tried for a key; known by their texts."""
    return sorted(servers, key=lambda server: _weight(str(server), key), reverse=True)


def default_spread() -> bool:
    """Whether the environment variable GEARFLOW_SPREAD asks for it.

    Raises:
        ValueError: The variable holds something that is neither yes nor no.
    """
    return bool(flag("GEARFLOW_SPREAD"))


def _weight(server: str, key: bytes) -> bytes:
    # Not hash(): it differs from process to process.
    return blake2b(server.encode() + b"\0" + key, digest_size=8).digest()
