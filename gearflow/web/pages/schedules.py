"""The pages of schedules: when each is due in words, and what became of its ticks. Trigger, pause, resume."""

from contextlib import suppress
from typing import Final, Literal, NamedTuple

from gearflow.client.schedules import change_schedule, show_schedules
from gearflow.errors import ConnectionLost
from gearflow.protocol.schedules import (
    ScheduledJobs,
    ScheduleInfo,
    ScheduleRequest,
    SchedulesRequest,
)
from gearflow.web.guard import Refused
from gearflow.web.schedule_texts import when_text
from gearflow.web.sections import Acted, Rendered, Section
from gearflow.web.visit import Visit

section = Section("Schedules", "/schedules", order=60)

_TIMES: Final = 8
"""Next times on the page of a schedule."""


class ScheduleRow(NamedTuple):
    """A schedule of a server, or of a group of servers."""

    server: str
    info: ScheduleInfo

    @property
    def name(self) -> str:
        """The name of the schedule."""
        return self.info.schedule.name

    @property
    def when(self) -> str:
        """When it is due, in words."""
        return when_text(self.info.schedule.when)

    @property
    def state(self) -> tuple[str, str]:
        """Whether it makes jobs that run: a word, and its colour."""
        info = self.info
        if info.fault:
            return "broken", "bad"
        if info.paused:
            return "paused", "warn"
        if not info.next:
            return "ended", ""
        return ("active", "good") if info.has_worker else ("no worker", "warn")


@section.page("/schedules")
async def schedules(visit: Visit) -> Rendered:
    """All schedules of all servers, the next one due first."""
    sample = await visit.sample("schedules")
    rows = [ScheduleRow(view.address, info) for view in sample.fleet.stores for info in view.schedules or ()]
    rows.sort(key=lambda row: (not row.info.next, row.info.next[:1], row.name))
    values = {
        "fleet": sample.fleet,
        "rows": rows,
        "now": sample.at,
        "several": len(sample.fleet.stores) > 1,
        "any_store": bool(sample.fleet.stores),
    }
    return Rendered("schedules.html", "Schedules", values)


@section.page("/schedules/{name}")
async def schedule(visit: Visit) -> Rendered:
    """One schedule with its next times."""
    row = await _find(visit)
    request = SchedulesRequest(name=row.name, times=_TIMES)
    client, info = await visit.client(), row.info
    with suppress(ConnectionLost):  # then the page shows what is known
        found = await visit.patience.ask(row.server, lambda: show_schedules(client, request, row.server))
        info = next(iter(found.schedules), info)
    now = (await visit.sample("schedules")).at
    return Rendered("schedule.html", row.name, {"row": ScheduleRow(row.server, info), "now": now})


@section.act("/schedules/{name}/trigger")
async def trigger(visit: Visit) -> Acted:
    """Make a job of a schedule now."""
    row = await _find(visit)
    request = ScheduleRequest(do="trigger", name=row.name)
    done = await change_schedule(await visit.client(), request, ScheduledJobs, row.server)
    return Acted(f"Made the job {done.handle} of {row.name}.", visit.back("/schedules"))


@section.act("/schedules/{name}/pause")
async def pause(visit: Visit) -> Acted:
    """Make no more jobs of a schedule."""
    name = await _change(visit, "pause")
    return Acted(f"Paused {name}. It makes no jobs until you resume it.", visit.back("/schedules"))


@section.act("/schedules/{name}/resume")
async def resume(visit: Visit) -> Acted:
    """Make jobs of a schedule again."""
    name = await _change(visit, "resume")
    return Acted(f"Resumed {name}.", visit.back("/schedules"))


async def _change(visit: Visit, do: Literal["pause", "resume"]) -> str:
    """Returns the name of the schedule."""
    row = await _find(visit)
    request = ScheduleRequest(do=do, name=row.name)
    await change_schedule(await visit.client(), request, ScheduleInfo, row.server)
    return row.name


async def _find(visit: Visit) -> ScheduleRow:
    """The schedule that the path names. The first server that has it, unless the form names one."""
    name = visit.params["name"]
    for view in (await visit.sample("schedules")).stores_at(visit.server()):
        for info in view.schedules or ():
            if info.schedule.name == name:
                return ScheduleRow(view.address, info)
    raise Refused(404, f"No server that answers has a schedule {name}.")
