"""Figures that several pages show: the plots of the last hours, and the functions with their rates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gearflow.observe import Activity, FleetView, percentile
from gearflow.observe.figures import summed
from gearflow.protocol.metrics import FunctionMetrics, MinuteOf
from gearflow.web.past import MINUTE, coarser
from gearflow.web.plots import Plot, PlotLine, grouped
from gearflow.web.sampler import Sample

SPANS: Final[Mapping[str, float]] = {"1 h": 3600.0, "6 h": 21_600.0, "24 h": 86_400.0}
"""The times that plots can show, by the name that the query has."""

FIRST_SPAN: Final = "1 h"

_SHORTEST: Final = 600.0
"""Seconds that a plot shows at least. One of a server that has just started shows no more than there is."""

_IDLE: Final = Activity()


def span_of(name: str) -> tuple[str, float]:
    """The time that the plots show, by the value of the query."""
    return (name, SPANS[name]) if name in SPANS else (FIRST_SPAN, SPANS[FIRST_SPAN])


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


def history_plots(minutes: Sequence[tuple[float, MinuteOf]], span: float, now: float) -> list[Plot]:
    """What happened in the last hours: jobs that ended, jobs that waited and ran, and how long that took."""
    width = grouped(span)
    step = width * MINUTE
    points = coarser(minutes, width)
    times = [at + step / 2 for at, _, _ in points]
    first = points[0][0] if points else now
    axis = (max(now - span, min(first, now - _SHORTEST)), now)

    def rate(*names: str) -> list[float | None]:
        return [sum(getattr(of, name) for name in names) * MINUTE / seconds for _, of, seconds in points]

    def share(name: str, of: float) -> list[float | None]:
        return [percentile(getattr(each, name), of) for _, each, _ in points]

    return [
        Plot(
            "Jobs that ended",
            times,
            [
                PlotLine("succeeded", 1, rate("succeeded"), filled=True),
                PlotLine("failed", 3, rate("failed", "dead", "expired"), filled=True),
            ],
            axis,
            step,
            unit="/min",
        ),
        Plot(
            "Queue",
            times,
            [
                PlotLine("waiting", 4, [each.waiting for _, each, _ in points], filled=True),
                PlotLine("running", 2, [each.running for _, each, _ in points]),
            ],
            axis,
            step,
        ),
        Plot(
            "Time to wait",
            times,
            [PlotLine("half within", 1, share("wait", 0.5)), PlotLine("99 % within", 4, share("wait", 0.99))],
            axis,
            step,
            log=True,
        ),
        Plot(
            "Time to run",
            times,
            [PlotLine("half within", 1, share("run", 0.5)), PlotLine("99 % within", 4, share("run", 0.99))],
            axis,
            step,
            log=True,
        ),
    ]
