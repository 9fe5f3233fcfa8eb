"""The options of a call: what they may be, and what is wrong with them.

``@task`` sets them for all calls of a task, ``options()`` for the calls made through what it returns.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import Any, Final, Literal, Self, TypeAlias, TypedDict, cast

from gearflow.client import Priority
from gearflow.tasks.retry import Retry

PriorityName: TypeAlias = Literal["high", "normal", "low"]
Unique: TypeAlias = bool | str | Callable[..., str]


class CallOptions(TypedDict, total=False):
    """What ``options()`` takes."""

    priority: Priority | PriorityName
    """Among the waiting jobs of the function."""
    unique: Unique
    """Join the waiting or running job with the same key: a text, a function of the call's arguments that
    returns one, or True for a hash of the payload."""
    timeout: float | timedelta
    """Seconds the task may run on the worker; then the call raises TaskTimeout."""
    delay: float | timedelta
    """Seconds from now before which it is not run, rounded up to whole ones; for background jobs."""
    at: datetime
    """As ``delay``, as a time with a time zone."""
    keep: float | timedelta
    """Seconds for which the server keeps the result."""
    reuse: bool
    """A kept result of the same unique answers at once."""
    retries: int | Retry
    """Further runs after failed ones."""
    expires: float | timedelta
    """Seconds after which it is no longer worth running."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options that make sense, alone and together; durations in seconds, ``at`` in Unix time."""

    priority: Priority = Priority.NORMAL
    unique: Unique = False
    timeout: float | None = None
    delay: float | None = None
    at: float | None = None
    keep: float | None = None
    reuse: bool = False
    retries: Retry | None = None
    expires: float | None = None

    def updated(self, given: Mapping[str, Any]) -> Self:
        """These options with others in their place.

        Raises:
            TypeError: There is no such option; the message offers the nearest.
            ValueError: A value makes no sense.
        """
        for name in given.keys() - _READERS.keys():
            near = get_close_matches(name, _READERS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_READERS)}"
            raise TypeError(f"there is no option {name!r}; {hint}")
        changed = replace(self, **{name: _READERS[name](name, value) for name, value in given.items()})
        if changed.delay is not None and changed.at is not None:
            raise ValueError("delay= and at= both say when the job may start: give one of them")
        return changed

    @property
    def unbuilt(self) -> tuple[str, ...]:
        """The options in use that no server can honour yet."""
        return tuple(name for name in _UNBUILT if getattr(self, name) not in (None, False))


_UNBUILT: Final = ("retries", "keep", "reuse", "expires")


def _priority(_name: str, value: Any) -> Priority:
    try:
        return Priority(value)
    except ValueError:
        raise ValueError(f"priority={value!r}: it is 'high', 'normal' or 'low'") from None


def _unique(_name: str, value: Any) -> Unique:
    if not (isinstance(value, bool | str) or callable(value)):
        raise ValueError(
            f"unique={value!r}: it is True, a key, or a function of the arguments that returns one"
        )
    if value == "":
        raise ValueError("unique='' asks for no coalescing: leave it out, or give a key")
    return cast(Unique, value)


def _seconds(name: str, value: Any) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise ValueError(f"{name}={value!r}: it is a number of seconds, or a timedelta, not negative")
    return seconds


def run_limit(name: str, value: Any) -> float:
    """Seconds that a run may take. Raises ValueError for what is no such limit."""
    seconds = _seconds(name, value)
    if not seconds:
        raise ValueError(f"{name}=0: a task cannot run in no time; leave it out for no limit")
    return seconds


def _unix_time(name: str, value: Any) -> float:
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise ValueError(f"{name}={value!r}: it is a datetime with a time zone, such as datetime.now(UTC)")
    return value.timestamp()


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: it is True or False")
    return value


def _retry(name: str, value: Any) -> Retry | None:
    if isinstance(value, Retry):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name}={value!r}: it is a Retry, or a number of further runs")
    return Retry(value + 1) if value else None


_READERS: Final[dict[str, Callable[[str, Any], Any]]] = {
    "priority": _priority,
    "unique": _unique,
    "timeout": run_limit,
    "delay": _seconds,
    "at": _unix_time,
    "keep": _seconds,
    "reuse": _flag,
    "retries": _retry,
    "expires": _seconds,
}

assert _READERS.keys() == {field.name for field in fields(Options)} == CallOptions.__annotations__.keys()
