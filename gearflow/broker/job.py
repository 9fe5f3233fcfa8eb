"""One job and the states of its life."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from gearflow.protocol.constants import STREAM_KEEP

if TYPE_CHECKING:
    from gearflow.broker.buckets import Bucket
    from gearflow.broker.functions import FunctionQueue
    from gearflow.broker.job_lines import JobLine
    from gearflow.broker.parser import Body
    from gearflow.broker.parts import PartLog
    from gearflow.broker.session import ResultWaiter, Session
    from gearflow.broker.watching import JobWatcher

HIGH: Final = 0
NORMAL: Final = 1
LOW: Final = 2


class JobState(IntEnum):
    """Where a job is in its life; ``TRANSITIONS`` says where it may go from there."""

    STORING = 0  # on its way to the store, and not acknowledged
    DELAYED = 1  # not due yet
    WAITING = 2  # in a lane of its function
    RUNNING = 3  # assigned to a worker
    OVER = 4  # completed, failed, cancelled or expired


_WAITING: Final = JobState.WAITING
_OVER: Final = JobState.OVER

TRANSITIONS: Final[dict[JobState, frozenset[JobState]]] = {
    JobState.STORING: frozenset({JobState.DELAYED, JobState.WAITING, JobState.OVER}),
    JobState.DELAYED: frozenset({JobState.WAITING, JobState.OVER}),
    JobState.WAITING: frozenset({JobState.DELAYED, JobState.RUNNING, JobState.OVER}),
    JobState.RUNNING: frozenset({JobState.DELAYED, JobState.WAITING, JobState.OVER}),
    JobState.OVER: frozenset(),
}


class EndedRun(NamedTuple):
    """A run after which its job was queued again. Times are Unix time."""

    attempt: int
    started: float
    ended: float
    worker: str
    reason: str


class JobDetails:
    """What most jobs do without: the options of a submission, and the job's history."""

    __slots__ = (
        "attempt",
        "cancelled",
        "deadline",
        "deaths",
        "due",
        "expires",
        "group",
        "is_new",
        "joined",
        "keep",
        "keys",
        "line",
        "log",
        "message",
        "order",
        "previous",
        "progress",
        "queued",
        "ready",
        "reducer",
        "retries",
        "runs",
        "scheduled_at",
        "slots",
        "stream_keep",
        "timeout",
        "trace",
        "unstored",
        "waiters",
        "warnings",
        "watchers",
    )

    def __init__(self) -> None:
        # Options of the submission.
        self.reducer: bytes | None = None
        self.due = 0.0  # Unix time before which the job must not run
        self.expires = 0.0  # Unix time by which the job must have started; 0: never
        self.keep: float | None = None  # seconds; None: the server's default
        self.stream_keep = STREAM_KEEP  # bytes of its parts at the store
        self.timeout: float | None = None  # seconds; for the worker
        self.retries: dict[str, object] | None = None  # a RetryPlan as JSON objects; for the worker
        self.scheduled_at: tuple[float, str] | None = (
            None  # of the job of a schedule: its Unix time, the zone
        )
        self.keys: dict[str, str] | None = None  # for limits: those sent by limit, others by JSON pointer
        self.group: str | None = None  # sent: jobs of different groups take turns
        self.trace: dict[str, str] | None = None  # the trace context of the call; for the worker
        # Its places among jobs with limits.
        self.is_new = False  # it has not waited yet
        self.queued = 0.0  # since when it waits
        self.line: JobLine | None = None  # in which it waits
        self.order = 0  # among those that wait
        self.slots: tuple[Bucket, ...] | None = None  # in which it counts while it runs
        # History.
        self.ready = 0.0  # since when it could run, if that is not when it was submitted
        self.deadline = 0.0  # while it runs: when the server takes it from its worker; 0: never
        self.progress: tuple[bytes, bytes] | None = None  # as sent: numbers only if somebody asks
        self.message = b""  # of the last progress
        self.previous: tuple[int, int, str | None] | None = None  # the last progress of an earlier run
        self.attempt = 0  # failed runs that count
        self.deaths = 0  # runs cut off: the worker disconnected, or overran its time limit
        self.unstored: str | None = None  # why the store did not accept it
        self.joined = 0  # the number of the job of its unique that another server has
        self.cancelled = False  # it is over for all but the worker that still runs it
        self.warnings: list[bytes] = []
        self.runs: tuple[EndedRun, ...] = ()  # the last that have ended without an outcome
        self.waiters: dict[ResultWaiter, None] = {}  # calls that wait for its end
        self.watchers: dict[JobWatcher, None] = {}  # calls of gearflow:watch
        self.log: PartLog | None = None  # once parts have come, or somebody is to read them


class Clients:
    """The clients of a job that has had several. A connection that joined twice counts twice."""

    __slots__ = ("_count", "_counts")

    def __init__(self, clients: tuple[Session, ...]) -> None:
        self._counts: dict[Session, int] = {}
        self._count = 0
        for client in clients:
            self.add(client)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, client: object) -> bool:
        return client in self._counts

    def __iter__(self) -> Iterator[Session]:
        for client, count in self._counts.items():
            for _ in range(count):
                yield client

    def add(self, client: Session) -> None:
        """A connection joins."""
        self._counts[client] = self._counts.get(client, 0) + 1
        self._count += 1

    def remove(self, client: Session, times: int) -> None:
        """A connection leaves, as often as that."""
        self._count -= times
        self._counts[client] -= times
        if not self._counts[client]:
            del self._counts[client]

    def count(self, client: Session) -> int:
        """How often a connection has joined."""
        return self._counts.get(client, 0)


class QueuedJob:
    """Owns the state of one job."""

    __slots__ = (
        "background",
        "clients",
        "details",
        "function",
        "kept",
        "number",
        "priority",
        "started",
        "state",
        "submitted",
        "unique",
        "unique_key",
        "worker",
        "workload",
    )

    def __init__(
        self,
        number: int,
        function: FunctionQueue,
        unique: bytes,
        unique_key: bytes,
        workload: Body | int,
        priority: int,
        background: bool,
        submitted: float,
        details: JobDetails | None,
    ) -> None:
        self.number = number  # the last part of its handle
        self.function = function
        self.unique = unique
        self.unique_key = unique_key  # under which the function finds it; b"" if it does not coalesce
        self.workload = workload  # a number: the store has the workload, of so many bytes
        self.priority = priority
        self.background = background  # runs although no client is attached
        self.submitted = submitted  # by the broker's clock, as all times here unless they say otherwise
        self.details = details
        self.state = _WAITING
        self.started = 0.0  # when its last run began; 0: no run has begun
        self.worker: Session | None = None  # that of its last run
        self.kept = False  # the store has it
        self.clients: tuple[Session, ...] | Clients = ()  # attached

    @property
    def wanted(self) -> bool:
        """Whether the job has a client, or runs in the background."""
        return self.background or bool(self.clients)

    def attach(self, client: Session) -> None:
        """Another client waits for the job, or the same once more."""
        clients = self.clients
        if not isinstance(clients, tuple):
            clients.add(client)
        elif clients:
            self.clients = Clients((*clients, client))
            self.ensure_details()  # so that its end is no simple one
        else:
            self.clients = (client,)

    def detach(self, client: Session, times: int | None = None) -> None:
        """An attached client does not wait any more: it leaves as often as that, or for good."""
        clients = self.clients
        if isinstance(clients, tuple):
            self.clients = ()
        else:
            clients.remove(client, times or clients.count(client))

    @property
    def ready(self) -> float:
        """Since when it could run, if it waits or runs."""
        details = self.details
        return details.ready or self.submitted if details is not None else self.submitted

    @property
    def started_before(self) -> bool:
        """Whether a run of it has begun, also at a server before this one."""
        details = self.details
        return bool(self.started) or (details is not None and bool(details.attempt or details.deaths))

    @property
    def unstored(self) -> bool:
        """Whether the store did not accept the job."""
        return self.details is not None and self.details.unstored is not None

    @property
    def joined(self) -> int:
        """The number of the job that a background submission of its unique joined at another server, or 0."""
        return self.details.joined if self.details is not None else 0

    @property
    def cancelled(self) -> bool:
        """Whether it is over for all but the worker that still runs it."""
        return self.details is not None and self.details.cancelled

    @property
    def size(self) -> int:
        """Bytes of its workload."""
        workload = self.workload
        return workload if isinstance(workload, int) else len(workload)

    @property
    def deadline(self) -> float:
        """While it runs: when the server takes it from its worker; 0: never."""
        return self.details.deadline if self.details is not None else 0.0

    def ensure_details(self) -> JobDetails:
        """Its details, made if it has none yet."""
        if self.details is None:
            self.details = JobDetails()
        return self.details


class JobTable:
    """The jobs that are not over, by number. Owns the count of their workloads' bytes.

    ``by_unique`` has the job of a unique key, or its jobs by function where several functions have one.
    """

    __slots__ = ("by_number", "by_unique", "queued_bytes")

    def __init__(self) -> None:
        self.by_number: dict[int, QueuedJob] = {}
        self.by_unique: dict[bytes, QueuedJob | OrderedDict[FunctionQueue, QueuedJob]] = {}
        self.queued_bytes = 0

    def find(self, function: FunctionQueue | None, key: bytes) -> QueuedJob | None:
        """The job of a function under a unique key."""
        found = self.by_unique.get(key)
        if isinstance(found, OrderedDict):
            return found.get(function) if function is not None else None
        return found if found is not None and found.function is function else None

    def newest(self, key: bytes) -> QueuedJob | None:
        """The job that came last under a unique key, whatever its function, as in gearmand."""
        found = self.by_unique.get(key)
        return next(reversed(found.values())) if isinstance(found, OrderedDict) else found

    def add(self, job: QueuedJob) -> None:
        """A job has come: its number and its unique key lead to it from now on. Another job of its function
        has the key no longer."""
        self.by_number[job.number] = job
        workload = job.workload
        self.queued_bytes += workload if isinstance(workload, int) else len(workload)
        if job.unique_key:
            other = self.by_unique.setdefault(job.unique_key, job)
            if other is not job:
                self._share(other, job)

    def name(self, job: QueuedJob, key: bytes) -> None:
        """A unique key leads to a job from now on. Its function has no other under that key."""
        job.unique_key = key
        other = self.by_unique.setdefault(key, job)
        if other is not job:
            self._share(other, job)

    def remove(self, job: QueuedJob) -> None:
        """A job is over: its number, its unique key and its memory are free."""
        job.state = _OVER
        workload = job.workload
        self.queued_bytes -= workload if isinstance(workload, int) else len(workload)
        job.workload = b""
        del self.by_number[job.number]
        key = job.unique_key
        if key:
            if self.by_unique[key] is job:
                del self.by_unique[key]
            else:
                self.free_unique(job)

    def free_unique(self, job: QueuedJob) -> None:
        """From now on the job's unique key does not lead to it."""
        key = job.unique_key
        job.unique_key = b""
        jobs = self.by_unique[key]
        if jobs is job:
            del self.by_unique[key]
        elif isinstance(jobs, OrderedDict):
            del jobs[job.function]
            if len(jobs) == 1:
                (self.by_unique[key],) = jobs.values()

    def _share(self, other: QueuedJob | OrderedDict[FunctionQueue, QueuedJob], job: QueuedJob) -> None:
        """Another job has the same unique key. It keeps it if it is one of another function."""
        former = other.get(job.function) if isinstance(other, OrderedDict) else other
        if former is not None and former.function is job.function:
            self.free_unique(former)
            other = self.by_unique.setdefault(job.unique_key, job)
        if other is job:
            return
        if not isinstance(other, OrderedDict):
            other = self.by_unique[job.unique_key] = OrderedDict({other.function: other})
        other[job.function] = job
