"""Durations as users write them -> seconds."""

import math
import re
from datetime import timedelta
from typing import Any, Final, TypeGuard

LONGEST: Final = 1e10
"""Seconds, three hundred years. The wire takes no more."""


def seconds(name: str, value: Any) -> float:
    """The seconds in a number or a timedelta. Raises ValueError, by ``name``, for anything else."""
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if not is_number(number) or not 0 <= number < math.inf:
        raise ValueError(f"{name}={value!r}: it is a number of seconds, or a timedelta, not negative")
    return number


def bounded(name: str, value: Any) -> float:
    """The same, up to the limit of the wire. Raises ValueError for more."""
    number = seconds(name, value)
    if number > LONGEST:
        raise ValueError(
            f"{name}={value!r}: {LONGEST:.0f} seconds (300 years) is the most; give less, or leave it out"
        )
    return number


_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])", re.ASCII)


def from_text(name: str, value: Any) -> float:
    """The same as ``bounded``, and a text such as ``"30s"`` or ``"1h30m"``."""
    if not isinstance(value, str):
        return bounded(name, value)
    if not re.fullmatch(rf"(?:{_PART.pattern})+", value, re.ASCII):
        raise ValueError(f"{name}={value!r}: it is a text such as '30s', '1m', '1h30m' or '2d', or seconds")
    return bounded(name, sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(value)))


def wait_limit(name: str, value: Any) -> float | None:
    """How long a caller waits. A negative time is 0, and None means for ever.

    Raises ValueError, by ``name``, if it is no duration.
    """
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if number is None:
        return None
    if not is_number(number) or number != number:  # nan
        raise ValueError(f"{name}={value!r}: it is a number of seconds, a timedelta, or None for no limit")
    return max(number, 0.0) if number <= LONGEST else None


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is an int or a float, but not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)
