"""A worker that has reached a limit retires: a fresh one takes its place.

How much memory this process has.

When a worker has done enough, or has grown too large, and is to be replaced by a fresh one. Pure.
"""

import logging
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

import anyio

from gearflow.errors import StartupFailed
from gearflow.runtime.process import peak
from gearflow.worker.stats import Tally

_STATM: Final = Path("/proc/self/statm")


def resident() -> int:
    """Bytes that are resident now; where the system does not tell, the most that ever were."""
    try:
        pages = int(_STATM.read_bytes().split()[1])
    except OSError:
        return peak()
    return pages * os.sysconf("SC_PAGE_SIZE")


JITTER: Final = 0.1
"""The part of a limit by which it is lowered at most, so that a fleet does not retire all at once."""


class RecycleLimits:
    """Limits as they hold for one worker. A frozen value.

    Args:
        max_tasks: Runs; ``None`` for any number.
        max_rss: Bytes of resident memory; ``None`` for any.
        luck: This worker's own number between 0 and 1, which says by how much its limits are lowered.
        size: Bytes that it has before its first job. Its limit is not lowered below that.
    """

    __slots__ = ("_max_rss", "_max_tasks")

    def __init__(self, max_tasks: int | None, max_rss: int | None, luck: float, size: int = 0) -> None:
        self._max_tasks = None if max_tasks is None else max_tasks - int(max_tasks * JITTER * luck)
        self._max_rss = None if max_rss is None else max_rss - int((max_rss - size) * JITTER * luck)

    @property
    def need_memory(self) -> bool:
        """There is a limit of memory, so it has to be looked at."""
        return self._max_rss is not None

    def exceeded(self, runs: int, memory: int) -> str | None:
        """Why a worker with so many ended runs and so many bytes is to retire; ``None``: it is not."""
        if self._max_tasks is not None and runs >= self._max_tasks:
            return f"{runs} jobs done, of at most {self._max_tasks}"
        if self._max_rss is not None and memory > self._max_rss:
            return f"{_mib(memory)} of memory, of at most {_mib(self._max_rss)}"
        return None


def too_small(max_rss: int, size: int) -> str | None:
    """Why a worker that has so many bytes before its first job cannot keep a limit; ``None``: it can."""
    if size <= max_rss:
        return None
    return (
        f"a worker has {_mib(size)} of memory before its first job, more than max_rss allows "
        f"({_mib(max_rss)}), so it would be replaced again and again; give it more than it needs for its jobs"
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


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
        self._limits: RecycleLimits

    def begin(self) -> None:
        """The worker has started, and is about to take jobs.

        Raises:
            StartupFailed: It is larger already than it may become.
        """
        size = resident()
        if self._max_rss is not None and (reason := too_small(self._max_rss, size)) is not None:
            raise StartupFailed(reason)
        self._limits = RecycleLimits(self._max_tasks, self._max_rss, random.random(), size)

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
