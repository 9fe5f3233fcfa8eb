"""A sign of life in the log of a worker that has nothing to do.

What a worker has done so far, in numbers.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

import anyio

from gearflow.worker.run import RunOutcome
from gearflow.worker.server_link import ServerLink

_FAILURES: Final = frozenset(
    {RunOutcome.FAILED, RunOutcome.TIMED_OUT, RunOutcome.INVALID, RunOutcome.DISCARDED}
)


class Tally:
    """Counts the runs that have ended. Owns state."""

    __slots__ = ("done", "ended", "failed", "last_end")

    def __init__(self) -> None:
        self.ended = 0  # in whatever way
        self.done = 0
        self.failed = 0  # for good: runs that are retried, snoozed, cancelled or handed on are not
        self.last_end = time.perf_counter()  # of a run; before the first one, of the worker's making

    def add(self, outcome: RunOutcome, now: float) -> None:
        """A run has ended."""
        self.ended += 1
        self.last_end = now
        if outcome is RunOutcome.DONE:
            self.done += 1
        elif outcome in _FAILURES:
            self.failed += 1


logger = logging.getLogger("gearflow.worker")


async def tell(
    interval: float, tally: Tally, links: Sequence[ServerLink], is_waiting: Callable[[], bool]
) -> None:
    """Log a line whenever no job has run for so many seconds."""
    while True:
        idle = time.perf_counter() - tally.last_end
        if idle < interval:
            await anyio.sleep(interval - idle)
            continue
        if is_waiting():
            connected = sum(link.is_registered for link in links)
            logger.info(
                "waiting for jobs",
                extra={"servers": f"{connected}/{len(links)}", "done": tally.done, "failed": tally.failed},
            )
        await anyio.sleep(interval)
