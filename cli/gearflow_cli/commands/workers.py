"""``gearflow workers`` lists the workers of servers, and makes them quiet."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from gearflow_cli import options, output, server_queries
from gearflow_cli.errors import CliError, ExitCode, tell
from gearflow_cli.help import Panel
from gearflow_cli.output import counted
from gearflow_cli.text import printable

if TYPE_CHECKING:
    from gearflow.client import Client
    from gearflow.observe import ServerView
    from gearflow.protocol.workers import QuietDone, WorkerInfo


def workers(
    quiet: Annotated[
        str | None,
        options.option(
            Panel.HOW, "--quiet", "Give this worker no more jobs, by its id or name.", "WORKER", env=None
        ),
    ] = None,
    resume: Annotated[
        str | None,
        options.option(Panel.HOW, "--resume", "Give this worker jobs again.", "WORKER", env=None),
    ] = None,
    servers: options.Servers = None,
    wide: options.Wide = False,
    as_json: options.Json = False,
) -> None:
    """List workers with what each of them runs. Make one quiet, or resume it.

    A worker is a connection that offers functions, also one of a program in another language. A quiet worker
    ends what it runs and gets no more jobs, until you resume it or it connects again. Only gearflow's servers
    know slots and jobs. With --json there is one object a line.

    Examples:
      gearflow workers
      gearflow workers --quiet k3f0-17
    """
    addresses = server_queries.addresses_of(servers)
    if quiet is not None and resume is not None:
        raise CliError(ExitCode.USAGE, "give --quiet or --resume, and not both")
    name = quiet if quiet is not None else resume
    if name is not None:
        _change(name, addresses, quiet=quiet is not None)
        return
    views = _look(addresses)
    if as_json:
        for view in views:
            for worker in view.workers:
                output.write_json_line({"server": view.address} | worker.model_dump(mode="json"))
    else:
        _show(views, with_server=len(addresses) > 1, wide=wide)


def _look(addresses: Sequence[str]) -> "list[ServerView]":
    """The servers that list their workers. The others are reported.

    Raises:
        NoServer: None answers.
        CliError: None lists its workers.
    """
    import anyio

    from gearflow.client import Client
    from gearflow.errors import NoServer
    from gearflow.observe import look_all

    async def look() -> "list[ServerView]":
        async with Client(addresses, discover=False) as client:
            return await look_all(client, addresses, parts=["workers"])

    views = anyio.run(look)
    silent = {view.address: view.error for view in views if not view.answers}
    if len(silent) == len(views):
        raise NoServer(silent)
    for address, reason in silent.items():
        tell(printable(f"{address} does not answer: {reason}"))
    refused = [
        f"{view.address}: {view.faults['workers']}"
        for view in views
        if view.answers and "workers" in view.faults
    ]
    if len(silent) + len(refused) == len(views):
        raise CliError(ExitCode.NO_SERVER, printable("; ".join(refused)))
    for text in refused:
        tell(printable(text))
    return [view for view in views if view.answers and "workers" not in view.faults]


def _show(views: "Sequence[ServerView]", *, with_server: bool, wide: bool) -> None:
    header = ["id", "name", "address", "busy", "state", "runs", "functions"]
    rows: list[list[output.Cell]] = []
    for view in views:
        rows += [
            [*([view.address] if with_server else []), *_row(worker, known=view.info is not None)]
            for worker in view.workers
        ]
    output.write_table(
        ["server", *header] if with_server else header,
        rows,
        cut={"functions": 12, "runs": 12, "name": 10, "address": 9, "server": 15},
        optional=("address", "functions", "name", "server"),
        wide=wide,
        empty="no worker is connected",
    )


def _row(worker: "WorkerInfo", *, known: bool) -> list[output.Cell]:
    return [
        worker.id or "-",
        worker.client_id,
        worker.address,
        f"{worker.running} of {worker.slots}" if known else "-",
        state(worker) if known else "-",
        runs(worker),
        ", ".join(worker.functions),
    ]


def state(worker: "WorkerInfo") -> str:
    """Whether a worker is quiet, has runs that cannot be stopped, works, or has nothing to do."""
    overdue = sum(worker.overdue.values())
    if overdue:
        return f"{overdue} overdue"
    return "quiet" if worker.quiet else "running" if worker.running else "idle"


def runs(worker: "WorkerInfo") -> str:
    """The job that a worker has run for the longest time, and how many others."""
    if not worker.jobs:
        return ""
    first = worker.jobs[0]
    others = f", and {worker.running - 1} more" if worker.running > 1 else ""
    return f"{first.function} for {output.duration(round(max(0.0, time.time() - first.since)))}{others}"


def _change(name: str, addresses: Sequence[str], *, quiet: bool) -> None:
    """Make the workers of an id or a name quiet, on all servers that have them."""
    from gearflow.errors import ServerError

    async def change(client: "Client", server: str) -> "QuietDone":
        from gearflow.client.operate import quiet as make_quiet

        try:
            return await make_quiet(client, name, quiet, server=server)
        except ServerError as error:
            if error.code != "gearflow:refused":
                raise
            return await make_quiet(client, client_id=name, quiet=quiet, server=server)

    answers = server_queries.each(addresses, change)
    for address, done in answers.given.items():
        verb = "gives no more jobs to" if quiet else "gives jobs again to"
        running = f", which still runs {counted(done.running, 'job')}" if done.running and quiet else ""
        output.write_sentence(f"{address}: {verb} {counted(done.workers, 'worker')}{running}")
    answers.require_one()
