"""Look at servers: ask each what it tells, within a time limit of its own."""

import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar, get_args

import anyio

from gearflow.client.admin import Admin, admin_of
from gearflow.client.client import Client
from gearflow.client.config import ServerAddress
from gearflow.client.operate import group_info, limits, metrics, server_info, workers
from gearflow.client.schedules import schedules_on
from gearflow.errors import (
    ConnectionLost,
    GearflowError,
    NoServer,
    RemoteProtocolError,
    ServerError,
    UnsupportedByServer,
)
from gearflow.observe.view import ServerView, ViewPart
from gearflow.protocol.admin import FunctionPriorities, FunctionStatus
from gearflow.protocol.metrics import METRICS, FunctionMetrics, Metrics, MetricsRequest
from gearflow.protocol.schedules import ScheduleInfo
from gearflow.protocol.server_calls import ServerInfo
from gearflow.protocol.workers import WorkerInfo

T = TypeVar("T")

ALL_PARTS: Final[frozenset[ViewPart]] = frozenset(get_args(ViewPart))
"""Everything that a view can have."""

LOOK_TIMEOUT: Final = 5.0
"""Seconds that a server has for all its answers."""

PATIENCE: Final = 2.0
"""The same while somebody waits for a page or a screen. A server that works answers in far less time, and a
page that takes longer looks broken."""

_SLOWER: Final = 4
"""A server whose looks usually take long, because of its way or its size, has so many times as long."""

HANG_TIMEOUT: Final = 0.3
"""The same for a server that has just hung, if it is looked at again and again."""

HANG_AGAIN: Final = 30.0
"""Seconds after which such a server has the whole time again."""

_JOBS: Final = 100
"""Jobs of each worker that are asked for."""


class Patience:
    """The time for which a page waits for servers. Owns state.

    All questions of the page share it, so a page waits once for servers that hang, and not for each question.
    It begins with the first question.

    Args:
        seconds: The time in seconds. When it is over, a server still has ``HANG_TIMEOUT`` for an answer.
    """

    def __init__(self, seconds: float = PATIENCE) -> None:
        self._seconds = seconds
        self._end: float | None = None

    async def ask(self, server: ServerAddress | str, question: Callable[[], Awaitable[T]]) -> T:
        """Return the answer to a question.

        Args:
            server: The server that is asked.
            question: Asks it.

        Raises:
            ConnectionLost: The answer did not come in time.
        """
        now = time.monotonic()
        if self._end is None:
            self._end = now + self._seconds
        with anyio.move_on_after(max(self._end - now, HANG_TIMEOUT)):
            return await question()
        raise ConnectionLost(f"{server} gave no answer within {self._seconds:g} s")


async def look_all(
    client: Client,
    servers: Sequence[ServerAddress | str],
    *,
    parts: Collection[ViewPart] = ALL_PARTS,
    functions: Sequence[str] | None = None,
    since: float | None = None,
    timeout: float = LOOK_TIMEOUT,
) -> list[ServerView]:
    """Look at servers, all at once. A server that is away or slow does not hold up the others for longer than
    ``timeout``.

    Args:
        client: The client that makes the calls. It keeps a connection to each server.
        servers: The servers.
        parts: The parts to ask for, as for ``look``.
        functions: The functions whose counts are asked for, as for ``look``.
        since: The time from which the history is asked for. None means no history.
        timeout: Seconds that each server has for all its answers.
    """
    views: list[ServerView | None] = [None] * len(servers)

    async def look_at(index: int) -> None:
        views[index] = await look(
            client, servers[index], parts=parts, functions=functions, since=since, timeout=timeout
        )

    async with anyio.create_task_group() as looks:
        for index in range(len(servers)):
            looks.start_soon(look_at, index)
    return [view for view in views if view is not None]


class ServerWatch:
    """Looks at the same servers again and again. Owns state.

    A server that hangs would hold up each look for the whole time limit, and with it what is shown of the
    others. So from then on it has a short time, and the whole time only now and then, in case it is slow.

    Args:
        servers: The servers.
        timeout: Seconds that a server has for all its answers at most, and until it has answered once.
        patience: Seconds that one that usually answers quickly has.
        short: Seconds that one that hangs has.
    """

    def __init__(
        self,
        servers: Sequence[ServerAddress | str],
        timeout: float = LOOK_TIMEOUT,
        patience: float = PATIENCE,
        short: float = HANG_TIMEOUT,
    ) -> None:
        self._servers = [str(server) for server in servers]
        self._timeout, self._patience, self._short = timeout, patience, short
        self._usual: dict[str, float] = {}  # seconds that the last look took that was answered
        self._hanging: dict[str, tuple[float, ServerView]] = {}
        self._away_since: dict[str, float] = {}
        self.cost = 0.0
        """Seconds that the last look took the slowest server that answered. To wait for one that does not
        answer costs no server anything."""

    async def look(self, client: Client, parts: Collection[ViewPart] = ALL_PARTS) -> list[ServerView]:
        """Look at all of them, as ``look_all`` does."""
        views: dict[str, ServerView] = {}
        times: list[float] = []

        async def look_at(server: str) -> None:
            begin = time.monotonic()
            view = await self._look_at(client, server, parts, begin)
            if view.answers:
                self._usual[server] = time.monotonic() - begin
                times.append(self._usual[server])
                self._away_since.pop(server, None)
            else:
                view = replace(view, away_since=self._away_since.setdefault(server, view.at))
            views[server] = view

        async with anyio.create_task_group() as looks:
            for server in dict.fromkeys(self._servers):
                looks.start_soon(look_at, server)
        self.cost = max(times, default=self.cost)
        return [views[server] for server in self._servers]

    async def _look_at(
        self, client: Client, server: str, parts: Collection[ViewPart], begin: float
    ) -> ServerView:
        since, before = self._hanging.get(server, (0.0, None))
        is_short = before is not None and begin - since < HANG_AGAIN
        timeout = self._short if is_short else self._limit(server)
        view = await look(client, server, parts=parts, timeout=timeout)
        if view.answers or time.monotonic() - begin < timeout * 0.9:
            self._hanging.pop(server, None)
        elif is_short and before is not None:
            return replace(before, at=view.at)
        else:
            self._hanging[server] = time.monotonic(), view
        return view

    def _limit(self, server: str) -> float:
        usual = self._usual.get(server, self._timeout)
        return min(self._timeout, max(self._patience, _SLOWER * usual))


async def look(
    client: Client,
    server: ServerAddress | str,
    *,
    parts: Collection[ViewPart] = ALL_PARTS,
    functions: Sequence[str] | None = None,
    since: float | None = None,
    timeout: float = LOOK_TIMEOUT,
) -> ServerView:
    """Look at one server. A server that does not answer has a view, too, with the reason in ``error``.

    Args:
        client: The client that makes the calls. It keeps a connection to the server.
        server: The server, which need not be one of those that the client submits to.
        parts: The parts to ask for. Without ``metrics``, the functions come from the text protocol.
        functions: The functions whose counts are asked for, also in the history, where an empty name is the
            sum of all. None means all functions.
        since: The time from which the history is asked for. None means no history.
        timeout: Seconds that the server has for all its answers.

    Raises:
        ValueError: The text is not an address.
    """
    address = ServerAddress.parse(server) if isinstance(server, str) else server
    view = ServerView(str(address), time.time(), error=f"no answer within {timeout:g} s")
    request = MetricsRequest(functions=None if functions is None else tuple(functions), since=since)
    with anyio.move_on_after(timeout):
        try:
            features = await client.features(address)
            asked = _Look(client, address, frozenset(parts), request, timeout)
            view = await (asked.gearflow(view) if features.gearflow else asked.foreign(view))
        except NoServer as error:
            view = replace(view, error=next(iter(error.reasons.values()), str(error)))
        except RemoteProtocolError as error:
            view = replace(view, error=str(error), malformed=(str(error),))
        except (GearflowError, TimeoutError) as error:
            view = replace(view, error=str(error))
    return view


@dataclass(frozen=True)
class _Look:
    """The questions to one server."""

    client: Client
    address: ServerAddress
    parts: frozenset[ViewPart]
    request: MetricsRequest
    timeout: float

    async def gearflow(self, view: ServerView) -> ServerView:
        """The view of gearflow's own server."""
        begin = time.perf_counter()
        info = await server_info(self.client, server=self.address)
        round_trip = time.perf_counter() - begin
        questions: dict[ViewPart, Callable[[], Awaitable[Any]]] = {
            "workers": lambda: workers(self.client, jobs=_JOBS, server=self.address),
            "limits": lambda: limits(self.client, server=self.address),
            "schedules": self._schedules,
        }
        if METRICS.decode() in info.functions:
            questions["metrics"] = self._metrics
        if info.group:
            questions["group"] = lambda: group_info(self.client, server=self.address)
        asked: dict[str, Callable[[], Awaitable[Any]]] = {
            part: question for part, question in questions.items() if part in self.parts
        }
        if "metrics" not in asked:
            asked["functions"] = lambda: self._functions(info)
        answers, faults, malformed = await _each(asked)
        counts, clock = answers.pop("metrics", (None, None))
        return replace(
            view,
            kind="gearflow",
            version=info.version,
            error="",
            round_trip=round_trip,
            clock=clock,
            info=info,
            metrics=counts,
            functions=answers.pop("functions", ()) if counts is None else counts.functions,
            faults={part: faults[part] for part in questions if part in faults},
            malformed=malformed,
            **answers,
        )

    async def _metrics(self) -> tuple[Metrics, float]:
        begin = time.time()
        found = await metrics(
            self.client, self.request.functions, since=self.request.since, server=self.address
        )
        middle = (begin + time.time()) / 2
        return found, found.time - middle

    async def _schedules(self) -> tuple[ScheduleInfo, ...]:
        return tuple([info async for info in schedules_on(self.client, self.address)])

    async def foreign(self, view: ServerView) -> ServerView:
        """The view of another server, from the text protocol."""
        admin = self._admin()
        begin = time.perf_counter()
        version = await admin.version()
        round_trip = time.perf_counter() - begin
        asked: dict[str, Callable[[], Awaitable[Any]]] = {"functions": self._functions}
        if "workers" in self.parts:
            asked["workers"] = self._workers
        answers, _, malformed = await _each(asked)
        return replace(
            view,
            kind="gearmand" if version[:1].isdigit() else "other",
            version=version,
            error="",
            round_trip=round_trip,
            malformed=malformed,
            **answers,
        )

    async def _workers(self) -> tuple[WorkerInfo, ...]:
        return tuple(
            WorkerInfo(
                client_id=_text(row.client_id),
                address=row.address,
                functions=tuple(map(_text, row.functions)),
            )
            for row in await self._admin().workers()
            if row.functions
        )

    async def _functions(self, info: ServerInfo | None = None) -> tuple[FunctionMetrics, ...]:
        """The functions by the text protocol. A server may not know the table of priorities."""
        admin = self._admin()
        answers, _, _ = await _each({"status": admin.status, "priorities": admin.priority_status})
        priorities: dict[bytes, FunctionPriorities] = {row.name: row for row in answers.get("priorities", ())}
        paused = frozenset(info.paused if info is not None else ())
        rows: list[FunctionStatus] = answers.get("status", [])
        functions = [_function(row, priorities.get(row.name), paused) for row in rows]
        wanted = self.request.functions
        return tuple(
            sorted(
                (each for each in functions if wanted is None or each.function in wanted),
                key=lambda function: function.function,
            )
        )

    def _admin(self) -> Admin:
        return admin_of(self.client, self.address, timeout=self.timeout)


def _function(
    row: FunctionStatus, priorities: FunctionPriorities | None, paused: frozenset[str]
) -> FunctionMetrics:
    name = _text(row.name)
    by_priority = None if priorities is None else (priorities.high, priorities.normal, priorities.low)
    return FunctionMetrics(
        function=name,
        waiting=by_priority or (0, max(row.total - row.running, 0), 0),
        running=row.running,
        workers=row.workers,
        paused=name in paused,
    )


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


async def _each(
    questions: dict[str, Callable[[], Awaitable[Any]]],
) -> tuple[dict[str, Any], dict[str, str], tuple[str, ...]]:
    """The answers to questions that are asked at once, the reasons why others were refused, and those of the
    reasons that are about answers that cannot be read.

    Raises:
        GearflowError, TimeoutError: The server did not answer one of them.
    """
    answers: dict[str, Any] = {}
    faults: dict[str, str] = {}
    malformed: list[str] = []
    failures: list[Exception] = []

    async def ask(name: str, question: Callable[[], Awaitable[Any]]) -> None:
        try:
            answers[name] = await question()
        except (ServerError, UnsupportedByServer, RemoteProtocolError) as error:
            faults[name] = str(error)
            if isinstance(error, RemoteProtocolError):
                malformed.append(str(error))
        except (GearflowError, TimeoutError) as error:
            failures.append(error)

    async with anyio.create_task_group() as asked:
        for name, question in questions.items():
            asked.start_soon(ask, name, question)
    if failures:
        raise failures[0]
    return answers, faults, tuple(malformed)
