"""Calls about one job that last as long as the job: those of its readers and watchers.

A job that was named by a handle or a unique may outlive its server, so the call is made again when the
connection is lost, until the server is back. An attached job is asked for on its own connection and ends with
it, unless it is submitted again elsewhere.
"""

from contextlib import suppress
from typing import TYPE_CHECKING

from gearflow.client.connection import Connection
from gearflow.client.job import ClientJob, JobFailed, JobHandle, JobKey, JobName
from gearflow.client.pool import Pool
from gearflow.client.requests import Feed, NotSent, ReservedCall, ReservedJob
from gearflow.client.server_calls import Losses, locate, reach, require_gearflow
from gearflow.client.submission import encode_submission
from gearflow.client.submitter import ResubmittedJob
from gearflow.errors import ConnectionLost, NoServer, UnknownJob
from gearflow.protocol.constants import PacketType

if TYPE_CHECKING:
    from gearflow.protocol.server_calls import Message  # it imports pydantic


class Following:
    """Makes the calls, one after another. Owns state: where the job is, and what was lost.

    Args:
        pool: The servers, for a job by name.
        job: The job, attached or by name.
        function: The reserved function.
    """

    def __init__(self, pool: Pool | None, job: ClientJob | JobName, function: bytes) -> None:
        self._pool = pool
        self._job = job
        self._function = function
        self._place: JobHandle | None = None  # of a job by name, once it is found
        self._losses: Losses | None = None

    @property
    def attached(self) -> ClientJob | None:
        """The job, if it is attached."""
        return self._job if isinstance(self._job, ClientJob) else None

    async def connect(self) -> tuple[Connection, str]:
        """The connection to ask on, and the handle of the job.

        Raises:
            Exception: The attached job has ended, and not by its worker. Or the job cannot be found.
        """
        job = self._job
        if not isinstance(job, ClientJob):
            assert self._pool is not None  # for a job by name
            if self._place is None:
                self._place = await locate(self._pool, job)
            reached, _ = await reach(self._pool, self._place.server)
            return reached, self._place.handle
        if isinstance(job, ResubmittedJob):
            await job.settled()
        if job.done:
            _raise_unless_failed(job)
        connection = job.owner
        assert isinstance(connection, Connection)  # all jobs of a client have one
        return connection, job.handle

    async def ask(self, connection: Connection, request: "Message", feed: Feed) -> ReservedJob:
        """Make the call. The feed gets what comes on it.

        Raises:
            NotSent: The connection is closed. Nothing was sent.
            ConnectionLost, UnsupportedByServer, ServerError: As for ``Client.call_reserved``.
        """
        require_gearflow(connection, self._function.decode())
        call = FeedingCall(self._function.decode(), connection, feed)
        packet = encode_submission(PacketType.SUBMIT_JOB, self._function, b"", request.to_wire())
        await connection.ask(call, packet)
        assert isinstance(call.job, ReservedJob)  # it was accepted
        if (attached := self.attached) is not None:
            attached.add_done_callback(call.job.wake)  # it may be cancelled
            call.job.add_done_callback(lambda ended: attached.forget_callback(ended.wake))
        return call.job

    def check(self) -> None:
        """Raise CancelledError if the attached job was cancelled here."""
        if self.attached is not None and self.attached.is_cancelled:
            self.attached.outcome()

    async def lost(self, error: Exception) -> None:
        """Return when the call may be made again. Raises the error if it may not.

        Args:
            error: The end of the call, or of the attempt to make it.
        """
        match self._job, error:
            case ResubmittedJob(done=False), NotSent() | ConnectionLost():
                pass  # ``connect`` waits until it is elsewhere
            case ClientJob() as job, NotSent() | ConnectionLost():
                _raise_unless_failed(job)
                raise ConnectionLost(f"{job.server} was lost before job {job.handle} was read") from error
            case ClientJob() as job, UnknownJob() if job.done:
                job.outcome()
                raise error
            case ((JobHandle() | JobKey() | str()), NotSent()):
                pass
            case ((JobHandle() | JobKey() | str()), ConnectionLost() | NoServer()):
                assert self._pool is not None
                if self._losses is None:
                    self._losses = Losses(self._pool)
                server = self._pool.addresses[0] if self._place is None else self._place.server
                await self._losses.endure(server, error)
            case _:
                raise error


class FeedingCall(ReservedCall):
    """A call whose events go into a feed."""

    __slots__ = ()

    def __init__(self, function: str, connection: Connection, feed: Feed) -> None:
        super().__init__(function, connection.new_signal())
        job = ReservedJob(b"", connection.server, function, connection)
        job.feed = feed
        self.joins = job


def _raise_unless_failed(job: ClientJob) -> None:
    """Raise the error of a job that was lost, cancelled or refused. Its parts are not to be had."""
    with suppress(JobFailed):
        job.outcome()
