"""What must have run, what ran, and why some of it ran twice. Pure.

A job runs again only for a reason: its worker was killed, its server was down, or its caller submitted it
again, since it could not know. A run without a reason is a fault, as is a promise without a run.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, Self


class Mark(NamedTuple):
    """A line of the log: a run begins, or has ended."""

    at: float
    """Seconds of the system's monotonic clock, which all processes share."""
    key: str
    handle: str
    pid: int
    ended: bool

    def to_line(self) -> bytes:
        """As it stands in the file."""
        return f"{self.at!r} {self.key} {self.handle} {self.pid} {self.ended:d}\n".encode()

    @classmethod
    def from_line(cls, line: str) -> Self:
        """The mark in a line of the file."""
        at, key, handle, pid, ended = line.split()
        return cls(float(at), key, handle, int(pid), ended == "1")


class Outage(NamedTuple):
    """From when to when something was gone, or about to go."""

    begin: float
    end: float

    def meets(self, begin: float, end: float) -> bool:
        """Whether it has a moment in common with another span."""
        return self.begin <= end and begin <= self.end


def store_of(handle: str) -> str:
    """The part of a handle that tells its server: a file's handles begin alike."""
    return handle.rpartition(":")[0]


@dataclass
class Account:
    """What is known once all is over. Owns what others add to it."""

    promised: set[str] = field(default_factory=set[str])
    """Keys of jobs that were acknowledged, or answered."""
    submitted_again: set[str] = field(default_factory=set[str])
    """Keys whose callers submitted them again, for they could not know."""
    workers: Mapping[int, Outage] = field(default_factory=dict[int, Outage])
    """Those that were killed, by their pid."""
    servers: Mapping[str, list[Outage]] = field(default_factory=dict[str, list[Outage]])
    """By the beginning of their handles."""

    def missing(self, marks: Iterable[Mark]) -> set[str]:
        """What was promised, and has no run that ended."""
        return self.promised - {mark.key for mark in marks if mark.ended}

    def repeated(self, marks: Iterable[Mark]) -> Counter[str]:
        """Runs that were not the first of their job, by the reason why they were made."""
        runs = defaultdict[str, list[Mark]](list)
        for mark in marks:
            if not mark.ended:
                runs[mark.key].append(mark)
        return Counter(
            self._reason(one, other) for these in runs.values() for one, other in pairwise(sorted(these))
        )

    def _reason(self, one: Mark, other: Mark) -> str:
        worker = self.workers.get(one.pid)
        if worker is not None and worker.meets(one.at, other.at):
            return "its worker was killed"
        # Of either run: one that its server had given out before it went may begin after the one that its
        # caller asked another server for.
        for store in {store_of(one.handle), store_of(other.handle)}:
            if any(down.meets(one.at, other.at) for down in self.servers.get(store, ())):
                return "its server was down"
        if one.key in self.submitted_again:
            return "its caller submitted it again"
        return f"no reason: {one}, and then {other}"
