"""A worker that has reached a limit retires: a fresh one takes its place."""

import logging
from collections.abc import Callable
from typing import Final

import anyio

from gearflow.worker.limits import Limits
from gearflow.worker.memory import resident
from gearflow.worker.tally import Tally

logger = logging.getLogger("gearflow.worker")

INTERVAL: Final = 2.0
"""Seconds between two looks at the memory, which may grow while a job runs."""


class Retirement:
    """Looks for the moment, and calls ``retire`` once, with the reason. Owns state."""

    def __init__(self, limits: Limits, tally: Tally, retire: Callable[[str], object]) -> None:
        self._limits = limits
        self._tally = tally
        self._retire = retire
        self._is_due = False

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
            self.look()
