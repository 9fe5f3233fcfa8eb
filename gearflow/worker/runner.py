"""Runs jobs: from their assignment by a server to their end.

The path of a job is as plain as can be: one task of the event loop, which makes its first step as the job
comes, an integer of free slots, an entry in the outbox of its connection. Every job ends once: with
WORK_COMPLETE, or with a failure in the form that its server needs (``retry`` has the forms). A call of
``gearflow:retry`` takes the place of the end where the job is to run again on gearflow's own server.

A connection that drops takes its jobs with it: the server hands them on, so what runs here is for nobody.
Coroutines are cancelled, threads see ``Context.cancelled``, results are dropped. Slots are held until the
runs have ended. Where the worker itself closes the connection it releases its jobs, if the server is
gearflow's own: that is no worker's death.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from sys import modules
from time import perf_counter

import anyio

from gearflow.protocol.codec import encode
from gearflow.protocol.packets import WorkFail
from gearflow.runtime.fork import end_stray, forget_in_children
from gearflow.tasks import RunInfo
from gearflow.tasks.hooks import Middleware
from gearflow.tasks.redaction import reported_fields
from gearflow.tasks.wait_tracking import caller
from gearflow.tracing import API, find_tracing
from gearflow.worker.batch import BatchLane, BatchRunner
from gearflow.worker.batch_slots import BatchSlots
from gearflow.worker.burst import Burst
from gearflow.worker.chunk import ChunkRunner
from gearflow.worker.connection import WorkerConnection
from gearflow.worker.declared_check import DeclaredCheck
from gearflow.worker.discovery import AllLinks
from gearflow.worker.event_loop import Loop
from gearflow.worker.executor import AnyTask, Executor, OverdueRuns, Threads
from gearflow.worker.processes import ProcessPool
from gearflow.worker.recycling import Recycler
from gearflow.worker.retry import Held, Holding, handle_failure
from gearflow.worker.run import Run, run_within
from gearflow.worker.session import Assignment
from gearflow.worker.slots import SlotAllocator
from gearflow.worker.stats import RunStats


class Runner:
    """Runs what the links bring. Owns the runs, from ``open`` to ``close``.

    Args:
        tasks: By the names of their functions.
        middleware: What is called around each run, the outermost first.
        slots: Of the worker; a job that comes has one.
        stats: Gets the runs.
        links: To the servers.
        burst: Waits for the end of all jobs, if the worker is to end then.
        recycler: Checks the limits after each run, if there are any.
        gearmand_exceptions: The setting.
        cancel_grace: Seconds between ``Context.cancelled`` and the kill of a process.
    """

    def __init__(
        self,
        tasks: Mapping[bytes, AnyTask],
        middleware: Sequence[Middleware],
        slots: SlotAllocator,
        stats: RunStats,
        links: AllLinks,
        burst: Burst | None,
        recycler: Recycler | None,
        *,
        gearmand_exceptions: bool,
        cancel_grace: float,
    ) -> None:
        self.ready = anyio.Event()
        self.log = stats.log
        self._tasks = {name: task for name, task in tasks.items() if task.batch is None}
        self._middleware = middleware
        self._slots = slots
        self._stats = stats
        self._links = links
        self._burst = burst
        self._recycler = recycler
        self._gearmand_exceptions = gearmand_exceptions
        self._cancel_grace = cancel_grace
        signatures = {task.name: task.payload.signature for task in tasks.values()}
        texts = {name: text for name, each in signatures.items() if (text := each.sole_text) is not None}
        self.resumable = [task.name for task in tasks.values() if task.resumable]
        """Functions that go on after a run. Servers are to know them before the first job."""
        self._declared = DeclaredCheck(tasks.values(), stats.log)
        redact = {
            task.name: reported_fields(task.redact, task.payload)
            for task in tasks.values()
            if task.redact is not None
        }
        self._overdue = OverdueRuns(slots, links, texts, self.resumable, self._declared.texts, redact)
        self.lanes = [
            BatchLane(task, task.batch, BatchSlots(task.batch.size, slots), self._overdue)
            for task in tasks.values()
            if task.batch is not None
        ]
        """Where the items of batch tasks are collected. Each has connections of its own."""
        self._threads = Threads("gearflow-worker")
        self._loop: Loop
        self._executor: Executor
        self._chunks: ChunkRunner
        self._holding: Holding
        self._process = self._thread = 0  # the loop's
        self._is_in_child = False  # a task has forked this process, and comes back from its call

    def open(self, loop: Loop, processes: ProcessPool) -> None:
        """Jobs can be run from now on, on this loop, whose thread calls."""
        self._process = os.getpid()
        forget_in_children(self, Runner._forget)
        self._thread = threading.get_ident()
        self._loop = loop
        self._executor = Executor(loop, self._threads, processes, self._cancel_grace)
        self._chunks = ChunkRunner(
            loop, self._executor, self._middleware, self.log, self._stats.log_item_failed
        )
        self._holding = Holding(self._slots, loop, self._resume)
        batches = BatchRunner(self, loop, self._executor, self._slots, self._middleware)
        for lane in self.lanes:
            lane.open(batches)

    def _forget(self) -> None:
        self._is_in_child = True

    async def abandon_all(self) -> None:
        """Stop what runs, or is held, and wait for its end, threads aside."""
        left = list(self._stats.running)
        for run in left:
            run.abandon()
        held = self._holding.drop()
        self._threads.close()
        started = [run.started for run in left if run.started is not None]
        await self._loop.join([*started, *(job.wait for job in held)])

    async def close(self, *, cold: bool) -> None:
        """End the processes, once no run is under way; if it is ``cold``, without their lifespans' ends."""
        await self._executor.close(cold=cold)

    def show_processes(self) -> None:
        """Have the processes write the stacks of their threads to stderr."""
        self._executor.show_processes()

    def runs(self) -> list[RunInfo]:
        """What runs now. A call that is over, and whose job is to run again, is not part of it."""
        return [run.info() for run in self._stats.running if not run.is_settled]

    # ------------------------------------------------------------------------------ called by the links

    def registered(self, connection: WorkerConnection) -> None:
        """A server knows the functions of a connection."""
        if self._links.are_ready:
            self.ready.set()
        if self._declared and not connection.is_gearflow:
            self._declared.not_applied(connection.server_name)
        if self._burst is not None:
            self._burst.changed()

    def recognized(self, connection: WorkerConnection) -> None:
        """A server is gearflow's own, and takes reports."""
        self._overdue.report_to(connection)
        if self._declared:
            self._loop.start(self._declared.check(connection, is_only=self._is_only(connection)))

    def _is_only(self, connection: WorkerConnection) -> bool:
        """Whether there is no other server, apart from those of the same group."""
        return len({link.address for link in self._links}) == 1 or bool(connection.group)

    def assigned(self, connection: WorkerConnection, job: Assignment) -> None:
        """A job came: run it."""
        lane = connection.batch
        if lane is not None and lane.function == job.function:
            lane.assigned(connection, job)
            return
        task = self._tasks.get(job.function)
        if task is None or lane is not None:  # no server should send this
            connection.outbox.add(job.handle, encode(WorkFail(job.handle)))
            connection.wake()
            (self._slots if lane is None else lane.slots).finished()
            sentence = "%s sent a job of a function that this worker does not offer"
            self.log.log(logging.ERROR, sentence, connection.server)
            return
        run = Run(task, job.handle, connection, self._overdue)
        self._stats.running.add(run)
        run.started = self._loop.start_now(self._perform(run, job.workload))

    def post(self, callback: Callable[[], object]) -> None:
        """Call something on the loop: at once, if this is its thread."""
        if threading.get_ident() == self._thread:
            callback()
        else:
            self._loop.post(callback)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call something on the loop after that time. From any thread."""
        self.post(partial(self._loop.call_later, seconds, callback))

    def cancelled(self, connection: WorkerConnection, handle: bytes) -> None:
        """Nobody wants a job any more; it may have ended here meanwhile."""
        for run in self._runs_of(connection):
            if run.handle == handle:
                run.cancel()

    def abandon(self, connection: WorkerConnection) -> list[Run]:
        """A connection is about to be closed: its runs are stopped, and their jobs can be released."""
        stopped = [run for run in self._runs_of(connection) if not run.is_settled]
        for run in stopped:
            run.abandon()
        return stopped

    def lost(self, connection: WorkerConnection) -> None:
        """A connection is gone: what runs for it runs for nobody."""
        for run in self._runs_of(connection):
            run.hand_on()
        for job in self._holding.drop(connection):
            self._stats.log_handed_on(job.run)
        if self._burst is not None:
            self._burst.run_ended()  # if it had jobs that were held
            self._burst.changed()

    def has_runs_of(self, connection: WorkerConnection) -> bool:
        """Whether a job that came by this connection runs, or its thread does."""
        return any(run.connection is connection for run in self._stats.running)

    def _runs_of(self, connection: WorkerConnection) -> list[Run]:
        return [run for run in self._stats.running if run.connection is connection]

    # -------------------------------------------------------------------------------------- one job

    def _resume(self, job: Held) -> None:
        """A job that was held has a slot for its next run."""
        last = job.run
        if last.connection.batch is not None:
            last.connection.batch.resume(job)
            return
        run = Run(last.task, last.handle, last.connection, self._overdue)
        self._stats.running.add(run)
        # Not now: the end of another run may have brought this, and so on.
        run.started = self._loop.start(self._perform(run, job.workload))

    async def _perform(self, run: Run, workload: bytes) -> None:
        """The life of one run. Raises nothing but its cancellation."""
        run.is_under_way = True
        run.began = perf_counter()
        caller.set(run)
        failure: BaseException | None = None
        try:
            # Here and below as ``is_for_nobody``, without its calls.
            payload = b"" if run.cancelled or run.handed_on else run.open(workload)
            envelope = run.envelope
            if envelope.trace is not None or (API in modules and find_tracing() is not None):
                run.trace()
            if envelope.alone:
                await self.until_alone(run)
            if not (run.cancelled or run.handed_on):
                try:
                    if envelope.chunk:
                        result = await self._chunks.run(run, payload)
                    elif not self._middleware:
                        result = await self._executor.start(run, payload)
                        if run.task.is_async:
                            result = b"" if run.parts is not None else run.task.payload.encode_result(result)
                    else:
                        call = partial(self._executor.execute, run, payload)
                        result = await run_within(self._middleware, run.info(), call)
                finally:
                    if self._is_in_child:
                        end_stray(self._process)
                run.complete(result)
            elif run.cancelled:
                run.fail()
        except BaseException as error:  # noqa: BLE001  (nothing that a task raises may end the worker)
            failure = await self.failed(run, workload, error)
        finally:
            try:
                self._stats.run_ended(run, failure)
            finally:  # whatever a filter of the log raises
                self._free_slot(run)

    def _free_slot(self, run: Run) -> None:
        if run.alone is not None:
            self._slots.end_alone(run.alone)
        if not run.is_overdue:
            self._slots.finished()
        self._after(run)

    async def until_alone(self, run: Run) -> None:
        """The job may kill this process: let all other runs end first, and take no job until it ends."""
        begun = anyio.Event()
        run.alone = begun.set
        self._slots.begin_alone(begun.set)
        if not begun.is_set():
            extra = {**run.log_fields(), "running": self._slots.slots - self._slots.free - 1}
            self.log.log(logging.INFO, "a job that may kill this worker waits to run alone", extra=extra)
            await begun.wait()
            run.began = perf_counter()
            run.renew_context()

    def began(self, run: Run) -> None:
        """A run that is part of a batch."""
        self._stats.running.add(run)

    def ended(self, run: Run, failure: BaseException | None) -> None:
        """Such a run has ended its job. ``failure`` is what it raised."""
        try:
            self._stats.run_ended(run, failure)
        finally:
            self._after(run)

    def _after(self, run: Run) -> None:
        """What a run that has ended may have been the last of."""
        if run.connection.is_retired:
            run.connection.check_drained()
        if self._recycler is not None:
            self._recycler.check()
        if self._burst is not None:
            self._burst.run_ended()

    async def failed(self, run: Run, workload: bytes, error: BaseException) -> BaseException:
        """Have the job of a run that raised something end. Returns the error that counts.

        Raises:
            BaseException: The error, if it is the cancellation of a run for nobody.
        """
        if not run.is_for_nobody and self._loop.is_cancelled():
            run.handed_on = True
            run.connection.release(run.handle, begun=run.has_begun)
        if run.is_for_nobody and isinstance(error, anyio.get_cancelled_exc_class()):
            if run.cancelled:
                run.fail()
            raise error
        return await handle_failure(
            run, workload, error, self._holding, self.log, gearmand_exceptions=self._gearmand_exceptions
        )
