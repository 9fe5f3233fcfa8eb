"""Plots as SVG, drawn by the server: lines over time, and bars.

The drawing stretches to the width of its place, so it has no text in it. The labels beside it are HTML. The
values of a moment are a tooltip of it, which needs no script.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil, floor, log10
from typing import Final

from markupsafe import Markup

from gearflow.web.formatting import duration, moment, short

_WIDTH: Final = 600
_HEIGHT: Final = 140
_GAP: Final = 1.6
"""A line is interrupted between points that are further apart than so many steps."""


@dataclass(frozen=True, slots=True)
class PlotLine:
    """A line of a plot. A frozen value."""

    name: str
    """The name in the legend."""

    color: int
    """The number of its colour, from 1 to 4."""

    values: Sequence[float | None]
    """A value for each moment. None interrupts the line."""

    filled: bool = False
    """Whether the area below it has its colour, too."""


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines over time. A frozen value."""

    title: str
    times: Sequence[float]
    """The moments (Unix time), in order."""

    lines: Sequence[PlotLine]
    span: tuple[float, float]
    """The first and the last moment of the axis."""

    step: float
    """Seconds between two moments."""

    unit: str = ""
    """Stands behind the values, such as ``/min``."""

    log: bool = False
    """Whether the values are durations, which are shown on a logarithmic axis."""

    def __html__(self) -> str:
        """The plot as a figure."""
        return str(_figure(self))

    def text(self, value: float | None) -> str:
        """A value as people read it."""
        return duration(value) if self.log else short(value) + (self.unit if value else "")


def bar(parts: Sequence[tuple[float, int]], whole: float, label: str) -> Markup:
    """A bar: how large parts of a whole are, each with the number of its colour."""
    x, rects = 0.0, Markup()
    for value, color in parts:
        width = min(100 - x, 100 * value / whole) if whole > 0 else 0.0
        rects += Markup('<rect class="s{0}" x="{1:.2f}" width="{2:.2f}" height="10"/>').format(
            color, x, width
        )
        x += width
    return Markup(
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{0}">'
        '<title>{0}</title><rect width="100" height="10"/>{1}</svg>'
    ).format(label, rects)


def _figure(plot: Plot) -> Markup:
    axis = _Axis.of(plot)
    legend = Markup().join(
        Markup('<li class="s{0}">{1} <span class="now">{2}</span></li>').format(
            line.color, line.name, plot.text(_last(line.values))
        )
        for line in plot.lines
    )
    tick = _rough if plot.log else short
    ticks = Markup().join(Markup("<span>{0}</span>").format(tick(value)) for value in axis.labels)
    first, last = plot.span
    moments = (first, (first + last) / 2, last)
    clocks = Markup().join(
        Markup('<span data-time="{0:.0f}">{1:%H:%M}</span>').format(at, datetime.fromtimestamp(at, UTC))
        for at in moments
    )
    return Markup(
        '<figure class="plot card"><header><figcaption>{0}</figcaption><ul class="legend">{1}</ul></header>'
        '<div class="plot-body"><div class="plot-y" aria-hidden="true">{2}</div>{3}'
        '<div class="plot-x" aria-hidden="true">{4}</div></div></figure>'
    ).format(plot.title, legend, ticks, _drawing(plot, axis), clocks)


def _drawing(plot: Plot, axis: "_Axis") -> Markup:
    shapes = [
        Markup('<path class="grid" d="M0 {0:.1f}H{1}"/>').format(axis.y(at), _WIDTH) for at in axis.labels
    ]
    for line in plot.lines:
        runs = list(_runs(plot, line, axis))
        if line.filled:
            areas = "".join(
                f"M{run[0][0]:.1f} {_HEIGHT}{_path(run, 'L')}L{run[-1][0]:.1f} {_HEIGHT}Z" for run in runs
            )
            shapes.append(Markup('<path class="area s{0}" d="{1}"/>').format(line.color, areas))
        for kind, some in (
            ("", [run for run in runs if run[1:]]),
            (" dot", [run for run in runs if not run[1:]]),
        ):
            if some:
                path = "".join(_path(run, "M") for run in some)
                shapes.append(Markup('<path class="line{0} s{1}" d="{2}"/>').format(kind, line.color, path))
    shapes += [_hit(plot, index, axis) for index in range(len(plot.times))]
    return Markup(
        '<svg viewBox="0 0 {0} {1}" preserveAspectRatio="none" role="img" aria-label="{2}">{3}</svg>'
    ).format(_WIDTH, _HEIGHT, _summary(plot), Markup().join(shapes))


def _path(run: Sequence[tuple[float, float]], begin: str) -> str:
    (x, y), *others = run
    rest = "".join(f"L{x:.1f} {y:.1f}" for x, y in others) or "h.1"  # a single point is a dot
    return f"{begin}{x:.1f} {y:.1f}{rest}"


def _runs(plot: Plot, line: PlotLine, axis: "_Axis") -> "list[list[tuple[float, float]]]":
    """The points of a line that are connected."""
    runs: list[list[tuple[float, float]]] = []
    before: float | None = None
    for at, value in zip(plot.times, line.values, strict=True):
        if value is None:
            before = None
            continue
        if before is None or at - before > plot.step * _GAP:
            runs.append([])
        runs[-1].append((axis.x(at), axis.y(value)))
        before = at
    return runs


def _hit(plot: Plot, index: int, axis: "_Axis") -> Markup:
    at = plot.times[index]
    values = "\n".join(f"{line.name}: {plot.text(line.values[index])}" for line in plot.lines)
    left = max(0.0, axis.x(at - plot.step / 2))
    width = min(_WIDTH - left, axis.x(at + plot.step / 2) - left)
    return Markup(
        '<rect class="hit" x="{0:.1f}" width="{1:.1f}" height="{2}"><title>{3}\n{4}</title></rect>'
    ).format(left, max(width, 0.1), _HEIGHT, moment(at), values)


def _rough(seconds: float) -> str:
    """A duration in one unit, which is short enough for the axis."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else duration(seconds)


def _summary(plot: Plot) -> str:
    parts = [
        f"{line.name}: now {plot.text(_last(line.values))}, most {plot.text(_most(line.values))}"
        for line in plot.lines
    ]
    return f"{plot.title}. {'. '.join(parts)}."


def _last(values: Sequence[float | None]) -> float | None:
    return values[-1] if values else None


def _most(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


@dataclass(frozen=True, slots=True)
class _Axis:
    """Where values and moments are in the drawing."""

    labels: Sequence[float]
    """The labelled values, the largest first."""

    x: Callable[[float], float]
    y: Callable[[float], float]

    @classmethod
    def of(cls, plot: Plot) -> "_Axis":
        first, last = plot.span
        values = [value for line in plot.lines for value in line.values if value is not None]

        def x(at: float) -> float:
            return min(max((at - first) / (last - first), 0), 1) * _WIDTH

        if plot.log:
            low = floor(log10(max(min((value for value in values if value > 0), default=0.01), 0.001)))
            high = max(ceil(log10(max(max(values, default=0.0), 0.01))), low + 1)

            def y_log(value: float) -> float:
                place = (log10(max(value, 10**low)) - low) / (high - low)
                return _HEIGHT * (1 - min(place, 1))

            middle = [10.0 ** ((low + high) // 2)] if high - low > 1 and (high - low) % 2 == 0 else []
            return cls([10.0**high, *middle, 10.0**low], x, y_log)
        top = _round_up(max(values, default=0.0))

        def y(value: float) -> float:
            return _HEIGHT * (1 - value / top)

        return cls([top, top / 2, 0.0], x, y)


def _round_up(value: float) -> float:
    """The next larger number that is good to read, also at its half."""
    if value <= 2:
        return 2.0 if value > 1 else 1.0
    unit = 10.0 ** floor(log10(value))
    return next(unit * factor for factor in (1, 2, 3, 4, 5, 6, 8, 10) if unit * factor >= value)


def grouped(span: float) -> int:
    """Minutes that share a point of a plot of so many seconds, so that there are at most 120."""
    return next(width for width in (1, 2, 5, 10, 15, 30, 60) if span / 60 / width <= 120 or width == 60)
