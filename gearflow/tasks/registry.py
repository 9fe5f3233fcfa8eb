"""Task names -> tasks, for workers and the command line. Duplicates are errors."""

import inspect
import threading
import weakref
from collections.abc import Callable
from difflib import get_close_matches
from types import CodeType
from typing import Any, Final, NamedTuple, TypeAlias

from gearflow.errors import TaskDefinitionError, UnknownTask
from gearflow.tasks.definition import TaskDefinition

AnyTask: TypeAlias = TaskDefinition

_SHOWN: Final = 5  # names in an error


class Registry:
    """The tasks of a process. Owns state, and several threads may use it."""

    def __init__(self) -> None:
        self._tasks: dict[str, AnyTask] = {}
        self._places: dict[str, _Place] = {}
        self._lock = threading.Lock()

    def add(self, task: AnyTask) -> None:
        """Add a task.

        A function that is defined again (its module was reloaded, or imported under two names) replaces the
        earlier one.

        Raises:
            TaskDefinitionError: Another function has that name already.
        """
        place = _Place.of(task.function)
        with self._lock:
            known = self._tasks.get(task.name)
            if known is not None and _origin(known) != _origin(task):
                raise _two_functions(task.name, _shown(known), _shown(task))
            if known is not None and place.is_beside(before := self._places[task.name]):
                one, other = (f"{_shown(task)} in line {line}" for line in (before.line, place.line))
                raise _two_functions(task.name, one, other)
            self._tasks[task.name] = task
            self._places[task.name] = place

    def get(self, name: str) -> AnyTask | None:
        """Return the task with exactly that name, or None."""
        return self._tasks.get(name)

    def tasks(self) -> dict[str, AnyTask]:
        """Return all tasks by name, in the order in which they were defined."""
        with self._lock:
            return dict(self._tasks)

    def find(self, name: str) -> AnyTask:
        """Return the task with that full name, else the only one whose name ends in ``.name``.

        Raises:
            UnknownTask: There is no such task, or more than one. The message suggests names.
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


class _Place(NamedTuple):
    """Where a function is defined: its line, and the code that was being executed."""

    line: int
    code: "weakref.ref[CodeType] | None"

    @classmethod
    def of(cls, function: Callable[..., Any]) -> "_Place":
        """The place of a function, while it is being defined."""
        function = inspect.unwrap(function)
        line = getattr(getattr(function, "__code__", None), "co_firstlineno", 0)
        code = _executed_for(getattr(function, "__globals__", None))
        return cls(line, None if code is None else weakref.ref(code))

    def is_beside(self, other: "_Place") -> bool:
        """Whether both are in one execution of a module, as far as that is certain."""
        if self.code is None or other.code is None or self.line == other.line:
            return False  # by the line: a function that is made twice in one place
        code = self.code()  # a reloaded module has new code, and a cell of a notebook each time
        return code is not None and code is other.code()


def _executed_for(variables: object) -> CodeType | None:
    """The code at a module's top level that is being executed, by the module's variables."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_globals is variables and not frame.f_code.co_flags & inspect.CO_OPTIMIZED:  # no function
            return frame.f_code
        frame = frame.f_back
    return None


def _two_functions(name: str, one: str, other: str) -> TaskDefinitionError:
    return TaskDefinitionError(
        f"two functions are to be the task {name!r}: {one} and {other}; "
        "give one of them another name, @task(name=...)"
    )


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
