"""``gearflow result``: wait for a background job and print its result."""

from collections.abc import Sequence
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING

from gearflow_cli import options, output
from gearflow_cli.commands.job import job_name
from gearflow_cli.errors import CliError, ExitCode, tell
from gearflow_cli.progress import ProgressView
from gearflow_cli.text import printable

if TYPE_CHECKING:
    from gearflow.client import JobName


def result(
    name: options.JobName,
    unique: options.JobUnique = None,
    servers: options.Servers = None,
    timeout: options.Timeout = None,
    verbose: options.Verbose = False,
) -> None:
    """Wait for the end of a background job and print its result.

    Of a task that yields, it prints the values that the server keeps, each on a line. You can repeat it as
    long as the server keeps the result.

    Examples:
      gearflow result H:jobs:17 --timeout 30s
      gearflow result --unique invoice-4711 send_invoice
    """
    import anyio

    from gearflow.errors import TaskFailed

    servers = servers or []
    job = job_name(name, unique, servers)
    try:
        data, has_values = anyio.run(_result, job, servers, timeout)
        if data or not has_values:
            output.write_result(data)
    except TimeoutError as error:  # which is an OSError
        raise CliError(ExitCode.TIMED_OUT, str(error)) from None
    except CancelledError as error:
        raise CliError(ExitCode.TASK_FAILED, str(error)) from None
    except TaskFailed as error:
        raise output.write_failure(error, f"job {job}", verbose=verbose) from None


async def _result(job: "JobName", servers: Sequence[str], timeout: float | None) -> tuple[bytes, bool]:
    """The result, after the values of a task that yields were written. Whether there were any."""
    import anyio

    from gearflow.client import connect
    from gearflow.errors import TaskFailed
    from gearflow.tasks.ref import Ref

    async with connect(*servers):
        try:
            data = await Ref(job, "", bytes).aresult(timeout)
            return data, not data and await _write_values(job)
        except TaskFailed:
            await _write_values(job)
            raise
        except anyio.get_cancelled_exc_class():
            tell(printable(f"stopped waiting for job {job}; it goes on"))
            raise


async def _write_values(job: "JobName") -> bool:
    """Write the values of a job that has ended, as far as they are kept. Whether there are any."""
    from gearflow.errors import StreamGap, TaskFailed, UnknownJob
    from gearflow.protocol.packets import WorkData
    from gearflow.tasks.streams import StreamRef

    stream = StreamRef[bytes](job, "", bytes).astream(lag="skip")
    view = ProgressView(str(job), values=True)
    while True:
        try:
            async for value in stream:
                view.show(WorkData(b"", value))
            return stream.position > 0
        except StreamGap as gap:
            tell(printable(f"warning: {gap}"))
        except UnknownJob:  # none are kept
            return False
        except TaskFailed:  # which the result says
            return stream.position > 0
