"""The values of tasks that yield, as their callers read them.

``Stream`` and ``AsyncStream`` are iterators. Those that ``task.stream()`` and ``task.astream()`` return own
their job, and cancel it when they are left before its end. Those that a job or a reference returns only
read, and leaving them changes nothing for the job.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Generic, Literal, Self, TypeAlias, TypeVar

from gearflow.client import ClientJob, JobRequest, SyncJob
from gearflow.tasks.job import AsyncJob, Job
from gearflow.tasks.ref import Ref

Y_co = TypeVar("Y_co", covariant=True)
Y = TypeVar("Y")

Lag: TypeAlias = Literal["wait", "skip"]
After: TypeAlias = int | Literal["latest"]


class AsyncStream(AsyncIterator[Y_co], Generic[Y_co]):
    """The values of a stream, for code in an event loop. Use it with ``async for``.

    Attributes:
        position: The position of the last value that was returned. 0 before the first.
    """

    def __init__(self, call: JobRequest, decode: Callable[[bytes], Y_co]) -> None:
        """The values of a call, which is submitted at the first value, or by ``async with``."""
        self.position = 0
        raise NotImplementedError

    @property
    def handle(self) -> str:
        """The server's name for the job. Empty if it is not submitted yet."""
        raise NotImplementedError

    async def __anext__(self) -> Y_co:
        raise NotImplementedError

    async def aclose(self) -> None:
        """End the iteration. A job that this stream has submitted is cancelled if it has not ended."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        raise NotImplementedError

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


class Stream(Iterator[Y_co], Generic[Y_co]):
    """The values of a stream, for code without an event loop. Use it with ``for``.

    Attributes:
        position: The position of the last value that was returned. 0 before the first.
    """

    def __init__(self, call: JobRequest, decode: Callable[[bytes], Y_co]) -> None:
        """The values of a call, which is submitted at the first value, or by ``with``."""
        self.position = 0
        raise NotImplementedError

    @property
    def handle(self) -> str:
        """The server's name for the job. Empty if it is not submitted yet."""
        raise NotImplementedError

    def __next__(self) -> Y_co:
        raise NotImplementedError

    def close(self) -> None:
        """End the iteration. A job that this stream has submitted is cancelled if it has not ended."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncStreamJob(AsyncJob[None], Generic[Y_co]):
    """An attached job of a task that yields. ``await job`` waits for its end."""

    __slots__ = ("_decode_part",)

    def __init__(self, job: ClientJob, decode: Callable[[bytes], Y_co]) -> None:
        super().__init__(job, _no_result)
        self._decode_part = decode

    def astream(self, after: After = 0, lag: Lag = "wait") -> AsyncStream[Y_co]:
        """Read the values. See ``StreamRef.astream``."""
        raise NotImplementedError


class StreamJob(Job[None], Generic[Y_co]):
    """An attached job of a task that yields. ``job.result()`` waits for its end."""

    __slots__ = ("_decode_part",)

    def __init__(self, job: SyncJob, decode: Callable[[bytes], Y_co]) -> None:
        super().__init__(job, _no_result)
        self._decode_part = decode

    def stream(self, after: After = 0, lag: Lag = "wait") -> Stream[Y_co]:
        """Read the values. See ``StreamRef.astream``."""
        raise NotImplementedError


class StreamRef(Ref[None], Generic[Y_co]):
    """A reference to a background job of a task that yields. Its ``result()`` waits for the end."""

    __slots__ = ()

    def stream(self, after: After = 0, lag: Lag = "wait") -> Stream[Y_co]:
        """Read the values. See ``astream``."""
        raise NotImplementedError

    def astream(self, after: After = 0, lag: Lag = "wait") -> AsyncStream[Y_co]:
        """Read the values, also of a job that has ended, and then those to come.

        The iteration goes on if the server restarts or the connection is lost, at the same position.

        Args:
            after: The position of the last value that you have. ``"latest"`` returns only new values.
            lag: ``"wait"`` makes the job wait for this reader. ``"skip"`` makes the reader skip values.

        The iteration raises, and goes on after the first two:
            StreamGap: Values are gone.
            StreamRestarted: The job began again, and so does the stream.
            TaskFailed: The task raised after its last value. Also all other errors of ``result``.
        """
        raise NotImplementedError


def submit(call: JobRequest, decode: Callable[[bytes], Y]) -> StreamJob[Y]:
    """Submit a call of a task that yields. ``decode`` is for its parts."""
    raise NotImplementedError


async def asubmit(call: JobRequest, decode: Callable[[bytes], Y]) -> AsyncStreamJob[Y]:
    """Submit a call of a task that yields. ``decode`` is for its parts."""
    raise NotImplementedError


def _no_result(_data: bytes) -> None:
    """The end of a stream has no value."""
