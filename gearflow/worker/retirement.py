"""A worker that has reached a limit retires: a fresh one takes its place."""

import logging
import random
from collections.abc import Callable
from typing import Final

import anyio

from gearflow.errors import StartupFailed
from gearflow.worker.limits import Limits, too_small
from gearflow.worker.memory import resident
from gearflow.worker.tally import Tally

logger = logging.getLogger("gearflow.worker")

INTERVAL: Final = 2.0
"""Seconds between two looks at the memory, which may grow while a job runs."""


class Retirement:
    """Looks for the moment, and calls ``retire`` once, with the reason. Owns state.

    Args:
        max_tasks, max_rss: The limits, as in ``WorkerSettings``.
        tally: The runs that have ended.
        is_used: Whether there was a job yet. Without one there is no use in a fresh worker.
        retire: What to call.
    """

    def __init__(
        self,
        max_tasks: int | None,
        max_rss: int | None,
        tally: Tally,
        is_used: Callable[[], bool],
        retire: Callable[[str], object],
    ) -> None:
        self._max_tasks = max_tasks
        self._max_rss = max_rss
        self._tally = tally
        self._is_used = is_used
        self._retire = retire
        self._is_due = False
        self._limits: Limits

    def begin(self) -> None:
        """The worker has started, and is about to take jobs.

        Raises:
            StartupFailed: It is larger already than it may become.
        """
        size = resident()
        if self._max_rss is not None and (reason := too_small(self._max_rss, size)) is not None:
            raise StartupFailed(reason)
        self._limits = Limits(self._max_tasks, self._max_rss, random.random(), size)

    def look(self) -> None:
        """See whether a limit is reached."""
        if self._is_due:
            return
        memory = resident() if self._limits.need_memory else 0
        reason = self._limits.exceeded(self._tally.ended, memory)
        if reason is not None:
            self._is_due = True
            logger.info("retiring", extra={"reason": reason})
            self._retire(reason)

    async def watch(self) -> None:
        """Look now and then, if something can change meanwhile."""
        while self._limits.need_memory and not self._is_due:
            await anyio.sleep(INTERVAL)
            if self._is_used():
                self.look()
