"""Which job goes to which worker, and which sleeping worker is woken for a job.

**Waking.** A sleeper is woken for each job that is queued. It should grab within ``WAKE_TIMEOUT``. If it does
not, one more sleeper is woken, then two, then all. If it goes away or does something else, the next is woken
at once. So there is no herd, and **a job waits beside a sleeping worker that could run it only while a wake
is pending**.

**Held GRABs.** A worker that gets NO_JOB goes to sleep (PRE_SLEEP), is woken (NOOP), and asks again. Where
the next job comes soon, as from a client that makes one call after another, that is two packets each way and
two turns of waiting for nothing. So the answer is held for up to ``LINGER``, and a job that comes meanwhile
is the answer. This is only for a worker that *expects* a job: one that was woken within ``LINGER`` after its
last NO_JOB, and whose GRABs have not expired since. A worker of several servers, which asks one after the
other, is not delayed at one that has nothing for it.
"""

from __future__ import annotations

import sys
from collections import deque
from functools import partial
from typing import Final

from gearflow.broker import serialization
from gearflow.broker.core import Core
from gearflow.broker.endings import Endings
from gearflow.broker.functions import NO_LANE, FunctionQueue, ReadyFunctions, Sleep
from gearflow.broker.job import JobState, QueuedJob
from gearflow.broker.outgoing import LINGER
from gearflow.broker.parser import Body, Handler, name_in
from gearflow.broker.session import LARGE, WHOLE, Session
from gearflow.broker.storage import PENDING, Answer, JobOf, JobOutcome
from gearflow.broker.streams import Streams
from gearflow.broker.suspects import Suspects
from gearflow.broker.turns import LONG, MANY, Steps
from gearflow.broker.watching import Watching
from gearflow.errors import StoreError
from gearflow.protocol import envelope
from gearflow.protocol.constants import HEADER, MAX_BODY, RES, RESERVED_PREFIX, PacketType

WAKE_TIMEOUT: Final = 0.02
"""Seconds that a woken worker has to grab: more than a round trip, and too short for a person to notice."""


class Wake:
    """A worker that was woken. Two wakes of one worker are not equal."""

    __slots__ = ("due", "function", "more", "session")

    def __init__(self, session: Session, due: float, function: FunctionQueue, more: int) -> None:
        self.session = session
        self.due = due  # by when it is to react
        self.function = function  # for which it was woken
        self.more = more  # how many are woken after it


_ALL: Final = sys.maxsize
_NEXT_MORE: Final = {1: 2, 2: _ALL, _ALL: _ALL}
"""How many sleepers are woken after those that did not grab."""

_MUCH: Final = 4096
"""Bytes of a workload from which on a GRAB counts as long."""

_NOOP: Final = HEADER.pack(RES, PacketType.NOOP, 0)

_JOB_ASSIGN: Final = int(PacketType.JOB_ASSIGN)
_JOB_ASSIGN_UNIQ: Final = int(PacketType.JOB_ASSIGN_UNIQ)
_JOB_ASSIGN_ALL: Final = int(PacketType.JOB_ASSIGN_ALL)
_GRAB_JOB: Final = int(PacketType.GRAB_JOB)
_GRAB_JOB_ALL: Final = int(PacketType.GRAB_JOB_ALL)

_RUNNING: Final = JobState.RUNNING
_WAITING: Final = JobState.WAITING
_OVER: Final = JobState.OVER


class Dispatcher:
    """Assigns jobs to workers. Owns the wakes that are pending.

    Its handlers take the packets by which workers withdraw functions, sleep and ask for jobs.
    """

    def __init__(
        self, core: Core, streams: Streams, watching: Watching, suspects: Suspects, endings: Endings
    ) -> None:
        self._clock = core.clock
        self._functions = core.functions
        self._handle_prefix = core.handles.prefix
        self._outgoing = core.outgoing
        self._held = core.outgoing.held_grabs
        self._held_by_session = self._held.by_session
        self._timeouts = core.timeouts
        self._streams = streams
        self._watching = watching
        self._suspects = suspects
        self._endings = endings
        self._damaged = core.damaged
        self._shortest_run = core.limits.shortest_run
        self._journal = core.journal
        self._turns = core.turns
        self._limiter = core.limiter
        self._limiter.on_change = self._follow_limits
        self._served = 0
        # All wakes have the same time limit, so the order of waking is the order of the deadlines. A wake is
        # over when it is not its session's ``woken`` any more. None that is over is first.
        self.wakes: deque[Wake] = deque()

    # ------------------------------------------------------------------------------------ abilities

    def offer(self, session: Session, name: bytes, timeout: float) -> None:
        """A worker offers a function; the last time limit it gives counts (seconds, 0: none)."""
        timeout = max(timeout, self._shortest_run) if timeout > 0 else 0.0
        self._outgoing.release_grab(session)
        if name.startswith(RESERVED_PREFIX):
            text = b"the server answers reserved functions itself"
            self._outgoing.error(session, b"INVALID_FUNCTION_NAME", text)
            return
        function = self._functions.ensure(name)
        is_new = function not in session.abilities
        session.abilities[function] = timeout
        if is_new:
            function.workers += 1
            if session.ready is not None:
                function.add_listener(session.ready)
            elif len(session.abilities) > MANY:
                session.ready = ReadyFunctions(session)
            if session.sleep is not None:
                function.add_sleeper(session.sleep)
        if session.sleep is not None and function.needs_wake():
            self._wake(function, 1)
        if function.suspects:
            self._suspects.offered(session, function)

    def cant_do(self, session: Session, kind: int, body: Body) -> None:
        """CANT_DO: the worker withdraws a function."""
        self._outgoing.release_grab(session)
        function = self._functions.by_name.get(name_in(body))
        if function is not None and function in session.abilities:
            del session.abilities[function]
            function.workers -= 1
            if session.ready is not None:
                function.remove_listener(session.ready)
            self._functions.rest(function)
            if session.alone is not None:
                self._suspects.withdrew(session)
            self._reacted(session)

    def reset_abilities(self, session: Session, kind: int, body: Body) -> int | None:
        """RESET_ABILITIES: the worker withdraws all functions."""
        self._outgoing.release_grab(session)
        is_long = session.ready is not None
        self._turns.run_before_input(session, self._withdraw_all(session))
        return LONG if is_long else None

    def forget(self, session: Session) -> None:
        """The connection is closed."""
        if session in self._held_by_session:
            self._held.pop(session)
        session.sleep = None
        if session.alone is not None:
            self._suspects.forget(session)
        self._turns.run(self._withdraw_all(session))

    def _withdraw_all(self, session: Session) -> Steps:
        functions = deque(session.abilities)  # each is freed with its step
        session.abilities = {}
        ready, session.ready = session.ready, None
        if session.alone is not None:
            self._suspects.withdrew(session)
        self._reacted(session)
        while functions:
            function = functions.popleft()
            function.workers -= 1
            if ready is not None:
                function.remove_listener(ready)
            self._functions.rest(function)
            yield

    # --------------------------------------------------------------------------------- asking for jobs

    def pre_sleep(self, session: Session, kind: int, body: Body) -> int | None:
        """PRE_SLEEP: the worker sleeps until a NOOP, unless there is a job.

        Its time limits end, as in gearmand. A worker of libgearman that has taken an ERROR for the answer to
        its GRAB_JOB sleeps while the next job is on its way, and would lose each job again.
        """
        self._outgoing.release_grab(session)
        ready = session.ready
        if ready is not None and not ready.settle(MANY):
            return self._settle(session, ready, self.pre_sleep, kind)
        if self._has_job_for(session):
            self._send_noop(session)
            return LONG
        self._timeouts.disarm_all(session)
        if session.alone is not None:
            session.sleep = Sleep(session)  # which no function has among its sleepers
        if session.sleep is None:
            session.sleep = sleep = Sleep(session)
            if ready is None:  # else it becomes a sleeper of a function that reports a job
                for function in session.abilities:
                    function.add_sleeper(sleep)
        if session.woken is not None:
            self._reacted(session)
        return None

    def _has_job_for(self, session: Session) -> bool:
        """Whether a job waits that the session may be given."""
        if self._suspects.exist and self._suspects.waits_for(session):
            return True
        if session.alone is not None:
            return False
        if session.ready is not None:
            return session.ready.has_jobs()
        for function in session.abilities:  # noqa: SIM110  (a generator costs more)
            if function.waiting and function.has_job():
                return True
        return False

    def grab(self, session: Session, kind: int, body: Body) -> int | None:
        """GRAB_JOB and its relatives: answered with a job, with NO_JOB, or held."""
        session.sleep = None
        if session in self._held_by_session:
            self._outgoing.release_grab(session)
        ready = session.ready
        if ready is not None and not ready.settle(MANY):
            return self._settle(session, ready, self.grab, kind)
        given = self._give(session, kind)
        if not given:
            if session.expects_job and ready is None and session.alone is None:
                self._held.hold(session, kind, self._clock.now)
            else:
                self._outgoing.send_no_job(session)
        if session.woken is not None:
            self._reacted(session)
        return LONG if given == LONG else None

    def _settle(self, session: Session, ready: ReadyFunctions, handler: Handler, kind: int) -> int:
        """Handle a packet once the functions that have no jobs any more are forgotten."""
        self._turns.run_before_input(session, self._handle_settled(session, ready, handler, kind))
        return LONG

    def _handle_settled(self, session: Session, ready: ReadyFunctions, handler: Handler, kind: int) -> Steps:
        while session.is_open and not ready.settle(MANY):
            yield
        if session.is_open:
            handler(session, kind, b"")

    def _give(self, session: Session, kind: int) -> int:
        """Answer a GRAB with a job, if there is one. ``LONG`` if there was much to send."""
        abilities = session.abilities
        while True:
            job = self._suspects.take(session) if self._suspects.exist else None
            if job is None:
                if session.alone is not None:
                    return False
                if len(abilities) == 1:
                    (function,) = abilities
                    if not function.waiting:
                        return False
                else:
                    chosen = self._choose(session)
                    if chosen is None:
                        return False
                    function = chosen
                job = function.pop() if function.limited is None else function.limited.pop()
                if job is None:
                    return False
            function = job.function
            job.state = _RUNNING
            job.started = self._clock.now
            function.running += 1
            workload = job.workload
            if not isinstance(workload, int):
                return LONG if self._send(session, job, kind, workload) > _MUCH else True
            if self._send_stored(session, job, kind, workload):
                return LONG

    def _choose(self, session: Session) -> FunctionQueue | None:
        """The function that has the job of the highest priority for a worker of several functions.

        Functions of one priority take turns: the one served longest ago comes first.
        """
        if session.ready is not None:
            chosen = session.ready.take()
            if chosen is None:
                return None
        else:
            able = [function for function in session.abilities if function.waiting and function.has_job()]
            if not able:
                return None
            chosen = min(able, key=FunctionQueue.turn)
        self._served += 1
        chosen.served = self._served
        return chosen

    def _send_stored(self, session: Session, job: QueuedJob, kind: int, size: int) -> bool:
        """Send a running job of so many bytes, which the store has. False if it cannot be read, and so ends.

        A large workload is read in steps first, and some stores answer later. Until then the worker's next
        requests wait, so that no more is read for it than it has room for.
        """
        question, done = JobOf(job.number), partial(self._send_later, session, job, kind)
        if size >= self._journal.large:
            answer = self._journal.ask_in_steps(question, done)
        else:
            answer = self._journal.ask(question, done)
        if answer is PENDING:
            self._limiter.fetching[job] = None
            job.worker = session
            session.pending_writes += 1
            session.blocks_pipeline += 1
            return True
        try:
            workload = serialization.workload_of(job, answer)
        except StoreError as error:
            self._fail_unreadable(job, error)
            return False
        self._send(session, job, kind, workload)
        return True

    def _send_later(self, session: Session, job: QueuedJob, kind: int, answer: Answer) -> None:
        """The store has answered. Send the job, or another if that job is over or cannot be read.

        The worker holds the job only when it is sent. If the worker goes away before, that is no death.
        """
        self._limiter.fetching.pop(job, None)
        fault: StoreError | None = None
        workload: Body = b""
        try:
            workload = serialization.workload_of(job, answer)
        except StoreError as error:
            fault = error
        session.pending_writes -= 1
        session.blocks_pipeline -= 1
        self._turns.resume_later(session)
        is_held = job.kept and job.function.holds
        is_over = job.cancelled or job.state is _OVER  # or another server has it
        if session.is_open and fault is None and not (is_held or is_over):
            job.started = self._clock.now
            self._send(session, job, kind, workload)
            return
        if is_over:
            if job.cancelled:
                self._endings.release(job)
        elif fault is not None:
            self._fail_unreadable(job, fault)
        else:
            self._limiter.release(job)
            job.function.running -= 1
            job.state = _WAITING
            self.queue(job)
        if session.alone is not None:
            self._suspects.ended(session)
        if session.is_open and not self._give(session, kind):
            self._outgoing.send_no_job(session)

    def _fail_unreadable(self, job: QueuedJob, error: StoreError) -> None:
        self._damaged[job.number] = str(error)
        handle = b"%b%d" % (self._handle_prefix, job.number)
        of = job.function.name.decode(errors="replace")
        text = f"job {handle.decode()} of {of} cannot be given to a worker and is a dead letter now: {error}"
        self._outgoing.notify(text, None, handle)
        failure = serialization.failure("StoreError", str(error))
        self._endings.fail(job, JobOutcome.RAISED, failure, None)

    def _send(self, session: Session, job: QueuedJob, kind: int, workload: Body) -> int:
        """Send a running job to its worker. Returns the size of the workload."""
        function = job.function
        now = self._clock.now
        handle = b"%b%d" % (self._handle_prefix, job.number)
        timeout = session.abilities.get(function)  # withdrawn, if a large body was read meanwhile
        details, policy = job.details, function.policy
        function.counts.wait.add(now - (job.submitted if details is None else job.ready))
        if policy is not None:
            details = job.ensure_details()
            if not session.gearflow:
                timeout = policy.limit_run(details, timeout)
        if timeout:
            self._timeouts.arm(job, session, self._begin(session, now) + timeout)
        session.running[handle] = job
        job.worker = session
        if kind == _GRAB_JOB:
            head, number = b"%b\0%b\0" % (handle, function.name), _JOB_ASSIGN
        elif kind == _GRAB_JOB_ALL and details is not None and details.reducer is not None:
            fields = (handle, function.name, job.unique, details.reducer)
            head, number = b"%b\0%b\0%b\0%b\0" % fields, _JOB_ASSIGN_ALL
        else:
            head, number = b"%b\0%b\0%b\0" % (handle, function.name, job.unique), _JOB_ASSIGN_UNIQ
        if details is not None:
            parts = self._streams.assigned(details.log, job, session) if details.log is not None else 0
            if details.watchers:
                self._watching.started(job, session)
            if session.gearflow:
                head += envelope.header(
                    attempt=details.attempt + 1,
                    timeout=details.timeout if policy is None else policy.timeout_of(details),
                    retries=details.retries if policy is None else policy.retries_of(job, details),
                    parts=parts,
                    previous=details.previous,
                    alone=session.alone is not None,
                    scheduled_at=details.scheduled_at,
                    trace=details.trace,
                )
        size = len(workload)
        if len(head) + size > MAX_BODY:  # then without its unique: the handle and the function fit
            head, number = b"%b\0%b\0" % (handle, function.name), _JOB_ASSIGN
        head = HEADER.pack(RES, number, len(head) + size) + head
        outbox = session.outbox
        if not outbox:
            self._outgoing.dirty.append(session)
        if size < LARGE:
            outbox.append(head + workload)
        else:
            outbox.append(head)
            outbox.append(workload)
            session.has_large = session.has_large or size >= WHOLE
        return size

    @staticmethod
    def _begin(session: Session, now: float) -> float:
        """When the time of a job begins that the worker is given.

        A worker that overran a limit may have taken the ERROR for its late result as the answer to a GRAB_JOB
        (libgearman). It then holds the next job before it has ended the one that it runs.
        """
        if session.overran and session.running:
            return max(now, next(reversed(session.running.values())).deadline)
        return now

    # ----------------------------------------------------------------------------------- jobs that come

    def queue(self, job: QueuedJob) -> None:
        """Put a WAITING job in its lane, and get a worker for it."""
        if job.details is not None and job.details.deaths and self._suspects.takes(job):
            return
        function = job.function
        if function.stopped:
            if function.limited is not None:
                function.limited.push(job)
                self._call_worker(function)
                return
            if not function.admit(job):
                return
        lane = function.lanes[job.priority]
        if lane is NO_LANE:
            lane = function.open_lane(job.priority)
        lane.append(job)
        function.waiting += 1
        if function.listeners is not None and len(lane) == 1:
            function.report(job.priority)
        if function.waiting_grabs:
            self._answer_waiting_grab(function)
        elif function.sleepers:
            self._wake(function, 1)

    def take_out(self, job: QueuedJob) -> None:
        """A WAITING job leaves its lane, and is to wait elsewhere."""
        job.function.take_out(job)
        if self._suspects.exist:
            self._suspects.arrange(job.function)

    def pause(self, function: FunctionQueue, paused: bool) -> int:
        """Give out no job of a function, or give out jobs again; the number of jobs that wait."""
        if paused:
            self._functions.pause(function)
            self._suspects.arrange(function)
        elif function.paused:
            self._functions.resume(function)
            self._turns.run(self.give_out(function))
        return function.all_waiting

    def give_out(self, function: FunctionQueue) -> Steps:
        """The jobs of a function may be given out again."""
        if function.suspects:
            self._suspects.arrange(function)
        while function.has_job() and function.waiting_grabs:
            self._answer_waiting_grab(function)
            yield
        while function.needs_wake() and self._wake(function, 1):
            yield

    # ------------------------------------------------------------------------------ functions with limits

    def _call_worker(self, function: FunctionQueue) -> None:
        """A job of a function with limits has come: get a worker for it."""
        if function.waiting_grabs:
            if function.has_job():
                self._answer_waiting_grab(function)
        elif function.sleepers and function.needs_wake():
            self._wake(function, 1)

    def _follow_limits(self) -> Steps:
        """Do what follows from the limits: end jobs, and wake workers."""
        limiter = self._limiter
        doomed, limiter.doomed = limiter.doomed, []
        for job, state, why in doomed:
            if job.state is state and not job.cancelled:
                self._endings.refuse(job, "Refused", why)
                yield
        ready, limiter.ready = limiter.ready, {}
        for function in ready:
            yield from self.give_out(function)

    def _answer_waiting_grab(self, function: FunctionQueue) -> None:
        session = next(iter(function.waiting_grabs))
        if not self._give(session, self._held.pop(session)):
            self._outgoing.send_no_job(session)

    # ------------------------------------------------------------------------------------------ waking

    def _wake(self, function: FunctionQueue, more: int) -> bool:
        """Wake the longest sleeper, and ``more`` others if it does not grab in time. False if none sleeps."""
        session = function.take_sleeper()
        if session is None:
            return False
        session.sleep = None
        function.wakes += 1
        session.woken = wake = Wake(session, self._clock.now + WAKE_TIMEOUT, function, more)
        self.wakes.append(wake)
        self._send_noop(session)
        return True

    def _send_noop(self, session: Session) -> None:
        """Call a worker because there is a job."""
        if self._clock.now - session.no_job_at <= LINGER:
            session.expects_job = True
        self._outgoing.send(session, _NOOP)

    def _reacted(self, session: Session) -> None:
        """A worker that may have been woken has done something. If its job still waits, wake another."""
        if session.woken is None:
            return
        function = session.woken.function
        session.woken = None
        function.wakes -= 1
        if function.needs_wake():
            self._wake(function, 1)

    # -------------------------------------------------------------------------------------------- time

    def tick(self) -> None:
        """Wake others where woken workers did not grab in time, and answer GRABs that were held too long."""
        now = self._clock.now
        while (wake := self._first_pending()) is not None and wake.due <= now:
            self.wakes.popleft()
            wake.session.woken = None
            wake.function.wakes -= 1
            if wake.function.has_job():
                self._turns.run(self._wake_more(wake.function, wake.more))
            if self._turns.is_late():
                break
        for session in self._held.expired(now):
            self._outgoing.release_grab(session)
        if self._suspects.exist:
            self._suspects.tick()

    def _wake_more(self, function: FunctionQueue, more: int) -> Steps:
        """A worker that was woken did not react in time."""
        for _ in range(more):
            if not function.has_job() or not self._wake(function, _NEXT_MORE[more]):
                return
            yield

    def _first_pending(self) -> Wake | None:
        """The pending wake whose time is over first."""
        pending = self.wakes
        while pending:
            if pending[0].session.woken is pending[0]:
                return pending[0]
            pending.popleft()
        return None

    def next_due(self) -> float | None:
        """When ``tick`` has something to do."""
        due = self._held.next_due() if self._held_by_session else None
        wake = self._first_pending() if self.wakes else None
        if wake is not None and (due is None or wake.due < due):
            due = wake.due
        if self._suspects.exist:
            suspect = self._suspects.next_due()
            if suspect is not None and (due is None or suspect < due):
                due = suspect
        return due
