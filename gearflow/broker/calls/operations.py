"""The calls of workers about the jobs that they hold, and of operators about functions."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from gearflow.broker import serialization
from gearflow.broker.calls.call import (
    KNOWN,
    ORDERED,
    BrokerParts,
    CallFailed,
    FarJob,
    FromShell,
    Keep,
    Kept,
    Later,
    ServerCall,
    Steps,
)
from gearflow.broker.job import JobState, QueuedJob
from gearflow.broker.storage import Ordered, Paused
from gearflow.errors import StoreError
from gearflow.protocol import server_calls as api
from gearflow.protocol.constants import RESERVED_PREFIX, PacketType
from gearflow.protocol.group_info import GroupInfo, GroupRequest

_SLICE: Final = 200
"""Jobs that are purged before others get their turn."""

_PURGED: Final = (JobState.WAITING, JobState.DELAYED)


class OperationCalls:
    """Carries out commands."""

    def __init__(self, parts: BrokerParts) -> None:
        self._parts = parts

    # ---------------------------------------------------------------------------------- connections

    def auth(self, call: ServerCall) -> api.Message:
        """The connection is authenticated already: else nothing else of it is handled."""
        return api.Admitted()

    def detach(self, call: ServerCall) -> api.Message:
        """Detach this connection from a job, or end a call of this connection that waits for one."""
        handle = call.read(api.DetachRequest).handle.encode()
        parts, session = self._parts, call.session
        waiter, reader = session.waits.get(handle), session.readers.get(handle)
        detached = parts.endings.detach(session, handle)
        if not detached:
            if waiter is not None:
                waiter.stop()
            elif reader is not None:
                parts.streams.close(reader)
            else:
                detached = parts.streams.leave_ended(session, parts.core.handles.number(handle))
        return api.Done(jobs=int(detached or waiter is not None or reader is not None))

    def group(self, call: ServerCall) -> Steps:
        """Show the group of the server. The shell finds it out."""
        call.read(GroupRequest)
        core = self._parts.core
        if core.group is None or core.group_facts is None:
            text = "this server is in no group, as it shares its jobs with no other server"
            raise CallFailed("gearflow:refused", text)
        info: GroupInfo = yield FromShell(core.group_facts)
        return info

    # ---------------------------------------------------------------------- jobs that a worker holds

    def retry(self, call: ServerCall) -> Steps:
        """A worker hands back a job whose run failed, to be run again."""
        request = call.read(api.RetryRequest)
        session, handle = call.session, request.handle.encode()
        job = self._held(call, request.handle)
        due = self._parts.core.clock.unix() + request.delay if request.delay else 0.0
        if self._parts.core.journal.is_ahead(job.number):
            yield Kept(job.number)
        if session.alone is not None and session.alone.job is job:
            job.ensure_details().deaths = 0  # the suspect has run alone, and its worker is alive
        run = self._parts.lifecycle.ended_run(job, request.reason)
        if job.kept:
            details = job.ensure_details()
            attempt = details.attempt + request.counted
            (error,) = yield Keep([serialization.rescheduled(job, details, due, attempt, run)])
        else:
            error = None
            yield KNOWN
        if session.running.get(handle) is not job:
            text = f"job {request.handle} was taken from this connection meanwhile"
            raise CallFailed("gearflow:refused", text)
        if error is not None:
            raise CallFailed("gearflow:store", f"the store cannot be written: {error}")
        del session.running[handle]
        if request.reason:
            warning = b"%b\0%b" % (handle, request.reason.encode())
            self._parts.core.outgoing.relay(job.clients, PacketType.WORK_WARNING, warning)
        self._parts.lifecycle.requeue(job, request.reason, due, counts=request.counted, run=run)
        return api.Done(jobs=1)

    def release(self, call: ServerCall) -> api.Message:
        """A worker hands back a job that it will not run to its end."""
        request = call.read(api.ReleaseRequest)
        job = self._held(call, request.handle)
        del call.session.running[request.handle.encode()]
        self._parts.lifecycle.requeue(job, "its worker gave it back", begun=request.begun)
        return api.Done(jobs=1)

    def _held(self, call: ServerCall, handle: str) -> QueuedJob:
        job = call.session.running.get(handle.encode())
        if job is None:
            raise CallFailed("gearflow:refused", f"this connection does not hold a job {handle}")
        return job

    # -------------------------------------------------------------------------------- jobs in queues

    def cancel(self, call: ServerCall) -> Steps:
        """Cancel a job."""
        request = call.read(api.CancelRequest)
        handle = request.handle.encode()
        job = self._parts.core.find(handle)
        if job is None and self._parts.core.journal.shared:
            return (yield from self._cancel_far(request))
        if job is None or not self._parts.endings.cancel(handle):
            raise _no_job(request)
        yield KNOWN
        self._check_written((job.number,))
        return api.Done(jobs=1)

    def _cancel_far(self, request: api.CancelRequest) -> Steps:
        """Have the server that has a job cancel it."""
        parts, name = self._parts, api.JobName(handle=request.handle)
        record = yield from parts.record(name)
        if not isinstance(record, FarJob):
            raise _no_job(request)
        number = record.stored.number
        (error,) = yield Keep([Ordered(number, "cancel")])
        if error is not None:
            raise CallFailed("gearflow:store", f"the store cannot be written: {error}")
        until = parts.core.clock.unix() + ORDERED
        while isinstance(record, FarJob):
            if until <= parts.core.clock.unix():
                text = (
                    f"the server that has job {request.handle} has not cancelled it in time; it may do so yet"
                )
                raise CallFailed("gearflow:timeout", text)
            yield Later(until)
            try:
                record = yield from parts.record(name, record)
            except CallFailed:
                break
        if parts.endings.cancel(request.handle.encode()):  # this server has adopted it
            yield KNOWN
            self._check_written((number,))
        return api.Done(jobs=1)

    def purge(self, call: ServerCall) -> Steps:
        """Cancel all jobs of a function that wait."""
        request = call.read(api.PurgeRequest)
        core = self._parts.core
        function = core.functions.by_name.get(request.function.encode())
        jobs = function.waiting_jobs() if function is not None else []
        purged = 0
        failed: CallFailed | None = None
        for start in range(0, len(jobs), _SLICE):
            numbers = {job.number for job in jobs[start : start + _SLICE] if job.state in _PURGED}
            for number in numbers:
                self._parts.endings.cancel(core.handles.handle(number))
            purged += len(numbers)
            yield KNOWN
            try:
                self._check_written(numbers)
            except CallFailed as error:
                failed = error
        if failed is not None:
            raise failed
        return api.Done(jobs=purged)

    def _check_written(self, numbers: Collection[int]) -> None:
        """Raise CallFailed if the end of one of these jobs could not be written."""
        if self._parts.core.journal.has_failed_end(numbers):
            text = "cancelled, but that could not be written: after a restart now it would run"
            raise CallFailed("gearflow:store", text)

    def pause(self, call: ServerCall) -> Steps:
        """Pause a function, or resume it."""
        request = call.read(api.PauseRequest)
        name = request.function.encode()
        parts = self._parts
        if name.startswith(RESERVED_PREFIX) or len(name) > parts.core.limits.function:
            raise CallFailed("gearflow:invalid", "there can be no jobs of a function with that name")
        jobs = parts.dispatcher.pause(parts.core.functions.ensure(name), request.paused)
        (error,) = yield Keep([Paused(name, request.paused)])
        if error is not None:
            now, then = ("paused", "go on") if request.paused else ("resumed", "be paused")
            text = f"{now}, but that could not be written: after a restart it would {then}; {error}"
            raise CallFailed("gearflow:store", text)
        return api.Done(jobs=jobs)

    def reopen(self, call: ServerCall) -> api.Message:
        """Accept background jobs again after a failed sync, if everything written is there."""
        call.read(api.ReopenRequest)
        core = self._parts.core
        closed = core.journal.closed
        if closed is not None:
            try:
                core.journal.reopen()
            except StoreError as error:
                core.outgoing.notify("could not reopen the store", call.session, str(error).encode())
                raise CallFailed("gearflow:store", str(error)) from None
            core.journal.closed = None
            text = "reopened the store; background jobs are accepted again"
            core.outgoing.notify(text, call.session, closed.reason.encode())
        return api.Reopened(was_closed=closed is not None)


def _no_job(request: api.CancelRequest) -> CallFailed:
    return CallFailed("gearflow:unknown", f"there is no job {request.handle} that waits or runs")
