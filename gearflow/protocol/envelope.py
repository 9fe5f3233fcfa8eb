"""The envelope around a workload: options for a worker that the packets have no field for. Pure.

An envelope is the magic ``NUL gf1``, the length of its header (4 bytes, big-endian), the header (a JSON
object), and then the payload. A workload without an envelope is the payload itself, as programs in other
languages send and expect it. So an envelope is used only if there is an option to send, or if a raw payload
could be taken for an envelope. In that case the header has ``raw``. Readers ignore unknown keys, so later
versions may add some.

A producer writes an envelope for servers other than gearflow's. gearflow's server stores options beside the
job. For workers that know envelopes it puts one around the producer's workload. The outer envelope takes
precedence.
"""

import json
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from gearflow.errors import PayloadInvalid

if TYPE_CHECKING:
    from gearflow.protocol.server_calls import RetryPlan  # it imports pydantic

MAGIC: Final = b"\0gf1"
MAX_LEVELS: Final = 2
"""Nested envelopes: the server's around the producer's."""

MAX_ATTEMPT: Final = 1_000_000_000

_LATEST: Final = 2e11
"""Unix time before the year 9999, which ends what a ``datetime`` can be."""

_START: Final = struct.Struct(">4sI")  # the magic, the length of the header


@dataclass(frozen=True, slots=True)
class Envelope:
    """The options in a header.

    Attributes:
        attempt: The number of the run, from 1.
        timeout: Run limit of this call in seconds. None means the task's own.
        retries: Retry plan of this call. None means the task's own.
        detached: Nobody waits for the result. If the server cannot keep the job for another run, the worker
            may submit it again.
        parts: The number of parts that came in earlier runs. This run goes on after them.
        previous: The last progress of an earlier run: done, total and the message, if there was any.
        chunk: The number of calls that share the job, as ``gearflow.protocol.chunk`` has them. 0 means that
            the payload is that of one call.
        alone: The worker runs nothing else meanwhile. The job may kill it.
        scheduled_at: The Unix time of the tick whose job this is, and the time zone of its schedule.
        trace: The trace context of the call, as the headers of its propagator. None if there is none.
    """

    attempt: int = 1
    timeout: float | None = None
    retries: "RetryPlan | None" = None
    detached: bool = False
    parts: int = 0
    previous: tuple[int, int, str | None] | None = None
    chunk: int = 0
    alone: bool = False
    scheduled_at: tuple[float, str] | None = None
    trace: Mapping[str, str] | None = None


_EMPTY: Final = Envelope()


def header(
    *,
    attempt: int = 1,
    timeout: float | None = None,
    retries: "RetryPlan | Mapping[str, object] | None" = None,
    detached: bool = False,
    raw: bool = False,
    parts: int = 0,
    previous: tuple[int, int, str | None] | None = None,
    chunk: int = 0,
    earlier: int = 0,
    alone: bool = False,
    scheduled_at: tuple[float, str] | None = None,
    trace: Mapping[str, str] | None = None,
) -> bytes:
    """The bytes to put before a workload, empty if there is no option. See ``Envelope``.

    Args:
        retries: A plan, or its JSON object.
        earlier: Runs of the call in other jobs. They are added to the attempt.
        raw: The workload is a payload that starts like an envelope.
    """
    options: dict[str, object] = {}
    if attempt > 1:
        options["attempt"] = attempt
    if timeout is not None:
        options["timeout"] = timeout
    if retries is not None:
        options["retries"] = (
            retries
            if isinstance(retries, Mapping)
            else retries.model_dump(mode="json", exclude_defaults=True)
        )
    if detached:
        options["detached"] = True
    if raw:
        options["raw"] = True
    if parts:
        options["parts"] = parts
    if previous is not None:
        options["previous"] = previous
    if chunk:
        options["chunk"] = chunk
    if earlier or alone or scheduled_at or trace:
        rare = {"earlier": earlier, "alone": alone, "scheduled_at": scheduled_at, "trace": trace}
        options.update((name, value) for name, value in rare.items() if value)
    if not options:
        return b""
    head = json.dumps(options).encode()
    return _START.pack(MAGIC, len(head)) + head


def with_trace(head: bytes, trace: bytes) -> bytes:
    """The bytes before a workload, with a trace context as a JSON object. ``head`` is from ``header``."""
    options = head[_START.size : -1] + b", " if head else b"{"
    options += b'"trace": ' + trace + b"}"
    return _START.pack(MAGIC, len(options)) + options


def wrap(
    payload: bytes,
    *,
    attempt: int = 1,
    timeout: float | None = None,
    retries: "RetryPlan | None" = None,
    detached: bool = False,
    chunk: int = 0,
    earlier: int = 0,
) -> bytes:
    """The workload of a payload, which is the payload itself if there is no option. See ``header``."""
    head = header(
        attempt=attempt,
        timeout=timeout,
        retries=retries,
        detached=detached,
        raw=payload.startswith(MAGIC),
        chunk=chunk,
        earlier=earlier,
    )
    return head + payload


def unwrap(workload: bytes) -> tuple[Envelope, bytes]:
    """The envelope and the payload of a workload. Without an envelope all options have their defaults.

    Raises:
        PayloadInvalid: It starts like an envelope, but is not a valid one.
    """
    if not workload.startswith(MAGIC):
        return _EMPTY, workload
    options: dict[str, Any] = {}
    for _ in range(MAX_LEVELS):
        outer, workload = _open(workload)
        options = {**outer, **options}
        if outer.get("raw") or "chunk" in outer or not workload.startswith(MAGIC):
            break
    return _envelope(options), workload


def _open(workload: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of the outermost envelope, and its content."""
    if len(workload) < _START.size:
        raise PayloadInvalid(f"the envelope ends within its length, after {len(workload)} bytes")
    _, length = _START.unpack_from(workload)
    end = _START.size + length
    if len(workload) < end:
        raise PayloadInvalid(
            f"the envelope's head of {length} bytes is cut off after {len(workload) - _START.size}"
        )
    try:
        options = json.loads(workload[_START.size : end])
    except (ValueError, RecursionError) as error:
        raise PayloadInvalid(f"the envelope's head is not JSON: {error}") from error
    if not isinstance(options, dict):
        raise PayloadInvalid(f"the envelope's head is a JSON {type(options).__name__}, not an object")
    return cast("dict[str, Any]", options), workload[end:]


def _envelope(options: dict[str, Any]) -> Envelope:
    attempt = _number(options, "attempt", 1, MAX_ATTEMPT) + _number(options, "earlier")
    timeout = options.get("timeout")
    # 0 < also refuses NaN, which Python's JSON reader knows as it knows infinity, and bool is an int
    if timeout is not None and (
        isinstance(timeout, bool)
        or not isinstance(timeout, int | float)
        or not 0 < timeout <= sys.float_info.max
    ):
        raise PayloadInvalid(f"the envelope's timeout is {_shown(timeout)}, not a positive number of seconds")
    detached = options.get("detached", False)
    if not isinstance(detached, bool):
        raise PayloadInvalid(f"the envelope's detached is {_shown(detached)}, not true or false")
    alone = options.get("alone", False)
    if not isinstance(alone, bool):
        raise PayloadInvalid(f"the envelope's alone is {_shown(alone)}, not true or false")
    retries, previous, scheduled_at = map(options.get, ("retries", "previous", "scheduled_at"))
    return Envelope(
        attempt,
        timeout,
        None if retries is None else _retries(retries),
        detached,
        _number(options, "parts"),
        None if previous is None else _previous(previous),
        _number(options, "chunk"),
        alone,
        None if scheduled_at is None else _scheduled_at(scheduled_at),
        _trace(options.get("trace")),
    )


def _number(options: dict[str, Any], name: str, least: int = 0, most: int = sys.maxsize) -> int:
    """A number within bounds, and by default the least."""
    value = options.get(name, least)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise PayloadInvalid(f"the envelope's {name} is {_shown(value)}, not a number from {least}")
    return value


def _previous(value: Any) -> tuple[int, int, str | None]:
    try:
        done, total, message = value
    except (TypeError, ValueError):
        done = total = message = None
    if type(done) is int and type(total) is int and isinstance(message, str | None):
        return done, total, message
    raise PayloadInvalid(f"the envelope's previous is {_shown(value)}, not two numbers and a text")


def _scheduled_at(value: Any) -> tuple[float, str]:
    try:
        unix, zone = value
        if not isinstance(unix, bool) and 0 <= unix <= _LATEST and isinstance(zone, str):
            return float(unix), zone
    except (TypeError, ValueError):
        pass
    raise PayloadInvalid(f"the envelope's scheduled_at is {_shown(value)}, not a Unix time and a time zone")


def _trace(value: Any) -> dict[str, str] | None:
    """The trace context. One that cannot be read is left out, because it matters to no result."""
    if not isinstance(value, dict):
        return None
    items = cast("dict[str, Any]", value).items()
    return {name: text for name, text in items if isinstance(text, str)} or None


def _retries(value: Any) -> "RetryPlan":
    from gearflow.protocol.server_calls import RetryPlan

    try:
        known = {key: item for key, item in value.items() if key in RetryPlan.model_fields}
        return RetryPlan.model_validate_json(json.dumps(known))
    except (ValueError, AttributeError, RecursionError) as error:
        raise PayloadInvalid(
            f"the envelope's retries are {_shown(value)}, which is no plan of retries"
        ) from error


def _shown(value: object) -> str:
    """The start of a value from the network."""
    try:
        return f"{value!r:.200}"
    except RecursionError:  # lists in lists
        return f"a deep {type(value).__name__}"
