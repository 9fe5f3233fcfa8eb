"""Tasks, which are typed functions that run as jobs."""

from gearflow.tasks.context import Context
from gearflow.tasks.control_flow import Discard, Fail, Snooze, TryAgain
from gearflow.tasks.decorator import TaskDecorator, task
from gearflow.tasks.hooks import Proceed, RunInfo, lifespan, middleware
from gearflow.tasks.job import AsyncJob, Job
from gearflow.tasks.mapping.results import AsyncOutcome, AsyncResults, Outcome, Results
from gearflow.tasks.options import CallOptions
from gearflow.tasks.ref import Ref
from gearflow.tasks.registry import Registry
from gearflow.tasks.retry import Retry
from gearflow.tasks.task import AsyncTask, Task

__all__ = [
    "AsyncJob",
    "AsyncOutcome",
    "AsyncResults",
    "AsyncTask",
    "CallOptions",
    "Context",
    "Discard",
    "Fail",
    "Job",
    "Outcome",
    "Proceed",
    "Ref",
    "Registry",
    "Results",
    "Retry",
    "RunInfo",
    "Snooze",
    "Task",
    "TaskDecorator",
    "TryAgain",
    "lifespan",
    "middleware",
    "task",
]
