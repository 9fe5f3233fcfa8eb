"""Runs of batch tasks: items are collected, run together, and each ends its own job.

An item is a ``Run``, from the moment its job comes. It is cancelled, handed on and released like any other,
and keeps its envelope: its attempt, its retries, its time. A ``CollectedRun`` is the one call of the
function. It has the slot. Its end is not the end of a job, but of those among its items that have not ended
before:

* an item that is cancelled, or whose connection is gone, leaves a batch that still collects. In a batch that
  runs, its ``Context`` says so. The call is stopped when nobody wants any of its items;
* an item whose own time is shorter than that of the call fails at its time, and the call goes on.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, cast

import anyio

from gearflow.errors import PayloadInvalid, TaskTimeout
from gearflow.protocol.packets import Packet
from gearflow.runtime.fork import end_stray, forget_in_children
from gearflow.tasks import Context
from gearflow.tasks.batch import Batch
from gearflow.tasks.batch_call import Outcome
from gearflow.tasks.hooks import Middleware
from gearflow.tasks.wait_tracking import caller
from gearflow.tracing import find_tracing
from gearflow.worker.batch_slots import BatchSlots
from gearflow.worker.connection import WorkerConnection
from gearflow.worker.event_loop import Loop, LoopStarted
from gearflow.worker.executor import AnyTask, Executor, OverdueRuns
from gearflow.worker.run import Run, run_within
from gearflow.worker.session import Assignment
from gearflow.worker.slots import SlotAllocator

if TYPE_CHECKING:
    from gearflow.worker.retry import Held
    from gearflow.worker.runner import Runner

LATE: Final = 0.1
"""Seconds after which a batch whose time is over does not wait for the answers of servers any more."""


class BatchItem(Run):
    """The run of one item: part of a ``CollectedRun``, or waiting for it. Owns state."""

    place: "BatchLane | CollectedRun"
    """Where it is now."""

    begin_later: Callable[[], None] | None = None
    """Its claim, if it came when no batch had room, or is to run alone."""

    claims_at: SlotAllocator | None = None
    """Where it claims."""

    def __init__(
        self,
        task: AnyTask,
        handle: bytes,
        connection: WorkerConnection,
        overdue: OverdueRuns,
        lane: "BatchLane",
        workload: bytes,
    ) -> None:
        super().__init__(task, handle, connection, overdue)
        self.has_begun = False
        self.place = lane
        self.slots = lane.slots
        self.workload = workload
        self.payload = b""

    def read(self) -> None:
        """Read the envelope and the payload. Raises PayloadInvalid if it has no valid one."""
        self.payload = self.open(self.workload)
        if self.envelope.chunk:
            raise PayloadInvalid(
                f"task {self.task.name!r} has batch=, so its workers collect its jobs; leave chunk= out"
            )

    def cancel(self) -> None:
        """Nobody wants the job any more."""
        self.cancelled = True
        self._notify_threads()
        self.place.gone(self, CollectedRun.cancel)

    def hand_on(self) -> None:
        """The connection is gone."""
        self.handed_on = True
        self._notify_threads()
        self.place.gone(self, CollectedRun.hand_on)

    def abandon(self) -> None:
        """The worker leaves."""
        self.handed_on = True
        self._notify_threads()
        self.place.gone(self, CollectedRun.abandon)


class CollectedRun(Run):
    """One call of a batch task, for its items. Its name in logs and hooks is that of the first item."""

    def __init__(self, items: Sequence[BatchItem], overdue: OverdueRuns) -> None:
        first = items[0]
        super().__init__(first.task, first.handle, first.connection, overdue)
        self.items = list(items)
        self.envelope = first.envelope
        limits = [item.limit for item in items]
        self.limit = None if None in limits else max(limit for limit in limits if limit is not None)
        self.open_items = len(items)  # whose jobs have not ended
        self.is_over = False  # the call is
        self.clock: LoopStarted | None = None  # ends items whose time is over
        for item in items:
            item.place = self

    def begin(self) -> None:
        """The call begins now: so does the time of its items."""
        self.is_under_way = True
        self.began = perf_counter()
        for item in self.items:
            item.began = self.began
            item.has_begun = True
            item.renew_context()
        self.renew_context()
        if self.context is not None:
            self.context.items = self.contexts

    @property
    def traced(self) -> Sequence[Run]:
        return self.items

    def trace(self) -> None:
        super().trace()
        for item in self.items:
            item.trace_id = self.trace_id

    @property
    def contexts(self) -> tuple[Context, ...]:
        """Those of the items, if the task takes one."""
        return tuple(item.context for item in self.items if item.context is not None)

    @property
    def shorter(self) -> list[BatchItem]:
        """The items whose time is shorter than that of the call, the shortest first."""
        if self.limit is None:
            limited = [item for item in self.items if item.limit is not None]
        else:
            limited = [item for item in self.items if item.limit is not None and item.limit < self.limit]
        return sorted(limited, key=lambda item: item.limit or 0.0)

    def gone(self, item: BatchItem, stop: Callable[["CollectedRun"], None]) -> None:
        """Nobody wants the result of an item any more. Stop the call if that holds for all."""
        if self.is_over:
            return
        if all(each.is_for_nobody or each.is_settled for each in self.items):
            stop(self)
        elif self.interrupt_item is not None:
            self.interrupt_item(self.items.index(item))

    def send(self, packet: Packet) -> None:
        """Report something for all items."""
        for item in self.items:
            item.send(cast(Packet, replace(cast(Any, packet), handle=item.handle)))


class BatchRunner:
    """Runs the batches of all lanes, and ends the jobs of their items."""

    def __init__(
        self,
        runner: "Runner",
        loop: Loop,
        executor: Executor,
        slots: SlotAllocator,
        middleware: Sequence[Middleware],
    ) -> None:
        self.loop = loop
        self.runner = runner
        self._executor = executor
        self._slots = slots
        self._middleware = middleware
        self._process = os.getpid()
        self._is_in_child = False  # a task has forked this process, and comes back from its call
        forget_in_children(self, BatchRunner._forget)

    def _forget(self) -> None:
        self._is_in_child = True

    def start(self, run: CollectedRun) -> None:
        """Run a batch, which has a slot."""
        run.started = self.loop.start(self._perform(run))
        for item in run.items:
            item.started = run.started

    def fail(self, item: BatchItem, error: BaseException) -> None:
        """End an item that is part of no call."""
        item.started = self.loop.start(self._end(item, error))

    async def _perform(self, run: CollectedRun) -> None:
        """The call of the function. Raises nothing but its cancellation."""
        run.begin()
        caller.set(run)
        failure: BaseException | None = None
        cancellation: BaseException | None = None
        if shorter := run.shorter:
            run.clock = self.loop.start(self._end_in_time(run, shorter))
        outcomes: Sequence[Outcome] = []
        try:
            if find_tracing() is not None or any(item.envelope.trace is not None for item in run.items):
                run.trace()
            if run.envelope.alone:
                await self.runner.until_alone(run)
                run.begin()
            if not run.is_for_nobody:
                try:
                    outcomes = await self._call(run)
                finally:
                    if self._is_in_child:
                        end_stray(self._process)
        except BaseException as error:  # noqa: BLE001  (nothing that a task raises may end the worker)
            failure, outcomes = error, [error] * len(run.items)
            if isinstance(error, anyio.get_cancelled_exc_class()) and (
                run.is_for_nobody or self.loop.is_cancelled()
            ):
                cancellation = error
        finally:
            run.is_over = run.is_settled = True
            run.is_under_way = False
            if run.span is not None:
                failed = failure if cancellation is None else None
                run.span.end("done" if failure is None else "failed" if failed else "handed on", failed)
            if run.clock is not None:
                run.clock.cancel()
        self._end_all(run, outcomes)
        if cancellation is not None:
            raise cancellation

    async def _call(self, run: CollectedRun) -> Sequence[Outcome]:
        if not self._middleware:
            return await self._executor.call_batch(run)
        outcomes: list[Outcome] = []

        async def call() -> bytes:
            outcomes.extend(await self._executor.call_batch(run))
            return b""

        await run_within(self._middleware, run.info(), call)
        return outcomes

    def _end_all(self, run: CollectedRun, outcomes: Sequence[Outcome]) -> None:
        """End the jobs of all items that have not ended yet, and give the slot back when all have."""
        if run.context is not None:
            run.context.flush()
        is_cancelled = self.loop.is_cancelled()
        for place, item in enumerate(run.items):
            if item.is_settled:  # its time was over
                continue
            outcome: Outcome = outcomes[place] if outcomes else b""
            if is_cancelled and not item.is_for_nobody and not isinstance(outcome, bytes):
                item.handed_on = True
                item.connection.release(item.handle, begun=True)
            if item.is_for_nobody or isinstance(outcome, bytes):
                self._end_now(item, outcome)
            else:
                self.fail(item, outcome)
        self._check_over(run)

    def _end_now(self, item: BatchItem, outcome: Outcome) -> None:
        """End an item that needs no answer of its server."""
        failure: BaseException | None = None
        try:
            if not isinstance(outcome, bytes):
                failure = outcome
                item.fail()
            else:
                item.complete(outcome)
        except Exception as error:  # noqa: BLE001  (its result is too large)
            self.fail(item, error)
        else:
            self._ended(item, failure)

    async def _end(self, item: BatchItem, error: BaseException) -> None:
        failure: BaseException | None = error
        try:
            failure = await self.runner.failed(item, item.workload, error)
        finally:
            self._ended(item, failure)

    def _ended(self, item: BatchItem, failure: BaseException | None) -> None:
        try:
            self.runner.ended(item, failure)
        finally:
            run = item.place
            if isinstance(run, CollectedRun):
                run.open_items -= 1
                self._check_over(run)

    def _check_over(self, run: CollectedRun) -> None:
        if run.is_over and not run.open_items:
            run.open_items = -1
            if run.alone is not None:
                self._slots.end_alone(run.alone)
            if not run.is_overdue:
                self._slots.finished()

    async def _end_in_time(self, run: CollectedRun, items: Sequence[BatchItem]) -> None:
        """Fail items whose time is over, while the call goes on for the others."""
        for item in items:
            assert item.limit is not None
            await anyio.sleep(max(0.0, run.began + item.limit - perf_counter()))
            if not (item.is_for_nobody or item.is_settled):
                item.settle()
                error = TaskTimeout(
                    f"task {run.task.name!r} overran the timeout of {item.limit:g} s of this call; "
                    "its batch goes on for the others"
                )
                self.fail(item, error)
                run.gone(item, CollectedRun.hand_on)


class BatchLane:
    """Collects the items of one task. Owns those that wait for their run.

    Args:
        task: The task.
        batch: Its batch.
        slots: The room of a batch.
        overdue: Of the worker.
    """

    def __init__(self, task: AnyTask, batch: Batch, slots: BatchSlots, overdue: OverdueRuns) -> None:
        self.task = task
        self.function = task.name.encode()
        self.slots = slots
        self._batch = batch
        self._overdue = overdue
        self._items: list[BatchItem] = []
        self._is_due = False  # it runs as soon as no GRAB is in flight
        self._timer: LoopStarted | None = None
        self._runner: BatchRunner
        slots.when_answered = self._check
        slots.when_stopped = self._stopped

    def open(self, runner: BatchRunner) -> None:
        """Jobs can be run from now on."""
        self._runner = runner

    def assigned(self, connection: WorkerConnection, job: Assignment) -> None:
        """A job came on a connection of this task."""
        item = self._made(job.handle, connection, job.workload)
        try:
            item.read()
        except PayloadInvalid as error:
            self.slots.finished()
            self._runner.fail(item, error)
            return
        if item.envelope.alone:
            self.slots.finished()
            self._claim(item, self.slots.worker, self._run_alone)
        elif self.slots.arrived():
            self._join(item)
        else:
            self._claim(item, self.slots, self._join)

    def resume(self, job: "Held") -> None:
        """A job that was held has room in a batch."""
        last = job.run
        item = self._made(last.handle, last.connection, job.workload)
        item.read()
        self._join(item)

    def gone(self, item: BatchItem, _stop: object) -> None:
        """Nobody wants an item any more that waits for its run."""
        if item in self._items:
            self._items.remove(item)
            if not self._items:
                self._stop_timer()
            self.slots.dropped()
        elif item.begin_later is not None and item.claims_at is not None:
            item.claims_at.drop(item.begin_later)
        else:
            return  # it has ended
        if item.cancelled:
            item.fail()
        item.is_settled = True
        self._runner.runner.ended(item, None)

    def _made(self, handle: bytes, connection: WorkerConnection, workload: bytes) -> BatchItem:
        item = BatchItem(self.task, handle, connection, self._overdue, self, workload)
        self._runner.runner.began(item)
        return item

    def _claim(self, item: BatchItem, slots: SlotAllocator, begin: Callable[[BatchItem], None]) -> None:
        """Begin an item when there is room for it."""
        item.begin_later, item.claims_at = partial(begin, item), slots
        slots.hold()
        slots.claim(item.begin_later)

    def _run_alone(self, item: BatchItem) -> None:
        """The item may kill this process, so it is a batch of its own."""
        item.begin_later = None
        self._runner.start(CollectedRun([item], self._overdue))

    def _join(self, item: BatchItem) -> None:
        item.begin_later = None
        self._items.append(item)
        if len(self._items) == self._batch.size:
            self._leave()
        elif len(self._items) == 1:
            self._is_due = self.slots.stopped
            wait = 0.0 if self._is_due else self._batch.seconds
            self._timer = self._runner.loop.start(self._wait(wait))

    async def _wait(self, seconds: float) -> None:
        await anyio.sleep(seconds)
        self._is_due = True
        if self.slots.promised:
            await anyio.sleep(LATE)
        self._timer = None
        self._leave()

    def _check(self) -> None:
        """No GRAB is in flight: nothing more comes now."""
        if self._is_due and self._items:
            self._leave()

    def _stopped(self) -> None:
        """Nothing new is to be taken, so there is nothing to wait for."""
        if self._items and not self._is_due:
            self._stop_timer()
            self._is_due = True
            self._timer = self._runner.loop.start(self._wait(0.0))

    def _leave(self) -> None:
        """Run what is there."""
        items, self._items = self._items, []
        self._stop_timer()
        self._is_due = False
        if items:
            self._runner.start(CollectedRun(items, self._overdue))
            self.slots.leave()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
