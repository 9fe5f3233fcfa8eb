"""When a worker process that died is started again: pure.

One that had served for a while is started again almost at once. Deaths in a row, before it served or
shortly after, come from what will most likely kill the next one as well: each waits twice as long as the one
before, and from ``LOOP`` on it is called what it is, a crash loop, and waits the longest. It is never given
up: what kills it may be a database that is away, and a fleet that waits needs nobody to start it again.
"""

from dataclasses import dataclass
from typing import Final

from gearflow.backoff import Backoff

STABLE: Final = 30.0
"""Seconds of service after which a death says nothing about the next process."""

LOOP: Final = 5
"""Deaths in a row that make a crash loop."""

_BACKOFF: Final = Backoff(first=0.25, most=60.0)


@dataclass(frozen=True, slots=True)
class Restart:
    """The next start, in so many seconds."""

    after: float
    looping: bool


class Restarts:
    """Counts the quick deaths of the processes that had one place after the other."""

    __slots__ = ("_deaths",)

    def __init__(self) -> None:
        self._deaths = 0

    def died(self, served: float | None, jitter: float) -> Restart:
        """The next start after a process died that had served so many seconds; ``None``: not at all.

        ``jitter`` (0 to 1) takes off up to half of the wait, so that a fleet does not return all at once.
        """
        if served is not None and served >= STABLE:
            self._deaths = 0
        self._deaths += 1
        looping = self._deaths >= LOOP
        return Restart(_BACKOFF.delay(64 if looping else self._deaths, jitter), looping)

    def forget(self) -> None:
        """There is new code: nothing is known of it."""
        self._deaths = 0
