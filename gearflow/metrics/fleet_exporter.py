"""The metrics of several servers as one, for a process that looks at them from afar. Needs the extra
``metrics``.

No label has the address of a server, so the metrics are sums over all servers. A server that restarts begins
with zero again, and one that is away shows nothing. The sum of their counters must not fall for either
reason, because Prometheus takes that for a restart of everything. So this adds up what each server has
counted, also before its restarts, as far as it was seen.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from gearflow.metrics.exporter import ServerCaps, ServerSample, server_families
from gearflow.metrics.families import Metric, gauge

_Key: TypeAlias = tuple[str, str, tuple[tuple[str, str], ...]]
"""A family, the name of a sample in it, and its labels."""

_LARGEST: Final = (
    "gearflow_oldest_waiting_seconds",
    "gearflow_function_paused",
    "gearflow_server_closed",
)
"""Gauges of which the largest value is that of all servers."""

_START: Final = "gearflow_server_start_time_seconds"
"""It makes no sense for several servers."""

_DEAD_LETTERS: Final = "gearflow_dead_letters"
"""The servers of a group have the same."""


@dataclass(slots=True)
class _Counters:
    """The counters of one server."""

    started: float = 0.0
    last: dict[_Key, float] = field(default_factory=dict[_Key, float])
    before: dict[_Key, float] = field(default_factory=dict[_Key, float])
    """What it had counted before its last start."""

    def begin(self, started: float) -> None:
        """Take new counts, of a server that was started then."""
        if self.started and self.started != started:
            for key, value in self.last.items():
                self.before[key] = self.before.get(key, 0.0) + value
            self.last = {}
        self.started = started

    def values(self) -> Iterator[tuple[_Key, float]]:
        """All counters, with what was counted before."""
        for key in self.last.keys() | self.before.keys():
            yield key, self.last.get(key, 0.0) + self.before.get(key, 0.0)


class FleetExporter:
    """Makes metrics from samples of several servers. Owns what they have counted before. Not thread-safe."""

    def __init__(self) -> None:
        self._caps = ServerCaps()
        self._counters: dict[str, _Counters] = {}
        self._heads: dict[str, Metric] = {}  # a family of each name, in order

    def families(self, samples: Mapping[str, ServerSample | None]) -> Iterator[Metric]:
        """The sums.

        Args:
            samples: By the address of each server. None for one that does not answer.
        """
        sums: dict[_Key, float] = {}
        stores: set[str] = set()
        for address, sample in samples.items():
            if sample is not None:
                self._take(address, sample, sums, has_letters=sample.group not in stores)
                stores.update(filter(None, [sample.group]))
        for counters in self._counters.values():
            for key, value in counters.values():
                sums[key] = sums.get(key, 0.0) + value
        yield _servers(samples.values())
        families = {name: Metric(name, head.documentation, head.type) for name, head in self._heads.items()}
        for (family, name, labels), value in sums.items():
            families[family].add_sample(name, dict(labels), value)
        yield from (family for family in families.values() if family.samples)

    def _take(
        self, address: str, sample: ServerSample, sums: dict[_Key, float], *, has_letters: bool
    ) -> None:
        """Add a server's gauges to the sums, and note its counters."""
        counters = self._counters.setdefault(address, _Counters())
        if sample.has_counted:
            counters.begin(sample.metrics.started)
        for family in server_families(sample, self._caps):
            name = family.name
            if name == _START or (name == _DEAD_LETTERS and not has_letters):
                continue
            self._heads.setdefault(name, family)
            for each in family.samples:
                key = name, each.name, tuple(each.labels.items())
                if family.type in ("counter", "histogram"):
                    counters.last[key] = each.value
                elif name in _LARGEST:
                    sums[key] = max(sums.get(key, 0.0), each.value)
                else:
                    sums[key] = sums.get(key, 0.0) + each.value


def _servers(samples: Iterable[ServerSample | None]) -> Metric:
    states = {"up": 0, "down": 0}
    for sample in samples:
        states["down" if sample is None else "up"] += 1
    family = gauge("gearflow_servers", "Servers that answer, and those that do not.", "state")
    for state, count in states.items():
        family.add_metric((state,), count)
    return family
