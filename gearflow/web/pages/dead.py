"""The page Dead letters: grouped by error, and one by one. Replay and purge, one or all that match."""

from typing import Final

from gearflow.client.operate import purge_dead, replay
from gearflow.web import bulk_acts, job_lists
from gearflow.web.guard import Refused
from gearflow.web.job_selection import SPANS, Selection
from gearflow.web.sections import Acted, Rendered, Section
from gearflow.web.visit import Visit

_PAYLOAD: Final = 300
"""Bytes of a payload in a list."""

_GROUPS: Final = 50
"""Groups that are shown, the largest first."""


def _number(visit: Visit) -> int:
    """The number of dead letters beside the name of the section."""
    last = visit.sampler.last
    return last.fleet.dead if last is not None else 0


section = Section("Dead letters", "/dead", order=40, badge=_number)


@section.page("/dead", every=3)
async def dead(visit: Visit) -> Rendered:
    """The dead letters that the query selects."""
    values = {**visit.query, "state": visit.query.get("state") or "dead"}
    if visit.hide_payloads:  # to search the payloads would show what is in them
        values.pop("text", None)
    selection = Selection.read(values, visit.server())
    if selection.state not in ("dead", "expired"):
        raise Refused(400, f"Dead letters are dead or expired, not {selection.state}.")
    sample = await visit.sample()
    where = job_lists.places(sample.fleet, selection, selection.states)
    after = visit.query.get("after", "")
    payload = 0 if visit.hide_payloads else _PAYLOAD
    listing = await job_lists.shared_list(visit.sampler, where, selection, after, payload=payload)
    grouped = await job_lists.shared_errors(visit.sampler, where, selection)
    groups = grouped.errors if grouped is not None else []
    is_everything = not any((selection.function, selection.text, selection.error, selection.within))
    shown = {
        "sample": sample,
        "fleet": sample.fleet,
        "selection": selection,
        "is_everything": is_everything and selection.state == "dead",
        "matched": grouped.matched if grouped is not None else None,
        "groups": groups[:_GROUPS],
        "more_groups": len(groups) - _GROUPS,
        "listing": listing,
        "after": after,
        "spans": SPANS,
        "addresses": visit.sampler.addresses,
        "is_ours": any(job_lists.lists_jobs(view) for view in sample.fleet.distinct),
        "may_act": visit.may_operate,
    }
    is_searching = listing.is_short or grouped is None
    return Rendered("dead.html", "Dead letters", shown, again=job_lists.AGAIN if is_searching else None)


@section.page("/dead/replay", every=60)
async def ask_replay(visit: Visit) -> Rendered:
    """The question whether all that match are to be replayed."""
    return await bulk_acts.ask(visit, "replay")


@section.page("/dead/purge", every=60)
async def ask_purge(visit: Visit) -> Rendered:
    """The question whether all that match are to be purged."""
    return await bulk_acts.ask(visit, "purge")


@section.act("/dead/replay")
async def replay_all(visit: Visit) -> Acted | Rendered:
    """Run dead letters again: the one of a handle, or all that match."""
    handle = visit.form.get("handle")
    if not handle:
        return await bulk_acts.do(visit, "replay")
    await replay(await visit.client(), handle, server=_server_of(visit))
    return Acted(f"Replayed {handle}.", visit.back("/dead"))


@section.act("/dead/purge")
async def purge_all(visit: Visit) -> Acted | Rendered:
    """Purge dead letters: the one of a handle, or all that match."""
    handle = visit.form.get("handle")
    if not handle:
        return await bulk_acts.do(visit, "purge")
    await purge_dead(await visit.client(), handle, server=_server_of(visit))
    return Acted(f"Purged {handle}.", visit.back("/dead"))


def _server_of(visit: Visit) -> str | None:
    """The server of a single dead letter. A form names it if there are several."""
    server = visit.server()
    if server is None and len(visit.sampler.addresses) > 1:
        raise Refused(400, "The form does not name the server of the dead letter.")
    return server
