"""Run tasks: a worker takes jobs from its servers, and tells them how they end."""

from gearflow.tasks import RunInfo
from gearflow.worker.settings import WorkerOptions, WorkerSettings
from gearflow.worker.worker import Worker

__all__ = ["RunInfo", "Worker", "WorkerOptions", "WorkerSettings"]
