"""What a task raised in one process, for the worker that runs it from another.

The worker gets an error that behaves as the one that was raised would have: what says what is to become of
the job (``TryAgain`` and its like) is itself again; everything else is rebuilt as it is for callers, and
carries what was said of it (``gearflow.tasks.relay``). Attributes and arguments do not travel.
"""

import json
from typing import Any, NamedTuple

from gearflow.tasks.control import Control, Discard, Snooze, TryAgain
from gearflow.tasks.failure import decode_failure, encode_failure
from gearflow.tasks.relay import Relayed, name_of, relay


class Renamed(NamedTuple):
    """A module that goes by different names in the two processes."""

    here: str
    at_the_worker: str

    def __call__(self, name: str) -> str:
        """A class's name as the worker knows it."""
        module, _, rest = name.partition(f"{self.here}.")
        return f"{self.at_the_worker}.{rest}" if rest and not module else name


def pack(error: BaseException, renamed: Renamed | None = None) -> dict[str, Any]:
    """An error as JSON."""
    said = _named(error, renamed)
    match error:
        case Snooze():
            said["control"] = {"snooze": error.seconds}
        case TryAgain():
            said["control"] = {"again": error.after}
            if error.__cause__ is not None:
                said["cause"] = _named(error.__cause__, renamed)
        case Discard():
            said["control"] = {"discard": error.reason}
        case _:
            pass
    return said


def unpack(said: dict[str, Any], handle: str) -> BaseException:
    """The error that was packed, of the job with that handle."""
    data: bytes = said["data"].encode()
    error = _control(said["control"]) if "control" in said else decode_failure(data, handle)
    relay(error, Relayed(data, tuple(said["kinds"])))
    if "cause" in said:
        error.__cause__ = unpack(said["cause"], handle)
    return error


def _named(error: BaseException, renamed: Renamed | None) -> dict[str, Any]:
    data = encode_failure(error)
    kinds = [name_of(kind) for kind in type(error).__mro__]
    if renamed is not None:
        said = json.loads(data)
        data = json.dumps({**said, "type": renamed(said["type"])}).encode()
        kinds = [renamed(kind) for kind in kinds]
    return {"data": data.decode(), "kinds": kinds}


def _control(said: dict[str, Any]) -> Control:
    match said:
        case {"snooze": seconds}:
            return Snooze(seconds)
        case {"again": after}:
            return TryAgain(after)
        case _:
            return Discard(said["discard"])
