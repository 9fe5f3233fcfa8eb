"""A schedule's *when* as JSON, and the times that it gives."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args

from gearflow.schedules.expression import CronExpression
from gearflow.schedules.zones import DAY, EARLIEST, LATEST, ClockChange, changes, times_of

Missed: TypeAlias = Literal["once", "skip", "all"]
"""What to do with ticks that the server could not give in time."""

Overlap: TypeAlias = Literal["skip", "queue", "allow", "cancel"]
"""What to do with a tick whose predecessor has not ended."""

SHORTEST_INTERVAL: Final = 1.0  # seconds; a tick's name has its second
LONGEST: Final = 3e9  # seconds, a century
GRACE: Final = 86400.0  # seconds

_SEARCHED: Final = 800
"""Days of which one call looks for changes of the clocks."""


class Upcoming(NamedTuple):
    """A time of a schedule, or one that daylight saving time drops.

    Attributes:
        at: When it is due, in Unix seconds. None if daylight saving time drops it.
        wall: What clocks show in the schedule's zone, such as ``2027-03-28 02:30``.
        mark: What daylight saving time does to it: ``"dropped"``, ``"moved"`` (to the end of the gap),
            ``"first"`` and ``"second"`` (it is due twice), ``"once"`` (clocks show it twice, and it is due
            the first time), or ``""``.
        note: The same in words, or empty.
    """

    at: float | None
    wall: str
    mark: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """When a schedule is due, and what to do with ticks that are late or overlap.

    Attributes:
        cron: The expression, or None.
        every: The interval in seconds. 0 if there is an expression.
        base: Unix seconds from which ``every`` counts.
        start: The first time at which it may be due, in Unix seconds, or None.
        end: The last such time, or None.
        jitter: Seconds that a tick is late at most.
        name: The schedule's name, which decides how late each tick is.
        missed: What to do with ticks that the server could not give in time.
        grace: Seconds after which a missed tick is dropped.
        overlap: What to do with a tick whose predecessor has not ended.
    """

    cron: CronExpression | None = None
    every: float = 0.0
    base: float = 0.0
    start: float | None = None
    end: float | None = None
    jitter: float = 0.0
    name: str = ""
    missed: Missed = "once"
    grace: float = GRACE
    overlap: Overlap = "skip"

    @property
    def zone(self) -> tzinfo:
        """The zone of its times. It is UTC for an interval."""
        return UTC if self.cron is None else self.cron.zone

    @property
    def tz(self) -> str:
        """The name of that zone."""
        return "UTC" if self.cron is None else self.cron.tz

    def next_after(self, unix: float) -> float | None:
        """The first time strictly after that one, in whole Unix seconds, or None if there is no more."""
        if not EARLIEST < unix < LATEST:
            return None
        if self.start is not None and unix < self.start:
            unix = math.ceil(self.start) - 1
        following = (
            self._interval_after(unix) if self.cron is None else self.cron.next_after(math.floor(unix))
        )
        if following is None or (self.end is not None and following > self.end):
            return None
        return float(following)

    def delayed(self, tick: float) -> float:
        """When to give the tick: at its time, or up to ``jitter`` seconds later, always the same."""
        if not self.jitter:
            return tick
        digest = hashlib.blake2b(f"{self.name}\0{tick:.0f}".encode(errors="replace"), digest_size=8).digest()
        return tick + self.jitter * (int.from_bytes(digest) / 2**64)

    def upcoming(self, after: float, count: int) -> list[Upcoming]:
        """The next times after that one, with what daylight saving time drops in between."""
        found: list[Upcoming] = []
        searched = math.floor(after)
        limit = searched + _SEARCHED * DAY
        for _ in range(count):
            tick = self.next_after(after)
            until = limit if tick is None else min(int(tick), limit)
            if self.cron is not None and not self.cron.once:
                found += self._dropped(searched, until)
            if tick is None:
                break
            found.append(self._marked(int(tick)))
            after, searched = tick, max(searched, until)
        return found

    def affected(self, after: float, days: int = 366) -> list[Upcoming]:
        """The times that daylight saving time drops, moves or doubles in the days after that one."""
        start = math.floor(after)
        found: list[Upcoming] = []
        if self.cron is None or not EARLIEST < after < LATEST:
            return found
        for change in changes(self.cron.zone, start, start + days * DAY):
            low, high = sorted((change.old_wall, change.new_wall))
            for wall in self.cron.walls_between(low, high):
                found += self._affected(wall, change)
        return found

    def _affected(self, wall: datetime, change: ClockChange) -> Iterator[Upcoming]:
        assert self.cron is not None
        for time in times_of(self.cron.zone, wall)[: 1 if self.cron.once else 2]:
            if self._is_open(time):
                yield self._marked(time)
        if change.after > change.before and self._is_open(change.at):
            yield self._moved(wall, change) if self.cron.once else self._gone(wall, change)

    def _dropped(self, start: int, end: int) -> Iterator[Upcoming]:
        assert self.cron is not None
        for change in changes(self.cron.zone, start, end):
            if change.after > change.before and self._is_open(change.at):
                for wall in self.cron.walls_between(change.old_wall, change.new_wall):
                    yield self._gone(wall, change)

    def _marked(self, tick: int) -> Upcoming:
        wall = datetime.fromtimestamp(tick, self.zone)
        if self.cron is None or self.zone is UTC:
            return Upcoming(float(tick), _clock(wall))
        for change in changes(self.cron.zone, tick - 1, tick):
            if self.cron.once and change.after > change.before:
                for skipped in self.cron.walls_between(change.old_wall, change.new_wall):
                    return self._moved(skipped, change)
        times = times_of(self.cron.zone, wall.replace(tzinfo=None, fold=0))
        if len(times) == 1:
            return Upcoming(float(tick), _clock(wall))
        if self.cron.once:
            note = f"clocks show {wall:%H:%M} twice: it runs the first time"
            return Upcoming(float(tick), _clock(wall), "once", note)
        place = "second" if times.index(tick) else "first"
        note = f"clocks show {wall:%H:%M} twice, and it runs twice: this is the {place} time"
        return Upcoming(float(tick), _clock(wall), place, note)

    def _moved(self, wall: datetime, change: ClockChange) -> Upcoming:
        note = f"clocks skip {wall:%H:%M}: it runs at {change.new_wall:%H:%M}"
        return Upcoming(float(change.at), _clock(change.new_wall), "moved", note)

    def _gone(self, wall: datetime, change: ClockChange) -> Upcoming:
        note = f"clocks skip from {change.old_wall:%H:%M} to {change.new_wall:%H:%M}: it does not run"
        return Upcoming(None, _clock(wall), "dropped", note)

    def _is_open(self, tick: int) -> bool:
        return (self.start is None or tick >= self.start) and (self.end is None or tick <= self.end)

    def _interval_after(self, unix: float) -> float:
        if unix < self.base:
            return self.base
        passed = math.floor((unix - self.base) / self.every)
        following = self.base + (passed + 1) * self.every
        return following if following > unix else following + self.every


def when(value: Mapping[str, Any], *, name: str = "", first: float = 0.0) -> Plan:
    """Read the JSON of :meth:`Cron.to_json` or :meth:`Every.to_json`.

    Args:
        value: ``{"cron": "0 3 * * *", "tz": "Europe/Berlin"}`` or ``{"every": 300}``, both with ``start``,
            ``end``, ``jitter``, ``grace``, ``missed`` and ``overlap`` if they are not the default.
        name: The schedule's name, which decides how late ``jitter`` makes each tick.
        first: When the schedule was first applied, in Unix seconds. ``every`` counts from it if there is no
            ``start``.

    Raises:
        ValueError: A value is not valid. The message says what would be.
        ModuleNotFoundError: cronsim is not installed, and the value has an expression.
    """
    if unknown := value.keys() - _KEYS:
        raise ValueError(f"a schedule has no {min(unknown)!r}; it has {', '.join(sorted(_KEYS))}")
    if ("cron" in value) == ("every" in value):
        raise ValueError("a schedule has either a cron expression or an interval ('every')")
    start, end = _moment(value, "start"), _moment(value, "end")
    if start is not None and end is not None and end < start:
        raise ValueError("end is before start, so the schedule is never due")
    choices: dict[str, Any] = {
        "start": start,
        "end": end,
        "jitter": _duration(value, "jitter", 0.0),
        "grace": _duration(value, "grace", GRACE),
        "missed": _choice(value, "missed", get_args(Missed), "once"),
        "overlap": _choice(value, "overlap", get_args(Overlap), "skip"),
        "name": name,
    }
    if "every" in value:
        if "tz" in value:
            raise ValueError("an interval has no time zone (tz)")
        every = _duration(value, "every", 0.0)
        if every < SHORTEST_INTERVAL or every != int(every):
            raise ValueError(f"every={every:g}: it is a number of whole seconds, at least one")
        return Plan(every=every, base=math.ceil(start) if start is not None else math.floor(first), **choices)
    text, tz = value["cron"], value.get("tz", "UTC")
    if not isinstance(text, str) or not isinstance(tz, str):
        raise ValueError("the cron expression and its time zone (tz) are text")
    return Plan(cron=CronExpression(text, tz), **choices)


_KEYS: Final = frozenset({"cron", "tz", "every", "start", "end", "jitter", "grace", "missed", "overlap"})


def _moment(value: Mapping[str, Any], name: str) -> float | None:
    given = value.get(name)
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not EARLIEST < given < LATEST:
        raise ValueError(f"{name}={given!r}: it is a time in Unix seconds")
    return float(given)


def _duration(value: Mapping[str, Any], name: str, default: float) -> float:
    given = value.get(name, default)
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= LONGEST:
        raise ValueError(f"{name}={given!r}: it is a number of seconds, not negative, and at most a century")
    return float(given)


def _choice(value: Mapping[str, Any], name: str, choices: tuple[str, ...], default: str) -> str:
    given = value.get(name, default)
    if given not in choices:
        known = ", ".join(map(repr, choices))
        raise ValueError(f"{name}={given!r}: it is one of {known}")
    return str(given)


def _clock(wall: datetime) -> str:
    return f"{wall:%Y-%m-%d %H:%M}" if not wall.second else f"{wall:%Y-%m-%d %H:%M:%S}"
