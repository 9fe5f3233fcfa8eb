"""Counts the runs of a worker, and adds up the counts of several worker processes.

The counts begin with zero when the worker starts. They say how runs end, where the server counts how jobs
end. A job may have several runs.

Times are seconds. The buckets of the histogram are those of ``gearflow.protocol.histograms``, which is not
imported, because a worker does without pydantic's models for it.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

SUCCEEDED: Final = "succeeded"
"""The outcome of most runs."""

MOST_UNSORTED: Final = 1000
"""Durations that are collected before they are sorted into the histogram."""

_BUCKETS: Final = 44


@dataclass(slots=True)
class FunctionRuns:
    """The runs of one function. The owner changes it."""

    running: int = 0
    """Jobs that run now."""

    outcomes: dict[str, int] = field(default_factory=dict[str, int])
    """Runs that ended, by outcome."""

    buckets: list[int] = field(default_factory=list[int])
    """A histogram of their durations."""

    seconds: float = 0.0
    """The sum of their durations."""

    def add(self, other: "FunctionRuns") -> None:
        """Add the counts of another process."""
        self.running += other.running
        self.seconds += other.seconds
        for outcome, count in other.outcomes.items():
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + count
        self.buckets.extend([0] * (len(other.buckets) - len(self.buckets)))
        for index, count in enumerate(other.buckets):
            self.buckets[index] += count

    def copy(self) -> "FunctionRuns":
        """The same counts, which do not change."""
        return FunctionRuns(self.running, dict(self.outcomes), list(self.buckets), self.seconds)


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What a worker has and does now. For several processes: the sums."""

    concurrency: int = 0
    """Jobs that can run at once."""

    held: int = 0
    """Jobs that wait in the worker for their next run."""

    overdue: int = 0
    """Threads that still run although their job was reported as timed out."""

    servers: int = 0
    """Servers from which the worker takes jobs."""

    connected: int = 0
    """Those of them that know its functions."""

    def __add__(self, other: "WorkerState") -> "WorkerState":
        return WorkerState(
            self.concurrency + other.concurrency,
            self.held + other.held,
            self.overdue + other.overdue,
            self.servers + other.servers,
            self.connected + other.connected,
        )


@dataclass(frozen=True, slots=True)
class WorkerSample:
    """What is known of a worker, or of the processes of one, at a moment."""

    functions: Mapping[str, FunctionRuns]
    state: WorkerState = WorkerState()
    processes: int = 1
    """Processes that serve."""

    processes_wanted: int = 1
    processes_lost: int = 0
    """Processes that have died."""


class RunCounts:
    """Counts how the runs of one worker end. Owns state."""

    def __init__(self) -> None:
        self.unsorted = defaultdict[str, list[float]](list)
        """Durations of runs that have succeeded, by function. The worker appends to them, because a call for
        each run costs several times as much. It calls ``sort`` from ``MOST_UNSORTED`` on."""

        self._functions: dict[str, FunctionRuns] = {}

    def ended(self, function: str, outcome: str, seconds: float) -> None:
        """A run has ended."""
        self._add(function, outcome, [seconds])

    def sort(self) -> None:
        """Count the runs that are in ``unsorted``."""
        for function, durations in self.unsorted.items():
            if durations:
                self._add(function, SUCCEEDED, durations)
                durations.clear()

    def _add(self, function: str, outcome: str, durations: list[float]) -> None:
        runs = self._functions.get(function)
        if runs is None:
            runs = self._functions[function] = FunctionRuns()
        runs.outcomes[outcome] = runs.outcomes.get(outcome, 0) + len(durations)
        runs.seconds += sum(durations)
        durations.sort()
        index = counted = 0
        while counted < len(durations):
            end = len(durations)
            if index < _BUCKETS - 1:
                end = bisect_left(durations, float(1 << index), counted, key=_milliseconds)
            if index == len(runs.buckets):
                runs.buckets.append(0)
            runs.buckets[index] += end - counted
            index, counted = index + 1, end

    def functions(self, offered: Iterable[str], running: Iterable[str]) -> dict[str, FunctionRuns]:
        """The counts, also of functions that had no run.

        Args:
            offered: The functions of the worker.
            running: The function of each job that runs now.
        """
        self.sort()
        found = {name: FunctionRuns() for name in offered}
        found |= {name: runs.copy() for name, runs in self._functions.items()}
        for name in running:
            found.setdefault(name, FunctionRuns()).running += 1
        return found


def _milliseconds(seconds: float) -> float:
    return seconds * 1000


class ProcessCounts:
    """The counts of worker processes that come and go. Owns state."""

    def __init__(self) -> None:
        self._ended: dict[str, FunctionRuns] = {}  # of processes that are gone
        self._living: dict[int, dict[str, FunctionRuns]] = {}
        self._states: dict[int, WorkerState] = {}
        self.lost = 0
        """Processes that have died."""

    def counted(self, process: int, function: str, runs: FunctionRuns) -> None:
        """A process reports its counts for a function, since its start."""
        self._living.setdefault(process, {})[function] = runs

    def stands(self, process: int, state: WorkerState) -> None:
        """A process reports what it has and does."""
        self._states[process] = state

    def gone(self, process: int) -> None:
        """A process has ended. What it has counted stays."""
        for function, runs in self._living.pop(process, {}).items():
            runs.running = 0
            self._ended.setdefault(function, FunctionRuns()).add(runs)
        self._states.pop(process, None)

    def functions(self) -> dict[str, FunctionRuns]:
        """The sums over all processes, by function."""
        sums = {function: runs.copy() for function, runs in self._ended.items()}
        for functions in self._living.values():
            for function, runs in functions.items():
                sums.setdefault(function, FunctionRuns()).add(runs)
        return sums

    @property
    def state(self) -> WorkerState:
        """The sums over the processes that live."""
        return sum(self._states.values(), WorkerState())
