"""Schedules in words: when they are due, how they are, and what daylight saving time does to them."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from gearflow_cli.text import as_line

if TYPE_CHECKING:
    from gearflow.protocol.schedules import ScheduleInfo, ScheduleSpec, ScheduleWhen
    from gearflow.schedules import Plan, Upcoming

_UNITS: Final = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
_SHOWN: Final = 4  # times in a warning


class ScheduleTime(NamedTuple):
    """A time of a schedule, as it is shown. A time that daylight saving time drops has no UTC."""

    local: str
    utc: str
    unix: float | None
    mark: str
    note: str


def when_text(when: "ScheduleWhen") -> str:
    """``0 3 * * * Europe/Berlin``, or ``every 5m``."""
    return f"{when.cron} {when.tz}" if when.cron is not None else f"every {_interval(when.every or 0)}"


def difference(before: "ScheduleSpec | None", after: "ScheduleSpec") -> str:
    """What is new in a schedule."""
    if before is None:
        return when_text(after.when)
    parts: list[str] = []
    if (old := when_text(before.when)) != (new := when_text(after.when)):
        parts.append(f"{old} -> {new}")
    for one, other in ((before.when, after.when), (before, after)):
        left, right = one.model_dump(mode="json"), other.model_dump(mode="json")
        names = right.keys() - {"when", "cron", "every", "tz"}
        parts += [
            f"{name}: {as_line(left[name])} -> {as_line(right[name])}"
            for name in right
            if name in names and left[name] != right[name]
        ]
    return ", ".join(parts)


def _interval(seconds: float) -> str:
    parts: list[str] = []
    for unit, length in _UNITS:
        number, seconds = divmod(seconds, length)
        if number:
            parts.append(f"{number:.0f}{unit}")
    return "".join(parts) or "0s"


def state(info: "ScheduleInfo") -> str:
    """Whether a schedule makes jobs that run."""
    if info.fault:
        return f"broken: {info.fault}"
    if info.paused:
        return "paused"
    if not info.next:
        return "ended"
    return "active" if info.has_worker else "no worker"


def times(info: "ScheduleInfo", number: int) -> tuple[str, list[ScheduleTime]]:
    """The name of the zone and the next times. Without cronsim only those of the server's answer."""
    try:
        plan = _plan(info)
    except (ValueError, ModuleNotFoundError):  # another version, or no time zones
        return "local", [_shown(None, at) for at in info.next]
    zone = plan.tz if plan.cron is not None else "local"
    return zone, [_marked(plan, each) for each in plan.upcoming(time.time(), number)]


def clock_warnings(spec: "ScheduleSpec") -> Iterator[str]:
    """What daylight saving time drops and doubles within a year."""
    from gearflow.schedules import when

    fields = (spec.when.cron or "").split()
    if len(fields) < 2 or fields[1] == "*":  # it runs each hour, and nobody counts on one of them
        return
    affected = when(spec.when.model_dump(exclude_none=True, exclude_defaults=True)).affected(time.time())
    for mark, text in (("dropped", "does not run at"), ("second", "runs twice at")):
        walls = [one.wall for one in affected if one.mark == mark]
        if walls:
            more = f" and {len(walls) - _SHOWN} more times" if len(walls) > _SHOWN else ""
            shown = ", ".join(walls[:_SHOWN])
            yield f"{spec.name} ({when_text(spec.when)}): daylight saving time: it {text} {shown}{more}"


def _plan(info: "ScheduleInfo") -> "Plan":
    from gearflow.schedules import when

    schedule = info.schedule
    value = schedule.when.model_dump(exclude_none=True, exclude_defaults=True)
    return when(value, name=schedule.name, first=info.first)


def _marked(plan: "Plan", one: "Upcoming") -> ScheduleTime:
    if one.at is None:
        return ScheduleTime(one.wall, "", None, one.mark, one.note)
    return _shown(plan, one.at)._replace(mark=one.mark, note=one.note)


def _shown(plan: "Plan | None", at: float) -> ScheduleTime:
    moment = datetime.fromtimestamp(at, UTC)
    local = moment.astimezone() if plan is None or plan.cron is None else moment.astimezone(plan.zone)
    return ScheduleTime(
        local.isoformat(" ", "seconds"), moment.isoformat(" ", "seconds").removesuffix("+00:00"), at, "", ""
    )
