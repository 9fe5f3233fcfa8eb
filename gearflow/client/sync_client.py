"""The blocking face of the client: the same methods with the same parameters, and no logic of its own.

The async client runs in an event loop in a thread of its own, through which every call goes.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from sys import modules
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from gearflow.backoff import Backoff
from gearflow.client.blocking_submit import BlockingSubmitter
from gearflow.client.client import Client
from gearflow.client.config import ServerAddress
from gearflow.client.connection import ServerFeatures
from gearflow.client.discovery import is_of_group
from gearflow.client.job import ClientJob, JobEvent, JobHandle, JobName, JobStatus
from gearflow.client.names import unique_to_text
from gearflow.client.pool import ResubmitPolicy
from gearflow.client.requests import NotSent
from gearflow.client.submission import JobRequest, SubmitOptions
from gearflow.protocol.constants import MAX_PAYLOAD, Priority
from gearflow.protocol.heartbeat import Timeouts
from gearflow.runtime.fork import forget_in_children
from gearflow.runtime.loop_thread import LoopThread
from gearflow.security.tls import PLAIN, TLS, Security
from gearflow.tracing import API, find_tracing

if TYPE_CHECKING:
    from gearflow.client.limits import SyncServerLimits
    from gearflow.client.schedules import SyncSchedules
    from gearflow.protocol.server_calls import JobInfo, Message  # it imports pydantic

T = TypeVar("T")


class SyncClient:
    """A client of Gearman servers for code without an event loop. Use it with ``with SyncClient() as
    client``.

    Arguments and methods are those of ``Client``. Any number of threads may use it at once.

    It costs a thread, and 50 to 100 microseconds for each call, in which two threads take turns. (Background
    jobs avoid that.) You cannot use it in a child process that was forked while it was open.
    Ctrl-C ends a waiting call.
    """

    def __init__(
        self,
        servers: Iterable[str | ServerAddress] | None = None,
        *,
        spread: bool | None = None,
        discover: bool | None = None,
        tls: TLS | bool | None = None,
        token: str | None = None,
        connect_timeout: float = 5.0,
        answer_timeout: float = 25.0,
        heartbeat: float = 10.0,
        timeouts: Timeouts | None = None,
        backoff: Backoff = Backoff(),  # noqa: B008  (frozen)
        resubmit: ResubmitPolicy = ResubmitPolicy(),  # noqa: B008  (frozen)
        max_result: int = MAX_PAYLOAD,
    ) -> None:
        limits = timeouts or Timeouts(connect_timeout, answer_timeout, heartbeat)
        self._client = Client(
            servers,
            spread=spread,
            discover=discover,
            tls=tls,
            token=token,
            timeouts=limits,
            backoff=backoff,
            resubmit=resubmit,
            max_result=max_result,
        )
        self._loop = LoopThread(lambda: self._client, "client", "SyncClient", grace=limits.close)
        self._direct = BlockingSubmitter(
            self._client.servers[0],
            limits,
            backoff,
            is_reached=lambda: self._client.is_connected,
        )
        self._has_looked = False

    def __enter__(self) -> Self:
        self._loop.start()
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
        """The servers for submissions, in the order of preference. Those that were found come last."""
        return self._client.servers

    @property
    def security(self) -> Security:
        """The TLS settings and the token of its connections."""
        return self._client.security

    @property
    def limits(self) -> "SyncServerLimits":
        """The limits of the servers, to be listed and changed."""
        from gearflow.client.limits import SyncServerLimits  # only now: it imports pydantic

        return SyncServerLimits(self._client.limits, self._loop.call)

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

    def submit_and_wait(self, request: JobRequest) -> "SyncJob":
        """Submit a job that is not detached, and return it when it has ended. See
        ``Client.submit_and_wait``."""
        return SyncJob(self._loop.call(partial(self._client.submit_and_wait, request)), self._loop)

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
        if API in modules and request.trace is None and (tracing := find_tracing()) is not None:
            with tracing.send(request.function, attached=False) as span:
                handle = self.enqueue(request.traced(span.trace))
                span.accepted(handle.handle, handle.server.host, handle.server.port)
                return handle
        if not (request.resubmits or request.reuses or request.debounces):
            has_options = request.options is not None or bool(request.trace)
            if has_options:
                request.check()
            unique, packet = request.encode_for_gearflow()
            with suppress(NotSent):
                handle = self._direct.submit(request.function, unique, packet, has_options=has_options)
                if not self._has_looked and is_of_group(handle.handle):
                    self._look()
                return handle
        return self._loop.call(partial(self._client.enqueue, request))

    def _look(self) -> None:
        """The server is one of a group: have the loop find out who else is there."""
        self._has_looked = True
        with suppress(Exception):  # the job is acknowledged, whatever becomes of this
            self._loop.call_plain(self._client.pool.look)

    def submit_many(self, orders: Sequence[JobRequest]) -> list[JobHandle | Exception]:
        """Submit many background jobs at once. See ``Client.submit_many``."""
        return self._loop.call(partial(self._client.submit_many, orders))

    def call_reserved(
        self, function: str | bytes, request: "Message", *, server: ServerAddress | str | None = None
    ) -> bytes:
        """Call a reserved function of gearflow's own server. See ``Client.call_reserved``."""
        return self._loop.call(partial(self._client.call_reserved, function, request, server=server))

    @property
    def schedules(self) -> "SyncSchedules":
        """Schedules whose jobs gearflow's own server makes."""
        from gearflow.client.schedules import SyncSchedules

        return SyncSchedules(self)

    def result(self, job: JobName, timeout: float | None = None) -> bytes:
        """Wait for the result of a background job. See ``Client.result``."""
        return self._loop.call(partial(self._client.result, job, timeout))

    def info(self, job: JobName) -> "JobInfo":
        """Return what a gearflow server knows about a job. See ``Client.info``."""
        return self._loop.call(partial(self._client.info, job))

    def cancel(self, job: JobName) -> bool:
        """Cancel a job that waits or runs, on a gearflow server. See ``Client.cancel``."""
        return self._loop.call(partial(self._client.cancel, job))

    def edit(
        self,
        job: JobName,
        *,
        priority: Priority | None = None,
        delay: float | None = None,
        at: float | None = None,
        expires: float | None = None,
    ) -> None:
        """Change a job that waits or is delayed, on a gearflow server. See ``Client.edit``."""
        change = partial(self._client.edit, priority=priority, delay=delay, at=at, expires=expires)
        return self._loop.call(partial(change, job))

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

    def __init__(self, job: ClientJob, loop: LoopThread[Client]) -> None:
        self._job = job
        self._loop = loop

    def __repr__(self) -> str:
        return repr(self._job).replace("ClientJob", "SyncJob", 1)

    @property
    def attached(self) -> ClientJob:
        """The job itself, for the event loop of its client."""
        return self._job

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
