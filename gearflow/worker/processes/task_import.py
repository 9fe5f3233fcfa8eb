"""Finds the module that defines a task, so that another process can import it.

The program itself is imported under the name that it could be imported by, so what stands below
``if __name__ == "__main__":`` does not run again.
"""

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from gearflow.errors import UnknownTask
from gearflow.runtime.modules import importable_name
from gearflow.tasks.definition import TaskDefinition
from gearflow.tasks.registry import registry

_loading: list[str] = []
"""Modules that are being imported for their tasks."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The module of a task."""

    module: str
    """The name under which it is imported."""

    file: str | None = None
    """Of a program that was started by its path, which may be where no import finds it."""


def origin_of(task: TaskDefinition) -> Origin:
    """Where a task is defined.

    Raises:
        ValueError: Nowhere that another process could find it.
    """
    module: str = task.function.__module__
    name = importable_name(module)
    main = sys.modules["__main__"]
    if (name == module and name != "__main__") or main.__spec__ is not None:
        return Origin(name)
    file: str | None = getattr(main, "__file__", None)
    if file is None or not Path(file).is_file():
        raise ValueError(
            f"the task {task.name!r} is to run in a process of its own, which cannot find what was typed in "
            "or given by -c; put it into a module"
        )
    return Origin(name, str(Path(file).resolve()))


def find(name: str, origin: Origin) -> TaskDefinition:
    """The task of that name, as this process has it once its module is imported.

    Raises:
        UnknownTask: The module does not define it.
        BaseException: What the module raises.
    """
    task = registry.get(name)
    if task is None:
        _loading.append(origin.module)
        try:
            _load(origin)
        finally:
            _loading.pop()
        task = registry.get(name)
    if task is None:
        raise UnknownTask(
            f"importing {origin.module} does not define the task {name!r}; a task that runs in a process of "
            "its own has to be defined at the top level of its function's module"
        )
    return task


def forbid_while_loading() -> None:
    """Refuse to start a process from a module that is itself being imported by such a process.

    Raises:
        RuntimeError: It is.
    """
    if _loading:
        raise RuntimeError(
            f"importing {_loading[-1]} starts a worker; its processes import that module for its tasks, so "
            "put what it does as a program below 'if __name__ == \"__main__\":'"
        )


def _load(origin: Origin) -> ModuleType:
    if origin.file is None:
        return importlib.import_module(origin.module)
    spec = importlib.util.spec_from_file_location(origin.module, origin.file)
    assert spec is not None  # it is a program that Python runs
    assert spec.loader is not None
    module = sys.modules[origin.module] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[origin.module]
        raise
    return module
