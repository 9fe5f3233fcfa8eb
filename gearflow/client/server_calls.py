"""Questions about jobs to gearflow's own server, which answers them as reserved functions."""

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

from gearflow.client.config import ServerAddress
from gearflow.client.connection import Connection
from gearflow.client.job import JobFailed, JobHandle, JobKey, JobName
from gearflow.client.pool import Pool
from gearflow.client.requests import NotSent, ReservedCall, read_answer, refused
from gearflow.client.submission import encode_submission
from gearflow.errors import (
    ConnectionLost,
    GearflowError,
    NoServer,
    RemoteProtocolError,
    UnknownJob,
    UnsupportedByServer,
)
from gearflow.protocol.constants import PacketType, Priority

if TYPE_CHECKING:
    from gearflow.protocol.server_calls import JobInfo, Message  # it imports pydantic

T = TypeVar("T")

_LONGEST: Final = 1e9  # seconds; the server takes no number without end


async def call(
    pool: Pool, function: str | bytes, request: "Message", server: ServerAddress | str | None
) -> bytes:
    """As ``Client.call_reserved``."""
    return await _call(pool, function, request, server)


async def _call(
    pool: Pool,
    function: str | bytes,
    request: "Message",
    server: ServerAddress | str | None,
    *,
    is_about_job: bool = False,
) -> bytes:
    """As ``call``. What is about a job may be asked of another server that shares its database."""
    address = ServerAddress.parse(server) if isinstance(server, str) else server
    name = function if isinstance(function, bytes) else function.encode()
    packet = encode_submission(PacketType.SUBMIT_JOB, name, b"", request.to_wire())
    limit = _limit(pool, request)
    while True:
        absent: NoServer | None = None
        if address is None:
            connection = await pool.connection()
        elif is_about_job:
            connection, absent = await reach(pool, address)
        else:
            connection = await pool.connection_to(address)
        require_gearflow(connection, name.decode())
        asked = ReservedCall(name.decode(), connection.new_signal())
        try:
            await connection.ask(asked, packet)
        except NotSent:
            continue
        assert asked.job is not None  # it was accepted
        try:
            with anyio.move_on_after(limit):
                return await asked.job.result()
        except JobFailed as error:
            if function in ("gearflow:result", b"gearflow:result"):
                raise
            raise refused(f"{name.decode()} on {connection.server}", error) from error
        except UnknownJob:
            if absent is not None:
                raise absent from None
            raise
        finally:
            asked.job.cancel()  # of nobody's interest any more; does nothing when it has ended
        raise ConnectionLost(
            f"{connection.server} accepted {name.decode()} and gave no answer for {limit:g} s; "
            "what it has done is not known"
        )


async def reach(pool: Pool, server: ServerAddress) -> tuple[Connection, NoServer | None]:
    """A connection to ask about the jobs of a server: to it, or to one that shares its database with it.

    Nobody may know whether another one does, if the server cannot be reached. If it then knows no such job,
    the error says nothing, and that in the result is to be raised.

    Raises:
        NoServer: None of them can be reached.
    """
    try:
        return await pool.connection_near(server), None
    except NoServer as absent:
        members = [] if pool.group_of(server) else pool.group_members()
        for other in members:
            with suppress(NoServer):
                return await pool.connection_to(other), absent
        if members or pool.is_connected or pool.addresses == (server,):
            raise
        with suppress(NoServer):  # this client has not talked to any server yet
            connection = await pool.connection()
            if connection.features.group:
                return connection, absent
        raise


def _limit(pool: Pool, request: "Message") -> float:
    """Seconds in which a call has to end. The wait for a job's end has the time that the request gives it."""
    from gearflow.protocol.server_calls import ResultRequest

    if not isinstance(request, ResultRequest):
        return pool.timeouts.answer
    return inf if request.timeout is None else request.timeout + pool.timeouts.answer


async def result(pool: Pool, job: JobName, timeout: float | None) -> bytes:
    """As ``Client.result``."""
    deadline = None if timeout is None else anyio.current_time() + timeout
    server = await _whereabouts(pool, job)
    losses = Losses(pool, deadline)
    while True:
        left = None if deadline is None else max(0.0, deadline - anyio.current_time())
        try:
            with anyio.move_on_after(None if left is None else left + pool.timeouts.answer_grace):
                return await _wait(pool, job, server, left)
            break
        except TimeoutError as error:
            if timeout is None:
                raise
            raise TimeoutError(f"job {job} has not ended within {timeout:g} s; it runs on") from error
        except (ConnectionLost, NoServer) as error:
            await losses.endure(server, error)
    raise losses.last or _no_answer(server, job, timeout)


class Losses:
    """How often a wait has lost its server, which it asks again. Owns state.

    Args:
        pool: The servers.
        deadline: When the wait is over, by anyio's clock.
    """

    def __init__(self, pool: Pool, deadline: float | None = None) -> None:
        self._pool = pool
        self._deadline = deadline
        self._failures = 0
        self._began = anyio.current_time()  # the attempt
        self.last: NoServer | None = None
        """Why the server could not be asked the last time."""

    async def endure(self, server: ServerAddress, error: ConnectionLost | NoServer) -> None:
        """Return when the server may be asked again. Raises the error if it may not.

        A server that cannot be reached at first is waited for only if there is a deadline.
        """
        pool = self._pool
        now = anyio.current_time()
        if isinstance(error, ConnectionLost):
            if pool.is_closed or isinstance(error.__cause__, RemoteProtocolError):
                raise error
            if now - self._began > pool.backoff.longest(self._failures + 1):
                self._failures = 0  # it did not hang up at once
            self.last = NoServer({str(server): str(error)})
        else:
            if self._deadline is None and self.last is None:
                raise error
            self.last = error
        self._failures += 1
        pause = pool.backoff.delay(self._failures, random.random())
        if self._deadline is not None and now + pause > self._deadline:
            raise self.last
        await anyio.sleep(pause)
        self._began = anyio.current_time()


async def info(pool: Pool, job: JobName) -> "JobInfo":
    """As ``Client.info``."""
    return (await _first_that_knows(pool, job, lambda server: _info(pool, job, server)))[1]


async def cancel(pool: Pool, job: JobName) -> bool:
    """As ``Client.cancel``."""
    try:
        return (await _first_that_knows(pool, job, lambda server: _cancel(pool, job, server)))[1]
    except UnknownJob:
        return False


async def edit(
    pool: Pool,
    job: JobName,
    *,
    priority: Priority | None,
    delay: float | None,
    at: float | None,
    expires: float | None,
) -> None:
    """As ``Client.edit``."""
    from gearflow.protocol.server_calls import EDIT, EditRequest

    async def ask(server: ServerAddress) -> None:
        handle = (await _info(pool, job, server)).handle if isinstance(job, JobKey) else str(job)
        request = EditRequest(handle=handle, priority=priority, delay=delay, at=at, expires=expires)
        await _call(pool, EDIT, request, server, is_about_job=True)

    await _first_that_knows(pool, job, ask)


async def was_cancelled(pool: Pool, job: JobName) -> bool:
    """Whether a job that has failed was cancelled, which its result does not show."""
    try:
        return (await info(pool, job)).state == "cancelled"
    except GearflowError:
        return False


async def _wait(pool: Pool, job: JobName, server: ServerAddress, left: float | None) -> bytes:
    from gearflow.protocol.server_calls import RESULT, ResultRequest

    request = ResultRequest(**_named(job), timeout=None if left is None else min(left, _LONGEST))
    return await _call(pool, RESULT, request, server, is_about_job=True)


async def _info(pool: Pool, job: JobName, server: ServerAddress) -> "JobInfo":
    from gearflow.protocol.server_calls import INFO, InfoRequest, JobInfo

    answer = await _call(pool, INFO, InfoRequest(**_named(job)), server, is_about_job=True)
    return read_answer(JobInfo, answer, INFO.decode(), server)


async def _cancel(pool: Pool, job: JobName, server: ServerAddress) -> bool:
    from gearflow.protocol.server_calls import CANCEL, CancelRequest, Done

    handle = (await _info(pool, job, server)).handle if isinstance(job, JobKey) else str(job)
    answer = await _call(pool, CANCEL, CancelRequest(handle=handle), server, is_about_job=True)
    return read_answer(Done, answer, CANCEL.decode(), server).jobs > 0


async def _first_that_knows(
    pool: Pool, job: JobName, ask: Callable[[ServerAddress], Awaitable[T]]
) -> tuple[ServerAddress, T]:
    """The job's server, or the first that does not say that it knows no such job, and its answer."""
    servers = _servers(pool, job)
    failures: dict[str, Exception] = {}
    answered: set[str] = set()  # groups, for all their servers
    for server in servers:
        if pool.group_of(server) in answered:
            continue
        try:
            return server, await ask(server)
        except (UnknownJob, UnsupportedByServer, NoServer) as error:
            if len(servers) == 1:
                raise
            failures[str(server)] = error
            if not isinstance(error, NoServer) and (group := pool.group_of(server)):
                answered.add(group)
    if any(isinstance(failure, NoServer) for failure in failures.values()):
        raise NoServer(
            {
                address: failure.reasons[address] if isinstance(failure, NoServer) else str(failure)
                for address, failure in failures.items()
            }
        )
    raise min(failures.values(), key=lambda failure: not isinstance(failure, UnknownJob))


async def locate(pool: Pool, job: JobName) -> JobHandle:
    """The handle of a job, with the server that has it. Raises as ``Client.info``."""
    servers = _servers(pool, job)
    if len(servers) == 1 and not isinstance(job, JobKey):
        return JobHandle(str(job), servers[0])
    server, known = await _first_that_knows(pool, job, lambda server: _info(pool, job, server))
    return JobHandle(known.handle, server)


async def _whereabouts(pool: Pool, job: JobName) -> ServerAddress:
    """The server that has a job."""
    first, *others = _servers(pool, job)
    return (
        (await _first_that_knows(pool, job, lambda server: _info(pool, job, server)))[0] if others else first
    )


def _servers(pool: Pool, job: JobName) -> tuple[ServerAddress, ...]:
    server = None if isinstance(job, str) else job.server
    return pool.one_of_each if server is None else (server,)


def _named(job: JobName) -> dict[str, Any]:
    if isinstance(job, JobKey):
        return {"function": job.function, "unique": job.unique}
    return {"handle": str(job)}


def require_gearflow(connection: Connection, function: str) -> None:
    """Raise UnsupportedByServer if a reserved function cannot be called there."""
    if not connection.features.gearflow:
        raise UnsupportedByServer(
            f"{connection.server} does not know {function}, as only gearflow's own server does; "
            "run 'gearflow server' there"
        )


def _no_answer(server: ServerAddress, job: JobName, timeout: float | None) -> TimeoutError:
    return TimeoutError(
        f"{server} was asked for the result of job {job}, and gave no answer within {timeout:g} s; "
        "whether the job runs on is not known"
    )
