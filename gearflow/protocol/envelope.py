"""What is told a worker beside the payload, where the packets have no place for it.

An envelope is the magic ``NUL gf1``, the length of its head (4 bytes, big-endian), the head (a JSON
object), then the payload. Without an envelope a workload is the payload itself, which is what programs in
other languages send and expect; so one is used only when there is something to say, or when a raw payload
could itself be taken for an envelope: then its head says ``raw``. Keys that a reader does not know are
ignored: later versions may add some.

A producer writes one for servers other than gearflow's. Gearflow's own keeps options beside the job, and
writes one around whatever the producer sent, for workers that know of it; what the outer one says counts.
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from gearflow.errors import PayloadInvalid
from gearflow.protocol.constants import ENVELOPE_MAGIC, ENVELOPE_START

if TYPE_CHECKING:
    from gearflow.protocol.server_calls import RetryPlan  # it imports pydantic

MAX_LEVELS: Final = 2
"""Envelopes around each other: the server's around the producer's."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What the head says.

    Attributes:
        attempt: Which run of the job this is, from 1.
        timeout: Seconds the task may run, for this call; ``None`` leaves it to the task.
        retries: When it is run again after it failed, for this call; ``None`` leaves it to the task.
        detached: Nobody waits for the result, which the packets do not tell a worker: where the server
            cannot keep the job for another run, the worker may submit it anew.
    """

    attempt: int = 1
    timeout: float | None = None
    retries: "RetryPlan | None" = None
    detached: bool = False


_NOTHING_SAID: Final = Envelope()


def wrap(
    payload: bytes,
    *,
    attempt: int = 1,
    timeout: float | None = None,
    retries: "RetryPlan | None" = None,
    detached: bool = False,
) -> bytes:
    """The workload of a payload: as it is, if nothing need be said. The arguments are as in ``Envelope``."""
    said = _said(attempt, timeout, retries, detached=detached)
    if payload.startswith(ENVELOPE_MAGIC):
        said["raw"] = True
    return _opening(said) + payload if said else payload


def opening(
    *, timeout: float | None = None, retries: "RetryPlan | None" = None, detached: bool = False
) -> bytes:
    """What goes before a workload to say this, the workload of a raw payload included; empty for nothing."""
    said = _said(1, timeout, retries, detached=detached)
    return _opening(said) if said else b""


def _said(
    attempt: int, timeout: float | None, retries: "RetryPlan | None", *, detached: bool
) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if attempt > 1:
        said["attempt"] = attempt
    if timeout is not None:
        said["timeout"] = timeout
    if retries is not None:
        said["retries"] = retries.model_dump(mode="json", exclude_defaults=True)
    if detached:
        said["detached"] = True
    return said


def _opening(said: dict[str, Any]) -> bytes:
    head = json.dumps(said).encode()
    return ENVELOPE_START.pack(ENVELOPE_MAGIC, len(head)) + head


def unwrap(workload: bytes) -> tuple[Envelope, bytes]:
    """Envelope and payload of a workload; the envelope says nothing if there is none.

    Raises:
        PayloadInvalid: It begins as an envelope, and goes on as none.
    """
    if not workload.startswith(ENVELOPE_MAGIC):
        return _NOTHING_SAID, workload
    said: dict[str, Any] = {}
    for _ in range(MAX_LEVELS):
        head, workload = _open(workload)
        said = {**head, **said}
        if head.get("raw") or not workload.startswith(ENVELOPE_MAGIC):
            break
    return _envelope(said), workload


def _open(workload: bytes) -> tuple[dict[str, Any], bytes]:
    """The head of the outermost envelope, and what is in it."""
    if len(workload) < ENVELOPE_START.size:
        raise PayloadInvalid(f"the envelope ends within its length, after {len(workload)} bytes")
    _, length = ENVELOPE_START.unpack_from(workload)
    end = ENVELOPE_START.size + length
    if len(workload) < end:
        raise PayloadInvalid(
            f"the envelope's head of {length} bytes is cut off after {len(workload) - ENVELOPE_START.size}"
        )
    try:
        said = json.loads(workload[ENVELOPE_START.size : end])
    except (ValueError, RecursionError) as error:
        raise PayloadInvalid(f"the envelope's head is not JSON: {error}") from error
    if not isinstance(said, dict):
        raise PayloadInvalid(f"the envelope's head is a JSON {type(said).__name__}, not an object")
    return cast("dict[str, Any]", said), workload[end:]


def _envelope(said: dict[str, Any]) -> Envelope:
    attempt = said.get("attempt", 1)
    if isinstance(attempt, bool) or not isinstance(attempt, int) or attempt < 1:
        raise PayloadInvalid(f"the envelope's attempt is {attempt!r}, not a number from 1")
    timeout = said.get("timeout")
    # 0 < also refuses NaN, which Python's JSON reader knows, and bool is an int
    if timeout is not None and (
        isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0
    ):
        raise PayloadInvalid(f"the envelope's timeout is {timeout!r}, not a positive number of seconds")
    detached = said.get("detached", False)
    if not isinstance(detached, bool):
        raise PayloadInvalid(f"the envelope's detached is {detached!r}, not true or false")
    retries = said.get("retries")
    return Envelope(attempt, timeout, None if retries is None else _retries(retries), detached)


def _retries(said: Any) -> "RetryPlan":
    from gearflow.protocol.server_calls import RetryPlan

    try:
        known = {key: value for key, value in said.items() if key in RetryPlan.model_fields}
        return RetryPlan.model_validate_json(json.dumps(known))
    except (ValueError, AttributeError) as error:
        shown = f"{said!r:.200}"
        raise PayloadInvalid(f"the envelope's retries are {shown}, which is no plan of retries") from error
