"""What a task raised in one process, for the worker that runs it from another.

The worker gets an error that behaves as the one that was raised would have: what says what is to become of
the job (``TryAgain`` and its like) is itself again; everything else is rebuilt as it is for callers, and
carries what was said of it (``gearflow.tasks.relay``). Attributes and arguments do not travel.
"""

from typing import Any

from gearflow.tasks.control import Control, Discard, Fail, Snooze, TryAgain
from gearflow.tasks.failure import decode_failure, encode_failure
from gearflow.tasks.relay import Relayed, name_of, relay


def pack(error: BaseException) -> dict[str, Any]:
    """An error as JSON."""
    said = _named(error)
    match error:
        case Snooze():
            said["control"] = {"snooze": error.seconds}
        case TryAgain():
            said["control"] = {"again": error.after}
            if error.__cause__ is not None:
                said["cause"] = _named(error.__cause__)
        case Fail():
            said["control"] = {"fail": error.reason}
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


def _named(error: BaseException) -> dict[str, Any]:
    kinds = [name_of(kind) for kind in type(error).__mro__]
    return {"data": encode_failure(error).decode(), "kinds": kinds}


def _control(said: dict[str, Any]) -> Control:
    match said:
        case {"snooze": seconds}:
            return Snooze(seconds)
        case {"again": after}:
            return TryAgain(after)
        case {"fail": reason}:
            return Fail(reason)
        case _:
            return Discard(said["discard"])
