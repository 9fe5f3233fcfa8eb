"""Jobs of several servers: a page of them, their number, and acts on all that match.

Each server lists its own live jobs. The servers of a group share the jobs that have ended, so only the first
of them is asked for those.
"""

import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal, NamedTuple, TypeAlias, TypeVar

import anyio
from pydantic import TypeAdapter

from gearflow.client import Client
from gearflow.client.operate import bulk
from gearflow.client.operate import jobs as jobs_of
from gearflow.errors import GearflowError
from gearflow.observe import FleetView, Patience, ServerView
from gearflow.protocol.jobs import JOBS, LIVE, BulkDone, ErrorGroup, JobPage, ListedJob, ListedState
from gearflow.web.guard import Refused
from gearflow.web.job_selection import Selection
from gearflow.web.sampler import Sampler
from gearflow.web.searches import Asking

BulkAct: TypeAlias = Literal["cancel", "replay", "purge"]

PAGE: Final = 100
"""Jobs on a page, if there is one server."""

AGAIN: Final = 0.1
"""Seconds between two steps of a search that somebody looks at."""

_ORDER: Final[dict[ListedState, int]] = {"running": 0, "waiting": 1, "delayed": 2}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AskedServer:
    """A server, and the states for which it is asked. A frozen value."""

    address: str
    states: tuple[ListedState, ...]


@dataclass(frozen=True, slots=True)
class ListedAt:
    """A job of a list, and the server that has it. A frozen value."""

    server: str
    listed: ListedJob


@dataclass(frozen=True)
class Listing:
    """A page of jobs. A frozen value."""

    jobs: tuple[ListedAt, ...] = ()
    next: str = ""
    """The query for the next page. Empty if this is the last one."""

    is_short: bool = False
    """Whether the servers have more to search for this page."""

    searched: int = 0
    """About how many jobs they have looked at, also for the pages before."""

    total: int | None = None
    """About how many jobs they have to look at in all, if that is known."""

    faults: Mapping[str, str] = field(default_factory=dict[str, str])
    """Why servers gave nothing."""


@dataclass(frozen=True)
class BulkResult:
    """What was done on each server. A frozen value."""

    done: Mapping[str, BulkDone]
    faults: Mapping[str, str]

    @property
    def matched(self) -> int:
        """Jobs that matched on all servers."""
        return sum(each.matched for each in self.done.values())

    @property
    def changed(self) -> int:
        """Jobs that were changed on all servers."""
        return sum(each.done for each in self.done.values())

    @property
    def left(self) -> int:
        """Jobs that stay as they are on all servers."""
        return sum(each.left for each in self.done.values())

    @property
    def errors(self) -> list[ErrorGroup]:
        """The groups of all servers together, the largest first."""
        groups: dict[tuple[str, str], ErrorGroup] = {}
        for group in (group for each in self.done.values() for group in each.errors):
            key = group.function, group.error
            groups[key] = _both(groups[key], group) if key in groups else group
        return sorted(groups.values(), key=lambda group: (-group.count, group.function, group.error))


def states_for(act: BulkAct, selection: Selection) -> tuple[ListedState, ...]:
    """The states of the jobs on which an act is to be done. Empty if it is for none that are selected."""
    if act == "cancel":
        return tuple(state for state in LIVE if state in selection.states)
    if "dead" in selection.states:  # these include the expired ones
        return ("dead",)
    return ("expired",) if "expired" in selection.states else ()


def lists_jobs(view: ServerView) -> bool:
    """Whether a server can list jobs."""
    return view.has_function(JOBS)


def places(fleet: FleetView, selection: Selection, states: Iterable[ListedState]) -> list[AskedServer]:
    """The servers to ask, each for the states that it has to answer for."""
    wanted = tuple(states)
    found: list[AskedServer] = []
    stores: set[str] = set()
    for view in fleet.distinct:
        if not lists_jobs(view) or selection.server not in ("", view.address):
            continue
        own: tuple[ListedState, ...] = wanted
        if view.store_name in stores:
            own = tuple(state for state in LIVE if state in wanted)
        stores.add(view.store_name)
        if own:
            found.append(AskedServer(view.address, own))
    return found


class _Cursor(NamedTuple):
    """Where a search goes on at a server, and how far it has come."""

    after: str = ""
    searched: int = 0
    total: int | None = None


_CURSORS: Final = TypeAdapter(dict[str, _Cursor])
"""For each server the place after which its next page begins."""


class ListSearch:
    """Fills a page with the jobs that are selected. Owns those that were found.

    Args:
        client: Returns the client of the servers.
        where: The servers.
        selection: The filter.
        after: ``next`` of the page before.
        payload: Bytes of each payload that are wanted.
        clock: Seconds of a monotonic clock.

    Raises:
        Refused: ``after`` is not valid.
    """

    def __init__(
        self,
        client: Callable[[], Awaitable[Client]],
        where: list[AskedServer],
        selection: Selection,
        after: str = "",
        *,
        payload: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._selection = selection
        self._payload = payload
        self._clock = clock
        cursors = _read_cursors(after)
        if after:
            where = [place for place in where if place.address in cursors]
        self._limit = max(PAGE // len(where), 10) if where else PAGE
        self._parts = {place.address: _Part(place, cursors.get(place.address, _Cursor())) for place in where}

    @property
    def is_over(self) -> bool:
        """Whether the page is full, or no server has more to search."""
        return all(part.is_over for part in self._parts.values())

    @property
    def has_faults(self) -> bool:
        """Whether a server gave a fault."""
        return any(part.fault for part in self._parts.values())

    async def go_on(self, seconds: float) -> None:
        """Search for about so long. It asks each server at least once."""
        client, end = await self._client(), self._clock() + seconds
        async with anyio.create_task_group() as questions:
            for part in self._parts.values():
                if not part.is_over:
                    questions.start_soon(self._fill, client, part, end)

    async def _fill(self, client: Client, part: "_Part", end: float) -> None:
        chosen, server = self._selection.filter(part.place.states), part.place.address
        while not part.is_over:
            try:
                wanted = self._limit - len(part.jobs)
                question = partial(
                    jobs_of,
                    client,
                    chosen,
                    after=part.cursor.after,
                    limit=wanted,
                    payload=self._payload,
                    server=server,
                )
                page = await Patience().ask(server, question)
            except GearflowError as error:
                part.fail(str(error))
                return
            part.add(page, self._limit)
            if self._clock() >= end:
                return

    @property
    def listing(self) -> Listing:
        """What was found so far."""
        parts = self._parts
        jobs = [ListedAt(server, job) for server, part in parts.items() for job in part.jobs]
        if len(parts) > 1:
            jobs.sort(key=_place_of)
        following = {server: part.cursor for server, part in parts.items() if part.cursor.after}
        cursors = [part.cursor for part in parts.values() if not part.fault]
        totals = [cursor.total for cursor in cursors if cursor.total is not None]
        return Listing(
            tuple(jobs),
            json.dumps(following) if following else "",
            not self.is_over,
            sum(cursor.searched for cursor in cursors),
            sum(totals) if len(totals) == len(cursors) else None,
            {server: part.fault for server, part in parts.items() if part.fault},
        )


class _Part:
    """The part of a page that one server has found."""

    def __init__(self, place: AskedServer, cursor: _Cursor) -> None:
        self.place = place
        self.cursor = cursor
        self.jobs: list[ListedJob] = []
        self.fault = ""
        self.is_over = False

    def add(self, page: JobPage, limit: int) -> None:
        """The answer to a question."""
        self.jobs += page.jobs
        searched, total = self.cursor.searched + page.searched, self.cursor.total
        if page.left is not None:
            total = searched + page.left
        elif total is not None:
            total = max(searched, total)
        self.cursor = _Cursor(page.next, searched, total)
        self.is_over = not page.next or len(self.jobs) >= limit

    def fail(self, fault: str) -> None:
        """The server gave a fault. What it had found stays."""
        self.fault, self.is_over = fault, True
        self.cursor = _Cursor()


async def shared_list(
    sampler: Sampler, where: list[AskedServer], selection: Selection, after: str, *, payload: int = 0
) -> Listing:
    """A page of the jobs that are selected, or what was found of it so far. The next call goes on.

    All visitors share it. It is made again as often as the servers can afford.

    Raises:
        Refused: ``after`` is not valid.
    """
    search = await sampler.search(
        ("list", tuple(where), selection, after, payload),
        lambda: ListSearch(sampler.client, where, selection, after, payload=payload),
    )
    return search.listing


async def shared_errors(
    sampler: Sampler, where: list[AskedServer], selection: Selection
) -> BulkResult | None:
    """The dead letters that are selected, grouped by function and error. None if they are not counted yet.

    All visitors share them. They are made again as often as the servers can afford.
    """

    async def ask() -> BulkResult:
        return await _bulk(await sampler.client(), where, "errors", selection, {})

    asking = await sampler.search(
        ("errors", tuple(where), selection), lambda: Asking(ask, lambda found: bool(found.faults))
    )
    return asking.answer


async def count_soon(sampler: Sampler, where: list[AskedServer], selection: Selection) -> BulkResult | None:
    """As ``count``. None if it takes longer than a page may. Then a later call has it."""

    async def ask() -> BulkResult:
        return await count(await sampler.client(), where, selection)

    return await sampler.answer(("count", tuple(where), selection), ask)


async def count(client: Client, where: list[AskedServer], selection: Selection) -> BulkResult:
    """Count the jobs that are selected on each server."""
    return await _bulk(client, where, "count", selection, {})


async def act_on_all(
    client: Client, where: list[AskedServer], act: BulkAct, selection: Selection, expected: Mapping[str, int]
) -> BulkResult:
    """Act on all jobs that are selected. A server on which more match than expected does nothing."""
    return await _bulk(client, where, act, selection, expected)


async def _bulk(
    client: Client,
    where: list[AskedServer],
    do: Literal["count", "cancel", "replay", "purge", "errors"],
    selection: Selection,
    expected: Mapping[str, int],
) -> BulkResult:
    async def ask(place: AskedServer) -> BulkDone:
        chosen = selection.filter(place.states)
        return await bulk(client, do, chosen, expected=expected.get(place.address), server=place.address)

    return BulkResult(*await _each(where, ask))


async def _each(
    where: list[AskedServer], ask: Callable[[AskedServer], Awaitable[T]]
) -> tuple[dict[str, T], dict[str, str]]:
    """Ask all servers at once. Returns the answers and the faults, both by server in their order."""
    found: dict[str, T] = {}
    faults: dict[str, str] = {}

    async def ask_one(place: AskedServer) -> None:
        try:
            found[place.address] = await ask(place)
        except GearflowError as error:
            faults[place.address] = str(error)

    async with anyio.create_task_group() as questions:
        for place in where:
            questions.start_soon(ask_one, place)
    order = [place.address for place in where]
    return {each: found[each] for each in order if each in found}, faults


def _place_of(job: ListedAt) -> tuple[int, float]:
    """Live jobs first, the oldest of a state first. Then those that ended, the last one first."""
    info = job.listed.job
    order = _ORDER.get(job.listed.listed)
    return (order, info.submitted or 0.0) if order is not None else (len(_ORDER), -(info.ended or 0.0))


def _both(one: ErrorGroup, other: ErrorGroup) -> ErrorGroup:
    last = max(one, other, key=lambda group: group.last)
    return last.model_copy(
        update={"count": one.count + other.count, "first": min(one.first, other.first), "last": last.last}
    )


def _read_cursors(after: str) -> dict[str, _Cursor]:
    try:
        return _CURSORS.validate_json(after) if after else {}
    except ValueError:
        raise Refused(400, "The address of this page of a list is not valid.") from None
