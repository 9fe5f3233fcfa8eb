"""Errors between a process and its worker, and the error of a task that ended its process. Pure.

The worker gets an error that behaves as the one that was raised would have. ``TryAgain`` and the other
exceptions that decide about the job are rebuilt as themselves. Everything else is rebuilt as it is for
callers (``gearflow.tasks.remote_errors``). Attributes and arguments do not travel.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gearflow
from gearflow.errors import TaskCrashed
from gearflow.runtime.process import ProcessEnd
from gearflow.tasks.control_flow import Control, Discard, Fail, Snooze, TryAgain
from gearflow.tasks.remote_errors import Relayed, decode_failure, encode_failure, name_of, relay

LAST_LINES: Final = 20
"""Lines of output that are kept for the error: a stack, or the message of a C library, fits in."""

_OURS: Final = (f'  File "{Path(gearflow.__file__).parent}{os.sep}', '  File "<string>", line 1 in <module>')
"""Frames of gearflow's own in the stack that a crash writes."""

LONGEST_LINE: Final = 500
"""Characters of each of them: they become part of an error's message."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a process, and its last output."""

    end: ProcessEnd

    output: Sequence[str]
    """The last lines that it wrote."""

    def crash(self, task: str) -> TaskCrashed:
        """The error of a task that the process ran meanwhile."""
        text = f"task {task!r} ended its process, which {self._how()}"
        if self.end.status is not None:
            text = f"{text}; its memory peaked at {self.end.memory}"
        shown = [line[:LONGEST_LINE] for line in self.output if not line.startswith(_OURS)]
        if not shown:
            return TaskCrashed(f"{text}, and it wrote nothing")
        lines = "\n".join(shown)
        return TaskCrashed(f"{text}; its last lines:\n{lines}")

    def _how(self) -> str:
        if self.end.status is None:
            return "ended for unknown reasons"
        if self.end.signal is not None:
            return f"was killed by {self.end.signal}"
        return f"exited with status {self.end.status}"


def pack(error: BaseException) -> dict[str, Any]:
    """An error as JSON."""
    fields = _named(error)
    match error:
        case Snooze():
            fields["control"] = {"snooze": error.seconds}
        case TryAgain():
            fields["control"] = {"again": error.after}
            if error.__cause__ is not None:
                fields["cause"] = _named(error.__cause__)
        case Fail():
            fields["control"] = {"fail": error.reason}
        case Discard():
            fields["control"] = {"discard": error.reason}
        case _:
            pass
    return fields


def unpack(fields: dict[str, Any], handle: str) -> BaseException:
    """The error that was packed, of the job with that handle."""
    data: bytes = fields["data"].encode()
    error = _control(fields["control"]) if "control" in fields else decode_failure(data, handle)
    relay(error, Relayed(data, tuple(fields["kinds"])))
    if "cause" in fields:
        error.__cause__ = unpack(fields["cause"], handle)
    return error


def _named(error: BaseException) -> dict[str, Any]:
    kinds = [name_of(kind) for kind in type(error).__mro__]
    return {"data": encode_failure(error).decode(), "kinds": kinds}


def _control(fields: dict[str, Any]) -> Control:
    match fields:
        case {"snooze": seconds}:
            return Snooze(seconds)
        case {"again": after}:
            return TryAgain(after)
        case {"fail": reason}:
            return Fail(reason)
        case _:
            return Discard(fields["discard"])
