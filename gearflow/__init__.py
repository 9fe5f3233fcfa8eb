"""A typed task queue for Python on the Gearman protocol, with its own job server in the wheel."""

from typing import TYPE_CHECKING

from gearflow.client import Priority, configure, connect
from gearflow.errors import (
    ConnectionLost,
    GearflowError,
    NoServer,
    PartlySubmitted,
    PayloadInvalid,
    QueueFull,
    ServerError,
    SubmitUnknown,
    TaskDefinitionError,
    TaskFailed,
    TaskTimeout,
    UnknownJob,
    UnknownTask,
    UnsupportedByServer,
)
from gearflow.tasks import (
    AsyncBatch,
    AsyncJob,
    AsyncTask,
    Batch,
    CallOptions,
    Context,
    Discard,
    Job,
    Ref,
    Retry,
    Snooze,
    Task,
    TryAgain,
    task,
)

if TYPE_CHECKING:
    from gearflow.server import JobServer, ServerSettings

__all__ = [
    "AsyncBatch",
    "AsyncJob",
    "AsyncTask",
    "Batch",
    "CallOptions",
    "ConnectionLost",
    "Context",
    "Discard",
    "GearflowError",
    "Job",
    "JobServer",
    "NoServer",
    "PartlySubmitted",
    "PayloadInvalid",
    "Priority",
    "QueueFull",
    "Ref",
    "Retry",
    "ServerError",
    "ServerSettings",
    "Snooze",
    "SubmitUnknown",
    "Task",
    "TaskDefinitionError",
    "TaskFailed",
    "TaskTimeout",
    "TryAgain",
    "UnknownJob",
    "UnknownTask",
    "UnsupportedByServer",
    "configure",
    "connect",
    "task",
]


def __getattr__(name: str) -> object:
    """The server, when it is asked for: clients and workers do without it."""
    if name in ("JobServer", "ServerSettings"):
        from gearflow import server

        return getattr(server, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
