"""The jobs and dead letters of several servers, as many as ``gearflow top`` can show."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, NamedTuple

from gearflow.client import Client
from gearflow.client.admin import admin_of
from gearflow.client.operate import jobs
from gearflow.errors import GearflowError
from gearflow.observe import FleetView, Patience, ServerView
from gearflow.protocol.jobs import JOBS, LIVE, JobFilter
from gearflow_cli.top.columns import NONE, KnownJob
from gearflow_cli.top.model import Choices, TopPage

_JOBS: Final = 200
"""Jobs behind the selected one that are asked for."""

_MOST_JOBS: Final = 1000
_PAGES: Final = 5
"""Pages of a list of jobs that are asked for in one look. A page may have few jobs if a filter finds few."""


class JobList(NamedTuple):
    """What was found."""

    jobs: list[KnownJob]
    more: bool = False
    """Whether there are more jobs than these."""

    searched: str = ""
    """How many jobs the servers have searched, if that is not all of them."""

    error: str = ""
    """Why a server did not list its jobs."""


def filter_of(choices: Choices) -> JobFilter:
    """The filter for the jobs or dead letters that are to be shown."""
    return JobFilter(
        states=("dead",) if choices.page is TopPage.DEAD else LIVE,
        function=choices.function,
        text=choices.listing.filter or None,
    )


async def list_jobs(client: Client, fleet: FleetView, choices: Choices) -> JobList:
    """List the jobs or dead letters that are to be shown.

    Args:
        client: Makes the calls.
        fleet: The servers.
        choices: What the person has chosen.
    """
    select = filter_of(choices)
    wanted = min(max(_JOBS, choices.listing.index + _JOBS), _MOST_JOBS)
    found: list[KnownJob] = []
    more, searched, left = False, 0, list[int | None]()
    error, patience = "", Patience()
    for view in _servers(fleet, is_dead=choices.page is TopPage.DEAD):
        ask: Callable[[], Awaitable[_Part]] = partial(_jobs_of, client, view, select, wanted)
        if view.info is None:
            ask = partial(_handles_of, client, view, select)
        try:
            part = await patience.ask(view.address, ask)
        except (GearflowError, TimeoutError) as fault:
            error = error or str(fault)
            continue
        found += part.jobs
        more = more or part.more
        searched += part.searched
        left += [part.left] * part.is_short
    return JobList(found, more, _progress(searched, left) if left else "", error)


def _servers(fleet: FleetView, *, is_dead: bool) -> list[ServerView]:
    """The servers that are asked. All servers of a group have the same dead letters."""
    if is_dead:
        return list(fleet.stores)
    own = [view for view in fleet.distinct if view.info is not None]
    return [*own, *(view for view in fleet.distinct if view.kind == "gearmand")]


class _Part(NamedTuple):
    """What a server has found."""

    jobs: list[KnownJob]
    more: bool = False
    searched: int = 0
    left: int | None = 0
    is_short: bool = False  # because it has more to search


async def _jobs_of(client: Client, view: ServerView, select: JobFilter, wanted: int) -> _Part:
    if not view.has_function(JOBS):
        return _Part([])
    part, after = _Part([]), ""
    for _ in range(_PAGES):
        limit = wanted - len(part.jobs)
        page = await jobs(client, select, after=after, limit=limit, server=view.address)
        found = [KnownJob(view, each.job.handle, each.job, each.listed) for each in page.jobs]
        after, searched = page.next, part.searched + page.searched
        is_short = bool(after) and len(found) < limit
        part = _Part([*part.jobs, *found], bool(after), searched, page.left, is_short)
        if not is_short:
            break
    return part


def _progress(searched: int, left: list[int | None]) -> str:
    known = [each for each in left if each is not None]
    of = f" of {searched + sum(known):,}" if len(known) == len(left) else ""
    return f"only {searched:,}{of} jobs searched"


async def _handles_of(client: Client, view: ServerView, select: JobFilter) -> _Part:
    """The jobs of C gearmand, of which it tells the handles alone."""
    if select.function is not None:
        return _Part([])
    rows = await admin_of(client, view.address).jobs()
    handles = [row.handle.decode("utf-8", "backslashreplace") for row in rows]
    text = (select.text or "").lower()
    found = [handle for handle in handles if text in handle.lower()]
    return _Part(
        [KnownJob(view, handle, None, NONE) for handle in found[:_MOST_JOBS]], len(found) > _MOST_JOBS
    )
