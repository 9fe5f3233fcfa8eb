"""The async client: submit jobs to the first server that can be reached, ask servers about jobs.

A client is entered once and owns its connections, one for each server in use, which all its callers share.
It connects when it is first needed. It may be used by any number of tasks of the event loop it was
entered in.
"""

import math
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from enum import Enum
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from gearflow.client.address import ServerAddress, default_servers, parse_servers
from gearflow.client.connection import NotSent, Request, ServerFeatures, Submission
from gearflow.client.job import ClientJob, JobHandle, JobStatus
from gearflow.client.names import function_to_wire, handle_to_wire, unique_to_wire
from gearflow.client.pool import Backoff, Pool
from gearflow.errors import LocalProtocolError, NoServer, UnsupportedByServer
from gearflow.protocol.codec import encode
from gearflow.protocol.constants import HEADER, MAX_BODY, REQ, PacketType
from gearflow.protocol.packets import (
    EchoReq,
    EchoRes,
    GetStatus,
    GetStatusUnique,
    Packet,
    StatusRes,
    StatusResUnique,
    SubmitJobEpoch,
)

P = TypeVar("P", bound=Packet)


class Priority(Enum):
    """Which of a function's waiting jobs run first; first in, first out within each."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


_FOREGROUND: Final = {
    Priority.HIGH: PacketType.SUBMIT_JOB_HIGH,
    Priority.NORMAL: PacketType.SUBMIT_JOB,
    Priority.LOW: PacketType.SUBMIT_JOB_LOW,
}
_BACKGROUND: Final = {
    Priority.HIGH: PacketType.SUBMIT_JOB_HIGH_BG,
    Priority.NORMAL: PacketType.SUBMIT_JOB_BG,
    Priority.LOW: PacketType.SUBMIT_JOB_LOW_BG,
}


class Client:
    """Talks to Gearman servers, on asyncio and trio: ``async with Client() as client``.

    Args:
        servers: In the order of preference, as ``host:port``, ``host`` or ``[ipv6]:port``. None: those in
            the environment variable GEARMAN_SERVERS (comma-separated), else 127.0.0.1:4730.
        connect_timeout: Seconds for connecting to a server and learning what it is.
        backoff: How long a server that could not be reached is left alone.

    Leaving the block closes the connections: jobs still waited for end in ``ConnectionLost``.
    """

    def __init__(
        self,
        servers: Iterable[str | ServerAddress] | None = None,
        *,
        connect_timeout: float = 5.0,
        backoff: Backoff = Backoff(),  # noqa: B008  (frozen)
    ) -> None:
        addresses = default_servers() if servers is None else parse_servers(servers)
        self._pool = Pool(addresses, connect_timeout=connect_timeout, backoff=backoff)

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

    async def submit(
        self,
        function: str,
        workload: bytes,
        *,
        unique: str | bytes = "",
        priority: Priority = Priority.NORMAL,
    ) -> ClientJob:
        """Submit a job and stay attached to it; returns when the server has accepted it.

        Cancelling detaches: a job that was sent may run, and nobody here hears of it.

        Args:
            function: Its name on the server; may be empty.
            workload: What the worker gets.
            unique: Joins the waiting or running job of this function with the same key; at most 63 bytes.
                Empty: joins nothing. ``-``: the workload is the key.
            priority: Among the waiting jobs of the function.

        Raises:
            NoServer: No server can be reached; nothing was sent.
            SubmitUnknown: The connection closed before the server acknowledged; the job may exist or not.
            QueueFull: The function's queue is full.
            ServerError: The server refused it otherwise.
            LocalProtocolError: The function or the unique cannot be sent.
        """
        key = unique_to_wire(unique)
        packet = _submission(_FOREGROUND[priority], function_to_wire(function), key, workload)
        submission = await self._submit(packet, function, key, attached=True)
        assert submission.job is not None  # it was accepted, and we were not cancelled
        return submission.job

    async def submit_background(
        self,
        function: str,
        workload: bytes,
        *,
        unique: str | bytes = "",
        priority: Priority = Priority.NORMAL,
        at: float | None = None,
    ) -> JobHandle:
        """Hand over a job that nobody waits for; returns when the server has accepted it.

        Args:
            function, workload, unique, priority: As for ``submit``.
            at: Not before this Unix time, rounded up to whole seconds; normal priority only.

        Raises:
            UnsupportedByServer: ``at`` with a priority: the protocol has no packet for it.
            NoServer, SubmitUnknown, QueueFull, ServerError, LocalProtocolError: As for ``submit``.
        """
        name, key = function_to_wire(function), unique_to_wire(unique)
        if at is None:
            packet = _submission(_BACKGROUND[priority], name, key, workload)
        elif priority is not Priority.NORMAL:
            raise UnsupportedByServer(
                f"a job with a start time has normal priority, not {priority.value}: leave out one of them"
            )
        else:
            packet = encode(SubmitJobEpoch(name, key, b"%d" % max(math.ceil(at), 0), workload))
        submission = await self._submit(packet, function, key, attached=False)
        assert submission.handle is not None  # it was accepted
        return submission.handle

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

    def start_soon(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``function`` beside the connections; closing the client cancels it. It must not raise.

        Raises:
            ConnectionLost: The client is closed.
        """
        self._pool.start_soon(function)

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


def _submission(kind: PacketType, function: bytes, unique: bytes, workload: bytes) -> bytes:
    """As ``encode(SubmitJob(...))``, without the packet object in between: this is done for every job."""
    body = b"\0".join((function, unique, workload))
    if len(body) > MAX_BODY:
        raise LocalProtocolError(f"a workload of {len(workload)} bytes is over the wire's limit of 4 GiB")
    return HEADER.pack(REQ, kind, len(body)) + body


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
