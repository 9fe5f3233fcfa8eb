"""``gearflow worker``: the tasks of some modules, run for the jobs of some servers."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from gearflow_cli import load, logs, options
from gearflow_cli.exits import tell
from gearflow_cli.options import LogLevel
from gearflow_cli.stopping import Stopping

if TYPE_CHECKING:
    from gearflow.tasks import Task
    from gearflow.worker import WorkerSettings

    AnyTask: TypeAlias = Task[..., Any]


def worker(
    modules: options.Modules,
    concurrency: options.Concurrency = 10,
    servers: options.Servers = None,
    functions: options.Functions = None,
    log_level: options.Level = LogLevel.INFO,
) -> None:
    """Run the tasks that MODULEs define.

    TERM or INT finish what runs and take nothing new; a second one leaves at once, and the servers hand
    on what ran.
    """
    tasks = load.load_served(modules, functions or ())
    logs.to_stderr(log_level.value)
    run(tasks, servers or None, concurrency)


def run(tasks: "Sequence[AnyTask]", servers: Sequence[str] | None, concurrency: int) -> None:
    """Run tasks until a signal comes, and end the process if it has to be cut short.

    Jobs that the tasks submit themselves go to the same servers.
    """
    import asyncio

    from gearflow.client import configure, default_servers
    from gearflow.server import new_event_loop
    from gearflow.worker import WorkerSettings

    configure(servers)
    addresses = servers or [str(address) for address in default_servers()]
    settings = WorkerSettings(servers=tuple(addresses), concurrency=concurrency)
    names = ", ".join(task.name for task in tasks)
    tell(f"serving {names}; servers: {', '.join(addresses)}; concurrency: {concurrency}")
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        forced = runner.run(_run(tasks, settings))
        if forced:
            # Not by way of the interpreter's exit, which would wait for threads of the tasks'.
            sys.stdout.flush()
            os._exit(forced)


async def _run(tasks: "Sequence[AnyTask]", settings: "WorkerSettings") -> int:
    from gearflow.worker import Worker

    worker = Worker(tasks, settings)
    with Stopping(worker) as stopping:
        await worker.run()
    return stopping.forced
