"""The worker: takes jobs from all its servers, runs them, reports how they end.

The parts and what each decides:

* ``SlotAllocator`` (pure) counts slots, and says how many jobs to ask which server for;
* ``Session`` (pure) says it in the protocol's words, and understands the answers;
* ``ServerLink`` keeps one server connected, and moves the bytes;
* ``Executor`` runs one call, within its time;
* ``verdict`` (pure) decides after an exception whether the job runs again, ``retrying`` sees to it;
* ``Holding`` keeps jobs between two runs, where their server cannot;
* ``run_within`` has the middleware around it;
* the ``Worker`` here ties a job to its run: it starts it, sends its one end packet, gives its slot back.

The path of a job is as plain as can be: one task of the event loop, an integer of free slots, an entry in
the outbox of its connection. Every job ends once: with WORK_COMPLETE, or with a failure in the form
that its server needs (``retrying`` has the forms). A call of ``gearflow:retry`` takes the place of the end
where the job is to run again on gearflow's own server.

A connection that drops takes its jobs with it: the server hands them on, so what runs here is for nobody.
Coroutines are cancelled, threads are told by ``Context.cancelled``, results are dropped; slots are held
until the runs have ended. Where the worker itself closes the connection it releases them, if the server is
gearflow's own: that is no worker's death.

Stopping means to stop grabbing. CANT_DO and RESET_ABILITIES are never sent: gearmand requeues the jobs
that run.
"""

import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, Unpack

import anyio
from anyio.abc import TaskGroup, TaskStatus

from gearflow.client import Security, current, parse_servers
from gearflow.errors import NoServer
from gearflow.protocol.codec import encode
from gearflow.protocol.packets import CanDo, WorkFail
from gearflow.runtime.fork import end_stray
from gearflow.tasks import RunInfo, Task
from gearflow.tasks.hooks import (
    LifespanFunction,
    Middleware,
    Startup,
    as_lifespan,
    check_middleware,
    hooks,
    lifetime,
    name_of,
)
from gearflow.tasks.wait_tracking import caller, heard_by
from gearflow.worker import stats
from gearflow.worker.burst import Burst
from gearflow.worker.connection import WorkerConnection
from gearflow.worker.deadlock_warning import Waits
from gearflow.worker.event_loop import Loop, open_loop
from gearflow.worker.executor import AnyTask, Executor, OverdueRuns, Threads
from gearflow.worker.middleware import run_within
from gearflow.worker.processes import ProcessPool, origin_of
from gearflow.worker.recycling import Retirement
from gearflow.worker.retry import Held, Holding, handle_failure
from gearflow.worker.run import Run, log_handed_on, log_run_ended, outcome_of
from gearflow.worker.server_link import ServerLink
from gearflow.worker.session import Assignment, work_complete
from gearflow.worker.settings import WorkerOptions, WorkerSettings
from gearflow.worker.slots import SlotAllocator
from gearflow.worker.stats import Tally

logger = logging.getLogger("gearflow.worker")

FAREWELL: Final = 5.0
"""Seconds that servers have to confirm, at a warm stop, that they got the last results."""


class Worker:
    """Runs tasks for the jobs of one or more servers, on asyncio or trio.

    ``async with Worker([add, resize]) as worker:`` runs it in the background of the block, and stops it warm
    at the end. ``await worker.run()`` runs it until you call ``stop`` or ``leave``. You can run a worker
    once. If the block ends with an exception or is cancelled, the worker stops cold.

    All methods belong to the thread of the event loop.

    Args:
        tasks: The tasks to run. The worker leaves out foreign tasks, which other programs run.
        settings: The settings. You can also pass each of its fields as a keyword.
        lifespan: Hooks that the worker enters in order before the first connection, and exits in reverse
            order after the last run. By default those of ``@lifespan``.
        middleware: Functions that the worker calls around each run, the outermost first. By default those of
            ``@middleware``.
        on_retire: Called once with the reason when a limit (``max_tasks``, ``max_rss``) is reached. It must
            not raise. Without it the worker stops warm, and with it the worker goes on until you stop it.

    Attributes:
        settings: The settings that apply.
        ready: An event that is set when a server knows the worker's functions.

    Raises:
        ValueError: There is no task to run, two have one name, or a setting is out of range.
        TypeError: A task, a hook or a middleware is of another type.
    """

    def __init__(
        self,
        tasks: Iterable[AnyTask],
        settings: WorkerSettings | None = None,
        *,
        lifespan: Sequence[LifespanFunction] | None = None,
        middleware: Sequence[Middleware] | None = None,
        on_retire: Callable[[str], object] | None = None,
        **options: Unpack[WorkerOptions],
    ) -> None:
        given = settings.model_dump(exclude_unset=True) if settings is not None else {}
        self.settings: WorkerSettings = WorkerSettings.model_validate({**given, **options})
        self.ready = anyio.Event()
        """Set once a server knows what this worker can do."""
        self._tasks = _by_function(tasks)
        self._idle = anyio.Event()
        self._grabbing = SlotAllocator(self.settings.concurrency, self._idle.set)
        self._overdue = OverdueRuns(self._grabbing, self._report)
        self._texts = {
            task.name: name
            for task in self._tasks.values()
            if (name := task.payload.signature.sole_text) is not None
        }
        functions = tuple(self._tasks)
        given_servers = self.settings.servers
        token = self.settings.token
        self._target = current.target().but(
            servers=None if given_servers is None else parse_servers(given_servers),
            tls=self.settings.tls,
            token=None if token is None else token.get_secret_value(),
        )
        security = Security.of(self._target.tls, self._target.token)
        self._links = [
            ServerLink(server, security, self.settings, functions, self._grabbing, self)
            for server in self._target.servers
        ]
        self._threads = Threads("gearflow-worker")
        self._runs: set[Run] = set()
        self._tally = Tally()
        self._waits = Waits(self.settings.concurrency, (task.name for task in self._tasks.values()))
        self._hooks_of_processes = None if lifespan is None else tuple(map(name_of, lifespan))
        self._lifespans = hooks.lifespans() if lifespan is None else tuple(map(as_lifespan, lifespan))
        self._start = Startup()
        self._middleware = hooks.middleware() if middleware is None else tuple(middleware)
        for each in self._middleware:
            check_middleware(each)
        self._burst: Burst | None = None
        if self.settings.burst:
            self._burst = Burst(self._links, self.settings.connect_timeout, self._is_at_rest)
            self._grabbing.when_empty = self._burst.changed
        self._retirement: Retirement | None = None
        most, memory = self.settings.max_tasks, self.settings.max_rss
        if most is not None or memory is not None:
            self._retirement = Retirement(
                most, memory, self._tally, self._is_used, on_retire or (lambda _: self.stop())
            )
        self._is_watched = self.settings.burst or self._retirement is not None
        self._failure: NoServer | None = None  # which ``run`` is to raise
        self._stopping = anyio.Event()
        self._scope: anyio.CancelScope | None = None  # of all connections
        self._left = False
        self._has_run = False
        self._background: TaskGroup | None = None
        self._loop: Loop
        self._executor: Executor
        self._holding: Holding
        self._process = self._thread = 0  # the loop's

    # ------------------------------------------------------------------------------------- the outside

    @property
    def running(self) -> int:
        """The number of running jobs, without those that were reported as timed out."""
        return len(self._runs)

    @property
    def held(self) -> int:
        """The number of jobs that wait in the worker for their next run, because their server cannot keep
        them for it.
        """
        return self._grabbing.held

    @property
    def overdue(self) -> int:
        """The number of threads that still run although their job was reported as timed out. Each holds a
        slot.
        """
        return self._grabbing.overdue

    @property
    def done(self) -> int:
        """The number of runs that succeeded."""
        return self._tally.done

    @property
    def failed(self) -> int:
        """The number of runs that ended their job with a failure. Runs that are retried do not count."""
        return self._tally.failed

    @property
    def starting(self) -> bool:
        """Whether some lifespan hooks are not entered yet, so that there is no job. Stays true if the start
        was given up.
        """
        return not self._start.is_over

    @property
    def failed_hook(self) -> str | None:
        """The lifespan hook that ended the worker because a task of the hook failed, or None."""
        return self._start.failed_hook

    @property
    def stopping(self) -> bool:
        """Whether ``stop`` was called."""
        return self._stopping.is_set()

    @property
    def left(self) -> bool:
        """Whether ``leave`` was called, or a warm stop took longer than ``drain``. The servers then give its
        jobs to others.
        """
        return self._left

    def runs(self) -> list[RunInfo]:
        """Return a ``RunInfo`` for each running job."""
        return [run.info() for run in self._runs]

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve until ``stop`` or ``leave`` is called. If this is cancelled, the worker stops cold.

        The worker has started once the lifespan hooks are entered, or were given up because of ``stop`` or
        ``leave``.

        Raises:
            StartupFailed: A lifespan hook raised, or the worker uses more memory than ``max_rss`` before its
                first job.
            NoServer: No server can be reached, with the setting ``burst``.
        """
        if self._has_run:
            raise RuntimeError("a worker can run only once; make a new one")
        self._has_run = True
        self._process = os.getpid()
        self._thread = threading.get_ident()
        self._waits.begin()
        with current.by_default(self._target), heard_by(self._waits):
            async with lifetime(self._lifespans, self._start):
                if self._retirement is not None:
                    self._retirement.begin()
                task_status.started()
                if self._start.is_over:
                    await self._serve()
        if self._failure is not None:
            raise self._failure

    async def _serve(self) -> None:
        async with open_loop() as self._loop:
            self._executor = Executor(self._loop, self._threads, self._pool())
            self._holding = Holding(self._grabbing, self._loop, self._resume)
            try:
                with anyio.CancelScope() as self._scope:
                    if self._left:
                        return
                    async with anyio.create_task_group() as links:
                        for link in self._links:
                            links.start_soon(link.keep)
                        for watch in self._watches():
                            links.start_soon(watch)
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
                await self._executor.close(cold=self._left or not self.stopping)

    def _pool(self) -> ProcessPool:
        settings = self.settings
        target = current.target()
        return ProcessPool(
            target, self._hooks_of_processes, settings.process_max_tasks, settings.process_max_rss
        )

    def stop(self) -> None:
        """Stop warm. The worker takes no new jobs, finishes its running jobs, and then ends ``run``.

        It still runs a job that a GRAB in flight brings, and jobs that wait here for their next run. Jobs
        that do not end within the setting ``drain`` are handed on as by ``leave``. A worker that still starts
        has nothing to finish. It cancels the lifespan hook that it is entering, and exits those before it.
        """
        if self._stopping.is_set():
            return
        if self.starting:
            hook = self._start.hook
            named = {} if hook is None else {"lifespan": hook}
            logger.info("stopping; the start is given up", extra=named)
        else:
            logger.info("stopping; finishing what runs", extra={"running": self.running, "held": self.held})
        self._stopping.set()
        self._start.give_up()
        self._grabbing.stop()

    def quiet(self) -> None:
        """Take no new jobs until ``resume``, but stay connected and finish the running jobs."""
        if not self._grabbing.is_quiet:
            logger.info("quiet; taking no new jobs", extra={"running": self.running, "held": self.held})
            self._grabbing.quiet()

    def resume(self) -> None:
        """Take jobs again after ``quiet``."""
        if self._grabbing.is_quiet:
            logger.info("taking jobs again")
            self._grabbing.resume()

    def show_processes(self) -> None:
        """Make the task processes write the stacks of their threads to stderr."""
        if self.ready.is_set():  # before, there are none
            self._executor.show_processes()

    def leave(self) -> None:
        """Stop cold. The worker closes its connections at once, so that the servers give its jobs to others.

        It first names the jobs to gearflow's own server, which has a second to answer. Coroutines are
        cancelled, and ``run`` ends when they have ended. Threads run on.
        """
        if not self._left:
            self._left = True
            logger.info("leaving; servers hand on what runs", extra={"running": self.running})
            self._start.give_up()
            if self._scope is not None:
                self._scope.cancel()

    async def __aenter__(self) -> Self:
        self._background = await anyio.create_task_group().__aenter__()
        try:
            await self._background.start(self.run)
        except BaseException as error:
            await self._end_background(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        if error is None:
            self.stop()
        else:
            self.leave()
        return await self._end_background(kind, error, traceback)

    async def _end_background(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._background is not None
        if isinstance(error, Exception):
            # Not given to the task group, which would wrap it into a group.
            await self._background.__aexit__(None, None, None)
            return False
        return await self._background.__aexit__(kind, error, traceback)

    # ------------------------------------------------------------------------------- beside the links

    def _watches(self) -> Iterator[Callable[[], Coroutine[Any, Any, None]]]:
        """What goes on beside the links until the worker stops."""
        if self._burst is not None:
            yield partial(self._end_when_done, self._burst)
        if self._retirement is not None:
            yield self._retirement.watch
        interval = self.settings.liveness
        if interval is not None:
            yield partial(stats.tell, interval, self._tally, self._links, self._is_waiting)

    async def _end_when_done(self, burst: Burst) -> None:
        try:
            await burst.watch()
        except NoServer as error:
            self._failure = error
            self.leave()
        else:
            logger.info("no server has a job")
            self.stop()

    def _is_at_rest(self) -> bool:
        """Nothing runs, or waits here for its next run."""
        return not self._runs and not self._grabbing.held

    def _is_used(self) -> bool:
        """There was a job, or is one."""
        return bool(self._tally.ended or self._runs)

    def _is_waiting(self) -> bool:
        """A job that came now would be taken, and would be the only one."""
        return self._is_at_rest() and not (self._grabbing.is_quiet or self.stopping)

    def _look_after_run(self) -> None:
        if self._retirement is not None:
            self._retirement.look()
        if self._burst is not None:
            self._burst.run_ended()

    # ----------------------------------------------------------------------------------------- stopping

    async def _drain(self) -> None:
        """Wait until there is nothing more to do, and the servers know of all that was done."""
        await self._stopping.wait()
        with anyio.move_on_after(self.settings.drain) as limit:
            await self._idle.wait()
        if limit.cancelled_caught and not self._idle.is_set():  # it may have no time at all, nor need any
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
        if self._burst is not None:
            self._burst.changed()

    def recognized(self, connection: WorkerConnection) -> None:
        """A server is gearflow's own, and takes reports."""
        if self._overdue.counts or self._texts:
            connection.report(self._overdue.counts, self._texts)

    def assigned(self, connection: WorkerConnection, job: Assignment) -> None:
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

    def cancelled(self, connection: WorkerConnection, handle: bytes) -> None:
        """Nobody wants a job any more; it may have ended here meanwhile."""
        for run in list(self._runs):
            if run.connection is connection and run.handle == handle:
                run.cancel()

    def _report(self) -> None:
        """Report to all servers that take reports."""
        for link in self._links:
            if link.connection is not None:
                link.connection.report(self._overdue.counts, self._texts)

    def abandon(self, connection: WorkerConnection) -> list[bytes]:
        """A connection is about to be closed: its runs are stopped, and their jobs can be released."""
        stopped = [run for run in self._runs if run.connection is connection and not run.is_settled]
        for run in stopped:
            run.abandon()
        return [run.handle for run in stopped]

    def lost(self, connection: WorkerConnection) -> None:
        """A connection is gone: what runs for it runs for nobody."""
        for run in list(self._runs):
            if run.connection is connection:
                run.hand_on()
        for job in self._holding.drop(connection):
            log_handed_on(job.named)
        if self._burst is not None:
            self._burst.run_ended()  # if it had jobs that were held
            self._burst.changed()

    # -------------------------------------------------------------------------------------- one job

    def _begin(self, task: AnyTask, handle: bytes, connection: WorkerConnection, workload: bytes) -> None:
        run = Run(task, handle, connection, self._overdue)
        self._runs.add(run)
        run.started = self._loop.start(lambda: self._perform(run, workload))

    def _resume(self, job: Held) -> None:
        """A job that was held has a slot for its next run."""
        self._begin(job.task, job.handle, job.connection, job.workload)

    async def _perform(self, run: Run, workload: bytes) -> None:
        """The life of one run. Raises nothing but its cancellation."""
        run.is_under_way = True
        run.began = time.perf_counter()
        caller.set(run)
        failure: BaseException | None = None
        try:
            if not run.is_for_nobody:
                try:
                    result = await self._execute(run, run.open(workload))
                finally:
                    end_stray(self._process)
                run.end(work_complete(run.handle, result))
            elif run.cancelled:
                run.end(encode(WorkFail(run.handle)))
        except BaseException as error:  # nothing that a task raises may end the worker
            if not run.is_for_nobody and self._loop.is_cancelled():
                run.handed_on = True
                run.connection.release(run.handle)
            if run.is_for_nobody and isinstance(error, anyio.get_cancelled_exc_class()):
                if run.cancelled:
                    run.end(encode(WorkFail(run.handle)))
                raise
            failure = error
            failure = await handle_failure(
                run,
                workload,
                error,
                self._holding,
                gearmand_exceptions=self.settings.gearmand_exceptions,
            )
        finally:
            now = time.perf_counter()
            outcome = outcome_of(run, failure)
            self._tally.add(outcome, now)
            self._runs.discard(run)
            if not run.is_overdue:
                self._grabbing.finished()
            log_run_ended(run, outcome, failure, now - run.began)
            if self._is_watched:
                self._look_after_run()

    def _execute(self, run: Run, payload: bytes) -> Awaitable[bytes]:
        if not self._middleware:
            return self._executor.execute(run, payload)
        return run_within(self._middleware, run.info(), partial(self._executor.execute, run, payload))


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
        task.check()  # faults of its types show now
        if task.executor == "process":
            origin_of(task)  # refuses what another process cannot find
    if not found:
        raise ValueError("there is no task to run: give at least one that is not foreign")
    return found
