"""``gearflow dev``: a server and a worker in one terminal.

The server has the usual port, so that ``gearflow submit`` in another terminal finds it. If a Gearman server
has that port already, the worker works for that server, which may hold jobs.

The server stays while the worker, in a process of its own, is replaced to load new code.
"""

import errno
import logging
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

from gearflow_cli import imports, logs, options
from gearflow_cli.commands import limit, worker
from gearflow_cli.commands import server as server_command
from gearflow_cli.errors import tell
from gearflow_cli.options import LogLevel, how
from gearflow_cli.process import reload as watching
from gearflow_cli.process import supervise
from gearflow_cli.process.signals import ending_at_once
from gearflow_cli.text import printable

if TYPE_CHECKING:
    from gearflow.supervisor import IpcChannel
    from gearflow.tasks.definition import TaskDefinition

    AnyTask: TypeAlias = TaskDefinition

_HOST: Final = "127.0.0.1"

_SERVER: Final = "GEARFLOW_DEV_SERVER"
"""The environment variable with the server's address, for the worker process."""

_IS_OWN: Final = "GEARFLOW_DEV_SERVER_IS_OWN"
"""The environment variable that is set if this command runs the server."""


def dev(
    modules: options.Modules,
    port: options.Port = 4730,
    concurrency: options.Concurrency = 10,
    functions: options.Functions = None,
    reload: Annotated[
        bool, how("--reload/--no-reload", "Load new code in a new worker process when a file changes.")
    ] = True,
    log_level: options.Level = LogLevel.INFO,
    log_json: options.LogJson = False,
) -> None:
    """Run a job server and a worker in one terminal, while you develop. Ctrl-C stops both.

    If a job server listens on the port already, the worker works for that server. The server gets the limits
    that tasks declare.

    Examples:
      gearflow dev myapp.tasks
      gearflow dev myapp.tasks -p 4731 --log-level debug
    """
    logs.to_stderr(log_level.value, json=log_json, modules=modules)
    line = supervise.line()
    if line is not None:
        with supervise.reporting(line):
            _work(modules, functions, os.environ[_SERVER], concurrency, line)
        return
    if log_level is LogLevel.INFO:
        logging.getLogger("gearflow.server").setLevel(logging.WARNING)  # this command prints it
    if reload and not watching.is_possible():
        tell(f"new code is not loaded when a file changes: {watching.REMEDY}")
        reload = False
    if not reload:
        _load(modules, functions)  # report their errors before a server starts
    with _server(port) as address:
        if reload:
            os.environ[_SERVER] = address
            supervise.run(processes=1, watched=modules)
        else:
            _work(modules, functions, address, concurrency)


def _work(
    modules: Sequence[str],
    functions: Sequence[str] | None,
    address: str,
    concurrency: int,
    line: "IpcChannel | None" = None,
) -> None:
    tasks = _load(modules, functions)
    limit.apply_here(modules, address, is_own=_IS_OWN in os.environ)
    _apply_schedules(modules, address)
    elsewhere = [] if address == f"{_HOST}:4730" else ["-s", address]
    example = ["gearflow", "submit", *elsewhere, tasks[0].name, *_blanks(tasks[0])]
    hint = f"\ntry in another terminal: {' '.join(example)}"
    worker.run(tasks, [address], {"concurrency": concurrency}, line, hint=hint)


def _load(modules: Sequence[str], functions: Sequence[str] | None) -> "list[AnyTask]":
    with ending_at_once():
        return imports.load_served(modules, functions or ())


def _apply_schedules(modules: Sequence[str], address: str) -> None:
    """Give the server the schedules that the code declares now. A server of its own forgets the others."""
    from gearflow.errors import GearflowError
    from gearflow.tasks.registry import registry

    tasks = [task for task in registry.tasks().values() if task.schedules]
    is_own = _IS_OWN in os.environ
    if not tasks and not is_own:
        return
    from gearflow.tasks.schedules import schedule_specs
    from gearflow_cli.commands import cron

    try:
        done = cron.apply_specs([address], schedule_specs(tasks), cron.origin_of(modules), prune=is_own)
    except GearflowError as error:
        tell(printable(f"warning: schedules are not applied: {error}"), logging.WARNING)
        return
    for line in cron.changed_lines(done):
        tell(printable(f"schedule {line}"))


def _blanks(task: "AnyTask") -> list[str]:
    """The arguments that a call of the task needs, as blanks."""
    signature = task.payload.signature
    return [f"{name}=..." for name in signature.parameters if name not in signature.defaults]


@contextmanager
def _server(port: int) -> Generator[str, None, None]:
    """Run a server for the time of the block, unless one runs already. Yields its address."""
    from gearflow.server import JobServer

    server = JobServer(host=_HOST, port=port)
    try:
        server.__enter__()
    except OSError as error:
        address = f"{_HOST}:{port}"
        version = _version_of(address) if error.errno == errno.EADDRINUSE else None
        if version is None:
            server_command.refuse(_HOST, port, error)
        tell(f"a job server ({version}) listens on {address} already: using that one")
        yield address
        return
    os.environ["GEARFLOW_TLS"] = "0"  # the setting is for other servers
    os.environ[_IS_OWN] = "1"
    try:
        tell(
            f"the job server listens on {server.address}; jobs live in memory only and are lost when it ends"
        )
        yield server.address
    finally:
        server.__exit__()


def _version_of(address: str) -> str | None:
    """The version of a Gearman server. None if there is no Gearman server."""
    from gearflow.client import SyncAdmin
    from gearflow.errors import GearflowError

    try:
        return SyncAdmin(address, timeout=2.0).version()
    except (GearflowError, TimeoutError):
        return None
