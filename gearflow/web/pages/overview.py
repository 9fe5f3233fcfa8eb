"""The page Overview: what needs attention, the figures of now, and the last hours as plots."""

from gearflow.web.attention import concerns
from gearflow.web.figures import SPANS, history_plots, rows, span_of, total
from gearflow.web.sections import Rendered, Section
from gearflow.web.visit import Visit

section = Section("Overview", "/", order=10)

_BUSIEST = 8


@section.page("/")
async def overview(visit: Visit) -> Rendered:
    """All servers together."""
    sample = await visit.sample()
    name, span = span_of(visit.query.get("span", ""))
    minutes = await visit.sampler.minutes(span)
    functions = rows(sample)
    listed, more = concerns(sample, functions)
    busiest = sorted(
        functions, key=lambda row: (row.lately.ended, row.waiting, row.now.running), reverse=True
    )
    values = {
        "sample": sample,
        "fleet": sample.fleet,
        "total": total(sample),
        "waiting": sum(row.waiting for row in functions),
        "running": sum(row.now.running for row in functions),
        "delayed": sum(row.now.delayed for row in functions),
        "oldest": max((row.now.oldest for row in functions if row.now.oldest is not None), default=None),
        "functions": functions,
        "busiest": busiest[:_BUSIEST],
        "concerns": listed,
        "more": more,
        "plots_shown": history_plots(minutes, span, sample.at) if minutes else [],
        "counted": any(view.counted for view in sample.fleet.distinct),
        "spans": list(SPANS),
        "span": name,
    }
    return Rendered("overview.html", "Overview", values)
