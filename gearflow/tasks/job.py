"""What the verbs of a task return: a job to wait for, or a reference to one that nobody waits for.

``submit()`` gives a ``Job``, whose ``result()`` blocks; ``asubmit()`` an ``AsyncJob``, which is awaited.
They are two classes so that a forgotten ``await`` is a type error.
"""

from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

from gearflow.client import ClientJob, JobFailed, JobHandle, JobStatus, ServerAddress, SyncJob, ambient
from gearflow.errors import UnsupportedByServer
from gearflow.tasks.failure import decode_failure

R_co = TypeVar("R_co", covariant=True)


class AsyncJob(Generic[R_co]):
    """An attached job: ``await job`` waits for its result. Belongs to the event loop it was submitted in.

    Cancelling a wait leaves the job attached: it can be awaited again.
    """

    __slots__ = ("_decode", "_job")

    def __init__(self, job: ClientJob, decode: Callable[[bytes], R_co]) -> None:
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
        """Whether the job has ended for this caller, in whatever way."""
        return self._job.done

    async def result(self, timeout: float | None = None) -> R_co:
        """Wait for the result, for at most ``timeout`` seconds.

        Raises:
            TaskFailed: The task raised; also an instance of what it raised, where that class is known here.
            TaskTimeout: It overran its run limit.
            TimeoutError: It has not ended in time, and runs on.
            ConnectionLost: The connection closed first; it may run on.
            PayloadInvalid: The result does not fit the task's type.
        """
        try:
            data = await self._job.result(timeout)
        except JobFailed as error:
            raise decode_failure(error.exception, self.handle) from None
        return self._decode(data)

    def __await__(self) -> Generator[Any, None, R_co]:
        return self.result().__await__()

    async def status(self) -> JobStatus:
        """What the server knows of it."""
        client = await ambient.current()
        return await client.status(JobHandle(self.handle, self.server))

    def cancel(self) -> bool:
        """Detach: whoever waits gets ``concurrent.futures.CancelledError``; the job may run on.

        Returns whether it had not ended yet.
        """
        return self._job.cancel()

    def __repr__(self) -> str:
        return f"<AsyncJob {self.handle} of {self._job.function!r} on {self.server}>"


class Job(Generic[R_co]):
    """An attached job: ``job.result()`` blocks until it ends. For code without an event loop."""

    __slots__ = ("_decode", "_job")

    def __init__(self, job: SyncJob, decode: Callable[[bytes], R_co]) -> None:
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
        """Whether the job has ended for this caller, in whatever way."""
        return self._job.done

    def result(self, timeout: float | None = None) -> R_co:
        """Wait for the result, for at most ``timeout`` seconds. Raises as ``AsyncJob.result``."""
        ambient.forbid_running_loop(f"{self._task}.asubmit")
        try:
            data = self._job.result(timeout)
        except JobFailed as error:
            raise decode_failure(error.exception, self.handle) from None
        return self._decode(data)

    def status(self) -> JobStatus:
        """What the server knows of it."""
        ambient.forbid_running_loop(f"{self._task}.asubmit")
        return ambient.current_sync().status(JobHandle(self.handle, self.server))

    @property
    def _task(self) -> str:
        return self._job.function.rpartition(".")[2]

    def cancel(self) -> bool:
        """Detach: a thread that waits gets ``concurrent.futures.CancelledError``; the job may run on.

        Returns whether it had not ended yet.
        """
        return self._job.cancel()

    def __repr__(self) -> str:
        return f"<Job {self.handle} of {self._job.function!r} on {self.server}>"


class Ref(Generic[R_co]):
    """A detached job: the server has it, and nobody waits. A frozen value."""

    __slots__ = ("_handle",)

    def __init__(self, handle: JobHandle) -> None:
        self._handle = handle

    @property
    def handle(self) -> str:
        """The server's name for the job."""
        return self._handle.handle

    @property
    def server(self) -> ServerAddress:
        """The server that has the job; its handle means nothing to another."""
        return self._handle.server

    def status(self) -> JobStatus:
        """What the server knows of it."""
        ambient.forbid_running_loop("ref.astatus")
        return ambient.current_sync().status(self._handle)

    async def astatus(self) -> JobStatus:
        """What the server knows of it."""
        client = await ambient.current()
        return await client.status(self._handle)

    def result(self, timeout: float | None = None) -> R_co:
        """The result, from a server that keeps it.

        Raises:
            UnsupportedByServer: None does yet.
        """
        raise UnsupportedByServer(
            f"{self.server} keeps no results of background jobs, so {self.handle} cannot give one; "
            "use submit() or asubmit() for a result"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and self._handle == other._handle

    def __hash__(self) -> int:
        return hash(self._handle)

    def __repr__(self) -> str:
        return f"<Ref {self.handle} on {self.server}>"
