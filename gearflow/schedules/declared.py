"""Schedules as code declares them: frozen values that are checked where they are written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

from gearflow.schedules.plan import GRACE, Missed, Overlap, Plan, when

_UNITS: Final = ("weeks", "days", "hours", "minutes", "seconds")
_DAY: Final = timedelta(seconds=GRACE)


@dataclass(frozen=True, slots=True)
class Cron:
    """Runs a task by itself at the times of a cron expression.

    ``Cron("30 3 * * 1-5", tz="Europe/Berlin")`` is half past three on workdays. The fields are minute, hour,
    day of the month, month and day of the week. You can use ranges, lists, steps (``*/5``), the names of
    months and days (``JAN``, ``MON``), the last day of the month (``L``), the n-th weekday (``MON#2``) and
    the last one (``5L``).

    It needs cronsim: ``pip install 'gearflow[cron]'``.

    Attributes:
        expression: The cron expression.
        tz: The time zone of its times, by its IANA name.
        args: The arguments of each run, by name. Others take their defaults.
        missed: Ticks that were due while no server ran: ``"once"`` runs the newest of them,
            ``"all"`` each, and ``"skip"`` none.
        grace: A missed tick that is older is dropped. Seconds or a timedelta.
        overlap: A tick while the job of the one before it waits or runs: ``"skip"`` drops it,
            ``"queue"`` runs it afterwards, ``"allow"`` runs both, and ``"cancel"`` cancels the old job.
        jitter: A tick comes up to so many seconds late, so that many schedules do not come at once. A tick is
            always late by the same time.
        start: The first time at which it may run, with a time zone.
        end: The last time at which it may run, with a time zone.

    Raises:
        ValueError, TypeError: A value is not valid. The message says what would be.
        ModuleNotFoundError: cronsim is not installed.
    """

    expression: str
    tz: str = field(default="UTC", kw_only=True)
    args: Mapping[str, Any] = field(default_factory=dict[str, Any], kw_only=True, hash=False)
    missed: Missed = field(default="once", kw_only=True)
    grace: timedelta | float = field(default=_DAY, kw_only=True)
    overlap: Overlap = field(default="skip", kw_only=True)
    jitter: timedelta | float = field(default=0, kw_only=True)
    start: datetime | None = field(default=None, kw_only=True)
    end: datetime | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _checked(self)

    def plan(self, name: str = "", *, first: float = 0.0) -> Plan:
        """Return the times of a schedule with that name."""
        return when(self.to_json(), name=name, first=first)

    def to_json(self) -> dict[str, Any]:
        """Return when it is due, as JSON. The arguments are not part of it."""
        return {"cron": self.expression, "tz": self.tz, **_options(self)}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Every:
    """Runs a task by itself again and again, always after the same time.

    ``Every(minutes=5)`` counts from ``start``. Without it, it counts from the time at which the schedule was
    first applied. Daylight saving time does not matter to it.

    Attributes:
        weeks: Part of the interval, as of a timedelta.
        days: Part of the interval.
        hours: Part of the interval.
        minutes: Part of the interval.
        seconds: Part of the interval, which is a number of whole seconds.
        args: The arguments of each run, by name. Others take their defaults.
        missed: Ticks that were due while no server ran: ``"once"`` runs the newest of them,
            ``"all"`` each, and ``"skip"`` none.
        grace: A missed tick that is older is dropped. Seconds or a timedelta.
        overlap: A tick while the job of the one before it waits or runs: ``"skip"`` drops it,
            ``"queue"`` runs it afterwards, ``"allow"`` runs both, and ``"cancel"`` cancels the old job.
        jitter: A tick comes up to so many seconds late, so that many schedules do not come at once. A tick is
            always late by the same time.
        start: The first time at which it runs, with a time zone. The interval counts from it.
        end: The last time at which it may run, with a time zone.
        interval: All parts together.

    Raises:
        ValueError, TypeError: A value is not valid. The message says what would be.
    """

    weeks: float = field(default=0, compare=False)
    days: float = field(default=0, compare=False)
    hours: float = field(default=0, compare=False)
    minutes: float = field(default=0, compare=False)
    seconds: float = field(default=0, compare=False)
    args: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)
    missed: Missed = "once"
    grace: timedelta | float = _DAY
    overlap: Overlap = "skip"
    jitter: timedelta | float = 0
    start: datetime | None = None
    end: datetime | None = None
    interval: timedelta = field(init=False)

    def __post_init__(self) -> None:
        parts = {unit: getattr(self, unit) for unit in _UNITS}
        for unit, part in parts.items():
            if isinstance(part, bool) or not isinstance(part, int | float):
                raise TypeError(f"Every({unit}={part!r}): it is a number")
        try:
            object.__setattr__(self, "interval", timedelta(**parts))
        except (OverflowError, ValueError):
            raise ValueError(f"{self!r}: the interval is at most a century") from None
        if self.interval < timedelta(seconds=1) or self.interval.microseconds:
            example = "give it at least one second, as in Every(minutes=5)"
            raise ValueError(f"{self!r}: the interval is a number of whole seconds; {example}")
        _checked(self)

    def plan(self, name: str = "", *, first: float = 0.0) -> Plan:
        """Return the times of a schedule with that name, first applied at ``first`` (Unix seconds)."""
        return when(self.to_json(), name=name, first=first)

    def to_json(self) -> dict[str, Any]:
        """Return when it is due, as JSON. The arguments are not part of it."""
        return {"every": self.interval.total_seconds(), **_options(self)}

    def __repr__(self) -> str:
        parts = [f"{unit}={getattr(self, unit)!r}" for unit in _UNITS if getattr(self, unit)]
        others = ("args", "missed", "grace", "overlap", "jitter", "start", "end")
        parts += [
            f"{name}={getattr(self, name)!r}" for name in others if getattr(self, name) != _DEFAULTS[name]
        ]
        return f"Every({', '.join(parts)})"


Schedule: TypeAlias = Cron | Every

_DEFAULTS: Final[Mapping[str, Any]] = {
    "args": {},
    "missed": "once",
    "grace": _DAY,
    "overlap": "skip",
    "jitter": 0,
    "start": None,
    "end": None,
}


def _options(schedule: Schedule) -> dict[str, Any]:
    """What differs from the defaults, so that equal schedules have equal JSON."""
    options: dict[str, Any] = {}
    if schedule.start is not None:
        options["start"] = schedule.start.timestamp()
    if schedule.end is not None:
        options["end"] = schedule.end.timestamp()
    if jitter := _seconds(schedule.jitter):
        options["jitter"] = jitter
    if (grace := _seconds(schedule.grace)) != GRACE:
        options["grace"] = grace
    if schedule.missed != "once":
        options["missed"] = schedule.missed
    if schedule.overlap != "skip":
        options["overlap"] = schedule.overlap
    return options


def _checked(schedule: Schedule) -> None:
    kind = type(schedule).__name__
    args: Any = schedule.args
    if not issubclass(type(args), Mapping) or not all(map(_is_name, args)):
        raise TypeError(
            f"{kind}(args={args!r}): it is a dict of arguments by their names, as in args={{'id': 42}}"
        )
    for name in ("start", "end"):
        _require_moment(f"{kind}({name}=", getattr(schedule, name))
    for name in ("grace", "jitter"):
        _require_duration(f"{kind}({name}=", getattr(schedule, name))
    try:
        when(schedule.to_json())
    except ValueError as error:
        raise ValueError(f"{kind}: {error}") from None


def _is_name(value: object) -> bool:
    return isinstance(value, str)


def _require_moment(name: str, moment: Any) -> None:
    if moment is None:
        return
    if not isinstance(moment, datetime):
        raise TypeError(f"{name}{moment!r}): it is a datetime with a time zone, or None")
    if moment.utcoffset() is None:
        fix = "datetime(2027, 1, 1, tzinfo=ZoneInfo('Europe/Berlin'))"
        raise ValueError(f"{name}{moment!r}): it has no time zone; write it as in {fix}")


def _require_duration(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | timedelta):
        raise TypeError(f"{name}{value!r}): it is a number of seconds, or a timedelta")


def _seconds(value: timedelta | float) -> float:
    return value.total_seconds() if isinstance(value, timedelta) else float(value)
