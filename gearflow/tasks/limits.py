"""``Concurrency`` and ``Rate``: how many jobs of a task run at once, and how many start in a time.

gearflow's server applies them, over all workers. Code only declares them, and ``gearflow limit apply`` writes
them to the server.

A key makes a limit of its own for each of its values. A JSON pointer is read by the server in the payload, so
that it also applies to jobs of programs in other languages. A function of the arguments is called here, and
the caller sends the key.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from difflib import get_close_matches
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast, get_args

from gearflow.client import SubmitOptions
from gearflow.errors import TaskDefinitionError
from gearflow.tasks import json_pointers
from gearflow.tasks.durations import from_text

if TYPE_CHECKING:
    from gearflow.tasks.payload import PayloadCodec

__all__ = ["Concurrency", "Rate"]

Over: TypeAlias = Literal["wait", "drop", "cancel-running", "keep-newest"]
"""What becomes of a job over a limit."""

Key: TypeAlias = str | Callable[..., object]
"""A JSON pointer into the payload, or a function of the arguments."""

SENT: Final = "*"
"""The key of a rule whose key the caller sends."""

MOST: Final = 1_000_000_000
"""The largest count."""

LONGEST: Final = 31_536_000.0
"""The longest time of a rate in seconds, a year.

The three are as in ``gearflow.protocol.limits``, which imports pydantic.
"""

_LONGEST_NAME: Final = 255
_LONGEST_KEY: Final = 255  # bytes; a longer key is hashed
_DIGEST_SIZE: Final = 20
_ESCAPE: Final = re.compile(r"~(?![01])")


@dataclass(frozen=True, slots=True)
class Concurrency:
    """How many jobs of a task run at once, over all workers of a server.

    Attributes:
        count: The number of jobs.
        key: Makes a limit of its own for each value. It is a JSON pointer into the payload, such as
            ``"/customer"``, or a function of the arguments that returns a text, a number, or None for no key.
        over: The treatment of a job that comes while the limit is reached. ``"wait"`` lets it wait.
            ``"drop"`` cancels it. ``"cancel-running"`` cancels the running jobs for it. ``"keep-newest"``
            lets it wait, and cancels those that waited before it.
        name: The name of the limit on the server. Tasks that give the same name share the limit.

    Raises:
        TypeError, ValueError: A value is not valid. The message says what would be.
    """

    count: int
    key: Key | None = field(default=None, kw_only=True)
    over: Over = field(default="wait", kw_only=True)
    name: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _require_count("Concurrency", "count", self.count, "jobs")
        _require_key("Concurrency", "key", self.key)
        _require_name("Concurrency", self.name)
        if self.over not in get_args(Over):
            near = get_close_matches(str(self.over), get_args(Over), n=1)
            known = ", ".join(map(repr, get_args(Over)))
            hint = f"did you mean {near[0]!r}?" if near else f"there are {known}"
            raise ValueError(f"Concurrency(over={self.over!r}): {hint}")


@dataclass(frozen=True, slots=True)
class Rate:
    """How many jobs of a task start in a time, over all workers of a server. The others wait.

    Attributes:
        count: The number of starts.
        per: The time, as a text such as ``"1m"``, seconds or a timedelta. It becomes seconds.
        burst: The number of starts that may follow each other at once. The starts are else spread evenly.
        key: As for ``Concurrency``.
        name: As for ``Concurrency``.

    Raises:
        TypeError, ValueError: A value is not valid. The message says what would be.
    """

    count: int
    per: str | float | timedelta = field(default="1m", kw_only=True)
    burst: int = field(default=1, kw_only=True)
    key: Key | None = field(default=None, kw_only=True)
    name: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _require_count("Rate", "count", self.count, "starts")
        _require_count("Rate", "burst", self.burst, "starts")
        _require_key("Rate", "key", self.key)
        _require_name("Rate", self.name)
        try:
            per = from_text("per", self.per)
        except ValueError as error:
            raise ValueError(f"Rate: {error}") from None
        if not 0 < per <= LONGEST:
            raise ValueError(f"Rate(per={self.per!r}): it is more than 0, and at most a year; such as '1m'")
        object.__setattr__(self, "per", per)

    @property
    def seconds(self) -> float:
        """``per`` in seconds."""
        return cast(float, self.per)


Limit: TypeAlias = Concurrency | Rate


def _require_count(kind: str, name: str, value: Any, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{kind}({name}={value!r}): it is a whole number of {what}")
    if value < 1:
        raise ValueError(
            f"{kind}({name}={value}): it is at least 1; to stop all jobs for a while, use 'gearflow pause'"
        )
    if value > MOST:
        raise ValueError(f"{kind}({name}={value}): {MOST:,} is the most; leave the limit out for none")


def _require_name(kind: str, name: Any) -> None:
    if name is None:
        return
    if not isinstance(name, str):
        raise TypeError(f"{kind}(name={name!r}): it is a text")
    if not name or not name.isprintable() or any(map(str.isspace, name)) or len(name) > _LONGEST_NAME:
        raise ValueError(f"{kind}(name={name!r}): take printable text without spaces, such as 'shopify'")


def _require_key(kind: str, option: str, key: Any) -> None:
    """Raise unless it is a JSON pointer, a function, or None."""
    shown = f"{kind}({option}={key!r})"
    if key is None or (callable(key) and not isinstance(key, type)):
        return
    if not isinstance(key, str):
        raise TypeError(
            f"{shown}: it is a JSON pointer into the payload, such as '/customer', or a function of the "
            "arguments"
        )
    if not key.startswith("/") or key == "/":
        path = key.strip("/").replace(".", "/") or "customer"
        raise ValueError(f"{shown}: a JSON pointer starts with '/' and names a field; write '/{path}'")
    if _ESCAPE.search(key):
        raise ValueError(f"{shown}: in a JSON pointer, write '~0' for '~' and '~1' for a '/' in a name")
    if len(key) > _LONGEST_NAME or not key.isprintable():
        raise ValueError(f"{shown}: take a pointer of at most {_LONGEST_NAME} printable characters")


# ------------------------------------------------------------------------------------------ of a task


@dataclass(frozen=True, slots=True)
class TaskLimits:
    """What a task declares. Each of its limits has a name."""

    limits: tuple[Limit, ...]
    fair: Key | None
    sends: bool = field(init=False)
    """Whether a caller sends a key."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sends", any(map(callable, self.keys)))

    @property
    def keys(self) -> list[Key]:
        """The keys of the limits, and that of ``fair``."""
        keys = [limit.key for limit in self.limits] + [self.fair]
        return [key for key in keys if key is not None]

    @property
    def points(self) -> bool:
        """Whether the server reads a key in the payload."""
        return any(isinstance(key, str) for key in self.keys)

    def asked(
        self, asked: SubmitOptions, payload: "PayloadCodec", arguments: Mapping[str, Any]
    ) -> SubmitOptions:
        """The options of a call with the keys that its caller sends.

        Raises:
            ValueError: A function returned what is no key.
        """
        if not self.sends:
            return asked if asked.limited else replace(asked, limited=True)

        def sent(option: str, key: Any) -> str | None:
            return _sent(option, payload.signature.apply_to(key, arguments))

        found = [(str(limit.name), sent("key", limit.key)) for limit in self.limits if callable(limit.key)]
        keys = tuple((name, key) for name, key in found if key is not None)
        group = sent("fair", self.fair) if callable(self.fair) else None
        return replace(asked, limited=True, keys=keys, group=group)


def _sent(option: str, made: object) -> str | None:
    """A key as it is sent."""
    if made is None:
        return None
    if isinstance(made, bool) or not isinstance(made, str | int):
        raise ValueError(
            f"the function given as {option}= returned {made!r}; a key is a text, a whole number, or None "
            "for none"
        )
    text = str(made)
    encoded = text.encode("utf-8", "surrogatepass")
    if len(encoded) <= _LONGEST_KEY and text.isprintable():
        return text
    return blake2b(encoded, digest_size=_DIGEST_SIZE).hexdigest()


def task_limits(limits: object, fair: object) -> TaskLimits | None:
    """What the options of ``@task`` declare. None if it is nothing.

    Raises:
        TypeError, ValueError: An option is not valid.
    """
    if isinstance(limits, Concurrency | Rate):
        raise TypeError(f"limits={limits!r}: it is a list; write limits=[...]")
    if not isinstance(limits, Sequence) or isinstance(limits, str):
        raise TypeError(f"limits={limits!r}: it is a list of Concurrency and Rate")
    given = cast("Sequence[object]", limits)
    for each in given:
        if not isinstance(each, Concurrency | Rate):
            hint = f"; write Concurrency({each})" if isinstance(each, int) else ""
            raise TypeError(f"limits=[{each!r}]: it is a list of Concurrency and Rate{hint}")
    _require_key("@task", "fair", fair)
    return (
        TaskLimits(tuple(cast("Sequence[Limit]", given)), cast("Key | None", fair)) if given or fair else None
    )


def named(declared: TaskLimits | None, task: str) -> TaskLimits | None:
    """The same with a name for each limit.

    Raises:
        TaskDefinitionError: Two of them have the same name.
    """
    if declared is None:
        return None
    limits = tuple(replace(limit, name=limit.name or default_name(task, limit)) for limit in declared.limits)
    names = [limit.name for limit in limits]
    for name in names:
        if names.count(name) > 1:
            raise TaskDefinitionError(
                f"task {task!r}: two limits have the name {name!r}; give one of them another, with name="
            )
    return replace(declared, limits=limits)


def default_name(task: str, limit: Limit) -> str:
    """``FUNCTION:concurrency``, or ``FUNCTION:rate:/customer`` with a key."""
    kind = "concurrency" if isinstance(limit, Concurrency) else "rate"
    key = "" if limit.key is None else f":{wire_key(limit.key)}"
    return f"{task}:{kind}{key}"


def wire_key(key: Key | None) -> str | None:
    """A key as the server has it."""
    return SENT if callable(key) else key


def check_pointers(declared: TaskLimits, payload: "PayloadCodec", task: str) -> None:
    """Check that each key points to a field that the task's payload has.

    Raises:
        TaskDefinitionError: It does not, with the nearest one that there is. Or a type cannot travel.
    """
    for key in declared.keys:
        if isinstance(key, str):
            json_pointers.check(key, payload, task)
