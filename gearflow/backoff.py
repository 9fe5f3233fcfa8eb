"""Capped exponential back-off: how long to wait after each of several failures in a row. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait after several failed attempts in a row.

    Attributes:
        first: Seconds after the first failure, doubled for each further one.
        most: The longest time in seconds.
    """

    first: float = 0.1
    most: float = 30.0

    def longest(self, failures: int) -> float:
        """Seconds after that many failures in a row, without jitter."""
        exponent = min(failures - 1, 64)  # 2.0 ** 1024 would overflow
        return min(self.most, self.first * 2.0**exponent)

    def delay(self, failures: int, jitter: float) -> float:
        """Seconds after that many failures in a row. ``jitter`` (0 to 1) takes off up to half of it."""
        return self.longest(failures) * (1 - jitter / 2)
