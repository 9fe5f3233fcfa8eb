"""Starting a supervisor of several worker processes, and reporting failures to it."""

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from gearflow_cli.errors import CliError, ExitCode, explain
from gearflow_cli.process import reload
from gearflow_cli.process.metrics import supervisor_port
from gearflow_cli.process.restart import command
from gearflow_cli.process.signals import end_at_once

if TYPE_CHECKING:
    from gearflow.supervisor import IpcChannel
    from gearflow_cli.options import HttpAddress


def processes(text: str) -> int:
    """Read a number of processes. ``auto`` means one for each CPU that this process may use."""
    if text == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is no number of processes. Write 4, or auto for one for each CPU")
    return int(text)


def line() -> "IpcChannel | None":
    """The channel to the supervisor that started this process, if one did."""
    from gearflow.supervisor import IpcChannel

    return IpcChannel.inherited(os.environ)


def run(
    *,
    processes: int,
    drain: float | None = None,
    watchdog: float | None = None,
    burst: bool = False,
    watched: Sequence[str],
    metrics: "HttpAddress | None" = None,
) -> None:
    """Run processes with this command until a signal comes, or a burst is over.

    Args:
        watched: Modules. When one of their files changes, new processes load it.
        metrics: Where the sums over all processes are served.

    Raises:
        Exit: A run was cut off, or a task failed in a burst.
        CliError: The workers cannot start, files cannot be watched, or ``metrics`` cannot be served.
    """
    end_at_once()
    import anyio

    from gearflow.errors import StartupFailed
    from gearflow.supervisor import Notifier, Supervisor

    supervisor = Supervisor(
        command(),
        processes=processes,
        drain=drain,
        watchdog=watchdog,
        burst=burst,
        changes=reload.changes(watched) if watched else None,
        notifier=Notifier.of(os.environ),
    )

    async def serve() -> int:
        async with supervisor_port(metrics, supervisor):
            return await supervisor.run()

    try:
        code = anyio.run(serve)
    except StartupFailed as error:
        raise CliError(ExitCode.MISCONFIGURED, str(error)) from None
    if code:
        raise typer.Exit(code)


@contextmanager
def reporting(line: "IpcChannel | None") -> Generator[None]:
    """Send errors of the block to the supervisor, which reports them, if there is one."""
    from gearflow.supervisor import Failed

    try:
        yield
    except Exception as error:
        if line is None or hasattr(error, "exit_code"):
            raise
        failure = explain(error)
        line.send(Failed(failure.message))
        raise typer.Exit(failure.code) from None
