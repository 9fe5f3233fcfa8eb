"""``gearflow job``, ``cancel`` and ``edit``, for one job by its handle, or by its function and unique."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from gearflow_cli import function_names, options, output, server_queries
from gearflow_cli.errors import CliError, ExitCode
from gearflow_cli.options import how
from gearflow_cli.text import printable

if TYPE_CHECKING:
    from gearflow.client import JobName
    from gearflow.protocol.server_calls import JobInfo


def job(
    name: options.JobName,
    unique: options.JobUnique = None,
    servers: options.Servers = None,
    as_json: options.Json = False,
) -> None:
    """Show what the server knows of a job, such as its state and its failure.

    Examples:
      gearflow job H:jobs:17
      gearflow job --unique invoice-4711 send_invoice --json
    """
    import anyio

    servers = servers or []
    known: JobInfo = anyio.run(_info, job_name(name, unique, servers), servers)
    if as_json:
        output.write_json(known.model_dump(mode="json"))
    else:
        output.write_job(known)


def cancel(name: options.JobName, unique: options.JobUnique = None, servers: options.Servers = None) -> None:
    """End a job that waits or runs. A gearflow worker stops the run.

    Examples:
      gearflow cancel H:jobs:17
      gearflow cancel --unique invoice-4711 send_invoice
    """
    import anyio

    servers = servers or []
    job = job_name(name, unique, servers)
    if not anyio.run(_cancel, job, servers):
        raise CliError(ExitCode.NO_SUCH_JOB, printable(f"there is no job {job} that waits or runs"))
    output.write_sentence(f"cancelled job {job}")


def edit(
    name: options.JobName,
    unique: options.JobUnique = None,
    priority: Annotated[
        Any,  # a Priority, whose module is imported only when it is needed
        how("--priority", "high, normal or low.", options.PRIORITIES, env=None),
    ] = None,
    at: Annotated[
        datetime | None,
        how("--at", "Do not start before this time, such as 2030-12-24T18:00.", "TIME", env=None),
    ] = None,
    delay: Annotated[
        float | None,
        how("--delay", "Do not start before this time has passed. 0: at once.", "DURATION", env=None),
    ] = None,
    expires: Annotated[
        float | None,
        how("--expires", "Give the job up if it has not started after this time.", "DURATION", env=None),
    ] = None,
    servers: options.Servers = None,
) -> None:
    """Change a job that waits or is delayed.

    Examples:
      gearflow edit H:jobs:17 --priority high
      gearflow edit --unique invoice-4711 send_invoice --delay 0
    """
    import anyio

    if at is not None and delay is not None:
        raise CliError(
            ExitCode.USAGE, "--delay and --at both say when the job may start: leave out one of them"
        )
    given = {"priority": priority, "at": at, "delay": delay, "expires": expires}
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        raise CliError(
            ExitCode.USAGE, "there is nothing to change: give --priority, --at, --delay or --expires"
        )
    servers = servers or []
    job = job_name(name, unique, servers)
    anyio.run(_edit, job, changes, servers)
    output.write_sentence(f"edited job {job}")


def job_name(name: str, unique: str | None, servers: Sequence[str]) -> "JobName":
    """The job that the arguments select.

    Raises:
        CliError: The handle is not valid.
    """
    from gearflow.tasks.ref import parse

    if unique is None:
        try:
            return parse(name, None)
        except ValueError as error:
            raise CliError(ExitCode.USAGE, str(error)) from None
    from gearflow.client import JobKey
    from gearflow.tasks.submission import on_the_wire

    return JobKey(function_names.remembered(name, server_queries.addresses_of(servers)), on_the_wire(unique))


async def _info(job: "JobName", servers: Sequence[str]) -> "JobInfo":
    from gearflow.client import connect

    async with connect(*servers) as client:
        return await client.info(job)


async def _cancel(job: "JobName", servers: Sequence[str]) -> bool:
    from gearflow.client import connect

    async with connect(*servers) as client:
        return await client.cancel(job)


async def _edit(job: "JobName", changes: Mapping[str, Any], servers: Sequence[str]) -> None:
    from gearflow.client import connect
    from gearflow.tasks.options import read_changes

    async with connect(*servers) as client:
        await client.edit(job, **read_changes(changes))
