"""A function that can also be run on a worker, with the same signature, through several verbs.

=======================  =========================================================================
``task(...)``            runs it here: the function stays a function
``call``, ``acall``      on a worker: waits, returns the result, raises what the task raised
``submit``, ``asubmit``  on a worker: returns a job to wait for
``background``, ...      on a worker, some time: returns a reference, nobody waits
``map``, ``amap``        many calls, a bounded number of them at a time
=======================  =========================================================================

The verbs with an ``a`` are for code in an event loop, the others for code without one. ``options()`` returns
the same task with other options for the calls made through it. The client that a verb uses is the innermost
``gearflow.connect()``, else the one that belongs to the loop or process (``gearflow.client.ambient``).
"""

import copy
import inspect
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping
from functools import update_wrapper
from typing import Any, Generic, Literal, ParamSpec, Self, TypeVar, Unpack, cast, overload

from gearflow.client import ServerAddress, ambient
from gearflow.errors import TaskFailed, UnsupportedByServer
from gearflow.tasks import call
from gearflow.tasks.batch import WINDOW, AsyncBatch, Batch, Callee, Mappable, Plan, Progress
from gearflow.tasks.call import Call
from gearflow.tasks.context import Context
from gearflow.tasks.job import AsyncJob, Job, Ref
from gearflow.tasks.options import CallOptions, Options
from gearflow.tasks.payload import PayloadCodec
from gearflow.tasks.signature import TaskSignature

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")


class Task(Generic[P, R]):
    """A function, its name on the wire and its options. A frozen value; made by ``@task``.

    Attributes:
        name: The function's name on servers.
        function: The user's function.
        payload: Arguments and result <-> workloads.
        is_async: Whether it is a coroutine function.
        timeout: Seconds a run may take where the call does not say; ``None`` for any time.
        foreign: Whether others run it: the function is a signature without a body.
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
        foreign: bool = False,
        options: Options = Options(),  # noqa: B008  (frozen)
    ) -> None:
        update_wrapper(self, function)
        self.name = name
        self.function = function
        self.payload = PayloadCodec(TaskSignature(function, name), name)
        self.is_async = inspect.iscoroutinefunction(function)
        self.timeout = timeout
        self.foreign = foreign
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
        """
        ambient.forbid_running_loop(f"{self._shown}.acall")
        return self._submit(args, kwargs).result()

    async def acall(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it on a worker and return its result. Raises as ``call``.

        A cancelled caller detaches: the job may run on, and its result goes to nobody.
        """
        job = await self.asubmit(*args, **kwargs)
        try:
            return await job.result()
        finally:
            job.cancel()  # does nothing when it has ended

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Have a worker run it; returns a job to wait for when a server has accepted. Raises as ``call``."""
        ambient.forbid_running_loop(f"{self._shown}.asubmit")
        return self._submit(args, kwargs)

    def _submit(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Job[R]:
        call = self.prepare(args, kwargs)
        client = ambient.current_sync()
        self.require_support(client.servers)
        job = client.submit(call.function, call.workload, unique=call.unique, priority=call.priority)
        return Job(job, self.payload.decode_result)

    async def asubmit(self, *args: P.args, **kwargs: P.kwargs) -> AsyncJob[R]:
        """Have a worker run it; returns a job to await when a server has accepted. Raises as ``call``."""
        call = self.prepare(args, kwargs)
        client = await ambient.current()
        self.require_support(client.servers)
        job = await client.submit(call.function, call.workload, unique=call.unique, priority=call.priority)
        return AsyncJob(job, self.payload.decode_result)

    def background(self, *args: P.args, **kwargs: P.kwargs) -> Ref[R]:
        """Put it on the server's queue; returns when the server has it. Raises as ``submit``."""
        ambient.forbid_running_loop(f"{self._shown}.abackground")
        call = self._detached(args, kwargs)
        client = ambient.current_sync()
        self.require_support(client.servers)
        return Ref(
            client.submit_background(
                call.function, call.workload, unique=call.unique, priority=call.priority, at=call.at
            )
        )

    async def abackground(self, *args: P.args, **kwargs: P.kwargs) -> Ref[R]:
        """Put it on the server's queue; returns when the server has it. Raises as ``background``."""
        call = self._detached(args, kwargs)
        client = await ambient.current()
        self.require_support(client.servers)
        return Ref(
            await client.submit_background(
                call.function, call.workload, unique=call.unique, priority=call.priority, at=call.at
            )
        )

    # ---------------------------------------------------------------------------------------- many calls

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
    ) -> Batch[B]: ...
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
    ) -> Batch[B | TaskFailed]: ...
    def map(
        self: Mappable[A, B],
        items: Iterable[A],
        /,
        *,
        window: int = WINDOW,
        errors: Literal["raise", "collect"] = "raise",
        ordered: bool = True,
        progress: Progress | None = None,
    ) -> Batch[Any]:
        """One call for each item, when the batch is iterated over; see ``amap``."""
        plan = Plan(cast(Callee, self), window, errors, ordered, progress)
        return Batch(plan, items)

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
    ) -> AsyncBatch[B]: ...
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
    ) -> AsyncBatch[B | TaskFailed]: ...
    def amap(
        self: Mappable[A, B],
        items: Iterable[A] | AsyncIterable[A],
        /,
        *,
        window: int = WINDOW,
        errors: Literal["raise", "collect"] = "raise",
        ordered: bool = True,
        progress: Progress | None = None,
    ) -> AsyncBatch[Any]:
        """One call for each item; nothing happens before the batch is awaited, iterated over or reduced.

        Items are taken one by one as there is room, so they may be without end. Leaving the iteration
        early detaches from the jobs in flight.

        Args:
            items: The sole argument of each call.
            window: Jobs in flight at most; with ``ordered``, results that wait for an earlier one count.
            errors: ``"raise"``: the first failure is raised, and detaches from the rest. ``"collect"``: a
                failure takes the place of the result, as a ``TaskFailed``.
            ordered: Results in the order of the items, or as jobs end.
            progress: Called with (jobs ended, items in all or None) after each job.
        """
        plan = Plan(cast(Callee, self), window, errors, ordered, progress)
        return AsyncBatch(plan, items)

    # ------------------------------------------------------------------------------------- for the verbs

    def prepare(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """A call whose caller waits, ready to be sent. Raises as ``gearflow.tasks.call.attached``."""
        return call.attached(self.name, self.payload, self._options, args, kwargs, foreign=self.foreign)

    def _detached(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        return call.detached(self.name, self.payload, self._options, args, kwargs, foreign=self.foreign)

    def require_support(self, servers: Iterable[ServerAddress]) -> None:
        """Refuse options that the servers at hand cannot honour.

        Raises:
            UnsupportedByServer: There is one.
        """
        if unbuilt := self._options.unbuilt:
            names = ", ".join(f"{name}=" for name in unbuilt)
            raise UnsupportedByServer(
                f"task {self.name!r}: {', '.join(map(str, servers))} cannot honour {names}; leave it out"
            )

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


def _to_nobody(_packet: object) -> None:
    """Where a local run reports to."""
