"""The activity of functions: what happened to their jobs between two views, per second."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from gearflow.observe.view import ServerView
from gearflow.protocol.histograms import Histogram, added, between
from gearflow.protocol.metrics import FunctionMetrics

_OUTCOMES: Final = ("succeeded", "failed", "cancelled", "expired", "dead")
_EMPTY: Final = Histogram()
_COUNTS: Final = ("submitted", "joined", "started", *_OUTCOMES, "retried")


@dataclass(frozen=True, slots=True)
class Activity:
    """The activity of a function in some time. All numbers are per second. A frozen value."""

    submitted: float = 0
    """New jobs."""

    joined: float = 0
    """Submissions that joined a job."""

    started: float = 0
    """Runs that began."""

    succeeded: float = 0
    """Jobs that ended with a result."""

    failed: float = 0
    """Jobs that failed and left no dead letter."""

    cancelled: float = 0
    """Jobs that were cancelled."""

    expired: float = 0
    """Jobs that had not started in time."""

    dead: float = 0
    """Jobs that became dead letters."""

    retried: float = 0
    """Runs after which the job was queued again."""

    wait: Histogram = _EMPTY
    """Of the runs that began in that time, how long their jobs had waited. Not per second."""

    run: Histogram = _EMPTY
    """Of the jobs that ended in that time, how long they had run. Not per second."""

    @property
    def ended(self) -> float:
        """Jobs that ended, in whatever way."""
        return self.succeeded + self.failed + self.cancelled + self.expired + self.dead

    @property
    def lost(self) -> float:
        """Jobs that ended without a result, except those that were cancelled."""
        return self.failed + self.expired + self.dead


_NOTHING: Final = FunctionMetrics(function="")


def activity(before: ServerView, after: ServerView) -> dict[str, Activity]:
    """Return the activity on a server between two views, by function. Idle functions are left out.

    Empty if one of the views has no counts. If the server was restarted in between, it is what has happened
    since its start.

    Args:
        before: An earlier view of the server.
        after: A later one.
    """
    if before.metrics is None or after.metrics is None:
        return {}
    restarted = before.metrics.started != after.metrics.started
    since = after.metrics.started if restarted else before.metrics.time
    seconds = after.metrics.time - since
    if seconds <= 0:
        return {}
    earlier: Mapping[str, FunctionMetrics] = {} if restarted else before.by_function
    found = {
        now.function: _activity(earlier.get(now.function, _NOTHING), now, seconds) for now in after.functions
    }
    return {name: each for name, each in found.items() if each is not None}


def _activity(then: FunctionMetrics, now: FunctionMetrics, seconds: float) -> Activity | None:
    counts = {name: max(0, getattr(now, name) - getattr(then, name)) for name in _COUNTS}
    if not any(counts.values()):
        return None
    rates = {name: count / seconds for name, count in counts.items()}
    return Activity(**rates, wait=between(then.wait, now.wait), run=between(then.run, now.run))


def summed(activities: Iterable[Activity]) -> Activity:
    """The activities of several servers or functions as one."""
    each = list(activities)
    rates = {name: float(sum(getattr(one, name) for one in each)) for name in _COUNTS}
    return Activity(**rates, wait=added(one.wait for one in each), run=added(one.run for one in each))
