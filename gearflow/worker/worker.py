"""The worker: takes jobs from all its servers, runs them, reports how they end.

The parts and what each decides:

* ``Grabbing`` (pure) counts slots, and says how many jobs to ask which server for;
* ``Session`` (pure) says it in the protocol's words, and understands the answers;
* ``Link`` keeps one server connected, and moves the bytes;
* ``Executor`` runs one call, within its time;
* ``verdict`` (pure) decides after an exception whether the job runs again, ``retrying`` sees to it;
* ``Holding`` keeps jobs between two runs, where their server cannot;
* the ``Worker`` here ties a job to its run: it starts it, sends its one end packet, gives its slot back.

The path of a job is as plain as can be: one task of the event loop, an integer of free slots, an entry in
the outbox of its connection. Every job ends with exactly one packet: WORK_COMPLETE, or WORK_EXCEPTION,
which servers turn into WORK_FAIL for clients that did not ask for exceptions; a call of
``gearflow:retry`` takes its place where the job is to run again on gearflow's own server.

A connection that drops takes its jobs with it: the server hands them on, so what runs here is for nobody.
Coroutines are cancelled, threads are told by ``Context.cancelled``, results are dropped; slots are held
until the runs have ended. Where the worker itself closes the connection it releases them, if the server is
gearflow's own: that is no worker's death.

Stopping means to stop grabbing. CANT_DO and RESET_ABILITIES are never sent: gearmand requeues the jobs
that run.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Final, Self, Unpack

import anyio
from anyio.abc import TaskGroup

from gearflow.client import ambient, parse_servers
from gearflow.protocol.codec import encode
from gearflow.protocol.packets import CanDo, WorkFail
from gearflow.tasks import Task
from gearflow.worker import log
from gearflow.worker.connection import Connection
from gearflow.worker.executor import AnyTask, Executor
from gearflow.worker.grabbing import Grabbing
from gearflow.worker.holding import Held, Holding
from gearflow.worker.link import Link
from gearflow.worker.loops import Loop, open_loop
from gearflow.worker.retrying import conclude
from gearflow.worker.run import Run
from gearflow.worker.session import Assignment, work_complete
from gearflow.worker.settings import WorkerOptions, WorkerSettings
from gearflow.worker.threads import Threads

logger = logging.getLogger("gearflow.worker")

FAREWELL: Final = 5.0
"""Seconds that servers have to confirm, at a warm stop, that they got the last results."""


class Worker:
    """Runs tasks for the jobs of one or more servers, on asyncio or trio.

    ``async with Worker([add, resize]) as worker:`` runs it in the background of the block, and stops it
    warm at the end; ``await worker.run()`` runs it until ``stop`` or ``leave`` is called. A worker can run
    once. If the block ends by an exception, or is cancelled, the worker leaves cold.

    All methods belong to the event loop's thread.

    Args:
        tasks: What to run; foreign tasks, which others run, are left out.
        settings: How to run; ``options`` replace single fields of it.

    Raises:
        ValueError: There is no task to run, two have one name, or a setting is out of range.
    """

    def __init__(
        self,
        tasks: Iterable[AnyTask],
        settings: WorkerSettings | None = None,
        **options: Unpack[WorkerOptions],
    ) -> None:
        given = settings.model_dump(exclude_unset=True) if settings is not None else {}
        self.settings = WorkerSettings.model_validate({**given, **options})
        self.ready = anyio.Event()
        """Set once a server knows what this worker can do."""
        self._tasks = _by_function(tasks)
        self._idle = anyio.Event()
        self._grabbing = Grabbing(self.settings.concurrency, self._idle.set)
        functions = tuple(self._tasks)
        given_servers = self.settings.servers
        self._servers = ambient.servers() if given_servers is None else parse_servers(given_servers)
        self._links = [
            Link(server, self.settings, functions, self._grabbing, self) for server in self._servers
        ]
        self._threads = Threads("gearflow-worker")
        self._runs: set[Run] = set()
        self._stopping = anyio.Event()
        self._scope: anyio.CancelScope | None = None  # of all connections
        self._left = False
        self._has_run = False
        self._background: TaskGroup | None = None
        self._loop: Loop
        self._executor: Executor
        self._holding: Holding
        self._thread = 0  # the loop's

    # ------------------------------------------------------------------------------------- the outside

    @property
    def running(self) -> int:
        """Jobs that run, those aside that were reported as timed out."""
        return len(self._runs)

    @property
    def held(self) -> int:
        """Jobs that wait here for their next run, since their server cannot keep them for it."""
        return self._grabbing.held

    @property
    def overdue(self) -> int:
        """Threads whose job was reported as timed out, and that have not ended yet; each holds a slot."""
        return self._grabbing.overdue

    @property
    def stopping(self) -> bool:
        """``stop`` was called."""
        return self._stopping.is_set()

    async def run(self) -> None:
        """Serve until ``stop`` or ``leave`` is called, or this is cancelled, which leaves cold."""
        if self._has_run:
            raise RuntimeError("a worker can run only once; make a new one")
        self._has_run = True
        self._thread = threading.get_ident()
        with ambient.servers_by_default(self._servers):
            await self._run()

    async def _run(self) -> None:
        async with open_loop() as self._loop:
            self._executor = Executor(self._loop, self._threads)
            self._holding = Holding(self._grabbing, self._loop, self._resume)
            try:
                with anyio.CancelScope() as self._scope:
                    if self._left:
                        return
                    async with anyio.create_task_group() as links:
                        for link in self._links:
                            links.start_soon(link.keep)
                        await self._drain()
                        links.cancel_scope.cancel()
            finally:
                left = list(self._runs)
                for run in left:
                    run.abandon()
                held = self._holding.drop()
                self._threads.close()
                started = [run.started for run in left if run.started is not None]
                await self._loop.join([*started, *(job.wait for job in held)])

    def stop(self) -> None:
        """Stop warm: take nothing new, finish what runs, then end ``run``.

        A job that a GRAB in flight still brings is run, and one that waits here for its next run as well.
        Jobs that do not end within the setting ``drain`` are handed on as by ``leave``.
        """
        if not self._stopping.is_set():
            logger.info("stopping; finishing what runs", extra={"running": self.running, "held": self.held})
            self._stopping.set()
            self._grabbing.stop()

    def leave(self) -> None:
        """Leave cold: close the connections at once, so that the servers hand the jobs on to others.

        Gearflow's own server is told first which ones, and has a second to answer. Coroutines are cancelled,
        and ``run`` ends when they have ended; threads are left to themselves.
        """
        if not self._left:
            self._left = True
            logger.info("leaving; servers hand on what runs", extra={"running": self.running})
            if self._scope is not None:
                self._scope.cancel()

    async def __aenter__(self) -> Self:
        self._background = await anyio.create_task_group().__aenter__()
        self._background.start_soon(self.run)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._background is not None
        if error is None:
            self.stop()
        else:
            self.leave()
        if isinstance(error, Exception):
            # Not given to the task group, which would wrap it into a group.
            await self._background.__aexit__(None, None, None)
            return False
        return await self._background.__aexit__(kind, error, traceback)

    # ----------------------------------------------------------------------------------------- stopping

    async def _drain(self) -> None:
        """Wait until there is nothing more to do, and the servers know of all that was done."""
        await self._stopping.wait()
        with anyio.move_on_after(self.settings.drain) as limit:
            await self._idle.wait()
        if limit.cancelled_caught:
            self.leave()
            return
        with anyio.move_on_after(FAREWELL):
            async with anyio.create_task_group() as farewells:
                for link in self._links:
                    farewells.start_soon(link.farewell)

    # ------------------------------------------------------------------------------ called by the links

    def registered(self) -> None:
        """A server knows the functions."""
        self.ready.set()

    def assigned(self, connection: Connection, job: Assignment) -> None:
        """A job came: run it."""
        task = self._tasks.get(job.function)
        if task is None:  # a server would have to be mad
            connection.outbox.add(job.handle, encode(WorkFail(job.handle)))
            connection.wake()
            self._grabbing.finished()
            logger.error("%s sent a job of a function that this worker does not offer", connection.server)
            return
        self._begin(task, job.handle, connection, job.workload)

    def post(self, callback: Callable[[], object]) -> None:
        """Call something on the loop: at once, if this is its thread."""
        if threading.get_ident() == self._thread:
            callback()
        else:
            self._loop.post(callback)

    def cancelled(self, connection: Connection, handle: bytes) -> None:
        """A job was cancelled at the server; it may have ended here meanwhile."""
        for run in list(self._runs):
            if run.connection is connection and run.handle == handle:
                run.cancel()

    def abandon(self, connection: Connection) -> list[bytes]:
        """A connection is about to be closed: its runs are stopped, and their jobs can be released."""
        stopped = [run for run in self._runs if run.connection is connection and not run.is_settled]
        for run in stopped:
            run.abandon()
        return [run.handle for run in stopped]

    def lost(self, connection: Connection) -> None:
        """A connection is gone: what runs for it runs for nobody."""
        for run in list(self._runs):
            if run.connection is connection:
                run.hand_on()
        for job in self._holding.drop(connection):
            log.handed_on(job.named)

    # -------------------------------------------------------------------------------------- one job

    def _begin(self, task: AnyTask, handle: bytes, connection: Connection, workload: bytes) -> None:
        run = Run(task, handle, connection, self._grabbing)
        self._runs.add(run)
        run.started = self._loop.start(lambda: self._perform(run, workload))

    def _resume(self, job: Held) -> None:
        """A job that was held has a slot for its next run."""
        self._begin(job.task, job.handle, job.connection, job.workload)

    async def _perform(self, run: Run, workload: bytes) -> None:
        """The life of one run. Raises nothing but its cancellation."""
        run.is_under_way = True
        began = time.perf_counter()
        failure: BaseException | None = None
        try:
            if not run.handed_on and not run.cancelled:
                result = await self._executor.execute(run, run.open(workload))
                run.end(work_complete(run.handle, result))
            elif run.cancelled:
                run.end(encode(WorkFail(run.handle)))
        except BaseException as error:  # nothing that a task raises may end the worker
            if self._is_cancellation(run, error):
                if run.cancelled:
                    run.end(encode(WorkFail(run.handle)))
                elif not run.handed_on:  # it is the worker that is cancelled
                    run.handed_on = True
                    run.connection.release(run.handle)
                raise
            failure = error
            failure = await conclude(run, workload, error, self._holding)
        finally:
            self._runs.discard(run)
            if not run.is_overdue:
                self._grabbing.finished()
            log.run_ended(run, failure, time.perf_counter() - began)

    def _is_cancellation(self, run: Run, error: BaseException) -> bool:
        """Whether this worker cancels the run; else the task has raised something that only looks like it."""
        return isinstance(error, anyio.get_cancelled_exc_class()) and (
            run.handed_on or run.cancelled or not self._loop.native_cancellation
        )


def _by_function(tasks: Iterable[AnyTask]) -> dict[bytes, AnyTask]:
    found: dict[bytes, AnyTask] = {}
    for task in tasks:
        if not isinstance(task, Task):  # pyright: ignore[reportUnnecessaryIsInstance]  (not all callers are checked)
            raise TypeError(f"{task!r} is no task; put @task (from gearflow import task) above it")
        if task.foreign:
            continue
        name = task.name.encode()
        encode(CanDo(name))  # refuses what cannot travel
        if found.setdefault(name, task) is not task:
            raise ValueError(f"two tasks are named {task.name!r}; give one of them another: @task(name=...)")
        task.takes_context  # noqa: B018  (reads annotations: faults show now)
    if not found:
        raise ValueError("there is no task to run: give at least one that is not foreign")
    return found
