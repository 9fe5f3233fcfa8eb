"""One job and the states of its life."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gearflow.broker.bodies import Body
    from gearflow.broker.queues import FunctionQueue
    from gearflow.broker.sessions import Session

HIGH: Final = 0
NORMAL: Final = 1
LOW: Final = 2

NO_PROGRESS: Final[tuple[bytes, bytes]] = (b"0", b"0")
"""Numerator and denominator as a worker sends them; they are read as numbers only when somebody asks."""


class JobState(IntEnum):
    """Where a job is in its life; ``TRANSITIONS`` says where it may go from there."""

    DELAYED = 0  # its time has not come
    WAITING = 1  # in a lane of its function
    RUNNING = 2  # assigned to a worker
    OVER = 3  # completed, failed, or wanted by nobody any more


TRANSITIONS: Final[dict[JobState, frozenset[JobState]]] = {
    JobState.DELAYED: frozenset({JobState.WAITING, JobState.OVER}),
    JobState.WAITING: frozenset({JobState.RUNNING, JobState.OVER}),
    JobState.RUNNING: frozenset({JobState.WAITING, JobState.OVER}),
    JobState.OVER: frozenset(),
}


class Job:
    """Owns the state of one job. The broker alone changes it."""

    __slots__ = (
        "background",
        "clients",
        "deadline",
        "function",
        "handle",
        "priority",
        "progress",
        "reducer",
        "state",
        "unique",
        "unique_key",
        "workload",
    )

    def __init__(
        self,
        handle: bytes,
        function: FunctionQueue,
        unique: bytes,
        unique_key: bytes,
        workload: Body,
        priority: int,
        background: bool,
        reducer: bytes | None,
    ) -> None:
        self.handle = handle
        self.function = function
        self.unique = unique
        self.unique_key = unique_key  # under which the function knows it; b"" if it does not coalesce
        self.workload = workload
        self.priority = priority
        self.background = background  # runs although no client is attached
        self.reducer = reducer
        self.state = JobState.WAITING
        self.clients: tuple[Session, ...] = ()  # attached; a connection that joined twice is here twice
        self.deadline = 0.0  # while it runs: when it is taken from its worker; 0: never
        self.progress: tuple[bytes, bytes] = NO_PROGRESS

    @property
    def wanted(self) -> bool:
        """Whether anybody would miss the job."""
        return self.background or bool(self.clients)
