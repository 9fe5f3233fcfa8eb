"""The calls about workers: their list, their reports about themselves, and which of them get no jobs."""

from __future__ import annotations

from itertools import chain, islice
from operator import attrgetter
from typing import Final

from gearflow.broker.calls.call import TURN, BrokerParts, CallFailed, Keep, ServerCall, Steps
from gearflow.broker.session import Session
from gearflow.broker.storage import Joined
from gearflow.protocol import server_calls as api
from gearflow.protocol.workers import (
    EventsRequest,
    QuietDone,
    QuietRequest,
    ReportRequest,
    WorkerInfo,
    WorkerJob,
    WorkersRequest,
)

_SLICE: Final = 200
"""Connections, functions or workers that are looked at before others get their turn."""

_name_of: Final = attrgetter("name")

_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


class WorkerCalls:
    """Carries out these calls. Owns the beginning of the ids."""

    def __init__(self, parts: BrokerParts) -> None:
        self._parts = parts
        self._run = ""

    def report(self, call: ServerCall) -> Steps:
        """A worker reports its overdue runs, and more about its functions."""
        report = call.read(ReportRequest)
        call.session.overdue = {name: count for name, count in report.overdue.items() if count}
        call.session.texts = report.texts
        call.session.limits = report.limits
        call.session.resumable = frozenset(name.encode() for name in report.resumable)
        redact = {
            name: fields
            for name, fields in report.redact.items()
            if self._offers(call.session, name.encode())
        }
        if changes := self._parts.redaction.changes(redact):
            errors: list[str | Joined | None] = yield Keep(changes)
            for change, error in zip(changes, errors, strict=True):
                if error is None:
                    self._parts.core.settings.apply(change)
        return api.Done(jobs=sum(report.overdue.values()))

    def _offers(self, session: Session, name: bytes) -> bool:
        """Whether a connection offers a function. It has no say in the payloads of others."""
        function = self._parts.core.functions.by_name.get(name)
        return function in session.abilities or name in session.set_aside

    def events(self, call: ServerCall) -> Steps:
        """Notify this worker of cancelled jobs from now on. The call never ends."""
        session = call.session
        session.slots = call.read(EventsRequest).slots
        before, session.events = session.events, call.handle
        if not before:
            for handle, job in list(session.running.items()):  # it may have got them before this call
                if session.running.get(handle) is job:
                    self._parts.endings.end_if_unwanted(job)
                    self._parts.streams.listens(job)
                yield TURN
        return None

    def workers(self, call: ServerCall) -> Steps:
        """List the workers."""
        request = call.read(WorkersRequest)
        workers: list[bytes] = []
        pieces: list[bytes] = []
        for session in list(self._parts.core.sessions):
            functions: list[str] = []
            for name in chain(list(map(_name_of, session.abilities)), list(session.set_aside)):
                functions.append(name.decode(errors="replace"))
                if not len(functions) % _SLICE:
                    yield TURN
            if functions and session.is_open:
                workers.append(self._info(session, functions, request.jobs).to_wire())
            if len(workers) == _SLICE:
                pieces.append(b",".join(workers))
                workers.clear()
            yield TURN
            if not call.session.is_open:
                return None
        return [b'{"workers":[', b",".join([*pieces, *workers]), b"]}"]

    def quiet(self, call: ServerCall) -> Steps:
        """Give workers no more jobs, or go on."""
        request = call.read(QuietRequest)
        named: list[Session] = []
        for number, session in enumerate(list(self._parts.core.sessions)):
            if self._is_named(session, request):
                named.append(session)
            if not number % _SLICE:
                yield TURN
        if not named:
            text = f"there is no worker {request.id or request.client_id}; it may have connected again"
            raise CallFailed("gearflow:refused", text)
        for session in named:
            if session.is_open:
                self._parts.quiet.set_quiet(session, request.quiet)
            yield TURN
        return QuietDone(workers=len(named), running=sum(len(session.running) for session in named))

    def _is_named(self, session: Session, request: QuietRequest) -> bool:
        if not (session.abilities or session.set_aside):
            return False
        if request.id is not None:
            return self._id(session) == request.id
        return session.client_id.decode(errors="replace") == request.client_id

    def _id(self, session: Session) -> str:
        """The number of a connection, after a few letters that another run of the server would not have."""
        if not self._run:
            second = int(self._parts.core.clock.unix())
            self._run = "".join(_DIGITS[second // 36**place % 36] for place in (3, 2, 1, 0))
        return f"{self._run}-{session.number}"

    def _info(self, session: Session, functions: list[str], jobs: int) -> WorkerInfo:
        handles, offset = self._parts.core.handles, self._parts.core.clock.offset
        return WorkerInfo(
            id=self._id(session),
            client_id=session.client_id.decode(errors="replace"),
            address=session.address,
            functions=tuple(functions),
            since=session.since,
            slots=session.slots,
            quiet=session.quiet,
            running=len(session.running),
            jobs=tuple(
                WorkerJob(
                    handle=handles.handle(job.number).decode(),
                    function=job.function.name.decode(errors="replace"),
                    since=job.started + offset,
                )
                for job in islice(session.running.values(), jobs)
            ),
            overdue=dict(session.overdue),
            texts=dict(session.texts),
            limits=dict(session.limits),
        )
