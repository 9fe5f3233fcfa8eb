"""A reduction as a tree: which values are to be reduced together, and when: pure.

Values are numbered by level and place; level 0 has those that are to be reduced. The values of ``fan_in``
neighbouring places are reduced to one with a place on the next level, so the order is kept whichever is
there first, and only the values of groups that are not complete are held.
"""

from dataclasses import dataclass
from typing import Any, Final

FAN_IN: Final = 16
"""Values reduced by one job where nothing is said: few jobs beside those of the map, small payloads."""


@dataclass(frozen=True, slots=True)
class Reduction:
    """One call of the reducer: its values in order, and where its result belongs."""

    level: int
    place: int
    values: list[Any]


class ReductionTree:
    """Takes values in and says what to reduce. Owns state.

    The reducer is called at least once: for a single value with that one, for none with ``[]``. A value
    that is left over at the end of a level goes up as it is.
    """

    def __init__(self, fan_in: int = FAN_IN) -> None:
        if fan_in < 2:
            raise ValueError(f"fan_in={fan_in}: a job has to reduce at least two values, or it never ends")
        self._fan_in = fan_in
        self._groups: dict[tuple[int, int], dict[int, Any]] = {}  # by where their result belongs
        self._sizes: list[int] | None = None  # of the levels, once they are known
        self.root: list[Any] = []
        """The one value of the last level, when it is there."""

    def add(self, level: int, place: int, value: Any) -> list[Reduction]:
        """Take a value in; what can be reduced now."""
        if self._sizes is not None and level == len(self._sizes) - 1:
            self.root.append(value)
            return []
        key = (level + 1, place // self._fan_in)
        self._groups.setdefault(key, {})[place] = value
        return self._ready(key)

    def close(self, size: int) -> list[Reduction]:
        """Level 0 has ``size`` values and no more; what can be reduced now."""
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
            self.root.extend(values)  # it was there before it was known to be the last
            return []
        return [Reduction(level, place, values)]

    def _expected(self, level: int, place: int) -> int:
        """How many values a group has when it is complete."""
        if self._sizes is None or level > len(self._sizes):
            return self._fan_in
        return min(self._fan_in, self._sizes[level - 1] - place * self._fan_in)
