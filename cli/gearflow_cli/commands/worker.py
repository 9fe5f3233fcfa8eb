"""``gearflow worker`` runs the tasks of modules. With ``--check`` it asks whether the servers answer."""

import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import typer

from gearflow_cli import imports, logs, options, output
from gearflow_cli.commands.status import refusal
from gearflow_cli.errors import CliError, ExitCode, tell
from gearflow_cli.options import LogLevel, how, where
from gearflow_cli.process import supervise
from gearflow_cli.process.metrics import CountsReport, worker_port
from gearflow_cli.process.restart import restart
from gearflow_cli.process.signals import Signals, ending_at_once, exit_at_once
from gearflow_cli.server_queries import addresses_of
from gearflow_cli.tracebacks import own_lines

if TYPE_CHECKING:
    from gearflow.supervisor import Counts, IpcChannel
    from gearflow.tasks.definition import TaskDefinition
    from gearflow.worker import Worker, WorkerOptions
    from gearflow_cli.options import HttpAddress

    AnyTask: TypeAlias = TaskDefinition


def check(addresses: Sequence[str], timeout: float) -> None:
    """Print a line for each server.

    Raises:
        Exit: None has answered.
    """
    import anyio

    answers = anyio.run(_ask_all, addresses, timeout)
    for address in addresses:
        output.write_sentence(f"{address}  {answers[address][1]}")
    if not any(has_answered for has_answered, _ in answers.values()):
        raise typer.Exit(ExitCode.NO_SERVER)


async def _ask_all(addresses: Sequence[str], timeout: float) -> dict[str, tuple[bool, str]]:
    """Whether each server answers, and what to say about it."""
    import anyio

    answers: dict[str, tuple[bool, str]] = {}

    async def ask(address: str) -> None:
        answers[address] = await _ask(address, timeout)

    async with anyio.create_task_group() as tasks:
        for address in addresses:
            tasks.start_soon(ask, address)
    return answers


async def _ask(address: str, timeout: float) -> tuple[bool, str]:
    import anyio

    from gearflow.client import Client
    from gearflow.client.operate import server_info
    from gearflow.errors import GearflowError, NoServer

    has_answered = False
    try:
        with anyio.fail_after(timeout):
            async with Client([address], connect_timeout=timeout) as client:
                await client.echo(b"gearflow")
                has_answered = True
                closed = (await server_info(client, server=address)).closed
    except NoServer as error:
        return False, next(iter(error.reasons.values()))
    except (TimeoutError, GearflowError) as error:
        if has_answered:  # it is no gearflow server, or a busy one
            return True, "answers"
        return False, f"no answer within {timeout:g} s" if isinstance(error, TimeoutError) else str(error)
    return True, "answers" if closed is None else f"answers, but {refusal(closed)}"


Body: TypeAlias = Callable[[], Coroutine[Any, Any, None]]

_INFORM_EVERY: Final = 5.0
"""Seconds between two reports of the worker's counts."""

_WATCHDOG: Final = 300.0
"""The default of ``--watchdog`` in seconds."""


def worker(
    modules: options.WorkerModules = None,
    concurrency: options.Concurrency = 10,
    processes: Annotated[
        int | None,
        how(
            "--processes",
            "Worker processes. auto: one for each available CPU.",
            "N|auto",
            parser=supervise.processes,
            default="1",
        ),
    ] = None,
    servers: options.Servers = None,
    functions: options.Functions = None,
    drain: Annotated[
        float | None,
        how("--drain", "How long running jobs may take at a stop.", "DURATION", default="no limit"),
    ] = None,
    watchdog: Annotated[
        float | None,
        how(
            "--watchdog",
            "Replace a process if its event loop is blocked for this long.",
            "DURATION",
            default="5m, none with --reload",
        ),
    ] = None,
    max_tasks: Annotated[
        int | None, how("--max-tasks", "Replace a process after about N runs.", "N", min=1)
    ] = None,
    max_rss: Annotated[
        int | None,
        how(
            "--max-rss",
            "Replace a process that uses about this much memory, such as 512M.",
            "SIZE",
            parser=options.memory,
        ),
    ] = None,
    process_max_tasks: Annotated[
        int | None,
        how(
            "--process-max-tasks", "The same for the processes of tasks with executor='process'.", "N", min=1
        ),
    ] = None,
    process_max_rss: Annotated[
        int | None,
        how("--process-max-rss", "The same for these processes, after a run.", "SIZE", parser=options.memory),
    ] = None,
    max_workload: Annotated[
        int | None,
        how(
            "--max-workload",
            "Largest payload of a job, below 4G.",
            "SIZE",
            parser=options.memory,
            default="1G",
        ),
    ] = None,
    gearmand_exceptions: Annotated[
        bool, how("--gearmand-exceptions", "On C gearmand, send WORK_EXCEPTION alone, for PHP clients.")
    ] = False,
    burst: Annotated[bool, how("--burst", "End when no server has a job for this worker.")] = False,
    reload: Annotated[bool, how("--reload", "Load new code when a file changes.")] = False,
    check_only: Annotated[
        bool, where("--check", "Only ask each server whether it answers. Needs no MODULE.", env=None)
    ] = False,
    check_timeout: Annotated[
        float | None,
        where("--check-timeout", "How long --check waits for answers.", "DURATION", default="5s"),
    ] = None,
    metrics: Annotated[Any, options.metrics()] = None,
    log_level: options.Level = LogLevel.INFO,
    log_json: options.LogJson = False,
) -> None:
    """Run the tasks that modules define.

    TERM or INT finish the running jobs and take no new ones. A second signal ends the worker at once, and
    the servers give the running jobs to other workers. HUP loads new code.

    Examples:
      gearflow worker myapp.tasks
      gearflow worker myapp.tasks --processes auto -c 4 -s jobs.example.com
    """
    if check_only:
        if check_timeout == 0:
            raise CliError(
                ExitCode.USAGE, "--check-timeout 0 leaves no time for an answer; write 5s, or more"
            )
        check(addresses_of(servers), 5.0 if check_timeout is None else check_timeout)
        return
    if not modules:
        raise CliError(ExitCode.USAGE, "name the MODULE that defines the tasks, such as myapp.tasks")
    logs.to_stderr(log_level.value, json=log_json, modules=modules)
    line = supervise.line()
    is_supervised = reload or max_tasks or max_rss or watchdog or (processes or 1) > 1
    if watchdog is None and not reload:  # a debugger may stop code that is being developed
        watchdog = _WATCHDOG
    watchdog = watchdog or None
    if line is None and is_supervised:
        supervise.run(
            processes=processes or 1,
            drain=drain,
            watchdog=watchdog,
            burst=burst,
            watched=modules if reload else (),
            metrics=metrics,
        )
        return
    settings: WorkerOptions = {
        "concurrency": concurrency,
        "drain": drain,
        "max_tasks": max_tasks,
        "max_rss": max_rss,
        "process_max_tasks": process_max_tasks,
        "process_max_rss": process_max_rss,
        "gearmand_exceptions": gearmand_exceptions,
        "burst": burst,
    }
    if max_workload is not None:
        if max_workload >= 1 << 32:
            raise CliError(ExitCode.USAGE, "--max-workload: no payload has 4G or more. Give less")
        settings["max_workload"] = max_workload
    with supervise.reporting(line):
        with ending_at_once():
            tasks = imports.load_served(modules, functions or ())
        run(tasks, servers, settings, line, watchdog, metrics=metrics)


def run(
    tasks: "Sequence[AnyTask]",
    servers: Sequence[str] | None,
    settings: "WorkerOptions",
    line: "IpcChannel | None" = None,
    watchdog: float | None = None,
    hint: str = "",
    metrics: "HttpAddress | None" = None,
) -> None:
    """Run tasks until a signal comes, or a burst is over.

    Jobs that the tasks submit go to the same servers. If a stop takes too long, this ends the process.

    Args:
        watchdog: Seconds for which the event loop may be blocked when the supervisor is gone.
        metrics: Where the worker's counts are served. With a supervisor, it gets the counts.

    Raises:
        Exit: A task failed in a burst.
        CliError: The user's code has ended the worker, outside of tasks.
        StartupFailed, NoServer: As ``Worker.run`` does.
    """
    try:
        _run(tasks, servers, settings, line, watchdog, hint, metrics)
    except (SystemExit, KeyboardInterrupt) as error:  # not in a task, which would fail
        message = f"code on the event loop raised {type(error).__name__}, which ends the worker"
        raise CliError(ExitCode.TASK_FAILED, f"{message}\n{own_lines(error)}") from error


def _run(
    tasks: "Sequence[AnyTask]",
    servers: Sequence[str] | None,
    settings: "WorkerOptions",
    line: "IpcChannel | None",
    watchdog: float | None,
    hint: str,
    metrics: "HttpAddress | None",
) -> None:
    import asyncio

    from gearflow.client import configure
    from gearflow.runtime.eventloop import new_event_loop

    configure(servers or None)
    addresses = addresses_of(servers)
    names = ", ".join(task.name for task in tasks)
    where = f"servers: {', '.join(addresses)}; concurrency: {settings.get('concurrency')}"
    notice = f"serving {names}; {where}{hint}"
    settings = {**settings, "servers": addresses}
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        if line is None:
            tell(notice)
            signals, failed = runner.run(_alone(tasks, settings, metrics))
        else:
            signals, failed = runner.run(
                _supervised(tasks, settings, line, watchdog, notice, reports=metrics is not None)
            )
        # Not through the interpreter's exit, which would wait for the threads of tasks.
        if signals.again:
            restart(quiet=signals.is_quiet)
        if signals.forced:
            sys.stdout.flush()
            exit_at_once(signals.forced)
    if settings.get("burst") and failed:
        raise typer.Exit(ExitCode.TASK_FAILED)


async def _alone(
    tasks: "Sequence[AnyTask]", settings: "WorkerOptions", metrics: "HttpAddress | None"
) -> tuple[Signals, int]:
    """Run a worker without a supervisor. Notifies systemd, if it is there."""
    from gearflow.supervisor import Notifier
    from gearflow.worker import Worker

    notifier = Notifier.of(os.environ)
    worker = Worker(tasks, None, **settings)
    with Signals(worker, notifier=notifier) as signals:
        inform = partial(_inform, worker, notifier.ready, lambda counts: notifier.status(str(counts)))
        async with worker_port(metrics, worker):
            await _beside(partial(_live, worker, _WhenStarted()), inform, notifier.keep_alive)
    return signals, worker.failed


async def _supervised(
    tasks: "Sequence[AnyTask]",
    settings: "WorkerOptions",
    line: "IpcChannel",
    watchdog: float | None,
    notice: str,
    *,
    reports: bool,
) -> tuple[Signals, int]:
    """Run a worker that has a supervisor, and reports its counts to it for metrics."""
    from gearflow.supervisor import Launched, Leave, Ping, Pong, Ready, Retiring
    from gearflow.worker import Worker

    worker = Worker(tasks, None, on_retire=lambda reason: line.send(Retiring(reason)), **settings)
    with Signals(worker, line=line, watchdog=watchdog) as signals:

        async def listen() -> None:
            async for message in line.messages():
                if isinstance(message, Leave):
                    signals.leave()
                elif isinstance(message, Ping):
                    line.send(Pong())

        inform = partial(_inform, worker, partial(line.send, Ready(notice)), line.send)
        live = partial(_live, worker, _WhenStarted(partial(line.send, Launched())))
        await _beside(live, inform, listen, *([CountsReport(worker, line).keep] if reports else []))
    return signals, worker.failed


class _WhenStarted:
    """Makes a call when a worker has started. It has no job before the call returns."""

    def __init__(self, call: Callable[[], object] = lambda: None) -> None:
        self._call = call

    def started(self, value: None = None) -> None:
        """The worker has started."""
        self._call()


async def _live(worker: "Worker", status: _WhenStarted) -> None:
    """Run a worker to its end.

    Raises:
        CliError: A lifespan hook failed.
    """
    try:
        await worker.run(task_status=status)
    except Exception as error:
        if worker.failed_hook is None:
            raise
        message = (
            f"lifespan hook {worker.failed_hook} failed, which ends the worker"  # the log has its traceback
        )
        raise CliError(ExitCode.TASK_FAILED, message) from error


async def _inform(
    worker: "Worker", ready: Callable[[], object], tell_counts: "Callable[[Counts], object]"
) -> None:
    """Report when a worker is ready, and its counts from time to time."""
    import anyio

    from gearflow.supervisor import Counts

    last = Counts(0, 0, 0)
    await worker.ready.wait()
    ready()
    try:
        while True:
            counts = Counts(worker.running, worker.done, worker.failed)
            if counts != last:
                tell_counts(counts)
                last = counts
            await anyio.sleep(_INFORM_EVERY)
    finally:
        tell_counts(Counts(worker.running, worker.done, worker.failed))


async def _beside(body: Body, *others: Body) -> None:
    """Run a coroutine to its end, and others as long. Its error is not wrapped in a group."""
    import anyio

    failure: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        for other in others:
            tasks.start_soon(other)
        try:
            await body()
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001  (raised below)
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
