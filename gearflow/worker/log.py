"""The line of the log that each run ends with; never its payload, so no traceback of what is invalid."""

import logging

from gearflow.errors import PayloadInvalid, TaskTimeout
from gearflow.tasks.control import Control, Discard, Snooze
from gearflow.worker.run import Run

logger = logging.getLogger("gearflow.worker")


def run_ended(run: Run, failure: BaseException | None, seconds: float) -> None:
    """Log how a run ended after so many seconds; ``failure`` is what it raised."""
    outcome = _outcome(run, failure)
    level = logging.INFO if outcome in ("done", "snoozed") else logging.WARNING
    if not logger.isEnabledFor(level):
        return
    fields = {**run.named(), "duration": seconds, "outcome": outcome}
    if run.again is not None:
        fields |= {"delay": run.again.delay, "reason": run.again.reason}
    shown = failure if outcome in ("failed", "retried") else None
    if isinstance(shown, Control):
        shown = shown.__cause__
    logger.log(level, f"job {outcome}", extra=fields, exc_info=shown)


def handed_on(fields: dict[str, object]) -> None:
    """Log that a job which waited here for its next run is another worker's now."""
    logger.warning("job handed on", extra={**fields, "outcome": "handed on"})


def _outcome(run: Run, failure: BaseException | None) -> str:
    if run.handed_on:
        return "handed on"
    if run.cancelled:
        return "cancelled"
    if run.again is not None:
        return "snoozed" if isinstance(failure, Snooze) else "retried"
    match failure:
        case None:
            return "done"
        case TaskTimeout():
            return "timed out"
        case PayloadInvalid():
            return "invalid"  # payload or result do not fit their types
        case Discard():
            return "discarded"
        case _:
            return "failed"
