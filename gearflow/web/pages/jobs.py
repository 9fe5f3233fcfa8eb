"""The page Jobs: a list with filters, and acts on all that match."""

from typing import Final

from starlette.responses import RedirectResponse

from gearflow.observe import ServerView
from gearflow.web import bulk_acts, job_lists
from gearflow.web.gearmand_jobs import plain_jobs
from gearflow.web.sections import Acted, Rendered, Section
from gearflow.web.selection import SPANS, STATES, Selection
from gearflow.web.visit import Visit

section = Section("Jobs", "/jobs", order=30)

_PAYLOAD: Final = 300
"""Bytes of a payload in a list."""

_FUNCTIONS: Final = 500
"""Functions that the form offers."""

_ALL: Final = (("", "All"), ("live", "Unfinished"), *((state, state.capitalize()) for state in STATES))


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
    values = {
        "sample": sample,
        "fleet": sample.fleet,
        "selection": selection,
        "listing": await job_lists.list_jobs(client, where, selection, after, payload=payload),
        "plain": [] if after else await plain_jobs(client, sample.fleet, selection),
        "after": after,
        "states": _ALL,
        "spans": SPANS,
        "functions": [each.function for each in sample.fleet.functions[:_FUNCTIONS]],
        "addresses": visit.sampler.addresses,
        "older": [view for view in sample.fleet.distinct if _is_older(view)],
        "may_cancel": visit.may_operate and bool(job_lists.states_for("cancel", selection)),
        "may_replay": visit.may_operate and bool(job_lists.states_for("replay", selection)),
    }
    return Rendered("jobs.html", "Jobs", values)


@section.page("/jobs/cancel")
async def ask_cancel(visit: Visit) -> Rendered:
    """The question whether all jobs that match are to be cancelled."""
    return await bulk_acts.ask(visit, "cancel")


@section.act("/jobs/cancel")
async def cancel(visit: Visit) -> Acted | Rendered:
    """Cancel all jobs that match."""
    return await bulk_acts.do(visit, "cancel")


def _is_older(view: ServerView) -> bool:
    """Whether it is a server of gearflow that cannot list jobs yet."""
    return view.info is not None and not job_lists.lists_jobs(view)
