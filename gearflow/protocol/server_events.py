"""What ``gearflow:events`` tells a worker, as a function that gearflow's own server answers itself.

Apart from ``gearflow.protocol.server_calls``, which has the other functions, as that imports pydantic.
"""

import json
from typing import Any, Final

EVENTS: Final = b"gearflow:events"


def cancel_event(handle: bytes) -> bytes:
    """What is said when a job ends while it runs, because nobody wants it any more."""
    return json.dumps({"event": "cancel", "handle": handle.decode("latin-1")}).encode()


def cancelled_handle(event: bytes) -> bytes | None:
    """The job that an event says nobody wants any more; None for other events, which may come in time."""
    try:
        fields: Any = json.loads(event)
    except (ValueError, RecursionError):
        return None
    match fields:
        case {"event": "cancel", "handle": str(handle)}:
            return handle.encode("latin-1", "replace")
        case _:
            return None
