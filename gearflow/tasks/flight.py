"""The jobs of a batch that are on their way: launched together, taken as they land.

Lives in the event loop of the client. Nothing runs while nobody waits: what lands is only put aside.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import anyio

from gearflow.client import Client, ClientJob, JobFailed, Order
from gearflow.errors import TaskFailed
from gearflow.tasks.failure import decode_failure
from gearflow.tasks.source import Bell
from gearflow.tasks.waiting import Waiting

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Landed(Generic[K]):
    """A job that has ended: under the key it was launched with, its result or its failure."""

    key: K
    result: Any
    failure: TaskFailed | None = None


class Flight(Generic[K]):
    """Jobs of one function in flight. Owns them: ``close`` cancels those that have not ended."""

    def __init__(
        self, client: Client, function: str, decode: Callable[[bytes], Any], bell: Bell | None = None
    ) -> None:
        self._client = client
        self._function = function
        self._decode = decode
        self._bell = bell or Bell()  # rung when a job lands
        self._flying: dict[ClientJob, K] = {}
        self._landed: deque[tuple[K, ClientJob]] = deque()
        self._closed = False

    @property
    def size(self) -> int:
        """Jobs that were launched and not taken yet."""
        return len(self._flying) + len(self._landed)

    async def launch(self, calls: Sequence[tuple[K, Order]]) -> None:
        """Submit all at once; returns when the server has accepted them.

        Raises:
            NoServer, SubmitUnknown, QueueFull, ServerError: For the first that was not; others may be.
        """
        if len(calls) == 1:
            await self._submit(*calls[0])
            return
        failures: list[Exception] = []

        async def submit(key: K, call: Order) -> None:
            try:
                await self._submit(key, call)
            except Exception as error:  # noqa: BLE001  (raised below: a group would hide which it is)
                failures.append(error)

        async with anyio.create_task_group() as submissions:
            for key, call in calls:
                submissions.start_soon(submit, key, call)
        if failures:
            raise failures[0]

    async def _submit(self, key: K, call: Order) -> None:
        job = await self._client.submit(
            call.function, call.workload, unique=call.unique, priority=call.priority, options=call.options
        )
        self._flying[job] = key
        job.add_done_callback(self._land)
        if self._closed:
            self.close()

    def _land(self, job: ClientJob) -> None:
        key = self._flying.pop(job, None)
        if key is None:  # detached
            return
        self._landed.append((key, job))
        self._bell.ring()

    async def wait(self) -> None:
        """Return when a job has landed, at once if one has, or none is in flight."""
        if self._flying and not self._landed:
            with Waiting(self._function):
                while self._flying and not self._landed:
                    await self._bell.wait()

    async def take(self) -> list[Landed[K]]:
        """All that have landed; does not wait.

        Raises:
            ConnectionLost: The connection closed before a job ended.
            PayloadInvalid: A result does not fit the task's type.
            QueueFull, ServerError: The server refused one after all; only for calls with options.
        """
        taken: list[Landed[K]] = []
        while self._landed:
            key, job = self._landed.popleft()
            try:
                taken.append(Landed(key, self._decode(await job.result())))
            except JobFailed as error:
                taken.append(Landed(key, None, decode_failure(error.exception, job.handle)))
        return taken

    def close(self) -> None:
        """Cancel all that are in flight."""
        self._closed = True
        flying, self._flying = self._flying, {}
        for job in flying:
            job.cancel()
        self._landed.clear()
