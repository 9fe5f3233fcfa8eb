"""``gearflow submit``: one job, from the shell."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from gearflow_cli import arguments, console, load, naming, options, render
from gearflow_cli.exits import ExitCode, Failure, tell
from gearflow_cli.watch import Watch

if TYPE_CHECKING:
    from gearflow.client import Client, ClientJob
    from gearflow.errors import TaskFailed
    from gearflow.tasks import Task

    AnyTask: TypeAlias = Task[..., Any]


class PriorityName(str, Enum):  # noqa: UP042  (see LogLevel)
    """Among the waiting jobs of a function."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


@dataclass(frozen=True, slots=True)
class _Wishes:
    """How the job is to be submitted; None where the user left it to the task."""

    background: bool
    delay: float | None
    priority: str | None
    unique: str | None
    timeout: float | None
    verbose: bool


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
    name: Annotated[str, typer.Argument(metavar="NAME", help="The task's full or bare name.")],
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ARGUMENT",
            help="Arguments as key=value; or the payload: a JSON object, @file, or - for standard input.",
        ),
    ] = None,
    modules: options.TaskModules = None,
    servers: options.Servers = None,
    background: Annotated[
        bool,
        typer.Option(
            "--bg", "-b", envvar="GEARFLOW_BG", help="Do not wait for the result; print the handle alone."
        ),
    ] = False,
    delay: Annotated[
        float | None,
        typer.Option(
            metavar="DURATION",
            parser=options.duration,
            envvar="GEARFLOW_DELAY",
            help="Not before that time has passed, such as 5m; with --bg.",
        ),
    ] = None,
    priority: Annotated[
        PriorityName | None,
        typer.Option(envvar="GEARFLOW_PRIORITY", help="Among the waiting jobs of the function."),
    ] = None,
    unique: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", envvar="GEARFLOW_UNIQUE", help="Join the waiting or running job of the same key."
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="DURATION",
            parser=options.duration,
            envvar="GEARFLOW_TIMEOUT",
            help="Wait no longer than that for the result, such as 30s.",
        ),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", envvar="GEARFLOW_RAW", help="Send the one argument as it is, unchecked.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            envvar="GEARFLOW_VERBOSE",
            help="Show the worker's traceback if the task fails.",
        ),
    ] = False,
) -> None:
    """Run a task on a worker and print its result.

    Exit codes: 0 done, 1 the task failed, 2 usage, 65 the payload does not fit, 69 no server, 75 timed
    out, 76 the outcome is unknown, 78 a module does not import.
    """
    wishes = _Wishes(background, delay, priority and priority.value, unique, timeout, verbose)
    _check(wishes)
    task = _find_task(name, modules or [], certain=_is_given_here(context))
    job = _read(name, task, given or [], servers or [], raw=raw)
    _run(job, servers or [], wishes)


def _check(wishes: _Wishes) -> None:
    """Options that make no sense together. Raises Failure."""
    fault = None
    if wishes.delay is not None and not wishes.background:
        fault = "--delay is for jobs that nobody waits for: add --bg"
    elif wishes.timeout is not None and wishes.background:
        fault = "--timeout limits the wait for the result, and --bg does not wait: leave out one of them"
    elif wishes.delay is not None and wishes.priority not in (None, "normal"):
        fault = (
            "a delayed job has normal priority, the protocol knows no other: leave out --priority or --delay"
        )
    elif wishes.unique == "":
        fault = "--unique needs a key; leave it out to join nothing"
    if fault is not None:
        raise Failure(ExitCode.USAGE, fault)


# ------------------------------------------------------------------------------------------ what to run


def _is_given_here(context: typer.Context) -> bool:
    """Whether ``--module`` stands on the command line, and not only in the environment."""
    source = context.get_parameter_source("modules")
    return source is not None and source.name == "COMMANDLINE"


def _find_task(name: str, modules: Sequence[str], *, certain: bool) -> "AnyTask | None":
    """The task of that name in the modules; None if they have none.

    Modules of the environment need not be importable everywhere; then the servers are asked.
    """
    if not modules:
        return None
    from gearflow.errors import UnknownTask
    from gearflow.tasks.registry import registry

    try:
        tasks = load.load(modules)
    except Failure as failure:
        if certain:
            raise
        fault = failure.message.partition("\n")[0]
        tell(f"warning: GEARFLOW_TASKS: {fault}; going on without its types")
        return None
    try:
        return registry.find(name)
    except UnknownTask:
        if any(full.endswith(f".{name}") for full in tasks):
            raise  # there are several
        return None


def _read(
    name: str, task: "AnyTask | None", given: Sequence[str], servers: Sequence[str], *, raw: bool
) -> _Typed | _Untyped:
    if task is not None and not raw:
        return _Typed(task, *arguments.typed(given, task))
    workload = arguments.raw(given) if raw else arguments.untyped(given)
    if task is not None:
        return _Untyped(task.name, workload)
    from gearflow.client import default_servers

    addresses = servers or [str(address) for address in default_servers()]
    return _Untyped(naming.resolve(name, addresses), workload)


# ------------------------------------------------------------------------------------------- running it


def _run(job: _Typed | _Untyped, servers: Sequence[str], wishes: _Wishes) -> None:
    import anyio

    anyio.run(_submit, job, servers, wishes)


async def _submit(job: _Typed | _Untyped, servers: Sequence[str], wishes: _Wishes) -> None:
    from gearflow.client import connect

    connect_timeout = min(5.0, wishes.timeout or 5.0)
    async with connect(*servers, connect_timeout=connect_timeout) as client:
        if wishes.background:
            console.write(await _hand_over(job, client, wishes))
        else:
            await _wait(await _attach(job, client, wishes), client, job, wishes)


async def _hand_over(job: _Typed | _Untyped, client: "Client", wishes: _Wishes) -> str:
    """Submit a job in the background; its handle."""
    if isinstance(job, _Typed):
        ref = await _with_options(job.task, wishes).abackground(*job.args, **job.kwargs)
        return ref.handle
    from gearflow.client import Priority

    handle = await client.submit_background(
        job.function,
        job.workload,
        # gearmand's queue plugins overwrite the rows of jobs without one
        unique=wishes.unique or uuid.uuid4().hex,
        priority=Priority(wishes.priority or "normal"),
        at=None if wishes.delay is None else time.time() + wishes.delay,
    )
    return handle.handle


async def _attach(job: _Typed | _Untyped, client: "Client", wishes: _Wishes) -> "ClientJob":
    """Submit a job that is waited for."""
    from gearflow.client import Priority

    if isinstance(job, _Untyped):
        priority = Priority(wishes.priority or "normal")
        return await client.submit(job.function, job.workload, unique=wishes.unique or "", priority=priority)
    task = _with_options(job.task, wishes)
    call = task.prepare(job.args, job.kwargs)
    task.require_support(client.servers)
    return await client.submit(call.function, call.workload, unique=call.unique, priority=call.priority)


def _with_options(task: "AnyTask", wishes: _Wishes) -> "AnyTask":
    """The task, with what the user wishes in the place of its own options."""
    wished = {"priority": wishes.priority, "unique": wishes.unique, "delay": wishes.delay}
    given: Any = {name: value for name, value in wished.items() if value is not None}
    return task.options(**given)


async def _wait(client_job: "ClientJob", client: "Client", job: _Typed | _Untyped, wishes: _Wishes) -> None:
    """Wait for the end of a job, showing what it says on the way, and print the result."""
    import anyio

    from gearflow.client import JobFailed
    from gearflow.tasks.failure import decode_failure

    try:
        with anyio.fail_after(wishes.timeout), Watch(job.function) as watch:
            async for event in client_job.events():
                watch.show(event)
            data = await client_job.result()
    except TimeoutError:
        raise await _timed_out(client_job, client, wishes) from None
    except JobFailed as error:
        raise _failed(decode_failure(error.exception, client_job.handle), job, wishes) from None
    except anyio.get_cancelled_exc_class():
        tell(f"stopped waiting for {client_job.handle}; it runs on if a worker has it already")
        raise
    _print(data, job)


async def _timed_out(client_job: "ClientJob", client: "Client", wishes: _Wishes) -> Failure:
    """What becomes of the job: the server drops one that no worker has yet when its last client goes."""
    import anyio

    from gearflow.client import JobHandle
    from gearflow.errors import GearflowError

    fate = "it may run on"
    with anyio.move_on_after(1.0):
        try:
            status = await client.status(JobHandle(client_job.handle, client_job.server))
        except GearflowError:
            pass
        else:
            fate = (
                "it runs on, and its result goes to nobody"
                if status.running
                else "no worker has taken it, and it is dropped unless others wait for it"
            )
    message = f"{client_job.handle} has not ended within {wishes.timeout:g} s: {fate}"
    return Failure(ExitCode.TIMED_OUT, message)


def _failed(failure: "TaskFailed", job: _Typed | _Untyped, wishes: _Wishes) -> Failure:
    """What the worker said of why the job failed."""
    from gearflow.errors import PayloadInvalid

    code = ExitCode.PAYLOAD_INVALID if isinstance(failure, PayloadInvalid) else ExitCode.TASK_FAILED
    reason = f"{failure.type}: {failure}" if failure.type else str(failure)
    lines = [f"{job.function} failed: {reason}"]
    if failure.errors:
        lines.append(render.payload_faults(failure.errors))
    if wishes.verbose and failure.traceback:
        lines.append(f"\non the worker:\n\n{failure.traceback.rstrip()}")
    return Failure(code, render.printable_lines("\n".join(lines)))


def _print(data: bytes, job: _Typed | _Untyped) -> None:
    """Print a result: JSON readably on a terminal, text with the end of its line, other bytes as they are."""
    kind: Any = job.task.payload.signature.result if isinstance(job, _Typed) else None
    shown = render.result(data) if console.is_terminal() and kind not in (str, bytes) else None
    if shown is not None:
        console.show(shown)
        return
    console.write_bytes(data)
    if (
        data
        and not data.endswith(b"\n")
        and (console.is_terminal() or (kind is not bytes and _is_text(data)))
    ):
        console.write_bytes(b"\n")


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
