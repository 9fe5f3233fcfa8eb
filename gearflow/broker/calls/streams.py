"""``gearflow:stream``: the parts of a job, and then its end."""

from __future__ import annotations

import json
from typing import Any

from gearflow.broker.calls.call import AllParts, BrokerParts, JobEnd, LookAgain, ServerCall, Steps
from gearflow.broker.parts import PartLog
from gearflow.broker.storage import JobRecord
from gearflow.protocol import server_calls as api


class StreamCalls:
    """Answers with the parts of jobs."""

    def __init__(self, parts: BrokerParts) -> None:
        self._parts = parts

    def stream(self, call: ServerCall) -> Steps:
        """Send the parts of a job, and end as the job ended."""
        request = call.read(api.StreamRequest)
        after = None if request.after == "latest" else request.after
        waits = request.lag == "wait"
        streams = self._parts.streams
        while True:
            log = self._log(request)
            if log is None:
                yield self._parts.known(request.handle, request.function, request.unique)
                log = self._log(request)
            if log is not None:
                end: JobEnd | LookAgain = yield AllParts(log, after, waits)
                if isinstance(end, JobEnd):
                    return end
                after = end.after
                continue
            record = yield from self._parts.record(request)
            if record is None:
                continue
            yield AllParts(streams.of_record(record.number, *_parts_of(record)), after, waits)
            end_there = yield from self._parts.end_of(call.session, record)
            if end_there is not None or not call.session.is_open:
                return end_there

    def _log(self, request: api.StreamRequest) -> PartLog | None:
        """The log of a job that has not ended, or that has not been read to its end."""
        streams = self._parts.streams
        job = self._parts.live_job(request)
        if job is not None:
            return streams.of(job)
        return streams.of_ended(self._parts.number(request.handle)) if request.handle is not None else None


def _parts_of(record: JobRecord) -> tuple[int, int]:
    """How many parts of a job that has ended came in its last run, and the number of that."""
    notes: dict[str, Any] = json.loads(record.notes) if record.notes else {}
    return notes.get("parts", 0), notes.get("run", 1)
