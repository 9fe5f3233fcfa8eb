"""One call of a task, ready to be sent: function, workload, unique, priority, and what else is asked.

Everything that can be found out without a server is found out here, before anything is sent. What only
some servers can do is decided when it is known which one gets the call (``gearflow.client.submission``).
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final, cast

from gearflow.client import JobRequest, SubmitOptions
from gearflow.client.names import fresh_unique
from gearflow.protocol.constants import MAX_UNIQUE
from gearflow.protocol.envelope import MAGIC, header, wrap
from gearflow.tasks.options import Options
from gearflow.tasks.payload import PayloadCodec

_DIGEST_SIZE: Final = 20  # bytes, twice as many hexadecimal digits: well below MAX_UNIQUE


def attached(
    function: str,
    payload: PayloadCodec,
    options: Options,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    foreign: bool,
) -> JobRequest:
    """A call whose caller waits for the result.

    Raises:
        TypeError: The function could not be called so.
        PayloadInvalid: An argument does not fit its type.
        ValueError: An option is not for such a call.
    """
    asked = None
    if not options.is_plain:
        if options.delay is not None or options.at is not None:
            name = "delay" if options.at is None else "at"
            raise ValueError(
                f"{name}= is for background jobs: nobody waits for a job that has not started; "
                "use background() or abackground()"
            )
        asked = _asked(options, foreign=foreign, envelope=False, keep=options.keep, detached=False)
    data = payload.encode(args, kwargs)
    unique = key(function, payload, options, args, kwargs)
    return JobRequest(function, _workload(data, foreign), unique, options.priority, asked, False)


def detached(
    function: str,
    payload: PayloadCodec,
    options: Options,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    foreign: bool,
    keep: float | None,
    retried: bool,
) -> JobRequest:
    """A call that nobody waits for. Raises as ``attached``.

    ``keep`` is the task's own, where the call says nothing; ``retried``: so are retries, which the worker
    knows of.
    """
    asked = None
    keep = keep if options.keep is None else options.keep
    if retried or keep is not None or not options.is_plain:
        asked = _asked(options, foreign=foreign, envelope=retried, keep=keep, detached=True)
    data = payload.encode(args, kwargs)
    # The queue plugins of gearmand overwrite the rows of background jobs without a unique. Which server
    # gets the job is known only when it has it, so all of them get one.
    unique = key(function, payload, options, args, kwargs) or fresh_unique()
    return JobRequest(function, _workload(data, foreign), unique, options.priority, asked)


def _workload(payload: bytes, foreign: bool) -> bytes:
    return wrap(payload) if payload.startswith(MAGIC) and not foreign else payload


def _asked(
    options: Options, *, foreign: bool, envelope: bool, keep: float | None, detached: bool
) -> SubmitOptions:
    """What is asked of the server beyond the protocol's packets.

    A worker learns of its part from gearflow's server, or from an envelope where the server is another.
    """
    if foreign and options.timeout is not None:
        raise ValueError(
            "timeout= is kept by gearflow's workers, and a foreign function runs elsewhere: "
            "limit the wait instead, with result(timeout=...)"
        )
    if foreign and options.retries is not None:
        raise ValueError(
            "retries= are made by gearflow's workers, and a foreign function runs elsewhere: call it again"
        )
    if options.reuse and options.unique is False:
        raise ValueError(
            "reuse=True asks for what is kept of a call with the same unique: give unique= as well"
        )
    retries = None if options.retries is None else options.retries.to_plan()
    envelope = envelope or retries is not None or options.timeout is not None
    return SubmitOptions(
        delay=options.delay,
        at=options.at,
        expires=options.expires,
        keep=keep,
        reuse=options.reuse,
        resubmit=options.resubmit,
        retries=retries,
        timeout=options.timeout,
        # A worker is told that nobody waits, because only then it may submit the job anew.
        envelope=header(timeout=options.timeout, retries=retries, detached=detached) if envelope else b"",
    )


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
    return on_the_wire(unique)


def on_the_wire(unique: str) -> str:
    """A key within the wire's limits; one that is not is hashed, never cut: cut ones would coalesce."""
    encoded = unique.encode("utf-8", "surrogatepass")
    # "-" alone asks the server to take the workload for the key
    if len(encoded) <= MAX_UNIQUE and b"\0" not in encoded and unique != "-" and unique.isprintable():
        return unique
    return _digest(encoded)


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=_DIGEST_SIZE).hexdigest()
