"""Jobs of several servers: a page of them, their number, and acts on all that match.

Each server lists its own live jobs. The servers of a group share the jobs that have ended, so only the first
of them is asked for those.
"""

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, TypeVar

import anyio
from pydantic import TypeAdapter

from gearflow.client import Client
from gearflow.client.operate import bulk
from gearflow.client.operate import jobs as jobs_of
from gearflow.errors import GearflowError
from gearflow.observe import FleetView, ServerView
from gearflow.protocol.jobs import JOBS, LIVE, BulkDone, ErrorGroup, JobFilter, ListedJob, ListedState
from gearflow.web.guard import Refused
from gearflow.web.job_selection import Selection
from gearflow.web.sampler import Sampler

BulkAct: TypeAlias = Literal["cancel", "replay", "purge"]

PAGE: Final = 100
"""Jobs on a page, if there is one server."""

PATIENCE: Final = 1.0
"""Seconds after which a page ends that has looked at many jobs and found few."""

_ORDER: Final[dict[ListedState, int]] = {"running": 0, "waiting": 1, "delayed": 2}

T = TypeVar("T")

_Cursors: Final = TypeAdapter(dict[str, str])
"""For each server the place after which its next page begins."""


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
    """Whether the page ends early, because the servers have searched for long."""

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


async def shared_list(
    sampler: Sampler, where: list[AskedServer], selection: Selection, after: str, *, payload: int = 0
) -> Listing:
    """As ``list_jobs``, for all visitors together, and not more often than the servers can afford."""
    client = await sampler.client()
    return await sampler.shared(
        ("list", tuple(where), selection, after, payload),
        lambda: list_jobs(client, where, selection, after, payload=payload),
        keep=lambda found: not found.faults,
    )


async def shared_errors(sampler: Sampler, where: list[AskedServer], selection: Selection) -> BulkResult:
    """As ``errors``, for all visitors together, and not more often than the servers can afford."""
    client = await sampler.client()
    return await sampler.shared(
        ("errors", tuple(where), selection),
        lambda: errors(client, where, selection),
        keep=lambda found: not found.faults,
    )


async def list_jobs(
    client: Client, where: list[AskedServer], selection: Selection, after: str, *, payload: int = 0
) -> Listing:
    """Return a page of the jobs that are selected.

    Args:
        client: The client of the servers.
        where: The servers.
        selection: The filter.
        after: ``next`` of the page before.
        payload: Bytes of each payload that are wanted.

    Raises:
        Refused: ``after`` is not valid.
    """
    cursors = _read_cursors(after)
    if after:
        where = [place for place in where if place.address in cursors]
    limit = max(PAGE // len(where), 10) if where else PAGE

    async def ask(place: AskedServer) -> tuple[list[ListedJob], str, bool]:
        return await _fill(
            client, place, selection.filter(place.states), cursors.get(place.address, ""), limit, payload
        )

    found, faults = await _each(where, ask)
    jobs = [ListedAt(server, job) for server, (some, _, _) in found.items() for job in some]
    if len(found) > 1:
        jobs.sort(key=_place_of)
    following = {server: cursor for server, (_, cursor, _) in found.items() if cursor}
    is_short = any(short for _, _, short in found.values())
    return Listing(tuple(jobs), json.dumps(following) if following else "", is_short, faults)


async def count(client: Client, where: list[AskedServer], selection: Selection) -> BulkResult:
    """Count the jobs that are selected on each server."""
    return await _bulk(client, where, "count", selection, {})


async def errors(client: Client, where: list[AskedServer], selection: Selection) -> BulkResult:
    """Group the dead letters that are selected by function and error."""
    return await _bulk(client, where, "errors", selection, {})


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


async def _fill(
    client: Client, place: AskedServer, chosen: JobFilter, after: str, limit: int, payload: int
) -> tuple[list[ListedJob], str, bool]:
    """The jobs of one server, the next cursor, and whether the search was given up. Pages may be empty."""
    jobs: list[ListedJob] = []
    patience = anyio.current_time() + PATIENCE
    while True:
        page = await jobs_of(
            client, chosen, after=after, limit=limit - len(jobs), payload=payload, server=place.address
        )
        jobs += page.jobs
        after = page.next
        if not after or len(jobs) >= limit:
            return jobs, after, False
        if anyio.current_time() > patience:
            return jobs, after, True


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


def _read_cursors(after: str) -> dict[str, str]:
    if not after:
        return {}
    try:
        return _Cursors.validate_json(after)
    except ValueError:
        raise Refused(400, "The address of this page of a list is not valid.") from None
