"""Warns when the runs that wait for other tasks have all slots of a worker.

If they wait for tasks of the same worker, these cannot run here. If that is so everywhere, nothing moves any
more. No worker can know whether it is, so each one warns for itself. Waits for tasks that it does not offer
are left out: it is not what holds them up.

A thread that waits for another task cannot be stopped from outside, and that other task may never be run. So
the wait is noted with the run, which ends it where it would cancel a coroutine.
"""

import logging
import threading
import time
from collections.abc import Iterable
from math import inf
from typing import Final

from gearflow.protocol.packets import WorkWarning
from gearflow.tasks.wait_tracking import Waiting
from gearflow.worker.run import Run

logger = logging.getLogger("gearflow.worker")

INTERVAL: Final = 60.0
"""Seconds between two warnings at least: what is wrong is how the worker is set up, and stays so."""


class DeadlockWarning:
    """Counts the runs that wait. Owns state; safe to use from several threads.

    Args:
        slots: How many runs the worker has at a time.
        functions: What it offers.
    """

    def __init__(self, slots: int, functions: Iterable[str]) -> None:
        self._slots = slots
        self._functions = frozenset(functions)
        self._lock = threading.Lock()
        self._waits: dict[Run, int] = {}  # a run may wait for several jobs at once
        self._warned = -inf
        self._thread = 0  # the worker's, in whose loop waits end with the runs

    def begin(self) -> None:
        """The worker runs in this thread."""
        self._thread = threading.get_ident()

    def began(self, run: Run, wait: Waiting) -> None:
        """A run waits from now on."""
        if threading.get_ident() != self._thread:
            run.waits(wait)
        function = wait.function
        if function not in self._functions:
            return
        with self._lock:
            self._waits[run] = self._waits.get(run, 0) + 1
            if len(self._waits) < self._slots or time.monotonic() < self._warned + INTERVAL:
                return
            # What a task has left behind waits on without a slot.
            waiting = [each for each in self._waits if not each.is_settled]
            if len(waiting) < self._slots:
                return
            self._warned = time.monotonic()
        _warn(waiting, function)

    def ended(self, run: Run, wait: Waiting) -> None:
        """It does not any more."""
        run.has_waited(wait)
        if wait.function not in self._functions:
            return
        with self._lock:
            self._waits[run] -= 1
            if not self._waits[run]:
                del self._waits[run]


def _warn(waiting: list[Run], function: str) -> None:
    """Warn in the log, and the callers of the runs that wait."""
    names = ", ".join(sorted({run.task.name for run in waiting}))
    text = (
        f"all slots of a worker ({len(waiting)}) are taken by tasks that wait for others ({names}), "
        f"so it cannot run {function}, which the last of them waits for; give {function} workers of its own "
        "(gearflow worker -f), raise the concurrency, or call it in the background and do not wait"
    )
    logger.warning("%s", text)
    for run in waiting:
        if not run.connection.is_basic:
            run.send(WorkWarning(run.handle, text.encode()))
