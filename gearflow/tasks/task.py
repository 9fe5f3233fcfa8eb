"""A function that can also be run on a worker, with the same signature, through several verbs.

=======================  =========================================================================
``task(...)``            runs it here: the function stays a function
``call``, ``acall``      on a worker: waits, returns the result, raises what the task raised
``submit``, ``asubmit``  on a worker: returns a job to wait for
``background``, ...      on a worker, some time: returns a reference, nobody waits
``background_many``      many of them at once
``map``, ``amap``        many calls, a bounded number of them at a time
=======================  =========================================================================

The verbs with an ``a`` are for code in an event loop, the others for code without one. ``options()`` returns
the same task with other options for the calls made through it. The client that a verb uses is the innermost
``gearflow.connect()``, else the one that belongs to the loop or process (``gearflow.client.current``).
"""

import copy
import inspect
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping
from functools import partial, update_wrapper
from typing import Any, Generic, Literal, ParamSpec, Self, TypeAlias, TypeVar, Unpack, cast, overload

from gearflow.client import JobHandle, JobKey, JobRequest, ServerAddress, current
from gearflow.errors import TaskFailed
from gearflow.tasks import migration_hints, submission
from gearflow.tasks.context import Context
from gearflow.tasks.job import AsyncJob, Job, outcome
from gearflow.tasks.mapping import bulk
from gearflow.tasks.mapping.results import WINDOW, AsyncResults, Callee, Mappable, Plan, Progress, Results
from gearflow.tasks.options import CallOptions, Options
from gearflow.tasks.payload import PayloadCodec
from gearflow.tasks.ref import Ref, parse
from gearflow.tasks.retry import Retry
from gearflow.tasks.signature import TaskSignature

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")

Place: TypeAlias = Literal["thread", "process"]
"""Where a worker runs a plain function."""


class Task(Generic[P, R]):
    """A function, its name on the wire and its options. A frozen value; made by ``@task``.

    Attributes:
        name: The function's name on servers.
        function: The user's function.
        payload: Arguments and result <-> workloads.
        is_async: Whether it is a coroutine function.
        timeout: Seconds a run may take where the call does not say; ``None`` for any time.
        retries: When a failed run is repeated where the call does not say; ``None`` for never.
        keep: Seconds for which what became of a background call is kept where the call does not say.
        foreign: Whether others run it: the function is a signature without a body.
        executor: Where a worker runs it if it is no coroutine function.
    """

    __name__: str
    __qualname__: str
    __wrapped__: Callable[..., Any]

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str,
        timeout: float | None = None,
        retries: Retry | None = None,
        keep: float | None = None,
        foreign: bool = False,
        executor: Place = "thread",
        options: Options = Options(),  # noqa: B008  (frozen)
    ) -> None:
        update_wrapper(self, function)
        self.name = name
        self.function = function
        self.payload = PayloadCodec(TaskSignature(function, name), name)
        self.is_async = inspect.iscoroutinefunction(function)
        self.timeout = timeout
        self.retries = retries
        self.keep = keep
        self.foreign = foreign
        self.executor = executor
        self._options = options

    @property
    def takes_context(self) -> bool:
        """Whether the worker gives the function a ``Context``."""
        return self.payload.signature.takes_context

    @property
    def call_options(self) -> Options:
        """The options of its calls."""
        return self._options

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here; a ``Context`` it takes reports to nobody."""
        context = (Context(handle="", function=self.name, send=_to_nobody),) if self.takes_context else ()
        return cast(R, self.function(*context, *args, **kwargs))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def options(self, **opts: Unpack[CallOptions]) -> Self:
        """The same task, with these options for the calls made through what is returned.

        Raises:
            TypeError: There is no such option.
            ValueError: A value makes no sense.
        """
        changed = copy.copy(self)
        changed._options = self._options.updated(opts)
        return changed

    def check(self) -> None:
        """Read its annotations now, and not at its first use.

        Raises:
            TaskDefinitionError: A type cannot travel, or a default does not fit its type.
        """
        self.payload.check()

    def json_schema(self) -> dict[str, Any]:
        """``{"payload": ..., "result": ...}``: JSON Schemas of what a worker takes and answers."""
        return self.payload.json_schema()

    # ------------------------------------------------------------------------------------------ one call

    def call(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it on a worker and return its result.

        Raises:
            PayloadInvalid: An argument does not fit its type; nothing was sent.
            TaskFailed: The task raised; also an instance of what it raised, where that class is known here.
            TaskTimeout: It overran its run limit.
            NoServer, SubmitUnknown, QueueFull, ConnectionLost: As in ``gearflow.errors``.
            UnsupportedByServer: An option cannot be honoured; nothing was sent.
            RuntimeError: An event loop runs in this thread; ``acall`` is for that.

        An interrupted caller (Ctrl-C) cancels the job, as by ``Job.cancel``.
        """
        current.forbid_running_loop(f"{self._shown}.acall")
        call = self.prepare(args, kwargs)
        data = current.current_sync().run(partial(outcome, call))
        return cast(R, self.payload.decode_result(data))

    async def acall(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it on a worker and return its result. Raises as ``call``.

        A cancelled caller cancels the job, as by ``AsyncJob.cancel``.
        """
        call = self.prepare(args, kwargs)
        data = await outcome(call, await current.current())
        return cast(R, self.payload.decode_result(data))

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Have a worker run it; returns a job to wait for when a server has accepted. Raises as ``call``."""
        current.forbid_running_loop(f"{self._shown}.asubmit")
        call = self.prepare(args, kwargs)
        job = current.current_sync().submit(
            call.function, call.workload, unique=call.unique, priority=call.priority, options=call.options
        )
        return Job(job, self.payload.decode_result)

    async def asubmit(self, *args: P.args, **kwargs: P.kwargs) -> AsyncJob[R]:
        """Have a worker run it; returns a job to await when a server has accepted. Raises as ``call``."""
        call = self.prepare(args, kwargs)
        client = await current.current()
        job = await client.submit(
            call.function, call.workload, unique=call.unique, priority=call.priority, options=call.options
        )
        return AsyncJob(job, self.payload.decode_result)

    def background(self, *args: P.args, **kwargs: P.kwargs) -> Ref[R]:
        """Put it on the server's queue; returns when the server has it. Raises as ``submit``."""
        current.forbid_running_loop(f"{self._shown}.abackground")
        call = self._detached(args, kwargs)
        handle = current.current_sync().submit_background(
            call.function, call.workload, unique=call.unique, priority=call.priority, options=call.options
        )
        return self._ref(handle)

    async def abackground(self, *args: P.args, **kwargs: P.kwargs) -> Ref[R]:
        """Put it on the server's queue; returns when the server has it. Raises as ``background``."""
        call = self._detached(args, kwargs)
        client = await current.current()
        handle = await client.submit_background(
            call.function, call.workload, unique=call.unique, priority=call.priority, options=call.options
        )
        return self._ref(handle)

    @overload
    def ref(self, handle: str, /, *, server: ServerAddress | str | None = None) -> Ref[R]: ...
    @overload
    def ref(self, /, *, unique: str, server: ServerAddress | str | None = None) -> Ref[R]: ...
    def ref(
        self,
        handle: str | None = None,
        /,
        *,
        unique: str | None = None,
        server: ServerAddress | str | None = None,
    ) -> Ref[R]:
        """A reference to a background job of this task that was submitted somewhere else.

        Args:
            handle: What the server calls it, or ``HANDLE@HOST:PORT``, which is what ``str(ref)`` gives.
            unique: Instead: the key it was submitted with; the last job with it is meant.
            server: Where it is; by default the servers that are in use are asked in order.

        Raises:
            ValueError: That is no job's handle, or no server's address.
        """
        if (handle is None) == (unique is None):
            raise ValueError("ref() takes a handle or a unique")
        if handle is not None:
            return Ref(parse(handle, server), self.name, self.payload.decode_result)
        where = ServerAddress.parse(server) if isinstance(server, str) else server
        name = JobKey(self.name, submission.on_the_wire(unique or ""), where)
        return Ref(name, self.name, self.payload.decode_result)

    # ---------------------------------------------------------------------------------------- many calls

    def background_many(self: Mappable[A, B], items: Iterable[A], /) -> list[Ref[B]]:
        """Put a call for each item on the server's queue; see ``abackground_many``."""
        task = cast("Task[Any, Any]", self)
        current.forbid_running_loop(f"{task._shown}.abackground_many")
        return bulk.submit_all(task._account(items), current.current_sync())

    async def abackground_many(self: Mappable[A, B], items: Iterable[A], /) -> list[Ref[B]]:
        """Put a call for each item on the server's queue, many in one go; returns when it has them all.

        Items are taken as they can be sent, so there may be more than fit into memory. Where they are a
        collection, all of them are validated before any is sent.

        Raises:
            PartlySubmitted: Not all were accepted; it has the references of those that were.
            PayloadInvalid, NoServer, UnsupportedByServer: Nothing was sent.
        """
        task = cast("Task[Any, Any]", self)
        return await bulk.asubmit_all(task._account(items), await current.current())

    def _account(self, items: Iterable[Any]) -> bulk.SubmissionTracker:
        self.payload.signature.check_takes_one()
        return bulk.SubmissionTracker(items, lambda item: self._detached((item,), {}), self._ref)

    @overload
    def map(
        self: Mappable[A, B],
        items: Iterable[A],
        /,
        *,
        window: int = WINDOW,
        errors: Literal["raise"] = "raise",
        ordered: bool = True,
        progress: Progress | None = None,
    ) -> Results[B]: ...
    @overload
    def map(
        self: Mappable[A, B],
        items: Iterable[A],
        /,
        *,
        window: int = WINDOW,
        errors: Literal["collect"],
        ordered: bool = True,
        progress: Progress | None = None,
    ) -> Results[B | TaskFailed]: ...
    def map(
        self: Mappable[A, B],
        items: Iterable[A],
        /,
        *,
        window: int = WINDOW,
        errors: Literal["raise", "collect"] = "raise",
        ordered: bool = True,
        progress: Progress | None = None,
    ) -> Results[Any]:
        """One call for each item, when the batch is iterated over; see ``amap``."""
        plan = Plan(cast(Callee, self), window, errors, ordered, progress)
        return Results(plan, items)

    @overload
    def amap(
        self: Mappable[A, B],
        items: Iterable[A] | AsyncIterable[A],
        /,
        *,
        window: int = WINDOW,
        errors: Literal["raise"] = "raise",
        ordered: bool = True,
        progress: Progress | None = None,
    ) -> AsyncResults[B]: ...
    @overload
    def amap(
        self: Mappable[A, B],
        items: Iterable[A] | AsyncIterable[A],
        /,
        *,
        window: int = WINDOW,
        errors: Literal["collect"],
        ordered: bool = True,
        progress: Progress | None = None,
    ) -> AsyncResults[B | TaskFailed]: ...
    def amap(
        self: Mappable[A, B],
        items: Iterable[A] | AsyncIterable[A],
        /,
        *,
        window: int = WINDOW,
        errors: Literal["raise", "collect"] = "raise",
        ordered: bool = True,
        progress: Progress | None = None,
    ) -> AsyncResults[Any]:
        """One call for each item; nothing happens before the batch is awaited, iterated over or reduced.

        Items are taken one by one as there is room, so they may be without end. Leaving the iteration
        early cancels the jobs in flight.

        Args:
            items: The sole argument of each call.
            window: Jobs in flight at most; with ``ordered``, results that wait for an earlier one count.
            errors: ``"raise"``: the first failure is raised, and cancels the rest. ``"collect"``: a
                failure takes the place of the result, as a ``TaskFailed``.
            ordered: Results in the order of the items, or as jobs end.
            progress: Called with (jobs ended, items in all or None) after each job.
        """
        plan = Plan(cast(Callee, self), window, errors, ordered, progress)
        return AsyncResults(plan, items)

    # ------------------------------------------------------------------------------------- for the verbs

    def prepare(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> JobRequest:
        """A call whose caller waits, ready to be sent. Raises as ``gearflow.tasks.submission.attached``."""
        return submission.attached(self.name, self.payload, self._options, args, kwargs, foreign=self.foreign)

    def _detached(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> JobRequest:
        return submission.detached(
            self.name,
            self.payload,
            self._options,
            args,
            kwargs,
            foreign=self.foreign,
            keep=self.keep,
            retried=self.retries is not None,
        )

    def _ref(self, handle: JobHandle) -> Ref[R]:
        return Ref(handle, self.name, self.payload.decode_result)

    @property
    def _shown(self) -> str:
        return self.name.rpartition(".")[2]


class AsyncTask(Task[P, R]):
    """A task whose function is a coroutine function; it differs in what a call of it here returns."""

    def __call__(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]  # to be awaited
        self, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]:
        """Run the function here, when what is returned is awaited."""
        return cast("Coroutine[Any, Any, R]", super().__call__(*args, **kwargs))


migration_hints.teach(Task, migration_hints.VERBS)


def _to_nobody(_packet: object) -> None:
    """Where a local run reports to."""
