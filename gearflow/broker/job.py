"""One job and the states of its life."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gearflow.broker.functions import FunctionQueue
    from gearflow.broker.parser import Body
    from gearflow.broker.session import Session

HIGH: Final = 0
NORMAL: Final = 1
LOW: Final = 2

NO_PROGRESS: Final[tuple[bytes, bytes]] = (b"0", b"0")
"""Numerator and denominator as a worker sends them; they are read as numbers only when somebody asks."""


class JobState(IntEnum):
    """Where a job is in its life; ``TRANSITIONS`` says where it may go from there."""

    STORING = 0  # on its way to the store; nobody has been told of it
    DELAYED = 1  # its time has not come
    WAITING = 2  # in a lane of its function
    RUNNING = 3  # assigned to a worker
    OVER = 4  # completed, failed, or wanted by nobody any more


TRANSITIONS: Final[dict[JobState, frozenset[JobState]]] = {
    JobState.STORING: frozenset({JobState.DELAYED, JobState.WAITING, JobState.OVER}),
    JobState.DELAYED: frozenset({JobState.WAITING, JobState.OVER}),
    JobState.WAITING: frozenset({JobState.RUNNING, JobState.OVER}),
    JobState.RUNNING: frozenset({JobState.DELAYED, JobState.WAITING, JobState.OVER}),
    JobState.OVER: frozenset(),
}


class Extras:
    """What most jobs do without: options of a submission, and what has happened to the job."""

    __slots__ = (
        "attempt",
        "cancelled",
        "deadline",
        "deaths",
        "due",
        "expires",
        "keep",
        "progress",
        "reducer",
        "retries",
        "timeout",
        "unstored",
        "warnings",
        "watchers",
    )

    def __init__(self) -> None:
        # As submitted.
        self.reducer: bytes | None = None
        self.due = 0.0  # Unix time before which it is not to run
        self.expires = 0.0  # Unix time by which it must have started; 0: no matter
        self.keep: float | None = None  # seconds; None: as is usual
        self.timeout: float | None = None  # seconds; for the worker
        self.retries: dict[str, object] | None = None  # a RetryPlan as JSON's objects; for the worker
        # As it went.
        self.deadline = 0.0  # while it runs: when it is taken from its worker; 0: never
        self.progress: tuple[bytes, bytes] = NO_PROGRESS
        self.attempt = 0  # runs that failed, and counted
        self.deaths = 0  # workers that went away in the middle of it
        self.unstored = False  # the store did not take it
        self.cancelled = False  # in the middle of a run, which nobody hears of any more
        self.warnings: list[bytes] = []
        self.watchers: list[tuple[Session, bytes]] = []  # who calls gearflow:result, and those calls' handles


class QueuedJob:
    """Owns the state of one job. The broker alone changes it."""

    __slots__ = (
        "background",
        "clients",
        "extras",
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
        extras: Extras | None,
    ) -> None:
        self.number = number  # the last part of its handle
        self.function = function
        self.unique = unique
        self.unique_key = unique_key  # under which the function knows it; b"" if it does not coalesce
        self.workload = workload  # a number: so many bytes are at the store
        self.priority = priority
        self.background = background  # runs although no client is attached
        self.submitted = submitted  # by the broker's clock, as all times here but where they say otherwise
        self.extras = extras
        self.state = JobState.WAITING
        self.started = 0.0  # when its last run began; 0: none has
        self.worker: Session | None = None  # that of its last run
        self.kept = False  # the store has it
        self.clients: tuple[Session, ...] = ()  # attached; a connection that joined twice is here twice

    @property
    def wanted(self) -> bool:
        """Whether anybody would miss the job."""
        return self.background or bool(self.clients)

    @property
    def unstored(self) -> bool:
        """Whether it was to be kept, and could not be."""
        return self.extras is not None and self.extras.unstored

    @property
    def cancelled(self) -> bool:
        """Whether it is over for all but the worker that still runs it."""
        return self.extras is not None and self.extras.cancelled

    @property
    def size(self) -> int:
        """Bytes of its workload."""
        workload = self.workload
        return workload if isinstance(workload, int) else len(workload)

    @property
    def deadline(self) -> float:
        """While it runs: when it is taken from its worker; 0: never."""
        return self.extras.deadline if self.extras is not None else 0.0

    def more(self) -> Extras:
        """Its extras, made if it has none yet."""
        if self.extras is None:
            self.extras = Extras()
        return self.extras
