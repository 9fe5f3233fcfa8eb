"""The items of a batch, how many of them may be called at a time, and the jobs in flight. Items and jobs live
in the event loop of the client.

An async iterable may take its time for an item, and may want to see results before it has the next one, as
a crawler's does. So it runs beside the batch, in a task of the client's, a bounded number of items ahead.

Nothing of the batch runs while nobody waits for it. Jobs that finish meanwhile are only put aside.
"""

from collections import deque
from collections.abc import AsyncIterable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from math import inf
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

import anyio

from gearflow.client import Client, ClientJob, JobFailed, JobRequest
from gearflow.errors import ConnectionLost, TaskFailed
from gearflow.tasks.remote_errors import decode_failure
from gearflow.tasks.wait_tracking import Waiting


class AutoResetEvent:
    """An event for one waiter, which is unset when its wait ends."""

    __slots__ = ("_is_set", "_waiter")

    def __init__(self) -> None:
        self._is_set = False
        self._waiter: anyio.Event | None = None

    def set(self) -> None:
        """Wake the waiter, or the next one."""
        self._is_set = True
        if self._waiter is not None:
            self._waiter.set()

    async def wait(self) -> None:
        """Wait until it is set. Returns at once if it was set since the last wait."""
        if not self._is_set:
            self._waiter = anyio.Event()
            await self._waiter.wait()
            self._waiter = None
        self._is_set = False


LEAST: Final = 32
"""The window of a batch at first, and for long jobs. It hides the round trips of a few workers."""

MOST: Final = 1000
"""The largest window. A larger one saves nothing."""

AHEAD: Final = 0.05
"""Seconds of work in flight beside what runs. The share of a batch stays small, and so does what is
cancelled."""

SPARE: Final = 1.5
"""Jobs in flight for each slot of the workers, so that more slots are found."""

BYTES: Final = 16 << 20
"""Bytes of payloads and results in a window above the least, if they are all as large as the last ones."""


class Window:
    """How many jobs of a batch are in flight. Without a size of its own it follows the speed of the jobs.

    Little's law says how many slots serve the batch: the jobs that end in a second, times the seconds of one
    that need not wait. The window has a bit more, and what ends within ``AHEAD``. So many short jobs share a
    round trip, few long ones wait, and slots that were not used before are found.
    """

    def __init__(self, size: int | None = None, most: int = MOST) -> None:
        self.size = LEAST if size is None else size
        self._most = most
        self._is_fixed = size is not None
        self._wide = LEAST  # as the speed has it
        self._fastest = inf  # seconds from the submission to the end of a job
        self._timed: tuple[int, float] | None = None  # a job in flight, and when it was submitted
        self._began = 0.0  # a round, in which as many jobs end as the window had
        self._ended = 0  # in this round
        self._payload = 0.0  # bytes of one, of late
        self._result = 0.0

    def submitted(self, first: int, sizes: Sequence[int], now: float) -> None:
        """Jobs are about to be submitted, from that place on, with payloads of these sizes."""
        if self._is_fixed:
            return
        if self._timed is None:
            self._timed = first, now
        self._began = self._began or now
        self._payload = _weight(self._payload, sizes)
        self._fit()

    def ended(self, places: Collection[int], sizes: Sequence[int], now: float) -> None:
        """Jobs have ended, with results of these sizes."""
        if self._is_fixed or not places:
            return
        if self._timed is not None and self._timed[0] in places:
            self._fastest = min(self._fastest, now - self._timed[1])
            self._timed = None
        self._result = _weight(self._result, sizes)
        self._ended += len(places)
        if self._ended >= self._wide:
            rate = self._ended / max(now - self._began, 1e-6)
            wanted = int(rate * (SPARE * min(self._fastest, 1e6) + AHEAD))
            self._wide = max(LEAST, min(wanted, 2 * self._wide, self._most), self._wide // 2)
            self._ended, self._began = 0, now
        self._fit()

    def _fit(self) -> None:
        weight = self._payload + self._result
        self.size = self._wide if self._wide * weight <= BYTES else max(LEAST, int(BYTES / weight))


def _weight(before: float, sizes: Sequence[int]) -> float:
    """The bytes of one of these: it rises at once, and falls slowly."""
    mean = sum(sizes) / len(sizes)
    return max(mean, (before + mean) / 2)


class ResultCodec(Protocol):
    """Converts the bytes of results, as ``PayloadCodec`` does."""

    def decode_result(self, data: bytes) -> Any:
        """The result in bytes. Raises PayloadInvalid if it does not fit."""
        ...


class ArgumentCodec(ResultCodec, Protocol):
    """Converts arguments, too."""

    def encode(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """The arguments as bytes. Raises PayloadInvalid if they do not fit."""
        ...


class Callee(Protocol):
    """The parts of a task that jobs of it need."""

    @property
    def name(self) -> str:
        """The function's name on servers."""
        ...

    @property
    def payload(self) -> ResultCodec:
        """Converts its results."""
        ...

    def prepare(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> JobRequest:
        """A call ready to be sent."""
        ...


class ItemCallee(Callee, Protocol):
    """The parts of a task that a batch needs."""

    @property
    def payload(self) -> ArgumentCodec:
        """Converts its arguments and results."""
        ...

    def prepare(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, earlier: int = 0) -> JobRequest:
        """A call ready to be sent, of which so many runs were in other jobs."""
        ...

    def prepare_chunk(self, payloads: Sequence[bytes]) -> JobRequest:
        """Several calls that share a job."""
        ...


class Source(Protocol):
    """The items of a batch, as there is room for them."""

    @property
    def ended(self) -> bool:
        """Whether all items were taken."""
        ...

    def take(self, room: int) -> list[Any]:
        """Take the items that are there, at most ``room``. Raises the error of the iterable."""
        ...

    def close(self) -> None:
        """Take no more."""
        ...


class Items:
    """The items of an iterable, which are always there."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = iter(items)
        self.ended = False

    def take(self, room: int) -> list[Any]:
        """Take at most ``room`` items."""
        items = list(islice(self._items, room))
        self.ended = len(items) < room
        return items

    def close(self) -> None:
        """Take no more."""
        self.ended = True


class AsyncItems:
    """The items of an async iterable. It sets ``ready`` when there is another one."""

    def __init__(self, items: AsyncIterable[Any], ready: AutoResetEvent, client: Client) -> None:
        self._source = items
        self._ready = ready
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
        """Take the items that are there, at most ``room``, and let the iteration fetch the others."""
        items = [self._items.popleft() for _ in range(min(room, len(self._items)))]
        if self._failure is not None and not items:
            raise self._failure
        self._wanted = room - len(items)
        if self._scope is None and self._wanted:
            self._scope = anyio.CancelScope()
            self._client.start_soon(self._iterate)
        self._more.set()
        return items

    async def _iterate(self) -> None:
        assert self._scope is not None  # made before this was started
        try:
            with self._scope:
                async for item in self._source:
                    self._items.append(item)
                    self._ready.set()
                    while len(self._items) >= self._wanted:
                        await self._more.wait()
                self._exhausted = True
        except Exception as error:  # noqa: BLE001  (raised by ``take``)
            self._failure = error
        finally:
            if not self._exhausted and self._failure is None:
                self._failure = ConnectionLost("the client was closed before all items were taken")
            self._ready.set()

    def close(self) -> None:
        """Cancel the iteration."""
        if self._scope is not None:
            self._scope.cancel()


K = TypeVar("K")


class Finished(NamedTuple, Generic[K]):
    """A job that has ended: its key, and its encoded result or its failure."""

    key: K
    data: bytes
    failure: TaskFailed | None
    job: ClientJob


class InFlightJobs(Generic[K]):
    """The jobs of one function in flight. It owns them, and ``close`` cancels those that have not ended."""

    def __init__(self, client: Client, callee: Callee, ready: AutoResetEvent | None = None) -> None:
        self._client = client
        self._callee = callee
        self._ready = ready or AutoResetEvent()  # set when a job ends
        self._running: dict[ClientJob, K] = {}
        self._ended: deque[tuple[K, ClientJob]] = deque()
        self._closed = False

    @property
    def size(self) -> int:
        """Jobs that were submitted and not taken yet."""
        return len(self._running) + len(self._ended)

    @property
    def has_ended(self) -> bool:
        """Whether there are jobs to take."""
        return bool(self._ended)

    async def submit(self, calls: Sequence[tuple[K, JobRequest]]) -> None:
        """Submit all at once. Returns when the server has accepted them.

        Raises:
            NoServer, SubmitUnknown, QueueFull, ServerError: The first failure. Other calls may be accepted.
        """
        outcomes: Sequence[ClientJob | Exception]
        if len(calls) == 1:
            outcomes = [await self._client.attach(calls[0][1])]
        else:
            outcomes = await self._client.attach_many([call for _, call in calls])
        failure: Exception | None = None
        for (key, _), job in zip(calls, outcomes, strict=True):
            if isinstance(job, Exception):
                failure = failure or job
            else:
                self._running[job] = key
                job.add_done_callback(self._on_end)
        if self._closed:
            self.close()
        if failure is not None:
            raise failure

    def _on_end(self, job: ClientJob) -> None:
        key = self._running.pop(job, None)
        if key is not None:  # it is not cancelled
            self._ended.append((key, job))
            self._ready.set()

    async def wait(self) -> None:
        """Wait until a job has ended. Returns at once if one has, or if none runs."""
        if self._running and not self._ended:
            with Waiting(self._callee.name):
                while self._running and not self._ended:
                    await self._ready.wait()

    def take(self) -> list[Finished[K]]:
        """Take all that have ended, without waiting.

        Raises:
            ConnectionLost: The connection closed before a job ended.
            QueueFull, ServerError: The server refused a call with options.
        """
        taken: list[Finished[K]] = []
        while self._ended:
            key, job = self._ended.popleft()
            try:
                taken.append(Finished(key, job.outcome(), None, job))
            except JobFailed as error:
                failure = decode_failure(error.exception, job.handle)
                taken.append(Finished(key, b"", failure, job))
        return taken

    def close(self) -> None:
        """Cancel all jobs in flight."""
        self._closed = True
        running, self._running = self._running, {}
        for job in running:
            job.cancel()
        self._ended.clear()
