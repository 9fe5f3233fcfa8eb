"""``gearflow tasks`` lists the tasks of modules."""

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

from gearflow_cli import imports, options, output
from gearflow_cli.errors import CliError, ExitCode
from gearflow_cli.options import out

if TYPE_CHECKING:
    from gearflow.tasks import Retry
    from gearflow.tasks.definition import TaskDefinition

    AnyTask: TypeAlias = TaskDefinition


_SECONDS: Final = ("timeout", "keep", "expires")


def tasks(
    modules: options.Modules,
    explain: Annotated[
        bool, out("--explain", "Show each task's options, and when it runs again after a failure.")
    ] = False,
    wide: options.Wide = False,
    as_json: options.Json = False,
) -> None:
    """List the tasks that modules define, with their signatures and options. Needs no server.

    Examples:
      gearflow tasks myapp.tasks
      gearflow tasks myapp.tasks --explain
    """
    found = list(imports.load(modules).values())
    if not found:
        raise CliError(
            ExitCode.MISCONFIGURED,
            f"{', '.join(modules)}: no tasks; put @task (from gearflow import task) above functions",
        )
    if as_json:
        output.write_json([_as_json(task) for task in found])
        return
    if explain:
        output.write("\n\n".join(map(_explained, found)))
        return
    header = ["task", "signature", "options"]
    rows = [[task.name, output.signature(task), _options(task)] for task in found]
    cut = {"options": 12, "signature": 30, "task": 16}
    output.write_table(header, rows, cut=cut, optional=["options"], wide=wide, empty="")


def _as_json(task: "AnyTask") -> dict[str, Any]:
    with imports.user_code(task):
        return _described(task)


def _described(task: "AnyTask") -> dict[str, Any]:
    schema = task.json_schema()
    return {
        "name": task.name,
        "signature": output.signature(task),
        "description": task.function.__doc__,
        "options": _set_options(task),
        "payload": schema["payload"],
        "result": schema["result"],
    }


def _options(task: "AnyTask") -> str:
    with imports.user_code(task):
        set_options = _set_options(task)
    if task.retries is not None:
        set_options["retries"] = task.retries.attempts - 1
    if task.batch is not None:
        set_options["batch"] = task.batch.size
    return ", ".join(name if value is True else f"{name}={value}" for name, value in set_options.items())


def _explained(task: "AnyTask") -> str:
    """A task with its options, one per line, and the schedule of its retries."""
    with imports.user_code(task):
        set_options, schedule = _set_options(task), _schedule(task.retries)
    rows = [
        (name, "yes" if value is True else f"{value} s" if name in _SECONDS else str(value))
        for name, value in set_options.items()
        if name not in ("retries", "batch")
    ]
    if task.batch is not None:
        rows.append(("batch", f"up to {task.batch.size} items, within {task.batch.seconds:g} s of the first"))
    rows.append(("retries", "\n".join(schedule)))
    lines = output.labelled(rows).splitlines()
    return "\n".join([f"{task.name}{output.signature(task)}", *(f"  {line}" for line in lines)])


def _schedule(retry: "Retry | None") -> list[str]:
    if retry is None or retry.attempts == 1:
        return ["none: a run that fails is the last"]
    lines = [str(retry)]
    if retry.jitter and retry.attempts > 1:
        lines.append("each delay is drawn between half of it and all of it")
    return [*lines, f"if it raises {', '.join(retry.to_plan().on)}"]


def _set_options(task: "AnyTask") -> dict[str, Any]:
    """The options that the definition of a task sets."""
    shown: dict[str, Any] = {"timeout": task.timeout, "keep": task.keep, "foreign": task.foreign or None}
    if task.executor != "thread":
        shown["executor"] = task.executor
    if task.batch is not None:
        shown["batch"] = {"size": task.batch.size, "wait": task.batch.seconds}
    shown |= {"stream_keep": task.stream_keep, "resumable": task.resumable or None}
    shown |= {"limits": _limits(task), "fair": None if task.fair is None else _named(task.fair)}
    shown |= {name: _named(value) for name, value in task.call_options.changed().items()}
    if task.retries is not None:
        shown["retries"] = {
            "attempts": task.retries.attempts,
            **task.retries.to_plan().model_dump(mode="json"),
        }
    return {name: value for name, value in shown.items() if value is not None}


def _limits(task: "AnyTask") -> str | None:
    """The limits of a task, such as ``20, 1 by /customer, shopify 100/m``."""
    if not task.limits:
        return None
    from gearflow.tasks.declared_limits import limit_value

    texts: list[str] = []
    for limit in task.limits:
        own = str(limit.name).startswith(f"{task.name}:")
        key = "" if limit.key is None else f"by {_named(limit.key)}"
        texts.append(" ".join(filter(None, ["" if own else str(limit.name), str(limit_value(limit)), key])))
    return ", ".join(texts)


def _named(value: Any) -> Any:
    """The value of an option for JSON."""
    match value:
        case Enum():
            return value.value
        case bool() | int() | float():
            return value
        case _ if callable(value):
            return getattr(value, "__qualname__", repr(value))
        case _:
            return str(value)
