"""What a task raised in another process of its worker, as far as the worker has to know.

The worker has an error that it can handle as its own (``gearflow.worker.processes.failures`` makes it). That
one carries what the other process said: the data for the wire, which has the right traceback, and the names
of all its classes, also of those that are not known here.
"""

from dataclasses import dataclass
from typing import Final, cast

from gearflow.tasks.modules import importable_name

_ATTRIBUTE: Final = "_gearflow_relayed"


@dataclass(frozen=True, slots=True)
class Relayed:
    """What was said of an error where it was raised."""

    data: bytes
    """As ``encode_failure`` gave it there."""

    kinds: tuple[str, ...]
    """Its class and their bases, by name."""


def relay(error: BaseException, said: Relayed) -> None:
    """Have an error stand for one in another process."""
    setattr(error, _ATTRIBUTE, said)


def relayed(error: BaseException) -> Relayed | None:
    """What was said where it was raised; None if that was here."""
    return cast("Relayed | None", vars(error).get(_ATTRIBUTE))


def name_of(kind: type | str) -> str:
    """A class by name; builtins may be written without their module."""
    if isinstance(kind, str):
        return kind if "." in kind else f"builtins.{kind}"
    return f"{importable_name(kind.__module__)}.{kind.__qualname__}"
