"""``gearflow tasks``: what modules define."""

from dataclasses import fields
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

from gearflow_cli import console, load, options, render
from gearflow_cli.exits import ExitCode, Failure

if TYPE_CHECKING:
    from gearflow.tasks import Task

    AnyTask: TypeAlias = Task[..., Any]


def tasks(modules: options.Modules, as_json: options.Json = False) -> None:
    """List the tasks that MODULEs define: names, signatures, options."""
    found = list(load.load(modules).values())
    if not found:
        raise Failure(
            ExitCode.MISCONFIGURED,
            f"{', '.join(modules)}: no tasks; put @task (from gearflow import task) above functions",
        )
    if as_json:
        console.write(render.as_json([_as_json(task) for task in found]))
        return
    header = ["task", "signature", "options"]
    rows = [[task.name, render.signature(task), _options(task)] for task in found]
    if console.is_terminal():
        console.show(render.table(header, rows))
    else:
        console.write(render.columns(header, rows))


def _as_json(task: "AnyTask") -> dict[str, Any]:
    schema = task.json_schema()
    return {
        "name": task.name,
        "signature": render.signature(task),
        "description": task.function.__doc__,
        "options": _set_options(task),
        "payload": schema["payload"],
        "result": schema["result"],
    }


def _options(task: "AnyTask") -> str:
    return ", ".join(
        name if value is True else f"{name}={value}" for name, value in _set_options(task).items()
    )


def _set_options(task: "AnyTask") -> dict[str, Any]:
    """The options that its definition sets."""
    shown: dict[str, Any] = {"timeout": task.timeout, "foreign": task.foreign or None}
    for option in fields(task.call_options):
        value = getattr(task.call_options, option.name)
        if value != option.default:
            shown[option.name] = _named(value)
    return {name: value for name, value in shown.items() if value is not None}


def _named(value: Any) -> Any:
    """An option's value as JSON has it."""
    match value:
        case Enum():
            return value.value
        case bool() | int() | float():
            return value
        case _ if callable(value):
            return getattr(value, "__qualname__", repr(value))
        case _:
            return str(value)
