"""How a process ended, and how that is told. Pure."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gearflow.errors import TaskCrashed

LAST_LINES: Final = 20
"""Lines of output that are kept to be told: a stack, or the message of a C library, fits in."""

LONGEST_LINE: Final = 500
"""Characters of each of them: they become part of an error's message."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a process."""

    status: int | None
    """Its exit status, or minus the number of the signal that killed it; None if somebody else heard it."""

    peak: int
    """The most resident memory that it had, in bytes."""

    floor: int
    """Smaller peaks cannot be seen: Linux begins with that of the process from which this one was spawned."""

    output: Sequence[str] = ()
    """The last lines that it wrote."""

    def crash(self, task: str) -> TaskCrashed:
        """The error of a task that the process ran meanwhile."""
        memory = f"its memory peaked at {_size(self.peak)}" + (" at most" if self.peak <= self.floor else "")
        text = f"task {task!r} ended its process, which {self._how()}; {memory}"
        if not self.output:
            return TaskCrashed(f"{text}, and it wrote nothing")
        lines = "\n".join(line[:LONGEST_LINE] for line in self.output)
        return TaskCrashed(f"{text}; its last lines:\n{lines}")

    def _how(self) -> str:
        if self.status is None:
            return "ended for unknown reasons"
        if self.status < 0:
            return f"was killed by {_signal(-self.status)}"
        return f"exited with status {self.status}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"


def _size(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
