"""``gearflow job`` and ``cancel``, for one job by its handle, or by its function and unique."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gearflow_cli import function_names, options, output, server_queries
from gearflow_cli.errors import CliError, ExitCode
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
