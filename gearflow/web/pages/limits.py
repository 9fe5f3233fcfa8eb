"""The page Limits: how much of each is used, and which jobs wait for it. Pause and resume."""

from typing import Literal, NamedTuple

from gearflow.client.operate import change_limits
from gearflow.protocol.limits import LimitInfo, LimitRequest
from gearflow.quantities import counted
from gearflow.web.formatting import duration
from gearflow.web.guard import Refused
from gearflow.web.sections import Acted, Rendered, Section
from gearflow.web.visit import Visit

section = Section("Limits", "/limits", order=70)


class LimitRow(NamedTuple):
    """A limit of a server, or of a group of servers."""

    server: str
    limit: LimitInfo

    @property
    def share(self) -> float | None:
        """The used share of a limit of jobs that run at once. None for others."""
        value = self.limit.value
        if value is None or value.per is not None or self.limit.keys:
            return None
        return self.limit.running / value.count

    @property
    def use(self) -> str:
        """How much of it is used, in words."""
        limit, value = self.limit, self.limit.value
        if limit.paused:
            return "paused, starts nothing"
        if value is None:
            return "nothing declares it any more"
        by_key = f" over {counted(limit.keys, 'key')}" if limit.keys else ""
        if value.per is None:
            return (
                f"{limit.running:,} running{by_key}"
                if by_key
                else f"{limit.running:,} of {value.count:,} run"
            )
        if limit.next is not None:
            return f"used up, next in {duration(limit.next)}"
        return f"counts{by_key}" if by_key else "not used up"

    @property
    def origin(self) -> str:
        """Where its value comes from."""
        limit = self.limit
        if limit.override is not None:
            return (
                f"set by an operator, declared is {limit.declared}"
                if limit.declared
                else "set by an operator"
            )
        return (
            "set by a policy"
            if limit.origin == "policy"
            else f"declared by {limit.origin}"
            if limit.origin
            else ""
        )


@section.page("/limits")
async def limits(visit: Visit) -> Rendered:
    """All limits of all servers."""
    sample = await visit.sample()
    rows = [
        LimitRow(view.address, limit)
        for view in sample.fleet.stores
        for limit in (view.limits.limits if view.limits is not None else ())
    ]
    values = {
        "fleet": sample.fleet,
        "rows": rows,
        "several": len(sample.fleet.stores) > 1,
        "any_store": bool(sample.fleet.stores),
    }
    return Rendered("limits.html", "Limits", values)


@section.act("/limits/{name}/pause")
async def pause(visit: Visit) -> Acted:
    """Start no job that needs a limit."""
    await _change(visit, "pause")
    return Acted(f"Paused {visit.params['name']}. Jobs that need it wait.", visit.url("/limits"))


@section.act("/limits/{name}/resume")
async def resume(visit: Visit) -> Acted:
    """Start the jobs of a limit again."""
    await _change(visit, "resume")
    return Acted(f"Resumed {visit.params['name']}.", visit.url("/limits"))


async def _change(visit: Visit, action: Literal["pause", "resume"]) -> None:
    name, client = visit.params["name"], await visit.client()
    places = [
        view
        for view in (await visit.sample()).stores_at(visit.server())
        if view.limits is not None and any(limit.name == name for limit in view.limits.limits)
    ]
    if not places:
        raise Refused(404, f"No server that answers has a limit {name}. Nothing was done.")
    for view in places:
        await change_limits(client, LimitRequest(action=action, name=name), server=view.address)
