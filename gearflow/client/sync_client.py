"""The blocking face of the client: the same methods with the same parameters, and no logic of its own.

The async client runs in an event loop in a thread of its own, through which every call goes.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from threading import Lock, RLock, Thread, current_thread
from types import TracebackType
from typing import TYPE_CHECKING, Generic, NoReturn, Self, TypeVar

import anyio

from gearflow.backoff import Backoff
from gearflow.client.blocking_submit import BlockingSubmitter
from gearflow.client.client import Client
from gearflow.client.config import ServerAddress
from gearflow.client.connection import ServerFeatures
from gearflow.client.job import ClientJob, JobEvent, JobHandle, JobName, JobStatus
from gearflow.client.names import unique_to_text
from gearflow.client.pool import ResubmitPolicy
from gearflow.client.requests import NotSent
from gearflow.client.submission import JobRequest, SubmitOptions
from gearflow.errors import ConnectionLost
from gearflow.protocol.constants import Priority
from gearflow.protocol.heartbeat import Timeouts
from gearflow.runtime.eventloop import can_use_uvloop
from gearflow.runtime.fork import forget_in_children
from gearflow.security.tls import PLAIN, TLS, Security

if TYPE_CHECKING:
    from gearflow.protocol.server_calls import JobInfo, Message  # it imports pydantic

T = TypeVar("T")

import_module("concurrent.futures.thread")  # uvloop imports it: too late, once the main thread has ended


class SyncClient:
    """A client of Gearman servers for code without an event loop. Use it with ``with SyncClient() as
    client``.

    Arguments and methods are those of ``Client``. Any number of threads may use it at once.

    It costs a thread, and 50 to 100 microseconds for each call, in which two threads take turns. (Background
    jobs without options avoid that.) You cannot use it in a child process that was forked while it was open.
    Ctrl-C ends a waiting call.
    """

    def __init__(
        self,
        servers: Iterable[str | ServerAddress] | None = None,
        *,
        spread: bool | None = None,
        tls: TLS | bool | None = None,
        token: str | None = None,
        connect_timeout: float = 5.0,
        answer_timeout: float = 25.0,
        heartbeat: float = 10.0,
        timeouts: Timeouts | None = None,
        backoff: Backoff = Backoff(),  # noqa: B008  (frozen)
        resubmit: ResubmitPolicy = ResubmitPolicy(),  # noqa: B008  (frozen)
    ) -> None:
        limits = timeouts or Timeouts(connect_timeout, answer_timeout, heartbeat)
        self._client = Client(
            servers,
            spread=spread,
            tls=tls,
            token=token,
            timeouts=limits,
            backoff=backoff,
            resubmit=resubmit,
        )
        self._loop = _Loop(limits.close)
        self._direct = BlockingSubmitter(
            self._client.servers[0],
            limits,
            backoff,
            is_reached=lambda: self._client.is_connected,
        )

    def __enter__(self) -> Self:
        self._loop.start(self._client)
        if self._client.security == PLAIN and not self._client.spreads:
            self._direct.open()
            forget_in_children(self._direct, BlockingSubmitter.forget)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._direct.close()
        self._loop.stop()

    @property
    def servers(self) -> tuple[ServerAddress, ...]:
        """The servers for submissions, in the order of preference."""
        return self._client.servers

    @property
    def security(self) -> Security:
        """The TLS settings and the token of its connections."""
        return self._client.security

    def submit(
        self,
        function: str,
        workload: bytes,
        *,
        unique: str | bytes = "",
        priority: Priority = Priority.NORMAL,
        options: SubmitOptions | None = None,
    ) -> "SyncJob":
        """Submit a job and stay attached to it. See ``Client.submit``."""
        return self.attach(
            JobRequest(function, workload, unique_to_text(unique), priority, options, detached=False)
        )

    def attach(self, request: JobRequest) -> "SyncJob":
        """Submit a job that is not detached, and stay attached to it. See ``Client.attach``."""
        return SyncJob(self._loop.call(partial(self._client.attach, request)), self._loop)

    def submit_background(
        self,
        function: str,
        workload: bytes,
        *,
        unique: str | bytes = "",
        priority: Priority = Priority.NORMAL,
        at: float | None = None,
        options: SubmitOptions | None = None,
    ) -> JobHandle:
        """Submit a background job. See ``Client.submit_background``."""
        if at is not None:
            options = replace(options or SubmitOptions(), at=at)
        return self.enqueue(JobRequest(function, workload, unique_to_text(unique), priority, options))

    def enqueue(self, request: JobRequest) -> JobHandle:
        """Submit a detached job. See ``Client.enqueue``."""
        if request.options is None:
            unique, packet = request.encode()
            with suppress(NotSent):
                return self._direct.submit(request.function, unique, packet)
        return self._loop.call(partial(self._client.enqueue, request))

    def submit_many(self, orders: Sequence[JobRequest]) -> list[JobHandle | Exception]:
        """Submit many background jobs at once. See ``Client.submit_many``."""
        return self._loop.call(partial(self._client.submit_many, orders))

    def call_reserved(
        self, function: str | bytes, request: "Message", *, server: ServerAddress | str | None = None
    ) -> bytes:
        """Call a reserved function of gearflow's own server. See ``Client.call_reserved``."""
        return self._loop.call(partial(self._client.call_reserved, function, request, server=server))

    def result(self, job: JobName, timeout: float | None = None) -> bytes:
        """Wait for the result of a background job. See ``Client.result``."""
        return self._loop.call(partial(self._client.result, job, timeout))

    def info(self, job: JobName) -> "JobInfo":
        """Return what a gearflow server knows about a job. See ``Client.info``."""
        return self._loop.call(partial(self._client.info, job))

    def cancel(self, job: JobName) -> bool:
        """Cancel a job that waits or runs, on a gearflow server. See ``Client.cancel``."""
        return self._loop.call(partial(self._client.cancel, job))

    def status(self, handle: JobHandle | str) -> JobStatus:
        """Return what the server that has the job knows about it. See ``Client.status``."""
        return self._loop.call(partial(self._client.status, handle))

    def status_by_unique(self, unique: str | bytes) -> JobStatus:
        """Return what the servers know about the live job with this unique. See
        ``Client.status_by_unique``."""
        return self._loop.call(partial(self._client.status_by_unique, unique))

    def echo(self, data: bytes) -> bytes:
        """Send bytes and return the echo. See ``Client.echo``."""
        return self._loop.call(partial(self._client.echo, data))

    def features(self, server: ServerAddress | str | None = None) -> ServerFeatures:
        """Return the features of a server. See ``Client.features``."""
        return self._loop.call(partial(self._client.features, server))

    def run(self, function: Callable[[Client], Awaitable[T]]) -> T:
        """Await ``function(client)`` with the asynchronous client in its event loop, and return the result.

        Many calls in one function take only one turn of the threads.
        """
        return self._loop.call(partial(function, self._client))

    def advise(self, remedy: Callable[[], str]) -> None:
        """Have ``remedy`` asked what ``NoServer`` is to end with; see ``Client.advise``."""
        self._client.advise(remedy)

    def post(self, function: Callable[[], object]) -> None:
        """Have ``function`` called in that event loop soon, from any thread; see ``Client.post``."""
        self._client.post(function)


class SyncJob:
    """The blocking form of a ``ClientJob``. It belongs to the ``SyncClient`` that submitted it."""

    __slots__ = ("_job", "_loop")

    def __init__(self, job: ClientJob, loop: "_Loop") -> None:
        self._job = job
        self._loop = loop

    def __repr__(self) -> str:
        return repr(self._job).replace("ClientJob", "SyncJob", 1)

    @property
    def handle(self) -> str:
        """The server's name for the job."""
        return self._job.handle

    @property
    def server(self) -> ServerAddress:
        """The server that has the job."""
        return self._job.server

    @property
    def function(self) -> str:
        """The function of the job."""
        return self._job.function

    @property
    def done(self) -> bool:
        """Whether the job has ended for this client. It completed, failed, was lost, or was cancelled
        here."""
        return self._job.done

    def result(self, timeout: float | None = None) -> bytes:
        """Wait for the end and return the result. See ``ClientJob.result``."""
        return self._loop.call(partial(self._job.result, timeout))

    def run(self, function: Callable[[ClientJob], Awaitable[T]]) -> T:
        """Await ``function(job)`` in the event loop of its client, and return the result. See
        ``SyncClient.run``.
        """
        return self._loop.call(partial(function, self._job))

    def events(self) -> Iterator[JobEvent]:
        """Yield what the worker sends before the end. See ``ClientJob.events``."""
        while (event := self.next_event()) is not None:
            yield event

    def next_event(self) -> JobEvent | None:
        """Wait for the next event and return it, or None when the job has ended."""
        return self._loop.call(self._job.next_event)

    def cancel(self) -> bool:
        """Detach from the job. See ``ClientJob.cancel``."""
        return self._loop.call_plain(self._job.cancel)

    def add_done_callback(self, callback: Callable[[ClientJob], object]) -> None:
        """Call ``callback(job)`` in the client's thread when the job has ended. See ``ClientJob``.

        A blocking call of the same client in the callback would wait for itself, and raises an error.
        """
        self._loop.call_plain(partial(self._job.add_done_callback, callback))


class _Loop:
    """The event loop in a thread of its own that a client lives in.

    A call takes one turn of the two threads. (anyio's BlockingPortal takes two, one to begin and one to
    end, and an interrupt in the first leaves the call waiting for ever.)
    """

    __slots__ = ("__weakref__", "_grace", "_lock", "_loop", "_stop", "_thread", "_why_not")

    def __init__(self, grace: float) -> None:
        self._grace = grace  # seconds for calls under way when the client is left
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._thread: Thread | None = None
        # No call begins behind the stop, where nobody would answer it. A signal handler may call, too.
        self._lock = RLock()
        self._why_not: Callable[[], Exception] = partial(
            RuntimeError, "the client is not open; use it inside 'with SyncClient(...) as client:'"
        )

    def start(self, client: Client) -> None:
        """Enter the client there; returns when it can be used.

        Raises:
            RuntimeError: The interpreter is exiting.
        """
        _require_threads()
        started: Future[asyncio.AbstractEventLoop] = Future()

        async def live() -> None:
            async with client:
                started.set_result(asyncio.get_running_loop())
                await self._stop.wait()
            if calls := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(calls, timeout=self._grace)

        def run() -> None:
            try:
                # It halves what a call costs; no user code runs here that could mind which loop it is.
                anyio.run(live, backend_options={"use_uvloop": can_use_uvloop()})
            except BaseException as error:
                if started.done():
                    raise
                started.set_exception(error)

        # A daemon, so that a client that was not left does not keep the interpreter from exiting.
        self._thread = Thread(target=run, name="gearflow-client", daemon=True)
        self._thread.start()
        self._loop = started.result()
        forget_in_children(self, _Loop.forget)

    def stop(self) -> None:
        """Leave the client; calls that wait end in ConnectionLost; the thread has ended on return."""
        with self._lock:
            loop, self._loop = self._loop, None
            if loop is None or self._thread is None:
                return
            self._why_not = partial(ConnectionLost, "the client is closed: its 'with' block has been left")
            loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def forget(self) -> None:
        """We are in a forked child, where neither the thread nor the connections are ours."""
        self._loop = None
        self._lock = RLock()  # another thread of the parent may have held it
        self._why_not = partial(RuntimeError, "the client was opened before a fork; open one in the child")

    def call(self, function: Callable[[], Awaitable[T]]) -> T:
        """Await it there and wait for the outcome; an interrupted wait cancels it."""
        if self._thread is current_thread():
            raise RuntimeError("a blocking call in the client's own thread would wait for itself")
        _require_threads()
        call = _Call(function)
        try:
            with self._lock:
                if self._loop is None:
                    raise self._why_not()
                call.begin_on(self._loop)
            call.wait()
        except BaseException:
            call.abandon()
            raise
        return call.outcome()

    def call_plain(self, function: Callable[[], T]) -> T:
        """Call it there, for what must not happen beside the loop."""

        async def there() -> T:
            return function()

        return self.call(there)


class _Call(Generic[T]):
    """A call that is awaited in the loop's thread, and waited for in another one.

    No ``concurrent.futures.Future``: whoever begins to wait for one has its lock for a moment. A signal
    handler that made a call in that moment would wait for the loop, and the loop for the lock.
    """

    __slots__ = ("_ended", "_function", "_loop", "_task", "outcome")

    def __init__(self, function: Callable[[], Awaitable[T]]) -> None:
        self._function = function
        self.outcome: Callable[[], T] = _raise_cancelled
        """Returns or raises what the function did; CancelledError if the loop ended first."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._ended = Lock()  # held until then
        self._ended.acquire()

    def wait(self) -> None:
        """Wait for the end, in whatever thread."""
        self._ended.acquire()

    def abandon(self) -> None:
        """Nobody waits for it any more, if it has begun."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._cancel)

    def begin_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin it there."""
        self._loop = loop
        loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(self._end)

    async def _run(self) -> None:
        # asyncio would turn a concurrent.futures.CancelledError into its own, so nothing is raised here.
        try:
            value = await self._function()
        except Exception as error:  # noqa: BLE001  (raised there)
            self.outcome = partial(_raise, error)
        else:
            self.outcome = lambda: value

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _end(self, _: asyncio.Task[None]) -> None:
        self._task = None
        self._ended.release()


def _raise(error: Exception) -> NoReturn:
    raise error


def _raise_cancelled() -> NoReturn:
    raise CancelledError


def _require_threads() -> None:
    """Refuse what would wait for another thread for ever, as in ``__del__`` when the interpreter exits."""
    if sys.is_finalizing():
        raise RuntimeError("the interpreter is exiting: its threads have stopped, and nothing can be sent")
