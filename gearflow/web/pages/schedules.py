"""The pages of schedules: when each is due in words, and what became of its ticks. Trigger, pause, resume."""

from typing import Final, NamedTuple, TypeVar

from gearflow.client.requests import read_answer
from gearflow.protocol.schedules import (
    SCHEDULE,
    SCHEDULES,
    ScheduledJobs,
    ScheduleInfo,
    ScheduleRequest,
    Schedules,
    SchedulesRequest,
)
from gearflow.web.guard import Refused
from gearflow.web.schedule_texts import when_text
from gearflow.web.sections import Acted, Rendered, Section
from gearflow.web.visit import Visit

section = Section("Schedules", "/schedules", order=60)

_TIMES: Final = 8
"""Next times on the page of a schedule."""

A = TypeVar("A", ScheduleInfo, ScheduledJobs)


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
    rows = [ScheduleRow(view.address, info) for view in sample.stores for info in view.schedules or ()]
    rows.sort(key=lambda row: (not row.info.next, row.info.next[:1], row.name))
    values = {
        "fleet": sample.fleet,
        "rows": rows,
        "now": sample.at,
        "several": len(sample.stores) > 1,
        "any_store": bool(sample.stores),
    }
    return Rendered("schedules.html", "Schedules", values)


@section.page("/schedules/{name}")
async def schedule(visit: Visit) -> Rendered:
    """One schedule with its next times."""
    row = await _find(visit)
    request = SchedulesRequest(name=row.name, times=_TIMES)
    data = await (await visit.client()).call_reserved(SCHEDULES, request, server=row.server)
    info = read_answer(Schedules, data, SCHEDULES.decode(), row.server).schedules[0]
    now = (await visit.sample("schedules")).at
    return Rendered("schedule.html", row.name, {"row": ScheduleRow(row.server, info), "now": now})


@section.act("/schedules/{name}/trigger")
async def trigger(visit: Visit) -> Acted:
    """Make a job of a schedule now."""
    row = await _find(visit)
    done = await _change(visit, row, ScheduleRequest(do="trigger", name=row.name), ScheduledJobs)
    return Acted(f"Made the job {done.handle} of {row.name}.", visit.back("/schedules"))


@section.act("/schedules/{name}/pause")
async def pause(visit: Visit) -> Acted:
    """Make no more jobs of a schedule."""
    row = await _find(visit)
    await _change(visit, row, ScheduleRequest(do="pause", name=row.name), ScheduleInfo)
    return Acted(f"Paused {row.name}. It makes no jobs until you resume it.", visit.back("/schedules"))


@section.act("/schedules/{name}/resume")
async def resume(visit: Visit) -> Acted:
    """Make jobs of a schedule again."""
    row = await _find(visit)
    await _change(visit, row, ScheduleRequest(do="resume", name=row.name), ScheduleInfo)
    return Acted(f"Resumed {row.name}.", visit.back("/schedules"))


async def _find(visit: Visit) -> ScheduleRow:
    """The schedule that the path names. The first server that has it, unless the form names one."""
    name = visit.params["name"]
    for view in (await visit.sample("schedules")).stores_at(visit.server()):
        for info in view.schedules or ():
            if info.schedule.name == name:
                return ScheduleRow(view.address, info)
    raise Refused(404, f"No server that answers has a schedule {name}.")


async def _change(visit: Visit, row: ScheduleRow, request: ScheduleRequest, answer: type[A]) -> A:
    data = await (await visit.client()).call_reserved(SCHEDULE, request, server=row.server)
    return read_answer(answer, data, SCHEDULE.decode(), row.server)
