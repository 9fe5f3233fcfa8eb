"""The reserved functions of limits and policies, and limits as people write them.

``gearflow:limit`` changes limits, ``gearflow:limits`` shows them, ``gearflow:policy`` sets what holds for all
jobs of a function. See ``gearflow.protocol.server_calls``.

A limit has a value that code declares, and may have one that an operator has set (the override), which wins.
A function uses limits, each with or without a key. A limit with a key counts the jobs of each key by
themselves.

Durations are seconds, times are Unix time.
"""

import re
from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from gearflow.protocol.messages import Answer, Count, Message, Seconds, Span
from gearflow.protocol.server_calls import RetryPlan

LIMIT: Final = b"gearflow:limit"
LIMITS: Final = b"gearflow:limits"
POLICY: Final = b"gearflow:policy"

SENT: Final = "*"
"""The key of a limit, or the group of a function, that the caller sends with the job."""

MOST: Final = 1_000_000_000
"""The largest count of a limit."""

LONGEST: Final = 31_536_000.0
"""The longest time of a rate in seconds, a year."""

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LIMIT: Final = re.compile(r"([0-9]{1,12})(?:/([0-9]{1,9}(?:\.[0-9]{1,9})?)?([smhd]))?")
_BAD_ESCAPE: Final = re.compile(r"~(?![01])")

LimitName = Annotated[str, Field(min_length=1, max_length=9000)]
"""The name of a limit. Functions that use limits of one name share the limit."""

FunctionName = Annotated[str, Field(min_length=1)]

_KEY: Final = r"^(\*|(/([^/~]|~[01])*)*)$"


def _key(key: str) -> str:
    """A key. Raises ValueError."""
    if key == SENT or not key or (key.startswith("/") and not _BAD_ESCAPE.search(key)):
        return key
    remedy = "write a JSON pointer such as /customer (~0 is ~ and ~1 is /), or * if the caller sends it"
    raise ValueError(f"{key!r} is no key: {remedy}")


Key = Annotated[str, Field(max_length=1024, json_schema_extra={"pattern": _KEY}), AfterValidator(_key)]
"""A JSON pointer into the payload, such as ``/customer``, or ``*`` if the caller sends the key."""

Over: TypeAlias = Literal["wait", "drop", "cancel-running", "keep-newest"]
"""What becomes of a job that comes while the limit is reached."""


class LimitValue(Message):
    """How many jobs may run at once or, with ``per``, start in a time."""

    count: Annotated[int, Field(ge=1, le=MOST)]
    """The largest number of jobs."""

    per: Annotated[float, Field(gt=0, le=LONGEST)] | None = None
    """The time in which so many jobs may start. Without it, so many may run at once."""

    burst: Annotated[int, Field(ge=1, le=MOST)] = 1
    """For a rate, the number of jobs that may start at once after a pause."""

    over: Over = "wait"
    """For jobs that run at once: a job that comes while the limit is reached waits, or is dropped, or cancels
    the running ones, or replaces the waiting ones."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.per is None and self.burst != 1:
            raise ValueError("burst is for a rate, which has per")
        if self.per is not None and self.over != "wait":
            raise ValueError("over is for the number of jobs that run at once, so not with per")
        return self

    def __str__(self) -> str:
        """Return the limit as people write it, such as ``20`` or ``100/m, burst 10``."""
        text = limit_text(self.count, self.per)
        if self.burst != 1:
            text += f", burst {self.burst}"
        return text if self.over == "wait" else f"{text}, over {self.over}"


class LimitOverride(Message):
    """The value of an operator. What it leaves out stays as it is declared."""

    count: Annotated[int, Field(ge=1, le=MOST)]
    """The largest number of jobs."""

    per: Annotated[float, Field(gt=0, le=LONGEST)] | None = None
    """The time in which so many jobs may start. Only a limit that is declared with ``per`` has it."""

    burst: Annotated[int, Field(ge=1, le=MOST)] | None = None
    """For a rate, the number of jobs that may start at once after a pause."""

    over: Over | None = None
    """For jobs that run at once, what becomes of a job that comes while the limit is reached."""


class LimitUse(Message):
    """A limit that a function uses."""

    limit: LimitName
    """The name of the limit."""

    key: Key | None = None
    """Where the key of a job is: a JSON pointer into the payload, or ``*`` if the caller sends it. Without a
    key, the limit counts all jobs together."""


class FunctionLimits(Message):
    """The limits that a function uses."""

    limits: tuple[LimitUse, ...] = ()
    """The limits. A job starts only if all of them allow it."""

    fair: Key | None = None
    """The group of a job: a JSON pointer into the payload, or ``*`` if the caller sends it. Groups take turns
    inside a priority."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [use.limit for use in self.limits]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the function uses the limit {twice[0]} twice: once is enough")
        return self


# ------------------------------------------------------------------------------------------- requests


class LimitRequest(Message):
    """``gearflow:limit``: change limits. Answered with ``LimitChanges``."""

    action: Literal["set", "unset", "pause", "resume", "apply"]
    name: LimitName | None = None
    """The limit, for all actions but ``apply``."""

    value: LimitOverride | None = None
    """For ``set``, the value that replaces the declared one until ``unset``."""

    origin: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    """For ``apply``, the code that declares what follows, such as ``myapp.tasks``."""

    limits: dict[LimitName, LimitValue] = Field(default={})
    """For ``apply``, the declared limits."""

    functions: dict[FunctionName, FunctionLimits] = Field(default={})
    """For ``apply``, the functions that use limits."""

    prune: bool = False
    """For ``apply``, whether to remove what the same origin declared earlier and does not declare now."""

    dry_run: bool = False
    """For ``apply``, whether only to answer with the changes."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.action == "apply":
            if self.name is not None or self.value is not None:
                raise ValueError("apply has limits and functions, and no name and no value")
            if self.origin is None:
                raise ValueError("apply needs an origin")
            return self
        if self.origin is not None or self.limits or self.functions or self.prune or self.dry_run:
            raise ValueError("origin, limits, functions, prune and dry_run are for apply")
        if self.name is None:
            raise ValueError(f"{self.action} needs the name of a limit")
        if (self.value is not None) != (self.action == "set"):
            raise ValueError("set needs a value, and no other action has one")
        return self


class LimitsRequest(Message):
    """``gearflow:limits``: list limits and the functions that use them. Answered with ``LimitList``."""

    name: str | None = None
    """Selects the limit of this name."""

    function: str | None = None
    """Selects the limits of this function."""


class Policy(Message):
    """Options for all jobs of a function whose submission does not have its own."""

    retries: RetryPlan | None = None
    """When a failed run of a background job is repeated. gearflow's workers apply it. For other workers the
    server does, and does not look at ``on``."""

    keep: Seconds | None = None
    """How long the outcome of a background job is kept."""

    timeout: Annotated[float, Field(gt=0, le=1e10)] | None = None
    """How long a run may take. gearflow's workers apply it. The server takes the job from other workers."""

    limit: Annotated[int, Field(ge=1, le=MOST)] | None = None
    """How many jobs of the function may run at once."""


PolicyOption: TypeAlias = Literal["retries", "keep", "timeout", "limit"]


class PolicyRequest(Message):
    """``gearflow:policy``: set, unset or list policies. Answered with ``Policies``."""

    action: Literal["set", "unset", "list"]
    function: FunctionName | None = None
    """The function. ``set`` and ``unset`` need it. ``list`` without it lists all."""

    policy: Policy | None = None
    """For ``set``, the options. Those that are left out stay as they are."""

    options: tuple[PolicyOption, ...] = ()
    """For ``unset``, the options to unset. Without them, it unsets all."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.action != "list" and self.function is None:
            raise ValueError(f"{self.action} needs a function")
        if (self.policy is not None) != (self.action == "set"):
            raise ValueError("set needs a policy, and no other action has one")
        if self.policy == Policy():
            raise ValueError(
                "the policy has no option: give at least one of retries, keep, timeout and limit"
            )
        if self.options and self.action != "unset":
            raise ValueError("options is for unset")
        return self


# -------------------------------------------------------------------------------------------- answers


class LimitChange(Answer):
    """A change of a limit, or of the limits that a function uses."""

    kind: Literal["limit", "function"]
    """Whether ``name`` is that of a limit or of a function."""

    name: str
    """The name."""

    change: Literal["added", "changed", "removed"]
    """The kind of change."""

    before: str = ""
    """What held before, as text."""

    after: str = ""
    """What holds from now on, as text."""

    note: str = ""
    """What else there is to know, such as that the value of an operator goes on to hold."""


class LimitChanges(Answer):
    """The answer to ``gearflow:limit``. Without changes, everything was so before."""

    changes: tuple[LimitChange, ...] = ()
    """The changes, or with ``dry_run`` those that there would be."""


class LimitInfo(Answer):
    """A limit and its use."""

    name: str
    """The name of the limit."""

    text: str = ""
    """The limit that holds, as text, such as ``100/m, burst 10``."""

    value: LimitValue | None = None
    """The limit that holds. None if nothing declares the limit, and only a pause is left."""

    declared: LimitValue | None = None
    """What code declares."""

    override: LimitValue | None = None
    """What an operator has set. It wins."""

    paused: bool = False
    """Whether no job that needs the limit is given out, because an operator has paused it."""

    origin: str = ""
    """The code that declares it, or ``policy`` if a policy does."""

    functions: tuple[str, ...] = ()
    """The functions that use it."""

    running: Count = 0
    """The number of running jobs that it counts, over all keys."""

    waiting: Count = 0
    """The number of waiting jobs of the functions that use it."""

    keys: Count = 0
    """The number of keys by which the server counts now."""

    next: Span | None = None
    """Seconds until the next job may start, if it is a rate without a key, and no job may start now."""


class LimitedFunction(Answer):
    """A function that uses limits."""

    function: str
    """The name of the function."""

    limits: tuple[LimitUse, ...] = ()
    """The limits that it uses."""

    fair: str | None = None
    """The group of a job. Groups take turns."""

    origin: str = ""
    """The code that declares it."""


class LimitList(Answer):
    """The answer to ``gearflow:limits``."""

    limits: tuple[LimitInfo, ...] = ()
    """The limits by name."""

    functions: tuple[LimitedFunction, ...] = ()
    """The functions that use them by name."""


class FunctionPolicy(Answer):
    """The policy of a function."""

    function: str
    """The name of the function."""

    policy: Policy
    """The options."""

    workers: Count = 0
    """The number of workers that offer the function."""


class Policies(Answer):
    """The answer to ``gearflow:policy``. After ``set`` and ``unset`` it has the function's policy, if any."""

    policies: tuple[FunctionPolicy, ...] = ()
    """The policies by function."""


# ---------------------------------------------------------------------------------------------- texts


def read_limit(text: str) -> tuple[int, float | None]:
    """Read a limit as people write it: ``20`` jobs at once, ``50/m``, ``100/30s``.

    Returns:
        The count, and the time in seconds if it is a rate.

    Raises:
        ValueError: It is none.
    """
    match = _LIMIT.fullmatch(text.strip())
    remedy = "write a number of jobs at once such as 20, or a rate such as 50/m (s, m, h, d) or 100/30s"
    if match is None:
        raise ValueError(f"{text!r} is no limit: {remedy}")
    count, amount, unit = match.groups()
    if not 1 <= int(count) <= MOST:
        raise ValueError(f"{text!r}: the count is from 1 to {MOST}")
    if unit is None:
        return int(count), None
    per = float(amount or 1) * _UNITS[unit]
    if not 0 < per <= LONGEST:
        raise ValueError(f"{text!r}: the time of a rate is more than 0, and at most a year")
    return int(count), per


def limit_text(count: int, per: float | None) -> str:
    """Write a limit as people do: ``20``, ``50/m``, ``100/30s``."""
    if not per:
        return str(count)
    unit, size = next(
        (unit, size) for unit, size in reversed(_UNITS.items()) if per % size == 0 or unit == "s"
    )
    amount = per / size
    return f"{count}/{unit}" if amount == 1 else f"{count}/{amount:g}{unit}"
