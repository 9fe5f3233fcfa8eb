"""The servers that a worker takes jobs from: those given, and those that their groups name.

A server that shares a database with others says so when the worker connects (``gearflow.client.discovery``).
The worker asks one server of each group every few seconds who is in it. It connects to servers that it does
not know, and leaves those that are not named any more, once the jobs from there have ended.

Two addresses may lead to the same server, such as that of a balancer and its own. Then the later connection
takes no more jobs, and is closed. Its link stands by until the other one is lost.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf
from typing import Final, overload

import anyio
from anyio.abc import TaskGroup

from gearflow.client import ServerAddress
from gearflow.client.discovery import ASK, Membership, read_members
from gearflow.errors import GearflowError
from gearflow.worker.server_link import ServerLink

logger = logging.getLogger(__name__)

MakeLink = Callable[[ServerAddress, "Discovery"], ServerLink]
"""Makes the link to a server, which reports to this."""


class AllLinks(Sequence[ServerLink]):
    """The links of a worker: to each server one, and one more for each batch task. Owns state.

    Attributes:
        groups: The links to the servers, for each set of functions.
    """

    def __init__(self) -> None:
        self.groups: list[Discovery] = []

    @property
    def are_ready(self) -> bool:
        """Whether there is a server that knows each function."""
        return all(any(link.is_registered for link in group.links) for group in self.groups)

    @property
    def are_settled(self) -> bool:
        """Whether all groups of servers were asked who is in them."""
        return all(group.is_settled for group in self.groups)

    def __len__(self) -> int:
        return sum(len(group.links) for group in self.groups)

    def __iter__(self) -> Iterator[ServerLink]:
        return (link for group in self.groups for link in group.links)

    @overload
    def __getitem__(self, index: int, /) -> ServerLink: ...
    @overload
    def __getitem__(self, index: slice, /) -> list[ServerLink]: ...
    def __getitem__(self, index: int | slice, /) -> ServerLink | list[ServerLink]:
        return list(self)[index]


class Discovery:
    """Starts and ends the links of a worker. Owns them.

    Args:
        given: The servers that are always kept.
        make: Makes the link to a server.
        interval: Seconds between two questions. None asks nothing.
    """

    def __init__(
        self,
        given: Iterable[ServerAddress],
        make: MakeLink,
        interval: float | None,
    ) -> None:
        self._given = tuple(given)
        self._make = make
        self._interval = interval
        self.changed: Callable[[], object] = lambda: None
        """Called when there may be other links, or it is settled."""
        self._membership: Final = Membership(self._given)
        self.links: Final[list[ServerLink]] = []
        """The links there are, once they are made. The list is the same for ever."""
        self._groups: set[str] = set()  # that were asked
        self._asked: dict[ServerLink, float] = {}  # and when
        self._news = anyio.Event()
        self._tasks: TaskGroup | None = None

    @property
    def is_settled(self) -> bool:
        """Whether all groups were asked who is in them."""
        return self._interval is None or self._groups >= {link.group for link in self.links if link.group}

    def make_links(self) -> None:
        """Make the links to the servers that were given."""
        self.links.extend(self._make(address, self) for address in self._given)

    async def keep_links(self) -> None:
        """Keep the links, and ask for others, until this is cancelled."""
        async with anyio.create_task_group() as self._tasks:
            for link in self.links:
                self._tasks.start_soon(self._keep, link)
            if self._interval is not None:
                await self._watch(self._interval)

    def recognized(self, link: ServerLink) -> None:
        """A link has found out to which server of which group it leads."""
        if self._interval is None:
            return
        first = self._link_to(link.server, other_than=link)
        if first is not None:
            link.stand_by(first)
        self._news.set()

    def lost(self, link: ServerLink) -> None:
        """The connection of a link has ended."""
        for other in self.links:
            other.step_in(link)
        if link.group:
            self._news.set()

    def _link_to(self, server: str, *, other_than: ServerLink) -> ServerLink | None:
        """The link that leads there already, if it takes jobs."""
        for link in self.links:
            if link is not other_than and link.server == server and link.takes_jobs:
                return link
        return None

    async def _keep(self, link: ServerLink) -> None:
        await link.keep()
        if link.is_leaving:
            self.links.remove(link)
            self._asked.pop(link, None)
            self._news.set()  # it may have been named again meanwhile
            self.changed()

    async def _watch(self, interval: float) -> None:
        while True:
            self._news = news = anyio.Event()
            for group in {link.group for link in self.links if link.takes_jobs} - {""}:
                await self._ask(group, interval)
            self._arrange()
            began = time.monotonic()
            is_idle = not any(link.group for link in self.links)
            with anyio.move_on_after(inf if is_idle else interval):
                await news.wait()
                # What comes and goes together is one piece of news.
                await anyio.sleep(max(0.0, min(began + interval / 10 - time.monotonic(), interval)))

    async def _ask(self, group: str, limit: float) -> None:
        """Ask the server of a group that was asked longest ago."""
        links = [link for link in self.links if link.group == group and link.connection is not None]
        link = min(links, key=lambda link: self._asked.get(link, 0.0), default=None)
        if link is None or link.connection is None:
            return
        self._asked[link] = time.monotonic()
        try:
            with anyio.move_on_after(limit):
                members = read_members(await link.connection.ask(ASK))
                if members is not None:
                    self._membership.learn(members)
        except GearflowError as error:
            logger.debug("a server did not say who is in its group", extra={"reason": str(error)})
        self._groups.add(group)

    def _arrange(self) -> None:
        """Begin with servers that are new, and leave those that are gone."""
        assert self._tasks is not None  # the links are kept
        linked = {link.address for link in self.links}
        found = self._membership.found
        for address in found:
            if address not in linked:
                logger.info("found a server of a group", extra={"server": str(address)})
                link = self._make(address, self)
                link.is_found = True
                self.links.append(link)
                self._tasks.start_soon(self._keep, link)
        for link in self.links:
            if link.is_found and link.address not in found and not link.is_leaving:
                logger.info(
                    "leaving a server that its group does not name", extra={"server": str(link.address)}
                )
                link.leave()
        self.changed()
