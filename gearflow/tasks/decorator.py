"""``@task``: makes a task of a function and registers it."""

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, Concatenate, Final, NoReturn, ParamSpec, Protocol, TypeVar, Unpack, overload

from gearflow.errors import TaskDefinitionError
from gearflow.runtime.modules import importable_name
from gearflow.tasks.batch import AsyncBatchTask, Batch, BatchDecorator, BatchTask
from gearflow.tasks.context import Context
from gearflow.tasks.definition import TaskDefinition
from gearflow.tasks.durations import bounded
from gearflow.tasks.limits import named, task_limits
from gearflow.tasks.options import FOR_STREAMS, Options, TaskOptions, no_option, retry, run_limit, size
from gearflow.tasks.redaction import read_fields
from gearflow.tasks.registry import registry
from gearflow.tasks.schedules import check_schedules, read_schedules
from gearflow.tasks.signature import ASYNC_STREAMS, SYNC_STREAMS, stream_class
from gearflow.tasks.stream_task import AsyncStreamTask, StreamTask
from gearflow.tasks.task import AsyncTask, Task

P = ParamSpec("P")
R = TypeVar("R")
Y = TypeVar("Y")

RESERVED: Final = "gearflow:"
"""How the names of functions begin that the server itself answers."""


_OPTIONS: Final = dict.fromkeys(("name", *TaskOptions.__annotations__, "batch"))

_OF_TASK: Final = {"name", "foreign", "executor", "resumable", "limits", "fair"}

_READERS: Final[dict[str, Callable[[str, Any], Any]]] = {
    "timeout": run_limit,
    "retries": retry,
    "keep": bounded,
    "stream_keep": size,
    "schedule": read_schedules,
    "redact": read_fields,
}
"""The options that the task itself has. The others are those of its calls."""

_NOT_FOREIGN: Final = {
    "timeout": "only gearflow's workers apply it, so limit the wait instead, with result(timeout=...)",
    "retries": "only gearflow's workers apply them, so call it again instead",
    "executor": "it says how gearflow's workers run a task, so leave it out",
    "redact": "only gearflow's workers report it to the server, so leave it out",
    "resumable": "only gearflow's workers know how many values were taken, so leave it out",
    "batch": "only gearflow's workers collect jobs, so leave it out, and write the signature of one item",
}


class TaskDecorator(Protocol):
    """The type of ``task(name=...)``, which you apply to a function."""

    # The first form that fits wins: a function with a Context also fits the ones without. A function that
    # yields, and a coroutine function, also fit the plain one, with an iterator or a coroutine as the result.
    # Each ignore is for that: mypy and pyright report forms whose results differ and that overlap.
    @overload
    def __call__(  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
        self, fn: Callable[Concatenate[Context, P], AsyncIterator[Y]], /
    ) -> AsyncStreamTask[P, Y]: ...
    @overload
    def __call__(self, fn: Callable[P, AsyncIterator[Y]], /) -> AsyncStreamTask[P, Y]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, fn: Callable[Concatenate[Context, P], Iterator[Y]], /) -> StreamTask[P, Y]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, fn: Callable[P, Iterator[Y]], /) -> StreamTask[P, Y]: ...  # type: ignore[overload-overlap]
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


# The same forms, with the same ignores for the same reason, and one more with options.
@overload
def task(  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
    fn: Callable[Concatenate[Context, P], AsyncIterator[Y]], /
) -> AsyncStreamTask[P, Y]: ...
@overload
def task(fn: Callable[P, AsyncIterator[Y]], /) -> AsyncStreamTask[P, Y]: ...  # type: ignore[overload-overlap]
@overload
def task(fn: Callable[Concatenate[Context, P], Iterator[Y]], /) -> StreamTask[P, Y]: ...  # type: ignore[overload-overlap]
@overload
def task(fn: Callable[P, Iterator[Y]], /) -> StreamTask[P, Y]: ...  # type: ignore[overload-overlap]
@overload
def task(fn: Callable[Concatenate[Context, P], Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
@overload
def task(fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
@overload
def task(fn: Callable[Concatenate[Context, P], R], /) -> Task[P, R]: ...
@overload
def task(fn: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(*, batch: Batch, **options: Unpack[TaskOptions]) -> BatchDecorator: ...
@overload
def task(**options: Unpack[TaskOptions]) -> TaskDecorator: ...
def task(
    fn: Callable[..., Any] | None = None, /, *, batch: Batch | None = None, **options: Unpack[TaskOptions]
) -> Any:
    """Make a function a task, for workers and callers. Write ``@task``, or ``@task(name=..., timeout=...)``.

    Parameters and result need annotations, because their types decide what travels. The worker passes a first
    parameter that is annotated ``Context``. A function whose result is annotated ``Iterator[T]``,
    ``Generator[T, ...]``, ``AsyncIterator[T]`` or ``AsyncGenerator[T, ...]`` becomes a ``StreamTask``, which
    sends each value as it is yielded.

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
        batch: Collects jobs: the function takes a list of items and returns a list of results. Callers give
            one item each. Write ``batch=Batch(100, wait=0.2)``.
        stream_keep: Bytes of the values of a background call that gearflow's server keeps, such as
            ``"16MiB"``. The default is 1 MiB. A call may override it.
        resumable: A further run of a task that yields goes on behind the values that were taken from the
            run before. ``Context.parts`` says how many they are.
        limits: Each a ``Concurrency`` or a ``Rate``, which gearflow's server applies over all workers.
        fair: The key of groups of jobs that take turns, such as the tenants. It is a JSON pointer into the
            payload, or a function of the arguments, as for the key of a limit.
        redact: Names of fields of the payload that gearflow's server does not show to operators, such as
            ``{"card"}``, at every depth. ``{"*"}`` hides the payload. The server hides them until a worker
            reports others, such as ``set()``.
        schedule: When gearflow's server runs the task by itself, as a ``Cron``, an ``Every`` or a list of
            them. ``gearflow cron apply`` tells the server.

    Raises:
        TaskDefinitionError: The function cannot be a task as it is written. The message names the remedy.
        TypeError: There is no such option.
        ValueError: An option is not valid.
    """
    given = {option: value for option, value in options.items() if value is not None}
    _check(options, given, batch)
    name, foreign, executor = options.get("name"), options.get("foreign", False), options.get("executor")
    resumable = options.get("resumable", False)
    own = {option: read(option, given[option]) for option, read in _READERS.items() if option in given}
    declared = task_limits(options.get("limits") or (), options.get("fair"))
    of_calls = given.keys() - own.keys() - _OF_TASK
    call_options = Options().updated({option: given[option] for option in of_calls})

    def decorate(function: Callable[..., Any]) -> TaskDefinition:
        if not inspect.isroutine(function):
            _refuse(function, "it is not a function; write 'def', and put @task above it")
        is_coroutine = inspect.iscoroutinefunction(function)
        stream = _stream_class(function, is_coroutine=is_coroutine)
        if executor is not None and (is_coroutine or stream in ASYNC_STREAMS):
            _refuse(
                function,
                f"a coroutine runs on the event loop; write 'def', or leave executor={executor!r} out",
            )
        own_name = _default_name(function) if name is None else _valid_name(name)
        arguments: dict[str, Any] = {
            "name": own_name,
            "foreign": foreign,
            "executor": executor or "thread",
            "options": call_options,
            "limited": named(declared, own_name),
            **own,
        }
        if stream is not None:
            arguments["resumable"] = resumable
        else:
            for option in ("stream_keep", "resumable"):
                if given.get(option, False) is not False:
                    _refuse(function, f"{option}= {FOR_STREAMS}")
        if batch is not None:
            arguments["batch"] = batch
        kind = _kind_of(function, stream, batch, is_coroutine=is_coroutine)
        made: TaskDefinition = kind(function, **arguments)
        _check_fields(made)
        _check_schedules(made)
        registry.add(made)
        return made

    return decorate if fn is None else decorate(fn)


def _check_fields(made: TaskDefinition) -> None:
    """Check the fields that options name if the types of the task are known already. Else ``check`` does it
    later."""
    if not made.redact and (made.limited is None or not made.limited.points):
        return
    try:
        made.payload.check()
    except TaskDefinitionError:  # a model may be defined below
        return
    made.check()


def _kind_of(
    function: Callable[..., Any], stream: Any, batch: Batch | None, *, is_coroutine: bool
) -> Callable[..., TaskDefinition]:
    """The class of the task that a function becomes."""
    if stream is not None:
        if batch is not None:
            _refuse(function, "it yields, and a batch has one list of results; return it, '-> list[TYPE]'")
        return AsyncStreamTask if stream in ASYNC_STREAMS else StreamTask
    if batch is not None:
        return AsyncBatchTask if is_coroutine else BatchTask
    return AsyncTask if is_coroutine else Task


def _check(options: Iterable[str], given: Mapping[str, Any], batch: Batch | None) -> None:
    """Refuse options that do not exist, or do not fit together. ``given`` are those that are not None."""
    for option in options:
        if option not in _OPTIONS:  # a type checker reports it, too
            raise TypeError(f"@task: {no_option(option, _OPTIONS)}")
    if batch is not None and not isinstance(batch, Batch):  # pyright: ignore[reportUnnecessaryIsInstance]  (not all callers are checked)
        raise TypeError(f"batch={batch!r}: write batch=Batch(100, wait=0.2)")
    if given.get("foreign", False):
        taken = given.keys() if batch is None else {*given, "batch"}
        for option in taken & _NOT_FOREIGN.keys():
            raise TaskDefinitionError(
                f"@task(foreign=True, {option}=...): another program runs this task; {_NOT_FOREIGN[option]}"
            )
    executor = given.get("executor")
    if executor not in (None, "thread", "process"):
        raise ValueError(f"executor={executor!r}: it is 'thread' or 'process'")


def _check_schedules(task: TaskDefinition) -> None:
    """Check the arguments of its schedules now, unless a type is defined below the task."""
    try:
        check_schedules(task)
    except TaskDefinitionError as error:
        if not isinstance(error.__context__, NameError):
            raise


def _stream_class(function: Callable[..., Any], *, is_coroutine: bool) -> Any:
    """The kind of iterator that a function returns; None if it returns no iterator."""
    found = stream_class(function)
    if inspect.isasyncgenfunction(function) and found not in ASYNC_STREAMS:
        _refuse(function, "it yields; annotate its result as '-> AsyncIterator[TYPE]'")
    if inspect.isgeneratorfunction(function) and found not in SYNC_STREAMS:
        _refuse(function, "it yields; annotate its result as '-> Iterator[TYPE]'")
    if is_coroutine and found is not None:
        _refuse(
            function,
            f"'async def' without 'yield' returns a coroutine, and no {found.__name__}; write 'def'",
        )
    return found


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
