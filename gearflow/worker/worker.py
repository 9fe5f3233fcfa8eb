"""The worker: takes jobs from all its servers, runs them, reports how they end.

The parts and what each decides:

* ``SlotAllocator`` (pure) counts slots, and decides how many jobs to ask which server for;
* ``WorkerSession`` (pure) puts that into packets, and reads the answers;
* ``ServerLink`` keeps one server connected, and moves the bytes;
* ``Runner`` ties a job to its run: it starts it, has its one end packet sent, gives its slot back;
* ``Executor`` runs one call, within its time;
* ``retry_policy`` (pure) decides after an exception whether the job runs again, ``retry`` carries it out;
* ``Holding`` keeps jobs between two runs, where their server cannot;
* ``Worker`` is what users see. It starts these parts, and stops them.

Stopping means to ask for no more jobs. CANT_DO and RESET_ABILITIES are never sent: gearmand requeues the
jobs that run.
"""

import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, Unpack

import anyio
from anyio.abc import TaskGroup, TaskStatus

from gearflow.client import Security, ServerAddress, current, parse_servers
from gearflow.client.discovery import default_discover
from gearflow.errors import NoServer
from gearflow.metrics.worker_counts import WorkerSample, WorkerState
from gearflow.protocol.codec import encode
from gearflow.protocol.packets import CanDo
from gearflow.runtime.run_records import run_fields_added
from gearflow.tasks import RunInfo, migration_hints
from gearflow.tasks.definition import TaskDefinition
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
from gearflow.tasks.wait_tracking import heard_by
from gearflow.worker.batch import BatchLane
from gearflow.worker.burst import Burst
from gearflow.worker.deadlock_warning import DeadlockWarning
from gearflow.worker.discovery import AllLinks, Discovery
from gearflow.worker.event_loop import open_loop
from gearflow.worker.executor import AnyTask
from gearflow.worker.processes import ProcessPool, origin_of
from gearflow.worker.recycling import Recycler
from gearflow.worker.runner import Runner
from gearflow.worker.server_link import ServerLink
from gearflow.worker.settings import TimeLimits, WorkerOptions, WorkerSettings
from gearflow.worker.slots import SlotAllocator
from gearflow.worker.stats import RunStats

logger = logging.getLogger("gearflow.worker")


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
        time_limits: Internal time limits. The defaults fit, and tests of gearflow pass shorter ones.
        processes: A pool of processes for tasks with ``executor="process"``, which the worker leaves open. By
            default it has its own.

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
        time_limits: TimeLimits | None = None,
        processes: ProcessPool | None = None,
        **options: Unpack[WorkerOptions],
    ) -> None:
        given = settings.model_dump(exclude_unset=True) if settings is not None else {}
        settings = WorkerSettings.model_validate({**given, **options})
        self.settings: WorkerSettings = settings
        self._limits = limits = time_limits or TimeLimits()
        by_function = _by_function(tasks)
        self._names = tuple(function.decode() for function in by_function)
        servers, token = settings.servers, settings.token
        self._target = current.target().but(
            servers=None if servers is None else parse_servers(servers),
            discover=settings.discover,
            tls=settings.tls,
            token=None if token is None else token.get_secret_value(),
        )
        self._hooks_of_processes = None if lifespan is None else tuple(map(name_of, lifespan))
        self._lifespans = hooks.lifespans() if lifespan is None else tuple(map(as_lifespan, lifespan))
        self._start = Startup()
        around = hooks.middleware() if middleware is None else tuple(middleware)
        for each in around:
            check_middleware(each)
        self._processes = processes
        self._idle = anyio.Event()
        self._slots = SlotAllocator(settings.concurrency, self._idle.set, noop_reply=limits.noop_reply)
        self._stats = RunStats(self._slots)
        self._deadlocks = DeadlockWarning(settings.concurrency, map(bytes.decode, by_function))
        security = Security.of(self._target.tls, self._target.token)
        self._links = AllLinks()
        self._burst: Burst | None = None
        if settings.burst:
            self._burst = Burst(self._links, settings.connect_timeout, self._stats)
            self._burst.is_settled = lambda: self._links.are_settled
            self._slots.when_empty = self._burst.changed
        self._recycler: Recycler | None = None
        if settings.max_tasks is not None or settings.max_rss is not None:
            self._recycler = Recycler(
                settings.max_tasks,
                settings.max_rss,
                self._stats,
                on_retire or (lambda _: self.stop()),
                interval=limits.memory_interval,
            )
        self._runner = Runner(
            by_function,
            around,
            self._slots,
            self._stats,
            self._links,
            self._burst,
            self._recycler,
            gearmand_exceptions=settings.gearmand_exceptions,
            cancel_grace=limits.cancel_grace,
        )
        looks = default_discover() if self._target.discover is None else self._target.discover
        alone = {lane.function: lane for lane in self._runner.lanes}
        together = tuple(function for function in by_function if function not in alone)

        def connect(functions: tuple[bytes, ...], lane: BatchLane | None) -> None:
            def link(server: ServerAddress, discovery: Discovery) -> ServerLink:
                return ServerLink(
                    server,
                    security,
                    settings,
                    functions,
                    self._slots,
                    self._runner,
                    limits.answer,
                    discovery,
                    lane,
                )

            discovery = Discovery(self._target.servers, link, limits.discovery if looks else None)
            self._links.groups.append(discovery)
            if self._burst is not None:
                discovery.changed = self._burst.changed
            discovery.make_links()

        if together:
            connect(together, None)
        for function, lane in alone.items():
            connect((function,), lane)
        self.ready: anyio.Event = self._runner.ready
        """Set once a server knows what this worker can do."""
        self._failure: NoServer | None = None  # which ``run`` is to raise
        self._stopping = anyio.Event()
        self._scope: anyio.CancelScope | None = None  # of all connections
        self._left = False
        self._has_run = False
        self._background: TaskGroup | None = None

    # ------------------------------------------------------------------------------------ what it does

    @property
    def running(self) -> int:
        """The number of running jobs, without those that were reported as timed out."""
        return len(self._stats.running)

    @property
    def held(self) -> int:
        """The number of jobs that wait in the worker for their next run, because their server cannot keep
        them for it.
        """
        return self._slots.held

    @property
    def overdue(self) -> int:
        """The number of threads that still run although their job was reported as timed out. Each holds a
        slot.
        """
        return self._slots.overdue

    @property
    def done(self) -> int:
        """The number of runs that succeeded."""
        return self._stats.done

    @property
    def failed(self) -> int:
        """The number of runs that ended their job with a failure. Runs that are retried do not count."""
        return self._stats.failed

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
    def is_quiet(self) -> bool:
        """Whether ``quiet`` was called, and not ``resume`` since."""
        return self._slots.is_quiet

    @property
    def left(self) -> bool:
        """Whether ``leave`` was called, or a warm stop took longer than ``drain``. The servers then give its
        jobs to others.
        """
        return self._left

    def runs(self) -> list[RunInfo]:
        """Return a ``RunInfo`` for each running job."""
        return self._runner.runs()

    def counts(self) -> WorkerSample:
        """Return what the worker has counted since it was made, for metrics."""
        links = [link for link in self._links if link.counts]
        servers = {link.address for link in links}
        away = {link.address for link in links if not link.is_registered}
        state = WorkerState(
            self.settings.concurrency, self.held, self.overdue, len(servers), len(servers - away)
        )
        running = [run.task.name for run in self._stats.running]
        return WorkerSample(self._stats.counts.functions(self._names, running), state)

    # ------------------------------------------------------------------------------ what it is to do

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
        self._deadlocks.begin()
        with current.by_default(self._target), heard_by(self._deadlocks), run_fields_added():
            async with lifetime(self._lifespans, self._start):
                if self._recycler is not None:
                    self._recycler.begin()
                task_status.started()
                if self._start.is_over:
                    await self._serve()
        if self._failure is not None:
            raise self._failure

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
        if not self._left:  # else nothing that waits here is to begin
            self._slots.stop()

    def quiet(self) -> None:
        """Take no new jobs until ``resume``, but stay connected and finish the running jobs."""
        if not self._slots.is_quiet:
            logger.info("quiet; taking no new jobs", extra={"running": self.running, "held": self.held})
            self._slots.quiet()

    def resume(self) -> None:
        """Take jobs again after ``quiet``."""
        if self._slots.is_quiet:
            logger.info("taking jobs again")
            self._slots.resume()

    def show_processes(self) -> None:
        """Make the task processes write the stacks of their threads to stderr."""
        if self.ready.is_set():  # before, there are none
            self._runner.show_processes()

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

    # ---------------------------------------------------------------------------------------- serving

    async def _serve(self) -> None:
        async with open_loop() as loop:
            self._runner.open(loop, self._processes or self._own_processes())
            try:
                with anyio.CancelScope() as self._scope:
                    if self._left:
                        return
                    async with anyio.create_task_group() as links:
                        for group in self._links.groups:
                            links.start_soon(group.keep_links)
                        for watch in self._watches():
                            links.start_soon(watch)
                        await self._drain()
                        links.cancel_scope.cancel()
            finally:
                await self._runner.abandon_all()
                self._stats.log.flush()
                if self._processes is None:
                    await self._runner.close(cold=self._left or not self.stopping)

    def _own_processes(self) -> ProcessPool:
        settings = self.settings
        return ProcessPool(
            current.target(), self._hooks_of_processes, settings.process_max_tasks, settings.process_max_rss
        )

    def _watches(self) -> Iterator[Callable[[], Coroutine[Any, Any, None]]]:
        """What goes on beside the links until the worker stops."""
        yield self._stats.count_bursts
        if self._burst is not None:
            yield partial(self._end_when_done, self._burst)
        if self._recycler is not None:
            yield self._recycler.watch
        if self.settings.liveness is not None:
            yield partial(self._stats.log_idle, self.settings.liveness, self._links)

    async def _end_when_done(self, burst: Burst) -> None:
        try:
            await burst.watch()
        except NoServer as error:
            self._failure = error
            self.leave()
        else:
            logger.info("no server has a job")
            self.stop()

    async def _drain(self) -> None:
        """Wait until there is nothing more to do, and the servers know of all that was done."""
        await self._stopping.wait()
        with anyio.move_on_after(self.settings.drain) as limit:
            await self._idle.wait()
        if limit.cancelled_caught and not self._idle.is_set():  # it may have no time at all, nor need any
            self.leave()
            return
        with anyio.move_on_after(self._limits.flush):
            async with anyio.create_task_group() as flushes:
                for link in self._links:
                    flushes.start_soon(link.flush)


migration_hints.teach(Worker, migration_hints.WORKERS)


def _by_function(tasks: Iterable[AnyTask]) -> dict[bytes, AnyTask]:
    found: dict[bytes, AnyTask] = {}
    for task in tasks:
        if not isinstance(task, TaskDefinition):  # pyright: ignore[reportUnnecessaryIsInstance]  (not all callers are checked)
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
