"""A typed task queue for Python on the Gearman protocol, with its own job server in the wheel."""

from typing import TYPE_CHECKING

from gearflow.client import TLS, Priority, configure, connect
from gearflow.errors import (
    ConnectionLost,
    GearflowError,
    NoServer,
    PartlySubmitted,
    PayloadInvalid,
    QueueFull,
    ServerError,
    StartupFailed,
    SubmitUnknown,
    TaskCrashed,
    TaskDefinitionError,
    TaskFailed,
    TaskTimeout,
    UnknownJob,
    UnknownTask,
    UnsupportedByServer,
)
from gearflow.tasks import (
    AsyncJob,
    AsyncResults,
    AsyncTask,
    CallOptions,
    Context,
    Discard,
    Fail,
    Job,
    Proceed,
    Ref,
    Results,
    Retry,
    RunInfo,
    Snooze,
    Task,
    TryAgain,
    lifespan,
    middleware,
    task,
)

if TYPE_CHECKING:
    from gearflow.server import JobServer, ServerSettings

__all__ = [
    "TLS",
    "AsyncJob",
    "AsyncResults",
    "AsyncTask",
    "CallOptions",
    "ConnectionLost",
    "Context",
    "Discard",
    "Fail",
    "GearflowError",
    "Job",
    "JobServer",
    "NoServer",
    "PartlySubmitted",
    "PayloadInvalid",
    "Priority",
    "Proceed",
    "QueueFull",
    "Ref",
    "Results",
    "Retry",
    "RunInfo",
    "ServerError",
    "ServerSettings",
    "Snooze",
    "StartupFailed",
    "SubmitUnknown",
    "Task",
    "TaskCrashed",
    "TaskDefinitionError",
    "TaskFailed",
    "TaskTimeout",
    "TryAgain",
    "UnknownJob",
    "UnknownTask",
    "UnsupportedByServer",
    "configure",
    "connect",
    "lifespan",
    "middleware",
    "task",
]


def __getattr__(name: str) -> object:
    """Import the server on first use, because clients and workers do not need it."""
    if name in ("JobServer", "ServerSettings"):
        from gearflow import server

        return getattr(server, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
