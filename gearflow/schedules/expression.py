"""The times of a cron expression in a time zone.

cronsim finds walls, which are datetimes without a zone, and this module finds when clocks show them. cronsim
can do both, but it loses times of zones whose daylight saving time is half an hour: after 00:00 on 2027-04-04
in Australia/Lord_Howe the next time of ``0 */6 * * *`` is 06:00, and cronsim 2.8 finds 12:00.

The rules of daylight saving time are those of Debian's cron:

* If neither the minute nor the hour begins with a star, the job runs once a wall. In a gap it runs at the end
  of the gap. In a fold it runs the first time.
* Otherwise it runs each time that clocks show the wall. In a gap it does not run. In a fold it runs twice.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta, tzinfo
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from gearflow.schedules.zones import (
    EARLIEST,
    LATEST,
    Wall,
    change_between,
    gap_of,
    offset,
    times_of,
    unix_of,
    wall_of,
    zone_of,
)

if TYPE_CHECKING:
    from cronsim import CronSim

LONGEST_EXPRESSION: Final = 200
"""Characters. It bounds what it costs to read one."""

_WORDS: Final = re.compile(r"[0-9A-Za-z*,/#\- \t]*\Z")
ALIASES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
"""Names of expressions, and what they stand for."""

_SECOND: Final = timedelta(seconds=1)
_NEXT_DAY: Final = 26 * 3600
"""No fold is longer. In so many seconds there is at most one change of the clocks."""


@dataclass(frozen=True, slots=True)
class CronExpression:
    """A cron expression with five fields, and the zone of its times.

    Raises:
        ValueError: The text is no such expression, is never due, or the zone is not known.
        ModuleNotFoundError: cronsim is not installed.
    """

    text: str
    tz: str
    zone: tzinfo = field(init=False, repr=False, compare=False)
    once: bool = field(init=False, repr=False, compare=False)
    """Whether it runs once a wall: in a gap at its end, in a fold the first time."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "zone", zone_of(self.tz))
        minute, hour, *_ = _fields(self.text)
        object.__setattr__(self, "once", not minute.startswith("*") and not hour.startswith("*"))
        if _wall_after(self.text, Wall(2026, 1, 1)) is None:
            raise _refused(self.text, "no date fits it, so it is never due")

    def next_after(self, unix: int) -> int | None:
        """The first time after that one, or None if there is none for 50 years."""
        if not EARLIEST < unix < LATEST:
            return None
        wall = wall_of(unix, offset(self.zone, unix))
        return self._once_after(wall, unix) if self.once else self._each_after(wall, unix)

    def walls_between(self, start: Wall, end: Wall) -> Iterator[Wall]:
        """The walls that fit the expression, from ``start`` until before ``end``."""
        wall = _wall_after(self.text, start - _SECOND)
        while wall is not None and wall < end:
            yield wall
            wall = _wall_after(self.text, wall)

    def _once_after(self, wall: Wall, unix: int) -> int | None:
        while (following := _wall_after(self.text, wall)) is not None:
            times = times_of(self.zone, following)
            time = times[0] if times else gap_of(self.zone, following).at
            if time > unix:
                return time
            wall = following
        return None

    def _each_after(self, wall: Wall, unix: int) -> int | None:
        shown = self._shown_after(wall, unix)
        change = change_between(self.zone, unix, unix + _NEXT_DAY)
        if change is None or change.after > change.before:
            return shown
        again = _wall_after(self.text, change.new_wall - _SECOND)  # clocks show some walls again
        if again is None:
            return shown
        time = unix_of(again, change.after)
        return time if shown is None or time < shown else shown

    def _shown_after(self, wall: Wall, unix: int) -> int | None:
        """When clocks first show a later wall than that one."""
        while (following := _wall_after(self.text, wall)) is not None:
            for time in times_of(self.zone, following):
                if time > unix:
                    return time
            wall = self._gap_end(following) - _SECOND
        return None

    def _gap_end(self, wall: Wall) -> Wall:
        return gap_of(self.zone, wall).new_wall


def _wall_after(text: str, wall: Wall) -> Wall | None:
    if wall.year > 9900:
        return None
    # An iterator that lives longer than one time is not to be trusted, so each time is found by a new one.
    return next(_cronsim()(text, wall), None)


def _fields(text: str) -> list[str]:
    """The five fields of an expression that cronsim accepts."""
    if len(text) > LONGEST_EXPRESSION:
        raise _refused(text, f"it has more than {LONGEST_EXPRESSION} characters")
    if text.strip() in ALIASES:
        raise _refused(text, f"write {ALIASES[text.strip()]!r} instead")
    fields = text.split()
    if len(fields) == 6:
        raise _refused(text, "it has six fields; seconds are for Every(seconds=...)")
    if len(fields) != 5 or _WORDS.match(text) is None:
        raise _refused(text, "it has not five fields of digits, names and * , - / # L")
    from_cronsim = _cronsim()
    try:
        from_cronsim(text, Wall(2026, 1, 1))
    except Exception as error:  # noqa: BLE001  the text may come from outside
        raise _refused(text, f"{error}".lower() or "it cannot be read") from None
    return fields


def _refused(text: str, reason: str) -> ValueError:
    shown = text if len(text) <= LONGEST_EXPRESSION else text[:40] + "..."
    return ValueError(
        f"{shown!r} is not a cron expression: {reason}. The fields are minute, hour, day of the month, month "
        "and day of the week, as in '30 3 * * 1-5'"
    )


@lru_cache(maxsize=1)
def _cronsim() -> "type[CronSim]":
    try:
        from cronsim import CronSim
    except ImportError as error:
        raise ModuleNotFoundError(
            f"cron expressions need cronsim ({error}); pip install 'gearflow[cron]'"
        ) from None
    return CronSim
