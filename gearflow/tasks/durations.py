"""Durations as users write them -> seconds."""

import math
from datetime import timedelta
from typing import Any


def seconds(name: str, value: Any) -> float:
    """A number of seconds or a timedelta, as seconds. Raises ValueError, by ``name``, for what is neither."""
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < math.inf:
        raise ValueError(f"{name}={value!r}: it is a number of seconds, or a timedelta, not negative")
    return number
