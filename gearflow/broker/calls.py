"""The functions that the server answers itself. ``gearflow.protocol.server_calls`` has their schemas.

What an answer says of jobs that have ended is asked of the store, so it waits in the journal until the
store knows all that happened before the question.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import ValidationError

from gearflow.broker import serialization
from gearflow.broker.job import HIGH, LOW, NO_PROGRESS, NORMAL, Extras, JobState, QueuedJob
from gearflow.broker.limits import Refused
from gearflow.broker.parser import Body, integer
from gearflow.broker.session import Session
from gearflow.broker.storage import (
    Change,
    Forgotten,
    JobRecord,
    Outcome,
    Rescheduled,
    Revived,
    Store,
    StoredJob,
)
from gearflow.errors import RemoteProtocolError, StoreError
from gearflow.protocol import server_calls as api
from gearflow.protocol.constants import HEADER, RES, PacketType, Priority

if TYPE_CHECKING:
    from gearflow.broker.broker import Broker

M = TypeVar("M", bound=api.Message)

_MOST_OPTIONS: Final = 65_536
"""Bytes in which the first line of a ``gearflow:submit`` has to end."""

_SLICE: Final = 1000
"""Jobs that are dealt with before others get their turn."""

_LANES: Final = {Priority.HIGH: HIGH, Priority.NORMAL: NORMAL, Priority.LOW: LOW}
_PRIORITIES: Final = {lane: priority for priority, lane in _LANES.items()}

_STATES: Final[dict[JobState, Any]] = {
    JobState.STORING: "waiting",
    JobState.DELAYED: "delayed",
    JobState.WAITING: "waiting",
    JobState.RUNNING: "running",
}


class _Failed(Exception):
    """A request cannot be served."""

    def __init__(self, kind: Any, message: str) -> None:
        super().__init__(message)
        self.fault = api.Fault(type=kind, message=message)


class _NotYet(Exception):
    """The store is about to be told what is asked of it."""


class _Tally:
    """How many changes were kept, how many not even tried, and why one was not kept."""

    __slots__ = ("error", "good", "left")

    def __init__(self) -> None:
        self.good = 0
        self.left = 0
        self.error: str | None = None

    def count(self, error: str | None) -> None:
        """One more change is kept, or not."""
        if error is None:
            self.good += 1
        else:
            self.error = error


class ServerCalls:
    """Answers calls of reserved functions, for one broker."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._acted_on: set[int] = set()  # dead letters that are being replayed or purged
        self._reviving: set[tuple[bytes, bytes]] = set()  # functions and uniques of the former
        self._functions: dict[bytes, Callable[[Session, bytes, bytes], None]] = {
            api.AUTH: self._welcome,
            api.RESULT: self._result,
            api.INFO: self._info,
            api.RETRY: self._retry,
            api.RELEASE: self._release,
            api.CANCEL: self._cancel,
            api.DETACH: self._detach,
            api.DEAD: self._dead,
            api.PAUSE: self._pause,
            api.PURGE: self._purge,
            api.REPORT: self._report,
            api.WORKERS: self._workers,
        }

    def call(self, session: Session, name: bytes, workload: Body) -> bool:
        """Answer a foreground submission; whether its JOB_CREATED has to wait for the store."""
        if name == api.SUBMIT:
            return self._submit(session, workload)
        call = self._open(session)
        if name == api.EVENTS:
            self._listen(session, call)
            return False
        function = self._functions.get(name)
        if function is None:
            known = ", ".join(sorted(known.decode() for known in (*self._functions, api.SUBMIT, api.EVENTS)))
            text = f"there is no reserved function {name[:80].decode(errors='replace')}; there are {known}"
            self._fault(session, call, _Failed("gearflow:unknown", text))
            return False
        self._attempt(session, call, partial(function, session, call, bytes(workload)))
        return False

    # ----------------------------------------------------------------------------------------- submit

    def _submit(self, session: Session, workload: Body) -> bool:
        """As ``call``, of ``gearflow:submit``."""
        head = bytes(workload[:_MOST_OPTIONS])
        end = head.find(b"\n")
        try:
            if end < 0 and len(workload) > _MOST_OPTIONS:
                raise _Failed("gearflow:invalid", f"the options do not end within {_MOST_OPTIONS} bytes")
            request = _read(api.SubmitRequest, head[:end] if end >= 0 else head)
        except _Failed as failed:
            self._fault(session, self._open(session), failed)
            return False
        payload = workload[end + 1 :] if end >= 0 else b""
        if request.detached:
            call = self._open(session)
            place = partial(
                self._attempt, session, call, partial(self._detached, session, call, request, payload)
            )
            self._when_known(place) if request.reuse else place()
            return False
        if request.reuse:
            session.storing += 1
            session.undecided = True
            self._when_known(partial(self._attached_later, session, request, payload))
            return True
        return self._attached(session, request, payload)

    def _attached_later(self, session: Session, request: api.SubmitRequest, payload: Body) -> None:
        try:
            record = self._kept_success(request)
        except _NotYet:
            self._when_known(partial(self._attached_later, session, request, payload))
            return
        session.undecided = False
        self._broker.go_on(session)
        if session not in self._broker.sessions:
            return
        if record is None:
            try:
                self._attached(session, request, payload)
            except Refused as refused:
                self._broker.answer(session, None, False, refused)
            return
        handle = self._broker.handle_of_number(record.number)
        self._broker.respond(session, PacketType.JOB_CREATED, handle)
        self._end(session, handle, record.outcome, record.body)

    def _attached(self, session: Session, request: api.SubmitRequest, payload: Body) -> bool:
        try:
            job = self._place(request, payload, session)
        except _Failed as failed:
            self._fault(session, self._open(session), failed)
            return False
        return self._broker.answer(session, job)

    def _detached(self, session: Session, call: bytes, request: api.SubmitRequest, payload: Body) -> None:
        record = self._kept_success(request) if request.reuse else None
        if record is not None:
            handle = self._broker.handle_of_number(record.number)
            self._answer(session, call, api.Submitted(handle=handle.decode()))
            return
        job = self._place(request, payload, None)
        done = partial(self._placed, session, call, job)
        if self._broker.is_storing(job, True):
            self._broker.keep(None, done)
        else:
            done(None)

    def _placed(self, session: Session, call: bytes, job: QueuedJob, error: str | None) -> None:
        if job.unstored:
            fault = error or self._broker.store_fault
            self._fault(session, call, _Failed("gearflow:store", f"the job could not be stored: {fault}"))
        else:
            self._answer(session, call, api.Submitted(handle=self._broker.handle(job).decode()))

    def _place(self, request: api.SubmitRequest, payload: Body, client: Session | None) -> QueuedJob:
        broker = self._broker
        name = request.function.encode()
        try:
            function = broker.functions.get(name) or broker.new_function(name)
            return broker.place(
                function,
                request.unique.encode(),
                payload,
                _LANES[request.priority],
                request.detached,
                self._extras(request),
                client,
            )
        except Refused as refused:
            kind = "gearflow:full" if refused.code == b"QUEUE_ERROR" else "gearflow:invalid"
            raise _Failed(kind, refused.text.decode(errors="replace")) from None
        except RemoteProtocolError as error:
            raise _Failed("gearflow:invalid", str(error)) from None

    def _extras(self, request: api.SubmitRequest) -> Extras | None:
        extras = Extras()
        now = self._unix_now
        extras.due = request.at or 0.0
        if request.delay:
            extras.due = now + request.delay
        if request.expires is not None:
            extras.expires = now + request.expires
        extras.keep = request.keep
        extras.timeout = request.timeout
        if request.retries is not None:
            extras.retries = json.loads(request.retries.to_wire())
        return extras

    def _kept_success(self, request: api.SubmitRequest) -> JobRecord | None:
        """The kept success that answers a submission, if no live job of its unique does."""
        broker = self._broker
        name, unique = request.function.encode(), request.unique.encode()
        function = broker.functions.get(name)
        if broker.store is None or (function is not None and unique in function.uniques):
            return None
        if broker.is_ending(None, name, unique):
            raise _NotYet
        try:
            record = broker.store.latest(name, unique)
        except StoreError:
            return None  # then it runs again
        good = record is not None and record.outcome is Outcome.COMPLETED and record.expires > self._unix_now
        return record if good else None

    # ----------------------------------------------------------------------------- results and what is known

    def _result(self, session: Session, call: bytes, workload: bytes) -> None:
        request = _read(api.ResultRequest, workload)
        self._when_known(
            partial(self._attempt, session, call, partial(self._wait_for, session, call, request))
        )

    def _wait_for(self, session: Session, call: bytes, request: api.ResultRequest) -> None:
        if session not in self._broker.sessions:
            return
        job = self._live(request)
        if job is not None:
            if request.timeout == 0:
                raise _still_going(job, self._broker.handle(job))
            job.more().watchers.append((session, call))
            session.watched[job] = None
            if request.timeout is not None:
                give_up = partial(self._give_up, session, call, job)
                waits = partial(_is_watching, session, call, job)
                self._broker.agenda.add(self._unix_now + request.timeout, give_up, waits)
            return
        record = self._record(request)
        self._end(session, call, record.outcome, record.body)

    def _give_up(self, session: Session, call: bytes, job: QueuedJob) -> None:
        self._stop_watching(session, call, job)
        self._fault(session, call, _still_going(job, self._broker.handle(job)))

    def _stop_watching(self, session: Session, call: bytes, job: QueuedJob) -> bool:
        """Forget a call of ``gearflow:result`` that waits for a job; whether there is one."""
        if not _is_watching(session, call, job):
            return False
        watchers = job.more().watchers
        watchers.remove((session, call))
        if all(watcher is not session for watcher, _ in watchers):
            session.watched.pop(job, None)
        return True

    def tell_watchers(
        self,
        watchers: tuple[tuple[Session, bytes], ...],
        outcome: Outcome,
        body: Body,
        told: Callable[[], None] | None,
    ) -> None:
        """A job has ended, and that is known: those who wait for its result get it, then the others."""
        for session, call in watchers:
            self._end(session, call, outcome, body)
        if told is not None:
            told()

    def _detach(self, session: Session, call: bytes, workload: bytes) -> None:
        handle = _read(api.DetachRequest, workload).handle.encode()
        waited = self._broker.detach(session, handle) or any(
            self._stop_watching(session, handle, job) for job in list(session.watched)
        )
        self._answer(session, call, api.Done(jobs=int(waited)))

    def _listen(self, session: Session, call: bytes) -> None:
        session.events = call
        for job in session.running.values():  # it may have got them before this call
            self._broker.end_if_unwanted(job)

    def _welcome(self, session: Session, call: bytes, _token: bytes) -> None:
        self._answer(session, call, api.Admitted())  # who does not know the token does not get here

    def _info(self, session: Session, call: bytes, workload: bytes) -> None:
        request = _read(api.InfoRequest, workload)
        self._when_known(partial(self._attempt, session, call, partial(self._inform, session, call, request)))

    def _inform(self, session: Session, call: bytes, request: api.InfoRequest) -> None:
        name = request.job()
        if name is None:
            self._answer(session, call, self._server_info())
            return
        job = self._live(name)
        self._answer(session, call, self._job_info(job) if job else self._ended_info(self._record(name)))

    def _server_info(self) -> api.ServerInfo:
        broker = self._broker
        return api.ServerInfo(
            version=broker.version,
            durable=broker.store is not None and broker.store.durable,
            store="file" if broker.store is not None and broker.store.durable else "memory",
            functions=tuple(sorted(name.decode() for name in (*self._functions, api.SUBMIT, api.EVENTS))),
            keep=broker.limits.keep,
            max_deaths=broker.limits.deaths,
            jobs=len(broker.jobs),
            paused=tuple(sorted(name.decode(errors="replace") for name in broker.paused().functions)),
        )

    def _job_info(self, job: QueuedJob) -> api.JobInfo:
        offset = self._broker.clock_offset
        extras = job.extras or Extras()
        running = job.state is JobState.RUNNING
        worker = job.worker if running else None
        return api.JobInfo(
            handle=self._broker.handle(job).decode(),
            function=job.function.name.decode(errors="replace"),
            unique=job.unique.decode(errors="replace"),
            state=_STATES[job.state],
            background=job.background,
            priority=_PRIORITIES[job.priority],
            submitted=job.submitted + offset,
            due=extras.due or None,
            started=job.started + offset if job.started else None,
            attempt=extras.attempt + running,
            deaths=extras.deaths,
            worker=serialization.name_of(worker).decode(errors="replace") if worker is not None else "",
            progress=_progress(extras.progress) if extras.progress is not NO_PROGRESS else None,
            warnings=tuple(warning.decode(errors="replace") for warning in extras.warnings),
            size=job.size,
            paused=job.function.paused and not running,
        )

    def _ended_info(self, record: JobRecord) -> api.JobInfo:
        notes: dict[str, Any] = json.loads(record.notes) if record.notes else {}
        progress = notes.get("progress")
        return api.JobInfo(
            handle=self._broker.handle_of_number(record.number).decode(),
            function=record.function.decode(errors="replace"),
            unique=record.unique.decode(errors="replace"),
            state=_state_of(record.outcome),
            dead=self._is_dead(record),
            submitted=record.submitted,
            started=record.started or None,
            ended=record.ended,
            kept_until=record.expires,
            attempt=record.attempt,
            deaths=record.deaths,
            worker=record.worker.decode(errors="replace"),
            progress=_progress((progress[0].encode(), progress[1].encode())) if progress else None,
            warnings=tuple(notes.get("warnings", ())),
            failure=_failure(record),
            size=len(record.body),
        )

    def _is_dead(self, record: JobRecord) -> bool:
        return record.outcome >= Outcome.FAILED and self._store.job(record.number) is not None

    # ------------------------------------------------------------------------------ what workers ask for

    def _retry(self, session: Session, call: bytes, workload: bytes) -> None:
        request = _read(api.RetryRequest, workload)
        job = self._held(session, request.handle)
        change: Change | None = None
        due = self._unix_now + request.delay if request.delay else 0.0
        if job.kept:
            extras = job.more()
            change = Rescheduled(job.number, due, extras.attempt + request.counted, extras.deaths)
        done = partial(self._retried, session, call, job, due, request)
        if self._broker.store is None:
            done(None)
        else:
            self._broker.keep(change, done)

    def _retried(
        self,
        session: Session,
        call: bytes,
        job: QueuedJob,
        due: float,
        request: api.RetryRequest,
        error: str | None,
    ) -> None:
        handle = request.handle.encode()
        if session.running.get(handle) is not job:
            text = f"job {request.handle} was taken from this connection meanwhile"
            self._fault(session, call, _Failed("gearflow:refused", text))
            return
        if error is not None:
            text = f"the store cannot be written: {error}"
            self._fault(session, call, _Failed("gearflow:store", text))
            return
        del session.running[handle]
        job.more().attempt += request.counted
        warning = b"%b\0%b" % (handle, request.reason.encode())
        if request.reason:
            self._broker.relay(job.clients, PacketType.WORK_WARNING, warning)
        self._broker.requeue(job, due)
        self._answer(session, call, api.Done(jobs=1))

    def _release(self, session: Session, call: bytes, workload: bytes) -> None:
        request = _read(api.ReleaseRequest, workload)
        job = self._held(session, request.handle)
        del session.running[request.handle.encode()]
        self._broker.requeue(job)
        self._answer(session, call, api.Done(jobs=1))

    def _held(self, session: Session, handle: str) -> QueuedJob:
        job = session.running.get(handle.encode())
        if job is None:
            raise _Failed("gearflow:refused", f"this connection does not hold a job {handle}")
        return job

    def _report(self, session: Session, call: bytes, workload: bytes) -> None:
        said = _read(api.ReportRequest, workload)
        session.overdue = {name: count for name, count in said.overdue.items() if count}
        session.texts = said.texts
        self._answer(session, call, api.Done(jobs=sum(said.overdue.values())))

    # ---------------------------------------------------------------------------- what operators ask for

    def _workers(self, session: Session, call: bytes, workload: bytes) -> None:
        _read(api.WorkersRequest, workload)
        workers = (_worker_info(session) for session in self._broker.sessions if session.abilities)
        self._answer(session, call, api.Workers(workers=tuple(workers)))

    def _cancel(self, session: Session, call: bytes, workload: bytes) -> None:
        request = _read(api.CancelRequest, workload)
        job = self._broker.find(request.handle.encode())
        if job is None or not self._broker.cancel(request.handle.encode()):
            raise _Failed("gearflow:unknown", f"there is no job {request.handle} that waits or runs")
        self._when_known(partial(self._tell_cancelled, session, call, 1, (job.number,), False))

    def _tell_cancelled(
        self, session: Session, call: bytes, jobs: int, last: Collection[int], overdue: bool
    ) -> None:
        """Say that jobs were cancelled; ``last``: some of them by number, ``overdue``: of the others."""
        if overdue or self._broker.is_overdue(last):
            text = "cancelled, but that could not be written: after a restart now it would run"
            self._fault(session, call, _Failed("gearflow:store", text))
        else:
            self._answer(session, call, api.Done(jobs=jobs))

    def _pause(self, session: Session, call: bytes, workload: bytes) -> None:
        request = _read(api.PauseRequest, workload)
        name = request.function.encode()
        if name.startswith(api.PREFIX) or len(name) > self._broker.limits.function:
            raise _Failed("gearflow:invalid", "there can be no jobs of a function with that name")
        jobs = self._broker.pause(name, request.paused)
        if self._broker.store is None:
            self._answer(session, call, api.Done(jobs=jobs))
        else:
            done = partial(self._tell_paused, session, call, request.paused, jobs)
            self._broker.keep(self._broker.paused(), done)

    def _tell_paused(self, session: Session, call: bytes, paused: bool, jobs: int, error: str | None) -> None:
        if error is not None:
            now, then = ("paused", "go on") if paused else ("resumed", "be paused")
            text = f"{now}, but that could not be written: after a restart it would {then}; {error}"
            self._fault(session, call, _Failed("gearflow:store", text))
        else:
            self._answer(session, call, api.Done(jobs=jobs))

    def _purge(self, session: Session, call: bytes, workload: bytes) -> None:
        request = _read(api.PurgeRequest, workload)
        function = self._broker.functions.get(request.function.encode())
        waiting = (JobState.WAITING, JobState.DELAYED)
        jobs = [
            job for job in self._broker.jobs.values() if job.function is function and job.state in waiting
        ]
        self._purge_some(session, call, iter(jobs), 0, (), False)

    def _purge_some(
        self,
        session: Session,
        call: bytes,
        jobs: Iterator[QueuedJob],
        purged: int,
        last: Collection[int],
        overdue: bool,
    ) -> None:
        overdue = overdue or self._broker.is_overdue(last)
        numbers: set[int] = set()
        for job in islice(jobs, _SLICE):
            if job.state in (JobState.WAITING, JobState.DELAYED):
                self._broker.cancel(self._broker.handle(job))
                numbers.add(job.number)
        purged += len(numbers)
        first = next(jobs, None)
        if first is None:
            self._when_known(partial(self._tell_cancelled, session, call, purged, numbers, overdue))
        else:
            rest = _chain(first, jobs)
            self._when_known(partial(self._purge_some, session, call, rest, purged, numbers, overdue))

    def _dead(self, session: Session, call: bytes, workload: bytes) -> None:
        request = _read(api.DeadRequest, workload)
        act = {"list": self._list, "show": self._show, "replay": self._replay, "purge": self._forget}
        self._when_known(
            partial(self._attempt, session, call, partial(act[request.action], session, call, request))
        )

    def _list(self, session: Session, call: bytes, request: api.DeadRequest) -> None:
        letters = self._letters(request, self._number(request.after) if request.after else 0, request.limit)
        self._answer(session, call, api.Letters(letters=tuple(map(self._ended_info, letters))))

    def _show(self, session: Session, call: bytes, request: api.DeadRequest) -> None:
        (record,) = self._letters(request, 0, 1)
        stored = self._store.job(record.number)
        payload = (
            bytes(stored.workload) if stored is not None and not isinstance(stored.workload, int) else b""
        )
        text: str | None = None
        with suppress(UnicodeDecodeError):
            text = payload.decode()
        letter = api.Letter(
            job=self._ended_info(record), payload=base64.b64encode(payload).decode(), text=text
        )
        self._answer(session, call, letter)

    def _replay(self, session: Session, call: bytes, request: api.DeadRequest) -> None:
        self._for_each_letter(session, call, request, 0, _Tally(), self._revive)

    def _revive(self, record: JobRecord, tally: _Tally) -> None:
        stored = self._store.job(record.number)
        if stored is None or self._has_living_twin(stored):
            self._acted_on.discard(record.number)
            tally.left += 1
            return
        unique = stored.function, self._broker.unique_key_of(stored)
        self._reviving.add(unique)
        fresh = serialization.without_expiry(stored)._replace(attempt=0, deaths=0, due=0.0)
        self._broker.keep(Revived(record.number, fresh.options), partial(self._revived, fresh, unique, tally))

    def _has_living_twin(self, stored: StoredJob) -> bool:
        """Whether another job of its unique waits or runs, or is about to, so that there would be two."""
        key = self._broker.unique_key_of(stored)
        function = self._broker.functions.get(stored.function)
        is_live = function is not None and key in function.uniques
        return bool(key) and (is_live or (stored.function, key) in self._reviving)

    def _revived(
        self, stored: StoredJob, unique: tuple[bytes, bytes], tally: _Tally, error: str | None
    ) -> None:
        self._acted_on.discard(stored.number)
        self._reviving.discard(unique)
        tally.count(error)
        if error is None:
            self._broker.revive(stored)

    def _forget(self, session: Session, call: bytes, request: api.DeadRequest) -> None:
        self._for_each_letter(session, call, request, 0, _Tally(), self._forget_one)

    def _forget_one(self, record: JobRecord, tally: _Tally) -> None:
        self._broker.keep(Forgotten(record.number), partial(self._forgotten, record.number, tally))

    def _forgotten(self, number: int, tally: _Tally, error: str | None) -> None:
        self._acted_on.discard(number)
        tally.count(error)

    def _for_each_letter(
        self,
        session: Session,
        call: bytes,
        request: api.DeadRequest,
        after: int,
        tally: _Tally,
        act: Callable[[JobRecord, _Tally], None],
    ) -> None:
        """Do something with each letter that is meant, a slice at a time; then tell how many there were."""
        letters = self._letters(request, after, _SLICE)
        for letter in letters:
            if letter.number not in self._acted_on:  # else somebody is quicker
                self._acted_on.add(letter.number)
                act(letter, tally)
        if request.handle is not None or len(letters) < _SLICE:
            self._when_known(partial(self._tell_count, session, call, request, tally))
        else:
            last = letters[-1].number
            go_on = partial(self._for_each_letter, session, call, request, last, tally, act)
            self._when_known(partial(self._attempt, session, call, go_on))

    def _tell_count(self, session: Session, call: bytes, request: api.DeadRequest, tally: _Tally) -> None:
        if tally.error is not None:
            text = f"the store cannot be written: {tally.error} ({tally.good} were done)"
            self._fault(session, call, _Failed("gearflow:store", text))
        elif tally.left and request.handle is not None:
            text = (
                f"another job of the unique of {request.handle} waits or runs: replay it when that has ended"
            )
            self._fault(session, call, _Failed("gearflow:refused", text))
        else:
            self._answer(session, call, api.Done(jobs=tally.good, left=tally.left))

    def _letters(self, request: api.DeadRequest, after: int, limit: int) -> list[JobRecord]:
        """The dead letters that a request is about."""
        if request.handle is None:
            function = request.function.encode() if request.function is not None else None
            return self._store.dead(function, after, limit)
        record = self._store.ended(self._number(request.handle))
        if record is None or not self._is_dead(record):
            raise _Failed("gearflow:unknown", f"there is no dead letter {request.handle}")
        return [record]

    # ------------------------------------------------------------------------------------------- the parts

    @property
    def _store(self) -> Store:
        if self._broker.store is None:
            raise _Failed("gearflow:refused", "this server keeps nothing of jobs that have ended")
        return self._broker.store

    @property
    def _unix_now(self) -> float:
        return self._broker.now + self._broker.clock_offset

    def _number(self, handle: str) -> int:
        number = self._broker.number_of(handle.encode())
        if number is None:
            raise _Failed("gearflow:unknown", f"{handle} is no handle of this server's")
        return number

    def _live(self, name: api.JobName | api.ResultRequest) -> QueuedJob | None:
        """The job that is named, if it has not ended."""
        if name.handle is not None:
            job = self._broker.find(name.handle.encode())
            return None if job is None or job.cancelled else job
        function = self._broker.functions.get((name.function or "").encode())
        return function.uniques.get((name.unique or "").encode()) if function is not None else None

    def _record(self, name: api.JobName | api.ResultRequest) -> JobRecord:
        """What became of the job that is named."""
        if name.handle is not None:
            number = self._number(name.handle)
            if self._broker.is_ending(number, b"", b""):
                raise _NotYet
            record = self._broker.unwritten(number, b"", b"") or self._store.ended(number)
            shown = f"job {name.handle}"
        else:
            function, unique = name.function or "", name.unique or ""
            key = function.encode(), unique.encode()
            if self._broker.is_ending(None, *key):
                raise _NotYet
            record = self._broker.unwritten(None, *key) or self._store.latest(*key)
            shown = f"job of {function} with the unique {unique!r}"
        if record is None or record.expires <= self._unix_now:
            raise _Failed(
                "gearflow:unknown",
                f"there is no {shown}: it never was, or what became of it is not kept any more",
            )
        return record

    def _when_known(self, act: Callable[[], None]) -> None:
        """Do something when the store knows all that has happened."""
        if self._broker.store is None:
            act()
        else:
            self._broker.keep(None, partial(_disregarding, act))

    def _attempt(self, session: Session, call: bytes, act: Callable[[], None]) -> None:
        try:
            act()
        except _NotYet:
            self._when_known(partial(self._attempt, session, call, act))
        except _Failed as failed:
            self._fault(session, call, failed)
        except StoreError as error:
            self._fault(session, call, _Failed("gearflow:store", str(error)))

    def _open(self, session: Session) -> bytes:
        """Accept a call; its handle."""
        call = self._broker.handle_of_number(self._broker.new_number())
        self._broker.respond(session, PacketType.JOB_CREATED, call)
        return call

    def _answer(self, session: Session, call: bytes, answer: api.Message) -> None:
        if session in self._broker.sessions:
            self._broker.respond(session, PacketType.WORK_COMPLETE, call, answer.to_wire())

    def _fault(self, session: Session, call: bytes, failed: _Failed) -> None:
        if session not in self._broker.sessions:
            return
        fault = failed.fault
        if session.exceptions:
            self._broker.respond(session, PacketType.WORK_EXCEPTION, call, fault.to_wire())
        else:
            self._broker.respond(session, PacketType.WORK_WARNING, call, fault.message.encode())
            self._broker.respond(session, PacketType.WORK_FAIL, call)

    def _end(self, session: Session, call: bytes, outcome: Outcome, body: Body) -> None:
        """End a call as a job ended."""
        if session not in self._broker.sessions:
            return
        if outcome is not Outcome.COMPLETED and (
            not session.exceptions or outcome in (Outcome.FAILED, Outcome.CANCELLED)
        ):
            self._broker.respond(session, PacketType.WORK_FAIL, call)
            return
        kind = PacketType.WORK_COMPLETE if outcome is Outcome.COMPLETED else PacketType.WORK_EXCEPTION
        head = HEADER.pack(RES, kind, len(call) + 1 + len(body)) + call + b"\0"
        self._broker.send_in_two(session, head, body)


def _read(kind: type[M], text: bytes) -> M:
    """A request, validated. An empty text is one that says nothing; one trailing NUL is ignored."""
    try:
        return kind.model_validate_json(text.removesuffix(b"\0") or b"{}")
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" if fault["loc"] else fault["msg"]
            for fault in error.errors(include_url=False, include_input=False)[:5]
        )
        raise _Failed("gearflow:invalid", f"the request cannot be read: {faults}") from None


def _is_watching(session: Session, call: bytes, job: QueuedJob) -> bool:
    """Whether a call of ``gearflow:result`` waits for a job."""
    return (session, call) in job.more().watchers


def _still_going(job: QueuedJob, handle: bytes) -> _Failed:
    return _Failed(
        "gearflow:timeout", f"job {handle.decode()} has not ended in time; it is {_STATES[job.state]}"
    )


def _worker_info(session: Session) -> api.WorkerInfo:
    return api.WorkerInfo(
        client_id=session.client_id.decode(errors="replace"),
        address=session.address,
        functions=tuple(function.name.decode(errors="replace") for function in session.abilities),
        running=len(session.running),
        overdue=dict(session.overdue),
        texts=dict(session.texts),
    )


def _progress(progress: tuple[bytes, bytes]) -> tuple[int, int]:
    return integer(progress[0]), integer(progress[1])


def _state_of(outcome: Outcome) -> Any:
    return outcome.name.lower()


def _failure(record: JobRecord) -> api.Failure | None:
    if record.outcome < Outcome.RAISED:
        return None
    text = bytes(record.body).decode(errors="replace")
    try:
        return api.Failure.model_validate_json(text)
    except ValidationError:
        return api.Failure(message=text)


def _disregarding(act: Callable[[], None], error: str | None) -> None:
    act()


def _chain(first: QueuedJob, others: Iterator[QueuedJob]) -> Iterator[QueuedJob]:
    yield first
    yield from others
