"""Where the items of an async batch come from: an iterable, or an async one.

An async iterable may take its time for an item, and may want to hear results before it has the next one (a
crawler's does). So it is iterated over beside the run of the batch, in a task of the client's, and a
bounded number of items ahead.

The jobs of a batch that are on their way: launched together, taken as they land.

Lives in the event loop of the client. Nothing runs while nobody waits: what lands is only put aside.
"""

from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import anyio

from gearflow.client import Client, ClientJob, JobFailed, JobRequest
from gearflow.errors import ConnectionLost, TaskFailed
from gearflow.tasks.remote_errors import decode_failure
from gearflow.tasks.wait_tracking import Waiting


class AutoResetEvent:
    """Wakes the one who waits; a ring that nobody waited for is kept, once."""

    __slots__ = ("_rung", "_waiter")

    def __init__(self) -> None:
        self._rung = False
        self._waiter: anyio.Event | None = None

    def ring(self) -> None:
        """Wake who waits, or the next who will."""
        self._rung = True
        if self._waiter is not None:
            self._waiter.set()

    async def wait(self) -> None:
        """Return after the next ring, at once if there was one since the last wait."""
        if not self._rung:
            self._waiter = anyio.Event()
            await self._waiter.wait()
            self._waiter = None
        self._rung = False


class Source(Protocol):
    """Gives items as there is room for them."""

    @property
    def ended(self) -> bool:
        """Whether all items were taken."""
        ...

    def take(self, room: int) -> list[Any]:
        """At most ``room`` items, those that are there; raises what the iterable raised."""
        ...

    def close(self) -> None:
        """Nothing more is wanted."""
        ...


class Items:
    """The items of an iterable, which has them at once."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = iter(items)
        self.ended = False

    def take(self, room: int) -> list[Any]:
        """At most ``room`` items."""
        items = list(islice(self._items, room))
        self.ended = len(items) < room
        return items

    def close(self) -> None:
        """Nothing more is wanted."""
        self.ended = True


class AsyncItems:
    """The items of an async iterable, which has them when it has; then it rings the bell."""

    def __init__(self, items: AsyncIterable[Any], bell: AutoResetEvent, client: Client) -> None:
        self._source = items
        self._bell = bell
        self._client = client
        self._items: deque[Any] = deque()
        self._wanted = 0
        self._more = AutoResetEvent()
        self._scope: anyio.CancelScope | None = None  # of the iteration, once it has begun
        self._exhausted = False
        self._failure: Exception | None = None

    @property
    def ended(self) -> bool:
        """Whether all items were taken."""
        return self._exhausted and not self._items and self._failure is None

    def take(self, room: int) -> list[Any]:
        """Those of at most ``room`` items that are there; the others are asked for."""
        items = [self._items.popleft() for _ in range(min(room, len(self._items)))]
        if self._failure is not None and not items:
            raise self._failure
        self._wanted = room - len(items)
        if self._scope is None and self._wanted:
            self._scope = anyio.CancelScope()
            self._client.start_soon(self._iterate)
        self._more.ring()
        return items

    async def _iterate(self) -> None:
        assert self._scope is not None  # made before this was started
        try:
            with self._scope:
                async for item in self._source:
                    self._items.append(item)
                    self._bell.ring()
                    while len(self._items) >= self._wanted:
                        await self._more.wait()
                self._exhausted = True
        except Exception as error:  # noqa: BLE001  (it belongs to who wants the items)
            self._failure = error
        finally:
            if not self._exhausted and self._failure is None:
                self._failure = ConnectionLost("the client was closed before all items were taken")
            self._bell.ring()

    def close(self) -> None:
        """Nothing more is wanted: an iteration under way is cancelled."""
        if self._scope is not None:
            self._scope.cancel()


K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Finished(Generic[K]):
    """A job that has ended: under the key it was launched with, its result or its failure."""

    key: K
    result: Any
    failure: TaskFailed | None = None


class InFlightJobs(Generic[K]):
    """Jobs of one function in flight. Owns them: ``close`` cancels those that have not ended."""

    def __init__(
        self,
        client: Client,
        function: str,
        decode: Callable[[bytes], Any],
        bell: AutoResetEvent | None = None,
    ) -> None:
        self._client = client
        self._function = function
        self._decode = decode
        self._bell = bell or AutoResetEvent()  # rung when a job lands
        self._flying: dict[ClientJob, K] = {}
        self._landed: deque[tuple[K, ClientJob]] = deque()
        self._closed = False

    @property
    def size(self) -> int:
        """Jobs that were launched and not taken yet."""
        return len(self._flying) + len(self._landed)

    async def launch(self, calls: Sequence[tuple[K, JobRequest]]) -> None:
        """Submit all at once; returns when the server has accepted them.

        Raises:
            NoServer, SubmitUnknown, QueueFull, ServerError: For the first that was not; others may be.
        """
        if len(calls) == 1:
            await self._submit(*calls[0])
            return
        failures: list[Exception] = []

        async def submit(key: K, call: JobRequest) -> None:
            try:
                await self._submit(key, call)
            except Exception as error:  # noqa: BLE001  (raised below: a group would hide which it is)
                failures.append(error)

        async with anyio.create_task_group() as submissions:
            for key, call in calls:
                submissions.start_soon(submit, key, call)
        if failures:
            raise failures[0]

    async def _submit(self, key: K, call: JobRequest) -> None:
        job = await self._client.attach(call)
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

    async def take(self) -> list[Finished[K]]:
        """All that have landed; does not wait.

        Raises:
            ConnectionLost: The connection closed before a job ended.
            PayloadInvalid: A result does not fit the task's type.
            QueueFull, ServerError: The server refused one after all; only for calls with options.
        """
        taken: list[Finished[K]] = []
        while self._landed:
            key, job = self._landed.popleft()
            try:
                taken.append(Finished(key, self._decode(await job.result())))
            except JobFailed as error:
                taken.append(Finished(key, None, decode_failure(error.exception, job.handle)))
        return taken

    def close(self) -> None:
        """Cancel all that are in flight."""
        self._closed = True
        flying, self._flying = self._flying, {}
        for job in flying:
            job.cancel()
        self._landed.clear()
