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

from collections.abc import Coroutine
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar, cast, overload

from gearflow.client import JobHandle, ServerAddress, current
from gearflow.tasks import migration_hints, submission
from gearflow.tasks.definition import TaskDefinition
from gearflow.tasks.job import AsyncJob, Job, outcome
from gearflow.tasks.mapping.verbs import ManyCalls
from gearflow.tasks.ref import Ref

P = ParamSpec("P")
R = TypeVar("R")


class Task(TaskDefinition, ManyCalls, Generic[P, R]):
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
        limited: The limits that the task declares, with their names. None if there are none.
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here. The reports of a ``Context`` go nowhere."""
        return cast(R, self._run_here(args, kwargs))

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
        return Ref(self._job(handle, unique, server), self.name, self.payload.decode_result)

    def _ref(self, handle: JobHandle) -> Ref[R]:
        return Ref(handle, self.name, self.payload.decode_result)


class AsyncTask(Task[P, R]):
    """A task whose function is a coroutine function. A plain call of it returns a coroutine."""

    def __call__(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]  # to be awaited
        self, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]:
        """Run the function here, when you await the result."""
        return cast("Coroutine[Any, Any, R]", super().__call__(*args, **kwargs))


migration_hints.teach(Task, migration_hints.VERBS | migration_hints.RETURNING)
