"""Debounced submissions: the latest payload wins, and runs after a time without another one.

A submission replaces the job of its unique if no run of that job has begun. Its payload and options are those
of the latest submission, and it keeps its handle. It starts ``debounce`` after that one, and at the latest
``max_wait`` after the first.

A job that has started is left alone. It loses its unique, first in the store (``Freed``) and then here, and
the submission makes a new job. So the store never has two jobs of one unique, which its index would refuse,
and after a restart the unique leads to the new job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gearflow.broker import serialization
from gearflow.broker.calls.call import BrokerParts, CallFailed, Keep, Kept, Steps
from gearflow.broker.job import JobDetails, JobState, QueuedJob
from gearflow.broker.parser import Body
from gearflow.broker.storage import Edited, Freed
from gearflow.broker.submission import INLINE
from gearflow.protocol import server_calls as api

if TYPE_CHECKING:
    from gearflow.broker.calls.submit import Asked


FAR: Final = 10_000
"""Jobs that wait, from which on one of them keeps its place when it is replaced. It takes long to find it."""


class Debounce:
    """Replaces jobs by later submissions."""

    def __init__(self, parts: BrokerParts) -> None:
        self._parts = parts

    def replace(self, asked: Asked, payload: Body) -> Steps:
        """Replace the job of a submission's unique; answered once that is kept. None if a new job is to be
        made. Raises CallFailed."""
        core = self._parts.core
        if len(payload) >= core.journal.large:
            text = f"a payload of {len(payload)} bytes is too large to be replaced, so it cannot be debounced"
            raise CallFailed("gearflow:invalid", text)
        while (job := self._live(asked)) is not None:
            if job.state is JobState.STORING:
                yield Kept(job.number)
            elif job.kept and job.function.holds:
                text = "this server does not know now whether it still has the job of this unique; try again"
                raise CallFailed("gearflow:refused", text)
            elif _is_replaced(job):
                return (yield from self._replace(job, asked, payload))
            else:
                yield from self._free(job)
        return None

    def _live(self, asked: Asked) -> QueuedJob | None:
        core = self._parts.core
        return core.jobs.find(core.functions.by_name.get(asked.function), asked.unique)

    def _replace(self, job: QueuedJob, asked: Asked, payload: Body) -> Steps:
        parts, core = self._parts, self._parts.core
        now = core.clock.unix()
        details = job.ensure_details()
        latest = asked.details(now)
        latest = core.limiter.prepare(job.function, payload, latest) or latest
        due = asked.due(now, job.submitted + core.clock.offset)
        has_place = (latest.keys, latest.group) == (details.keys, details.group)
        is_far = job.function.waiting_of(job.priority) > FAR
        stays = job.state is JobState.WAITING and (due <= now or is_far) and has_place
        _take_over(details, latest)
        core.jobs.queued_bytes += len(payload) - job.size
        job.workload = payload
        parts.lifecycle.edit(job, asked.lane, None if stays else due, latest.expires or None)
        if job.kept:
            stored = serialization.stored_job(job, core.clock.offset)
            change = Edited(job.number, stored.priority, stored.due, stored.options, payload)
            (error,) = yield Keep([change])
            if error is not None:
                raise CallFailed("gearflow:uncertain", f"the job may have been stored: {error}")
            if job.workload is payload and len(payload) > INLINE and job.state is JobState.DELAYED:
                job.workload = len(payload)  # the store has it
        job.function.counts.joined += 1
        return api.Submitted(handle=core.handles.handle(job.number).decode())

    def _free(self, job: QueuedJob) -> Steps:
        """A job that is not replaced loses its unique."""
        core = self._parts.core
        key = job.unique_key
        if job.kept:
            (error,) = yield Keep([Freed(job.number)])
            if error is not None:
                raise CallFailed("gearflow:store", f"the job could not be stored: {error}")
        if job.unique_key == key and core.jobs.find(job.function, key) is job:
            core.jobs.free_unique(job)
        return None


def _is_replaced(job: QueuedJob) -> bool:
    """Whether another submission may take the place of the one that made a job."""
    if not job.background or job.clients or job.started_before:
        return False
    queue = job.function.limited
    return job.state is JobState.DELAYED or (
        job.state is JobState.WAITING and not (queue is not None and queue.busy)
    )


def _take_over(details: JobDetails, latest: JobDetails) -> None:
    """The options of the latest submission are those of the job."""
    details.expires = latest.expires
    details.keep = latest.keep
    details.stream_keep = latest.stream_keep
    details.timeout = latest.timeout
    details.retries = latest.retries
    details.keys = latest.keys
    details.group = latest.group
    details.trace = latest.trace
