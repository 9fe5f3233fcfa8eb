"""A worker that has done enough jobs, or has grown too large, retires: a fresh one takes its place."""

import logging
import random
from collections.abc import Callable
from typing import Final

import anyio

from gearflow.errors import StartupFailed
from gearflow.runtime.process import resident
from gearflow.worker.stats import RunStats

logger = logging.getLogger("gearflow.worker")

JITTER: Final = 0.1
"""The part of a limit by which it is lowered at most, so that a fleet does not retire all at once."""


class RecycleLimits:
    """Limits as they hold for one worker. A frozen value.

    Args:
        max_tasks: Runs; ``None`` for any number.
        max_rss: Bytes of resident memory; ``None`` for any.
        luck: This worker's own number between 0 and 1. The larger it is, the lower are its limits.
        size: Bytes that it has before its first job. Its limit is not lowered below that.
    """

    __slots__ = ("_max_rss", "_max_tasks")

    def __init__(self, max_tasks: int | None, max_rss: int | None, luck: float, size: int = 0) -> None:
        self._max_tasks = None if max_tasks is None else max_tasks - int(max_tasks * JITTER * luck)
        self._max_rss = None if max_rss is None else max_rss - int((max_rss - size) * JITTER * luck)

    def exceeded(self, runs: int, memory: int) -> str | None:
        """Why a worker with so many ended runs and so many bytes is to retire; ``None``: it is not."""
        if self._max_tasks is not None and runs >= self._max_tasks:
            return f"{runs} jobs done, of at most {self._max_tasks}"
        if self._max_rss is not None and memory > self._max_rss:
            return f"{_mib(memory)} of memory, of at most {_mib(self._max_rss)}"
        return None


class Recycler:
    """Calls ``retire`` once, with the reason, when a limit is reached. Owns state.

    Args:
        max_tasks, max_rss: The limits, as in ``WorkerSettings``.
        stats: The runs. Before the first one there is no use in a fresh worker.
        retire: What to call.
        interval: Seconds between two checks of the memory, which may grow while a job runs.
        resident: Returns the bytes of memory that this process has now.
    """

    def __init__(
        self,
        max_tasks: int | None,
        max_rss: int | None,
        stats: RunStats,
        retire: Callable[[str], object],
        *,
        interval: float,
        resident: Callable[[], int] = resident,
    ) -> None:
        self._max_tasks = max_tasks
        self._max_rss = max_rss
        self._stats = stats
        self._retire = retire
        self._interval = interval
        self._resident = resident
        self._is_due = False
        self._limits: RecycleLimits

    def begin(self) -> None:
        """The worker has started, and is about to take jobs.

        Raises:
            StartupFailed: It is larger already than it may become.
        """
        size, most = self._resident(), self._max_rss
        if most is not None and size > most:
            raise StartupFailed(
                f"a worker has {_mib(size)} of memory before its first job, more than max_rss allows "
                f"({_mib(most)}), so it would be replaced again and again; "
                "give it more than it needs for its jobs"
            )
        self._limits = RecycleLimits(self._max_tasks, most, random.random(), size)

    def check(self) -> None:
        """Retire if a limit is reached."""
        if self._is_due:
            return
        memory = 0 if self._max_rss is None else self._resident()
        reason = self._limits.exceeded(self._stats.ended, memory)
        if reason is not None:
            self._is_due = True
            logger.info("retiring", extra={"reason": reason})
            self._retire(reason)

    async def watch(self) -> None:
        """Check at intervals, if something can change meanwhile."""
        while self._max_rss is not None and not self._is_due:
            await anyio.sleep(self._interval)
            if self._stats.is_used:
                self.check()


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
