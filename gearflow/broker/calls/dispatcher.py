"""Runs the calls of reserved functions: starts them, resumes them, answers them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any, Final

from gearflow.broker.calls.bulk import BulkCalls
from gearflow.broker.calls.call import (
    KNOWN,
    TURN,
    AllParts,
    Ask,
    BrokerParts,
    CallFailed,
    EndOf,
    FromShell,
    JobEnd,
    Keep,
    Kept,
    Later,
    LookAgain,
    ServerCall,
    Steps,
)
from gearflow.broker.calls.dead_letters import DeadLetterCalls
from gearflow.broker.calls.edit import EditCalls
from gearflow.broker.calls.job_search import JobSearch
from gearflow.broker.calls.jobs import JobListCalls
from gearflow.broker.calls.limits import LimitCalls
from gearflow.broker.calls.metrics import MetricsCalls
from gearflow.broker.calls.operations import OperationCalls
from gearflow.broker.calls.results import ResultCalls
from gearflow.broker.calls.schedules import ScheduleCalls
from gearflow.broker.calls.streams import StreamCalls
from gearflow.broker.calls.submit import Asked, SubmitCalls, split
from gearflow.broker.calls.watch import WatchCalls
from gearflow.broker.calls.workers import WorkerCalls
from gearflow.broker.lifecycle import LONG_HASH
from gearflow.broker.limits import Rejected
from gearflow.broker.parser import Body
from gearflow.broker.rights import REFUSED
from gearflow.broker.session import ResultWaiter, Session
from gearflow.broker.storage import PENDING, JobOutcome, Joined
from gearflow.broker.watching import STATES
from gearflow.errors import RemoteProtocolError, StoreError
from gearflow.protocol import server_calls as api
from gearflow.protocol.constants import HEADER, RES, PacketType
from gearflow.protocol.group_info import GROUP
from gearflow.protocol.jobs import BULK, JOBS
from gearflow.protocol.limits import LIMIT, LIMITS, POLICY
from gearflow.protocol.metrics import METRICS
from gearflow.protocol.schedules import SCHEDULE, SCHEDULES
from gearflow.protocol.workers import QUIET, REPORT, WORKERS

_MAX_REQUEST: Final = 1 << 20
"""Bytes of any other request. It is read and checked in one go, so a longer one would delay others."""


class ServerCalls:
    """Answers calls of reserved functions. Owns nothing: a call that waits is held by what it waits for."""

    def __init__(self, parts: BrokerParts) -> None:
        self._parts = parts
        schedules = ScheduleCalls(parts)
        self._journal = parts.core.journal
        self._turns = parts.core.turns
        self._submit = SubmitCalls(parts)
        self.background = self._submit.background
        results, operations, streams = ResultCalls(parts), OperationCalls(parts), StreamCalls(parts)
        limits, workers = LimitCalls(parts), WorkerCalls(parts)
        metrics = MetricsCalls(parts)
        self.collect_metrics = metrics.collect
        letters = self._letters = DeadLetterCalls(parts, results)
        search = JobSearch(parts, results)
        lists = JobListCalls(parts, results, search)
        self._edits = EditCalls(parts)
        self._functions: dict[bytes, Callable[[ServerCall], Steps | api.Message | None]] = {
            api.AUTH: operations.auth,
            api.RESULT: results.result,
            api.STREAM: streams.stream,
            api.WATCH: WatchCalls(parts).watch,
            api.INFO: results.info,
            api.RETRY: operations.retry,
            api.RELEASE: operations.release,
            api.CANCEL: operations.cancel,
            api.EDIT: self._edits.edit,
            api.DETACH: operations.detach,
            api.DEAD: letters.dead,
            api.PAUSE: operations.pause,
            api.PURGE: operations.purge,
            api.REOPEN: operations.reopen,
            REPORT: workers.report,
            WORKERS: workers.workers,
            QUIET: workers.quiet,
            api.EVENTS: workers.events,
            GROUP: operations.group,
            METRICS: metrics.metrics,
            SCHEDULE: schedules.change,
            SCHEDULES: schedules.show,
            LIMIT: limits.limit,
            LIMITS: limits.limits,
            POLICY: limits.policy,
            JOBS: lists.jobs,
            BULK: BulkCalls(parts, results, search, letters).bulk,
        }
        self.names = results.functions = (*self._functions, api.SUBMIT)

    def start(self, session: Session, name: bytes, workload: Body) -> bool:
        """Answer a foreground submission; whether its JOB_CREATED has to wait for the store."""
        if name == api.SUBMIT:
            return self._start_submit(session, workload)
        if len(workload) > _MAX_REQUEST:
            text = f"the request has {len(workload)} bytes, more than {_MAX_REQUEST}"
            self._fail(self._open(session, b""), CallFailed("gearflow:invalid", text))
            return False
        call = self._open(session, workload)
        function = self._functions.get(name)
        if function is not None:
            self._run(call, function)
        else:
            known = ", ".join(sorted(known.decode() for known in (*self._functions, api.SUBMIT)))
            text = f"there is no reserved function {name[:80].decode(errors='replace')}; there are {known}"
            self._fail(call, CallFailed("gearflow:unknown", text))
        return False

    def refuse(self, session: Session, text: str) -> None:
        """Answer a foreground submission that the connection has no right to."""
        self._fail(self._open(session, b""), CallFailed("gearflow:forbidden", text))

    def replay(self, number: int) -> None:
        """Replay a dead letter, because another server was asked for that."""
        self._resume(None, self._letters.replay(number), None)

    def edit(self, number: int, verb: str) -> None:
        """Edit a job, because another server was asked for that."""
        self._resume(None, self._edits.carry_out(number, verb), None)

    def _run(self, call: ServerCall, function: Callable[[ServerCall], Steps | api.Message | None]) -> None:
        try:
            steps = function(call)
        except CallFailed as failed:
            self._fail(call, failed)
            return
        if isinstance(steps, Generator):
            self._resume(call, steps, None)
        else:
            self._answer(call, steps)

    def _start_submit(self, session: Session, workload: Body) -> bool:
        """``gearflow:submit``: an attached submission *is* its job, and has no call of its own."""
        try:
            asked, payload = split(workload)
            request = asked.request
            if request.unique == "-" and len(payload) > LONG_HASH:
                place = partial(self._place_later, session, asked, payload)
                self._parts.submissions.hash_first(session, payload, place, may_be_gone=request.detached)
                return True
            if not request.reuse or request.detached:
                return self._place(session, asked, payload, b"")
        except CallFailed as failed:
            self._fail(self._open(session, b""), failed)
            return False
        self._parts.submissions.block(session)
        self._resume(None, self._attached_with_reuse(session, asked, payload), None)
        return True

    def _place(self, session: Session, asked: Asked, payload: Body, key: bytes) -> bool:
        """Place a submission; whether its JOB_CREATED has to wait for the store. Raises CallFailed."""
        if not asked.request.detached:
            return self._submit.attached(session, asked, payload, key)
        self._resume(self._open(session, b""), self._submit.detached(asked, payload, key), None)
        return False

    def _place_later(self, session: Session, asked: Asked, payload: Body, key: bytes) -> None:
        """Place a submission in a later turn than that of its packet."""
        try:
            try:
                self._place(session, asked, payload, key)
            except CallFailed as failed:
                self._fail(self._open(session, b""), failed)
        except Rejected as refused:
            self._parts.submissions.answer(session, None, False, refused)

    def _attached_with_reuse(self, session: Session, asked: Asked, payload: Body) -> Steps:
        """An attached submission that a kept success may answer. Nothing may be answered before it."""
        record = yield from self._submit.kept_success(asked)
        end: JobEnd | None = None
        if record is not None:
            try:
                end = yield from self._parts.end_of(session, record)
            except StoreError as error:
                self._parts.core.report(error)  # then it runs again
        self._parts.submissions.unblock(session)
        if not session.is_open:
            return None
        if record is None or end is None:
            self._place_later(session, asked, payload, b"")
            return None
        handle = self._parts.core.handles.handle(record.number)
        self._parts.core.outgoing.respond(session, PacketType.JOB_CREATED, handle)
        self._end(session, handle, end)
        return None

    def _open(self, session: Session, workload: Body) -> ServerCall:
        """Accept a call."""
        handle = self._parts.core.handles.handle(self._parts.core.handles.next(kept=False))
        self._parts.core.outgoing.respond(session, PacketType.JOB_CREATED, handle)
        return ServerCall(session, handle, bytes(workload))

    # ------------------------------------------------------------------------------------- the steps

    def _resume(self, call: ServerCall | None, steps: Steps, value: Any) -> None:
        """Run a call until it waits or ends. ``value`` is what it waited for. A bug ends it, too: the caller
        gets an answer, and the shell logs it."""
        try:
            self._go_on(call, steps, value)
        except (Rejected, RemoteProtocolError):
            raise
        except Exception:
            self._fail(call, CallFailed("gearflow:refused", "the server has a fault, which is in its log"))
            raise

    def _go_on(self, call: ServerCall | None, steps: Steps, value: Any) -> None:
        try:
            while True:
                wait = steps.throw(value) if isinstance(value, StoreError) else steps.send(value)
                if isinstance(wait, Ask):
                    value = self._journal.ask(wait.question, partial(self._resume, call, steps))
                    if value is PENDING:
                        return
                    continue
                if isinstance(wait, (EndOf, AllParts, FromShell, Later)):
                    self._wait_for_others(call, steps, wait)
                    return
                if wait is TURN:
                    if self._turns.is_late():
                        self._turns.waiting.append(self._proceed(call, steps))
                        return
                elif self._journal.exists:
                    break
                value = [None] * len(wait.changes) if isinstance(wait, Keep) else None
        except StopIteration as done:
            self._answer(call, done.value)
        except CallFailed as failed:
            self._fail(call, failed)
        except StoreError as error:
            self._parts.core.report(error)
            self._fail(call, CallFailed("gearflow:store", str(error)))
        else:
            self._wait_for_store(call, steps, wait)

    def _proceed(self, call: ServerCall | None, steps: Steps) -> Iterator[None]:
        self._resume(call, steps, None)
        yield from ()

    def _wait_for_store(self, call: ServerCall | None, steps: Steps, wait: object) -> None:
        if wait is KNOWN:
            self._journal.keep(None, lambda _error: self._resume(call, steps, None))
            return
        if isinstance(wait, Kept):
            self._journal.keep_after(wait.number, lambda _error: self._resume(call, steps, None))
            return
        assert isinstance(wait, Keep)
        reasons: list[str | Joined | None] = []
        changes = wait.changes or (None,)

        def kept(reason: str | Joined | None) -> None:
            reasons.append(reason)
            # No entry behind the changes tells this: while a shared store is away, such entries pass them.
            if len(reasons) == len(changes):
                self._resume(call, steps, reasons[: len(wait.changes)])

        for change in changes:
            self._journal.keep(change, kept)

    def _wait_for_others(
        self, call: ServerCall | None, steps: Steps, wait: EndOf | AllParts | FromShell | Later
    ) -> None:
        assert call is not None
        if isinstance(wait, FromShell):
            wait.find_out(partial(self._resume, call, steps))
        elif isinstance(wait, EndOf):
            self._wait_for_end(call, steps, wait)
        elif isinstance(wait, Later):
            again = partial(self._resume, call, steps, None)
            self._parts.far.wait(call.session, call.handle, again, wait.until)
        else:
            self._send_parts(call, steps, wait)

    def _wait_for_end(self, call: ServerCall, steps: Steps, wait: EndOf) -> None:
        if not call.session.is_open:
            return
        ended = partial(self._ended, call, steps, wait.job.function.name)
        waiter = ResultWaiter(call.session, call.handle, wait.job, ended, wait.watcher)
        if wait.timeout is not None:
            core = self._parts.core
            give_up = partial(self._give_up, call, waiter)
            core.timers.add(core.clock.unix() + wait.timeout, give_up, waiter.is_waiting)

    def _send_parts(self, call: ServerCall, steps: Steps, wait: AllParts) -> None:
        if call.session.is_open:
            job = self._parts.core.jobs.by_number.get(wait.log.number)
            ended = partial(self._ended, call, steps, job.function.name if job is not None else b"")
            self._parts.streams.read(wait.log, call.session, call.handle, wait.after, wait.waits, ended)

    def _ended(
        self,
        call: ServerCall,
        steps: Steps,
        function: bytes,
        outcome: JobOutcome | None,
        body: Body,
        after: int = 0,
    ) -> None:
        self._resume(call, steps, LookAgain(after) if outcome is None else JobEnd(outcome, body, function))

    def _give_up(self, call: ServerCall, waiter: ResultWaiter) -> None:
        waiter.stop()
        handle = self._parts.core.handles.handle(waiter.job.number).decode()
        text = f"job {handle} has not ended in time; it is {STATES[waiter.job.state]}"
        self._fail(call, CallFailed("gearflow:timeout", text))

    # -------------------------------------------------------------------------------------- the ends

    def _answer(self, call: ServerCall | None, answer: api.Message | list[bytes] | JobEnd | None) -> None:
        if call is None or answer is None or not call.session.is_open:
            return
        if isinstance(answer, JobEnd):
            self._end(call.session, call.handle, answer)
        else:
            pieces = answer if isinstance(answer, list) else [answer.to_wire()]
            self._send(call.session, PacketType.WORK_COMPLETE, call.handle, *pieces)

    def _fail(self, call: ServerCall | None, failed: CallFailed) -> None:
        if call is None or not call.session.is_open:
            return
        outgoing, session, fault = self._parts.core.outgoing, call.session, failed.fault
        if fault.type == "gearflow:forbidden":
            outgoing.notify(REFUSED, session, str(session.grant).encode(), fault.message)
        if session.exceptions:
            outgoing.respond(session, PacketType.WORK_EXCEPTION, call.handle, fault.to_wire())
        else:
            outgoing.respond(session, PacketType.WORK_WARNING, call.handle, fault.message.encode())
            outgoing.respond(session, PacketType.WORK_FAIL, call.handle)

    def _end(self, session: Session, handle: bytes, end: JobEnd) -> None:
        """End a call exactly as a job ended."""
        self._parts.core.totals.fetched += 1
        outcome, body, function = end
        if function:
            self._parts.core.functions.count_fetch(function)
        if outcome is not JobOutcome.COMPLETED and (
            not session.exceptions or outcome in (JobOutcome.FAILED, JobOutcome.CANCELLED)
        ):
            self._parts.core.outgoing.respond(session, PacketType.WORK_FAIL, handle)
            return
        kind = PacketType.WORK_COMPLETE if outcome is JobOutcome.COMPLETED else PacketType.WORK_EXCEPTION
        self._send(session, kind, handle, body)

    def _send(self, session: Session, kind: PacketType, handle: bytes, *pieces: Body) -> None:
        """Send a packet about a call without copying the pieces of its body."""
        head = HEADER.pack(RES, kind, len(handle) + 1 + sum(map(len, pieces))) + handle + b"\0"
        self._parts.core.outgoing.send_in_pieces(session, head, *pieces)
