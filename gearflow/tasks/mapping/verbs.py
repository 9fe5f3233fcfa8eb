"""The verbs of a task for many calls: ``map``, ``starmap``, ``background_many`` and their async twins.

Type checkers see a task here by its ``call`` alone. mypy would lose the types of a task whose function has
defaults, if a verb asked for the task itself.
"""

from collections.abc import AsyncIterable, Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast, overload

from typing_extensions import TypedDict, Unpack

from gearflow.client import current
from gearflow.errors import TaskFailed
from gearflow.tasks import submission
from gearflow.tasks.mapping import bulk
from gearflow.tasks.mapping.inflight import ItemCallee
from gearflow.tasks.mapping.reduce import FAN_IN
from gearflow.tasks.mapping.results import AsyncResults, Mappable, Results, callee_of
from gearflow.tasks.mapping.run import Errors, MapPlan, OnProgress
from gearflow.tasks.options import CallOptions
from gearflow.tasks.ref import Ref

if TYPE_CHECKING:
    from gearflow.tasks.task import Task

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
R = TypeVar("R")
A_contra = TypeVar("A_contra", contravariant=True)
B_contra = TypeVar("B_contra", contravariant=True)
C_contra = TypeVar("C_contra", contravariant=True)
D_contra = TypeVar("D_contra", contravariant=True)
E_contra = TypeVar("E_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class Mappable2(Protocol[A_contra, B_contra, R_co]):
    """A task of two arguments, as type checkers see it."""

    def call(self, a: A_contra, b: B_contra, /) -> R_co:
        """Call it with these arguments."""
        ...


class Mappable3(Protocol[A_contra, B_contra, C_contra, R_co]):
    """A task of three arguments, as type checkers see it."""

    def call(self, a: A_contra, b: B_contra, c: C_contra, /) -> R_co:
        """Call it with these arguments."""
        ...


class Mappable4(Protocol[A_contra, B_contra, C_contra, D_contra, R_co]):
    """A task of four arguments, as type checkers see it."""

    def call(self, a: A_contra, b: B_contra, c: C_contra, d: D_contra, /) -> R_co:
        """Call it with these arguments."""
        ...


class Mappable5(Protocol[A_contra, B_contra, C_contra, D_contra, E_contra, R_co]):
    """A task of five arguments, as type checkers see it."""

    def call(self, a: A_contra, b: B_contra, c: C_contra, d: D_contra, e: E_contra, /) -> R_co:
        """Call it with these arguments."""
        ...


class MapOptions(TypedDict, total=False):
    """The keyword arguments that ``map``, ``starmap`` and their async twins share. See ``ManyCalls.amap``."""

    window: int | None
    ordered: bool
    progress: OnProgress | bool | None
    chunk: int


class ManyCalls:
    """The part of ``Task`` that is about many calls."""

    # Each verb has a form for failures among the results and one without, and ``starmap`` has both for each
    # number of arguments. The types of Python have no shorter way to say that.

    def background_many(self: Mappable[A, R], items: Iterable[A], /) -> list[Ref[R]]:
        """Submit a background job for each item. See ``abackground_many``."""
        task = cast("Task[Any, Any]", self)
        current.forbid_running_loop(f"{_shown(task)}.abackground_many")
        return bulk.submit_all(_tracker(task, items), current.current_sync())

    async def abackground_many(self: Mappable[A, R], items: Iterable[A], /) -> list[Ref[R]]:
        """Submit a background job for each item, many at once. Returns when the server has all of them.

        Items are taken as they can be sent, so there may be more than fit into memory. If they are a
        collection, all of them are validated before any is sent.

        Raises:
            PartlySubmitted: The server did not accept all. It has the references of those it accepted.
            PayloadInvalid, NoServer, UnsupportedByServer: Nothing was sent.
        """
        task = cast("Task[Any, Any]", self)
        return await bulk.asubmit_all(_tracker(task, items), await current.current())

    @overload
    def map(
        self: Mappable[A, R],
        items: Iterable[A],
        /,
        *,
        errors: Literal["raise", "skip"] = "raise",
        options: Callable[[A], CallOptions] | None = None,
        **how: Unpack[MapOptions],
    ) -> Results[R]: ...
    @overload
    def map(
        self: Mappable[A, R],
        items: Iterable[A],
        /,
        *,
        errors: Literal["collect"],
        options: Callable[[A], CallOptions] | None = None,
        **how: Unpack[MapOptions],
    ) -> Results[R | TaskFailed]: ...
    def map(
        self: Mappable[A, R],
        items: Iterable[A],
        /,
        *,
        window: int | None = None,
        errors: Errors = "raise",
        ordered: bool = True,
        progress: OnProgress | bool | None = None,
        chunk: int = 1,
        options: Callable[[A], CallOptions] | None = None,
    ) -> Results[Any]:
        """Call the task for each item, as you iterate over the result. See ``amap``."""
        return Results(_plan(_takes_one(self), window, errors, ordered, progress, chunk, options), items)

    @overload
    def amap(
        self: Mappable[A, R],
        items: Iterable[A] | AsyncIterable[A],
        /,
        *,
        errors: Literal["raise", "skip"] = "raise",
        options: Callable[[A], CallOptions] | None = None,
        **how: Unpack[MapOptions],
    ) -> AsyncResults[R]: ...
    @overload
    def amap(
        self: Mappable[A, R],
        items: Iterable[A] | AsyncIterable[A],
        /,
        *,
        errors: Literal["collect"],
        options: Callable[[A], CallOptions] | None = None,
        **how: Unpack[MapOptions],
    ) -> AsyncResults[R | TaskFailed]: ...
    def amap(
        self: Mappable[A, R],
        items: Iterable[A] | AsyncIterable[A],
        /,
        *,
        window: int | None = None,
        errors: Errors = "raise",
        ordered: bool = True,
        progress: OnProgress | bool | None = None,
        chunk: int = 1,
        options: Callable[[A], CallOptions] | None = None,
    ) -> AsyncResults[Any]:
        """Call the task for each item. Nothing happens before you await, iterate over or reduce the result.

        Items are taken one by one as there is room, so the iterable may be endless. If you leave the
        iteration early, the jobs in flight are cancelled.

        Args:
            items: The sole argument of each call.
            window: The largest number of jobs in flight. With ``ordered``, results that wait for an earlier
                one count. By default 32, and up to 1,000 while jobs are short, or while more of them run at
                once. Larger payloads and results than 16 KiB lower that.
            errors: ``"raise"`` raises the first failure and cancels the rest. ``"collect"`` puts each failure
                in the place of its result, as a ``TaskFailed``. ``"skip"`` leaves items out that fail. In
                all cases the result's ``errors`` lists the items that failed.
            ordered: Whether results come in the order of the items, or as jobs end.
            progress: True shows a bar on stderr, if that is a terminal. Or a function, which is called after
                each item with the number of items done and the number of all items, or None.
            chunk: How many items share a job. Small items then cost a fraction. Results and errors are those
                of the items still, and a ``timeout`` is that of an item. The items of a job run one after the
                other. Only for tasks that gearflow's workers run, without ``unique``.
            options: Returns the options of the call for an item, as a dict for ``Task.options``.
        """
        return AsyncResults(_plan(_takes_one(self), window, errors, ordered, progress, chunk, options), items)

    @overload
    def starmap(
        self: Mappable2[A, B, R],
        items: Iterable[tuple[A, B]],
        /,
        *,
        errors: Literal["raise", "skip"] = "raise",
        options: Callable[[tuple[A, B]], CallOptions] | None = None,
        **how: Unpack[MapOptions],
    ) -> Results[R]: ...
    @overload
    def starmap(
        self: Mappable2[A, B, R],
        items: Iterable[tuple[A, B]],
        /,
        *,
        errors: Literal["collect"],
        options: Callable[[tuple[A, B]], CallOptions] | None = None,
        **how: Unpack[MapOptions],
    ) -> Results[R | TaskFailed]: ...
    @overload
    def starmap(
        self: Mappable3[A, B, C, R],
        items: Iterable[tuple[A, B, C]],
        /,
        *,
        errors: Literal["raise", "skip"] = "raise",
        options: Callable[[tuple[A, B, C]], CallOptions] | None = None,
        **how: Unpack[MapOptions],
    ) -> Results[R]: ...
    @overload
    def starmap(
        self: Mappable3[A, B, C, R],
        items: Iterable[tuple[A, B, C]],
        /,
        *,
        errors: Literal["collect"],
        options: Callable[[tuple[A, B, C]], CallOptions] | None = None,
        **how: Unpack[MapOptions],
    ) -> Results[R | TaskFailed]: ...
    @overload
    def starmap(
        self: Mappable4[A, B, C, D, R],
        items: Iterable[tuple[A, B, C, D]],
        /,
        *,
        errors: Literal["raise", "skip"] = "raise",
        options: Callable[[tuple[A, B, C, D]], CallOptions] | None = None,
        **how: Unpack[MapOptions],
    ) -> Results[R]: ...
    @overload
    def starmap(
        self: Mappable4[A, B, C, D, R],
        items: Iterable[tuple[A, B, C, D]],
        /,
        *,
        errors: Literal["collect"],
        options: Callable[[tuple[A, B, C, D]], CallOptions] | None = None,
        **how: Unpack[MapOptions],
    ) -> Results[R | TaskFailed]: ...
    @overload
    def starmap(
        self: Mappable5[A, B, C, D, E, R],
        items: Iterable[tuple[A, B, C, D, E]],
        /,
        *,
        errors: Literal["raise", "skip"] = "raise",
        options: Callable[[tuple[A, B, C, D, E]], CallOptions] | None = None,
        **how: Unpack[MapOptions],
    ) -> Results[R]: ...
    @overload
    def starmap(
        self: Mappable5[A, B, C, D, E, R],
        items: Iterable[tuple[A, B, C, D, E]],
        /,
        *,
        errors: Literal["collect"],
        options: Callable[[tuple[A, B, C, D, E]], CallOptions] | None = None,
        **how: Unpack[MapOptions],
    ) -> Results[R | TaskFailed]: ...
    def starmap(
        self: Any,
        items: Iterable[Any],
        /,
        *,
        window: int | None = None,
        errors: Errors = "raise",
        ordered: bool = True,
        progress: OnProgress | bool | None = None,
        chunk: int = 1,
        options: Callable[[Any], CallOptions] | None = None,
    ) -> Results[Any]:
        """Call the task for each item, which is a tuple of its arguments. Otherwise as ``map``."""
        plan = _plan(callee_of(self), window, errors, ordered, progress, chunk, options, is_star=True)
        return Results(plan, items)

    @overload
    def astarmap(
        self: Mappable2[A, B, R],
        items: Iterable[tuple[A, B]] | AsyncIterable[tuple[A, B]],
        /,
        *,
        errors: Literal["raise", "skip"] = "raise",
        options: Callable[[tuple[A, B]], CallOptions] | None = None,
        **how: Unpack[MapOptions],
    ) -> AsyncResults[R]: ...
    @overload
    def astarmap(
        self: Mappable2[A, B, R],
        items: Iterable[tuple[A, B]] | AsyncIterable[tuple[A, B]],
        /,
        *,
        errors: Literal["collect"],
        options: Callable[[tuple[A, B]], CallOptions] | None = None,
        **how: Unpack[MapOptions],
    ) -> AsyncResults[R | TaskFailed]: ...
    @overload
    def astarmap(
        self: Mappable3[A, B, C, R],
        items: Iterable[tuple[A, B, C]] | AsyncIterable[tuple[A, B, C]],
        /,
        *,
        errors: Literal["raise", "skip"] = "raise",
        options: Callable[[tuple[A, B, C]], CallOptions] | None = None,
        **how: Unpack[MapOptions],
    ) -> AsyncResults[R]: ...
    @overload
    def astarmap(
        self: Mappable3[A, B, C, R],
        items: Iterable[tuple[A, B, C]] | AsyncIterable[tuple[A, B, C]],
        /,
        *,
        errors: Literal["collect"],
        options: Callable[[tuple[A, B, C]], CallOptions] | None = None,
        **how: Unpack[MapOptions],
    ) -> AsyncResults[R | TaskFailed]: ...
    @overload
    def astarmap(
        self: Mappable4[A, B, C, D, R],
        items: Iterable[tuple[A, B, C, D]] | AsyncIterable[tuple[A, B, C, D]],
        /,
        *,
        errors: Literal["raise", "skip"] = "raise",
        options: Callable[[tuple[A, B, C, D]], CallOptions] | None = None,
        **how: Unpack[MapOptions],
    ) -> AsyncResults[R]: ...
    @overload
    def astarmap(
        self: Mappable4[A, B, C, D, R],
        items: Iterable[tuple[A, B, C, D]] | AsyncIterable[tuple[A, B, C, D]],
        /,
        *,
        errors: Literal["collect"],
        options: Callable[[tuple[A, B, C, D]], CallOptions] | None = None,
        **how: Unpack[MapOptions],
    ) -> AsyncResults[R | TaskFailed]: ...
    @overload
    def astarmap(
        self: Mappable5[A, B, C, D, E, R],
        items: Iterable[tuple[A, B, C, D, E]] | AsyncIterable[tuple[A, B, C, D, E]],
        /,
        *,
        errors: Literal["raise", "skip"] = "raise",
        options: Callable[[tuple[A, B, C, D, E]], CallOptions] | None = None,
        **how: Unpack[MapOptions],
    ) -> AsyncResults[R]: ...
    @overload
    def astarmap(
        self: Mappable5[A, B, C, D, E, R],
        items: Iterable[tuple[A, B, C, D, E]] | AsyncIterable[tuple[A, B, C, D, E]],
        /,
        *,
        errors: Literal["collect"],
        options: Callable[[tuple[A, B, C, D, E]], CallOptions] | None = None,
        **how: Unpack[MapOptions],
    ) -> AsyncResults[R | TaskFailed]: ...
    def astarmap(
        self: Any,
        items: Iterable[Any] | AsyncIterable[Any],
        /,
        *,
        window: int | None = None,
        errors: Errors = "raise",
        ordered: bool = True,
        progress: OnProgress | bool | None = None,
        chunk: int = 1,
        options: Callable[[Any], CallOptions] | None = None,
    ) -> AsyncResults[Any]:
        """Call the task for each item, which is a tuple of its arguments. Otherwise as ``amap``."""
        plan = _plan(callee_of(self), window, errors, ordered, progress, chunk, options, is_star=True)
        return AsyncResults(plan, items)


def map_reduce(
    items: Iterable[A],
    /,
    *,
    map: Mappable[A, B],  # noqa: A002  (the word for it)
    reduce: Mappable[list[B], B],
    errors: Literal["raise", "skip"] = "raise",
    fan_in: int = FAN_IN,
    timeout: float | timedelta | None = None,
    **how: Unpack[MapOptions],
) -> B:
    """Call a task for each item, and reduce the results to one value with jobs of another one.

    Items are taken as there is room, and results are reduced as they come, so there may be more of both than
    fit into memory. The order is kept. For code without an event loop.

    Args:
        items: The sole argument of each call of ``map``.
        map: The task that makes a result of an item.
        reduce: The task that makes one value of a list of them. Without items it gets an empty list.
        errors: ``"skip"`` leaves items out that fail. ``"raise"`` raises the first failure.
        fan_in: The largest number of values in one call of ``reduce``.
        timeout: The limit of the whole in seconds.
        window, ordered, progress, chunk: As for ``Task.amap``.

    Raises:
        TaskFailed: A task raised.
        TimeoutError: The time is up. Jobs in flight are cancelled.
    """
    results = _task(map).map(items, errors=errors, **how)
    return cast(B, results.reduce(reduce, fan_in=fan_in).result(timeout))


async def amap_reduce(
    items: Iterable[A] | AsyncIterable[A],
    /,
    *,
    map: Mappable[A, B],  # noqa: A002  (the word for it)
    reduce: Mappable[list[B], B],
    errors: Literal["raise", "skip"] = "raise",
    fan_in: int = FAN_IN,
    timeout: float | timedelta | None = None,
    **how: Unpack[MapOptions],
) -> B:
    """Call a task for each item, and reduce the results to one value with jobs of another one.

    The same as ``map_reduce``, for code in an event loop.

    Args:
        items: The sole argument of each call of ``map``.
        map: The task that makes a result of an item.
        reduce: The task that makes one value of a list of them. Without items it gets an empty list.
        errors: ``"skip"`` leaves items out that fail. ``"raise"`` raises the first failure.
        fan_in: The largest number of values in one call of ``reduce``.
        timeout: The limit of the whole in seconds.
        window, ordered, progress, chunk: As for ``Task.amap``.
    """
    results = _task(map).amap(items, errors=errors, **how)
    return cast(B, await results.reduce(reduce, fan_in=fan_in).result(timeout))


def _task(task: object) -> "Task[[Any], Any]":
    callee_of(task)
    return cast("Task[[Any], Any]", task)


def _plan(
    task: Any,
    window: int | None,
    errors: Errors,
    ordered: bool,
    progress: OnProgress | bool | None,
    chunk: int,
    options: Callable[[Any], CallOptions] | None,
    *,
    is_star: bool = False,
) -> MapPlan:
    def with_options(item: Any) -> ItemCallee:
        return cast(ItemCallee, task.options(**cast("Callable[[Any], CallOptions]", options)(item)))

    if not (options is None or callable(options)):
        raise ValueError(
            f"options={options!r}: it is a function of an item; for all items, write .options(...).map(...)"
        )
    if chunk > 1:
        _check_chunks(task)
    callee_of = None if options is None else with_options
    return MapPlan(cast(ItemCallee, task), window, errors, ordered, progress, callee_of, is_star, chunk)


def _check_chunks(task: "Task[Any, Any]") -> None:
    """Raise TypeError or ValueError if the calls of a task cannot share jobs."""
    if task.foreign:
        raise TypeError(
            f"chunk=: another program runs {task.name}, and only gearflow's workers know how several calls "
            "share a job; leave it out"
        )
    if task.batch is not None:
        raise TypeError(
            f"chunk=: workers collect the jobs of {task.name} for their runs already (batch=); leave it out"
        )
    if task.call_options.unique is not False:
        raise ValueError(
            "chunk= and unique=: a key is that of one call, and the items of a chunk share a job; leave out "
            "chunk=, or write .options(unique=False).map(...)"
        )
    if task.limited is not None and task.limited.keys:
        raise ValueError(
            f"chunk=: {task.name} has limits with keys, or fair=. A key is that of one call, and the items "
            "of a chunk share a job; leave out chunk="
        )


def _takes_one(task: object) -> "Task[Any, Any]":
    """The task. Raises TypeError if it cannot be called with one item alone."""
    taken = cast("Task[Any, Any]", task)
    taken.payload.signature.check_takes_one()
    return taken


def _tracker(task: "Task[Any, Any]", items: Iterable[Any]) -> bulk.SubmissionTracker:
    _takes_one(task)
    return bulk.SubmissionTracker(
        items,
        lambda item: submission.detached(task, (item,), {}),
        lambda handle: Ref(handle, task.name, task.payload.decode_result),
    )


def _shown(task: "Task[Any, Any]") -> str:
    return task.name.rpartition(".")[2]
