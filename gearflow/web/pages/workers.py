"""The page Workers: what each runs and since when. Make one quiet, or give it jobs again."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from gearflow.client.operate import quiet as make_quiet
from gearflow.observe import FleetView, ServerView
from gearflow.protocol.workers import QUIET, WorkerInfo
from gearflow.quantities import counted
from gearflow.web.guard import Refused
from gearflow.web.sections import Acted, Rendered, Section
from gearflow.web.visit import Visit

section = Section("Workers", "/workers", order=50)

_PAGE: Final = 200
"""Workers on a page."""

_FUNCTIONS: Final = 8
"""Functions of a worker that are shown before the rest is folded."""

_RUNS: Final = 5
"""The same for the jobs that it runs."""


@dataclass(frozen=True, slots=True)
class ShownWorker:
    """A worker of a server. A frozen value."""

    server: str
    worker: WorkerInfo
    may_be_quiet: bool
    is_known: bool
    """Whether its server tells what it runs. C gearmand does not."""

    @property
    def name(self) -> str:
        """Its name, or its address if it has none."""
        return self.worker.client_id if self.worker.client_id != "-" else self.worker.address

    @property
    def overdue(self) -> int:
        """Runs that go on although their jobs have ended."""
        return sum(self.worker.overdue.values())


@section.page("/workers")
async def workers(visit: Visit) -> Rendered:
    """The workers of all servers, those that run something first."""
    sample = await visit.sample("workers")
    text = visit.query.get("text", "").strip()
    server = visit.server()
    rows = _rows(view for view in sample.fleet.distinct if server in (None, view.address))
    shown = [row for row in rows if _has(row, text.lower())]
    values = {
        "sample": sample,
        "fleet": sample.fleet,
        "now": time.time(),
        "rows": shown[visit.start : visit.start + _PAGE],
        "found": len(shown),
        "all": len(rows),
        "page": _PAGE,
        "most_functions": _FUNCTIONS,
        "most_runs": _RUNS,
        "text": text,
        "server": server or "",
        "addresses": visit.sampler.addresses,
        "may_act": visit.may_operate,
        "running": sum(row.worker.running for row in rows if row.is_known),
        "unknown": sum(not row.is_known for row in rows),
        "slots": sum(row.worker.slots for row in rows if row.may_be_quiet),
        "quiet": sum(row.worker.quiet for row in rows),
        "lonely": _lonely(sample.fleet),
    }
    return Rendered("workers.html", "Workers", values)


@section.act("/workers/{id}/quiet")
async def quiet(visit: Visit) -> Acted:
    """Give the worker no more jobs."""
    running = await _set_quiet(visit, quiet=True)
    rest = f" It ends {counted(running, 'job')} first." if running else ""
    return Acted(f"{_name(visit)} gets no more jobs.{rest}", visit.back("/workers"))


@section.act("/workers/{id}/resume")
async def resume(visit: Visit) -> Acted:
    """Give the worker jobs again."""
    await _set_quiet(visit, quiet=False)
    return Acted(f"{_name(visit)} gets jobs again.", visit.back("/workers"))


async def _set_quiet(visit: Visit, *, quiet: bool) -> int:
    server = visit.server()
    if server is None and len(visit.sampler.addresses) > 1:
        raise Refused(400, "The form does not name the server of the worker.")
    return (await make_quiet(await visit.client(), visit.params["id"], quiet, server=server)).running


def _name(visit: Visit) -> str:
    return visit.form.get("name", "")[:200] or f"The worker {visit.params['id']}"


def _rows(views: Iterable[ServerView]) -> list[ShownWorker]:
    found = [
        ShownWorker(view.address, worker, view.has_function(QUIET), view.kind == "gearflow")
        for view in views
        for worker in view.workers
        if worker.functions
    ]
    found.sort(key=lambda row: (-row.worker.running, row.name, row.worker.address))
    return found


def _has(row: ShownWorker, text: str) -> bool:
    names = (row.name, row.worker.address, *row.worker.functions)
    return not text or any(text in name.lower() for name in names)


def _lonely(fleet: FleetView) -> list[str]:
    """Functions whose jobs wait and that no worker offers."""
    return [each.function for each in fleet.functions if any(each.waiting) and not each.workers]
