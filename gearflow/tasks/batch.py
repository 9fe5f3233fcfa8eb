"""A task whose calls have one item each, and whose runs have many: the worker collects jobs for a run.

Callers see the task of one item. ``embed.call("x")`` returns the result of that item, and its payload is that
of one item, so callers in other languages need not know of batches. The function takes a list and returns a
list: one result for each item, in their order. An exception in the place of a result fails that item alone.
"""

import types
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from inspect import Parameter
from typing import Any, Final, Generic, Protocol, Union, cast, get_args, get_origin, get_type_hints, overload

from typing_extensions import TypeVar

from gearflow.tasks.context import Context
from gearflow.tasks.durations import seconds
from gearflow.tasks.signature import TaskSignature
from gearflow.tasks.task import Task

__all__ = ["AsyncBatchTask", "Batch", "BatchDecorator", "BatchTask"]

A = TypeVar("A")
R = TypeVar("R")
O = TypeVar("O", default=R)  # noqa: E741  (a result, or an exception in its place)

MOST_ITEMS: Final = 10_000
LONGEST_WAIT: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Batch:
    """How many jobs a worker collects for one run of a task, and how long.

    The run begins as soon as ``size`` jobs are there, or ``wait`` seconds after the first one came.

    Attributes:
        size: The largest number of items that the function is called with, up to 10,000.
        wait: Seconds, or a timedelta, up to an hour. 0 takes what waits on the servers now.

    Raises:
        ValueError: A value is out of range.
    """

    size: int
    wait: float | timedelta = 0.1

    def __post_init__(self) -> None:
        if type(self.size) is not int or not 1 <= self.size <= MOST_ITEMS:  # not all callers are checked
            raise ValueError(f"Batch(size={self.size!r}): it is a number of items, from 1 to {MOST_ITEMS:,}")
        if seconds("wait", self.wait) > LONGEST_WAIT:
            raise ValueError(
                f"Batch(wait={self.wait!r}): an hour is the most, because a job that waits in a worker can "
                "run nowhere else"
            )

    @property
    def seconds(self) -> float:
        """``wait`` in seconds."""
        return seconds("wait", self.wait)


class BatchSignature(TaskSignature):
    """The signature of one item of a function that takes a list and returns a list. A frozen value.

    Raises (on creation, or at the first use if a type is not defined yet):
        TaskDefinitionError: The function does not take one list and return one.
    """

    def __init__(self, function: Callable[..., Any], task: str) -> None:
        super().__init__(function, task)
        with suppress(NameError):  # a type is defined below the task
            get_type_hints(function)
            self.annotations  # noqa: B018  (checked at their first use)
            self.result  # noqa: B018  (the same)

    @cached_property
    def annotations(self) -> dict[str, Any]:
        """The type of an item, by the name of the function's parameter."""
        if len(self.parameters) != 1:
            self._refuse(
                f"a batch task takes one list, and this has {len(self.parameters)} parameters; "
                "take a list of tuples or models, 'items: list[tuple[int, str]]'"
            )
        [(name, parameter)] = self.parameters.items()
        if parameter.default is not Parameter.empty:
            self._refuse(f"the list of a batch comes from the worker; write {name!r} without a default")
        if parameter.kind is Parameter.KEYWORD_ONLY:
            self._refuse(f"the list of a batch is passed by position; take the '*' before {name!r} away")
        kind = self._hints[name]
        if get_origin(kind) not in (list, Sequence, Collection, Iterable):
            self._refuse(f"a batch task takes a list of items: write '{name}: list[TYPE]'")
        return {name: get_args(kind)[0]}

    @cached_property
    def result(self) -> Any:
        """The type of the result of an item, without the exceptions that may stand in its place."""
        kind = self._hints["return"]
        if get_origin(kind) is not list:
            self._refuse(
                "a batch task returns a list, with one result for each item: write '-> list[TYPE]', and "
                "'-> list[None]' if there are no results"
            )
        [kind] = get_args(kind)
        kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
        results = tuple(each for each in kinds if not _is_exception(each))
        if not results:
            self._refuse("its items have no results but exceptions: write '-> list[TYPE | Exception]'")
        return Union[results]  # noqa: UP007  (they are known at run time only)

    @property
    def returns(self) -> Any:
        """What callers get."""
        return self.result

    def call_with(self, items: list[Any], *, context: Context | None) -> Any:
        """Call the function with a list of items."""
        return self._function(context, items) if self.takes_context else self._function(items)


class BatchTask(Task[[A], R], Generic[A, R, O]):
    """A task whose function takes the items of many jobs at once. ``@task(batch=...)`` makes it.

    Its verbs are those of ``Task``, for one item. A plain call is that of the function.

    Attributes:
        batch: How many jobs a worker collects for a run, and how long.
    """

    signature_type = BatchSignature

    def __init__(self, function: Callable[..., Any], *, batch: Batch, **arguments: Any) -> None:
        super().__init__(function, **arguments)
        self.batch = batch

    def __call__(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]  # a list
        self, items: list[A], /
    ) -> list[O]:
        """Run the function here, with a list of items. The reports of a ``Context`` go nowhere."""
        return cast("list[O]", self._run_here((items,), {}))

    def _run_here(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if not self.takes_context:
            return self.function(*args, **kwargs)
        [items] = args
        contexts = tuple(self._context_here() for _ in items)
        return self.function(self._context_here(contexts), items)


class AsyncBatchTask(BatchTask[A, R, O]):
    """A batch task whose function is a coroutine function. A plain call of it returns a coroutine."""

    def __call__(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]  # to be awaited
        self, items: list[A], /
    ) -> Coroutine[Any, Any, list[O]]:
        """Run the function here, when you await the result."""
        return cast("Coroutine[Any, Any, list[O]]", super().__call__(items))


class BatchDecorator(Protocol):
    """The type of ``task(batch=...)``, which you apply to a function."""

    # As in ``TaskDecorator``, the first form that fits wins. A list of results and exceptions comes first,
    # since it also fits the form of results alone.
    @overload
    def __call__(
        self, fn: Callable[[Context, list[A]], Coroutine[Any, Any, list[R | Exception]]], /
    ) -> AsyncBatchTask[A, R, R | Exception]: ...
    @overload
    def __call__(
        self, fn: Callable[[list[A]], Coroutine[Any, Any, list[R | Exception]]], /
    ) -> AsyncBatchTask[A, R, R | Exception]: ...
    @overload
    def __call__(
        self, fn: Callable[[Context, list[A]], Coroutine[Any, Any, list[R]]], /
    ) -> AsyncBatchTask[A, R]: ...
    @overload
    def __call__(self, fn: Callable[[list[A]], Coroutine[Any, Any, list[R]]], /) -> AsyncBatchTask[A, R]: ...
    @overload
    def __call__(
        self, fn: Callable[[Context, list[A]], list[R | Exception]], /
    ) -> BatchTask[A, R, R | Exception]: ...
    @overload
    def __call__(self, fn: Callable[[list[A]], list[R | Exception]], /) -> BatchTask[A, R, R | Exception]: ...
    @overload
    def __call__(self, fn: Callable[[Context, list[A]], list[R]], /) -> BatchTask[A, R]: ...
    @overload
    def __call__(self, fn: Callable[[list[A]], list[R]], /) -> BatchTask[A, R]: ...


def _is_exception(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)
