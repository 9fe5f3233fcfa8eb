"""The pages of jobs: a list with filters and acts on all that match, and one job with its life, live.

The page of one job shows each of its runs, its failure, its payload, how far it is, and its last parts.
"""

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from starlette.responses import RedirectResponse

from gearflow.client import Client, JobHandle, ServerAddress
from gearflow.client.operate import replay
from gearflow.errors import ConnectionLost, GearflowError, UnknownJob
from gearflow.observe import FleetView, ServerView, cancel_job
from gearflow.protocol.server_calls import JobInfo
from gearflow.web import bulk_acts, job_lists, job_timeline
from gearflow.web.formatting import keyless
from gearflow.web.gearmand_jobs import plain_info, plain_jobs
from gearflow.web.guard import Refused
from gearflow.web.job_contents import Content, parts_of, payload_of, result_of
from gearflow.web.job_selection import SPANS, STATES, Selection
from gearflow.web.sections import Acted, Rendered, Section
from gearflow.web.visit import Visit

section = Section("Jobs", "/jobs", order=30)

_PAYLOAD: Final = 300
"""Bytes of a payload in a list."""

_FUNCTIONS: Final = 500
"""Functions that the form offers."""

_ALL: Final = (("", "All"), ("live", "Live"), *((state, state.capitalize()) for state in STATES))


@section.page("/jobs", every=3)
async def jobs(visit: Visit) -> Rendered | RedirectResponse:
    """The jobs that the query selects. Without one, all of them."""
    selection = Selection.read(visit.query, visit.server())
    if visit.hide_payloads and selection.text:  # to search the payloads would show what is in them
        return RedirectResponse(visit.url("/jobs", selection.text, server=selection.server), 303)
    sample, client = await visit.sample(), await visit.client()
    after = visit.query.get("after", "")
    where = job_lists.places(sample.fleet, selection, selection.states)
    payload = 0 if visit.hide_payloads else _PAYLOAD
    listing = await job_lists.shared_list(visit.sampler, where, selection, after, payload=payload)
    values = {
        "sample": sample,
        "fleet": sample.fleet,
        "selection": selection,
        "listing": listing,
        "plain": [] if after else await plain_jobs(client, sample.fleet, selection, visit.patience),
        "after": after,
        "states": _ALL,
        "spans": SPANS,
        "functions": [each.function for each in sample.fleet.functions[:_FUNCTIONS]],
        "addresses": visit.sampler.addresses,
        "older": [view for view in sample.fleet.distinct if _is_older(view)],
        "may_cancel": visit.may_operate and bool(job_lists.states_for("cancel", selection)),
        "may_replay": visit.may_operate and bool(job_lists.states_for("replay", selection)),
    }
    return Rendered("jobs.html", "Jobs", values, again=job_lists.AGAIN if listing.is_short else None)


@section.page("/jobs/cancel", every=60)
async def ask_cancel(visit: Visit) -> Rendered:
    """The question whether all jobs that match are to be cancelled."""
    return await bulk_acts.ask(visit, "cancel")


@section.act("/jobs/cancel")
async def cancel_all(visit: Visit) -> Acted | Rendered:
    """Cancel all jobs that match."""
    return await bulk_acts.do(visit, "cancel")


@section.page("/jobs/{handle}", every=1)
async def job(visit: Visit) -> Rendered:
    """One job, whether it lives or has ended."""
    handle, client = visit.params["handle"], await visit.client()
    fleet = (await visit.sample()).fleet
    view, found = await _find(visit, client, fleet)
    now = time.time() + (view.clock or 0.0)
    where = JobHandle(handle, ServerAddress.parse(view.address))
    is_ours, hides = view.kind == "gearflow", visit.hide_payloads
    if hides:
        found = found.model_copy(update={"why": keyless(found.why)})
    values = {
        "fleet": fleet,
        "job": found,
        "view": view,
        "several": len(visit.sampler.addresses) > 1,
        "now": now,
        "moments": job_timeline.moments(found, now),
        "bars": job_timeline.bars(found, now),
        "width": job_timeline.WIDTH,
        "is_ours": is_ours,
        "payload": await _content(visit, view, lambda: payload_of(client, found, view.address)),
        "result": await _content(visit, view, lambda: result_of(client, found, where)),
        "parts": await parts_of(client, found, where) if is_ours and not hides else [],
        "may_act": visit.may_operate,
        "is_live": found.state in ("waiting", "running", "delayed"),
        "may_cancel": found.state != "running" or is_ours,
    }
    return Rendered("job.html", handle, values)


@section.act("/jobs/{handle}/cancel")
async def cancel(visit: Visit) -> Acted:
    """Cancel the job."""
    handle, client = visit.params["handle"], await visit.client()
    view, _ = await _find(visit, client, (await visit.sample()).fleet)
    to = visit.url("/jobs", handle, server=visit.server())
    if view.kind != "gearflow":
        to = visit.url("/jobs", server=view.address)  # that server forgets it
    if await cancel_job(client, view, handle):
        return Acted(f"Cancelled {handle}.", to)
    return Acted(f"{handle} has ended, or it cannot be cancelled any more.", to, ok=False)


@section.act("/jobs/{handle}/replay")
async def replay_one(visit: Visit) -> Acted:
    """Run the dead letter again."""
    handle, client = visit.params["handle"], await visit.client()
    view, _ = await _find(visit, client, (await visit.sample()).fleet)
    await replay(client, handle, server=view.address)
    return Acted(f"Replayed {handle}.", visit.url("/jobs", handle, server=visit.server()))


async def _content(
    visit: Visit, view: ServerView, ask: Callable[[], Awaitable[Content | None]]
) -> Content | None:
    """A content of a job, unless it is not to be shown."""
    if view.kind != "gearflow" or visit.hide_payloads:
        return None
    try:
        return await visit.patience.ask(view.address, ask)
    except ConnectionLost as error:
        return Content("", f"{error}.")


async def _find(visit: Visit, client: Client, fleet: FleetView) -> tuple[ServerView, JobInfo]:
    """The server that has the job of the path, and what it knows of it.

    Raises:
        Refused: No server knows it.
    """
    handle, server = visit.params["handle"], visit.server()
    views = [view for view in fleet.distinct if server in (None, view.address)]
    fault = ""
    for view in views:
        try:
            return view, await visit.patience.ask(view.address, partial(_info, client, view, handle))
        except UnknownJob:
            continue
        except GearflowError as error:
            fault += f" {error}."
    away = "".join(f" {view.address} does not answer." for view in fleet.away)
    which = "No server that answers" if fault or away else "No server"
    raise Refused(
        404,
        f"{which} knows the job {handle} now. A server forgets a background job some time after its end, and "
        f"other jobs at once.{fault}{away}",
    )


async def _info(client: Client, view: ServerView, handle: str) -> JobInfo:
    if view.kind != "gearflow":
        return await plain_info(client, view.address, handle)
    return await client.info(JobHandle(handle, ServerAddress.parse(view.address)))


def _is_older(view: ServerView) -> bool:
    """Whether it is a server of gearflow that cannot list jobs yet."""
    return view.info is not None and not job_lists.lists_jobs(view)
