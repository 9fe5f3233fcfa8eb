"""``gearflow:watch``: what happens to a job, and then its end."""

from __future__ import annotations

from gearflow.broker.calls.call import BrokerParts, EndOf, FarJob, JobEnd, Later, LookAgain, ServerCall, Steps
from gearflow.protocol import server_calls as api


class WatchCalls:
    """Answers with the events of jobs."""

    def __init__(self, parts: BrokerParts) -> None:
        self._parts = parts

    def watch(self, call: ServerCall) -> Steps:
        """Send what happens to a job, and end as the job ended."""
        request = call.read(api.WatchRequest)
        name: api.JobName = request
        watching = self._parts.watching
        seen: FarJob | None = None
        while True:
            job = self._parts.live_job(name)
            if job is None:
                yield self._parts.known(name.handle, name.function, name.unique)
                job = self._parts.live_job(name)
            if not call.session.is_open:
                return None
            if job is not None:
                watcher = watching.watch(job, call.session, call.handle, request.parts)
                end: JobEnd | LookAgain = yield EndOf(job, None, watcher)
                watching.catch_up(watcher)
                if isinstance(end, JobEnd):
                    return end
                name = self._parts.name_of(job.number)
                continue
            record = yield from self._parts.record(name, seen)
            if record is None:
                continue
            if isinstance(record, FarJob):
                if record != seen:
                    watching.show(record.stored, call.session, call.handle)
                seen = record
                yield Later()
                continue
            end_there = yield from self._parts.end_of(call.session, record)
            if end_there is not None or not call.session.is_open:
                return end_there
