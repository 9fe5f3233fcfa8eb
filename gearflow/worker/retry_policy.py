"""Decides after an exception whether a job runs again, and when: a decision as a value, without a clock.

=======================  ======================================================================
``Snooze``               the job runs again, and this run does not count
``TryAgain``             it runs again if attempts are left, whatever the ``on`` of the retries; without
                         retries there are as many attempts as ``Retry()`` has
``Discard``, ``Fail``      it fails, whatever is left
``PayloadInvalid``       it fails: what does not fit its types now never will
what ``on`` matches      it runs again if attempts are left (``TaskTimeout`` too is matched, or not)
anything else            it fails; without retries, that is everything
=======================  ======================================================================

A job that fails because ``TryAgain`` found no attempts left fails with the error from which that was
raised, if there is one: that is the reason, and what a caller can match.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from gearflow.tasks import Retry
from gearflow.tasks.control_flow import Discard, Snooze, TryAgain

LONGEST_DELAY: Final = 1e10
"""Seconds, three hundred years: what the wire takes."""

MAX_REASON: Final = 1000
"""Characters of an error's message in a reason; all of it is in the log."""


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """The job is to run again."""

    delay: float
    """Seconds from now."""

    reason: str
    """For those who wait: one line."""

    counted: bool = True
    """Whether the run counts as an attempt."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The job fails for good."""

    error: BaseException
    """The one that callers and the log get."""


RetryDecision: TypeAlias = RetryAfter | GiveUp


def decide(
    error: BaseException,
    retries: Retry | None,
    attempt: int,
    *,
    draw: Callable[[], float] = random.random,
) -> RetryDecision:
    """What becomes of a job whose run, the ``attempt``-th that counts, ended so.

    ``draw`` gives a number from 0 to 1. Raises what a user's ``backoff`` raises.
    """
    match error:
        case Snooze():
            delay = _capped(error.seconds)
            return RetryAfter(delay, f"too early; again in {_seconds(delay)}", counted=False)
        case TryAgain():
            retries = retries or Retry()
        case Discard():
            return GiveUp(error)
        case _:
            if retries is None or not retries.wants(error):
                return GiveUp(error)
    scheduled = retries.delay(attempt, draw=draw)
    if scheduled is None:
        return GiveUp((error.__cause__ or error) if isinstance(error, TryAgain) else error)
    asked = error.after if isinstance(error, TryAgain) else None
    delay = _capped(scheduled if asked is None else asked)
    reason = f"attempt {attempt} of {retries.attempts} {_what_happened(error)}; again in {_seconds(delay)}"
    return RetryAfter(delay, reason)


def _capped(seconds: float) -> float:
    """A delay that the wire takes; none is negative."""
    return min(seconds, LONGEST_DELAY)


def _what_happened(error: BaseException) -> str:
    if not isinstance(error, TryAgain):
        return f"failed: {one_line(error)}"
    return "asks for another" if error.__cause__ is None else f"failed: {one_line(error.__cause__)}"


def one_line(error: BaseException) -> str:
    """An exception on one line, without what could not be printed."""
    name = type(error).__qualname__
    try:
        text = " ".join(str(error).split())
    except BaseException:  # noqa: BLE001  (a user's __str__ may raise anything)
        return f"{name}, whose str() fails"
    text = text[:MAX_REASON].encode("utf-8", "backslashreplace").decode()
    return f"{name}: {text}" if text else name


def _seconds(seconds: float) -> str:
    return f"{round(seconds, 2):.12g} s"
