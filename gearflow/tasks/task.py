"""A function that can also run on a worker, with the same signature, through several verbs.

=======================  =========================================================================
``task(...)``            runs it here, as a plain function
``call``, ``acall``      on a worker: waits, returns the result, raises the task's exception
``submit``, ``asubmit``  on a worker: returns a job to wait for
``background``, ...      on a worker, later: returns a reference, and nothing waits
``background_many``      many of them at once
``map``, ``starmap``     many calls, a bounded number of them at a time
=======================  =========================================================================

The verbs with an ``a`` are for code in an event loop, the others for code without one. ``options()`` returns
the same task with other options for the calls made through it. A verb uses the client of the innermost
``gearflow.connect()``, else that of the loop or the process (``gearflow.client.current``).
"""

import copy
import inspect
from collections.abc import Callable, Coroutine, Mapping
from functools import partial, update_wrapper
from typing import Any, Generic, ParamSpec, Self, TypeVar, Unpack, cast, overload

from gearflow.client import JobHandle, JobKey, JobRequest, ServerAddress, current
from gearflow.tasks import migration_hints, submission
from gearflow.tasks.context import Context
from gearflow.tasks.job import AsyncJob, Job, outcome
from gearflow.tasks.mapping.verbs import ManyCalls
from gearflow.tasks.options import CallOptions, Options, Place
from gearflow.tasks.payload import PayloadCodec
from gearflow.tasks.ref import Ref, parse
from gearflow.tasks.retry import Retry
from gearflow.tasks.signature import TaskSignature

P = ParamSpec("P")
R = TypeVar("R")


class Task(ManyCalls, Generic[P, R]):
    """A function with its name on servers and its options. It is a frozen value that ``@task`` makes.

    Attributes:
        name: The function's name on servers.
        function: Your function.
        payload: Converts arguments and results to workloads and back.
        is_async: Whether the function is a coroutine function.
        timeout: Seconds a run may take if the call does not say. None means any time.
        retries: When a failed run is repeated if the call does not say. None means never.
        keep: Seconds for which the outcome of a background call is kept if the call does not say.
        foreign: Whether another program runs the task. The function is then a signature without a body.
        executor: Where a worker runs the function if it is not a coroutine function.
        call_options: The options of its calls, which ``options()`` changes.
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
        self.is_async: bool = inspect.iscoroutinefunction(function)
        self.timeout = timeout
        self.retries = retries
        self.keep = keep
        self.foreign = foreign
        self.executor = executor
        self.call_options = options

    @property
    def takes_context(self) -> bool:
        """Whether the worker passes a ``Context`` to the function."""
        return self.payload.signature.takes_context

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here. The reports of a ``Context`` go nowhere."""
        context = (Context(handle="", function=self.name, send=_to_nobody),) if self.takes_context else ()
        return cast(R, self.function(*context, *args, **kwargs))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def options(self, **opts: Unpack[CallOptions]) -> Self:
        """Return the same task with these options for the calls that you make through it.

        Raises:
            TypeError: There is no such option.
            ValueError: A value is not valid.
        """
        changed = copy.copy(self)
        changed.call_options = self.call_options.updated(opts)
        return changed

    def check(self) -> None:
        """Check the types of parameters and result now, not at the first use.

        Raises:
            TaskDefinitionError: A type cannot travel, or a default does not fit its type.
        """
        self.payload.check()

    def json_schema(self) -> dict[str, Any]:
        """Return ``{"payload": ..., "result": ...}`` with the JSON Schemas of payload and result."""
        return self.payload.json_schema()

    # ------------------------------------------------------------------------------------------ one call

    def call(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the task on a worker and return its result.

        Raises:
            PayloadInvalid: An argument does not fit its type. Nothing was sent.
            TaskFailed: The task raised. Also an instance of its own exception if that class is known here.
            TaskTimeout: The run exceeded its time limit.
            NoServer, SubmitUnknown, QueueFull, ConnectionLost: See ``gearflow.errors``.
            UnsupportedByServer: The server cannot honour an option. Nothing was sent.
            RuntimeError: An event loop runs in this thread. Use ``acall``.

        An interrupted caller (Ctrl-C) cancels the job, as by ``Job.cancel``.
        """
        current.forbid_running_loop(f"{self._shown}.acall")
        call = submission.attached(self, args, kwargs)
        data = current.current_sync().run(partial(outcome, call))
        return cast(R, self.payload.decode_result(data))

    async def acall(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the task on a worker and return its result. Raises as ``call``.

        A cancelled caller cancels the job, as by ``AsyncJob.cancel``.
        """
        call = submission.attached(self, args, kwargs)
        data = await outcome(call, current.at_hand() or await current.current())
        return cast(R, self.payload.decode_result(data))

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Submit a job, and return it once a server has accepted it. Raises as ``call``."""
        current.forbid_running_loop(f"{self._shown}.asubmit")
        call = submission.attached(self, args, kwargs)
        job = current.current_sync().attach(call)
        return Job(job, self.payload.decode_result)

    async def asubmit(self, *args: P.args, **kwargs: P.kwargs) -> AsyncJob[R]:
        """Submit a job, and return it once a server has accepted it. Raises as ``call``."""
        call = submission.attached(self, args, kwargs)
        client = current.at_hand() or await current.current()
        job = await client.attach(call)
        return AsyncJob(job, self.payload.decode_result)

    def background(self, *args: P.args, **kwargs: P.kwargs) -> Ref[R]:
        """Submit a background job, and return a reference once the server has it. Raises as ``submit``."""
        current.forbid_running_loop(f"{self._shown}.abackground")
        call = submission.detached(self, args, kwargs)
        handle = current.current_sync().enqueue(call)
        return self._ref(handle)

    async def abackground(self, *args: P.args, **kwargs: P.kwargs) -> Ref[R]:
        """Submit a background job, and return a reference once the server has it. Raises as
        ``background``."""
        call = submission.detached(self, args, kwargs)
        client = current.at_hand() or await current.current()
        handle = await client.enqueue(call)
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
        """Return a reference to a background job of this task that was submitted elsewhere.

        Args:
            handle: The server's name for the job, or ``HANDLE@HOST:PORT`` as ``str(ref)`` returns it.
            unique: The key of the submission, instead of a handle. The reference is to the last job with it.
            server: The server that has the job. By default the current servers are asked in order.

        Raises:
            ValueError: The handle or the server's address is not valid.
        """
        if (handle is None) == (unique is None):
            raise ValueError("ref() takes a handle or a unique")
        if handle is not None:
            return Ref(parse(handle, server), self.name, self.payload.decode_result)
        where = ServerAddress.parse(server) if isinstance(server, str) else server
        name = JobKey(self.name, submission.on_the_wire(unique or ""), where)
        return Ref(name, self.name, self.payload.decode_result)

    # ------------------------------------------------------------------------------------- for the verbs

    def prepare(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> JobRequest:
        """A call whose caller waits, ready to be sent. Raises as ``gearflow.tasks.submission.attached``."""
        return submission.attached(self, args, kwargs)

    def _ref(self, handle: JobHandle) -> Ref[R]:
        return Ref(handle, self.name, self.payload.decode_result)

    @property
    def _shown(self) -> str:
        return self.name.rpartition(".")[2]


class AsyncTask(Task[P, R]):
    """A task whose function is a coroutine function. A plain call of it returns a coroutine."""

    def __call__(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]  # to be awaited
        self, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]:
        """Run the function here, when you await the result."""
        return cast("Coroutine[Any, Any, R]", super().__call__(*args, **kwargs))


migration_hints.teach(Task, migration_hints.VERBS)


def _to_nobody(_packet: object) -> None:
    """Drop the reports of a local run."""
