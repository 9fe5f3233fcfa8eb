"""The plots of the last hours, for all functions or one of them."""

from collections.abc import Mapping, Sequence
from typing import Final

from gearflow.observe import percentile
from gearflow.protocol.metrics import FunctionMinute
from gearflow.web.history import MINUTE, coarser
from gearflow.web.plots import Plot, PlotLine, grouped

SPANS: Final[Mapping[str, float]] = {"1 h": 3600.0, "6 h": 21_600.0, "24 h": 86_400.0}
"""The times that plots can show, by the name that the query has."""

FIRST_SPAN: Final = "1 h"

_SHORTEST: Final = 600.0
"""Seconds that a plot shows at least. One of a server that has just started shows no more than there is."""


def span_of(name: str) -> tuple[str, float]:
    """The time that the plots show, by the value of the query: its name, and its seconds."""
    return (name, SPANS[name]) if name in SPANS else (FIRST_SPAN, SPANS[FIRST_SPAN])


def history_plots(minutes: Sequence[tuple[float, FunctionMinute]], span: float, now: float) -> list[Plot]:
    """What happened in the last hours: jobs that ended, jobs that waited and ran, and how long that took.

    Args:
        minutes: The begin of each minute (Unix time), and what happened in it.
        span: Seconds that the plots show.
        now: The Unix time at which they end.
    """
    width = grouped(span)
    step = width * MINUTE
    points = coarser(minutes, width)
    times = [at + step / 2 for at, _, _ in points]
    first = points[0][0] if points else now
    axis = (max(now - span, min(first, now - _SHORTEST)), now)

    def rate(*names: str) -> list[float | None]:
        return [sum(getattr(of, name) for name in names) * MINUTE / seconds for _, of, seconds in points]

    def durations(title: str, name: str) -> Plot:
        half, most = ([percentile(getattr(of, name), share) for _, of, _ in points] for share in (0.5, 0.99))
        lines = [PlotLine("half within", 1, half), PlotLine("99 % within", 4, most)]
        return Plot(title, times, lines, axis, step, log=True)

    ended = [
        PlotLine("succeeded", 1, rate("succeeded"), filled=True),
        PlotLine("failed", 3, rate("failed", "dead", "expired"), filled=True),
    ]
    queue = [
        PlotLine("waiting", 4, [of.waiting for _, of, _ in points], filled=True),
        PlotLine("running", 2, [of.running for _, of, _ in points]),
    ]
    return [
        Plot("Jobs that ended", times, ended, axis, step, unit="/min"),
        Plot("Queue", times, queue, axis, step),
        durations("Time to wait", "wait"),
        durations("Time to run", "run"),
    ]
