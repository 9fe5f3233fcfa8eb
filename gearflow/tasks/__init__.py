"""Tasks, which are typed functions that run as jobs."""

from gearflow.runtime.run_records import run_fields
from gearflow.tasks.batch import AsyncBatchTask, Batch, BatchDecorator, BatchTask
from gearflow.tasks.context import Context
from gearflow.tasks.control_flow import Discard, Fail, Snooze, TryAgain
from gearflow.tasks.decorator import TaskDecorator, task
from gearflow.tasks.events import Ended, Event, Part, Progress, Retrying, Started, Warned
from gearflow.tasks.hooks import Proceed, RunInfo, lifespan, middleware
from gearflow.tasks.job import AsyncJob, Job
from gearflow.tasks.limits import Concurrency, Rate
from gearflow.tasks.mapping.results import AsyncOutcome, AsyncResults, Outcome, Results
from gearflow.tasks.mapping.run import FailedItem
from gearflow.tasks.mapping.verbs import amap_reduce, map_reduce
from gearflow.tasks.options import CallOptions, StreamOptions
from gearflow.tasks.ref import Ref
from gearflow.tasks.registry import Registry
from gearflow.tasks.retry import Retry
from gearflow.tasks.stream_task import AsyncStreamTask, StreamTask
from gearflow.tasks.streams import AsyncStream, AsyncStreamJob, Stream, StreamJob, StreamRef
from gearflow.tasks.task import AsyncTask, Task

__all__ = [
    "AsyncBatchTask",
    "AsyncJob",
    "AsyncOutcome",
    "AsyncResults",
    "AsyncStream",
    "AsyncStreamJob",
    "AsyncStreamTask",
    "AsyncTask",
    "Batch",
    "BatchDecorator",
    "BatchTask",
    "CallOptions",
    "Concurrency",
    "Context",
    "Discard",
    "Ended",
    "Event",
    "Fail",
    "FailedItem",
    "Job",
    "Outcome",
    "Part",
    "Proceed",
    "Progress",
    "Rate",
    "Ref",
    "Registry",
    "Results",
    "Retry",
    "Retrying",
    "RunInfo",
    "Snooze",
    "Started",
    "Stream",
    "StreamJob",
    "StreamOptions",
    "StreamRef",
    "StreamTask",
    "Task",
    "TaskDecorator",
    "TryAgain",
    "Warned",
    "amap_reduce",
    "lifespan",
    "map_reduce",
    "middleware",
    "run_fields",
    "task",
]
