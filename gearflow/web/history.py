"""The last day, minute by minute: what gearflow's servers remember, and what was seen of other servers."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from gearflow.observe import FleetView
from gearflow.protocol.histograms import added_counts
from gearflow.protocol.metrics import ALL, FunctionMinute, Minute

MINUTE: Final = 60.0

_KEPT: Final = 1440
"""Minutes that are kept of servers that remember nothing."""

_FUNCTIONS: Final = 100
"""Functions of such servers that have a history of their own."""

_COUNTS: Final = (
    *("submitted", "started", "succeeded", "failed", "cancelled", "expired", "dead", "retried"),
    *("waiting", "running"),
)


class OwnHistory:
    """What was seen of servers that remember nothing, such as C gearmand. It has gaps while nobody looked."""

    def __init__(self) -> None:
        self._minutes: OrderedDict[int, dict[str, FunctionMinute]] = OrderedDict()

    def add(self, fleet: FleetView, at: float) -> None:
        """Remember what the servers of a fleet show that have no history."""
        seen: dict[str, tuple[int, int]] = {}
        for view in fleet.distinct:
            if view.counted:
                continue
            for function in view.functions[:_FUNCTIONS]:
                for name in (ALL, function.function):
                    waiting, running = seen.get(name, (0, 0))
                    seen[name] = waiting + sum(function.waiting), running + function.running
        if not seen:
            return
        self._minutes[int(at // MINUTE)] = {
            name: FunctionMinute(waiting=waiting, running=running)
            for name, (waiting, running) in seen.items()
        }
        while len(self._minutes) > _KEPT:
            self._minutes.popitem(last=False)

    def minutes(self, since: float, function: str) -> list[tuple[float, FunctionMinute]]:
        """The minutes of a function that began at a time or later."""
        first = since / MINUTE
        return [
            (number * MINUTE, seen[function])
            for number, seen in self._minutes.items()
            if number >= first and function in seen
        ]


def of_function(history: Iterable[Minute], function: str) -> list[tuple[float, FunctionMinute]]:
    """The minutes of a function in a server's history. In a minute without an entry nothing happened."""
    nothing = FunctionMinute()
    return [(minute.at, minute.functions.get(function, nothing)) for minute in history]


def merged(histories: Iterable[Iterable[tuple[float, FunctionMinute]]]) -> list[tuple[float, FunctionMinute]]:
    """The histories of several servers as one. Minutes that no server has are missing."""
    found: dict[int, list[FunctionMinute]] = {}
    for history in histories:
        for at, minute in history:
            found.setdefault(int(at // MINUTE), []).append(minute)
    return [(number * MINUTE, _sum(parts)) for number, parts in sorted(found.items())]


def coarser(
    minutes: Sequence[tuple[float, FunctionMinute]], width: int
) -> list[tuple[float, FunctionMinute, float]]:
    """The minutes in groups of ``width``, each with its begin and the seconds that it covers.

    Jobs that wait and run are those of the last minute of each group, and the oldest is the oldest of all.
    """
    groups: dict[int, list[FunctionMinute]] = {}
    for at, minute in minutes:
        groups.setdefault(int(at // (MINUTE * width)), []).append(minute)
    result: list[tuple[float, FunctionMinute, float]] = []
    for number, parts in groups.items():
        whole = _sum(parts).model_copy(update={"waiting": parts[-1].waiting, "running": parts[-1].running})
        result.append((number * MINUTE * width, whole, MINUTE * len(parts)))
    return result


def _sum(parts: Sequence[FunctionMinute]) -> FunctionMinute:
    if len(parts) == 1:
        return parts[0]
    ages = [part.oldest for part in parts if part.oldest is not None]
    return FunctionMinute(
        **{name: sum(getattr(part, name) for part in parts) for name in _COUNTS},
        oldest=max(ages, default=None),
        wait=added_counts(part.wait for part in parts),
        run=added_counts(part.run for part in parts),
    )
