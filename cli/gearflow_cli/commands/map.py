"""``gearflow map`` runs a task for each line of standard input."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from gearflow_cli import callees, function_names, imports, options, output, server_queries
from gearflow_cli.callees import LineTask, Reducer, as_value
from gearflow_cli.errors import CliError, ExitCode, explain, tell
from gearflow_cli.help import Panel
from gearflow_cli.lines import Line, LineWriter, read_blocks, read_lines
from gearflow_cli.options import argument, how, out, what
from gearflow_cli.text import as_line, printable

if TYPE_CHECKING:
    from gearflow.client import Client, ClientJob, JobRequest
    from gearflow.tasks import FailedItem

_SHOWN: Final = 10
"""Failures that are shown one by one. The last line has their number."""


_GROUP: Final = 1000
"""Background jobs that are submitted at once."""


class OnError(StrEnum):
    """What an item that fails does."""

    RAISE = "raise"
    COLLECT = "collect"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class _Choices:
    """What is called for the lines, and how."""

    task: LineTask
    reducer: Reducer | None
    servers: Sequence[str]
    spread: bool | None
    window: int | None
    chunk: int
    errors: OnError
    ordered: bool
    raw: bool
    fan_in: int
    timeout: float | None
    verbose: bool
    progress: bool


def map(  # noqa: A001  (the command's name)
    context: typer.Context,
    name: Annotated[str, argument(Panel.WHAT, "NAME", "The task's full name, or its end after a dot.")],
    modules: options.TaskModules = None,
    raw: options.Raw = False,
    reducer: Annotated[
        str | None,
        what("--reduce", "Join all results to one with this task, which takes a list.", "NAME", env=None),
    ] = None,
    background: options.Background = False,
    chunk: Annotated[int, how("--chunk", "How many lines share a job. Needs the module.", "N", min=1)] = 1,
    window: Annotated[
        int | None,
        how(
            "--window -j",
            "The most jobs in flight. By default their speed decides.",
            "N",
            min=1,
        ),
    ] = None,
    ordered: Annotated[
        bool, how("--ordered", "Write results in the order of the lines, and not as jobs end.")
    ] = False,
    errors: Annotated[
        OnError,
        how(
            "--errors",
            "If a line fails: stop (raise), write the error in its place (collect), or leave it out (skip).",
            "raise|collect|skip",
        ),
    ] = OnError.RAISE,
    fan_in: Annotated[int, how("--fan-in", "How many values one job of --reduce joins.", "N", min=2)] = 16,
    timeout: options.Timeout = None,
    delay: options.Delay = None,
    expires: options.Expires = None,
    priority: options.Priorities = None,
    keep: options.Keep = None,
    retries: options.Retries = None,
    run_limit: options.RunLimit = None,
    servers: options.Servers = None,
    spread: options.Spread = None,
    progress: Annotated[bool, out("--progress", "Show a bar, if stderr is a terminal.")] = False,
    verbose: options.Verbose = False,
) -> None:
    """Run a task for each line of standard input, and print one line for each result.

    A line is JSON, or the text that the task takes. Results are JSON.

    Examples:
      gearflow map -m myapp.tasks resize --ordered
      gearflow map square --reduce total --errors skip
    """
    import anyio

    chosen = {"priority": priority, "delay": delay, "expires": expires, "keep": keep}
    chosen |= {"retries": retries, "timeout": run_limit}
    given = {name: value for name, value in chosen.items() if value is not None}
    waits = _waits(context, background)
    if waits and delay is not None:
        raise CliError(ExitCode.USAGE, "--delay is for jobs that nobody waits for: add --bg")
    if errors is OnError.COLLECT and (reducer is not None or not waits):
        raise CliError(ExitCode.USAGE, "--errors collect puts errors among the results: here, take skip")
    certain = options.is_given_here(context, "modules")
    addresses = server_queries.addresses_of(servers)
    found, task = _find(name, modules or [], addresses, certain=certain, raw=raw)
    takes_text = raw or callees.takes_text(found, task, addresses)
    if chunk > 1 and task is None:
        raise CliError(
            ExitCode.USAGE,
            "--chunk needs the task's module with -m, which shows that the worker is gearflow's own",
        )
    joined = None if reducer is None else Reducer(*_find(reducer, modules or [], addresses, certain=certain))
    choices = _Choices(
        LineTask(found, None if raw else task, given, takes_text=takes_text),
        joined,
        servers or [],
        spread,
        window,
        chunk,
        errors,
        ordered,
        raw,
        fan_in,
        timeout,
        verbose,
        progress,
    )
    anyio.run(_run if waits else _submit_all, choices)


def _waits(context: typer.Context, background: bool) -> bool:
    """Whether to wait for results. The command line decides between options that exclude each other.

    Raises:
        CliError: It has both.
    """
    about_results = {
        "reducer": "--reduce",
        "window": "--window",
        "ordered": "--ordered",
        "timeout": "--timeout",
    }
    given = [option for name, option in about_results.items() if options.is_given_here(context, name)]
    if background and given and options.is_given_here(context, "background"):
        raise CliError(ExitCode.USAGE, f"{given[0]} is about results, and --bg waits for none")
    return bool(given) or not background


def _find(
    name: str, modules: Sequence[str], addresses: Sequence[str], *, certain: bool, raw: bool = False
) -> "tuple[str, callees.AnyTask | None]":
    """The function for a name, and its task if a module has it."""
    if not name or not options.is_utf8(name):
        raise CliError(ExitCode.USAGE, f"{name!r} is no name of a task; give one such as myapp.tasks.add")
    task = imports.find_task(name, modules, certain=certain)
    if task is not None and task.is_stream:
        raise _yields(task.name)
    return (function_names.resolve(name, addresses), None) if task is None else (task.name, task)


def _yields(name: str) -> CliError:
    return CliError(ExitCode.USAGE, f"{name} yields values; gearflow submit runs it")


# ------------------------------------------------------------------------------------------ for results


async def _run(choices: _Choices) -> None:
    import anyio

    from gearflow.client import connect

    async with connect(*choices.servers, spread=choices.spread):
        run = _Run(choices)
        try:
            with anyio.fail_after(choices.timeout):
                await run.perform()
        except TimeoutError:
            text = f"not all results came within {choices.timeout:g} s; jobs in flight are cancelled"
            raise CliError(ExitCode.TIMED_OUT, text) from None
        except anyio.get_cancelled_exc_class():
            tell("stopped; jobs in flight are cancelled")
            raise


class _Run:
    """A map over the lines. Owns its results."""

    def __init__(self, choices: _Choices) -> None:
        from gearflow.tasks.mapping.run import MapPlan, Report

        self._choices = choices
        self._failures = Report(self._on_failure, self._require_no_values)
        errors: Any = "report" if choices.errors is OnError.COLLECT else choices.errors.value
        self._plan = MapPlan(
            choices.task, choices.window, errors, choices.ordered, choices.progress, chunk=choices.chunk
        )

    async def perform(self) -> None:
        """Print all results.

        Raises:
            CliError: A line failed.
        """
        from gearflow.errors import PayloadInvalid, TaskFailed

        failures = self._failures
        try:
            await (self._print_each() if self._choices.reducer is None else self._print_reduced())
        except (TaskFailed, PayloadInvalid) as error:
            if self._choices.errors is OnError.RAISE and failures.errors:
                raise self._in_words(failures.errors[-1]) from None
            if self._choices.reducer is not None and isinstance(error, TaskFailed):
                name = self._choices.reducer.name
                raise output.write_failure(error, name, verbose=self._choices.verbose) from None
            raise
        if failures.failed:
            lines = "1 line" if failures.failed == 1 else f"{failures.failed:,} lines"
            raise CliError(ExitCode.TASK_FAILED, f"{lines} failed")

    async def _print_each(self) -> None:
        """Print a line for each result, as it comes."""
        from gearflow.tasks import FailedItem
        from gearflow.tasks.mapping.results import AsyncRun

        writer = LineWriter()
        is_text, raw = self._choices.task.returns_text, self._choices.raw
        run = AsyncRun(self._plan, self._lines(), self._failures)
        with closing(run):
            async for result in run:
                if isinstance(result, FailedItem):
                    line = _as_json(result)
                else:
                    line = result if raw else as_value(result, is_text=is_text)
                await writer.write(line)
                if not run.has_due:
                    await writer.flush()
            await writer.flush()

    async def _print_reduced(self) -> None:
        """Print the one value that the reducer makes of all results."""
        from gearflow.tasks.mapping.results import AsyncResults

        reducer: Any = self._choices.reducer
        results: AsyncResults[Any] = AsyncResults(self._plan, self._lines(), self._failures)
        output.write_result(await results.reduce(reducer, fan_in=self._choices.fan_in))

    async def _lines(self) -> AsyncGenerator[Line]:
        is_nothing = self._choices.task.is_nothing
        async for line in read_lines():
            if not is_nothing(line):
                yield line

    def _on_failure(self, failed: "FailedItem") -> None:
        """Report a line that is left out."""
        if self._choices.errors is OnError.SKIP:
            if self._failures.failed <= _SHOWN:
                tell(self._in_words(failed).message)
            if self._failures.failed == _SHOWN:
                tell("more lines that fail are only counted")

    def _require_no_values(self, job: "ClientJob") -> None:
        """Raise CliError if the worker has sent values before the result, which a line has no place for."""
        from gearflow.protocol.packets import WorkData

        if any(isinstance(event, WorkData) for event in job.take_events()):
            raise _yields(self._choices.task.name)

    def _in_words(self, failed: "FailedItem") -> CliError:
        from gearflow.errors import PayloadInvalid

        if isinstance(failed.error, PayloadInvalid) and not failed.error.errors:
            text = f"line {failed.item.number}: {failed.error.message}"
            return CliError(ExitCode.PAYLOAD_INVALID, text)
        failure = output.write_failure(failed.error, self._choices.task.name, verbose=self._choices.verbose)
        return CliError(failure.code, f"line {failed.item.number}: {failure.message}")


def _as_json(failed: "FailedItem") -> bytes:
    """A failure in the place of a result."""
    error = failed.error
    shown = {"line": failed.item.number, "type": error.type, "message": error.message}
    if error.errors:
        shown["errors"] = error.errors
    return as_line({"error": shown}).encode()


# ------------------------------------------------------------------------------------- in the background


async def _submit_all(choices: _Choices) -> None:
    from gearflow.client import connect

    writer = LineWriter()
    failed = 0
    async with connect(*choices.servers, spread=choices.spread) as client:
        async for block in read_blocks():
            lines = [line for line in block if not choices.task.is_nothing(line)]
            for start in range(0, len(lines), _GROUP):
                for failure in await _submit(lines[start : start + _GROUP], client, choices, writer):
                    if choices.errors is OnError.RAISE:
                        raise failure
                    failed += 1
                    tell(failure.message)
    if failed:
        some = "1 line was" if failed == 1 else f"{failed:,} lines were"
        raise CliError(ExitCode.TASK_FAILED, f"{some} not submitted")


async def _submit(
    lines: Sequence[Line], client: "Client", choices: _Choices, writer: LineWriter
) -> list[CliError]:
    """Submit a job for each line, and print the handles. Returns what was not submitted."""
    from gearflow.errors import PayloadInvalid

    calls: dict[int, JobRequest] = {}
    failures: list[CliError] = []
    for line in lines:
        try:
            calls[line.number] = choices.task.request(line, detached=True)
        except PayloadInvalid as error:
            failures.append(_not_sent(line.number, error))
            if choices.errors is OnError.RAISE:
                break
    for number, outcome in zip(calls, await client.submit_many(list(calls.values())), strict=True):
        if isinstance(outcome, Exception):
            failures.append(_not_sent(number, outcome))
        else:
            await writer.write(printable(outcome.handle).encode())
    await writer.flush()
    return failures


def _not_sent(number: int, error: Exception) -> CliError:
    failure = explain(error)
    return CliError(failure.code, f"line {number}: {failure.message}")
