"""The reduction of many values to one, as a tree of jobs.

``ReductionTree`` is pure. Its values are numbered by level and place, and level 0 has the values to reduce.
The values of ``fan_in`` neighbouring places are reduced to one with a place on the next level. So the order
is kept whichever value arrives first, and only the values of incomplete groups are held.
"""

from dataclasses import dataclass
from typing import Any, Final

from gearflow.client import Client
from gearflow.tasks.mapping.inflight import Callee, Finished, InFlightJobs

FAN_IN: Final = 16
"""Values reduced by one job by default. It adds few jobs to those of the map, and payloads stay small."""


@dataclass(frozen=True, slots=True)
class Reduction:
    """One call of the reducer: its values in order, and the level and place of its result."""

    level: int
    place: int
    values: list[Any]


class ReductionTree:
    """Collects values, and returns the reductions that are ready.

    The reducer is called at least once, with the only value, or with ``[]`` if there is none. A value that
    is left over at the end of a level goes up unchanged.
    """

    def __init__(self, fan_in: int = FAN_IN) -> None:
        if fan_in < 2:
            raise ValueError(f"fan_in={fan_in}: a job has to reduce at least two values, or it never ends")
        self._fan_in = fan_in
        self._groups: dict[tuple[int, int], dict[int, Any]] = {}  # by level and place of their result
        self._sizes: list[int] | None = None  # of the levels, once they are known
        self.root: list[Any] = []
        """The value of the last level, once it is there."""

    def add(self, level: int, place: int, value: Any) -> list[Reduction]:
        """Add a value. Returns the reductions that are ready."""
        if self._sizes is not None and level == len(self._sizes) - 1:
            self.root.append(value)
            return []
        key = (level + 1, place // self._fan_in)
        self._groups.setdefault(key, {})[place] = value
        return self._ready(key)

    def close(self, size: int) -> list[Reduction]:
        """Level 0 is complete with ``size`` values. Returns the reductions that are ready."""
        self._sizes = [size, max(1, -(-size // self._fan_in))]
        while self._sizes[-1] > 1:
            self._sizes.append(-(-self._sizes[-1] // self._fan_in))
        if size == 0:
            return [Reduction(1, 0, [])]
        return [reduction for key in sorted(self._groups) for reduction in self._ready(key)]

    def _ready(self, key: tuple[int, int]) -> list[Reduction]:
        level, place = key
        group = self._groups.get(key, {})
        if len(group) < self._expected(level, place):
            return []
        del self._groups[key]
        values = [group[position] for position in sorted(group)]
        if self._sizes is not None and len(values) == 1 and self._sizes[level - 1] > 1:
            return self.add(level, place, values[0])
        if self._sizes is not None and level == len(self._sizes):
            self.root.extend(values)  # it came before the number of levels was known
            return []
        return [Reduction(level, place, values)]

    def _expected(self, level: int, place: int) -> int:
        """The number of values in a complete group."""
        if self._sizes is None or level > len(self._sizes):
            return self._fan_in
        return min(self._fan_in, self._sizes[level - 1] - place * self._fan_in)


class Reducing:
    """A reduction that runs, in the client's event loop. It owns its jobs."""

    def __init__(self, client: Client, reducer: Callee, fan_in: int) -> None:
        self.tree = ReductionTree(fan_in)
        self._reducer = reducer
        self._jobs = InFlightJobs[tuple[int, int]](client, reducer)

    async def submit(self, reductions: list[Reduction]) -> None:
        """Submit reductions, and those that become ready meanwhile."""
        while reductions:
            await self._jobs.submit(
                [((r.level, r.place), self._reducer.prepare((r.values,), {})) for r in reductions]
            )
            reductions = [more for job in self._jobs.take() for more in self._handle_finished(job)]

    async def finish(self, size: int) -> Any:
        """Wait for the last value, after the tree has got ``size`` values."""
        await self.submit(self.tree.close(size))
        while not self.tree.root:
            await self._jobs.wait()
            for job in self._jobs.take():
                await self.submit(self._handle_finished(job))
        return self.tree.root[0]

    def _handle_finished(self, job: Finished[tuple[int, int]]) -> list[Reduction]:
        if job.failure is not None:
            raise job.failure
        return self.tree.add(*job.key, self._reducer.payload.decode_result(job.data))

    def close(self) -> None:
        """Cancel the jobs in flight."""
        self._jobs.close()
