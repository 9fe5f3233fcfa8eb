"""The events of a job, as ``job.events()`` and ``ref.events()`` yield them. Frozen values.

A late watcher gets the newest state first: ``Started`` if the job runs, and its last ``Progress``. Then come
the events as they happen, and ``Ended`` at the end.
"""

from dataclasses import dataclass
from typing import Generic, Literal, TypeAlias, TypeVar

from gearflow.errors import TaskFailed

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

EndState: TypeAlias = Literal["completed", "cancelled", "failed", "raised", "workers_died", "expired"]
"""How a job ended, in the words of ``JobInfo.state``."""


@dataclass(frozen=True, slots=True)
class Started:
    """A worker has begun to run the job.

    Attributes:
        attempt: The number of the run, from 1.
        worker: The name of the worker. Empty if it has none.
    """

    attempt: int
    worker: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """The task reported how far it is.

    Attributes:
        done: The number of steps that are done.
        total: The number of all steps. 0 means that it is not known.
        message: What the task says about it. Empty if it says nothing.
    """

    done: int
    total: int
    message: str = ""


@dataclass(frozen=True, slots=True)
class Part(Generic[T_co]):
    """The task yielded a value. A watcher that is too slow misses parts, which their positions show.

    Attributes:
        value: The value.
        position: The number of the part in its run, from 1.
    """

    value: T_co
    position: int


@dataclass(frozen=True, slots=True)
class Warned:
    """The task sent a warning, and goes on.

    Attributes:
        text: The warning.
    """

    text: str


@dataclass(frozen=True, slots=True)
class Retrying:
    """The run has ended without an outcome, and the job will run again.

    Attributes:
        attempt: The number of the run that has ended, from 1.
        delay: Seconds until the job may run again.
        reason: Why it runs again.
    """

    attempt: int
    delay: float
    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The job has ended. This is the last event.

    Attributes:
        state: How it ended, such as ``completed`` or ``raised``.
        failure: The exception that the result would raise. None if the job completed or was cancelled.
    """

    state: EndState
    failure: TaskFailed | None = None


Event: TypeAlias = Started | Progress | Part[T] | Warned | Retrying | Ended
"""Any of them. ``T`` is the type of the parts. The jobs of tasks that do not yield have no parts."""
