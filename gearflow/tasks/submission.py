"""A call of a task as a ``JobRequest``: function, workload, unique, priority and options.

Everything that can be checked without a server is checked here, before anything is sent. What only some
servers support is checked when it is known which server gets the call (``gearflow.client.submission``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, Protocol, cast

from gearflow.client import JobRequest, SubmitOptions
from gearflow.protocol.chunk import pack_payloads
from gearflow.protocol.constants import MAX_UNIQUE
from gearflow.protocol.envelope import MAGIC, header, wrap
from gearflow.protocol.uniques import check_chosen, fresh_unique
from gearflow.tasks.limits import TaskLimits
from gearflow.tasks.options import Options, Unique
from gearflow.tasks.payload import PayloadCodec
from gearflow.tasks.retry import Retry

_DIGEST_SIZE: Final = 20  # bytes, twice as many hexadecimal digits: well below MAX_UNIQUE


_LIMITED: Final = SubmitOptions(limited=True)


class Submittable(Protocol):
    """The parts of a task that a call is made of. See ``Task``."""

    name: str
    payload: PayloadCodec
    retries: Retry | None
    keep: float | None
    stream_keep: int | None
    foreign: bool
    call_options: Options
    limited: TaskLimits | None


def attached(
    task: Submittable, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, earlier: int = 0
) -> JobRequest:
    """A call whose caller waits for the result. ``earlier`` runs of it were in other jobs.

    Raises:
        TypeError: The arguments do not fit the function's parameters.
        PayloadInvalid: An argument does not fit its type.
        ValueError: An option is not for such a call.
    """
    options = task.call_options
    asked = None if options.is_plain else _asked_attached(task)
    workload = task.payload.encode(args, kwargs)
    if task.limited is not None:
        asked = _limited(task, task.limited, asked, args, kwargs)
    if earlier or (workload.startswith(MAGIC) and not task.foreign):
        workload = wrap(workload, earlier=earlier)
    unique = "" if options.unique is False else _key(task, options.unique, args, kwargs)
    return JobRequest(task.name, workload, unique, options.priority, asked, False, not task.foreign)


def attached_chunk(task: Submittable, payloads: Sequence[bytes]) -> JobRequest:
    """Several calls that share a job, whose caller waits for the results. Raises as ``attached``."""
    options = task.call_options
    asked = None if options.is_plain else _asked_attached(task)
    if task.limited is not None:
        asked = replace(asked or SubmitOptions(), limited=True)
    workload = _chunk_header(len(payloads)) + pack_payloads(payloads)
    return JobRequest(task.name, workload, "", options.priority, asked, False, not task.foreign)


@lru_cache  # most chunks of a batch are alike
def _chunk_header(number: int) -> bytes:
    return header(chunk=number)


def _asked_attached(task: Submittable) -> SubmitOptions:
    """The options of a call whose caller waits."""
    options = task.call_options
    asked = options.asked
    if asked.delay is not None or asked.at is not None:
        name = "delay" if asked.at is None else "at"
        raise ValueError(
            f"{name}= is for background jobs, because nobody waits for a job that has not started. "
            "Use background() or abackground()"
        )
    if asked.debounce is not None:
        raise ValueError(
            "debounce= is for background jobs, because a later call may replace the payload. "
            "Use background() or abackground()"
        )
    if asked.stream_keep is not None:
        raise ValueError(
            "stream_keep= is for background jobs, because callers that wait read the values at once. "
            "Use background() or abackground()"
        )
    keyed = options.unique is not False
    return _asked(asked, None, None, task.foreign, keyed, needs_envelope=False, detached=False)


def detached(task: Submittable, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> JobRequest:
    """A call that nobody waits for. Raises as ``attached``."""
    options = task.call_options
    asked = None
    retried, keep, stream_keep = task.retries is not None, task.keep, task.stream_keep
    if retried or keep is not None or stream_keep is not None or not options.is_plain:
        # The worker knows the task's own retries. It must also know that nobody waits for the result,
        # because only then it may submit the job again.
        keyed = options.unique is not False
        if options.asked.debounce is not None and isinstance(options.unique, bool):
            raise ValueError(
                "debounce= replaces the job of the same unique, so give unique= a key, or a function of the "
                "arguments that returns one"
            )
        asked = _asked(
            options.asked, keep, stream_keep, task.foreign, keyed, needs_envelope=retried, detached=True
        )
    workload = task.payload.encode(args, kwargs)
    if task.limited is not None:
        asked = _limited(task, task.limited, asked, args, kwargs)
    if workload.startswith(MAGIC) and not task.foreign:
        workload = wrap(workload)
    # The queue plugins of gearmand overwrite the rows of background jobs without a unique. Which server
    # gets the job is not known yet, so every job has one.
    unique = fresh_unique() if options.unique is False else _key(task, options.unique, args, kwargs)
    return JobRequest(task.name, workload, unique, options.priority, asked, True, not task.foreign)


@lru_cache  # the same for each call of a task, and calls with the same options are sent alike
def _asked(
    asked: SubmitOptions,
    keep: float | None,
    stream_keep: int | None,
    foreign: bool,
    keyed: bool,
    *,
    needs_envelope: bool,
    detached: bool,
) -> SubmitOptions:
    """The options, with an envelope that brings the worker's part to it on servers of other kinds.

    Args:
        keep, stream_keep: The task's own.
        foreign: Whether another program runs the task.
        keyed: Whether the call has a unique.
    """
    if foreign and asked.timeout is not None:
        raise ValueError(
            "another program runs a foreign function, and only gearflow's workers apply timeout=, so limit "
            "the wait instead, with result(timeout=...)"
        )
    if foreign and asked.retries is not None:
        raise ValueError(
            "another program runs a foreign function, and only gearflow's workers apply retries=, so call it "
            "again instead"
        )
    if asked.reuse and not keyed:
        raise ValueError("reuse=True asks for a kept result of the same unique, so give unique= as well")
    if asked.keep is None and keep is not None:
        asked = replace(asked, keep=keep)
    if asked.stream_keep is None and stream_keep is not None:
        asked = replace(asked, stream_keep=stream_keep)
    if not (needs_envelope or asked.retries is not None or asked.timeout is not None):
        return asked
    return replace(asked, envelope=header(timeout=asked.timeout, retries=asked.retries, detached=detached))


def _limited(
    task: Submittable,
    limits: TaskLimits,
    asked: SubmitOptions | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> SubmitOptions:
    """The options of a call of a task with limits, with the keys that its caller sends."""
    asked = asked or _LIMITED
    arguments = task.payload.signature.bind(args, kwargs) if limits.sends else {}
    return limits.asked(asked, task.payload, arguments)


def _key(task: Submittable, unique: Unique, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """The unique of a call that has one, as it goes on the wire."""
    if unique is True:
        return _digest(task.name.encode() + b"\0" + task.payload.canonical(args, kwargs))
    if callable(unique):
        made = cast(object, unique(*args, **kwargs))  # a user's function
        if not isinstance(made, str) or not made:
            raise ValueError(f"the function given as unique= returned {made!r}, not a key")
        check_chosen(made)
        unique = made
    return on_the_wire(cast(str, unique))


def on_the_wire(unique: str) -> str:
    """A key within the wire's limits. A longer key is hashed, not cut, because cut keys could be equal."""
    encoded = unique.encode("utf-8", "surrogatepass")
    # "-" alone asks the server to take the workload for the key
    if len(encoded) <= MAX_UNIQUE and b"\0" not in encoded and unique != "-" and unique.isprintable():
        return unique
    return _digest(encoded)


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=_DIGEST_SIZE).hexdigest()
