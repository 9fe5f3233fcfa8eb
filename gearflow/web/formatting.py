"""Figures, times and names as the pages show them. Templates have these functions as filters."""

import re
import time
from datetime import UTC, datetime
from typing import Final

from markupsafe import Markup

from gearflow import quantities
from gearflow.protocol.uniques import is_fresh
from gearflow.quantities import counted

_STATES: Final = {
    "running": ("running", "accent"),
    "completed": ("succeeded", "good"),
    "failed": ("failed", "bad"),
    "raised": ("failed", "bad"),
    "workers_died": ("workers died", "bad"),
    "damaged": ("damaged", "bad"),
    "cancelled": ("cancelled", "warn"),
    "expired": ("expired", "warn"),
}
"""What differs from the name of a state on the wire, or has a colour."""

_LAST: Final = datetime(9999, 12, 31, tzinfo=UTC).timestamp()

NOTHING: Final = "\N{EN DASH}"
"""Stands where there is no figure."""


def visible(text: str) -> str:
    """The text with everything that has no picture of its own escaped, so that names cannot imitate others.

    These are control characters, bytes that are not UTF-8, and characters that turn the direction of text.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in "\n\t" else _escape(each) for each in text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if character == "\N{ZERO WIDTH JOINER}" or character == "\N{NO-BREAK SPACE}":  # of emoji, and of figures
        return character
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def finalized(value: object) -> object:
    """The value as a template shows it. Markup stays as it is."""
    if value is None:
        return ""
    if isinstance(value, str) and not isinstance(value, Markup):
        return visible(value)
    return value


def number(value: float | None) -> str:
    """``1,234`` or ``1.5``."""
    return NOTHING if value is None else quantities.number(value)


def short(value: float | None) -> str:
    """At most five characters, such as ``12.3k``."""
    return NOTHING if value is None else quantities.short_number(value)


def duration(seconds: float | None) -> str:
    """``340 ms``, ``2.5 s``, ``3 min 20 s``, ``2 h 5 min``."""
    return NOTHING if seconds is None else quantities.duration(seconds)


def size(count: float | None) -> str:
    """``1.5 MiB``."""
    return NOTHING if count is None else quantities.size(count)


def unbroken(text: object) -> object:
    """The text with each number on the line of its unit. Markup stays as it is."""
    if not isinstance(text, str) or isinstance(text, Markup):
        return text
    return re.sub(r"(?<=[0-9]) (?=[A-Za-z%])", "\N{NO-BREAK SPACE}", text)


def chosen(unique: str) -> str:
    """The unique of a job if a caller has chosen it. Empty for those that gearflow makes."""
    return "" if is_fresh(unique) else unique


def keyless(why: str) -> str:
    """Why a job waits, without the key of a limit, which is a value in its payload."""
    return re.sub(r" \(.*\):", ":", why, flags=re.DOTALL)


def moment(at: float) -> str:
    """``2026-11-30 02:20:11 UTC``."""
    return f"{_date(at):%Y-%m-%d %H:%M:%S} UTC"


def _date(at: float) -> datetime:
    """The time, or the nearest one that a calendar has. The clock of a server may say anything."""
    return datetime.fromtimestamp(min(max(at, 0.0), _LAST), UTC)


def state(name: str) -> tuple[str, str]:
    """The state of a job as lists show it: a word, and its colour."""
    return _STATES.get(name, (name.replace("_", " "), ""))


def ago(at: float | None, now: float | None = None) -> Markup:
    """``3 min ago`` or ``in 5 s``, with the time itself for those who point at it."""
    if at is None:
        return Markup(NOTHING)
    passed = (time.time() if now is None else now) - at
    if abs(passed) < 1:
        text = "now"
    else:
        text = f"{duration(passed)} ago" if passed > 0 else f"in {duration(-passed)}"
    return when(at, text)


def lasting(since: float, now: float | None = None) -> Markup:
    """``3 min``, the time since then, with the start for those who point at it."""
    return when(since, duration(max((time.time() if now is None else now) - since, 0.0)))


def clock(at: float | None) -> Markup:
    """The time itself. The browser shows it in the visitor's time zone, if it runs scripts."""
    return Markup(NOTHING) if at is None else when(at, "")


def when(at: float, text: str) -> Markup:
    """An element ``time`` with a text. Without one it has the time itself, in UTC."""
    iso = _date(at).isoformat(timespec="seconds")
    if not text:
        return Markup('<time datetime="{0}" data-clock>{1}</time>').format(iso, moment(at))
    return Markup('<time datetime="{0}" title="{1}">{2}</time>').format(iso, moment(at), text)


def broken(name: str) -> Markup:
    """A name that a line may break after its dots and slashes."""
    return Markup("<wbr>").join(re.findall(r"[^./:]*[./:]?", visible(name))[:-1])


FILTERS: Final = {
    "number": number,
    "short": short,
    "duration": duration,
    "size": size,
    "state": state,
    "unbroken": unbroken,
    "count": counted,
    "moment": moment,
    "ago": ago,
    "lasting": lasting,
    "clock": clock,
    "chosen": chosen,
    "keyless": keyless,
    "visible": visible,
    "broken": broken,
}
"""The filters of templates by name."""
