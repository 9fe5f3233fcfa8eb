"""``gearflow watch`` shows what happens to jobs, until they have ended."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gearflow_cli import options, output
from gearflow_cli.commands.job import job_name
from gearflow_cli.errors import CliError, ExitCode, explain, tell
from gearflow_cli.help import Panel
from gearflow_cli.options import argument
from gearflow_cli.text import printable
from gearflow_cli.watch_view import Bars, JsonLines, Lines, View

if TYPE_CHECKING:
    from gearflow.client import JobName


def watch(
    names: Annotated[
        list[str],
        argument(Panel.JOBS, "HANDLE", "The jobs' handles. With --unique, the function's name."),
    ],
    unique: options.JobUnique = None,
    servers: options.Servers = None,
    timeout: options.Timeout = None,
    json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Show the progress, the warnings and the end of jobs, until all have ended.

    Examples:
      gearflow watch H:jobs:17 H:jobs:18
      gearflow watch --unique invoice-4711 send_invoice
    """
    import anyio

    if unique is not None and len(names) > 1:
        raise CliError(ExitCode.USAGE, "--unique takes the name of one function")
    for name in names:
        if not name or not options.is_utf8(name):
            raise CliError(ExitCode.USAGE, f"{name!r} is no handle")
    jobs = {name: job_name(name, unique, servers or []) for name in dict.fromkeys(names)}
    code = anyio.run(_watch_all, jobs, servers or [], timeout, json, verbose)
    if code is not ExitCode.DONE:
        raise typer.Exit(code)


async def _watch_all(
    jobs: "dict[str, JobName]", servers: Sequence[str], timeout: float | None, json: bool, verbose: bool
) -> ExitCode:
    """Watch all jobs. Returns the exit code of the first that has not completed."""
    import anyio
    import anyio.abc

    from gearflow.client import connect

    codes: dict[str, ExitCode] = {}
    view: View = JsonLines() if json else Bars(jobs) if output.is_terminal() else Lines()
    broken: list[OSError] = []

    async def watch_one(name: str) -> None:
        codes[name] = await _watch(name, jobs[name], view, verbose=verbose)

    async def run(show: Callable[[], Awaitable[None]], tasks: anyio.abc.TaskGroup) -> None:
        try:
            await show()
        except OSError as error:  # nobody reads, or the disk is full
            broken.append(error)
        if broken or len(codes) == len(jobs):
            tasks.cancel_scope.cancel()

    async with connect(*servers):
        try:
            with anyio.fail_after(timeout), view:
                async with anyio.create_task_group() as tasks:
                    for show in (partial(_run_clock, view), *(partial(watch_one, name) for name in jobs)):
                        tasks.start_soon(run, show, tasks)
        except TimeoutError:
            left = ", ".join(printable(name) for name in jobs if name not in codes)
            raise CliError(
                ExitCode.TIMED_OUT, f"{left}: no end within {timeout:g} s, and the wait ends here"
            ) from None
        except anyio.get_cancelled_exc_class():
            tell("stopped watching; the jobs go on")
            raise
    if broken:
        raise broken[0]
    return next((codes[name] for name in jobs if codes[name] is not ExitCode.DONE), ExitCode.DONE)


async def _run_clock(view: View) -> None:
    import anyio

    while True:
        await anyio.sleep(1)
        view.tick()


async def _watch(name: str, job: "JobName", view: View, *, verbose: bool) -> ExitCode:
    """Show the events of a job. Returns the exit code for its end."""
    from gearflow.errors import GearflowError
    from gearflow.tasks import Ended
    from gearflow.tasks.watching import AsyncEvents

    ended: Ended | None = None
    try:
        async for event in AsyncEvents[Any](job):
            if isinstance(event, Ended):
                ended = event
            view.show(name, event)
    except GearflowError as error:
        failure = explain(error)
        view.drop(name)
        view.say(failure.message)
        return failure.code
    if ended is None or ended.state == "completed":
        return ExitCode.DONE
    if ended.failure is None:
        view.say(printable(f"job {name} was {ended.state}"))
        return ExitCode.TASK_FAILED
    failure = output.write_failure(ended.failure, f"job {name}", verbose=verbose)
    view.say(failure.message)
    return failure.code
