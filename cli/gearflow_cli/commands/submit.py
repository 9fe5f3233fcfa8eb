"""``gearflow submit`` submits one job."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import typer

from gearflow_cli import arguments, function_names, imports, options, output, server_queries
from gearflow_cli.errors import CliError, ExitCode, tell
from gearflow_cli.help import Panel
from gearflow_cli.options import argument, how, out
from gearflow_cli.progress import ProgressView, ResultFile
from gearflow_cli.submit_options import SubmitChoices
from gearflow_cli.text import printable

if TYPE_CHECKING:
    from gearflow.client import Client, ClientJob, JobRequest
    from gearflow.tasks.definition import TaskDefinition

    AnyTask: TypeAlias = TaskDefinition


_PATIENCE: Final = 1.0
"""Seconds that a server has at least to acknowledge a job, and at the end to say what happens to it."""


@dataclass(frozen=True, slots=True)
class _Untyped:
    """A function of which only the name is known, and its payload."""

    function: str
    workload: bytes


@dataclass(frozen=True, slots=True)
class _Typed:
    """A task, and the arguments of a call."""

    task: "AnyTask"
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def function(self) -> str:
        return self.task.name


def submit(
    context: typer.Context,
    name: Annotated[str, argument(Panel.WHAT, "NAME", "The task's full name, or its end after a dot.")],
    given: Annotated[
        list[str] | None,
        argument(
            Panel.WHAT,
            "ARGUMENT",
            "key=value, or one payload: a JSON object, @FILE, or - for standard input.",
        ),
    ] = None,
    modules: options.TaskModules = None,
    raw: options.Raw = False,
    background: options.Background = False,
    timeout: options.Timeout = None,
    delay: options.Delay = None,
    at: Annotated[
        datetime | None,
        how("--at", "Do not start before this time, such as 2030-12-24T18:00. With --bg.", "TIME", env=None),
    ] = None,
    debounce: Annotated[
        float | None,
        how(
            "--debounce",
            "Replace the job with the same key, if it waits, and start it after this time. With --bg.",
            "DURATION",
            env=None,
        ),
    ] = None,
    max_wait: Annotated[
        float | None,
        how("--max-wait", "Start it this long after the first of them in any case.", "DURATION", env=None),
    ] = None,
    expires: options.Expires = None,
    priority: options.Priorities = None,
    unique: Annotated[
        str | None, how("--unique", "Join the waiting or running job with the same key.", "KEY", env=None)
    ] = None,
    reuse: Annotated[
        bool | None, how("--reuse", "Take a kept result with the same key as the answer.", env=None)
    ] = None,
    resubmit: Annotated[
        bool | None,
        how("--resubmit", "Submit the job again if its server is lost. It may then run more than once."),
    ] = None,
    keep: options.Keep = None,
    retries: options.Retries = None,
    run_limit: options.RunLimit = None,
    servers: options.Servers = None,
    spread: options.Spread = None,
    output_file: Annotated[
        Path | None, out("--output -o", "Write the result, or all values, to this file as they are.", "FILE")
    ] = None,
    verbose: options.Verbose = False,
) -> None:
    """Run a task on a worker and print its result.

    Examples:
      gearflow submit add a=1 b=2
      gearflow submit -m myapp.tasks resize path=cat.png --bg
    """
    if not name:
        raise CliError(ExitCode.USAGE, "the name is empty; give the name of a task, such as myapp.tasks.add")
    if background and timeout is not None:  # allowed if one of them is in the environment
        background, timeout = _waits_or_not(context, timeout)
    chosen = {
        "priority": priority,
        "unique": unique,
        "delay": delay,
        "at": at,
        "expires": expires,
        "debounce": debounce,
        "max_wait": max_wait,
        "keep": keep,
    }
    chosen |= {"reuse": reuse, "resubmit": resubmit, "retries": retries, "timeout": run_limit}
    given_options = {name: value for name, value in chosen.items() if value is not None}
    wishes = SubmitChoices(background, given_options, timeout, verbose, output_file)
    wishes.check()
    if not options.is_utf8(name) and wishes.for_function()[1] is not None:  # the options are sent in JSON
        raise CliError(ExitCode.USAGE, f"{name!r} is not UTF-8: it can be submitted without options only")
    task = imports.find_task(name, modules or [], certain=options.is_given_here(context, "modules"))
    wishes.check_with(task, raw=raw)
    job = _read(name, task, given or [], servers or [], wishes, raw=raw)
    _run(job, servers or [], wishes, spread)


# ------------------------------------------------------------------------------------------ what to run


def _waits_or_not(context: typer.Context, timeout: float) -> tuple[bool, float | None]:
    """Choose between ``--bg`` and ``--timeout``, which exclude each other. The command line decides."""
    if not options.is_given_here(context, "timeout"):
        return True, None
    return options.is_given_here(context, "background"), timeout


def _read(
    name: str,
    task: "AnyTask | None",
    given: Sequence[str],
    servers: Sequence[str],
    wishes: SubmitChoices,
    *,
    raw: bool,
) -> _Typed | _Untyped:
    if task is not None and not raw:
        return _Typed(task, *arguments.typed(given, task))
    workload = arguments.raw(given) if raw else arguments.whole(given)
    if task is not None:
        assert workload is not None  # raw
        return _Untyped(task.name, workload)
    addresses = server_queries.addresses_of(servers)
    function = function_names.resolve(name, addresses, wishes.patience)
    if workload is None:
        takes = function_names.takes(function, addresses, wishes.patience)
        workload = arguments.untyped(given, takes.text)
        if not takes.is_known and arguments.may_be_one_text(given):
            tell(
                f"warning: sending {workload.decode()}: no worker says whether {printable(function)} takes "
                "an object or a text; if it takes a text, name its module with -m, or send the text alone "
                "with --raw",
                logging.WARNING,
            )
    return _Untyped(function, workload)


# ------------------------------------------------------------------------------------------- running it


def _run(job: _Typed | _Untyped, servers: Sequence[str], wishes: SubmitChoices, spread: bool | None) -> None:
    import anyio

    anyio.run(_submit, job, servers, wishes, spread)


async def _submit(
    job: _Typed | _Untyped, servers: Sequence[str], wishes: SubmitChoices, spread: bool | None
) -> None:
    from gearflow.client import connect

    async with connect(*servers, spread=spread, connect_timeout=wishes.patience) as client:
        if wishes.background:
            output.write_sentence(await _hand_over(job, client, wishes))
        else:
            await _wait(await _acknowledged(job, client, wishes), client, job, wishes)


async def _hand_over(job: _Typed | _Untyped, client: "Client", wishes: SubmitChoices) -> str:
    """Submit a job in the background. Returns its handle."""
    if isinstance(job, _Typed):
        with imports.user_code(job.task):
            request = job.task.options(**wishes.options).prepare_background(job.args, job.kwargs)
    else:
        request = _request(job, wishes)
    return (await client.enqueue(request)).handle


def _request(job: _Typed | _Untyped, wishes: SubmitChoices) -> "JobRequest":
    """What is submitted for a job that is waited for, or of which only the function's name is known."""
    if isinstance(job, _Typed):
        with imports.user_code(job.task):
            return job.task.options(**wishes.options).prepare(job.args, job.kwargs)
    from gearflow.client import JobRequest
    from gearflow.protocol.uniques import fresh_unique

    priority, options = wishes.for_function()
    # gearmand's queue plugins overwrite the rows of background jobs without a unique
    unique = wishes.options.get("unique") or (fresh_unique() if wishes.background else "")
    return JobRequest(job.function, job.workload, unique, priority, options, detached=wishes.background)


async def _acknowledged(job: _Typed | _Untyped, client: "Client", wishes: SubmitChoices) -> "ClientJob":
    """Submit a job to wait for.

    Raises:
        CliError: No server acknowledges the job in the time for its result.
    """
    import anyio

    limit = None if wishes.timeout is None else max(wishes.timeout, _PATIENCE)
    try:
        with anyio.fail_after(limit):
            return await client.attach(_request(job, wishes))
    except TimeoutError:
        raise CliError(
            ExitCode.OUTCOME_UNKNOWN,
            f"{printable(job.function)}: no server has acknowledged it within {limit:g} s; "
            "the job may exist or not",
        ) from None


async def _wait(
    client_job: "ClientJob", client: "Client", job: _Typed | _Untyped, wishes: SubmitChoices
) -> None:
    """Wait for the end of a job, show its progress, and print the result."""
    import anyio

    from gearflow.client import JobFailed
    from gearflow.tasks.remote_errors import decode_failure

    is_stream = isinstance(job, _Typed) and job.task.is_stream
    try:
        with (
            ResultFile(wishes.output) as file,
            anyio.fail_after(wishes.timeout),
            ProgressView(job.function, file.write, values=is_stream) as watch,
        ):
            async for event in client_job.events():
                watch.show(event)
            data = await client_job.result()
            if file.write is not None:
                file.write(data)
    except TimeoutError:
        raise await _timed_out(client_job, client, wishes) from None
    except JobFailed as error:
        failure = decode_failure(error.exception, client_job.handle)
        raise output.write_failure(failure, job.function, verbose=wishes.verbose) from None
    except anyio.get_cancelled_exc_class():
        tell(printable(f"stopped waiting for {client_job.handle}: {await _fate(client_job, client)}"))
        raise
    if wishes.output is None and not (is_stream and not data):
        output.write_result(data, job.task.payload.signature.result if isinstance(job, _Typed) else None)


async def _timed_out(client_job: "ClientJob", client: "Client", wishes: SubmitChoices) -> CliError:
    fate = await _fate(client_job, client)
    message = f"{printable(client_job.handle)} has not ended within {wishes.timeout:g} s: {fate}"
    return CliError(ExitCode.TIMED_OUT, message)


async def _fate(client_job: "ClientJob", client: "Client") -> str:
    """What happens to a job when this client disconnects.

    A server drops a job that no worker has yet. Gearflow's own also cancels a running one.
    """
    import anyio

    from gearflow.client import JobHandle
    from gearflow.errors import GearflowError

    with anyio.move_on_after(_PATIENCE, shield=True), suppress(GearflowError):
        status = await client.status(JobHandle(client_job.handle, client_job.server))
        features = await client.features(client_job.server)
        if not status.running:
            return "no worker has taken it, and it is dropped unless others wait for it"
        if features.gearflow:
            return "it is cancelled unless others wait for it"
        return "it runs on, and its result goes to nobody"
    return "it may run on"
