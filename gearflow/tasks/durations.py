"""Durations as users write them -> seconds."""

import math
from datetime import timedelta
from typing import Any, Final, TypeGuard

LONGEST: Final = 1e10
"""Seconds, three hundred years: what the wire takes."""


def seconds(name: str, value: Any) -> float:
    """A number of seconds or a timedelta, as seconds. Raises ValueError, by ``name``, for what is neither."""
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if not is_number(number) or not 0 <= number < math.inf:
        raise ValueError(f"{name}={value!r}: it is a number of seconds, or a timedelta, not negative")
    return number


def bounded(name: str, value: Any) -> float:
    """The same, of what the wire takes. Raises ValueError also for more than that."""
    number = seconds(name, value)
    if number > LONGEST:
        raise ValueError(
            f"{name}={value!r}: {LONGEST:.0f} seconds (300 years) is the most; give less, or leave it out"
        )
    return number


def wait_limit(name: str, value: Any) -> float | None:
    """How long a caller waits: what is over already is 0, and None is for ever.

    Raises ValueError, by ``name``, for what is no duration.
    """
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if number is None:
        return None
    if not is_number(number) or number != number:  # nan
        raise ValueError(f"{name}={value!r}: it is a number of seconds, a timedelta, or None for no limit")
    return max(number, 0.0) if number <= LONGEST else None


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is an int or a float; True and False are not meant as such."""
    return isinstance(value, int | float) and not isinstance(value, bool)
