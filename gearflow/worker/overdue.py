"""Runs that go on although their job has ended: a thread that overran its limit cannot be stopped.

Each keeps its slot until it ends by itself. A server sees nothing of them, so gearflow's own is told how
many there are, for whoever wonders why a worker takes no jobs.
"""

from collections import Counter
from collections.abc import Callable, Mapping

from gearflow.worker.grabbing import Grabbing


class Overdue:
    """Counts them by function. Owns state; ``when_changed`` is called after each change."""

    __slots__ = ("_counts", "_grabbing", "_when_changed")

    def __init__(self, grabbing: Grabbing, when_changed: Callable[[], None]) -> None:
        self._grabbing = grabbing
        self._when_changed = when_changed
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> Mapping[str, int]:
        """How many there are, by function; only of functions that have some."""
        return +self._counts

    def began(self, function: str) -> None:
        """The job of a run was reported as timed out, and its thread goes on."""
        self._counts[function] += 1
        self._grabbing.overran()
        self._when_changed()

    def ended(self, function: str) -> None:
        """Its thread has ended."""
        self._counts[function] -= 1
        self._grabbing.overdue_finished()
        self._when_changed()
