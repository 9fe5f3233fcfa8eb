"""The servers of a group, which share a database: which there are, as one of them says.

A server of a group says so when a client or a worker connects (``Identification``). Only such a server is
asked for the others, by ``gearflow:info``, now and then. So one address is enough to begin with, and it may
be that of a load balancer. Where it leads to shows in the name that each run of a server has.

The addresses that are given are always kept. Others come and go with the group.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, cast

import anyio

from gearflow.client.config import ServerAddress
from gearflow.client.connection import Connection
from gearflow.client.job import JobFailed
from gearflow.client.requests import NotSent, ReservedCall
from gearflow.errors import GearflowError
from gearflow.protocol.codec import encode
from gearflow.protocol.packets import SubmitJob
from gearflow.runtime.environment import flag

INFO: Final = "gearflow:info"

ASK: Final = encode(SubmitJob(INFO.encode(), b"", b""))
"""Asks a server about itself. The answer is for ``read_members``."""

MOST_SERVERS: Final = 1000
"""Addresses that are taken from an answer. More are no group, but a fault."""

_DIGITS: Final = 13
"""Those of 2^40. No server alone gives as many numbers."""

_REMEMBERED: Final = 10_000
"""Addresses that are remembered of groups. All are forgotten if there are more."""


def default_discover() -> bool:
    """Whether the environment variable GEARFLOW_DISCOVER allows it. It does unless it says no.

    Raises:
        ValueError: The variable holds something that is neither yes nor no.
    """
    return flag("GEARFLOW_DISCOVER") is not False


def is_of_group(handle: str) -> bool:
    """Whether the handle of a background job is from a server of a group: it has a number from 2^40 on."""
    return handle[-_DIGITS:].isdigit()


class Members(NamedTuple):
    """What a server of a group says of it.

    Attributes:
        group: The name of the group.
        address: How the group calls this server; None if it does not say.
        servers: The live servers.
    """

    group: str
    address: ServerAddress | None
    servers: tuple[ServerAddress, ...]


def read_members(answer: bytes) -> Members | None:
    """The answer of ``gearflow:info``. None if the server is in no group, or says nothing that makes sense.

    Without pydantic, which takes its time to be imported.
    """
    try:
        found: object = json.loads(answer)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    info = cast("dict[str, Any]", found)
    group, servers = info.get("group"), info.get("servers")
    if not (isinstance(group, str) and group and isinstance(servers, list)):
        return None
    texts = cast("list[object]", servers)[:MOST_SERVERS]
    addresses = tuple(dict.fromkeys(address for text in texts if (address := _address(text)) is not None))
    return Members(group, _address(info.get("address")), addresses) if addresses else None


async def members_of(connection: Connection, limit: float) -> Members | None:
    """Ask a server for its group. None if there is no answer in ``limit`` seconds, or none of use."""
    call = ReservedCall(INFO, connection.new_signal())
    try:
        with anyio.move_on_after(limit):
            await connection.ask(call, ASK)
            assert call.job is not None  # it was accepted
            return read_members(await call.job.result())
    except (NotSent, GearflowError, JobFailed):
        pass
    finally:
        if call.job is not None:
            call.job.cancel()  # does nothing when it has ended
    return None


class Membership:
    """The servers that groups have named, beside those that were given. Owns state. Pure."""

    def __init__(self, given: Iterable[ServerAddress]) -> None:
        self._given: Final = frozenset(given)
        self._named: dict[str, tuple[ServerAddress, ...]] = {}  # by group: the last answer
        self._groups: dict[ServerAddress, str] = {}  # of all addresses that were ever named

    def learn(self, members: Members) -> None:
        """A group has named its servers. They are in no other group any more, such as one of that name."""
        for group, servers in list(self._named.items()):
            self._named[group] = tuple(address for address in servers if address not in members.servers)
        self._named[members.group] = members.servers
        if len(self._groups) > _REMEMBERED:
            self._groups.clear()
        self._groups.update(dict.fromkeys(members.servers, members.group))

    @property
    def named(self) -> Mapping[ServerAddress, str]:
        """The live servers of all groups, with their groups."""
        return {address: group for group, servers in self._named.items() for address in servers}

    @property
    def found(self) -> tuple[ServerAddress, ...]:
        """Those of them that were not given, in the order in which their groups name them."""
        return tuple(address for address in self.named if address not in self._given)

    def group_of(self, address: ServerAddress) -> str:
        """The group of an address that a group has named, now or before. Empty if none has."""
        return self._groups.get(address, "")


def _address(text: object) -> ServerAddress | None:
    if not isinstance(text, str) or not text:
        return None
    try:
        return ServerAddress.parse(text)
    except ValueError:
        return None
