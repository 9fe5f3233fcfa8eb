"""``gearflow:result`` and ``gearflow:info``: the end of a job, and what the server knows of it."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from heapq import merge
from itertools import islice
from typing import Any, Final

from pydantic import ValidationError

from gearflow.broker import serialization
from gearflow.broker.calls.call import (
    KNOWN,
    LANES,
    TURN,
    BrokerParts,
    CallFailed,
    EndOf,
    FarJob,
    JobEnd,
    Later,
    LookAgain,
    ServerCall,
    Steps,
    Wait,
)
from gearflow.broker.job import EndedRun, JobDetails, JobState, QueuedJob
from gearflow.broker.parser import integer
from gearflow.broker.session import Session
from gearflow.broker.storage import DamagedEntry, HeadOf, JobOf, JobOutcome, JobRecord, StoredJob, size_of
from gearflow.broker.watching import STATES, stored_state
from gearflow.protocol import server_calls as api
from gearflow.protocol.rights import right_words

_SLICE: Final = 200
"""Names that are sorted, or written, before others get their turn."""

_PRIORITIES: Final = {lane: priority for priority, lane in LANES.items()}


class ResultCalls:
    """Answers questions about one job, or about the server."""

    def __init__(self, parts: BrokerParts) -> None:
        self._parts = parts
        self.functions: tuple[bytes, ...] = ()  # the reserved functions that the server has
        self._paused = b""  # the names of the paused functions in JSON
        self._paused_after = 0  # after so many changes
        self._listing: Iterator[None] | None = None  # the steps to the next list, for all calls

    def result(self, call: ServerCall) -> Steps:
        """Wait for the end of a job, and end as the job ended."""
        request = call.read(api.ResultRequest)
        clock = self._parts.core.clock
        name: api.JobName = request
        until: float | None = None  # Unix time, once it waits for another server's job
        seen: FarJob | None = None
        while True:
            yield self._parts.known(name.handle, name.function, name.unique)
            job = self._parts.live_job(name)
            timeout = request.timeout if until is None else max(until - clock.unix(), 0.0)
            if job is not None and timeout == 0:
                raise _not_ended(self._parts.core.handles.handle(job.number), f"it is {STATES[job.state]}")
            if until is None and timeout is not None:
                until = clock.unix() + timeout
            if job is not None:
                end: JobEnd | LookAgain = yield EndOf(job, timeout)
                if isinstance(end, JobEnd):
                    return end
                name = self._parts.name_of(job.number)
                continue
            record = yield from self._parts.record(name, seen)
            if record is None:
                continue
            if isinstance(record, FarJob):
                seen = record
                if until is not None and until <= clock.unix():
                    handle = self._parts.core.handles.handle(record.stored.number)
                    raise _not_ended(handle, "another server has it")
                yield Later(until)
                continue
            end_there = yield from self._parts.end_of(call.session, record)
            if end_there is not None or not call.session.is_open:
                return end_there

    def info(self, call: ServerCall) -> Steps:
        """Describe a job, or the server where no job is named."""
        request = call.read(api.InfoRequest)
        name = request.job()
        while True:
            if name is None:
                yield KNOWN
                return (yield from self._server_info(call.session))
            yield self._parts.known(name.handle, name.function, name.unique)
            job = self._parts.live_job(name)
            if job is not None:
                return self.job_info(job)
            try:
                record = yield from self._parts.record(name)
            except DamagedEntry as error:
                return self.ended_info(error, dead=(yield from self.is_dead(error)))
            if isinstance(record, FarJob):
                return self._far_info(record.stored)
            if record is not None:
                return self.ended_info(record, dead=(yield from self.is_dead(record)))

    def _server_info(self, session: Session) -> Steps:
        parts, grant = self._parts, session.grant
        pauses = parts.core.functions.pauses
        yield TURN
        while self._paused_after < pauses:
            if self._listing is None:
                self._listing = self._list_paused()
            next(self._listing)
            yield TURN
        journal, group = parts.core.journal, parts.core.group
        closed = journal.refusal
        info = api.ServerInfo(
            version=parts.core.version,
            durable=journal.durable,
            store="postgres" if journal.shared else "file" if journal.durable else "memory",
            functions=tuple(sorted(name.decode() for name in self.functions)),
            keep=parts.core.limits.keep,
            max_deaths=parts.core.limits.deaths,
            jobs=len(parts.core.jobs.by_number),
            closed=api.Closed(since=closed.since, reason=closed.reason) if closed is not None else None,
            group=group.name if group is not None else "",
            server=group.server if group is not None else "",
            address=group.address if group is not None else "",
            servers=group.servers if group is not None else (),
            rights=right_words(grant.rights) if grant is not None else (),
        ).to_wire()
        return [info[:-1], b',"paused":[', self._paused, b"]}"] if self._paused else [info]

    def _list_paused(self) -> Iterator[None]:
        """List the names of the paused functions in order."""
        functions = self._parts.core.functions
        pauses, names = functions.pauses, list(functions.paused)
        runs: list[list[str]] = []
        for start in range(0, len(names), _SLICE):
            runs.append(sorted(map(_text, names[start : start + _SLICE])))
            yield
        merged = merge(*runs)
        pieces: list[str] = []
        while some := list(islice(merged, _SLICE)):
            pieces.append(json.dumps(some, ensure_ascii=False)[1:-1])
            yield
        self._paused, self._paused_after = ",".join(pieces).encode(), pauses
        self._listing = None
        yield

    def job_info(self, job: QueuedJob) -> api.JobInfo:
        """Describe a job that has not ended."""
        offset = self._parts.core.clock.offset
        details = job.details or JobDetails()
        running = job.state is JobState.RUNNING
        worker = job.worker if running else None
        return api.JobInfo(
            handle=self._parts.core.handles.handle(job.number).decode(),
            function=_text(job.function.name),
            unique=_text(job.unique),
            state=STATES[job.state],
            background=job.background,
            priority=_PRIORITIES[job.priority],
            submitted=job.submitted + offset,
            due=details.due or None,
            started=job.started + offset if job.started else None,
            attempt=details.attempt + running,
            deaths=details.deaths,
            worker=_text(serialization.name_of(worker)) if worker is not None else "",
            progress=_progress(*details.progress) if details.progress is not None else None,
            message=_text(details.message),
            parts=details.log.position if details.log is not None else 0,
            warnings=tuple(map(_text, details.warnings)),
            runs=_runs(details.runs),
            size=job.size,
            paused=job.function.paused and not running,
            why=self._why(job),
        )

    def _why(self, job: QueuedJob) -> str:
        """Why a waiting job waits."""
        function = job.function
        if job.state is not JobState.WAITING:
            return ""
        if function.paused:
            return "its function is paused"
        if function.holds and job.kept:
            return "the server does not reach its database"
        if not function.workers:
            return "no worker offers its function"
        why = self._parts.rules.limiter.why(job)
        if not why and function.suspects is not None and job in function.suspects:
            return "its next death would be its last, so it needs a worker that runs nothing else"
        return why

    def _far_info(self, stored: StoredJob) -> api.JobInfo:
        """Describe a job that another server has, as far as the store knows it."""
        core = self._parts.core
        function = core.functions.by_name.get(stored.function)
        details = serialization.details_of(stored)
        return api.JobInfo(
            handle=core.handles.handle(stored.number).decode(),
            function=_text(stored.function),
            unique=_text(stored.unique),
            state=stored_state(stored, core.clock.unix()),
            priority=_PRIORITIES[stored.priority],
            submitted=stored.submitted,
            due=stored.due or None,
            attempt=stored.attempt,
            deaths=stored.deaths,
            runs=_runs(details.runs if details is not None else ()),
            size=size_of(stored.workload),
            paused=function is not None and function.paused,
            owner=self._parts.far.owner(stored.number),
        )

    def ended_info(self, record: JobRecord | DamagedEntry, *, dead: bool) -> api.JobInfo:
        """Describe a job that has ended."""
        core = self._parts.core
        if isinstance(record, DamagedEntry):
            core.report(record)
            return api.JobInfo(
                handle=core.handles.handle(record.number).decode(),
                function=_text(record.function),
                unique=_text(record.unique),
                state="damaged",
                dead=dead,
                damage=core.damaged[record.number],
            )
        notes: dict[str, Any] = json.loads(record.notes) if record.notes else {}
        progress = notes.get("progress")
        state: Any = record.outcome.name.lower()
        return api.JobInfo(
            handle=core.handles.handle(record.number).decode(),
            function=_text(record.function),
            unique=_text(record.unique),
            state=state,
            dead=dead,
            submitted=record.submitted,
            started=record.started or None,
            ended=record.ended,
            kept_until=record.expires,
            attempt=record.attempt,
            deaths=record.deaths,
            worker=_text(record.worker),
            progress=_progress(progress[0].encode(), progress[1].encode()) if progress else None,
            message=notes.get("message", ""),
            parts=notes.get("parts", 0),
            warnings=tuple(notes.get("warnings", ())),
            runs=_runs(serialization.runs_in(notes)),
            failure=_failure(record),
            size=size_of(record.body),
            damage=core.damaged.get(record.number),
        )

    def error_of(self, record: JobRecord | DamagedEntry) -> tuple[str, str]:
        """The type of the error with which a job ended, or a word for it, and its message."""
        if isinstance(record, DamagedEntry):
            return "Damaged", str(record)
        if record.outcome < JobOutcome.FAILED:
            return "", ""
        failure = _failure(record)
        if failure is None:
            return "WORK_FAIL", ""
        return failure.type or "WORK_EXCEPTION", failure.message

    def is_dead(self, record: JobRecord | DamagedEntry) -> Generator[Wait, Any, bool]:
        """Whether the job is a dead letter. Reports a payload that is damaged, if it is not large."""
        if isinstance(record, JobRecord) and record.outcome < JobOutcome.FAILED:
            return False
        parts, number = self._parts, record.number
        try:
            head: StoredJob | None = yield from parts.ask(HeadOf(number))
            size = head.workload if head is not None and isinstance(head.workload, int) else None
            if size is not None and size < parts.core.journal.large:
                yield from parts.ask(JobOf(number))
        except DamagedEntry as error:
            parts.core.report(error)
            return True
        return head is not None


def _not_ended(handle: bytes, state: str) -> CallFailed:
    return CallFailed("gearflow:timeout", f"job {handle.decode()} has not ended in time; {state}")


def _text(name: bytes) -> str:
    return name.decode(errors="replace")


def _progress(numerator: bytes, denominator: bytes) -> tuple[int, int]:
    return integer(numerator), integer(denominator)


def _runs(runs: tuple[EndedRun, ...]) -> tuple[api.PastRun, ...]:
    return tuple(api.PastRun.model_validate(run._asdict()) for run in runs)


def _failure(record: JobRecord) -> api.Failure | None:
    if record.outcome < JobOutcome.RAISED:
        return None
    if isinstance(record.body, int):
        return api.Failure(message=f"{record.body} bytes, which gearflow:result returns")
    text = _text(bytes(record.body))
    try:
        return api.Failure.model_validate_json(text)
    except ValidationError:
        return api.Failure(message=text)
