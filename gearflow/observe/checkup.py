"""A closer look at servers for ``gearflow doctor``: a view, and more that only a check needs.

It changes nothing. What a server does not tell, or does not let this connection see, is left out.
"""

import ssl
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
from anyio.streams.tls import TLSAttribute

from gearflow.client.admin import admin_of
from gearflow.client.client import Client
from gearflow.client.config import ServerAddress
from gearflow.client.operate import jobs, policies
from gearflow.client.stream import AnyioStream
from gearflow.client.transport import Unreachable, open_stream
from gearflow.errors import GearflowError, RemoteProtocolError
from gearflow.observe.look import look
from gearflow.observe.view import ServerView
from gearflow.protocol.jobs import JobFilter, ListedJob
from gearflow.protocol.limits import PolicyRequest

SAMPLE: Final = 1000
"""Jobs that are looked at for each question, the ones that a server lists first."""

_PAGES: Final = 10
"""Pages in which they may come."""

_UNNAMED: Final = b"-"
"""The name of connections that have set none, as clients do."""


@dataclass(frozen=True)
class Checkup:
    """What was found out about one server. A frozen value."""

    view: ServerView
    """The server."""

    encrypted: bool = False
    """Whether the connection uses TLS."""

    certificate: float | None = None
    """When the certificate of the server expires (Unix time). None without TLS."""

    retried: frozenset[str] = frozenset()
    """Functions whose policy has retries."""

    idle: tuple[str, ...] = ()
    """The names of workers that are connected and offer no function."""

    results: Mapping[str, Sequence[int]] = field(default_factory=dict[str, Sequence[int]])
    """By function, the sizes of kept results, of up to 1,000 of them in all."""

    payloads: Mapping[str, Sequence[int]] = field(default_factory=dict[str, Sequence[int]])
    """By function, the sizes of the payloads of live jobs, the oldest job first, of up to 1,000 in all."""

    malformed: tuple[str, ...] = ()
    """About answers to these questions that no server should give."""

    silent: bool = False
    """Whether a question had no answer in time, although the server answered those before."""


async def examine(client: Client, servers: Sequence[ServerAddress | str], timeout: float) -> list[Checkup]:
    """Examine servers, all at once.

    Args:
        client: The client that makes the calls.
        servers: The servers.
        timeout: Seconds that a server has for each part of the answers.
    """
    found: list[Checkup | None] = [None] * len(servers)

    async def examine_one(index: int) -> None:
        found[index] = await _examine(client, servers[index], timeout)

    async with anyio.create_task_group() as tasks:
        for index in range(len(servers)):
            tasks.start_soon(examine_one, index)
    return [checkup for checkup in found if checkup is not None]


async def _examine(client: Client, server: ServerAddress | str, timeout: float) -> Checkup:
    view = await look(client, server, timeout=timeout)
    if not view.answers:
        return Checkup(view)
    address = ServerAddress.parse(view.address)
    found: dict[str, Any] = {}
    malformed: list[str] = []
    silent: list[str] = []

    async def ask(name: str, question: Callable[[], Awaitable[Any]]) -> None:
        try:
            with anyio.fail_after(timeout):
                found[name] = await question()
        except TimeoutError:
            silent.append(name)
        except RemoteProtocolError as error:
            malformed.append(str(error))
        except GearflowError:
            pass  # it refuses, or is gone

    questions: dict[str, Callable[[], Awaitable[Any]]] = {"idle": lambda: _idle(client, address, view)}
    if client.security.tls is not None:
        questions["certificate"] = lambda: _certificate(client, address, timeout)
    if view.kind == "gearflow":
        questions["retried"] = lambda: _retried(client, address)
        questions["results"] = lambda: _sizes(client, address, JobFilter(states=("succeeded",)))
        questions["payloads"] = lambda: _sizes(client, address, JobFilter(states=("waiting", "running")))
    async with anyio.create_task_group() as tasks:
        for name, question in questions.items():
            tasks.start_soon(ask, name, question)
    return Checkup(
        view,
        encrypted=client.security.tls is not None,
        malformed=tuple(malformed),
        silent=bool(silent),
        **found,
    )


async def _certificate(client: Client, address: ServerAddress, timeout: float) -> float | None:
    """When the certificate of a server expires. It takes a connection of its own."""
    try:
        stream = await open_stream(address, client.security, timeout)
    except Unreachable:
        return None
    async with stream:
        assert isinstance(stream, AnyioStream)  # as all connections with TLS
        shown: Any = stream.raw.extra(TLSAttribute.peer_certificate)
        return float(ssl.cert_time_to_seconds(shown["notAfter"]))


async def _retried(client: Client, address: ServerAddress) -> frozenset[str]:
    found = await policies(client, PolicyRequest(action="list"), server=address)
    return frozenset(each.function for each in found if each.policy.retries is not None)


async def _idle(client: Client, address: ServerAddress, view: ServerView) -> tuple[str, ...]:
    """Connections that have set a name, as workers do, and offer nothing."""
    rows = await admin_of(client, address).workers()
    quiet = {worker.client_id for worker in view.workers if worker.quiet}
    names = (row.client_id.decode(errors="replace") for row in rows if not row.functions)
    return tuple(name for name in names if name.encode() not in (b"", _UNNAMED) and name not in quiet)


async def _sizes(client: Client, address: ServerAddress, wanted: JobFilter) -> dict[str, list[int]]:
    """By function, the sizes of jobs in the order of their submission."""
    listed: list[ListedJob] = []
    after = ""
    for _ in range(_PAGES):
        page = await jobs(client, wanted, after=after, limit=SAMPLE, server=address)
        listed += page.jobs
        after = page.next
        if not after or len(listed) >= SAMPLE:
            break
    found: defaultdict[str, list[int]] = defaultdict(list)
    for each in sorted(listed[:SAMPLE], key=_submitted):
        found[each.job.function].append(each.job.size)
    return dict(found)


def _submitted(listed: ListedJob) -> float:
    return listed.job.submitted or 0.0
