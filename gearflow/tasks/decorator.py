"""``@task``: makes a task of a function and registers it."""

import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Final, NoReturn, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

from gearflow.errors import TaskDefinitionError
from gearflow.runtime.modules import importable_name
from gearflow.tasks.context import Context
from gearflow.tasks.durations import bounded
from gearflow.tasks.options import Options, TaskOptions, no_option, retry, run_limit
from gearflow.tasks.registry import registry
from gearflow.tasks.task import AsyncTask, Task

P = ParamSpec("P")
R = TypeVar("R")

RESERVED: Final = "gearflow:"
"""How the names of functions begin that the server itself answers."""


_OPTIONS: Final = dict.fromkeys(("name", *TaskOptions.__annotations__))

_READERS: Final[dict[str, Callable[[str, Any], Any]]] = {
    "timeout": run_limit,
    "retries": retry,
    "keep": bounded,
}
"""The options that the task itself has. The others are those of its calls."""

_NOT_FOREIGN: Final = {
    "timeout": "only gearflow's workers apply it, so limit the wait instead, with result(timeout=...)",
    "retries": "only gearflow's workers apply them, so call it again instead",
    "executor": "it says how gearflow's workers run a task, so leave it out",
}


class TaskDecorator(Protocol):
    """The type of ``task(name=...)``, which you apply to a function."""

    # The first form that fits wins: a function with a Context also fits the ones without, a coroutine
    # function also fits the plain one, with a coroutine for its result.
    @overload
    def __call__(
        self, fn: Callable[Concatenate[Context, P], Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Context, P], R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Task[P, R]: ...


@overload
def task(fn: Callable[Concatenate[Context, P], Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
@overload
def task(fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
@overload
def task(fn: Callable[Concatenate[Context, P], R], /) -> Task[P, R]: ...
@overload
def task(fn: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(**options: Unpack[TaskOptions]) -> TaskDecorator: ...
def task(fn: Callable[..., Any] | None = None, /, **options: Unpack[TaskOptions]) -> Any:
    """Make a function a task, for workers and callers. Write ``@task``, or ``@task(name=..., timeout=...)``.

    Parameters and result need annotations, because their types decide what travels. The worker passes a first
    parameter that is annotated ``Context``.

    Args:
        fn: The function.
        name: The task's name on servers. By default ``module.function``.
        timeout: Seconds a run may take on the worker. A call may override it.
        retries: How many more runs may follow failed ones, as a number or a ``Retry``. A call may override
            it.
        keep: Seconds for which gearflow's server keeps the outcome of background calls. A call may override
            it. The outcome of other calls is kept only if the call says so.
        unique, priority, expires, resubmit: As in ``CallOptions``, for all calls that do not set their own.
        foreign: Another program runs the task, in any language. The function is a signature, and its body
            never runs.
        executor: Where a worker runs a ``def`` function. ``"thread"`` is the default. ``"process"`` is for
            CPU-bound work, which then does not delay others and can be stopped.

    Raises:
        TaskDefinitionError: The function cannot be a task as it is written. The message names the remedy.
        TypeError: There is no such option.
        ValueError: An option is not valid.
    """
    for option in options:
        if option not in _OPTIONS:  # a type checker reports it, too
            raise TypeError(f"@task: {no_option(option, _OPTIONS)}")
    given = {option: value for option, value in options.items() if value is not None}
    name, foreign, executor = options.get("name"), options.get("foreign", False), options.get("executor")
    if foreign:
        for option in given.keys() & _NOT_FOREIGN.keys():
            raise TaskDefinitionError(
                f"@task(foreign=True, {option}=...): another program runs this task; {_NOT_FOREIGN[option]}"
            )
    if executor not in (None, "thread", "process"):
        raise ValueError(f"executor={executor!r}: it is 'thread' or 'process'")
    own = {option: read(option, given[option]) for option, read in _READERS.items() if option in given}
    of_calls = given.keys() - own.keys() - {"name", "foreign", "executor"}
    call_options = Options().updated({option: given[option] for option in of_calls})

    def decorate(function: Callable[..., Any]) -> Task[..., Any]:
        if not inspect.isroutine(function):
            _refuse(function, "it is not a function; write 'def', and put @task above it")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            _refuse(function, "a task cannot yield yet; return a list, or report progress with a Context")
        is_async = inspect.iscoroutinefunction(function)
        if is_async and executor is not None:
            _refuse(
                function,
                f"a coroutine runs on the event loop; write 'def', or leave executor={executor!r} out",
            )
        kind = cast("type[Task[..., Any]]", AsyncTask if is_async else Task)
        made = kind(
            function,
            name=_default_name(function) if name is None else _valid_name(name),
            foreign=foreign,
            executor=executor or "thread",
            options=call_options,
            **own,
        )
        registry.add(made)
        return made

    return decorate if fn is None else decorate(fn)


def _refuse(function: Any, fault: str) -> NoReturn:
    raise TaskDefinitionError(f"{getattr(function, '__qualname__', function)!s} cannot be a task: {fault}")


def _default_name(function: Callable[..., Any]) -> str:
    """``module.function``; what is defined inside another function goes by its own name."""
    qualified: str = function.__qualname__
    return f"{importable_name(function.__module__)}.{qualified.rpartition('<locals>.')[2]}"


def _valid_name(name: str) -> str:
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]  (not all callers are checked)
        raise TaskDefinitionError(f"{name!r} cannot be a task's name: take a str")
    if not name or not name.isprintable() or any(character.isspace() for character in name):
        raise TaskDefinitionError(f"{name!r} cannot be a task's name: take printable text without spaces")
    if name.startswith(RESERVED):
        raise TaskDefinitionError(
            f"{name!r} cannot be a task's name: {RESERVED}* are the server's own functions"
        )
    return name
