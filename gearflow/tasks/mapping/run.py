"""A batch of calls without the waiting: what is called, what has ended, and what is delivered next.

``MapPlan`` has the arguments of ``map``. ``BatchRun`` takes items, makes calls of them, takes the outcomes,
and returns results in their order. It is the same for the async and the blocking form.

With ``chunk`` a job has several items, and its result an outcome for each (``gearflow.protocol.chunk``). What
the worker has not run is called again, and so is an item that is to run again, as a job of its own. If the
workers of a chunk died, any of its items may be the cause. So each is called in a job of its own, one after
the other: they must not die with each other again.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from gearflow.client import ClientJob, JobRequest
from gearflow.errors import PayloadInvalid, TaskFailed
from gearflow.protocol.chunk import OutcomeKind, unpack_outcomes
from gearflow.tasks.mapping.inflight import MOST, Finished, ItemCallee, Window
from gearflow.tasks.mapping.progress_bar import ProgressBar
from gearflow.tasks.remote_errors import as_failed, decode_failure

OnProgress: TypeAlias = Callable[[int, int | None], object]
"""Called with (items done, items in all or None)."""

Errors: TypeAlias = Literal["raise", "collect", "skip"]

MOST_REPORTED: Final = 1000
"""Failures that ``errors`` lists, so that a batch without end needs no memory without end."""


@dataclass(frozen=True, slots=True)
class FailedItem:
    """An item of a batch whose call failed.

    Attributes:
        index: The place of the item, from 0.
        item: The item itself.
        error: Why its call failed.
    """

    index: int
    item: Any
    error: TaskFailed


class Report:
    """The failures of a batch. Owns state. ``on_failure`` is called with each of them, as it comes."""

    def __init__(
        self,
        on_failure: Callable[[FailedItem], object] | None = None,
        on_result: Callable[[ClientJob], object] | None = None,
    ) -> None:
        self.failed = 0
        self.errors: list[FailedItem] = []
        self.on_result = on_result
        """Called with the job of each item that has a result, except in chunks."""
        self._on_failure = on_failure

    def add(self, failed: FailedItem) -> None:
        """One more item has failed."""
        self.failed += 1
        if len(self.errors) < MOST_REPORTED:
            self.errors.append(failed)
        if self._on_failure is not None:
            self._on_failure(failed)


@dataclass(frozen=True, slots=True)
class MapPlan:
    """What a batch calls, and how. Fields without a text are arguments of ``amap``."""

    callee: ItemCallee
    window: int | None = None
    errors: Errors | Literal["report"] = "raise"
    """``"report"`` puts the ``FailedItem`` in the place of its result."""
    ordered: bool = True
    progress: OnProgress | bool | None = None
    callee_of: Callable[[Any], ItemCallee] | None = None
    """The task with the options of an item, if items have their own."""
    is_star: bool = False
    """Whether an item has all arguments of its call, and not only the first."""
    chunk: int = 1

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"window={self.window}: without a job in flight nothing is ever done")
        if self.errors not in ("raise", "collect", "skip", "report"):
            raise ValueError(f"errors={self.errors!r}: it is 'raise', 'collect' or 'skip'")
        if self.chunk < 1:
            raise ValueError(f"chunk={self.chunk}: a job has at least one item")
        if self.chunk > 1 and self.callee_of is not None:
            raise ValueError("chunk= and options=: the items of a chunk share a job; leave out one of them")
        if not (self.progress is None or isinstance(self.progress, bool) or callable(self.progress)):
            raise ValueError(f"progress={self.progress!r}: it is True, or a function of two numbers")

    def arguments(self, item: Any) -> tuple[Any, ...]:
        """The arguments of the call for an item."""
        return tuple(item) if self.is_star else (item,)

    def prepare(self, item: Any, earlier: int = 0) -> JobRequest:
        """The call for an item. Raises as ``Callee.prepare``."""
        callee = self.callee if self.callee_of is None else self.callee_of(item)
        return callee.prepare(self.arguments(item), {}, earlier=earlier)


ItemCall: TypeAlias = tuple[int, Any]
"""The call for an item: its place, and the item. A plain tuple is made in a tenth of a named one's time."""


class ChunkCall(NamedTuple):
    """Calls that share a job, and the place of the first one."""

    place: int
    calls: list[ItemCall]


Calls: TypeAlias = ItemCall | ChunkCall
"""A job in flight."""

CHUNK_BYTES: Final = 1 << 20
"""Bytes of payloads with which a chunk is full, however few they are."""

IN_CHUNKS: Final = 32_000
"""Items in flight at most, if they share jobs and the window has no size of its own, because each needs
memory at the client."""

_WORKERS_DIED: Final = "WorkersDied"  # as gearflow's server has it


_LEFT_OUT: Final = object()  # an item that failed, and whose place nothing takes


class BatchRun:
    """One run of a batch. Owns state."""

    def __init__(self, plan: MapPlan, total: int | None, report: Report) -> None:
        self._plan = plan
        self._window = Window(plan.window, min(MOST, IN_CHUNKS // plan.chunk) if plan.chunk > 1 else MOST)
        self._total = total
        self._report = report
        self._bar = ProgressBar.on_terminal(plan.callee.name, total) if plan.progress is True else None
        self._progress = self._bar or (plan.progress if callable(plan.progress) else None)
        self._due: dict[int, Any] = {}  # ended, not delivered
        self._ended = 0
        self._next = 0  # place of the next result, if they are ordered
        self._left_out = 0  # places before it that have no result
        self._deliveries = 0  # that come before there is room for a further submission
        self._taken = 0
        self._again: list[tuple[Calls, int]] = []  # to be called again, and the runs that count
        self._suspects = deque[ItemCall]()  # their workers died; to be called again one at a time
        self._suspect: ItemCall | None = None  # the one that is in flight
        self.exhausted = False

    @property
    def has_again(self) -> bool:
        """Whether there is something to call again now."""
        return bool(self._again or (self._suspects and self._suspect is None))

    @property
    def size(self) -> int:
        """The number of items so far that have a result, or will have one if they do not fail."""
        return self._taken - self._left_out

    def close(self) -> None:
        """Nothing more is taken or delivered."""
        self.exhausted = True
        self._again = []
        self._suspects.clear()
        if self._bar is not None:
            self._bar.close()

    # ------------------------------------------------------------------------------------------ calls

    def wanted(self, in_flight: int) -> int:
        """The number of items to take before the next delivery.

        It is 0 until several can be called at a time, because they share a round trip.
        """
        window, chunk = self._window.size, self._plan.chunk
        room = 0 if self.exhausted else max(0, window - in_flight - -(-len(self._due) // chunk))
        self._deliveries = (-(-window // 4) - room) * chunk
        return room * chunk if self._deliveries <= 0 or not self.has_due else 0

    def should_deliver(self) -> bool:
        """Whether to deliver the next result without a look at the jobs."""
        self._deliveries -= 1
        return self._deliveries > 0 and self.has_due

    def calls(self, items: Sequence[Any]) -> list[tuple[Calls, JobRequest]]:
        """The calls for the next items, and what is to be called again.

        Raises:
            PayloadInvalid: An item does not fit, and items that fail are not skipped.
        """
        first = self._taken
        self._taken += len(items)
        new = enumerate(items, first)
        calls: list[tuple[Calls, JobRequest]] = []
        if self.has_again:
            calls.extend(self._prepared_again())
        calls.extend(self._prepared(new) if self._plan.chunk == 1 else self._prepared_chunks(new))
        if calls:
            sizes = [len(request.workload) for _, request in calls]
            self._window.submitted(calls[0][0][0], sizes, time.monotonic())
        return calls

    def _prepared(self, calls: Iterable[ItemCall]) -> Iterator[tuple[ItemCall, JobRequest]]:
        prepare = self._plan.prepare
        for call in calls:
            try:
                yield call, prepare(call[1])
            except PayloadInvalid as error:
                self._refuse(call, error)

    def _prepared_chunks(self, calls: Iterable[ItemCall]) -> Iterator[tuple[Calls, JobRequest]]:
        callee, is_star, chunk = self._plan.callee, self._plan.is_star, self._plan.chunk
        encode = callee.payload.encode
        group: list[ItemCall] = []
        payloads: list[bytes] = []
        size = 0
        for call in calls:
            try:
                payload = encode(tuple(call[1]) if is_star else (call[1],), {})
            except PayloadInvalid as error:
                self._refuse(call, error)
                continue
            group.append(call)
            payloads.append(payload)
            size += len(payload)
            if len(group) == chunk or size >= CHUNK_BYTES:
                yield ChunkCall(group[0][0], group), callee.prepare_chunk(payloads)
                group, payloads, size = [], [], 0
        if group:
            yield ChunkCall(group[0][0], group), callee.prepare_chunk(payloads)

    def _prepared_again(self) -> Iterator[tuple[Calls, JobRequest]]:
        again, self._again = self._again, []
        for call, earlier in again:
            if isinstance(call, ChunkCall):
                yield from self._prepared_chunks(call.calls)
            else:
                yield call, self._plan.prepare(call[1], earlier)
        if self._suspects and self._suspect is None:
            self._suspect = self._suspects.popleft()
            yield self._suspect, self._plan.prepare(self._suspect[1])

    def _refuse(self, call: ItemCall, error: PayloadInvalid) -> None:
        """An item does not fit. Raises the error, if items that fail are not skipped."""
        failure = as_failed(error)
        if self._plan.errors in ("raise", "collect"):
            self._report.add(FailedItem(*call, failure))
            raise error
        self._settle(call, failure=failure)

    # --------------------------------------------------------------------------------------- outcomes

    def handle_finished(self, jobs: Sequence[Finished[Calls]]) -> None:
        """Note jobs that have ended. Raises the failure of one, unless failures are collected or skipped."""
        if jobs:
            places = {job.key[0] for job in jobs}
            self._window.ended(places, [len(job.data) for job in jobs], time.monotonic())
        for job in jobs:
            if job.key is self._suspect:
                self._suspect = None
            if isinstance(job.key, ChunkCall):
                self._handle_chunk(job.key, job)
            elif job.failure is not None:
                self._settle(job.key, failure=job.failure)
            else:
                if self._report.on_result is not None:
                    self._report.on_result(job.job)
                self._handle_result(job.key, job.data)

    def _handle_chunk(self, chunk: ChunkCall, job: Finished[Calls]) -> None:
        """Note a chunk that has ended. Raises RemoteProtocolError if its worker does not know chunks."""
        if job.failure is not None:
            if job.failure.type == _WORKERS_DIED:
                self._suspects.extend(chunk.calls)
                return
            for call in chunk.calls:
                self._settle(call, failure=job.failure)
            return
        outcomes = unpack_outcomes(job.data)
        decode, due = self._plan.callee.payload.decode_result, self._due
        for call, (kind, data) in zip(chunk.calls, outcomes, strict=False):
            if kind is not OutcomeKind.RESULT:
                self._handle_no_result(call, kind, data, job.job)
            elif self._progress is None:  # the usual case, without further calls
                try:
                    due[call[0]] = decode(data)
                except PayloadInvalid as error:
                    self._refuse(call, error)
                else:
                    self._ended += 1
            else:
                self._handle_result(call, data)
        if not outcomes:  # a second one would not get further
            self._again.extend((call, 0) for call in chunk.calls)
        elif left := chunk.calls[len(outcomes) :]:
            self._again.append((ChunkCall(left[0][0], left), 0))

    def _handle_no_result(self, call: ItemCall, kind: OutcomeKind, data: bytes, job: ClientJob) -> None:
        match kind:
            case OutcomeKind.AGAIN:
                self._again.append((call, 1))
            case OutcomeKind.NOT_YET:
                self._again.append((call, 0))
            case _:
                reason = data if kind is OutcomeKind.EXCEPTION else None
                self._settle(call, failure=decode_failure(reason, job.handle))

    def _handle_result(self, call: ItemCall, data: bytes) -> None:
        try:
            result = self._plan.callee.payload.decode_result(data)
        except PayloadInvalid as error:
            self._refuse(call, error)
        else:
            self._settle(call, result)

    def _settle(self, call: ItemCall, result: Any = None, failure: TaskFailed | None = None) -> None:
        """Note the outcome of an item."""
        errors = self._plan.errors
        self._ended += 1
        if failure is not None:
            failed = FailedItem(*call, failure)
            self._report.add(failed)
            match errors:
                case "raise":
                    raise failure
                case "collect":
                    result = failure
                case "report":
                    result = failed
                case "skip":
                    result = _LEFT_OUT
        if result is not _LEFT_OUT or self._plan.ordered:
            self._due[call[0]] = result
        else:
            self._left_out += 1
        if self._progress is not None:
            self._progress(self._ended, self._total)

    @property
    def has_due(self) -> bool:
        """Whether there is a result to deliver."""
        if not self._plan.ordered:
            return bool(self._due)
        due = self._due
        while due.get(self._next) is _LEFT_OUT:
            del due[self._next]
            self._next += 1
            self._left_out += 1
        return self._next in due

    def deliver(self) -> tuple[int, Any]:
        """The next result, with its place among those that are delivered."""
        place = self._next if self._plan.ordered else next(iter(self._due))
        self._next += 1
        return place - self._left_out, self._due.pop(place)
