"""Uniques that no two jobs share, recognised by their form: ``~`` and 32 hexadecimal digits.

gearflow's clients give one to each background job for which the caller has no unique, because the queue
plugins of gearmand overwrite the rows of background jobs without. A server that sees the form need not look
for another job with the same unique. So no caller may choose a unique of this form.
"""

import os
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gearflow.protocol.server_calls import SubmitRequest  # it imports pydantic

_FRESH: Final = re.compile(r"~[0-9a-f]{32}")
_FRESH_BYTES: Final = re.compile(rb"~[0-9a-f]{32}")


def fresh_unique() -> str:
    """A unique that no job had before: 33 ASCII characters."""
    return "~" + os.urandom(16).hex()


def is_fresh(unique: str | bytes) -> bool:
    """Whether a unique has the form of those that no two jobs share."""
    if isinstance(unique, bytes):
        return unique[:1] == b"~" and _FRESH_BYTES.fullmatch(unique) is not None
    return unique.startswith("~") and _FRESH.fullmatch(unique) is not None


def check_chosen(unique: str | bytes) -> None:
    """Check a unique that a caller chose.

    Raises:
        ValueError: It has the form of those that gearflow makes.
    """
    if is_fresh(unique):
        raise ValueError(
            f"unique={unique!r}: '~' and 32 hexadecimal digits are the form of the uniques that gearflow "
            "makes for jobs without one, and servers do not look for another job with such a unique; "
            "give another key, for example without the '~'"
        )


def check_unique_options(request: "SubmitRequest") -> None:
    """Raise ValueError if an option of a submission needs a unique that it does not have, or does not go with
    others."""
    if request.reuse and not request.unique:
        raise ValueError("reuse asks for a kept result of the same unique, and there is no unique")
    if request.reuse and request.unique == "-":
        raise ValueError("reuse needs a unique of its own: results are not kept by their payloads")
    if request.debounce is None:
        if request.max_wait is not None:
            raise ValueError("max_wait is for a submission with debounce")
        return
    if not request.detached:
        raise ValueError("debounce is for detached jobs")
    if not request.unique or request.unique == "-":
        raise ValueError("debounce replaces the job of the same unique, so it needs a unique of its own")
    if request.reuse or request.delay is not None or request.at is not None:
        raise ValueError("debounce goes with neither delay, nor at, nor reuse")
