"""Durations as users write them."""

import math
from datetime import timedelta
from typing import Any

import pytest

from gearflow.tasks.durations import LONGEST, wait_limit


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (None, None),
        (1.5, 1.5),
        (timedelta(minutes=1), 60),
        (-1, 0),  # a deadline that is past
        (timedelta(seconds=-1), 0),
        (LONGEST, LONGEST),
        (1e300, None),
        (10**400, None),
        (math.inf, None),
        (timedelta.max, None),
    ],
    ids=repr,
)
def test_a_wait_has_a_limit_or_none(given: float | timedelta | None, seconds: float | None) -> None:
    assert wait_limit("timeout", given) == seconds


@pytest.mark.parametrize("nonsense", ["1", math.nan, True, [1]], ids=repr)
def test_what_is_no_duration_is_refused_by_name(nonsense: Any) -> None:
    with pytest.raises(ValueError, match=r"timeout=.*: it is a number of seconds, a timedelta, or None"):
        wait_limit("timeout", nonsense)
