"""Several servers together."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from gearflow.observe.activity import Activity, activity, summed
from gearflow.observe.view import ServerView
from gearflow.protocol.histograms import added
from gearflow.protocol.metrics import FunctionMetrics

_SUMS: Final = (
    *("submitted", "joined", "restored", "passed_on", "started", "succeeded", "failed", "cancelled"),
    *("expired", "dead", "retried", "fetched", "delayed", "running", "workers", "slots", "free"),
)


@dataclass(frozen=True)
class FleetView:
    """Several servers as they were at about the same moment. A frozen value.

    A server that was reached by two addresses counts once, if it is in a group. The servers of a group count
    their own jobs, so sums over them are those of the group.
    """

    servers: tuple[ServerView, ...]
    """The servers, in the order in which they were asked for."""

    @cached_property
    def distinct(self) -> tuple[ServerView, ...]:
        """The servers that answered, each of them once."""
        found: dict[str, ServerView] = {}
        for view in self.servers:
            if view.answers:
                found.setdefault((view.info.server if view.info is not None else "") or view.address, view)
        return tuple(found.values())

    @cached_property
    def stores(self) -> tuple[ServerView, ...]:
        """gearflow's servers that answered, one of each group, because a group shares its store."""
        found: dict[str, ServerView] = {}
        for view in self.distinct:
            if view.info is not None:
                found.setdefault(view.store_name, view)
        return tuple(found.values())

    @property
    def away(self) -> tuple[ServerView, ...]:
        """The servers that did not answer."""
        return tuple(view for view in self.servers if not view.answers)

    @cached_property
    def functions(self) -> tuple[FunctionMetrics, ...]:
        """The functions of all servers in the order of their names, each with its sums over the servers.

        ``oldest`` is that of the oldest job of all. ``paused`` says whether it is paused on any server.
        """
        parts: defaultdict[str, list[FunctionMetrics]] = defaultdict(list)
        for view in self.distinct:
            for function in view.functions:
                parts[function.function].append(function)
        return tuple(_merged(parts[name]) for name in sorted(parts))

    @property
    def dead(self) -> int:
        """The dead letters of all servers. Those of a group count once."""
        by_store: dict[str, int] = {}
        for view in self.distinct:
            if view.metrics is not None:
                by_store[view.store_name] = max(by_store.get(view.store_name, 0), view.metrics.dead)
        return sum(by_store.values())

    def of(self, function: str) -> tuple[ServerView, ...]:
        """The servers that know a function."""
        return tuple(view for view in self.distinct if function in view.by_function)

    def waits_for(self, function: str) -> str:
        """Why the next job of a function waits on the first server where there is a reason."""
        reasons = (view.waits_for(view.by_function[function]) for view in self.of(function))
        return next(filter(None, reasons), "")

    def activity_since(self, before: "FleetView") -> dict[str, Activity]:
        """Return the activity on all servers since an earlier view, by function. See ``activity``."""
        earlier = {view.address: view for view in before.servers}
        parts: defaultdict[str, list[Activity]] = defaultdict(list)
        for view in self.distinct:
            if view.address in earlier:
                for name, each in activity(earlier[view.address], view).items():
                    parts[name].append(each)
        return {name: each[0] if len(each) == 1 else summed(each) for name, each in parts.items()}


def _merged(parts: Sequence[FunctionMetrics]) -> FunctionMetrics:
    if len(parts) == 1:
        return parts[0]
    sums = {name: sum(getattr(part, name) for part in parts) for name in _SUMS}
    high, normal, low = (sum(column) for column in zip(*(part.waiting for part in parts), strict=True))
    return FunctionMetrics(
        function=parts[0].function,
        **sums,
        waiting=(high, normal, low),
        oldest=_oldest(part.oldest for part in parts),
        paused=any(part.paused for part in parts),
        wait=added(part.wait for part in parts),
        run=added(part.run for part in parts),
    )


def _oldest(ages: Iterable[float | None]) -> float | None:
    return max((age for age in ages if age is not None), default=None)
