"""The last day of the server, a minute at a time: what happened to jobs, and what there was at its end.

At the end of a minute all functions are looked at, in steps. What is new since the minute before is one JSON
text. It goes into a ring of a day, and to the store if that outlives the server, where the rows are a ring as
well. A few hundred bytes a minute are usual. ``LINES`` limits it to a few thousand.

The server that is killed loses the minute that it was in. One that stops writes it, and the next one goes on
with it.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable
from heapq import nlargest
from math import inf
from typing import Any, Final

from gearflow.broker.counts import TALLIED, FunctionTally
from gearflow.broker.function_table import CountedFunction, Functions
from gearflow.broker.journal import Journal
from gearflow.broker.storage import HISTORY, Setting
from gearflow.broker.timers import Clock
from gearflow.broker.turns import Steps, Turns
from gearflow.protocol.metrics import ALL, OTHER, FunctionMinute, Minute

MINUTE: Final = 60
"""Seconds of a minute."""

DAY: Final = 24 * 60
"""Minutes that are kept."""

LINES: Final = 50
"""Functions that have a line of their own in a minute: the busiest ones."""

_UNREADABLE: Final = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
"""What it leads to if a minute is damaged, or of another version. It is not shown then."""

_SLICE: Final = 50
"""Functions or minutes that are looked at before others get their turn."""


class MinuteLine:
    """A line of a minute: one function, or the sum of several. Owns its figures."""

    __slots__ = ("oldest", "running", "tally", "waiting")

    def __init__(self, tally: FunctionTally, waiting: int, running: int, oldest: float | None) -> None:
        self.tally = tally
        self.waiting = waiting  # at the end of the minute, as the next two
        self.running = running
        self.oldest = oldest

    @property
    def weight(self) -> int:
        """How much there is to know."""
        return sum(self.tally.numbers) + self.waiting + self.running

    def merge(self, other: MinuteLine) -> MinuteLine:
        """The sum of two functions."""
        ages = [age for age in (self.oldest, other.oldest) if age is not None]
        return MinuteLine(
            self.tally.merge(other.tally),
            self.waiting + other.waiting,
            self.running + other.running,
            max(ages, default=None),
        )

    def continues(self, earlier: MinuteLine) -> MinuteLine:
        """The same function, of which the earlier line has the first part of the minute."""
        return MinuteLine(self.tally.merge(earlier.tally), self.waiting, self.running, self.oldest)

    def to_json(self) -> list[Any]:
        """As ``line_of`` reads it."""
        oldest = round(self.oldest, 3) if self.oldest is not None else None
        tally = self.tally
        return [*tally.numbers, self.waiting, self.running, oldest, tally.wait, tally.run]


def line_of(line: list[Any]) -> MinuteLine:
    """The line that ``MinuteLine.to_json`` has made a list of."""
    count = len(TALLIED)
    waiting, running, oldest, wait, run = line[count:]
    return MinuteLine(FunctionTally(line[:count], wait, run), waiting, running, oldest)


def _add(lines: dict[str, MinuteLine], name: str, line: MinuteLine) -> None:
    known = lines.get(name)
    lines[name] = line if known is None else known.merge(line)


class History:
    """Owns the minutes of a day. The shell has it ``begin``, and calls ``tick`` from ``due`` on."""

    def __init__(self, clock: Clock, functions: Functions, journal: Journal, turns: Turns) -> None:
        self.due = inf  # when the minute ends, by the broker's clock
        self.prefix = b""  # of the names of the settings: in a group, each server has its own
        self._clock = clock
        self._functions = functions
        self._journal = journal
        self._turns = turns
        self._minute = 0  # since the epoch; that which goes on now
        self._ring: dict[int, tuple[int, bytes]] = {}  # by place: the minute, and its value

    def begin(self, now: float) -> None:
        """A minute begins, or goes on. ``now`` is by the broker's clock, which stands still before the first
        call of the broker."""
        unix = now + self._clock.offset
        self._minute = int(unix // MINUTE)
        self.due = now + MINUTE - unix % MINUTE

    def load(self, settings: Iterable[Setting]) -> None:
        """Take over what servers before this one have written."""
        for setting in settings:
            try:
                minute = int(json.loads(setting.value)[0])
            except _UNREADABLE:
                continue
            known = self._ring.get(minute % DAY)
            if known is None or known[0] < minute:
                self._ring[minute % DAY] = minute, setting.value

    def tick(self) -> None:
        """The minute is over."""
        steps = self.close()
        self.begin(self._clock.now)
        self._turns.run(steps)

    def close(self) -> Steps:
        """Write the minute that goes on now, as far as it has come. The caller begins another one."""
        return self._close(self._minute)

    def _close(self, minute: int) -> Steps:
        lines: dict[str, MinuteLine] = {}
        for place, function in enumerate(self._functions.counted()):
            line = self._line(function)
            if line.weight:
                _add(lines, function.counts.name.decode(errors="replace") or OTHER, line)
            if not place % _SLICE:
                yield
        busiest = nlargest(LINES, lines, key=lambda name: lines[name].weight)
        found: dict[str, MinuteLine] = {}
        for name in busiest:
            found[name] = lines.pop(name)
        for line in lines.values():
            _add(found, OTHER, line)
        for line in list(found.values()):
            _add(found, ALL, line)
        self._put(minute, found)

    def _line(self, function: CountedFunction) -> MinuteLine:
        """What has happened to a function since the minute before."""
        counts = function.counts
        waiting, running, oldest = sum(function.waiting()), function.running(), function.oldest()
        tally = counts.tally(waiting + function.delayed() + running)
        line = MinuteLine(
            tally.since(counts.before),
            waiting,
            running,
            max(self._clock.now - oldest, 0.0) if oldest is not None else None,
        )
        counts.before = tally
        return line

    def _put(self, minute: int, lines: dict[str, MinuteLine]) -> None:
        place = minute % DAY
        before = self._ring.get(place)
        if before is not None and before[0] == minute:
            for name, line in _lines(before[1]).items():
                if _shown(line) is not None:
                    lines[name] = lines[name].continues(line) if name in lines else line
        content = {name: line.to_json() for name, line in lines.items()}
        value = json.dumps([minute, content], ensure_ascii=False, separators=(",", ":")).encode()
        self._ring[place] = minute, value
        if self._journal.durable:
            self._journal.add(Setting(b"%b%d" % (self.prefix, place), HISTORY, value))

    def read(
        self, functions: Iterable[str] | None, since: float
    ) -> Generator[None, None, tuple[Minute, ...]]:
        """The minutes that began at that Unix time or later, in steps. ``functions`` as in the request."""
        names = [ALL] if functions is None else list(dict.fromkeys(functions))
        last = self._minute
        found: list[Minute] = []
        ring = sorted(entry for entry in self._ring.values() if since <= entry[0] * MINUTE)
        for place, (minute, value) in enumerate(ring):
            if last - DAY <= minute <= last:
                lines = _lines(value)
                shown = {name: _shown(lines[name]) for name in names if name in lines}
                readable = {name: line for name, line in shown.items() if line is not None}
                found.append(Minute(at=minute * MINUTE, functions=readable))
            if not place % _SLICE:
                yield
        return tuple(found)


def _lines(value: bytes) -> dict[str, MinuteLine]:
    """The lines of a minute."""
    try:
        return {name: line_of(line) for name, line in json.loads(value)[1].items()}
    except _UNREADABLE:
        return {}


def _shown(line: MinuteLine) -> FunctionMinute | None:
    """A line as it is shown. None if it cannot be read."""
    tally = line.tally
    try:
        numbers: dict[str, int] = dict(zip(TALLIED, tally.numbers, strict=True))
        return FunctionMinute(
            **numbers,
            waiting=line.waiting,
            running=line.running,
            oldest=line.oldest,
            wait=tuple(tally.wait),
            run=tuple(tally.run),
        )
    except _UNREADABLE:
        return None
