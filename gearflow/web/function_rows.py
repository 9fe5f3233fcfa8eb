"""The functions of all servers, each with what happened to its jobs lately."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gearflow.observe import Activity, FleetView, percentile
from gearflow.observe.activity import summed
from gearflow.protocol.metrics import FunctionMetrics
from gearflow.web.sampler import Sample

OLD: Final = 300.0
"""Seconds after which a waiting job is called old."""

_IDLE: Final = Activity()


@dataclass(frozen=True, slots=True)
class FunctionRow:
    """A function with what happened lately. A frozen value."""

    now: FunctionMetrics
    """Its counts over all servers."""

    lately: Activity
    """What happened per second, in about the last minute."""

    limits: Sequence[str] = ()
    """Its limits as texts."""

    why: str = ""
    """Why its next job waits, if not for its turn."""

    counted: bool = True
    """Whether the servers count. C gearmand shows only jobs that wait and run, and workers."""

    @property
    def name(self) -> str:
        """The name of the function."""
        return self.now.function

    @property
    def waiting(self) -> int:
        """Jobs that wait, of all priorities."""
        return sum(self.now.waiting)

    @property
    def is_old(self) -> bool:
        """Whether a job has waited for long."""
        return self.now.oldest is not None and self.now.oldest > OLD

    @property
    def failing(self) -> float:
        """The share of the jobs that ended lately without a result."""
        return self.lately.lost / self.lately.ended if self.lately.ended else 0.0

    @property
    def p50(self) -> float | None:
        """The median of the running times, lately if anything ended, else since the server started."""
        return self._percentile(0.5)

    @property
    def p99(self) -> float | None:
        """The time within which 99 of 100 jobs ended."""
        return self._percentile(0.99)

    def _percentile(self, share: float) -> float | None:
        lately = percentile(self.lately.run, share)
        return lately if lately is not None else percentile(self.now.run, share)


def rows(sample: Sample, server: str | None = None) -> list[FunctionRow]:
    """The functions of all servers, or of one of them."""
    fleet = sample.fleet
    if server is not None:
        fleet = FleetView(tuple(view for view in fleet.servers if view.address == server))
    return [row(sample, fleet, function) for function in fleet.functions]


def row(sample: Sample, fleet: FleetView, function: FunctionMetrics) -> FunctionRow:
    """A function of some servers."""
    views = fleet.of(function.function)
    texts = dict.fromkeys(text for view in views for text in view.limit_texts.limits(function.function))
    return FunctionRow(
        function,
        sample.rates.get(function.function, _IDLE),
        tuple(texts),
        fleet.waits_for(function.function),
        any(view.counted for view in views),
    )


def total(sample: Sample) -> Activity:
    """What happened lately to the jobs of all functions, per second."""
    return summed(sample.rates.values())
