"""The line of the log that each run ends with; never its payload, so no traceback of what is invalid."""

import logging
from typing import Final

from gearflow.tasks.control import Control, Discard
from gearflow.worker.outcome import Outcome
from gearflow.worker.run import Run
from gearflow.worker.verdict import said

logger = logging.getLogger("gearflow.worker")

_AS_USUAL: Final = (Outcome.DONE, Outcome.SNOOZED, Outcome.CANCELLED)


def run_ended(run: Run, outcome: Outcome, failure: BaseException | None, seconds: float) -> None:
    """Log how a run ended after so many seconds; ``failure`` is what it raised."""
    level = logging.INFO if outcome in _AS_USUAL else logging.WARNING
    if not logger.isEnabledFor(level):
        return
    fields = {**run.named(), "duration": seconds, "outcome": str(outcome)}
    if run.again is not None:
        fields |= {"delay": run.again.delay, "reason": run.again.reason}
    elif outcome is Outcome.DISCARDED and isinstance(failure, Discard):
        fields["reason"] = said(failure)
    shown = failure if outcome is Outcome.FAILED or outcome is Outcome.RETRIED else None
    if isinstance(shown, Control):
        shown = shown.__cause__
    logger.log(level, f"job {outcome}", extra=fields, exc_info=shown)


def handed_on(fields: dict[str, object]) -> None:
    """Log that a job which waited here for its next run is another worker's now."""
    logger.warning("job handed on", extra={**fields, "outcome": str(Outcome.HANDED_ON)})
