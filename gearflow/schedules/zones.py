"""What clocks show in a time zone, and where they are changed.

A *wall* is what a clock on the wall shows: a datetime without a zone. A daylight saving time makes a gap, in
which walls do not exist, or a fold, in which they exist twice.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final, NamedTuple, TypeAlias

Wall: TypeAlias = datetime

DAY: Final = 86400
LATEST: Final = 253_000_000_000
"""Unix seconds, in the year 9987. Python's datetimes end soon after it."""
EARLIEST: Final = -62_000_000_000
"""Unix seconds, in the year 5."""

_EPOCH: Final = datetime(1970, 1, 1)


class ClockChange(NamedTuple):
    """Where the clocks of a zone are changed.

    Attributes:
        at: The first second with the new offset, in Unix seconds.
        before: Seconds east of UTC before the change.
        after: Seconds east of UTC after it. If it is more than ``before``, walls are skipped.
    """

    at: int
    before: int
    after: int

    @property
    def old_wall(self) -> Wall:
        """What clocks would show at the change if nobody changed them."""
        return wall_of(self.at, self.before)

    @property
    def new_wall(self) -> Wall:
        """What clocks show at the change."""
        return wall_of(self.at, self.after)


def zone_of(name: str) -> tzinfo:
    """The zone with that name of the IANA database, such as ``Europe/Berlin``.

    Raises:
        ValueError: There is none. The message says what to do.
    """
    if name == "UTC":
        return UTC
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        if "\0" not in name and 0 < len(name) <= 100:
            return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # a name that is no relative path, or a folder
        pass
    shown = name if len(name) <= 100 else name[:97] + "..."
    raise ValueError(
        f"tz={shown!r}: this machine knows no such time zone; write an IANA name such as 'Europe/Berlin'. If "
        "the name is right, install the database: apt install tzdata, or pip install tzdata"
    )


def offset(zone: tzinfo, unix: int) -> int:
    """Seconds east of UTC at that time."""
    return _seconds(datetime.fromtimestamp(unix, zone).utcoffset())


def wall_of(unix: int, offset: int) -> Wall:
    """What clocks show at that time."""
    return _EPOCH + timedelta(seconds=unix + offset)


def unix_of(wall: Wall, offset: int) -> int:
    """When clocks with that offset show that wall."""
    return _seconds(wall - _EPOCH) - offset


def times_of(zone: tzinfo, wall: Wall) -> tuple[int, ...]:
    """When clocks show that wall: never (in a gap), once, or twice (in a fold), in order."""
    earlier, later = candidates(zone, wall)
    if earlier == later:
        return (earlier,)
    return (earlier, later) if earlier < later else ()


def candidates(zone: tzinfo, wall: Wall) -> tuple[int, int]:
    """The time of a wall by the offset before a change, and by the one after it. Equal if there is none.

    In a fold the first is the earlier, and both exist. In a gap the first is the later, and none exists.
    """
    first = _seconds(wall.replace(tzinfo=zone, fold=0).utcoffset())
    second = _seconds(wall.replace(tzinfo=zone, fold=1).utcoffset())
    return unix_of(wall, first), unix_of(wall, second)


def gap_of(zone: tzinfo, wall: Wall) -> ClockChange:
    """The change that skips that wall, which must be in a gap."""
    late, early = candidates(zone, wall)
    found = change_between(zone, early, late)
    assert found is not None
    return found


def change_between(zone: tzinfo, start: int, end: int) -> ClockChange | None:
    """The change after ``start`` up to ``end``, which are so close that there is at most one."""
    before, after = offset(zone, start), offset(zone, end)
    if before == after:
        return None
    while end - start > 1:
        middle = (start + end) // 2
        if offset(zone, middle) == before:
            start = middle
        else:
            end = middle
    return ClockChange(end, before, offset(zone, end))


def changes(zone: tzinfo, start: int, end: int) -> Iterator[ClockChange]:
    """All changes after ``start`` up to ``end``, in order. It costs about a microsecond a day."""
    if zone is UTC:
        return
    while start < end:
        following = min(start + DAY, end)
        if (found := change_between(zone, start, following)) is not None:
            yield found
        start = following


def _seconds(duration: timedelta | None) -> int:
    assert duration is not None  # zones of the database have an offset at every time
    return duration.days * DAY + duration.seconds
