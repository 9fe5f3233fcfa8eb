"""How a process ended with the task that it ran, and how that is told. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gearflow.errors import TaskCrashed
from gearflow.reaping import End

LAST_LINES: Final = 20
"""Lines of output that are kept to be told: a stack, or the message of a C library, fits in."""

LONGEST_LINE: Final = 500
"""Characters of each of them: they become part of an error's message."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a process, and its last words."""

    end: End

    output: Sequence[str]
    """The last lines that it wrote."""

    def crash(self, task: str) -> TaskCrashed:
        """The error of a task that the process ran meanwhile."""
        text = f"task {task!r} ended its process, which {self._how()}"
        if self.end.status is not None:
            text = f"{text}; its memory peaked at {self.end.memory}"
        if not self.output:
            return TaskCrashed(f"{text}, and it wrote nothing")
        lines = "\n".join(line[:LONGEST_LINE] for line in self.output)
        return TaskCrashed(f"{text}; its last lines:\n{lines}")

    def _how(self) -> str:
        if self.end.status is None:
            return "ended for unknown reasons"
        if self.end.signal is not None:
            return f"was killed by {self.end.signal}"
        return f"exited with status {self.end.status}"
