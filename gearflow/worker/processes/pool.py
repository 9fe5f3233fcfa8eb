"""The processes of a worker: made when they are needed, kept for the next run, replaced when worn out.

There is no limit and no queue here: whoever starts runs has a slot for each, so there are as many processes
as there were runs at once. The one that was used last is used next.
"""

import logging
import threading
import time
from collections import deque
from typing import Final

from gearflow.client.ambient import Target
from gearflow.worker.processes.frames import encode
from gearflow.worker.processes.orders import Hello
from gearflow.worker.processes.process import Process

LEAVING: Final = 5.0
"""Seconds that a process has to leave its lifespans when it is not needed any more."""

_REAPING: Final = 1.0
"""Seconds to wait for the end of what was killed: the kernel may have much memory to free."""


class Pool:
    """Owns processes. ``take``, ``give_back`` and ``discard`` belong to the threads that wait for runs.

    Args:
        target: Where the calls go that tasks make.
        lifespans: The names of the hooks that processes enter; ``None``: all that their tasks' modules have.
        max_tasks: Runs after which a process is replaced; ``None`` for never.
        max_rss: Bytes of resident memory above which it is replaced; ``None`` for never.
    """

    def __init__(
        self,
        target: Target,
        lifespans: tuple[str, ...] | None,
        max_tasks: int | None,
        max_rss: int | None,
    ) -> None:
        hello = Hello(target, lifespans, measures=max_rss is not None, level=logging.root.level)
        self._hello = encode("hello", **hello.fields())
        self._max_tasks = max_tasks
        self._max_rss = max_rss
        self._lock = threading.Lock()
        self._idle: deque[Process] = deque()
        self._living: set[Process] = set()  # those that have ended are forgotten when another is made
        self._closed = False

    @property
    def is_unused(self) -> bool:
        """No process was ever made."""
        return not self._living

    def take(self) -> Process:
        """A process for one run. Raises as ``Process``."""
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if not process.has_ended.is_set():
                    return process
                process.dismiss()
        process = Process(self._hello)
        with self._lock:
            self._living = {one for one in self._living if not one.has_ended.is_set()} | {process}
            if self._closed:
                process.kill()
        return process

    def give_back(self, process: Process, rss: int) -> None:
        """The run is over, and the process has so many bytes of memory: keep it if it is still good."""
        worn_out = (self._max_tasks is not None and process.runs >= self._max_tasks) or (
            self._max_rss is not None and rss > self._max_rss
        )
        with self._lock:
            if not worn_out and not self._closed:
                self._idle.append(process)
                return
        process.dismiss()

    def discard(self, process: Process) -> None:
        """The run is over, and the process must not go on."""
        process.kill()
        process.dismiss()

    def living(self) -> list[Process]:
        """Those that have not ended."""
        with self._lock:
            return [process for process in self._living if not process.has_ended.is_set()]

    def show(self) -> None:
        """Have all write the stacks of their threads to their output."""
        for process in self.living():
            process.show()

    def close(self, patience: float) -> None:
        """End all processes: let them leave their lifespans for so many seconds, then kill them. Blocks."""
        with self._lock:
            self._closed = True
            idle = [self._idle.pop() for _ in range(len(self._idle))]
        for process in idle:
            process.dismiss()
        self._wait(patience)
        for process in self.living():
            process.kill()
        self._wait(_REAPING)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for process in self.living():
            process.has_ended.wait(max(0.0, deadline - time.monotonic()))
