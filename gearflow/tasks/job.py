"""The jobs that ``submit`` and ``asubmit`` return.

``submit()`` returns a ``Job``, whose ``result()`` blocks. ``asubmit()`` returns an ``AsyncJob``, which you
await. They are two classes so that a forgotten ``await`` is a type error.
"""

from collections.abc import AsyncIterator, Callable, Generator, Iterator
from datetime import timedelta
from functools import partial
from typing import Any, Generic, TypeVar

from gearflow.client import (
    Client,
    ClientJob,
    JobFailed,
    JobHandle,
    JobRequest,
    JobStatus,
    ServerAddress,
    SyncJob,
    current,
)
from gearflow.tasks import migration_hints
from gearflow.tasks.durations import wait_limit
from gearflow.tasks.events import Event
from gearflow.tasks.remote_errors import decode_failure
from gearflow.tasks.wait_tracking import Waiting, caller
from gearflow.tasks.watching import AsyncEvents, Events

R_co = TypeVar("R_co", covariant=True)

J = TypeVar("J", bound=ClientJob | SyncJob)


class _AttachedJob(Generic[J, R_co]):
    """The members that both kinds of jobs have."""

    __slots__ = ("_decode", "_job")

    def __init__(self, job: J, decode: Callable[[bytes], R_co]) -> None:
        self._job = job
        self._decode = decode

    @property
    def handle(self) -> str:
        """The server's name for the job."""
        return self._job.handle

    @property
    def server(self) -> ServerAddress:
        """The server that has the job."""
        return self._job.server

    @property
    def done(self) -> bool:
        """Whether the job has ended for this caller, in any way."""
        return self._job.done

    def cancel(self) -> bool:
        """Detach from the job. All waits for its result raise ``concurrent.futures.CancelledError`` at once.

        On gearflow's server, a job that nobody else wants ends, and the server notifies a worker that runs
        it. On other servers it may run on. Returns whether the job had not ended yet.
        """
        return self._job.cancel()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.handle} of {self._job.function!r} on {self.server}>"


class AsyncJob(_AttachedJob[ClientJob, R_co], Generic[R_co]):
    """An attached job. ``await job`` returns its result. It belongs to the event loop in which you submitted
    it.

    If you cancel a wait, the job stays attached and you can await it again.
    """

    __slots__ = ()

    async def result(self, timeout: float | timedelta | None = None) -> R_co:
        """Wait for the result, for at most ``timeout`` seconds.

        Raises:
            TaskFailed: The task raised. Also an instance of its own exception if that class is known here.
            TaskTimeout: The run exceeded its time limit.
            QueueFull, ServerError: The server refused the job later. Only for calls with options.
            TimeoutError: The job has not ended in time, and runs on.
            ConnectionLost: The connection closed first. The job may run on.
            PayloadInvalid: The result does not fit the task's type.
            ValueError: ``timeout`` is not a duration.
        """
        return self._decode(await _result(timeout, self._job))

    def __await__(self) -> Generator[Any, None, R_co]:
        return self.result().__await__()

    def aevents(self) -> AsyncIterator[Event[object]]:
        """Yield what happens to the job, and at the end how it ended.

        On gearflow's server the newest state comes first, and any number of watchers may follow a job. On
        other servers the watchers of a job share its events, from the first one on. A watcher that is too
        slow gets only the newest progress.

        The iteration raises ConnectionLost if the connection closes first, unless the call has ``resubmit``.
        """
        return AsyncEvents[object](self._job)

    async def status(self) -> JobStatus:
        """Return what the server knows about the job."""
        client = await current.current()
        return await client.status(JobHandle(self.handle, self.server))


class Job(_AttachedJob[SyncJob, R_co], Generic[R_co]):
    """An attached job. ``job.result()`` blocks until it ends. For code without an event loop."""

    __slots__ = ()

    def result(self, timeout: float | timedelta | None = None) -> R_co:
        """Wait for the result, for at most ``timeout`` seconds. Raises as ``AsyncJob.result``."""
        current.forbid_running_loop(f"{self._task}.asubmit")
        return self._decode(self._job.run(partial(_result, timeout)))

    def events(self) -> Iterator[Event[object]]:
        """Yield what happens to the job, and at the end how it ended. See ``AsyncJob.aevents``."""
        return Events[object](self._job)

    def status(self) -> JobStatus:
        """Return what the server knows about the job."""
        current.forbid_running_loop(f"{self._task}.asubmit")
        return current.current_sync().status(JobHandle(self.handle, self.server))

    @property
    def _task(self) -> str:
        return self._job.function.rpartition(".")[2]


for _kind in (Job, AsyncJob):
    migration_hints.teach(_kind, migration_hints.RESULTS)


async def outcome(call: JobRequest, client: Client) -> bytes:
    """Submit a call and wait for its result. If the caller is cancelled, it detaches from the job.

    Raises as ``AsyncJob.result``, and as ``Client.submit``.
    """
    if caller.get() is None:  # the call is not made by a task, so its wait is of no interest
        job = await client.submit_and_wait(call)
    else:
        with Waiting(call.function):
            job = await client.submit_and_wait(call)
    try:
        return job.outcome()
    except JobFailed as error:
        raise decode_failure(error.exception, job.handle) from None


async def _result(timeout: float | timedelta | None, job: ClientJob) -> bytes:
    """Wait for the result of a job. Raises as ``AsyncJob.result``."""
    limit = wait_limit("timeout", timeout)
    with Waiting(job.function):
        try:
            return await job.result(limit)
        except JobFailed as error:
            raise decode_failure(error.exception, job.handle) from None
