"""Task names -> tasks, for workers and the command line. Duplicates are errors."""

import threading
from difflib import get_close_matches
from typing import Any, Final, TypeAlias

from gearflow.errors import TaskDefinitionError, UnknownTask
from gearflow.tasks.task import Task

AnyTask: TypeAlias = Task[..., Any]

_SHOWN: Final = 5  # names in an error


class Registry:
    """The tasks of a process. Owns state; may be used by several threads."""

    def __init__(self) -> None:
        self._tasks: dict[str, AnyTask] = {}
        self._lock = threading.Lock()

    def add(self, task: AnyTask) -> None:
        """Take a task in.

        A function that is defined again (its module was reloaded, or imported under two names) replaces
        the one before.

        Raises:
            TaskDefinitionError: Another function has that name already.
        """
        with self._lock:
            known = self._tasks.get(task.name)
            if known is not None and _origin(known) != _origin(task):
                raise TaskDefinitionError(
                    f"two functions are to be the task {task.name!r}: {_shown(known)} and {_shown(task)}; "
                    "give one of them another name, @task(name=...)"
                )
            self._tasks[task.name] = task

    def get(self, name: str) -> AnyTask | None:
        """The task of exactly that name."""
        return self._tasks.get(name)

    def tasks(self) -> dict[str, AnyTask]:
        """All tasks by name, in the order in which they were defined."""
        with self._lock:
            return dict(self._tasks)

    def find(self, name: str) -> AnyTask:
        """The task of that full name, else the only one whose name ends in ``.name``.

        Raises:
            UnknownTask: There is none, or more than one ends so; the message offers names.
        """
        tasks = self.tasks()
        if name in tasks:
            return tasks[name]
        candidates = [full for full in tasks if full.endswith(f".{name}")]
        if len(candidates) == 1:
            return tasks[candidates[0]]
        if candidates:
            raise UnknownTask(f"{name!r} may be {_either(candidates)}; give the full name")
        raise UnknownTask(f"no task named {name!r}{_known(name, list(tasks))}")


def _known(name: str, names: list[str]) -> str:
    if not names:
        return ": no task is defined; is the module with its @task imported?"
    bare = {full.rpartition(".")[2]: full for full in names}
    near = [
        *get_close_matches(name, names, n=_SHOWN),
        *(bare[match] for match in get_close_matches(name.rpartition(".")[2], bare, n=_SHOWN)),
    ]
    if near:
        return f"; did you mean {_either(list(dict.fromkeys(near)))}?"
    more = ", ..." if len(names) > _SHOWN else ""
    return f" (known: {', '.join(names[:_SHOWN])}{more}); is its module imported?"


def _either(names: list[str]) -> str:
    return " or ".join(repr(name) for name in names[:_SHOWN])


def _origin(task: AnyTask) -> tuple[str, str]:
    code = getattr(task.function, "__code__", None)
    return getattr(code, "co_filename", task.function.__module__), task.function.__qualname__


def _shown(task: AnyTask) -> str:
    return f"{task.function.__module__}.{task.function.__qualname__}"


registry: Final = Registry()
"""The tasks that ``@task`` has defined in this process."""
