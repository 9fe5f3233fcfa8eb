"""The process above several worker processes: carries out what the process manager decides.

It imports none of the users' modules, so new code needs no new supervisor, and faults of the code cannot harm
it. It sends the processes signals, and has a channel to each. If it is killed, their channels end, and they
stop warm.

SIGTERM and SIGINT stop, SIGHUP takes up new code, SIGTSTP and SIGCONT make quiet and resume, SIGUSR2 has
every process write its stacks. Signals are handled by the event loop, on which nothing here ever blocks.
"""

import logging
import signal
from collections.abc import AsyncIterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final, assert_never

import anyio
from anyio.abc import TaskGroup

from gearflow.errors import StartupFailed
from gearflow.metrics.worker_counts import FunctionRuns, ProcessCounts, WorkerSample, WorkerState
from gearflow.runtime.process import ProcessEnd
from gearflow.supervisor import ipc, process_manager
from gearflow.supervisor.process_manager import PINGS, ProcessManager, Restart
from gearflow.supervisor.signals import Echoes, Terminal
from gearflow.supervisor.systemd import Notifier
from gearflow.supervisor.worker_process import SHOW_WITHOUT_LOCK, WorkerProcess

logger = logging.getLogger("gearflow.supervisor")

_SIGNALS: Final = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
    *(signal.SIGTSTP, signal.SIGCONT, signal.SIGUSR2),
)

_NO_END: Final = ProcessEnd(None)
_UNKNOWN: Final = 1
"""The exit code of a process whose end nobody has seen."""

_NOTHING: Final = ipc.Counts(0, 0, 0)

_SHOW_TIME: Final = 2.0
"""Seconds in which a process writes its stacks, unless a task holds its interpreter lock."""

_HUNG: Final = (
    "the event loop of a worker process has been blocked for %g s; killing it, so its jobs are handed on. "
    "What blocks belongs in a 'def' task, what holds the interpreter lock in one with executor='process'; "
    "--watchdog sets the time"
)


class Supervisor:
    """Keeps worker processes, from ``run`` until they all have ended.

    Args:
        command: What each of them runs; it finds its end of the channel by ``IpcChannel.inherited``.
        processes: How many serve at a time.
        drain: Seconds that a warm stop may take; what takes longer is killed. ``None``: as long as it takes.
        watchdog: Seconds for which the event loop of one that has started may be blocked before it is killed,
            and another one takes its place. The log says so at half of that time. ``None``: for any time.
        burst: They end by themselves, with exit code 0, 1 or 69, when there is nothing left to do.
        changes: Whatever it yields, it means that there is new code.
        notifier: Gets the state of the fleet, for the service manager.
        read_grace: Seconds for which the channel of a process is read after its end.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        processes: int = 1,
        drain: float | None = None,
        watchdog: float | None = None,
        burst: bool = False,
        changes: AsyncIterable[object] | None = None,
        notifier: Notifier | None = None,
        read_grace: float = 1.0,
    ) -> None:
        self._command = list(command)
        self._size = processes
        self._watchdog = watchdog
        self._changes = changes
        self._read_grace = read_grace
        self._notifier = notifier or Notifier()
        self._terminal = Terminal()
        self._echoes = Echoes()
        self._manager = ProcessManager(processes, drain=drain, burst=burst)
        self._processes: dict[int, _Process] = {}
        self._noticed = ""
        self._done = 0  # by processes that have ended
        self._failed = 0
        self._counts = ProcessCounts()
        self._rescheduled = anyio.Event()
        self._finished = anyio.Event()
        self._code = 0
        self._fatal: str | None = None  # why no process can ever start
        self._tasks: TaskGroup

    @property
    def is_stopping(self) -> bool:
        """Whether a signal stops it."""
        return self._manager.stopping

    def counts(self) -> WorkerSample:
        """Return what all processes together have counted, for metrics, as far as they have reported it."""
        counts = self._counts
        return WorkerSample(counts.functions(), counts.state, self._manager.serving, self._size, counts.lost)

    async def run(self) -> int:
        """Serve until a signal stops it, or a burst is over; the exit code. In the main thread only.

        Raises:
            StartupFailed: The workers cannot start as they are configured; the message says why.
        """
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it is ignored, nobody learns how a child has ended
        async with anyio.create_task_group() as self._tasks:
            try:
                await self._tasks.start(self._handle_signals)
                self._tasks.start_soon(self._notifier.keep_alive)
                self._tasks.start_soon(self._keep_time)
                if self._watchdog is not None:
                    self._tasks.start_soon(self._send_pings, self._watchdog)
                if self._changes is not None:
                    self._tasks.start_soon(self._watch, self._changes)
                self._carry_out(self._manager.begin())
                await self._finished.wait()
            finally:
                for number in self._processes:  # there are some if this is cancelled
                    self._signal(number, signal.SIGKILL)
            self._tasks.cancel_scope.cancel()
        if self._fatal is not None:
            raise StartupFailed(self._fatal)
        return self._code

    # -------------------------------------------------------------------------------------- what happens

    async def _handle_signals(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(*_SIGNALS) as signals:
            task_status.started()
            async for number in signals:
                self._handle_signal(number)

    def _handle_signal(self, number: signal.Signals) -> None:
        match number:
            case signal.SIGHUP if not self._terminal.is_gone():
                self._reload()
            case signal.SIGTSTP:
                self._carry_out(self._manager.quiet())
            case signal.SIGCONT:
                self._carry_out(self._manager.resume())
            case signal.SIGUSR2:
                for process in self._processes:
                    self._show(process)
            case _ if not self._echoes.has(number):
                logger.info("stopping the worker processes", extra={"signal": number.name})
                self._notifier.stopping()
                self._carry_out(self._manager.stop(number, anyio.current_time()))
            case _:
                pass

    def _reload(self) -> None:
        if not self._manager.stopping:
            logger.info("reloading; worker processes are replaced one after the other")
            self._notifier.reloading()
            self._carry_out(self._manager.reload(anyio.current_time()))

    async def _watch(self, changes: AsyncIterable[object]) -> None:
        async for _ in changes:
            self._reload()

    async def _keep_time(self) -> None:
        while True:
            with anyio.CancelScope(deadline=self._manager.due):
                await self._rescheduled.wait()
            self._carry_out(self._manager.tick(anyio.current_time()))
            self._rescheduled = anyio.Event()

    async def _send_pings(self, watchdog: float) -> None:
        while True:
            await anyio.sleep(watchdog / PINGS)
            self._carry_out(self._manager.ping())

    async def _attend(self, number: int, process: "_Process", child: WorkerProcess) -> None:
        """A process from its start to its end."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._listen, number, process, child)
                process.end = await child.ended()
                # Its last messages are read; what it has forked may hold the channel open for ever.
                tasks.cancel_scope.deadline = anyio.current_time() + self._read_grace
        finally:
            child.channel.close()
        self._ended(number, process)

    async def _listen(self, number: int, process: "_Process", child: WorkerProcess) -> None:
        async for message in child.channel.messages():
            match message:
                case ipc.Launched():
                    process.is_launched = True
                    self._manager.started(number, anyio.current_time())
                case ipc.Ready(notice):
                    self._notice(notice)
                    self._carry_out(self._manager.ready(number, anyio.current_time()))
                case ipc.Retiring(reason):
                    logger.info("a worker process is replaced: %s", reason, extra=process.named)
                    self._carry_out(self._manager.retiring(number))
                case ipc.Failed(reason):
                    process.reason = reason
                case ipc.Counts():
                    process.counts = message
                    self._notify_status()
                case ipc.Measured():
                    runs = FunctionRuns(message.running, message.outcomes, message.buckets, message.seconds)
                    self._counts.counted(number, message.function, runs)
                case ipc.Stands():
                    self._counts.stands(number, WorkerState(**asdict(message)))
                case ipc.Pong():
                    self._manager.answered(number)
                case ipc.Shown():
                    process.shown.set()
                case ipc.Leave() | ipc.Ping():  # which only a supervisor sends
                    pass
                case _:
                    assert_never(message)

    def _ended(self, number: int, process: "_Process") -> None:
        status = process.end.status
        code = _UNKNOWN if status is None else status
        self._carry_out(self._manager.ended(number, code, anyio.current_time()))
        del self._processes[number]
        self._done += process.counts.done
        self._failed += process.counts.failed
        self._counts.gone(number)

    # ----------------------------------------------------------------------------------- what is to be done

    def _carry_out(self, orders: Sequence[process_manager.Order]) -> None:
        for order in orders:
            self._do(order)
        self._rescheduled.set()

    def _do(self, order: process_manager.Order) -> None:
        match order:
            case process_manager.Start(number):
                self._start(number)
            case process_manager.Stop(number):
                self._signal(number, signal.SIGTERM)
            case process_manager.StopCold(number):
                self._send(number, ipc.Leave())
            case process_manager.CheckAlive(number):
                self._send(number, ipc.Ping())
            case process_manager.Kill(number):
                self._signal(number, signal.SIGKILL)
            case process_manager.Quiet(number):
                self._signal(number, signal.SIGTSTP)
            case process_manager.Resume(number):
                self._signal(number, signal.SIGCONT)
            case process_manager.Exit():
                self._code = order.code
                self._finished.set()
            case _:
                self._log(order)

    def _start(self, number: int) -> None:
        process = self._processes[number] = _Process(number)
        try:
            process.child = WorkerProcess(self._command)
        except OSError as error:
            process.reason = f"a worker process cannot be started: {error}"
            self._ended(number, process)
        else:
            self._tasks.start_soon(self._attend, number, process, process.child)

    def _send(self, number: int, message: ipc.Message) -> None:
        child = self._processes[number].child
        if child is not None:
            child.channel.send(message)

    def _signal(self, number: int, what: int) -> None:
        process = self._processes.get(number)  # none if it could not be started
        if process is not None and process.child is not None:
            process.child.signal(what)

    def _show(self, number: int) -> None:
        """Have a process write its stacks, also if a task holds its interpreter lock."""
        process = self._processes[number]
        if process.shown.is_set():
            process.shown = anyio.Event()
        self._signal(number, signal.SIGUSR2)
        if process.is_launched:
            self._tasks.start_soon(self._insist, process)

    async def _insist(self, process: "_Process") -> None:
        with anyio.move_on_after(_SHOW_TIME):
            await process.shown.wait()
            return
        self._signal(process.number, SHOW_WITHOUT_LOCK)

    # --------------------------------------------------------------------------------------- the log

    def _notice(self, notice: str) -> None:
        if notice != self._noticed:
            self._noticed = notice
            logger.info(notice)

    def _log(self, order: process_manager.News) -> None:
        match order:
            case process_manager.Serving():
                logger.info("all worker processes are ready", extra={"processes": self._size})
                self._notifier.ready()
            case process_manager.Reloaded():
                logger.info("reloaded", extra={"processes": self._size})
                self._notifier.ready()
            case process_manager.ReloadFailed(number):
                self._notifier.ready()
                self._log_end(number, logging.ERROR, "the new code does not start; the old goes on")
            case process_manager.CrashLoop(number):
                self._log_end(number, logging.ERROR, "worker processes die one after the other; giving up")
            case process_manager.Silent(number):
                self._log_silence(number)
            case process_manager.Hung(number):
                logger.error(_HUNG, self._watchdog, extra=self._processes[number].named)
            case process_manager.StopTimedOut(number):
                named = self._processes[number].named
                logger.warning("a worker process does not stop; killing it", extra=named)
            case process_manager.Misconfigured(number):
                self._fatal = self._processes[number].reason or self._processes[number].ended
            case process_manager.Lost(number, restart):
                self._log_loss(number, restart)
            case _:
                assert_never(order)

    def _log_silence(self, number: int) -> None:
        """The process itself shows where it is, for which it needs neither its loop nor the lock."""
        logger.warning(
            "a worker process does not answer; its event loop is blocked, as its stacks show",
            extra=self._processes[number].named,
        )
        self._show(number)

    def _log_loss(self, number: int, restart: Restart | None) -> None:
        self._counts.lost += 1
        if restart is None:
            self._log_end(number, logging.WARNING, "a worker process died; another one is starting")
        elif restart.looping:
            sentence = "worker processes die one after the other"
            self._log_end(number, logging.ERROR, sentence, restart_in=restart.after)
        else:
            sentence = "a worker process died; another one will start"
            self._log_end(number, logging.WARNING, sentence, restart_in=restart.after)

    def _log_end(self, number: int, level: int, sentence: str, **fields: object) -> None:
        process = self._processes[number]
        if process.reason:  # which may have many lines
            logger.log(level, "%s", process.reason)
        ended: dict[str, object] = {"exit": process.ended}
        if process.end.status is not None:
            ended["peak_rss"] = process.end.memory
        logger.log(level, sentence, extra=process.named | ended | fields)

    def _notify_status(self) -> None:
        counts = [process.counts for process in self._processes.values()]
        total = ipc.Counts(
            running=sum(each.running for each in counts),
            done=self._done + sum(each.done for each in counts),
            failed=self._failed + sum(each.failed for each in counts),
        )
        self._notifier.status(f"{self._manager.serving} of {self._size} processes serve; {total}")


@dataclass(slots=True)
class _Process:
    """What is known of one process."""

    number: int
    child: WorkerProcess | None = None
    """``None``: the system had no room for it."""
    end: ProcessEnd = _NO_END
    reason: str = ""
    """Why it ends, in its own words."""
    counts: ipc.Counts = _NOTHING
    is_launched: bool = False
    """Whether it handles all signals."""
    shown: anyio.Event = field(default_factory=anyio.Event)
    """Set when it has written its stacks."""

    @property
    def named(self) -> dict[str, object]:
        """Which one it is, as fields of a log record."""
        return {"worker": self.number, "pid": self.child.pid if self.child is not None else None}

    @property
    def ended(self) -> str:
        """How it has ended."""
        if self.end.status is None:
            return "unknown"
        return self.end.signal or f"exit code {self.end.status}"
