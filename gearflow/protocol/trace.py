"""The trace context of a call: a few headers, as the propagator of its trace has them. Pure.

Such as ``{"traceparent": "00-...-01", "baggage": "tenant=42"}``. The client puts it beside the payload. The
server keeps it beside the job. The worker gets it in the envelope. The key ``attached`` is gearflow's own. It
is there if the caller waits for the job, and only in the first run, whose span is a child of the call's.
"""

import json
from collections.abc import Mapping
from typing import Final

MOST_HEADERS: Final = 8
LONGEST_NAME: Final = 64
LONGEST_VALUE: Final = 1024

ATTACHED: Final = "attached"

TRACE_KEY: Final = b',"trace":'
"""What is before the trace context in the request of a submission, if it is the last key."""


def fitting(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of a propagator that a server takes. Those over a limit are left out, because a trace is no
    reason to refuse a call.
    """
    found = [
        (name, value)
        for name, value in headers.items()
        if 0 < len(name) <= LONGEST_NAME and len(value) <= LONGEST_VALUE and name != ATTACHED
    ]
    return dict(found[: MOST_HEADERS - 1])


def encode_trace(headers: Mapping[str, str], *, attached: bool) -> bytes:
    """A trace context as a JSON object.

    Args:
        headers: From the propagator.
        attached: Whether the caller waits for the job.
    """
    trace = fitting(headers)
    if attached:
        trace[ATTACHED] = "1"
    return json.dumps(trace, separators=(",", ":")).encode()


def is_attached(trace: Mapping[str, str]) -> bool:
    """Whether the caller waits for the job, and this is its first run."""
    return ATTACHED in trace


def detached(trace: Mapping[str, str] | None) -> dict[str, str] | None:
    """The trace context of a job for the runs after the first one. They are no part of the call."""
    return None if trace is None else {name: value for name, value in trace.items() if name != ATTACHED}


def trace_id_of(trace: Mapping[str, str]) -> str:
    """The trace id in the header of the W3C, as 32 hexadecimal digits, or an empty text."""
    parts = trace.get("traceparent", "").split("-")
    return parts[1] if len(parts) >= 4 and len(parts[1]) == _DIGITS and parts[1].isalnum() else ""


_DIGITS: Final = 32
