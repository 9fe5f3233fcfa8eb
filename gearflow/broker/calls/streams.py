"""``gearflow:stream``: the parts of a job, and then its end."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

from gearflow.broker.calls.call import (
    AllParts,
    BrokerParts,
    FarJob,
    JobEnd,
    LookAgain,
    ServerCall,
    Steps,
    Wait,
)
from gearflow.broker.parts import PartLog, record_log
from gearflow.broker.storage import JobRecord, PartsOf
from gearflow.protocol import server_calls as api
from gearflow.protocol.constants import WINDOW_BYTES


class StreamCalls:
    """Answers with the parts of jobs."""

    def __init__(self, parts: BrokerParts) -> None:
        self._parts = parts

    def stream(self, call: ServerCall) -> Steps:
        """Send the parts of a job, and end as the job ended."""
        request = call.read(api.StreamRequest)
        name: api.JobName = request
        after = None if request.after == "latest" else request.after
        waits = request.lag == "wait"
        run: int | None = None  # of the parts that were sent
        seen: FarJob | None = None
        while True:
            log = self._log(name)
            if log is None:
                yield self._parts.known(name.handle, name.function, name.unique)
                log = self._log(name)
            record = (yield from self._parts.record(name, seen)) if log is None else None
            if isinstance(record, JobRecord):
                log = record_log(record.number, *_parts_of(record))
            elif isinstance(record, FarJob):
                seen, number = record, record.stored.number
                after = (yield from self._last(number)) if after is None else after
                log = self._parts.far.log(number, run or 1, after)
            if log is None:
                continue
            if run not in (None, log.run):
                after = 0  # another run has begun meanwhile
            end: JobEnd | LookAgain = yield AllParts(log, after, waits)
            if isinstance(record, JobRecord):
                end_there = yield from self._parts.end_of(call.session, record)
                if end_there is not None or not call.session.is_open:
                    return end_there
            elif isinstance(end, LookAgain):
                after, run = end.after, log.run
                name = self._parts.name_of(log.number)
            else:
                return end

    def _last(self, number: int) -> Generator[Wait, Any, int]:
        """The position of the last part at the store. Reads them all, since it cannot be asked for."""
        last = 0
        while rows := (yield from self._parts.ask(PartsOf(number, last, WINDOW_BYTES, 1000))):
            last = rows[-1][0]
        return last

    def _log(self, name: api.JobName) -> PartLog | None:
        """The log of a job that has not ended, or that has not been read to its end."""
        streams = self._parts.streams
        job = self._parts.live_job(name)
        if job is not None:
            return streams.of(job)
        return streams.of_ended(self._parts.number(name.handle)) if name.handle is not None else None


def _parts_of(record: JobRecord) -> tuple[int, int]:
    """How many parts of a job that has ended came in its last run, and the number of that."""
    notes: dict[str, Any] = json.loads(record.notes) if record.notes else {}
    return notes.get("parts", 0), notes.get("run", 1)
