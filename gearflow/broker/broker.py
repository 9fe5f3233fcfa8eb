"""The broker: bytes of a connection in, packets for all connections out.

Theory of operation. The shell passes in what a connection received (``receive``), that it has closed
(``disconnected``), and the time (``now`` with each call, ``tick`` when ``next_due`` has come). The broker
changes its state and appends encoded packets to the outboxes of sessions. The shell drains what has come of
it: the sessions in ``outgoing.dirty``, the changes in ``journal``, and the notices for the log. Nothing else
leaves the broker.

The parts are built on one another, and each knows only those before it: the journal and outgoing packets,
which jobs may start (``limiter``), the parts of jobs (``parts``), how jobs end (``endings``), which worker
gets which job (``dispatch``), how jobs wait and come back (``lifecycle``), how submissions become jobs
(``submission``), and the calls of reserved functions (``calls``). The only callables that they store are the
continuations of what waits for the store, for a time, or for the end of a job.

This is the hot path of the server. So packets are not built as objects: ``parser`` scans the bytes in place,
a body is split once, and a packet that is relayed is relayed as it came.

Source: gearman-protocol, sections 3 to 9.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count
from math import inf
from typing import Final

from gearflow.broker.auth import Authenticator
from gearflow.broker.calls import BrokerParts, ServerCalls
from gearflow.broker.calls.edit import VERB as EDIT_VERB
from gearflow.broker.core import Core, GroupFacts, ServerGroup
from gearflow.broker.dispatch import Dispatcher
from gearflow.broker.endings import Endings
from gearflow.broker.far_jobs import FarJobs
from gearflow.broker.guard import Guards
from gearflow.broker.job import HIGH, LOW, NORMAL, JobDetails, JobState, QueuedJob
from gearflow.broker.lifecycle import LONG_HASH, Lifecycle
from gearflow.broker.limits import Rejected, SizeLimits
from gearflow.broker.ownership import Ownership
from gearflow.broker.parser import Body, Handler, PacketParser, integer, split
from gearflow.broker.quiet import QuietWorkers
from gearflow.broker.redaction import Redaction
from gearflow.broker.rights import SUBMISSIONS
from gearflow.broker.rules import Rules
from gearflow.broker.schedules import Scheduler
from gearflow.broker.session import Session
from gearflow.broker.status import StatusHandlers
from gearflow.broker.storage import HISTORY, Contents, Paused, Setting, StorePort
from gearflow.broker.streams import Streams
from gearflow.broker.submission import Submissions
from gearflow.broker.suspects import Suspects
from gearflow.broker.turns import LONG, Steps
from gearflow.broker.watching import Watching
from gearflow.broker.work_reports import WorkReports
from gearflow.protocol.constants import AUTH, RESERVED_PREFIX, SUBMIT, PacketType
from gearflow.protocol.metrics import Metrics, MetricsRequest
from gearflow.protocol.rights import Tokens

_STORING: Final = JobState.STORING

_SUBMISSIONS: Final[dict[int, tuple[int, bool]]] = {  # packet type -> priority, background
    PacketType.SUBMIT_JOB: (NORMAL, False),
    PacketType.SUBMIT_JOB_BG: (NORMAL, True),
    PacketType.SUBMIT_JOB_HIGH: (HIGH, False),
    PacketType.SUBMIT_JOB_HIGH_BG: (HIGH, True),
    PacketType.SUBMIT_JOB_LOW: (LOW, False),
    PacketType.SUBMIT_JOB_LOW_BG: (LOW, True),
}

_BACKGROUND: Final = frozenset(kind for kind, background in SUBMISSIONS.items() if background)

AnswerText = Callable[[bytes], bytes | Iterator[bytes]]
"""Answers a line of text: at once, or a long answer piece by piece."""


class Broker:
    """All jobs, functions and sessions of one server. Owns state; single-threaded.

    ``handle_prefix`` begins every job's handle. ``answer_text`` answers a line of the text protocol, which
    asks for facts of the shell's. Times are float seconds of a monotonic clock; the shell keeps
    ``clock.offset``, the difference to Unix time. Without a ``store`` nothing is kept of a job that has
    ended. With ``tokens`` only connections that send one of them are served, as far as it gives them rights.
    """

    def __init__(
        self,
        handle_prefix: bytes,
        answer_text: AnswerText,
        limits: SizeLimits = SizeLimits(),  # noqa: B008  (frozen)
        store: StorePort | None = None,
        tokens: Tokens | None = None,
        version: str = "",
    ) -> None:
        core = self.core = Core(handle_prefix, limits, store, version)
        self.clock = core.clock
        self.turns = core.turns
        self.sessions = core.sessions
        self.jobs = core.jobs
        self.functions = core.functions
        self.outgoing = core.outgoing
        self.journal = core.journal
        self.auth = Authenticator(tokens, core)
        watching = self.watching = Watching(core)
        streams = self.streams = Streams(core, watching)
        suspects = self.suspects = Suspects(core)
        self.endings = Endings(core, streams, suspects)
        self.dispatcher = Dispatcher(core, streams, watching, suspects, self.endings)
        self._quiet = QuietWorkers(core, self.dispatcher)
        self.lifecycle = Lifecycle(core, streams, watching, suspects, self.endings, self.dispatcher)
        self._reports = WorkReports(core, streams, watching, self.endings, self.lifecycle)
        self.rules = Rules(core)
        self.ownership = Ownership(core, self.endings, self.dispatcher, self.lifecycle)
        self._hold_after = inf
        self._numbers = count(1)
        self.parser = PacketParser(
            self.handlers(),
            _BACKGROUND,
            self._text,
            core.outgoing.error,
            self._oversized,
            limits,
            core.turns,
        )
        self.submissions = Submissions(
            core, self.endings, self.dispatcher, self.lifecycle, self.ownership, self.parser.stalled
        )
        self.schedules = Scheduler(core, self.endings, self.submissions)
        parts = BrokerParts(
            core,
            streams,
            watching,
            self.endings,
            self.dispatcher,
            self.lifecycle,
            self.submissions,
            FarJobs(core, streams),
            self.schedules,
            self.rules,
            Redaction(core.settings),
            self._quiet,
        )
        self._calls = ServerCalls(parts)
        self.guards = Guards(
            self.auth, self.parser, self.handlers(), self._text, core, self._calls, self.submissions
        )
        self._held_grabs = core.outgoing.held_grabs.by_session
        self._wakes = self.dispatcher.wakes
        self._timers = core.timers.heap
        self._limiter = core.limiter
        self._timeouts = core.timeouts.heap
        self._later = self.schedules.later
        self._limits = limits
        self._totals = core.totals
        self._history = core.history
        self._answer_text = answer_text

    # ------------------------------------------------------------------------ what the shell calls

    @property
    def group(self) -> ServerGroup | None:
        """The servers that share a database with this one. The shell sets it. None for a server alone."""
        return self.core.group

    @group.setter
    def group(self, group: ServerGroup | None) -> None:
        self.core.group = group

    @property
    def group_facts(self) -> GroupFacts | None:
        """Answers ``gearflow:group``. The shell sets it."""
        return self.core.group_facts

    @group_facts.setter
    def group_facts(self, group_facts: GroupFacts | None) -> None:
        self.core.group_facts = group_facts

    def connected(self, fd: int, address: str) -> Session:
        """A connection was accepted. ``fd`` and ``address`` are for the listing ``workers``."""
        session = Session(fd, address)
        session.number = next(self._numbers)
        session.parser, session.receive = self.parser, self.parser.receive
        self.sessions[session] = None
        self._totals.accepted += 1
        if self.auth.must_ask(session):
            session.receive = self._receive_token
        return session

    def receive(self, session: Session, data: bytes, now: float) -> None:
        """Handle the packets and text lines that ``data`` completes, in order.

        Raises:
            RemoteProtocolError: These bytes break the protocol. What came before them was handled. The
                connection is to be closed after its outbox is written.
            Unauthorized: The connection must send a token first. The server also closes it.
            Forbidden: The token of the connection does not let it work. The server also closes it.
        """
        self.clock.now = now
        self._totals.received += len(data)
        if now >= self._hold_after:
            self.ownership.hold(True)
        session.receive(session, data, now)

    def _receive_token(self, session: Session, data: bytes, now: float) -> None:
        """Handle what a connection sends that must send a token first. Raises as ``receive``."""
        rest = self.auth.receive(session, data)
        if rest is None:
            return
        self.guards.admit(session)
        self._accept(session, AUTH, b"", b"", NORMAL, False, None)
        if rest:
            session.receive(session, rest, now)

    def receive_large(self, session: Session, count: int, now: float) -> None:
        """Another ``count`` bytes have come into the partial packet's ``room()``. Raises as ``receive``."""
        self._set_now(now)
        self._totals.received += count
        session.parser.receive_large(session, count)

    def resume(self, session: Session, now: float) -> None:
        """Handle what the session sent while it had to wait. Raises as ``receive``."""
        self._set_now(now)
        session.parser.resume(session, now)

    def proceed(self, now: float) -> Session | None:
        """Continue with work that waits (``turns``). A session in the result is to be resumed."""
        self._set_now(now)
        return self.turns.next_session()

    def disconnected(self, session: Session, now: float) -> None:
        """The connection is closed: its jobs are queued again, and jobs that only it wanted end."""
        self._set_now(now)
        session.is_open = False
        del self.sessions[session]
        self.dispatcher.forget(session)
        session.outbox.clear()
        self.parser.forget(session)
        self.auth.forget(session)
        self.turns.run(self._leave(session))

    def _leave(self, session: Session) -> Steps:
        while session.running:
            _, job = session.running.popitem()
            self.lifecycle.worker_died(job, session)
            yield
        yield from self.endings.leave(session)

    def tick(self, now: float) -> None:
        """Time has passed: queue jobs that are due, take jobs from workers, wake others, answer held
        GRABs."""
        self._set_now(now)
        is_late = self.turns.is_late
        for action in self.core.timers.due(self.clock.unix()):
            action()
            if is_late():
                break
        self.schedules.tick(now)
        if now >= self._history.due:
            self._history.tick()
        for job, worker in self.core.timeouts.expired(now):
            del worker.running[self.core.handles.handle(job.number)]
            self.lifecycle.timed_out(job, worker)
            if is_late():
                break
        self._limiter.tick()
        self.dispatcher.tick()

    def hold_after(self, time: float, now: float) -> None:
        """From that time on no kept job is given out, until a later time is set. ``inf`` means never.

        The shell need not call anything then. So it holds also after the process was stopped for a while.
        """
        self._hold_after = time
        self._set_now(now)
        self.ownership.hold(now >= time)

    def _set_now(self, now: float) -> None:
        self.clock.now = now
        if now >= self._hold_after:
            self.ownership.hold(True)

    def next_due(self) -> float | None:
        """When ``tick`` is to be called next, if nothing else happens."""
        due: float | None = None
        if self._held_grabs or self._wakes or self.suspects.exist:
            due = self.dispatcher.next_due()
        if self._timeouts:
            timeout = self.core.timeouts.next_due()
            if timeout is not None and (due is None or timeout < due):
                due = timeout
        if self._limiter.timers:
            limit = self._limiter.next_due()
            due = limit if limit is not None and (due is None or limit < due) else due
        if self._timers:
            timer = self._timers[0][0] - self.clock.offset
            due = timer if due is None or timer < due else due
        if self._later and (due is None or self._later[0][0] < due):
            due = self._later[0][0]
        return due

    def restore(self, contents: Contents) -> int:
        """Take over the contents of a store, before anything else happens; the number of jobs.

        Raises:
            StoreError: The store cannot be read.
        """
        self.core.handles.restore(contents.reserved)
        self.core.handles.renumber(contents.renumbered)
        for name in contents.paused:
            self.dispatcher.pause(self.functions.ensure(name), True)
        self.core.history.load([setting for setting in contents.settings if setting.kind == HISTORY])
        self.core.settings.load([setting for setting in contents.settings if setting.kind != HISTORY])
        parts = contents.parts
        for stored in contents.jobs:
            self.lifecycle.restore(stored, parts.get(stored.number))
        return len(self.jobs.by_number)

    def reload_settings(self, settings: Iterable[Setting]) -> None:
        """The store has these settings and no others, because other servers have changed some."""
        self.core.settings.replace(settings)

    def change_settings(self, settings: Iterable[Setting]) -> None:
        """The store has these settings now, because other servers have changed them."""
        for setting in settings:
            self.core.settings.apply(setting)

    def metrics(self, request: MetricsRequest, done: Callable[[Metrics], None]) -> None:
        """Call ``done`` with what the server has counted, in this turn or a later one."""
        self.turns.run(self._collect(request, done))

    def _collect(self, request: MetricsRequest, done: Callable[[Metrics], None]) -> Steps:
        done((yield from self._calls.collect_metrics(request)))

    # --------------------------------------------------------------- what operators ask by text commands

    def cancel(self, handle: bytes) -> bool:
        """Cancel a job. False if there is no such job."""
        return self.endings.cancel(handle)

    def carry_out(self, number: int, verb: str) -> None:
        """Another server has ordered something about a kept job of this one. Doing it twice changes
        nothing."""
        if verb == "cancel":
            self.endings.cancel(self.core.handles.handle(number))
        elif verb == "replay":
            self._calls.replay(number)
        elif verb.startswith(EDIT_VERB):
            self._calls.edit(number, verb)

    def create(self, name: bytes) -> None:
        """Make a function known."""
        if not name.startswith(RESERVED_PREFIX):
            self.functions.ensure(name)

    def drop(self, name: bytes) -> bool:
        """Forget a function. False if it has workers or jobs. Raises KeyError if it is not known."""
        function = self.functions.by_name[name]
        paused = function.paused
        if not self.functions.drop(name):
            return False
        self.rules.dropped(function)
        if paused and self.journal.exists:
            self.journal.add(Paused(name, False))
        return True

    # ---------------------------------------------------------------------------------------- handlers

    def handlers(self) -> dict[PacketType, Handler]:
        """By packet type. Packets that only a server sends, and those that are not implemented, have none."""
        dispatcher, quiet, reports = self.dispatcher, self._quiet, self._reports
        status = StatusHandlers(self.core)
        return {
            **dict.fromkeys(map(PacketType, _SUBMISSIONS), self._submit),
            PacketType.CAN_DO: quiet.can_do,
            PacketType.CAN_DO_TIMEOUT: quiet.can_do_timeout,
            PacketType.CANT_DO: quiet.cant_do,
            PacketType.RESET_ABILITIES: quiet.reset_abilities,
            PacketType.PRE_SLEEP: dispatcher.pre_sleep,
            PacketType.GRAB_JOB: dispatcher.grab,
            PacketType.GRAB_JOB_UNIQ: dispatcher.grab,
            PacketType.GRAB_JOB_ALL: dispatcher.grab,
            PacketType.SUBMIT_JOB_EPOCH: self._submit_epoch,
            PacketType.SUBMIT_REDUCE_JOB: self._submit_reduce,
            PacketType.SUBMIT_REDUCE_JOB_BACKGROUND: self._submit_reduce,
            PacketType.WORK_DATA: reports.data,
            PacketType.WORK_WARNING: reports.warning,
            PacketType.WORK_STATUS: reports.status,
            PacketType.WORK_COMPLETE: reports.complete,
            PacketType.WORK_FAIL: reports.fail,
            PacketType.WORK_EXCEPTION: reports.exception,
            PacketType.GET_STATUS: status.get_status,
            PacketType.GET_STATUS_UNIQUE: status.get_status_unique,
            PacketType.ECHO_REQ: status.echo,
            PacketType.OPTION_REQ: status.option,
            PacketType.SET_CLIENT_ID: status.set_client_id,
        }

    def _submit(self, session: Session, kind: int, body: Body) -> int:
        priority, background = _SUBMISSIONS[kind]
        if isinstance(body, bytes) and len(fields := body.split(b"\0", 2)) == 3:  # as ``split`` does it
            return self._accept(session, fields[0], fields[1], fields[2], priority, background, None)
        (name, unique), workload = split(body, 2, kind)
        return self._accept(session, name, unique, workload, priority, background, None)

    def _submit_reduce(self, session: Session, kind: int, body: Body) -> int:
        (name, unique, reducer, _), workload = split(body, 4, kind)
        background = kind == PacketType.SUBMIT_REDUCE_JOB_BACKGROUND
        if len(reducer) > self._limits.unique:
            refused = Rejected(b"ARGUMENT_TOO_LARGE", b"Unique value too large")
            return self.submissions.answer(session, None, background, refused)
        details = JobDetails()
        details.reducer = reducer
        return self._accept(session, name, unique, workload, NORMAL, background, details)

    def _submit_epoch(self, session: Session, kind: int, body: Body) -> int:
        (name, unique, epoch), workload = split(body, 3, kind)
        details = JobDetails()
        details.due = float(integer(epoch))
        return self._accept(session, name, unique, workload, NORMAL, True, details)

    def _accept(
        self,
        session: Session,
        name: bytes,
        unique: bytes,
        workload: Body,
        priority: int,
        background: bool,
        details: JobDetails | None,
        key: bytes = b"",
    ) -> int:
        """A submission, whatever its packet; whether its answer has to wait for the store, or ``LONG``.

        The ``key`` is the hash of the workload, if the unique is ``-`` and it is known already.
        """
        job: QueuedJob | None = None
        refused: Rejected | None = None
        submissions = self.submissions
        try:
            function = self.functions.by_name.get(name)
            if function is None:
                if name.startswith(RESERVED_PREFIX) and not background:
                    return self._calls.start(session, name, workload) or LONG
                if name == SUBMIT and details is None:
                    function, workload, details = self._calls.background(workload)
                    name = function.name
                else:
                    function = self.functions.ensure(name)
            if unique and unique == b"-" and not key and len(workload) > LONG_HASH:
                again = partial(self._accept, session, name, unique, workload, priority, background, details)
                submissions.hash_first(session, workload, again, may_be_gone=background)
                return LONG
            client = None if background else session
            job = submissions.place(function, unique, workload, priority, background, details, client, key)
        except Rejected as error:
            refused = error
        # Most submissions do not wait for the store.
        plain = not self.journal.durable or not (background or (job is not None and job.state is _STORING))
        if job is not None and plain and not session.pending_writes:
            submissions.created(session, job)
            return False
        return submissions.answer(session, job, background, refused)

    def _oversized(self, session: Session, kind: int, first: bytes, size: int) -> None:
        """A body over the limit is being thrown away: its sender gets ERROR, and the job it is about
        fails."""
        handle = self._reports.oversized(session, kind, first)
        subject = b"the result of %b" % handle if handle is not None else b"a packet of type %d" % kind
        self.outgoing.notify("refused a body of %d bytes, which is over the limit", session, subject, size)
        text = b"a body of %d bytes is over the limit of %d" % (size, self._limits.body)
        self.outgoing.error(session, b"ARGUMENT_TOO_LARGE", text)

    def _text(self, session: Session, line: bytes) -> None:
        answer = self._answer_text(line)
        if isinstance(answer, bytes):
            self.outgoing.send(session, answer)
        else:  # a long one: nothing else that the session asks may be answered before it
            session.pending_writes += 1
            session.blocks_pipeline += 1
            self.turns.run(self._answer_in_steps(session, answer))

    def _answer_in_steps(self, session: Session, answer: Iterator[bytes]) -> Steps:
        pieces: list[bytes] = []
        for piece in answer:
            if not session.is_open:
                return
            pieces.append(piece)
            yield
        self.outgoing.send(session, b"".join(pieces))
        session.blocks_pipeline -= 1
        self.submissions.resume(session)
