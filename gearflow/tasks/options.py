"""The options of a call: what they may be, and what is wrong with them.

``@task`` sets them for all calls of a task, ``options()`` for the calls made through what it returns.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import Any, Final, Literal, Self, TypeAlias, TypedDict, cast

from gearflow.client import Priority
from gearflow.tasks import migration_hints
from gearflow.tasks.durations import bounded
from gearflow.tasks.retry import MOST_ATTEMPTS, Retry

PriorityName: TypeAlias = Literal["high", "normal", "low"]
Unique: TypeAlias = bool | str | Callable[..., str]

LATEST: Final = 1e11
"""Unix time, in the year 5138: what the wire takes."""


class CallOptions(TypedDict, total=False):
    """The keyword arguments of ``options()``."""

    priority: Priority | PriorityName
    """Priority among the waiting jobs of the function."""
    unique: Unique
    """Joins the waiting or running job with the same key. A text, a function of the call's arguments that
    returns one, or True for a hash of the payload."""
    timeout: float | timedelta
    """Seconds the task may run on the worker. After it the call raises TaskTimeout."""
    delay: float | timedelta
    """Seconds from now before which the task does not run, for background jobs. Servers that are not
    gearflow's wait for whole seconds, and only with normal priority."""
    at: datetime
    """The time before which the task does not run, with a time zone. Otherwise like ``delay``."""
    keep: float | timedelta
    """Seconds for which gearflow's server keeps the outcome. 0 means not at all. By default the server's
    setting (a day) for background jobs, and not at all for others."""
    reuse: bool
    """Answers with a kept success of the same unique, on gearflow's server. The task does not run again."""
    resubmit: bool
    """Submits the call again, perhaps to another server, if its server is lost. This applies until the server
    is known to have the job, and for a caller that waits, until the job ends. The task may then run more than
    once, also at the same time."""
    retries: int | Retry
    """How many more runs may follow failed ones, on gearflow's workers. 0 means none, whatever the task
    says."""
    expires: float | timedelta
    """Seconds after which the job is not worth starting, on gearflow's server. It then ends as expired."""


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
    resubmit: bool = False
    retries: Retry | None = None
    expires: float | None = None

    is_plain: bool = field(init=False, repr=False, compare=False)
    """Whether the protocol's own packets say it all; looked at for every call."""

    def __post_init__(self) -> None:
        beyond = (self.timeout, self.delay, self.at, self.keep, self.retries, self.expires)
        is_plain = not (self.reuse or self.resubmit) and all(option is None for option in beyond)
        object.__setattr__(self, "is_plain", is_plain)

    def updated(self, given: Mapping[str, Any]) -> Self:
        """These options with others in their place.

        Raises:
            TypeError: There is no such option; the message offers the nearest.
            ValueError: A value makes no sense.
        """
        for name in given.keys() - _READERS.keys():
            raise TypeError(no_option(name, _READERS))
        changed = replace(self, **{name: _READERS[name](name, value) for name, value in given.items()})
        if changed.delay is not None and changed.at is not None:
            raise ValueError("delay= and at= both say when the job may start: give one of them")
        return changed


def no_option(name: str, known: Iterable[str]) -> str:
    """What to write in the place of an option that there is not."""
    options = tuple(known)
    hint = migration_hints.OPTIONS.get(name)
    if hint is None:
        near = get_close_matches(name, options, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(options)}"
    return f"there is no option {name!r}; {hint}"


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


def run_limit(name: str, value: Any) -> float:
    """Seconds that a run may take. Raises ValueError for what is no such limit."""
    limit = bounded(name, value)
    if not limit:
        raise ValueError(f"{name}=0: a task cannot run in no time; leave it out for no limit")
    return limit


def _unix_time(name: str, value: Any) -> float:
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise ValueError(f"{name}={value!r}: it is a datetime with a time zone, such as datetime.now(UTC)")
    if value.timestamp() > LATEST:
        raise ValueError(f"{name}={value!r}: the year 5138 is the latest; give an earlier time")
    return max(value.timestamp(), 0.0)  # all that is past means now


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: it is True or False")
    return value


def retry(name: str, value: Any) -> Retry:
    """A Retry, or a number of further runs, as a Retry. Raises ValueError for anything else, or too many."""
    if not isinstance(value, Retry) and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ValueError(f"{name}={value!r}: it is a Retry, or a number of further runs")
    retries = value if isinstance(value, Retry) else Retry(value + 1)
    if retries.attempts > MOST_ATTEMPTS:
        raise ValueError(
            f"{name}=: {retries.attempts} runs, and {MOST_ATTEMPTS} is the most; "
            "take fewer, further apart: Retry(..., backoff=..., max_delay=...)"
        )
    return retries


_READERS: Final[dict[str, Callable[[str, Any], Any]]] = {
    "priority": _priority,
    "unique": _unique,
    "timeout": run_limit,
    "delay": bounded,
    "at": _unix_time,
    "keep": bounded,
    "reuse": _flag,
    "resubmit": _flag,
    "retries": retry,
    "expires": bounded,
}

_FIELDS: Final = {field.name for field in fields(Options) if field.init}

assert _READERS.keys() == _FIELDS == CallOptions.__annotations__.keys()
