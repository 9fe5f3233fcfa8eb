"""The options of tasks and of their calls: what they may be, and how they are checked.

``@task`` sets them for all calls of a task. ``options()`` sets them for the calls made through its result.
Each option is declared once here, as the user writes it. ``SubmitOptions`` has them as the client sends them.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    Literal,
    Never,
    Self,
    TypeAlias,
    TypedDict,
    TypeVar,
    cast,
)

from gearflow.client import Priority, SubmitOptions
from gearflow.client.submission import Lag
from gearflow.protocol.uniques import check_chosen
from gearflow.schedules import Schedule
from gearflow.tasks import migration_hints
from gearflow.tasks.durations import bounded
from gearflow.tasks.limits import Concurrency, Key, Rate
from gearflow.tasks.retry import MOST_ATTEMPTS, Retry

if TYPE_CHECKING:
    from gearflow.protocol.server_calls import RetryPlan  # it imports pydantic

PriorityName: TypeAlias = Literal["high", "normal", "low"]
Unique: TypeAlias = bool | str | Callable[..., str]
Place: TypeAlias = Literal["thread", "process"]
"""Where a worker runs a plain function."""

Unset = TypeVar("Unset")
"""What leaves an option as it is: None for ``@task``, nothing for ``options()``."""

LATEST: Final = 1e11
"""Unix time, in the year 5138: the latest that the wire takes."""


class TaskDefaults(TypedDict, Generic[Unset], total=False):
    """The options that both ``@task`` and ``options()`` take."""

    timeout: float | timedelta | Unset
    """Seconds the task may run on the worker. After it the call raises TaskTimeout."""
    priority: Priority | PriorityName | Unset
    """Priority among the waiting jobs of the function."""
    unique: Unique | Unset
    """Joins the waiting or running job with the same key. A text, a function of the call's arguments that
    returns one, or True for a hash of the payload."""
    retries: int | Retry | Unset
    """How many more runs may follow failed ones, on gearflow's workers. 0 means none, whatever the task
    says."""
    keep: float | timedelta | Unset
    """Seconds for which gearflow's server keeps the outcome. 0 means not at all. By default the server's
    setting (a day) for background jobs, and not at all for others."""
    expires: float | timedelta | Unset
    """Seconds after which the job is not worth starting, on gearflow's server. It then ends as expired."""
    resubmit: bool | Unset
    """Submits the call again, perhaps to another server, if its server is lost. This applies until the server
    is known to have the job, and for a caller that waits, until the job ends. The task may then run more than
    once, also at the same time."""


class TaskOptions(TaskDefaults[None], total=False):
    """The keyword arguments of ``@task``. See ``task``."""

    name: str | None
    foreign: bool
    executor: Place | None
    stream_keep: int | str | None
    resumable: bool
    limits: Sequence[Concurrency | Rate] | None
    fair: Key | None
    redact: AbstractSet[str] | list[str] | tuple[str, ...] | None
    schedule: Schedule | Sequence[Schedule] | None


class CallOptions(TaskDefaults[Never], total=False):
    """The keyword arguments of ``options()``."""

    delay: float | timedelta
    """Seconds from now before which the task does not run, for background jobs. Servers that are not
    gearflow's wait for whole seconds, and only with normal priority."""
    at: datetime
    """The time before which the task does not run, with a time zone. Otherwise like ``delay``."""
    debounce: float | timedelta
    """Seconds of quiet. A background call replaces the job of the same ``unique`` that has not started. The
    job runs this time after the latest call. On gearflow's server."""

    max_wait: float | timedelta
    """Seconds from the first of these calls after which the job starts in any case. For ``debounce``."""

    reuse: bool
    """Answers with a kept success of the same unique, on gearflow's server. The task does not run again."""


class StreamOptions(CallOptions, total=False):
    """The keyword arguments of ``options()`` of a task that yields."""

    lag: Lag
    """For a reader that is slower than the task. ``"wait"`` makes the task wait, which is the default.
    ``"skip"`` skips values, and the reader gets a StreamGap."""
    stream_keep: int | str
    """Bytes of its values that gearflow's server keeps of a background job, such as ``"16MiB"``. 1 MiB is the
    default. The oldest values are dropped, and 0 keeps none."""


class JobChanges(TypedDict, total=False):
    """The keyword arguments of ``ref.edit()``."""

    priority: Priority | PriorityName
    """Priority among the waiting jobs of the function."""

    delay: float | timedelta
    """Seconds from now before which the job does not run. 0 means at once."""

    at: datetime
    """The time before which the job does not run, with a time zone."""

    expires: float | timedelta
    """Seconds from now after which the job is not worth starting."""


_NOTHING_ASKED: Final = SubmitOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of a call that were checked, alone and together."""

    priority: Priority = Priority.NORMAL
    unique: Unique = False
    asked: SubmitOptions = _NOTHING_ASKED
    """All others, as the client takes them."""

    is_plain: bool = field(init=False, repr=False, compare=False)
    """Whether nothing else is asked. A field, because every call looks at it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_plain", self.asked == _NOTHING_ASKED)

    def updated(self, given: Mapping[str, Any], *, streams: bool = False) -> Self:
        """These options with others in their place. ``streams`` says that they are for a task that yields.

        Raises:
            TypeError: There is no such option. The message offers the nearest one.
            ValueError: A value is not valid.
        """
        known = [name for name in _READERS if streams or name in CallOptions.__annotations__]
        for name in given.keys() - set(known):
            raise TypeError(f"{name}= {FOR_STREAMS}" if name in _READERS else no_option(name, known))
        read = {name: _READERS[name](name, value) for name, value in given.items()}
        own = {name: read.pop(name) for name in ("priority", "unique") if name in read}
        asked = replace(self.asked, **read) if read else self.asked
        if asked.delay is not None and asked.at is not None:
            raise ValueError("delay= and at= both say when the job may start: give one of them")
        _check_debounce(asked)
        return replace(self, **own, asked=asked)

    def changed(self) -> dict[str, Any]:
        """The options that differ from the defaults, by name."""
        values = {"priority": self.priority, "unique": self.unique}
        values |= {option.name: getattr(self.asked, option.name) for option in fields(self.asked)}
        defaults = {"priority": Priority.NORMAL, "unique": False}
        defaults |= {option.name: option.default for option in fields(_NOTHING_ASKED)}
        return {name: value for name, value in values.items() if value != defaults[name]}


def _check_debounce(asked: SubmitOptions) -> None:
    """Raise ValueError if an option makes no sense beside ``debounce``, or without it."""
    if asked.debounce is None:
        if asked.max_wait is not None:
            raise ValueError("max_wait= limits the wait of debounce=, so give debounce= as well")
        return
    others = {"delay": asked.delay is not None, "at": asked.at is not None, "reuse": asked.reuse}
    for name, is_given in others.items():
        if is_given:
            raise ValueError(f"{name}= and debounce= do not go together: leave out one of them")


def no_option(name: str, known: Iterable[str]) -> str:
    """The message about an option that does not exist."""
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
    if isinstance(value, str):
        check_chosen(value)
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


def _plan(name: str, value: Any) -> "RetryPlan":
    return retry(name, value).to_plan()


def _lag(name: str, value: Any) -> Lag:
    lags: tuple[Lag, ...] = ("wait", "skip")
    for lag in lags:
        if value == lag:
            return lag
    raise ValueError(f"{name}={value!r}: it is 'wait' or 'skip'")


def size(name: str, value: Any) -> int:
    """Bytes as a number, or as a text such as ``"16MiB"``. Raises ValueError for anything else."""
    found = _SIZE.fullmatch(str(value)) if isinstance(value, int | str) else None
    if found is None or isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: it is a number of bytes, or a text such as '512KiB' or '16MiB'")
    number = int(found[1]) << _UNITS[found[2].upper()]
    if number > _LARGEST:
        raise ValueError(f"{name}={value!r}: '1024GiB' is the most")
    return number


_SIZE: Final = re.compile(r"(\d{1,13}) ?([kKMG]?)(?:iB)?")
_UNITS: Final = {"": 0, "K": 10, "M": 20, "G": 30}
_LARGEST: Final = 1 << 40

_READERS: Final[dict[str, Callable[[str, Any], Any]]] = {
    "priority": _priority,
    "unique": _unique,
    "timeout": run_limit,
    "delay": bounded,
    "at": _unix_time,
    "debounce": bounded,
    "max_wait": bounded,
    "keep": bounded,
    "reuse": _flag,
    "resubmit": _flag,
    "retries": _plan,
    "expires": bounded,
    "lag": _lag,
    "stream_keep": size,
}
"""How the value of each option is checked, and turned into what is sent."""


def read_changes(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes as the client takes them.

    Raises:
        TypeError: There is no such change.
        ValueError: A value is not valid, or there is none.
    """
    for name in changes.keys() - JobChanges.__annotations__.keys():
        raise TypeError(no_option(name, JobChanges.__annotations__))
    if not changes:
        raise ValueError("there is nothing to change: give priority=, delay=, at= or expires=")
    if "delay" in changes and "at" in changes:
        raise ValueError("delay= and at= both say when the job may start: give one of them")
    return {name: _READERS[name](name, value) for name, value in changes.items()}


FOR_STREAMS: Final = "is for tasks that yield, whose result is annotated as 'Iterator[TYPE]'"

assert _READERS.keys() == CallOptions.__annotations__.keys() | StreamOptions.__annotations__.keys()
