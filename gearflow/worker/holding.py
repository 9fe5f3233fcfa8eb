"""Jobs that wait here for their next run: where their server cannot keep them, this worker does.

A held job has no slot while it waits. It is still this worker's at the server, so it is lost, as if it
ran, when the connection goes: then the server hands it on.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import anyio

from gearflow.worker.connection import Connection
from gearflow.worker.executor import AnyTask
from gearflow.worker.grabbing import Grabbing
from gearflow.worker.loops import Loop, Started


class Held:
    """One of them. Its ``workload`` is that of the next run."""

    __slots__ = ("begin", "connection", "handle", "named", "task", "wait", "workload")

    def __init__(
        self, task: AnyTask, handle: bytes, connection: Connection, workload: bytes, named: dict[str, Any]
    ) -> None:
        self.task = task
        self.handle = handle
        self.connection = connection
        self.workload = workload
        self.named = named  # what the log calls it
        self.begin: Callable[[], None]
        self.wait: Started


class Holding:
    """All of a worker. Owns state; ``begin`` is called with a job that has a slot again."""

    def __init__(self, grabbing: Grabbing, loop: Loop, begin: Callable[[Held], None]) -> None:
        self._grabbing = grabbing
        self._loop = loop
        self._begin = begin
        self._held: set[Held] = set()

    def hold(self, job: Held, seconds: float) -> None:
        """Keep a job for so long, then run it as soon as a slot is free. Its run still has its slot."""
        job.begin = partial(self._leave, job)
        self._held.add(job)
        self._grabbing.hold()
        job.wait = self._loop.start(partial(self._wait, job, seconds))

    def drop(self, connection: Connection | None = None) -> list[Held]:
        """Let go of those of a connection, or of all; returns them."""
        dropped = [job for job in self._held if connection is None or job.connection is connection]
        for job in dropped:
            self._held.discard(job)
            job.wait.cancel()
            self._grabbing.let_go(job.begin)
        return dropped

    async def _wait(self, job: Held, seconds: float) -> None:
        await anyio.sleep(seconds)
        if job in self._held:
            self._grabbing.claim(job.begin)

    def _leave(self, job: Held) -> None:
        self._held.discard(job)
        self._begin(job)
