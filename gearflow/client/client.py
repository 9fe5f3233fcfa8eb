"""The async client: submit jobs to the servers there are, ask servers about jobs.

A client is entered once and owns its connections, one for each server in use, which all its callers share.
It connects when it is first needed. It may be used by any number of tasks of the event loop it was
entered in.
"""

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from sys import modules
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from gearflow.backoff import Backoff
from gearflow.client import server_calls
from gearflow.client.config import ServerAddress, default_servers, parse_servers
from gearflow.client.connection import ServerFeatures
from gearflow.client.discovery import default_discover
from gearflow.client.job import ClientJob, JobHandle, JobName, JobStatus
from gearflow.client.names import handle_to_wire, to_number, unique_to_text, unique_to_wire
from gearflow.client.pool import Pool, ResubmitPolicy, default_spread
from gearflow.client.requests import NotSent, Submission
from gearflow.client.submission import (
    JobRequest,
    SubmitOptions,
)
from gearflow.client.submitter import Sending, SentBatch, attached, background
from gearflow.errors import NoServer
from gearflow.protocol.codec import encode
from gearflow.protocol.constants import MAX_PAYLOAD, Priority
from gearflow.protocol.heartbeat import Timeouts
from gearflow.protocol.packets import (
    EchoReq,
    EchoRes,
    GetStatus,
    GetStatusUnique,
    Packet,
    StatusRes,
    StatusResUnique,
)
from gearflow.protocol.request_queue import Request
from gearflow.security.tls import TLS, Security
from gearflow.tracing import API, find_tracing

if TYPE_CHECKING:
    from gearflow.client.limits import ServerLimits
    from gearflow.client.schedules import ClientSchedules
    from gearflow.protocol.server_calls import JobInfo, Message  # it imports pydantic

P = TypeVar("P", bound=Packet)


class Client:
    """A client of Gearman servers, on asyncio and trio. Use it with ``async with Client() as client``.

    At the end of the block the connections close, and jobs that you still wait for end in ``ConnectionLost``.

    Args:
        servers: The servers in the order of preference, as ``host:port``, ``host`` or ``[ipv6]:port``. None
            means those in the environment variable GEARMAN_SERVERS (comma-separated), else 127.0.0.1:4730.
        spread: Whether the servers share the submissions. Submissions with equal function and unique then go
            to one server, and those without a unique take turns. If not, the first server that can be reached
            gets all. None means the environment variable GEARFLOW_SPREAD (1 or 0), else not.
        discover: Whether the client also uses the other servers of a group, which share a database. It asks
            one of them every 10 s which there are. Those in ``servers`` are always used, and servers that are
            in no group are not asked. None means the environment variable GEARFLOW_DISCOVER (1 or 0), else
            yes.
        tls: How to use TLS. True trusts the authorities that the system trusts. False turns TLS off. None
            means as the environment variables GEARFLOW_TLS and GEARFLOW_TLS_* say, else off.
        token: The token for servers that require one. Empty means none. None means that in GEARFLOW_TOKEN, or
            in the file named by GEARFLOW_TOKEN_FILE, else none.
        connect_timeout: Seconds to connect to a server and learn its features.
        answer_timeout: Seconds after which a server that does not answer a request counts as lost. A
            submission is then ``SubmitUnknown``. The same holds for the calls of gearflow's own server, such
            as ``info`` and ``cancel``, which end in ``ConnectionLost``. (The result of a job is not such an
            answer, and takes its time.)
        heartbeat: Seconds of silence after which a server that has an attached job is asked whether it is
            there. After as much silence again it counts as lost.
        timeouts: All time limits as one value, in place of these three.
        backoff: How long a server that could not be reached is left alone.
        resubmit: How a submission whose server was lost is sent again.
        max_result: Bytes in the largest result that the client takes. A larger one ends its connection, and
            the job is lost (``ConnectionLost``).

    Raises:
        ValueError: An entry is not an address, a limit or the token is not valid, or a TLS file cannot be
            used.
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
        addresses = default_servers() if servers is None else parse_servers(servers)
        self._pool = Pool(
            addresses,
            spreads=default_spread() if spread is None else spread,
            timeouts=timeouts or Timeouts(connect_timeout, answer_timeout, heartbeat),
            backoff=backoff,
            resubmit=resubmit,
            security=Security.of(tls, token),
            max_result=max_result,
            discover=default_discover() if discover is None else discover,
        )

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._pool.__aexit__(kind, error, traceback)

    @property
    def servers(self) -> tuple[ServerAddress, ...]:
        """The servers for submissions, in the order of preference. Those that were found come last."""
        return self._pool.addresses

    @property
    def spreads(self) -> bool:
        """Whether the servers share the submissions."""
        return self._pool.spreads

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection to the first of the servers now."""
        return self._pool.first is not None

    @property
    def security(self) -> Security:
        """The TLS settings and the token of its connections."""
        return self._pool.security

    @property
    def pool(self) -> Pool:
        """The servers with their connections, for what reads or watches jobs."""
        return self._pool

    @property
    def limits(self) -> "ServerLimits":
        """The limits of the servers, to be listed and changed."""
        from gearflow.client.limits import ServerLimits  # only now: it imports pydantic

        return ServerLimits(self)

    async def submit(
        self,
        function: str,
        workload: bytes,
        *,
        unique: str | bytes = "",
        priority: Priority = Priority.NORMAL,
        options: SubmitOptions | None = None,
    ) -> ClientJob:
        """Submit a job and stay attached to it. Returns when the server has accepted it.

        If the caller is cancelled, it detaches from the job, as by ``ClientJob.cancel``.

        Args:
            function: The function's name on the server. May be empty.
            workload: The bytes for the worker.
            unique: Joins the waiting or running job of this function with the same key, of at most 63 bytes.
                Empty joins nothing. ``-`` makes the workload the key.
            priority: The priority among the waiting jobs of the function.
            options: Further options. With them, you may see a refusal only when you ask for the result.

        Raises:
            NoServer: No server can be reached. Nothing was sent.
            SubmitUnknown: The connection closed before the server acknowledged the job, which may or may not
                exist.
            QueueFull: The function's queue is full.
            ServerError: The server refused the job for another reason.
            UnsupportedByServer: The server cannot honour an option. Nothing was sent.
            LocalProtocolError: The function or the unique cannot be sent.
        """
        return await self.attach(
            JobRequest(function, workload, unique_to_text(unique), priority, options, detached=False)
        )

    async def attach(self, request: JobRequest) -> ClientJob:
        """Submit a job that is not detached, and stay attached to it. Raises as ``submit``."""
        if API in modules and request.trace is None and (tracing := find_tracing()) is not None:
            with tracing.send(request.function, attached=True) as span:
                job = await self.attach(request.traced(span.trace))
                span.accepted(job.handle, job.server.host, job.server.port)
                return job
        if request.options is not None or request.trace or self._pool.spreads:
            request.check()
            return await Sending(self._pool, request).attach()
        accepted = await self._submit(request)
        assert accepted.job is not None  # it was accepted, and we were not cancelled
        return accepted.job

    async def submit_and_wait(self, request: JobRequest) -> ClientJob:
        """Submit a job that is not detached, and return it when it has ended. Raises as ``submit``.

        If the caller is cancelled, it detaches from the job. The event loop's turn that most callers would
        take between the two steps of ``attach`` and ``ClientJob.result`` is saved.
        """
        if API in modules and request.trace is None and (tracing := find_tracing()) is not None:
            with tracing.send(request.function, attached=True) as span:
                job = await self.submit_and_wait(request.traced(span.trace))
                span.accepted(job.handle, job.server.host, job.server.port)
                try:
                    job.outcome()
                except Exception as failure:  # noqa: BLE001  (the caller gets it from the job)
                    span.failed(failure)
                return job
        if not (request.options is not None or request.trace or self._pool.spreads):
            submitted = await self._submit(request, to_the_end=True)
            assert submitted.job is not None  # it was accepted, and we were not cancelled
            return submitted.job
        job = await self.attach(request)
        try:
            await job.wait()
        except BaseException:
            job.cancel()
            raise
        return job

    async def attach_many(self, orders: Sequence[JobRequest]) -> list[ClientJob | Exception]:
        """Submit many jobs at once that are not detached, and stay attached to them. See ``submit_many``.

        If the caller is cancelled, it detaches from all of them.
        """
        batch = attached(self._pool, orders)
        if orders:
            await batch.send()
        return await batch.outcomes()

    async def submit_background(
        self,
        function: str,
        workload: bytes,
        *,
        unique: str | bytes = "",
        priority: Priority = Priority.NORMAL,
        at: float | None = None,
        options: SubmitOptions | None = None,
    ) -> JobHandle:
        """Submit a background job. Returns when the server has accepted it.

        Args:
            function, workload, unique, priority, options: As for ``submit``.
            at: Unix time before which the job does not run. The same as in ``options``.

        Raises:
            NoServer, SubmitUnknown, QueueFull, ServerError, UnsupportedByServer, LocalProtocolError: As for
                ``submit``.
        """
        if at is not None:
            options = replace(options or SubmitOptions(), at=at)
        return await self.enqueue(JobRequest(function, workload, unique_to_text(unique), priority, options))

    async def enqueue(self, request: JobRequest) -> JobHandle:
        """Submit a detached job. Raises as ``submit_background``."""
        if API in modules and request.trace is None and (tracing := find_tracing()) is not None:
            with tracing.send(request.function, attached=False) as span:
                handle = await self.enqueue(request.traced(span.trace))
                span.accepted(handle.handle, handle.server.host, handle.server.port)
                return handle
        if request.options is not None or request.trace or self._pool.spreads:
            request.check()
            return await Sending(self._pool, request).submit_background()
        accepted = await self._submit(request)
        assert accepted.handle is not None  # it was accepted
        return accepted.handle

    async def submit_many(self, orders: Sequence[JobRequest]) -> list[JobHandle | Exception]:
        """Submit many background jobs at once. Returns when the server has answered for all of them.

        The client sends them to one server, unless that server fails in the middle, or all servers share the
        load. If a job is not accepted, the error that ``submit_background`` would have raised is in its
        place.

        Raises:
            NoServer, UnsupportedByServer, LocalProtocolError: Nothing was sent.
        """
        return await (await self.send_many(orders)).outcomes()

    async def send_many(self, orders: Sequence[JobRequest]) -> SentBatch[JobHandle]:
        """Send many background jobs at once, as ``submit_many``, without waiting for the answers.

        ``await batch.outcomes()`` returns what ``submit_many`` returns. Raises as ``submit_many``.
        """
        batch = background(self._pool, orders)
        if orders:
            await batch.send()
        return batch

    async def call_reserved(
        self, function: str | bytes, request: "Message", *, server: ServerAddress | str | None = None
    ) -> bytes:
        """Call a reserved function of gearflow's own server, whose name begins with ``gearflow:``.

        Args:
            function: Its name, such as ``gearflow:info``.
            request: The request.
            server: The server. By default the one that a submission would go to.

        Raises:
            UnsupportedByServer: The server is not gearflow's own. Nothing was sent.
            UnknownJob: The server does not know the job (or the function).
            TimeoutError: The job has not ended in the time that the request gives it.
            QueueFull, ServerError: The server refuses. ``code`` is the type of the fault.
            JobFailed: The request is for a job's result, and the job failed.
            NoServer: The server cannot be reached.
            ConnectionLost: The connection closed before the answer, or there was none in ``answer_timeout``.
        """
        return await server_calls.call(self._pool, function, request, server)

    @property
    def schedules(self) -> "ClientSchedules":
        """Schedules whose jobs gearflow's own server makes."""
        from gearflow.client.schedules import ClientSchedules

        return ClientSchedules(self)

    async def result(self, job: JobName, timeout: float | None = None) -> bytes:
        """Wait for the result of a background job, which gearflow's server keeps for a while.

        The wait survives lost connections and restarts of the server, because the client asks again. It waits
        for a server that cannot be reached at first only if there is a ``timeout``.

        Args:
            job: A handle with or without its server, or a ``JobKey``. Without a server, the client asks its
                servers in order.
            timeout: Seconds to wait. None means for ever.

        Raises:
            JobFailed: The job failed, was cancelled, has expired, or its workers died.
            TimeoutError: The job has not ended in time, and runs on.
            UnknownJob: The server does not know the job, or no longer keeps its result.
            NoServer: The server could not be reached (again) in time.
            UnsupportedByServer: The server does not keep results.
        """
        return await server_calls.result(self._pool, job, timeout)

    async def info(self, job: JobName) -> "JobInfo":
        """Return what a gearflow server knows about a job, also about one that has ended.

        Raises:
            UnknownJob: The server does not know the job, or no longer knows it.
            UnsupportedByServer, NoServer, ConnectionLost: As for ``call_reserved``.
            RemoteProtocolError: The answer cannot be read.
        """
        return await server_calls.info(self._pool, job)

    async def cancel(self, job: JobName) -> bool:
        """Cancel a job that waits or runs, on a gearflow server. The server notifies the worker that runs it.

        Returns whether there was a job to cancel. It is False for a job that has ended, or that never
        existed.

        Raises:
            UnsupportedByServer, NoServer, ConnectionLost: As for ``call_reserved``.
        """
        return await server_calls.cancel(self._pool, job)

    async def edit(
        self,
        job: JobName,
        *,
        priority: Priority | None = None,
        delay: float | None = None,
        at: float | None = None,
        expires: float | None = None,
    ) -> None:
        """Change a job that waits or is delayed, on a gearflow server. Everything else stays as it is.

        Args:
            job: The job.
            priority: The priority. The job is then the last one of that priority.
            delay: Seconds from now before which the job does not run. 0 means at once.
            at: The same as a Unix time.
            expires: Seconds from now after which the job does not start.

        Raises:
            UnknownJob: There is no such job.
            ServerError: The job runs or has ended, or the change could not be kept.
            ValueError: There is nothing to change, or both ``delay`` and ``at``.
            UnsupportedByServer, NoServer, ConnectionLost: As for ``call_reserved``.
        """
        await server_calls.edit(self._pool, job, priority=priority, delay=delay, at=at, expires=expires)

    async def status(self, handle: JobHandle | str) -> JobStatus:
        """Return what the server that has the job knows about it.

        A bare str names no server. The client then asks its servers in order until one knows the job.

        Raises:
            NoServer: The server cannot be reached. For a str, none of them can.
            ConnectionLost: The connection closed before the answer.
        """
        if isinstance(handle, JobHandle):
            return await self._status(handle.server, handle.handle)
        return await self._first_known(lambda server: self._status(server, handle))

    async def status_by_unique(self, unique: str | bytes) -> JobStatus:
        """Return what the servers, asked in order, know about the live job with this unique, of any function.

        Raises as ``status``, and ServerError from servers that do not know the request (Perl's).
        """
        return await self._first_known(lambda server: self._status_by_unique(server, unique))

    async def echo(self, data: bytes) -> bytes:
        """Send bytes to the server that a submission would go to, and return its echo. Raises as
        ``status``."""
        return (await self._ask(None, EchoReq(data), EchoRes, "an echo")).data

    async def features(self, server: ServerAddress | str | None = None) -> ServerFeatures:
        """Return the features of a server, by default the one that a submission would go to. Connects if
        needed.

        Raises:
            NoServer: The server cannot be reached.
            ValueError: The text is not an address.
        """
        if server is None:
            return (await self._pool.connection()).features
        address = ServerAddress.parse(server) if isinstance(server, str) else server
        return (await self._pool.connection_to(address)).features

    def advise(self, remedy: Callable[[], str]) -> None:
        """Have ``remedy`` asked, when no server can be reached, what ``NoServer`` is to end with.

        If that is empty, it ends as it does without advice.
        """
        self._pool.remedy = remedy

    def start_soon(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``function`` beside the connections; closing the client cancels it. It must not raise.

        Raises:
            ConnectionLost: The client is closed.
        """
        self._pool.start_soon(function)

    def post(self, function: Callable[[], object]) -> None:
        """Have ``function`` called in the client's event loop soon, in order, from any thread.

        Nothing happens if the loop is gone then.
        """
        self._pool.post(function)

    async def _submit(self, request: JobRequest, *, to_the_end: bool = False) -> Submission:
        """Submit a request without options, to one server after another until it is sent once."""
        unique, packet = request.encode()
        while True:
            connection = self._pool.first or await self._pool.connection()
            submission = Submission(
                request.function,
                unique,
                connection.new_signal(),
                attached=not request.detached,
                to_the_end=to_the_end,
            )
            try:
                await connection.ask(submission, packet)
            except NotSent:
                continue
            return submission

    async def _ask(self, server: ServerAddress | None, packet: Packet, answer: type[P], what: str) -> P:
        data = encode(packet)
        while True:
            pool = self._pool
            connection = await (pool.connection() if server is None else pool.connection_to(server))
            request = Request(answer.type, what, connection.new_signal())
            try:
                await connection.ask(request, data)
            except NotSent:
                continue
            assert isinstance(request.answer, answer)  # the connection matched its number
            return request.answer

    async def _status(self, server: ServerAddress, handle: str) -> JobStatus:
        packet = GetStatus(handle_to_wire(handle))
        answer = await self._ask(server, packet, StatusRes, f"the status of {handle}")
        return _job_status(answer)

    async def _status_by_unique(self, server: ServerAddress, unique: str | bytes) -> JobStatus:
        packet = GetStatusUnique(unique_to_wire(unique))
        answer = await self._ask(server, packet, StatusResUnique, f"the status of unique {unique!r}")
        return _job_status(answer)

    async def _first_known(self, status_on: Callable[[ServerAddress], Awaitable[JobStatus]]) -> JobStatus:
        """The answer of the first server that knows the job, else of any that can be reached."""
        unknown: JobStatus | None = None
        reasons: dict[str, str] = {}
        for server in self.servers:
            try:
                status = await status_on(server)
            except NoServer as error:
                reasons |= error.reasons
            else:
                if status.known:
                    return status
                unknown = status
        if unknown is None:
            raise NoServer(reasons)
        return unknown


def _job_status(answer: StatusRes | StatusResUnique) -> JobStatus:
    return JobStatus(
        known=answer.known == b"1",
        running=answer.running == b"1",
        numerator=to_number(answer.numerator),
        denominator=to_number(answer.denominator),
    )
