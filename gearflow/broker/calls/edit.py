"""``gearflow:edit``: change a job that waits or is delayed.

The change is made at once, and the call is answered when it is kept. If another server of the group has the
job, that is ordered to change it (``Ordered``), and the answer comes when the store has the change.
"""

from __future__ import annotations

import json
from typing import Final, NamedTuple

from gearflow.broker import serialization
from gearflow.broker.calls.call import (
    LANES,
    ORDERED,
    BrokerParts,
    CallFailed,
    FarJob,
    Keep,
    Kept,
    Later,
    ServerCall,
    Steps,
)
from gearflow.broker.job import JobState, QueuedJob
from gearflow.broker.storage import Edited, JobRecord, Ordered, StoredJob
from gearflow.protocol import server_calls as api
from gearflow.protocol.server_calls import EditRequest

VERB: Final = "edit "
"""The verb of the order begins with this. What follows is JSON."""

_LIVES: Final = (JobState.DELAYED, JobState.WAITING)


class JobEdit(NamedTuple):
    """What is to be changed. None stays as it is."""

    priority: int | None
    due: float | None  # Unix time
    expires: float | None  # Unix time

    @classmethod
    def of(cls, request: EditRequest, now: float) -> JobEdit:
        """What a request asks for."""
        return cls(
            None if request.priority is None else LANES[request.priority],
            request.at if request.delay is None else now + request.delay,
            None if request.expires is None else now + request.expires,
        )

    @classmethod
    def of_order(cls, verb: str) -> JobEdit:
        """What an order asks for."""
        return cls(*json.loads(verb.removeprefix(VERB)))

    def as_order(self) -> str:
        """The verb of the order."""
        return VERB + json.dumps(self)

    def is_made(self, stored: StoredJob) -> bool:
        """Whether the store has the change."""
        details = serialization.details_of(stored)
        expires = details.expires if details is not None else 0.0
        return (
            (self.priority is None or stored.priority == self.priority)
            and (self.due is None or stored.due == self.due)
            and (self.expires is None or expires == self.expires)
        )


class EditCalls:
    """Edits jobs."""

    def __init__(self, parts: BrokerParts) -> None:
        self._parts = parts

    def edit(self, call: ServerCall) -> Steps:
        """Edit a job that waits."""
        request = call.read(EditRequest)
        edit = JobEdit.of(request, self._parts.core.clock.unix())
        job = self._live(request.handle)
        while job is not None and job.state is JobState.STORING:
            yield Kept(job.number)
            job = self._live(request.handle)
        if job is None:
            return (yield from self._edit_far(request, edit))
        yield from self._edit(job, request.handle, edit)
        return api.Done(jobs=1)

    def carry_out(self, number: int, verb: str) -> Steps:
        """Edit a job, because another server was asked for that. If it does not wait, nothing happens."""
        job = self._parts.core.jobs.by_number.get(number)
        if job is not None and job.state in _LIVES:
            handle = self._parts.core.handles.handle(number).decode()
            yield from self._edit(job, handle, JobEdit.of_order(verb))
        return None

    def _live(self, handle: str) -> QueuedJob | None:
        return self._parts.live_job(api.JobName(handle=handle))

    def _edit(self, job: QueuedJob, handle: str, edit: JobEdit) -> Steps:
        """Edit a job of this server. Raises CallFailed."""
        self._check(job, handle, edit)
        parts = self._parts
        parts.lifecycle.edit(job, edit.priority, edit.due, edit.expires)
        if job.kept:
            stored = serialization.stored_job(job, parts.core.clock.offset)
            change = Edited(job.number, stored.priority, stored.due, stored.options)
            (error,) = yield Keep([change])
            if error is not None:
                text = (
                    f"edited, but that could not be written: after a restart it would be as before; {error}"
                )
                raise CallFailed("gearflow:store", text)
        return None

    def _check(self, job: QueuedJob, handle: str, edit: JobEdit) -> None:
        fault = ""
        if job.state is JobState.RUNNING:
            fault = f"job {handle} runs, and only a job that waits can be edited"
        elif job.kept and job.function.holds:
            fault = f"this server does not know now whether it still has job {handle}; try again soon"
        elif job.function.limited is not None and job.function.limited.busy:
            fault = f"the limits of the function of job {handle} have just changed; try again soon"
        elif edit.due is not None and not job.background:
            fault = f"a client waits for job {handle}, and only background jobs can start later"
        elif edit.expires is not None and job.started_before:
            fault = f"job {handle} has started before, so it cannot expire any more"
        if fault:
            raise CallFailed("gearflow:refused", fault)

    def _edit_far(self, request: EditRequest, edit: JobEdit) -> Steps:
        """Edit a job that is not here: the server that has it is to do it."""
        parts, name = self._parts, api.JobName(handle=request.handle)
        if not parts.core.journal.exists:
            raise CallFailed("gearflow:unknown", f"there is no job {request.handle} that waits")
        record = yield from parts.record(name)
        if isinstance(record, FarJob):
            (error,) = yield Keep([Ordered(record.stored.number, edit.as_order())])
            if error is not None:
                raise CallFailed("gearflow:store", f"the store cannot be written: {error}")
        until = parts.core.clock.unix() + ORDERED
        while isinstance(record, FarJob) and not edit.is_made(record.stored):
            if until <= parts.core.clock.unix():
                text = (
                    f"the server that has job {request.handle} has not edited it in time; it may do so yet, "
                    "or the job runs already"
                )
                raise CallFailed("gearflow:timeout", text)
            yield Later(until)
            record = yield from parts.record(name, record)
        if isinstance(record, JobRecord):
            text = f"job {request.handle} has ended, and only a job that waits can be edited"
            raise CallFailed("gearflow:refused", text)
        if record is None:  # this server has adopted it, or its end is not kept yet
            job = self._live(request.handle)
            if job is None:
                raise CallFailed("gearflow:refused", f"job {request.handle} has just ended")
            yield from self._edit(job, request.handle, edit)
        return api.Done(jobs=1)
