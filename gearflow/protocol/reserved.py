"""Functions that gearflow's own server answers itself, as any client can call them.

They stay inside the protocol, so every Gearman library can use them: a foreground submission of a function
whose name begins with ``gearflow:``. They are listed nowhere, no worker can offer them, and a background
submission is refused, since its answer would reach nobody.

``gearflow:events`` takes an empty workload and never ends: for as long as the connection lasts, WORK_DATA
brings one JSON object for each event that concerns it. So far there is one: ``{"event": "cancel",
"handle": ...}`` tells a worker that a job it runs has been cancelled, and that nobody will hear of it.
"""

import json
from typing import Final

PREFIX: Final = b"gearflow:"
EVENTS: Final = b"gearflow:events"


def cancel_event(handle: bytes) -> bytes:
    """What ``gearflow:events`` says when a job is cancelled while it runs."""
    return json.dumps({"event": "cancel", "handle": handle.decode("latin-1")}).encode()


def cancelled_handle(event: bytes) -> bytes | None:
    """The job that an event says was cancelled; None for other events, which may come in time."""
    try:
        fields: object = json.loads(event)
    except ValueError:
        return None
    match fields:
        case {"event": "cancel", "handle": str(handle)}:
            return handle.encode("latin-1", "replace")
        case _:
            return None
