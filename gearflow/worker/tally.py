"""What a worker has done so far, in numbers."""

import time
from typing import Final

from gearflow.worker.outcome import Outcome

_FAILURES: Final = frozenset({Outcome.FAILED, Outcome.TIMED_OUT, Outcome.INVALID, Outcome.DISCARDED})


class Tally:
    """Counts the runs that have ended. Owns state."""

    __slots__ = ("done", "ended", "failed", "last_end")

    def __init__(self) -> None:
        self.ended = 0  # in whatever way
        self.done = 0
        self.failed = 0  # for good: runs that are retried, snoozed, cancelled or handed on are not
        self.last_end = time.perf_counter()  # of a run; before the first one, of the worker's making

    def add(self, outcome: Outcome, now: float) -> None:
        """A run has ended."""
        self.ended += 1
        self.last_end = now
        if outcome is Outcome.DONE:
            self.done += 1
        elif outcome in _FAILURES:
            self.failed += 1
