"""When to run a failed task again: a schedule as a value, without a clock."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from gearflow.errors import PayloadInvalid
from gearflow.tasks.relay import name_of, relayed

if TYPE_CHECKING:
    from gearflow.protocol.reserved import RetryPlan  # it imports pydantic

__all__ = ["Retry"]


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a task is run, after which errors, and how long after the one before.

    ``print(Retry(5))`` shows the schedule.

    Attributes:
        attempts: Runs in all, the first one included.
        on: Classes of exceptions after which it is worth trying again; as ``"module.Class"`` where the
            class is not at hand.
        backoff: Seconds before the second run, doubled for each further one; or a function of the number
            of failed runs (from 1) to seconds.
        max_delay: No delay is longer, in seconds.
        jitter: Whether each delay is drawn between half of it and all of it, so that what failed
            together is not tried again together.
    """

    attempts: int = 3
    on: type[Exception] | str | tuple[type[Exception] | str, ...] = field(default=Exception, kw_only=True)
    backoff: float | Callable[[int], float] = field(default=1.0, kw_only=True)
    max_delay: float = field(default=3600.0, kw_only=True)
    jitter: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"Retry(attempts={self.attempts}): a task is run at least once")
        if self.max_delay < 0 or (not callable(self.backoff) and self.backoff < 0):
            raise ValueError("Retry: a delay cannot be negative")

    def schedule(self) -> list[float]:
        """The longest delay before each further run, in seconds."""
        return [self._longest(failures) for failures in range(1, self.attempts)]

    def delay(self, failures: int, *, draw: Callable[[], float] = random.random) -> float | None:
        """Seconds to wait after ``failures`` runs; ``None`` if there is no further one.

        ``draw`` gives a number from 0 to 1.
        """
        if failures >= self.attempts:
            return None
        longest = self._longest(failures)
        return longest * (1 + draw()) / 2 if self.jitter else longest

    def wants(self, error: BaseException) -> bool:
        """Whether a run that ended so is worth repeating: what does not fit its types now never will."""
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
        """The same as it travels: delays one by one, classes by name.

        Raises:
            ValueError: ``backoff`` returned what is no delay.
        """
        from gearflow.protocol.reserved import RetryPlan

        return RetryPlan(
            delays=tuple(self.schedule()), jitter=self.jitter, on=tuple(name_of(kind) for kind in self._kinds)
        )

    @classmethod
    def from_plan(cls, plan: "RetryPlan") -> Self:
        """What travelled. Classes stay names, and are compared as such: nothing is imported."""
        delays = plan.delays
        return cls(
            len(delays) + 1,
            on=plan.on,
            backoff=lambda failures: delays[failures - 1],
            max_delay=max(delays, default=0.0),
            jitter=plan.jitter,
        )

    @property
    def _kinds(self) -> tuple[type[Exception] | str, ...]:
        return self.on if isinstance(self.on, tuple) else (self.on,)

    def _longest(self, failures: int) -> float:
        if callable(self.backoff):
            delay = self.backoff(failures)
            if not delay >= 0:
                raise ValueError(
                    f"Retry: backoff({failures}) returned {delay!r}, and a delay is not negative"
                )
            return min(delay, self.max_delay)
        # 2.0 ** 1024 overflows, and any delay is at its cap long before
        return min(self.backoff * 2.0 ** min(failures - 1, 64), self.max_delay)

    def __str__(self) -> str:
        delays = ", ".join(f"{delay:g} s" for delay in self.schedule())
        return f"{self.attempts} attempts" + (f", after at most {delays}" if delays else "")
