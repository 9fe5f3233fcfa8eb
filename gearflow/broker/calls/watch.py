"""``gearflow:watch``: what happens to a job, and then its end."""

from __future__ import annotations

from gearflow.broker.calls.call import BrokerParts, EndOf, JobEnd, LookAgain, ServerCall, Steps
from gearflow.protocol import server_calls as api


class WatchCalls:
    """Answers with the events of jobs."""

    def __init__(self, parts: BrokerParts) -> None:
        self._parts = parts

    def watch(self, call: ServerCall) -> Steps:
        """Send what happens to a job, and end as the job ended."""
        request = call.read(api.WatchRequest)
        watching = self._parts.watching
        while True:
            job = self._parts.live_job(request)
            if job is None:
                yield self._parts.known(request.handle, request.function, request.unique)
                job = self._parts.live_job(request)
            if not call.session.is_open:
                return None
            if job is not None:
                watcher = watching.watch(job, call.session, call.handle, request.parts)
                end: JobEnd | LookAgain = yield EndOf(job, None, watcher)
                watching.catch_up(watcher)
                if isinstance(end, JobEnd):
                    return end
                continue
            record = yield from self._parts.record(request)
            if record is None:
                continue
            end_there = yield from self._parts.end_of(call.session, record)
            if end_there is not None or not call.session.is_open:
                return end_there
