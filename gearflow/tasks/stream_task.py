"""A function that yields, which can also run on a worker and send each value as it comes.

==========================  ======================================================================
``task(...)``               runs it here: the function's own iterator
``stream``, ``astream``     on a worker: the values, as an iterator. Leaving it early cancels the job
``submit``, ``asubmit``     on a worker: returns a job, whose values can be read
``background``, ...         on a worker, later: returns a reference. The server keeps the values
``background_many``         many of them at once
==========================  ======================================================================

The verbs with an ``a`` are for code in an event loop, the others for code without one.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, Generic, ParamSpec, Protocol, Self, TypeVar, Unpack, cast, overload

from gearflow.client import JobHandle, ServerAddress, current
from gearflow.tasks import migration_hints, streams, submission
from gearflow.tasks.definition import TaskDefinition
from gearflow.tasks.mapping import bulk
from gearflow.tasks.options import StreamOptions
from gearflow.tasks.streams import AsyncStream, AsyncStreamJob, Stream, StreamJob, StreamRef

P = ParamSpec("P")
Y = TypeVar("Y")
A_contra = TypeVar("A_contra", contravariant=True)
B_co = TypeVar("B_co", covariant=True)
A = TypeVar("A")
B = TypeVar("B")


class Streamable(Protocol[A_contra, B_co]):
    """A task of one argument that yields, as type checkers see it."""

    def stream(self, a: A_contra, /) -> Stream[B_co]:
        """Call it with that argument."""
        ...


class StreamTask(TaskDefinition, Generic[P, Y]):
    """A function that yields, with its name on servers and its options. ``@task`` makes it.

    Each value is sent as soon as it is yielded. ``yield`` waits while 64 values or 1 MiB are not read yet.

    Attributes:
        name: The function's name on servers.
        function: Your function.
        payload: Converts arguments and values to workloads and back.
        is_async: Whether the function returns an async iterator.
        timeout: Seconds a run may take if the call does not say. None means any time.
        retries: When a failed run is repeated if the call does not say. None means never.
        keep: Seconds for which the outcome of a background call is kept if the call does not say.
        stream_keep: Bytes of the values of a background call that are kept if the call does not say.
        resumable: Whether a further run goes on behind the values that were taken.
        foreign: Whether another program runs the task. The function is then a signature without a body.
        executor: Where a worker runs the function if it does not return an async iterator.
        call_options: The options of its calls, which ``options()`` changes.
        limited: The limits that the task declares, with their names. None if there are none.
    """

    is_stream = True

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        stream_keep: int | None = None,
        resumable: bool = False,
        **arguments: Any,
    ) -> None:
        super().__init__(function, **arguments)
        self.is_async: bool = isinstance(self, AsyncStreamTask)
        self.stream_keep = stream_keep
        self.resumable = resumable

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Iterator[Y]:
        """Run the function here, and return its own iterator. The reports of a ``Context`` go nowhere."""
        return cast("Iterator[Y]", self._run_here(args, kwargs))

    def options(  # pyright: ignore[reportIncompatibleMethodOverride]  (there are more of them)
        self, **opts: Unpack[StreamOptions]
    ) -> Self:
        """Return the same task with these options for the calls that you make through it.

        Raises:
            TypeError: There is no such option.
            ValueError: A value is not valid.
        """
        return self._with(opts)

    # ------------------------------------------------------------------------------------------ one call

    def stream(self, *args: P.args, **kwargs: P.kwargs) -> Stream[Y]:
        """Run the task on a worker, and iterate over its values as they come.

        If you leave the iteration early, the job is cancelled. That is certain with ``with``. The values come
        first, then the error of a task that raised.

        Raises:
            PayloadInvalid: An argument does not fit its type. Nothing was sent.
            RuntimeError: An event loop runs in this thread. Use ``astream``.

        The iteration raises, and goes on after the first two:
            StreamGap: Values are gone.
            StreamRestarted: The job began again, and so does the stream.
            TaskFailed: The task raised after its last value. Also an instance of its own exception if that
                class is known here.
            TaskTimeout: The run exceeded its time limit.
            NoServer, SubmitUnknown, QueueFull, ConnectionLost: See ``gearflow.errors``.
        """
        current.forbid_running_loop(f"{self._shown}.astream")
        return Stream(submission.attached(self, args, kwargs), self.payload.decode_result)

    def astream(self, *args: P.args, **kwargs: P.kwargs) -> AsyncStream[Y]:
        """Run the task on a worker, and iterate over its values as they come. Raises as ``stream``.

        If you leave the iteration early, the job is cancelled. That is certain with ``async with``.
        """
        return AsyncStream(submission.attached(self, args, kwargs), self.payload.decode_result)

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> StreamJob[Y]:
        """Submit a job, and return it once a server has accepted it. Raises as ``stream``."""
        current.forbid_running_loop(f"{self._shown}.asubmit")
        return streams.submit(submission.attached(self, args, kwargs), self.payload.decode_result)

    async def asubmit(self, *args: P.args, **kwargs: P.kwargs) -> AsyncStreamJob[Y]:
        """Submit a job, and return it once a server has accepted it. Raises as ``stream``."""
        return await streams.asubmit(submission.attached(self, args, kwargs), self.payload.decode_result)

    def background(self, *args: P.args, **kwargs: P.kwargs) -> StreamRef[Y]:
        """Submit a background job, and return a reference once the server has it. Raises as ``submit``."""
        current.forbid_running_loop(f"{self._shown}.abackground")
        return self._ref(current.current_sync().enqueue(submission.detached(self, args, kwargs)))

    async def abackground(self, *args: P.args, **kwargs: P.kwargs) -> StreamRef[Y]:
        """Submit a background job, and return a reference once the server has it. Raises as ``submit``."""
        call = submission.detached(self, args, kwargs)
        client = current.at_hand() or await current.current()
        return self._ref(await client.enqueue(call))

    @overload
    def ref(self, handle: str, /, *, server: ServerAddress | str | None = None) -> StreamRef[Y]: ...
    @overload
    def ref(self, /, *, unique: str, server: ServerAddress | str | None = None) -> StreamRef[Y]: ...
    def ref(
        self,
        handle: str | None = None,
        /,
        *,
        unique: str | None = None,
        server: ServerAddress | str | None = None,
    ) -> StreamRef[Y]:
        """Return a reference to a job of this task that was submitted elsewhere. See ``Task.ref``."""
        return StreamRef(self._job(handle, unique, server), self.name, self.payload.decode_result)

    # ---------------------------------------------------------------------------------------- many calls

    def background_many(self: Streamable[A, B], items: Iterable[A], /) -> list[StreamRef[B]]:
        """Submit a background job for each item. See ``abackground_many``."""
        task = cast("StreamTask[Any, Any]", self)
        current.forbid_running_loop(f"{task._shown}.abackground_many")
        refs = bulk.submit_all(task._tracker(items), current.current_sync())
        return cast("list[StreamRef[B]]", refs)

    async def abackground_many(self: Streamable[A, B], items: Iterable[A], /) -> list[StreamRef[B]]:
        """Submit a background job for each item, many at once. See ``Task.abackground_many``."""
        task = cast("StreamTask[Any, Any]", self)
        refs = await bulk.asubmit_all(task._tracker(items), await current.current())
        return cast("list[StreamRef[B]]", refs)

    def _tracker(self, items: Iterable[Any]) -> bulk.SubmissionTracker:
        self.payload.signature.check_takes_one()
        return bulk.SubmissionTracker(items, lambda item: self.prepare_background((item,), {}), self._ref)

    def _ref(self, handle: JobHandle) -> StreamRef[Y]:
        return StreamRef(handle, self.name, self.payload.decode_result)


class AsyncStreamTask(StreamTask[P, Y]):
    """A task whose function returns an async iterator. A plain call of it returns that."""

    def __call__(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]  # async for
        self, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncIterator[Y]:
        """Run the function here, and return its own async iterator."""
        return cast("AsyncIterator[Y]", self._run_here(args, kwargs))


migration_hints.teach(StreamTask, migration_hints.VERBS | migration_hints.YIELDING)
