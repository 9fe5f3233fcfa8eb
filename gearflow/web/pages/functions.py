"""The pages of functions: all of them in a table, and one with its last hours. Pause, resume and purge."""

from collections.abc import Callable
from typing import Final

from gearflow.observe import pause_function, purge_function
from gearflow.quantities import counted
from gearflow.web.function_rows import FunctionRow, row, rows
from gearflow.web.guard import Refused
from gearflow.web.history_plots import SPANS, history_plots, span_of
from gearflow.web.sections import Acted, Rendered, Section
from gearflow.web.visit import Visit

section = Section("Functions", "/functions", order=20)

_PAGE: Final = 200
"""Functions on one page."""

_SORTS: Final[dict[str, Callable[[FunctionRow], float]]] = {
    "waiting": lambda row: row.waiting,
    "oldest": lambda row: row.now.oldest or 0,
    "running": lambda row: row.now.running,
    "rate": lambda row: row.lately.ended,
    "failed": lambda row: row.failing,
    "p50": lambda row: row.p50 or 0,
    "p99": lambda row: row.p99 or 0,
    "workers": lambda row: row.now.workers,
}
"""The columns by which the table can be sorted, the largest first. By default it is sorted by name."""


@section.page("/functions")
async def functions(visit: Visit) -> Rendered:
    """All functions, sorted and filtered by the query."""
    sample = await visit.sample()
    server = visit.server()
    found = rows(sample, server)
    text = visit.query.get("text", "").strip()
    shown = [each for each in found if text.lower() in each.name.lower()]
    sort = visit.query.get("sort", "")
    if sort in _SORTS:
        shown.sort(key=_SORTS[sort], reverse=True)
    values = {
        "fleet": sample.fleet,
        "rows": shown[visit.start : visit.start + _PAGE],
        "all": len(found),
        "found": len(shown),
        "page": _PAGE,
        "sort": sort if sort in _SORTS else "",
        "text": text,
        "server": server,
        "addresses": visit.sampler.addresses,
        "may_act": visit.may_operate and any(view.kind == "gearflow" for view in sample.fleet.distinct),
    }
    return Rendered("functions.html", "Functions", values)


@section.page("/functions/{name}")
async def function(visit: Visit) -> Rendered:
    """One function on all servers."""
    name = visit.params["name"]
    sample = await visit.sample()
    found = next((each for each in sample.fleet.functions if each.function == name), None)
    if found is None:
        away = " It may be on a server that does not answer." if sample.fleet.away else ""
        raise Refused(404, f"No server has a function {name!r} now.{away}")
    span_name, span = span_of(visit.query.get("span", ""))
    minutes = await visit.sampler.minutes(span, name)
    views = sample.fleet.of(name)
    values = {
        "sample": sample,
        "fleet": sample.fleet,
        "row": row(sample, sample.fleet, found),
        "views": views,
        "plots_shown": history_plots(minutes, span, sample.at) if minutes else [],
        "spans": list(SPANS),
        "span": span_name,
        "may_act": visit.may_operate and any(view.kind == "gearflow" for view in views),
    }
    return Rendered("function.html", name, values)


@section.act("/functions/{name}/pause")
async def pause(visit: Visit) -> Acted:
    """Give out no more jobs of a function."""
    return await _pause(visit, paused=True)


@section.act("/functions/{name}/resume")
async def resume(visit: Visit) -> Acted:
    """Give out the jobs of a function again."""
    return await _pause(visit, paused=False)


@section.act("/functions/{name}/purge")
async def purge(visit: Visit) -> Acted:
    """Cancel the waiting and the delayed jobs of a function."""
    name, sample = visit.params["name"], await visit.sample()
    done = await purge_function(await visit.client(), sample.fleet.servers, name, server=visit.server())
    return Acted(f"Cancelled {counted(sum(done.values()), 'job')} of {name}.", visit.back("/functions"))


async def _pause(visit: Visit, *, paused: bool) -> Acted:
    name, sample = visit.params["name"], await visit.sample()
    done = await pause_function(
        await visit.client(), sample.fleet.servers, name, paused, server=visit.server()
    )
    verb = "Paused" if paused else "Resumed"
    waiting = counted(sum(done.values()), "job")
    verb_of_jobs = "waits" if sum(done.values()) == 1 else "wait"
    return Acted(f"{verb} {name}. {waiting} {verb_of_jobs}.", visit.back("/functions"))
