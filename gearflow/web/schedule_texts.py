"""When a schedule is due, in words."""

import re
from typing import Final

from gearflow.protocol.schedules import ScheduleWhen
from gearflow.schedules.expression import ALIASES
from gearflow.web.formatting import duration

_DAYS: Final = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_SHORT: Final = {day[:3].upper(): str(number) for number, day in enumerate(_DAYS)}
_MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September", "October"),
    *("November", "December"),
)
_STEP: Final = re.compile(r"\*/([0-9]{1,3})", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,2}", re.ASCII)


def when_text(when: ScheduleWhen) -> str:
    """``every day at 03:00, Europe/Berlin``. The expression itself if it is too special for words."""
    if when.cron is None:
        return f"every {duration(when.every)}"
    words = _cron(ALIASES.get(when.cron.strip().lower(), when.cron).split())
    text = words or f"cron {when.cron}"
    needs_zone = words is None or (" at " in words and not words.startswith("every hour"))
    return f"{text}, {when.tz}" if needs_zone else text


def _cron(fields: list[str]) -> str | None:
    """A cron expression in words. None if it is too special."""
    if len(fields) != 5:
        return None
    minute, hour, day, month, weekday = fields
    if (date := _date(day, month, weekday)) is None:
        return None
    if (match := _STEP.fullmatch(minute)) and hour == "*" and date == "every day":
        return "every minute" if match[1] == "1" else f"every {match[1]} min"
    if minute == hour == "*" and date == "every day":
        return "every minute"
    if not _NUMBER.fullmatch(minute):
        return None
    if hour == "*" and date == "every day":
        return f"every hour at :{int(minute):02}"
    if (match := _STEP.fullmatch(hour)) and date == "every day":
        return f"every {match[1]} h at :{int(minute):02}"
    hours = hour.split(",")
    if not all(_NUMBER.fullmatch(each) for each in hours):
        return None
    return f"{date} at {_listed([f'{int(each):02}:{int(minute):02}' for each in hours])}"


def _date(day: str, month: str, weekday: str) -> str | None:
    if day == "*" and month == "*":
        return _weekdays(weekday)
    if weekday != "*" or not _NUMBER.fullmatch(day):
        return None
    if month == "*":
        return f"on day {int(day)} of each month"
    if _NUMBER.fullmatch(month) and 1 <= int(month) <= 12:
        return f"each {int(day)} {_MONTHS[int(month) - 1]}"
    return None


def _weekdays(weekday: str) -> str | None:
    if weekday == "*":
        return "every day"
    given = re.sub("[A-Za-z]{3}", lambda match: _SHORT.get(match[0].upper(), match[0]), weekday)
    if given == "1-5":
        return "on weekdays"
    numbers = given.split(",")
    if given in ("6,0", "0,6", "6-7", "6,7") or not all(re.fullmatch("[0-7]", each) for each in numbers):
        return "on weekends" if given in ("6,0", "0,6", "6-7", "6,7") else None
    return f"every {_listed([_DAYS[int(each) % 7] for each in numbers])}"


def _listed(words: list[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
