"""The worker. It takes jobs from its servers, runs tasks for them, and reports how they end."""

from typing import TYPE_CHECKING

from gearflow.tasks import RunInfo

if TYPE_CHECKING:
    from gearflow.worker.settings import WorkerOptions, WorkerSettings
    from gearflow.worker.worker import Worker

__all__ = ["RunInfo", "Worker", "WorkerOptions", "WorkerSettings"]


def __getattr__(name: str) -> object:
    """Import the worker on first use, because task processes do not need it."""
    if name == "Worker":
        from gearflow.worker.worker import Worker

        return Worker
    if name in ("WorkerOptions", "WorkerSettings"):
        from gearflow.worker import settings

        return getattr(settings, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
