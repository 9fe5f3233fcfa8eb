"""When to run a failed task again: a schedule as a value, without a clock."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Retry"]


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a task is run, after which errors, and how long after the one before.

    ``print(Retry(5))`` shows the schedule.

    Attributes:
        attempts: Runs in all, the first one included.
        on: Classes of exceptions after which it is worth trying again.
        backoff: Seconds before the second run, doubled for each further one; or a function of the number
            of failed runs (from 1) to seconds.
        max_delay: No delay is longer, in seconds.
        jitter: Whether each delay is drawn between half of it and all of it, so that what failed
            together is not tried again together.
    """

    attempts: int = 3
    on: type[Exception] | tuple[type[Exception], ...] = field(default=Exception, kw_only=True)
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
        """Whether a run that ended so is worth repeating."""
        return isinstance(error, self.on)

    def _longest(self, failures: int) -> float:
        if callable(self.backoff):
            return min(self.backoff(failures), self.max_delay)
        # 2.0 ** 1024 overflows, and any delay is at its cap long before
        return min(self.backoff * 2.0 ** min(failures - 1, 64), self.max_delay)

    def __str__(self) -> str:
        delays = ", ".join(f"{delay:g} s" for delay in self.schedule())
        return f"{self.attempts} attempts" + (f", after at most {delays}" if delays else "")
