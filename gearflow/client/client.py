"""The async client: submit jobs to the servers there are, ask servers about jobs.

A client is entered once and owns its connections, one for each server in use, which all its callers share.
It connects when it is first needed. It may be used by any number of tasks of the event loop it was
entered in.
"""

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from gearflow.client import server_calls, submitter
from gearflow.client.config import ServerAddress, default_servers, parse_servers
from gearflow.client.connection import ServerFeatures
from gearflow.client.job import ClientJob, JobHandle, JobName, JobStatus
from gearflow.client.names import function_to_wire, handle_to_wire, to_text, unique_to_wire
from gearflow.client.pool import Backoff, Pool, default_spread
from gearflow.client.requests import NotSent, Request, Submission
from gearflow.client.submission import (
    BACKGROUND,
    FOREGROUND,
    JobRequest,
    Priority,
    SubmitOptions,
    encode_submission,
)
from gearflow.client.submitter import Sending
from gearflow.errors import NoServer
from gearflow.protocol.codec import encode
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
from gearflow.security.tls import TLS, Security

if TYPE_CHECKING:
    from gearflow.protocol.server_calls import JobInfo, Message  # it imports pydantic

P = TypeVar("P", bound=Packet)


class Client:
    """Talks to Gearman servers, on asyncio and trio: ``async with Client() as client``.

    Args:
        servers: In the order of preference, as ``host:port``, ``host`` or ``[ipv6]:port``. None: those in
            the environment variable GEARMAN_SERVERS (comma-separated), else 127.0.0.1:4730.
        spread: Whether all of them share the submissions: by function and unique, so that equal ones meet
            on one server, and in turn without a unique. Otherwise the first that can be reached gets all.
            None: the environment variable GEARFLOW_SPREAD (1 or 0), else not.
        tls: How to speak TLS; True: trusting whom the system trusts; False: not at all. None: as the
            environment variables GEARFLOW_TLS and GEARFLOW_TLS_* say, else not.
        token: What servers that want a token are told. Empty: nothing. None: that in GEARFLOW_TOKEN, or in
            the file named by GEARFLOW_TOKEN_FILE, else nothing.
        connect_timeout: Seconds for connecting to a server and learning what it is.
        answer_timeout: Seconds after which a server that leaves a request without an answer counts as
            lost: a submission is then ``SubmitUnknown``. (A job's result is no answer, and takes its time.)
        heartbeat: Seconds after which a server that has an attached job and says nothing is asked whether
            it is there; silent as long again, it counts as lost.
        backoff: How long a server that could not be reached is left alone.

    Leaving the block closes the connections: jobs still waited for end in ``ConnectionLost``.

    Raises:
        ValueError: An entry is no address, a limit makes no sense, a file of TLS cannot be used, or a token
            can be none.
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
        backoff: Backoff = Backoff(),  # noqa: B008  (frozen)
    ) -> None:
        addresses = default_servers() if servers is None else parse_servers(servers)
        self._pool = Pool(
            addresses,
            spreads=default_spread() if spread is None else spread,
            patience=Timeouts(connect_timeout, answer_timeout, heartbeat),
            backoff=backoff,
            security=Security.of(tls, token),
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
        """The servers that are submitted to, in the order of preference."""
        return self._pool.addresses

    @property
    def spreads(self) -> bool:
        """Whether the servers share the submissions."""
        return self._pool.spreads

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection to the first of the servers now."""
        return self._pool.has_first

    @property
    def security(self) -> Security:
        """What its connections are secured with."""
        return self._pool.security

    async def submit(
        self,
        function: str,
        workload: bytes,
        *,
        unique: str | bytes = "",
        priority: Priority = Priority.NORMAL,
        options: SubmitOptions | None = None,
    ) -> ClientJob:
        """Submit a job and stay attached to it; returns when the server has accepted it.

        A cancelled caller wants the job no more, as by ``ClientJob.cancel``.

        Args:
            function: Its name on the server; may be empty.
            workload: What the worker gets.
            unique: Joins the waiting or running job of this function with the same key; at most 63 bytes.
                Empty: joins nothing. ``-``: the workload is the key.
            priority: Among the waiting jobs of the function.
            options: What else is asked for. With them, a refusal may show only when its result is asked for.

        Raises:
            NoServer: No server can be reached; nothing was sent.
            SubmitUnknown: The connection closed before the server acknowledged; the job may exist or not.
            QueueFull: The function's queue is full.
            ServerError: The server refused it otherwise.
            UnsupportedByServer: It cannot honour an option; nothing was sent.
            LocalProtocolError: The function or the unique cannot be sent.
        """
        if options is not None or self._pool.spreads:
            order = JobRequest(function, workload, _text(unique), priority, options, detached=False)
            order.check()
            return await Sending(self._pool, order).attach()
        key = unique_to_wire(unique)
        packet = encode_submission(FOREGROUND[priority], function_to_wire(function), key, workload)
        accepted = await self._submit(packet, function, key, attached=True)
        assert accepted.job is not None  # it was accepted, and we were not cancelled
        return accepted.job

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
        """Hand over a job that nobody waits for; returns when the server has accepted it.

        Args:
            function, workload, unique, priority, options: As for ``submit``.
            at: Not before this Unix time; the same as in ``options``.

        Raises:
            NoServer, SubmitUnknown, QueueFull, ServerError, UnsupportedByServer, LocalProtocolError: As for
                ``submit``.
        """
        if at is not None:
            options = replace(options or SubmitOptions(), at=at)
        if options is not None or self._pool.spreads:
            order = JobRequest(function, workload, _text(unique), priority, options)
            order.check()
            return await Sending(self._pool, order).hand_over()
        key = unique_to_wire(unique)
        packet = encode_submission(BACKGROUND[priority], function_to_wire(function), key, workload)
        accepted = await self._submit(packet, function, key, attached=False)
        assert accepted.handle is not None  # it was accepted
        return accepted.handle

    async def submit_many(self, orders: Sequence[JobRequest]) -> list[JobHandle | Exception]:
        """Hand over many background jobs in one go; returns when the server has answered for all of them.

        They are sent to one server, unless it fails in the middle of it, or all share the load. What speaks
        against a job stands in its place: what ``submit_background`` would have raised.

        Raises:
            NoServer, UnsupportedByServer, LocalProtocolError: Nothing was sent.
        """
        return await submitter.submit_many(self._pool, orders)

    async def call_reserved(
        self, function: str | bytes, request: "Message", *, server: ServerAddress | str | None = None
    ) -> bytes:
        """Call a function that gearflow's own server answers itself; see ``gearflow.protocol.server_calls``.

        Args:
            function: Its name, such as ``gearflow:info``.
            request: What is asked.
            server: Whom to ask; by default the server that a submission would go to.

        Raises:
            UnsupportedByServer: It is not gearflow's own; nothing was sent.
            UnknownJob: It knows no such job (or function).
            TimeoutError: The job has not ended in the time that the request gives it.
            QueueFull, ServerError: It refuses; ``code`` is the type of the fault.
            JobFailed: What was asked for is a job's result, and the job failed.
            NoServer: It cannot be reached.
            ConnectionLost: The connection closed before the answer.
        """
        return await server_calls.call(self._pool, function, request, server)

    async def result(self, job: JobName, timeout: float | None = None) -> bytes:
        """Wait for the result of a background job, on a gearflow server, which keeps it for a while.

        The wait outlives lost connections and restarts of the server: it is asked again. A server that
        cannot be reached in the first place is waited for only as long as there is a ``timeout``.

        Args:
            job: A handle with or without its server, or a ``JobKey``. Without a server those of this client
                are asked in order.
            timeout: Seconds to wait, None for ever.

        Raises:
            JobFailed: The job failed, was cancelled, has expired, or its workers died.
            TimeoutError: It has not ended in time, and runs on.
            UnknownJob: The server knows no such job, or keeps its result no longer.
            NoServer: The server could not be reached (again) in time.
            UnsupportedByServer: It keeps no results.
        """
        return await server_calls.result(self._pool, job, timeout)

    async def info(self, job: JobName) -> "JobInfo":
        """What a gearflow server knows of a job, also of one that has ended.

        Raises:
            UnknownJob: It knows no such job, or no longer.
            UnsupportedByServer, NoServer, ConnectionLost: As for ``call_reserved``.
        """
        return await server_calls.info(self._pool, job)

    async def cancel(self, job: JobName) -> bool:
        """End a job that waits or runs, on a gearflow server; a worker that runs it is told.

        Returns whether there was one: False for a job that has ended, or was never there.

        Raises:
            UnsupportedByServer, NoServer, ConnectionLost: As for ``call_reserved``.
        """
        return await server_calls.cancel(self._pool, job)

    async def status(self, handle: JobHandle | str) -> JobStatus:
        """What the server that has the job knows of it.

        A bare str names no server: the servers are asked in order until one knows the job.

        Raises:
            NoServer: The server (for a str: none of them) can be reached.
            ConnectionLost: The connection closed before the answer.
        """
        if isinstance(handle, JobHandle):
            return await self._status(handle.server, handle.handle)
        return await self._first_known(lambda server: self._status(server, handle))

    async def status_by_unique(self, unique: str | bytes) -> JobStatus:
        """What the servers know of the live job with this unique, whatever its function, asked in order.

        Raises as ``status``; and ServerError from servers that do not know the question (Perl's).
        """
        return await self._first_known(lambda server: self._status_by_unique(server, unique))

    async def echo(self, data: bytes) -> bytes:
        """Send bytes to the server that a submission would go to, and get them back. Raises as ``status``."""
        return (await self._ask(None, EchoReq(data), EchoRes, "an echo")).data

    async def features(self, server: ServerAddress | str | None = None) -> ServerFeatures:
        """What a server can do; by default the one that a submission would go to. Connects if need be.

        Raises:
            NoServer: It cannot be reached.
            ValueError: The text is no address.
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

    async def _submit(self, packet: bytes, function: str, unique: bytes, *, attached: bool) -> Submission:
        """Submit to one server after another until one can be told; never twice to the socket."""
        while True:
            connection = await self._pool.connection()
            submission = Submission(function, unique, connection.new_event(), attached=attached)
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
            request = Request(answer.type, what, connection.new_event())
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


def _text(unique: str | bytes) -> str:
    return unique if isinstance(unique, str) else to_text(unique)


def _job_status(answer: StatusRes | StatusResUnique) -> JobStatus:
    return JobStatus(
        known=answer.known == b"1",
        running=answer.running == b"1",
        numerator=_number(answer.numerator),
        denominator=_number(answer.denominator),
    )


def _number(text: bytes) -> int:
    """Progress as a number; Perl's server sends nothing where others send 0."""
    return int(text) if text.isdigit() else 0
