"""Importing the user's modules with their tasks.

The current directory is searched first. All tasks that the import registers count, also those of other
modules that it imports.
"""

import importlib
import os
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from gearflow_cli.errors import CliError, ExitCode, tell
from gearflow_cli.tracebacks import own_lines

if TYPE_CHECKING:
    from gearflow.tasks.definition import TaskDefinition

    AnyTask: TypeAlias = TaskDefinition


def load(modules: Sequence[str]) -> "dict[str, AnyTask]":
    """Import modules. Returns all tasks that are registered then, by name.

    Raises:
        CliError: A module does not import.
    """
    from gearflow.tasks.registry import registry

    _search_here()
    for module in modules:
        _import(module)
    return registry.tasks()


def origin(modules: Sequence[str]) -> str:
    """The name for all that these modules declare to a server. Others do not touch it."""
    return ",".join(sorted(set(modules)))


def find_task(name: str, modules: Sequence[str], *, certain: bool) -> "AnyTask | None":
    """The task of that name in the modules, if they have it.

    Modules of the environment need not be importable everywhere. Without them, the servers know the name.
    """
    if not modules:
        return None
    from gearflow.errors import UnknownTask
    from gearflow.tasks.registry import registry

    try:
        tasks = load(modules)
    except CliError as failure:
        if certain:
            raise
        fault = failure.message.partition("\n")[0]
        tell(f"warning: GEARFLOW_TASKS: {fault}; going on without its types")
        return None
    try:
        return registry.find(name)
    except UnknownTask as error:
        if any(full.endswith(f".{name}") for full in tasks):
            raise  # several tasks have the name
        if certain and "." not in name:  # most likely misspelt
            tell(f"warning: {error}; asking the servers")
        return None


def load_served(modules: Sequence[str], patterns: Sequence[str] = ()) -> "list[AnyTask]":
    """Import modules. Returns the tasks that match a pattern and are not foreign.

    Raises:
        CliError: A module does not import, or there are no such tasks.
        TaskDefinitionError: A parameter or the result of a task cannot be sent.
    """
    tasks = [task for task in load(modules).values() if not task.foreign]
    if not tasks:
        raise CliError(
            ExitCode.MISCONFIGURED,
            f"{_listed(modules)}: there are no tasks to run; put @task (from gearflow import task) above the "
            "functions that workers shall run, or name the module that has them",
        )
    for pattern in patterns:
        if not any(_fits(task.name, pattern) for task in tasks):
            names = _listed(task.name for task in tasks)
            raise CliError(ExitCode.MISCONFIGURED, f"no task fits -f {pattern!r}; there are {names}")
    served = [task for task in tasks if not patterns or any(_fits(task.name, each) for each in patterns)]
    for task in served:
        with user_code(task):  # now, and not at its first job
            task.check()
    return served


@contextmanager
def user_code(task: "AnyTask") -> Generator[None]:
    """Run a block that calls code of a task: validators, the functions of ``unique=`` and ``backoff=``.

    It checks the types of the task first.

    Raises:
        CliError: The code fails, or returns a value that cannot be used.
        TaskDefinitionError: A parameter or the result of the task cannot be sent.
    """
    from gearflow.errors import GearflowError

    try:
        task.check()
        yield
    except (GearflowError, CliError):
        raise
    except Exception as error:
        raise CliError(ExitCode.MISCONFIGURED, f"task {task.name}:\n{own_lines(error)}") from error


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[2], pattern)


def _search_here() -> None:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def _import(module: str) -> None:
    if module.endswith(".py") or os.sep in module:
        name = module.removesuffix(".py").strip("./").replace(os.sep, ".")
        raise CliError(ExitCode.MISCONFIGURED, f"{module} is a file's path; give the module's name: {name}")
    if not all(part.isidentifier() for part in module.split(".")):
        raise CliError(
            ExitCode.MISCONFIGURED, f"{module!r} is no module's name; give one such as myapp.tasks"
        )
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:
        searched = f"\nsearched: {', '.join(path or '.' for path in sys.path)}"
        where = searched if isinstance(error, ModuleNotFoundError) else ""
        raise CliError(
            ExitCode.MISCONFIGURED, f"cannot import {module}\n{own_lines(error)}{where}"
        ) from error


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
