"""When to run a failed task again: a schedule as a value, without a clock."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

from gearflow.backoff import Backoff
from gearflow.errors import PayloadInvalid
from gearflow.tasks.durations import LONGEST, is_number
from gearflow.tasks.remote_errors import name_of, relayed

if TYPE_CHECKING:
    from gearflow.protocol.server_calls import RetryPlan  # it imports pydantic

__all__ = ["Retry"]

MOST_ATTEMPTS: Final = 2000
"""Of a schedule that is sent with a call: it goes delay by delay, and the server takes 64 KiB of options."""

Kind: TypeAlias = type[Exception] | str


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a task runs, after which errors it runs again, and how long the pauses are.

    ``print(Retry(5))`` shows the schedule.

    Attributes:
        attempts: The number of all runs, including the first.
        on: The exception class after which a run is worth repeating, or several. Write ``"module.Class"`` if
            you do not want to import the class.
        backoff: Seconds before the second run, doubled for each further run. Or a function from the number of
            failed runs (from 1) to seconds.
        max_delay: The longest delay in seconds.
        jitter: Whether each delay is a random time between half of it and all of it, so that jobs that failed
            together do not run again together.

    Raises:
        TypeError, ValueError: A value is not valid. The message says what would be.
    """

    attempts: int = 3
    on: Kind | tuple[Kind, ...] | list[Kind] = field(default=Exception, kw_only=True)
    backoff: float | Callable[[int], float] = field(default=1.0, kw_only=True)
    max_delay: float = field(default=3600.0, kw_only=True)
    jitter: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        _require_attempts(self.attempts)
        if not callable(self.backoff):
            _require_delay("backoff", self.backoff, ", or a function of the number of failed runs")
        _require_delay("max_delay", self.max_delay)
        _require_flag(self.jitter)
        if isinstance(self.on, list):
            object.__setattr__(self, "on", tuple(self.on))
        for kind in self._kinds:
            _require_kind(kind)

    def schedule(self) -> list[float]:
        """Return the longest delay before each further run, in seconds."""
        return [self._longest(failures) for failures in range(1, self.attempts)]

    def delay(self, failures: int, *, draw: Callable[[], float] = random.random) -> float | None:
        """Return the seconds to wait after ``failures`` failed runs, or None if there is no further run.

        ``draw`` returns a number from 0 to 1.
        """
        if failures >= self.attempts:
            return None
        longest = self._longest(failures)
        return longest * (1 + draw()) / 2 if self.jitter else longest

    def wants(self, error: BaseException) -> bool:
        """Return whether a run that raised ``error`` is worth repeating.

        A payload that does not fit its types is never worth it.
        """
        if isinstance(error, PayloadInvalid):
            return False
        elsewhere = relayed(error)
        names = map(name_of, type(error).__mro__) if elsewhere is None else elsewhere.kinds
        by_name = frozenset(names)
        return any(
            name_of(kind) in by_name
            if elsewhere is not None or isinstance(kind, str)
            else isinstance(error, kind)
            for kind in self._kinds
        )

    def to_plan(self) -> "RetryPlan":
        """Return the plan that travels with a job, with the delays one by one and the classes by name.

        Raises:
            ValueError: ``backoff`` returned a value that is not a delay.
        """
        from gearflow.protocol.server_calls import RetryPlan

        return RetryPlan(
            delays=tuple(self.schedule()), jitter=self.jitter, on=tuple(name_of(kind) for kind in self._kinds)
        )

    @classmethod
    def from_plan(cls, plan: "RetryPlan") -> Self:
        """Make a ``Retry`` from a plan that travelled. It compares classes by name, and imports nothing."""
        delays = plan.delays
        return cls(
            len(delays) + 1,
            on=plan.on,
            backoff=lambda failures: delays[failures - 1],
            max_delay=max(delays, default=0.0),
            jitter=plan.jitter,
        )

    @property
    def _kinds(self) -> tuple[Kind, ...]:
        return tuple(self.on) if isinstance(self.on, tuple | list) else (self.on,)

    def _longest(self, failures: int) -> float:
        if callable(self.backoff):
            delay = self.backoff(failures)
            if not is_number(delay) or not delay >= 0:
                raise ValueError(
                    f"Retry: backoff({failures}) returned {delay!r}, "
                    "and a delay is a number of seconds, not negative"
                )
            return min(delay, self.max_delay, LONGEST)
        return Backoff(self.backoff, min(self.max_delay, LONGEST)).longest(failures)

    def __str__(self) -> str:
        delays = ", ".join(f"{delay:g} s" for delay in self.schedule())
        return f"{self.attempts} attempts" + (f", after at most {delays}" if delays else "")


def _require_attempts(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"Retry(attempts={value!r}): it is a whole number of runs")
    if value < 1:
        raise ValueError(f"Retry(attempts={value}): a task is run at least once")


def _require_delay(name: str, value: Any, alternative: str = "") -> None:
    if not is_number(value) or not value >= 0:
        raise ValueError(f"Retry({name}={value!r}): it is a number of seconds, not negative{alternative}")


def _require_flag(value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"Retry(jitter={value!r}): it is True or False")


def _require_kind(kind: Any) -> None:
    if isinstance(kind, Exception):
        name = type(kind).__name__
        raise TypeError(f"Retry(on={kind!r}): that is one exception; give the class: on={name}")
    if not isinstance(kind, str) and not (isinstance(kind, type) and issubclass(kind, Exception)):
        raise TypeError(
            f"Retry(on=...): {kind!r} is no class of exceptions; give such as OSError or 'module.Class', "
            "or several in a tuple"
        )
