"""The values of tasks that yield, as their callers read them.

``Stream`` and ``AsyncStream`` are iterators. Those that ``task.stream()`` and ``task.astream()`` return own
their job, and cancel it when they are left before its end. Those that a job or a reference returns only
read, and leaving them changes nothing for the job.

The values of a stream come in batches. Only between two batches the async form waits, and the blocking form
goes to the thread of its client.
"""

from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import CancelledError
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Final, Generic, Literal, Self, TypeAlias, TypeVar

from gearflow.client import (
    Client,
    ClientJob,
    JobFailed,
    JobKey,
    JobName,
    JobRequest,
    SyncClient,
    SyncJob,
    current,
)
from gearflow.client.reading import Arrivals, StreamReader
from gearflow.client.requests import ReservedJob
from gearflow.client.server_calls import was_cancelled
from gearflow.client.submission import Lag
from gearflow.errors import StreamGap, StreamRestarted, UnsupportedByServer
from gearflow.runtime.eventloop import Post, poster
from gearflow.tasks.events import Event
from gearflow.tasks.job import AsyncJob, Job
from gearflow.tasks.ref import Ref
from gearflow.tasks.remote_errors import decode_failure
from gearflow.tasks.wait_tracking import Waiting
from gearflow.tasks.watching import Arriving, AsyncEvents, Events

Y_co = TypeVar("Y_co", covariant=True)
Y = TypeVar("Y")

After: TypeAlias = int | Literal["latest"]

_TOLD_PARTS: Final = 16
"""Values after which the server learns that they are taken."""

_TOLD_BYTES: Final = 1 << 18
"""The same in bytes."""


class _Source:
    """Where the values come from, in the event loop of the client. Owns state.

    Args:
        what: A call, which is submitted when the reading begins, or a job.
        after, lag: As for ``StreamRef.astream``. Without ``lag``, that of the call.
        post: Has something called in that event loop, if that is known before the reading begins.
    """

    def __init__(
        self,
        what: JobRequest | ClientJob | JobName,
        after: After,
        lag: Lag | None,
        post: Post | None,
    ) -> None:
        _check(after, lag)
        asked = what.options.lag if isinstance(what, JobRequest) and what.options is not None else "wait"
        self._what = what
        self._after: After = after
        self._lag: Lag = lag or asked
        self._reader: StreamReader | None = None
        self._job = what if isinstance(what, ClientJob) else None
        self._is_closed = False
        self._told = 0 if after == "latest" else after  # the position that was acknowledged
        self.owns = isinstance(what, JobRequest)
        self.post = post

    @property
    def handle(self) -> str:
        """The server's name for the job, if it is known."""
        if self._job is not None:
            return self._job.handle
        return "" if isinstance(self._what, JobRequest | JobKey) else str(self._what)

    async def begin(self, client: Client | None) -> StreamReader:
        """Submit the call. Without a client, the job is attached."""
        if self._reader is None:
            if self._is_closed:
                raise RuntimeError("the stream is closed; make another one")
            self.post = poster()
            what = self._what
            if isinstance(what, JobRequest):
                assert client is not None
                what = self._job = await client.attach(what.streamed())
                if self._is_closed:  # meanwhile
                    self._job.cancel()
            self._reader = StreamReader(None if client is None else client.pool, what, self._after, self._lag)
        return self._reader

    async def take(self, client: Client | None, position: int) -> Arrivals:
        """The next values. The caller has all up to a position. Raises as the iteration."""
        if self._is_closed:
            return Arrivals(0, ())
        reader = await self.begin(client)
        if position > self._told:  # a server whose next value is large waits for that
            self.acknowledge(position)
        try:
            with Waiting(self._function):
                return await reader.take()
        except (StreamGap, StreamRestarted):
            self._told = 0
            raise
        except JobFailed as error:
            if client is not None and self._job is None and await self._is_cancelled(client, error):
                raise CancelledError(f"job {self.handle} was cancelled") from None
            raise decode_failure(error.exception, self.handle) from None
        except CancelledError:
            if self._is_closed:  # by ``close``, which ends a wait
                return Arrivals(0, ())
            raise
        except UnsupportedByServer as error:
            raise UnsupportedByServer(
                f"{error} to keep the values of background jobs; elsewhere stream() and astream() give them"
            ) from None

    def acknowledge(self, position: int) -> None:
        """The caller has the values up to that position."""
        self._told = position
        if self._reader is not None:
            self._reader.acknowledge(position)

    def close(self) -> None:
        """Read no more. A job that was submitted for this stream is cancelled."""
        self._is_closed = True
        if self._reader is not None:
            self._reader.close()
        elif not self.owns and isinstance(self._job, ReservedJob):
            self._job.leave_parts()  # for which it has waited
        if self.owns and self._job is not None:
            self._job.cancel()

    async def _is_cancelled(self, client: Client, error: JobFailed) -> bool:
        assert not isinstance(self._what, JobRequest | ClientJob)  # a job by its name
        return error.exception is None and await was_cancelled(client.pool, self._what)

    @property
    def _function(self) -> str:
        """The function of the job, as far as it is known."""
        return getattr(self._what, "function", "")


class _Values(Arriving[_Source, bytes], Generic[Y_co]):
    """The members that both kinds of streams have."""

    def __init__(self, source: _Source, decode: Callable[[bytes], Y_co], after: After) -> None:
        super().__init__(source)
        self.position: int = 0 if after == "latest" else after
        self._decode = decode
        self._untold = 0  # values of which the server does not know that they are taken
        self._untold_bytes = 0

    @property
    def handle(self) -> str:
        """The server's name for the job. Empty if it is not known yet."""
        return self._source.handle

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.handle or 'a call'} at {self.position}>"

    def _arrive(self, batch: Arrivals) -> bool:
        """Values have come. Returns whether there are any: at the end there are none."""
        if self._is_over or not batch.parts:
            self._is_over = True
            return False
        self.position = batch.start
        self._ready.extend(batch.parts)
        return True

    def _fail(self, error: BaseException) -> None:
        """There are no values now."""
        match error:
            case StreamGap(first=first):
                self.position = first - 1
            case StreamRestarted():
                self.position = 0
            case _ if self._source.owns or isinstance(error, Exception):
                self._leave()
            case _:
                pass  # a wait that was cancelled or interrupted can be repeated

    def _next(self) -> Y_co:
        part = self._ready.popleft()
        self.position += 1
        self._untold += 1
        self._untold_bytes += len(part)
        if self._untold >= _TOLD_PARTS or self._untold_bytes >= _TOLD_BYTES:
            self._untold = self._untold_bytes = 0
            self._acknowledge()
        return self._decode(part)

    @abstractmethod
    def _acknowledge(self) -> None:
        """The caller has the values up to the position."""


class AsyncStream(_Values[Y_co], AsyncIterator[Y_co], Generic[Y_co]):
    """The values of a stream, for code in an event loop. Use it with ``async for``.

    With ``async with`` the stream ends with the block. If you leave the iteration of ``task.astream()`` in
    another way, it ends when the garbage collector finds it, which CPython does at once.

    Attributes:
        position: The position of the last value that was returned. 0 before the first.
    """

    def __init__(
        self,
        call: JobRequest | ClientJob | JobName,
        decode: Callable[[bytes], Y_co],
        after: After = 0,
        lag: Lag | None = None,
        post: Post | None = None,
    ) -> None:
        """The values of a call, which is submitted at the first value, or by ``async with``. Or of a job."""
        super().__init__(_Source(call, after, lag, post), decode, after)
        self._is_attached = isinstance(call, ClientJob)
        self._client: Client | None = None

    async def __anext__(self) -> Y_co:
        if not self._ready:
            if self._is_over:
                raise StopAsyncIteration
            with self._alone():
                try:
                    batch = await self._source.take(await self._current(), self.position)
                except BaseException as error:
                    self._fail(error)
                    raise
            if not self._arrive(batch):
                raise StopAsyncIteration
        return self._next()

    async def aclose(self) -> None:
        """End the iteration. A job that this stream has submitted is cancelled if it has not ended."""
        self._is_over = True
        self._ready.clear()
        self._source.close()

    async def __aenter__(self) -> Self:
        try:
            await self._source.begin(await self._current())
        except BaseException as error:
            self._fail(error)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _current(self) -> Client | None:
        if self._client is None and not self._is_attached:
            self._client = current.at_hand() or await current.current()
        return self._client

    def _acknowledge(self) -> None:
        self._source.acknowledge(self.position)


class Stream(_Values[Y_co], Iterator[Y_co], Generic[Y_co]):
    """The values of a stream, for code without an event loop. Use it with ``for``.

    With ``with`` the stream ends with the block. If you leave the iteration of ``task.stream()`` in another
    way, it ends when the garbage collector finds it, which CPython does at once.

    Attributes:
        position: The position of the last value that was returned. 0 before the first.
    """

    def __init__(
        self,
        call: JobRequest | SyncJob | JobName,
        decode: Callable[[bytes], Y_co],
        after: After = 0,
        lag: Lag | None = None,
        post: Post | None = None,
    ) -> None:
        """The values of a call, which is submitted at the first value, or by ``with``. Or of a job."""
        what = call.attached if isinstance(call, SyncJob) else call
        super().__init__(_Source(what, after, lag, post), decode, after)
        self._owner: SyncClient | SyncJob | None = call if isinstance(call, SyncJob) else None
        self._arrived: Arrivals | None = None  # in the other thread, and not yet in this one

    def __next__(self) -> Y_co:
        try:
            return self._wait_for_next()
        except BaseException as error:
            if not isinstance(error, Exception):  # an interrupt, at any step; its traceback keeps the stream
                self._fail(error)
            raise

    def _wait_for_next(self) -> Y_co:
        if not self._ready:
            if self._is_over:
                raise StopIteration
            try:
                self._run(self._fetch)
            except BaseException as error:
                self._fail(error)
                raise
            batch, self._arrived = self._arrived, None
            assert batch is not None  # by ``_fetch``
            if not self._arrive(batch):
                raise StopIteration
        return self._next()

    def close(self) -> None:
        """End the iteration. A job that this stream has submitted is cancelled if it has not ended."""
        self._leave()

    def __enter__(self) -> Self:
        try:
            self._run(self._begin)
        except BaseException as error:
            self._fail(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, function: Callable[[Client | None], Awaitable[None]]) -> None:
        """Await a function in the event loop of the client."""
        current.forbid_running_loop("astream")
        if isinstance(self._owner, SyncJob):
            self._owner.run(lambda _: function(None))
            return
        if self._owner is None:
            self._owner = current.current_sync()
        self._owner.run(function)

    async def _begin(self, client: Client | None) -> None:
        await self._source.begin(client)

    async def _fetch(self, client: Client | None) -> None:
        # An interrupt may come before the other thread sees what has arrived.
        if self._arrived is None:
            self._arrived = await self._source.take(client, self.position)

    def _acknowledge(self) -> None:
        assert self._source.post is not None  # it has begun
        self._source.post(partial(self._source.acknowledge, self.position))


class _Unread:
    """Whether an attached job still waits for somebody to read its values. Owns state.

    The job waits when 64 values are not read. When its caller only waits for its end, or watches it, or drops
    it, the server learns that nobody is going to read.
    """

    __slots__ = ("_job", "_post")

    def __init__(self, job: ClientJob, post: Post) -> None:
        self._job: ClientJob | None = job
        self._post = post

    def read(self) -> Post:
        """Somebody reads the values. Returns how that is done in the event loop of the job."""
        self._job = None
        return self._post

    def leave(self) -> None:
        """Nobody is going to read them. From any thread."""
        job, self._job = self._job, None
        if isinstance(job, ReservedJob):
            self._post(job.leave_parts)

    def __del__(self) -> None:
        self.leave()


class AsyncStreamJob(AsyncJob[None], Generic[Y_co]):
    """An attached job of a task that yields. ``await job`` waits for its end.

    The job waits for you when 64 values are not read. If you only wait for its end or watch it, it does not.
    """

    __slots__ = ("_decode_part", "_unread")

    def __init__(self, job: ClientJob, decode: Callable[[bytes], Y_co], post: Post) -> None:
        super().__init__(job, _no_result)
        self._decode_part = decode
        self._unread = _Unread(job, post)

    def astream(self, after: After = 0, lag: Lag = "wait") -> AsyncStream[Y_co]:
        """Read the values. See ``StreamRef.astream``. If the connection closes, it raises ConnectionLost."""
        return AsyncStream(self._job, self._decode_part, after, lag, self._unread.read())

    async def result(self, timeout: float | timedelta | None = None) -> None:
        """Wait for the end. Raises as ``AsyncJob.result``."""
        self._unread.leave()
        await super().result(timeout)

    def aevents(self) -> AsyncIterator[Event[Y_co]]:
        """Yield what happens to the job, and at the end how it ended. See ``AsyncJob.aevents``.

        The values are events, too, but only on gearflow's server. A slow watcher misses some.
        """
        self._unread.leave()
        return AsyncEvents(self._job, self._decode_part)


class StreamJob(Job[None], Generic[Y_co]):
    """An attached job of a task that yields. ``job.result()`` waits for its end.

    The job waits for you when 64 values are not read. If you only wait for its end or watch it, it does not.
    """

    __slots__ = ("_decode_part", "_unread")

    def __init__(self, job: SyncJob, decode: Callable[[bytes], Y_co], post: Post) -> None:
        super().__init__(job, _no_result)
        self._decode_part = decode
        self._unread = _Unread(job.attached, post)

    def stream(self, after: After = 0, lag: Lag = "wait") -> Stream[Y_co]:
        """Read the values. See ``AsyncStreamJob.astream``."""
        return Stream(self._job, self._decode_part, after, lag, self._unread.read())

    def result(self, timeout: float | timedelta | None = None) -> None:
        """Wait for the end. Raises as ``AsyncJob.result``."""
        self._unread.leave()
        super().result(timeout)

    def events(self) -> Iterator[Event[Y_co]]:
        """Yield what happens to the job, and at the end how it ended. See ``AsyncStreamJob.aevents``."""
        self._unread.leave()
        return Events(self._job, self._decode_part)


class StreamRef(Ref[None], Generic[Y_co]):
    """A reference to a background job of a task that yields. Its ``result()`` waits for the end."""

    __slots__ = ()

    def __init__(self, job: JobName, task: str, decode: Callable[[bytes], Y_co] | None = None) -> None:
        self._job = job
        self._task = task
        self._decode = decode

    def _result_decoder(self) -> Callable[[bytes], None]:
        return _no_result

    def stream(self, after: After = 0, lag: Lag = "wait") -> Stream[Y_co]:
        """Read the values. See ``astream``."""
        return Stream(self._job, self._decoder(), after, lag)

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
        return AsyncStream(self._job, self._decoder(), after, lag)

    def events(self) -> Iterator[Event[Y_co]]:
        """Yield what happens to the job, and at the end how it ended. See ``aevents``."""
        return Events(self._job, self._decoder())

    def aevents(self) -> AsyncIterator[Event[Y_co]]:
        """Yield what happens to the job, and at the end how it ended. See ``Ref.aevents``.

        The values are events, too, of which a slow watcher misses some.
        """
        return AsyncEvents(self._job, self._decoder())


def _check(after: Any, lag: Any) -> None:
    """Raise ValueError for arguments that are not valid."""
    if after != "latest" and (isinstance(after, bool) or not isinstance(after, int) or after < 0):
        raise ValueError(f"after={after!r}: it is the position of a value, or 'latest'")
    if lag not in (None, "wait", "skip"):
        raise ValueError(f"lag={lag!r}: it is 'wait' or 'skip'")


def submit(call: JobRequest, decode: Callable[[bytes], Y]) -> StreamJob[Y]:
    """Submit a call of a task that yields. ``decode`` is for its parts."""
    client = current.current_sync()
    return StreamJob(client.attach(call.streamed(unread=True)), decode, client.post)


async def asubmit(call: JobRequest, decode: Callable[[bytes], Y]) -> AsyncStreamJob[Y]:
    """Submit a call of a task that yields. ``decode`` is for its parts."""
    client = current.at_hand() or await current.current()
    return AsyncStreamJob(await client.attach(call.streamed(unread=True)), decode, client.post)


def _no_result(_data: bytes) -> None:
    """The end of a stream has no value."""
