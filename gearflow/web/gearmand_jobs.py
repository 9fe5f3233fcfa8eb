"""The jobs of C gearmand, which knows no more of a job than its handle, whether it runs, and how far it is.

It lists all jobs at once or none, so a long list is not asked for.
"""

from dataclasses import dataclass
from typing import Final, Literal

from gearflow.client import Client
from gearflow.client.admin import admin_of
from gearflow.client.config import ServerAddress
from gearflow.client.job import JobHandle
from gearflow.client.names import to_text
from gearflow.errors import GearflowError, UnknownJob
from gearflow.observe import FleetView, Patience, ServerView
from gearflow.protocol.server_calls import JobInfo
from gearflow.web.job_selection import Selection

MOST: Final = 10_000
"""Jobs of a server from which on they are not listed."""

SHOWN: Final = 100
"""Jobs of a server that a page shows."""


@dataclass(frozen=True, slots=True)
class PlainJobs:
    """The jobs of a server that is not gearflow's. A frozen value."""

    server: str
    count: int
    """All of them."""

    jobs: tuple[tuple[str, bool], ...] = ()
    """Handles, and whether it is a background job."""

    fault: str = ""
    """Why the server has not listed them."""


async def plain_jobs(
    client: Client, fleet: FleetView, selection: Selection, patience: Patience
) -> list[PlainJobs]:
    """The jobs of the servers that are not gearflow's.

    They are listed only if nothing is selected but a server, because these servers cannot search.
    """
    views = [view for view in fleet.distinct if view.kind != "gearflow"]
    chosen = [view for view in views if selection.server in ("", view.address)]
    if not selection.is_everything:
        return []
    return [await _jobs_of(client, view, patience) for view in chosen]


async def _jobs_of(client: Client, view: ServerView, patience: Patience) -> PlainJobs:
    count = sum(sum(function.waiting) + function.running for function in view.functions)
    if count > MOST:
        return PlainJobs(view.address, count)
    try:
        rows = await patience.ask(view.address, admin_of(client, view.address).jobs)
    except (GearflowError, TimeoutError) as error:
        return PlainJobs(view.address, count, fault=str(error))
    jobs = tuple((to_text(row.handle), row.background) for row in rows[:SHOWN])
    return PlainJobs(view.address, len(rows), jobs)


async def plain_info(client: Client, server: str, handle: str) -> JobInfo:
    """What such a server knows about a job. Raises UnknownJob if that is nothing."""
    status = await client.status(JobHandle(handle, ServerAddress.parse(server)))
    if not status.known:
        raise UnknownJob(f"{server} has no job {handle} now. It forgets jobs when they end.")
    progress = (status.numerator, status.denominator) if status.denominator else None
    state: Literal["running", "waiting"] = "running" if status.running else "waiting"
    return JobInfo(handle=handle, function="", state=state, progress=progress)
