"""``gearflow dev``: a server and a worker in one terminal.

The server keeps the usual port, so that ``gearflow submit`` in another terminal finds it. If a Gearman
server has that port already, the worker works for that one: this is what was wanted, and it may hold jobs.
"""

import errno
import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from gearflow_cli import load, logs, options, serve, work
from gearflow_cli.exits import tell
from gearflow_cli.options import LogLevel

if TYPE_CHECKING:
    from gearflow.tasks import Task

    AnyTask: TypeAlias = Task[..., Any]

_HOST: Final = "127.0.0.1"


def dev(
    modules: options.Modules,
    port: options.Port = 4730,
    concurrency: options.Concurrency = 10,
    functions: options.Functions = None,
    log_level: options.Level = LogLevel.INFO,
) -> None:
    """Run a job server and a worker for the tasks that MODULEs define; Ctrl-C stops both.

    If a job server listens on the port already, the worker works for that one.
    """
    tasks = load.load_served(modules, functions or ())
    logs.to_stderr(log_level.value)
    if log_level is LogLevel.INFO:
        logging.getLogger("gearflow.server").setLevel(logging.WARNING)  # what it says, is said here
    with _server(port) as address:
        elsewhere = [] if address == f"{_HOST}:4730" else ["-s", address]
        example = ["gearflow", "submit", *elsewhere, tasks[0].name, *_blanks(tasks[0])]
        tell(f"try in another terminal: {' '.join(example)}")
        work.run(tasks, [address], concurrency)


def _blanks(task: "AnyTask") -> list[str]:
    """The arguments that a call of the task needs, to be filled in."""
    signature = task.payload.signature
    return [f"{name}=..." for name in signature.parameters if name not in signature.defaults]


@contextmanager
def _server(port: int) -> Generator[str, None, None]:
    """The address of a server that runs for the time of the block, or of the one that runs anyway."""
    from gearflow.server import JobServer

    server = JobServer(host=_HOST, port=port)
    try:
        server.__enter__()
    except OSError as error:
        address = f"{_HOST}:{port}"
        version = _version_of(address) if error.errno == errno.EADDRINUSE else None
        if version is None:
            serve.refuse(_HOST, port, error)
        tell(f"a job server ({version}) listens on {address} already: using that one")
        yield address
        return
    try:
        tell(
            f"the job server listens on {server.address}; jobs live in memory only and are lost when it ends"
        )
        yield server.address
    finally:
        server.__exit__()


def _version_of(address: str) -> str | None:
    """The version that a Gearman server tells; None if there is no Gearman server."""
    from gearflow.client import SyncAdmin
    from gearflow.errors import GearflowError

    try:
        return SyncAdmin(address, timeout=2.0).version()
    except (GearflowError, TimeoutError):
        return None
