"""The building blocks of metrics: families, histograms, and a limit on the values of a label.

A value of a label makes a series, which Prometheus keeps for weeks. So no label here has a host, a process, a
job or its unique as its value, and ``LabelCap`` limits the functions, limits and schedules.
"""

from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from itertools import accumulate
from typing import Final, TypeVar

from gearflow.protocol.histograms import BUCKETS, Histogram, bucket_end

try:
    from prometheus_client import ProcessCollector as ProcessCollector
    from prometheus_client.core import CounterMetricFamily as CounterMetricFamily
    from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.core import Metric as Metric
except ImportError as _error:  # pragma: no cover - tested in an interpreter of its own
    raise ImportError(
        f"metrics for Prometheus need prometheus-client ({_error}); pip install 'gearflow[metrics]'"
    ) from _error

MOST_NAMES: Final = 500
"""The default for the number of functions, limits or schedules that have series of their own."""

LONGEST_NAME: Final = 200
"""Characters of the value of a label."""

OTHER: Final = "other"
"""The value of the label for all names beyond the limit."""

_SHOWN: Final = (*range(19), 20, 22, 24, 26)
"""Buckets whose ends are in the metrics: each power of two up to 4 minutes, each second one up to 18 hours.
Each bucket of each function is a series."""

_ENDS: Final = tuple(f"{bucket_end(index):.10g}" for index in _SHOWN)

T = TypeVar("T")


class LabelCap:
    """Names that have series of their own. Owns state.

    The first names get them, and keep them: a counter that moved to ``other`` and back would look as if it
    had been reset.
    """

    def __init__(self, most: int = MOST_NAMES) -> None:
        self._most = most
        self._known: set[str] = set()

    def grouped(
        self, items: Iterable[T], name: Callable[[T], str], weight: Callable[[T], float]
    ) -> dict[str, list[T]]:
        """Items by the value of their label. While there is room, the heaviest items get a name."""
        labelled = [(printable(name(item)), item) for item in items]
        new = {label: weight(item) for label, item in labelled if label not in self._known}
        room = self._most - len(self._known)
        self._known.update(sorted(new, key=lambda label: (-new[label], label))[: max(room, 0)])
        groups: dict[str, list[T]] = {}
        for label, item in labelled:
            groups.setdefault(label if label in self._known else OTHER, []).append(item)
        return groups


def printable(name: str) -> str:
    """A name as the value of a label, in which nothing steers the terminal of those who look at it.

    Long names are cut, because each of them is in about seventy lines. A digest keeps them apart.
    """
    if not name.isprintable():
        name = "".join(each if each.isprintable() or each == "\n" else _escape(each) for each in name)
    if len(name) > LONGEST_NAME:
        digest = blake2b(name.encode(), digest_size=4).hexdigest()
        name = f"{name[: LONGEST_NAME - 9]}-{digest}"
    return name


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()


def add_histogram(family: HistogramMetricFamily, labels: Sequence[str], histogram: Histogram) -> None:
    """Add a histogram to a family."""
    counts = (*histogram.counts, *([0] * (BUCKETS - len(histogram.counts))))
    below = list(accumulate(counts))
    buckets = [(end, below[index]) for end, index in zip(_ENDS, _SHOWN, strict=True)]
    family.add_metric(labels, [*buckets, ("+Inf", below[-1])], histogram.sum)


def gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    """An empty family of gauges."""
    return GaugeMetricFamily(name, text, labels=labels)


def counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    """An empty family of counters. The name ends in ``_total``."""
    return CounterMetricFamily(name, text, labels=labels)


def histograms(name: str, text: str, *labels: str) -> HistogramMetricFamily:
    """An empty family of histograms."""
    return HistogramMetricFamily(name, text, labels=labels)
