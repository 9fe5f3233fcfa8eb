"""One call of a task, ready to be sent: function, workload, unique, priority, start.

Everything that can be found out without a server is found out here, before anything is sent.
"""

import math
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, cast

from gearflow.client import Priority
from gearflow.protocol.constants import MAX_UNIQUE
from gearflow.tasks.envelope import wrap
from gearflow.tasks.options import Options
from gearflow.tasks.payload import PayloadCodec

_DIGEST_SIZE: Final = 20  # bytes, twice as many hexadecimal digits: well below MAX_UNIQUE


@dataclass(frozen=True, slots=True)
class Call:
    """What a client needs to submit a job. ``at`` is in whole seconds of Unix time."""

    function: str
    workload: bytes
    unique: str
    priority: Priority
    at: int | None = None


def attached(
    function: str,
    payload: PayloadCodec,
    options: Options,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    foreign: bool,
) -> Call:
    """A call whose caller waits for the result.

    Raises:
        TypeError: The function could not be called so.
        PayloadInvalid: An argument does not fit its type.
        ValueError: An option is not for such a call.
    """
    if options.delay is not None or options.at is not None:
        name = "delay" if options.at is None else "at"
        raise ValueError(
            f"{name}= is for background jobs: nobody waits for a job that has not started; "
            "use background() or abackground()"
        )
    unique = key(function, payload, options, args, kwargs)
    return Call(
        function, _workload(payload, options, args, kwargs, foreign=foreign), unique, options.priority
    )


def detached(
    function: str,
    payload: PayloadCodec,
    options: Options,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    foreign: bool,
) -> Call:
    """A call that nobody waits for. Raises as ``attached``."""
    at = options.at if options.delay is None else time.time() + options.delay
    return Call(
        function,
        _workload(payload, options, args, kwargs, foreign=foreign),
        # The queue plugins of gearmand overwrite the rows of background jobs without a unique. Which
        # server gets the job is known only when it has it, so all of them get one.
        key(function, payload, options, args, kwargs) or uuid.uuid4().hex,
        options.priority,
        None if at is None else math.ceil(at),
    )


def _workload(
    payload: PayloadCodec,
    options: Options,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    foreign: bool,
) -> bytes:
    data = payload.encode(args, kwargs)
    if not foreign:
        return wrap(data, timeout=options.timeout)
    if options.timeout is not None:
        raise ValueError(
            "timeout= is kept by gearflow's workers, and a foreign function runs elsewhere: "
            "limit the wait instead, with result(timeout=...)"
        )
    return data


def key(
    function: str,
    payload: PayloadCodec,
    options: Options,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> str:
    """The unique of a call, as it goes on the wire; empty for none."""
    unique = options.unique
    if unique is False:
        return ""
    if unique is True:
        return _digest(function.encode() + b"\0" + payload.canonical(args, kwargs))
    if not isinstance(unique, str):
        made = cast(object, unique(*args, **kwargs))  # a user's function
        if not isinstance(made, str) or not made:
            raise ValueError(f"the function given as unique= returned {made!r}, not a key")
        unique = made
    return _on_the_wire(unique)


def _on_the_wire(unique: str) -> str:
    """A key within the wire's limits; one that is not is hashed, never cut: cut ones would coalesce."""
    encoded = unique.encode("utf-8", "surrogatepass")
    # "-" alone asks the server to take the workload for the key
    if len(encoded) <= MAX_UNIQUE and b"\0" not in encoded and unique != "-" and unique.isprintable():
        return unique
    return _digest(encoded)


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=_DIGEST_SIZE).hexdigest()
