"""A reference to a background job, which works in this process and in others.

``background()`` returns a ``Ref``, and ``resize.ref("H:host-store:7")`` makes one from a handle. Everything
beyond a job's status needs gearflow's own server, which keeps the outcomes of jobs.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack

from gearflow.client import Client, JobFailed, JobHandle, JobKey, JobName, JobStatus, ServerAddress, current
from gearflow.client.server_calls import was_cancelled
from gearflow.errors import UnknownJob, UnsupportedByServer
from gearflow.tasks import migration_hints
from gearflow.tasks.durations import wait_limit
from gearflow.tasks.events import Event
from gearflow.tasks.options import JobChanges, read_changes
from gearflow.tasks.remote_errors import decode_failure
from gearflow.tasks.wait_tracking import Waiting
from gearflow.tasks.watching import AsyncEvents, Events

if TYPE_CHECKING:
    from gearflow.protocol.server_calls import JobInfo  # it imports pydantic

R_co = TypeVar("R_co", covariant=True)

_ALIVE = ("delayed", "waiting", "running")


class Ref(Generic[R_co]):
    """A reference to a background job. It is a frozen value that you can pickle.

    ``str(ref)`` is ``HANDLE@HOST:PORT``, and ``task.ref()`` makes a reference from it. The methods with an
    ``a`` are for code in an event loop.
    """

    __slots__ = ("_decode", "_job", "_task")

    def __init__(self, job: JobName, task: str, decode: Callable[[bytes], R_co] | None = None) -> None:
        self._job = job
        self._task = task
        self._decode: Callable[[bytes], Any] | None = decode

    @property
    def handle(self) -> str:
        """The server's name for the job. Empty if the reference names the job by its unique."""
        return "" if isinstance(self._job, JobKey) else str(self._job)

    @property
    def server(self) -> ServerAddress | None:
        """The server that has the job. None means that the current servers are asked in order."""
        return None if isinstance(self._job, str) else self._job.server

    @property
    def task(self) -> str:
        """The name of the task."""
        return self._task

    def result(self, timeout: float | timedelta | None = None) -> R_co:
        """Wait for the result, for at most ``timeout`` seconds. The wait goes on if the server restarts.

        Raises:
            TaskFailed: The task raised, and does not run again. Also an instance of its own exception if that
                class is known here. Or the job has expired or its workers died, which ``type`` says.
            TaskTimeout: The run exceeded its time limit.
            concurrent.futures.CancelledError: The job was cancelled.
            TimeoutError: The job has not ended in time, and runs on.
            UnknownJob: The server does not know the job, or no longer keeps its result.
            NoServer: The server could not be reached (again) in time.
            UnsupportedByServer: The server does not keep results.
            PayloadInvalid: The result does not fit the task's type.
            UnknownTask: The reference was unpickled, and the task's module is not imported.
            ValueError: ``timeout`` is not a duration.
        """
        current.forbid_running_loop("ref.aresult")
        return current.current_sync().run(partial(self._result, wait_limit("timeout", timeout)))

    async def aresult(self, timeout: float | timedelta | None = None) -> R_co:
        """Wait for the result. Same as ``result``."""
        limit = wait_limit("timeout", timeout)
        return await self._result(limit, await current.current())

    def status(self) -> JobStatus:
        """Return what the server knows about the job. gearflow's own server also returns its state."""
        current.forbid_running_loop("ref.astatus")
        return current.current_sync().run(self._status)

    async def astatus(self) -> JobStatus:
        """Return what the server knows about the job. Same as ``status``."""
        return await self._status(await current.current())

    def info(self) -> "JobInfo":
        """Return everything that gearflow's server knows about the job, such as times, attempts, worker and
        failure.

        Raises:
            UnknownJob: The server does not know the job, or no longer knows it.
            UnsupportedByServer, NoServer, ConnectionLost: See ``gearflow.errors``.
        """
        current.forbid_running_loop("ref.ainfo")
        return current.current_sync().info(self._job)

    async def ainfo(self) -> "JobInfo":
        """Return everything that gearflow's server knows about the job. Same as ``info``."""
        return await (await current.current()).info(self._job)

    def cancel(self) -> bool:
        """Cancel the job, whether it waits or runs. gearflow's server notifies the worker that runs it.

        Returns False if the job had ended already, or the server does not know it.

        Raises:
            UnsupportedByServer, NoServer, ConnectionLost: See ``gearflow.errors``.
        """
        current.forbid_running_loop("ref.acancel")
        return current.current_sync().cancel(self._job)

    async def acancel(self) -> bool:
        """Cancel the job, whether it waits or runs. Same as ``cancel``."""
        return await (await current.current()).cancel(self._job)

    def edit(self, **changes: Unpack[JobChanges]) -> None:
        """Change the job while it waits or is delayed. Everything else stays as it is.

        With another priority or start time, the job is the last one among those of its priority.

        Args:
            priority: ``"high"``, ``"normal"`` or ``"low"``.
            delay: Seconds from now before which the job does not run. 0 means at once.
            at: The time before which the job does not run, with a time zone.
            expires: Seconds from now after which the job is not worth starting.

        Raises:
            UnknownJob: The server does not know the job.
            ServerError: The job runs or has ended, so it cannot be changed. Or the change could not be kept.
            ValueError: There is nothing to change, or a value is not valid.
            UnsupportedByServer, NoServer, ConnectionLost: See ``gearflow.errors``.
        """
        read = read_changes(changes)
        current.forbid_running_loop("ref.aedit")
        current.current_sync().edit(self._job, **read)

    async def aedit(self, **changes: Unpack[JobChanges]) -> None:
        """Change the job while it waits or is delayed. Same as ``edit``."""
        read = read_changes(changes)
        await (await current.current()).edit(self._job, **read)

    def events(self) -> Iterator[Event[object]]:
        """Yield what happens to the job, and at the end how it ended. See ``aevents``."""
        return Events[object](self._job)

    def aevents(self) -> AsyncIterator[Event[object]]:
        """Yield what happens to the job, and at the end how it ended.

        The newest state comes first. Any number of watchers may follow a job, and they never slow it down.
        The iteration goes on if the connection is lost or the server restarts. A run that ended by that is
        one event, ``Retrying``. A watcher that is too slow gets only the newest progress.

        The iteration raises:
            UnknownJob: The server does not know the job, or no longer keeps its outcome.
            NoServer, UnsupportedByServer: See ``gearflow.errors``.
        """
        return AsyncEvents[object](self._job)

    async def _result(self, timeout: float | None, client: Client) -> R_co:
        decode = self._result_decoder()  # if that fails, it fails before the wait
        try:
            with Waiting(self._task):
                data = await client.result(self._job, timeout)
        except JobFailed as error:
            if error.exception is None and await was_cancelled(client.pool, self._job):
                raise CancelledError(f"job {self._job} was cancelled") from None
            raise decode_failure(error.exception, self.handle or str(self._job)) from None
        except UnsupportedByServer as error:
            raise UnsupportedByServer(
                f"{error} to keep results of background jobs; elsewhere submit() and asubmit() give a result"
            ) from None
        return decode(data)

    async def _status(self, client: Client) -> JobStatus:
        try:
            info = await client.info(self._job)
        except UnknownJob:
            return JobStatus(known=False, running=False, numerator=0, denominator=0)
        except UnsupportedByServer:
            if isinstance(self._job, JobKey):
                return await client.status_by_unique(self._job.unique)
            return await client.status(self._job)
        done, total = info.progress or (0, 0)
        return JobStatus(info.state in _ALIVE, info.state == "running", done, total, info.state)

    def _result_decoder(self) -> Callable[[bytes], R_co]:
        return self._decoder()

    def _decoder(self) -> Callable[[bytes], Any]:
        if self._decode is not None:
            return self._decode
        from gearflow.tasks.registry import registry  # which knows of tasks, and those of this

        return registry.find(self._task).payload.decode_result

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._job, self._task)  # the task is found by its name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and self._job == other._job

    def __hash__(self) -> int:
        return hash(self._job)

    def __str__(self) -> str:
        return f"{self.handle}@{self.server}" if isinstance(self._job, JobHandle) else str(self._job)

    def __repr__(self) -> str:
        if isinstance(self._job, JobHandle):
            return f"<{type(self).__name__} {self.handle} on {self.server}>"
        return f"<{type(self).__name__} {self._job}>"


migration_hints.teach(Ref, migration_hints.RESULTS)


def parse(text: str, server: ServerAddress | str | None) -> JobName:
    """A job's handle, with the server in ``HANDLE@HOST:PORT`` or the one beside it, if there is one.

    Raises:
        ValueError: There is no handle, the server is no address, or there are two.
    """
    handle, _, address = text.partition("@")
    if not handle:
        raise ValueError(
            f"{text!r} names no job; give its handle, such as 'H:host-store:7', or ref(unique=...)"
        )
    if address and server is not None:
        raise ValueError(f"{text!r} names its server already: leave out server=")
    where = address or server
    if not where:
        return handle
    return JobHandle(handle, where if isinstance(where, ServerAddress) else ServerAddress.parse(where))
