"""How a run ended, in one word: for the log, and for what is counted."""

from enum import StrEnum

from gearflow.errors import PayloadInvalid, TaskTimeout
from gearflow.tasks.control import Discard, Snooze
from gearflow.worker.run import Run


class Outcome(StrEnum):
    """The word that the log has for it."""

    DONE = "done"
    SNOOZED = "snoozed"
    RETRIED = "retried"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    INVALID = "invalid"  # payload or result do not fit their types
    DISCARDED = "discarded"
    CANCELLED = "cancelled"
    HANDED_ON = "handed on"


def outcome_of(run: Run, failure: BaseException | None) -> Outcome:
    """How a run ended; ``failure`` is what it raised."""
    if run.handed_on:
        return Outcome.HANDED_ON
    if run.cancelled:
        return Outcome.CANCELLED
    if run.again is not None:
        return Outcome.SNOOZED if isinstance(failure, Snooze) else Outcome.RETRIED
    match failure:
        case None:
            return Outcome.DONE
        case TaskTimeout():
            return Outcome.TIMED_OUT
        case PayloadInvalid():
            return Outcome.INVALID
        case Discard():
            return Outcome.DISCARDED
        case _:
            return Outcome.FAILED
