"""The events of ``gearflow:events`` and ``gearflow:watch``, functions that gearflow's own server answers.

Apart from ``gearflow.protocol.server_calls``, which has the other functions, as that imports pydantic.
"""

import json
from typing import Any, Final, NamedTuple, cast

EVENTS: Final = b"gearflow:events"
STREAM: Final = b"gearflow:stream"
WATCH: Final = b"gearflow:watch"

# ------------------------------------------------------------------------------------ to the worker of a job


class Credit(NamedTuple):
    """All parts of a job up to a position are taken."""

    handle: bytes
    parts: int


def cancel_event(handle: bytes) -> bytes:
    """What is said when a job ends while it runs, because nobody wants it any more."""
    return json.dumps({"event": "cancel", "handle": handle.decode("latin-1")}).encode()


def cancelled_handle(event: bytes) -> bytes | None:
    """The job that an event says nobody wants any more; None for other events, which may come in time."""
    match _fields(event):
        case {"event": "cancel", "handle": str(handle)}:
            return handle.encode("latin-1", "replace")
        case _:
            return None


def credit_event(handle: bytes, parts: int) -> bytes:
    """The event for a worker that all parts of a job up to a position are taken."""
    return json.dumps({"event": "credit", "handle": handle.decode("latin-1"), "parts": parts}).encode()


def credit_of(event: bytes) -> Credit | None:
    """What a credit event says. None for other events."""
    match _fields(event):
        case {"event": "credit", "handle": str(handle), "parts": int(parts)}:
            return Credit(handle.encode("latin-1", "replace"), parts)
        case _:
            return None


# ------------------------------------------------------------------------------------ to a watcher of a job


def watch_event(event: str, **fields: object) -> bytes:
    """One event for a watcher, as JSON on one line. None of its fields is a part."""
    return json.dumps({"event": event, **fields}).encode()


def part_event(position: int, part: bytes | memoryview) -> bytes:
    """The event for a watcher that a part has come. The part itself follows the line."""
    return b"\n".join((watch_event("part", position=position), part))


def read_watch_event(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The fields of an event for a watcher, and the part, if it has one. No fields if it makes no sense."""
    line, _, part = data.partition(b"\n")
    fields = _fields(line)
    return (cast(dict[str, Any], fields) if isinstance(fields, dict) else {}), part


def _fields(event: bytes) -> object:
    """An event as it was before it was JSON. None if it makes no sense."""
    try:
        return json.loads(event)
    except (ValueError, RecursionError):
        return None
