"""What a producer tells a worker beside the payload, where the server has no place for it.

An envelope is the magic ``NUL gf1``, the length of its head (4 bytes, big-endian), the head (a JSON
object), then the payload. Without an envelope a workload is the payload itself, which is what programs in
other languages send and expect; so one is used only when there is something to say, or when a raw payload
could itself be taken for an envelope. Keys that a reader does not know are ignored: later versions may
add some.
"""

import json
import struct
from dataclasses import dataclass
from typing import Any, Final, cast

from gearflow.errors import PayloadInvalid

MAGIC: Final = b"\0gf1"

_START: Final = struct.Struct(">4sI")  # the magic, the head's length


@dataclass(frozen=True, slots=True)
class Envelope:
    """What the head says.

    Attributes:
        timeout: Seconds the task may run, for this call; ``None`` leaves it to the task.
    """

    timeout: float | None = None


def wrap(payload: bytes, *, timeout: float | None = None) -> bytes:
    """The workload of a payload: as it is, if nothing need be said."""
    if timeout is None and not payload.startswith(MAGIC):
        return payload
    head = json.dumps({} if timeout is None else {"timeout": timeout}).encode()
    return _START.pack(MAGIC, len(head)) + head + payload


def unwrap(workload: bytes) -> tuple[Envelope, bytes]:
    """Envelope and payload of a workload; the envelope says nothing if there is none.

    Raises:
        PayloadInvalid: It begins as an envelope, and goes on as none.
    """
    if not workload.startswith(MAGIC):
        return Envelope(), workload
    if len(workload) < _START.size:
        raise PayloadInvalid(f"the envelope ends within its length, after {len(workload)} bytes")
    _, length = _START.unpack_from(workload)
    end = _START.size + length
    if len(workload) < end:
        raise PayloadInvalid(
            f"the envelope's head of {length} bytes is cut off after {len(workload) - _START.size}"
        )
    return _envelope(workload[_START.size : end]), workload[end:]


def _envelope(head: bytes) -> Envelope:
    try:
        said = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise PayloadInvalid(f"the envelope's head is not JSON: {error}") from error
    if not isinstance(said, dict):
        raise PayloadInvalid(f"the envelope's head is a JSON {type(said).__name__}, not an object")
    timeout = cast("dict[str, Any]", said).get("timeout")
    # 0 < also refuses NaN, which Python's JSON reader knows, and bool is an int
    if timeout is not None and (
        isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0
    ):
        raise PayloadInvalid(f"the envelope's timeout is {timeout!r}, not a positive number of seconds")
    return Envelope(timeout)
