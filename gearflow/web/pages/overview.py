"""The page Overview: what needs attention, the figures of now, and the last hours as plots."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from gearflow.observe import ServerView
from gearflow.observe.findings import shortage
from gearflow.quantities import counted, size
from gearflow.web.formatting import duration, moment
from gearflow.web.function_rows import FunctionRow, rows, total
from gearflow.web.history_plots import SPANS, history_plots, span_of
from gearflow.web.sampler import Sample
from gearflow.web.sections import Rendered, Section
from gearflow.web.visit import Visit

section = Section("Overview", "/", order=10)

_BUSIEST: Final = 8
"""Functions in the table."""

FAILING: Final = 0.1
"""Functions of which a larger share fails are named."""

_MOST: Final = 8


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
        "is_old": any(row.is_old for row in functions),
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


@dataclass(frozen=True, slots=True)
class Concern:
    """Something that needs attention. A frozen value."""

    kind: Literal["bad", "warn"]
    subject: str
    """The server, function or limit."""

    text: str
    """What is the matter. The sentence begins with the subject."""

    path: str
    """The beginning of the path of the page that shows more. The name of a function follows it."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names that follow in the path."""
        return (self.subject,) if self.path == "/functions" else ()


def concerns(sample: Sample, rows: list[FunctionRow]) -> tuple[list[Concern], int]:
    """What needs attention, and how much more of it there is that is not in the list."""
    found = [*_of_servers(sample), *_of_functions(rows), *_of_limits(sample)]
    found.sort(key=lambda concern: concern.kind)
    return found[:_MOST], max(0, len(found) - _MOST)


def _of_servers(sample: Sample) -> Iterator[Concern]:
    for view in sample.fleet.away:
        yield Concern("bad", view.address, f"{view.complaint}: {view.error}.{_since(view)}", "/servers")
    for view in sample.fleet.distinct:
        for reason in view.malformed:
            yield Concern("bad", view.address, f"answers what it should not: {reason}.", "/servers")
        if view.info is not None and view.info.closed is not None:
            text = f"refuses background jobs: {view.info.closed.reason}."
            yield Concern("bad", view.address, text, "/servers")
        store = view.metrics.store if view.metrics is not None else None
        if store is not None and (severity := shortage(store)) is not None:
            text = f"has {size(store.free or 0)} of disk left."
            yield Concern("bad" if severity == "error" else "warn", view.address, text, "/servers")


def _since(view: ServerView) -> str:
    return f" This is so since {moment(view.away_since)}." if view.away_since is not None else ""


def _of_functions(rows: list[FunctionRow]) -> Iterator[Concern]:
    for row in rows:
        if row.waiting and not row.now.workers:
            yield Concern(
                "bad", row.name, f"has {counted(row.waiting, 'waiting job')} and no worker.", "/functions"
            )
        elif row.waiting and row.now.paused:
            yield Concern(
                "warn", row.name, f"is paused with {counted(row.waiting, 'waiting job')}.", "/functions"
            )
        elif row.is_old:
            reason = f" ({row.why})" if row.why else ""
            text = f"has a job that has waited for {duration(row.now.oldest)}{reason}."
            yield Concern("warn", row.name, text, "/functions")
        if row.failing > FAILING:
            lost = f"{row.lately.lost * 60:,.0f}"
            text = f"fails: {row.failing * 100:.0f} % of its jobs, {lost} a minute."
            yield Concern("bad", row.name, text, "/functions")


def _of_limits(sample: Sample) -> Iterator[Concern]:
    for view in sample.fleet.stores:
        for limit in view.limits.limits if view.limits is not None else ():
            if limit.paused:
                waiting = f" with {counted(limit.waiting, 'waiting job')}" if limit.waiting else ""
                yield Concern("warn", limit.name, f"is a limit that is paused{waiting}.", "/limits")
