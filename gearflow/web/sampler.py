"""Looks at the servers for all visitors together, and only while there are some.

Nothing runs in the background but one client, which closes after a minute without visitors. A sample that is
older than ``interval`` is taken again when somebody asks. The interval grows if the servers are so large that
the looks would cost them more than a small share of their time.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

import anyio

from gearflow.client.client import Client
from gearflow.client.config import ServerAddress, default_servers, parse_servers
from gearflow.client.operate import metrics
from gearflow.errors import GearflowError
from gearflow.observe import Activity, FleetView, Patience, ServerView, ServerWatch, ViewPart
from gearflow.protocol.metrics import ALL, FunctionMinute
from gearflow.security.tls import TLS
from gearflow.web.history import OwnHistory, merged, of_function
from gearflow.web.searches import Search, Searches

IDLE: Final = 60.0
"""Seconds without visitors after which the connections are closed."""

SHARE: Final = 0.05
"""The share of the time that looks may take."""

WINDOW: Final = 60.0
"""Rates are those of about this time, in seconds."""

WANTED: Final = 10.0
"""Seconds for which the servers are asked for a part after somebody has looked at it."""

NOW: Final = 2.0
"""Seconds for which an answer is one of now."""

_ALWAYS: Final[tuple[ViewPart, ...]] = ("metrics", "limits")

_HISTORY_AGE: Final = 10.0
"""Seconds after which a history is asked for again."""

_HISTORIES: Final = 64
"""Histories that are remembered for that time."""

T = TypeVar("T")
S = TypeVar("S", bound=Search)

Minutes: TypeAlias = list[tuple[float, FunctionMinute]]
"""The start of each minute, and what happened in it."""


@dataclass(frozen=True)
class Sample:
    """The servers as they were at one moment. A frozen value."""

    fleet: FleetView
    at: float
    """When they were asked (Unix time)."""

    taken: float
    """The same by the monotonic clock."""

    rates: Mapping[str, Activity]
    """What happened by function, per second, since the sample that was there about a minute ago. Empty at
    first."""

    seconds: float = 0
    """The time to which the rates refer. 0 for the first sample."""

    parts: frozenset[ViewPart] = frozenset()
    """What the servers were asked for."""

    @property
    def servers(self) -> tuple[ServerView, ...]:
        """The servers that answered, each of them once, and then those that did not answer."""
        return (*self.fleet.distinct, *self.fleet.away)

    def stores_at(self, server: str | None) -> tuple[ServerView, ...]:
        """The servers of ``fleet.stores``, or only the one with that address."""
        return tuple(view for view in self.fleet.stores if server in (None, view.address))


class Sampler:
    """Takes samples of servers.

    Args:
        servers: The servers. None means those in GEARMAN_SERVERS.
        tls: How to use TLS. See ``Client``.
        token: The token of the servers. See ``Client``.
        interval: Seconds between two samples.

    Raises:
        ValueError: An entry is not an address, or a TLS setting cannot be used.
    """

    def __init__(
        self,
        servers: str | Iterable[str | ServerAddress] | None = None,
        *,
        tls: TLS | bool | None = None,
        token: str | None = None,
        interval: float = 2.0,
    ) -> None:
        self._given = default_servers() if servers is None else parse_servers(servers)
        self._link = _Link(self._given, tls, token)
        self._interval = interval
        self._samples: deque[Sample] = deque(maxlen=64)
        self._wanted: dict[ViewPart, float] = {}
        self._lock = anyio.Lock()
        self._watch = ServerWatch(self._given)
        self._own = OwnHistory()
        self._searches = Searches()
        self._histories: OrderedDict[tuple[str, int], tuple[float, Minutes]] = OrderedDict()

    @property
    def addresses(self) -> Sequence[str]:
        """The addresses of the servers, as texts."""
        return [str(address) for address in self._given]

    @property
    def last(self) -> Sample | None:
        """The last sample. None if there is none yet."""
        return self._samples[-1] if self._samples else None

    @property
    def may_operate(self) -> bool:
        """Whether the token of the dashboard lets it act on any server, as far as is known."""
        if self.last is None:
            return True
        infos = [view.info for view in self.last.fleet.distinct if view.info is not None]
        return not infos or any(not info.rights or "operate" in info.rights for info in infos)

    async def client(self) -> Client:
        """The client of all servers."""
        return await self._link.client()

    async def sample(self, *parts: ViewPart) -> Sample:
        """The servers as they were a few seconds ago.

        Args:
            parts: What the views must have. They always have metrics and limits.
        """
        now = time.monotonic()
        self._wanted.update(dict.fromkeys((*_ALWAYS, *parts), now))
        if not self._is_fresh(parts):
            async with self._lock:  # those who come meanwhile get the sample of the first one
                if not self._is_fresh(parts):
                    self._samples.append(await self._take())
        return self._samples[-1]

    async def look_again(self) -> None:
        """Take the next sample at once, because something was done."""
        self._histories.clear()
        self._searches.clear()
        async with self._lock:
            self._samples.append(await self._take())

    async def minutes(self, span: float, function: str = ALL) -> Minutes:
        """The last minutes of a function, or of all of them, over all servers.

        Args:
            span: How long ago the first of them began, in seconds.
            function: The function.
        """
        asked = time.monotonic()  # a clock may be set back
        key = function, int(span)
        if (known := self._histories.get(key)) is None or asked - known[0] > _HISTORY_AGE:
            self._histories[key] = asked, await self._ask_history(time.time() - span, function)
            self._histories.move_to_end(key)
            while len(self._histories) > _HISTORIES:
                self._histories.popitem(last=False)
        return self._histories[key][1]

    async def search(self, key: Hashable, begin: Callable[[], S]) -> S:
        """Take a search a step further, which all visitors share. See ``Searches``.

        Args:
            key: What is sought, and how.
            begin: Makes the search.
        """
        return await self._searches.of(key, begin, SHARE)

    async def answer(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> T | None:
        """The answer to a question of now if it comes soon, else None. Then a later call has it.

        Args:
            key: What is asked.
            ask: Asks it.
        """
        return await self._searches.answer(key, ask, NOW)

    async def close(self) -> None:
        """Close the connections."""
        await self._link.close()

    def _is_fresh(self, parts: Sequence[ViewPart]) -> bool:
        if not self._samples:
            return False
        last = self._samples[-1]
        age = max(self._interval, min(self._watch.cost, 1.0) / SHARE)
        return time.monotonic() - last.taken < age and last.parts.issuperset(parts)

    async def _take(self) -> Sample:
        client = await self._link.client()
        begin, at = time.monotonic(), time.time()
        parts: frozenset[ViewPart] = frozenset(
            part for part, wanted in self._wanted.items() if begin - wanted < WANTED
        )
        views = await self._watch.look(client, parts)
        fleet = FleetView(tuple(views))
        before = self._before(begin)
        rates = fleet.activity_since(before.fleet) if before is not None else {}
        self._own.add(fleet, at)
        return Sample(fleet, at, begin, rates, begin - before.taken if before is not None else 0.0, parts)

    async def _ask_history(self, since: float, function: str) -> Minutes:
        fleet = (await self.sample()).fleet
        client = await self.client()
        found: list[Minutes] = []
        patience = Patience()

        async def ask(view: ServerView) -> None:
            with suppress(GearflowError):
                answer = await patience.ask(
                    view.address,
                    lambda: metrics(client, (function,), since=since, server=view.address),
                )
                found.append(of_function(answer.history, function))

        async with anyio.create_task_group() as questions:
            for view in fleet.distinct:
                if view.counted:
                    questions.start_soon(ask, view)
        own = self._own.minutes(since, function)
        if found:  # a sum needs a minute of all servers, and gearflow's have complete ones only
            last = max((minutes[-1][0] for minutes in found if minutes), default=0.0)
            own = [(at, minute) for at, minute in own if at <= last]
        return merged([own, *found])

    def _before(self, now: float) -> Sample | None:
        """The sample that was there about a minute ago, else the oldest one since then."""
        while self._samples and now - self._samples[0].taken > WINDOW * 1.5:
            self._samples.popleft()
        return self._samples[0] if self._samples else None


class _Link:
    """A client that is open while it is used, in a task of its own."""

    def __init__(self, servers: Sequence[ServerAddress], tls: TLS | bool | None, token: str | None) -> None:
        self._servers, self._tls, self._token = servers, tls, token
        self._make()  # finds out now whether the settings are valid
        self._opened: tuple[Client, asyncio.Task[None]] | None = None
        self._used = 0.0

    async def client(self) -> Client:
        self._used = time.monotonic()
        loop = asyncio.get_running_loop()
        if self._opened is None or self._opened[1].done() or self._opened[1].get_loop() is not loop:
            client, ready = self._make(), loop.create_future()
            task = loop.create_task(self._keep(client, ready), name="gearflow web: the client of the servers")
            self._opened = client, task
            await ready
        return self._opened[0]

    def _make(self) -> Client:
        return Client(self._servers, spread=False, discover=False, tls=self._tls, token=self._token)

    async def close(self) -> None:
        if self._opened is not None:
            task = self._opened[1]
            self._opened = None
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _keep(self, client: Client, ready: "asyncio.Future[None]") -> None:
        async with client:
            ready.set_result(None)
            while (left := self._used + IDLE - time.monotonic()) > 0:  # noqa: ASYNC110  (time is the event)
                await asyncio.sleep(left)
            self._opened = None
