"""The broker: bytes of a connection in, packets for all connections out.

Theory of operation. The shell gives the broker what a connection received (``receive``), when one went
away (``disconnected``) and what time it is (``now`` with each call, ``tick`` when ``next_due`` has come).
The broker changes its state and appends encoded packets to the outboxes of the sessions concerned;
sessions that got something are in ``dirty``, and what operators should know is in ``notices``; the shell
drains both. Nothing else leaves the broker.

This is the hot path of the server, so packets are not built as objects: ``intake`` scans the bytes in
place, a body is split once, and what is relayed is relayed as it came.

Two steps to a queue. A submission makes a job (``_accept``); ``stored`` queues it and releases
JOB_CREATED. Here the second step follows the first at once; a durable server puts the store in between.

Source: gearman-protocol, sections 3 to 9.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b
from heapq import heappop, heappush
from typing import Final, NamedTuple

from gearflow.broker.bodies import Body, handle_of, integer, name_in, split
from gearflow.broker.deadlines import Deadlines
from gearflow.broker.intake import Handler, Intake, Partial
from gearflow.broker.job import HIGH, LOW, NO_PROGRESS, NORMAL, Job, JobState
from gearflow.broker.limits import Limits
from gearflow.broker.queues import FunctionQueue
from gearflow.broker.sessions import LARGE, Session
from gearflow.broker.waking import Waking
from gearflow.errors import RemoteProtocolError
from gearflow.protocol import reserved
from gearflow.protocol.constants import HEADER, MAX_BODY, MAX_CLIENT_ID, RES, PacketType

MANY_FUNCTIONS: Final = 10_000
"""Names of functions that are remembered although nobody uses them; from then on those are forgotten."""

_NOOP: Final = HEADER.pack(RES, PacketType.NOOP, 0)
_NO_JOB: Final = HEADER.pack(RES, PacketType.NO_JOB, 0)

_CREATED: Final = [HEADER.pack(RES, PacketType.JOB_CREATED, size) for size in range(256)]
"""The header of JOB_CREATED by the length of the handle."""

_JOB_ASSIGN: Final = int(PacketType.JOB_ASSIGN)
_JOB_ASSIGN_UNIQ: Final = int(PacketType.JOB_ASSIGN_UNIQ)
_JOB_ASSIGN_ALL: Final = int(PacketType.JOB_ASSIGN_ALL)
_GRAB_JOB: Final = int(PacketType.GRAB_JOB)
_GRAB_JOB_ALL: Final = int(PacketType.GRAB_JOB_ALL)
_WORK_FAIL: Final = int(PacketType.WORK_FAIL)

_WAITING: Final = JobState.WAITING
_RUNNING: Final = JobState.RUNNING
_OVER: Final = JobState.OVER

_SUBMISSIONS: Final[dict[int, tuple[int, bool]]] = {  # packet type -> priority, background
    PacketType.SUBMIT_JOB: (NORMAL, False),
    PacketType.SUBMIT_JOB_BG: (NORMAL, True),
    PacketType.SUBMIT_JOB_HIGH: (HIGH, False),
    PacketType.SUBMIT_JOB_HIGH_BG: (HIGH, True),
    PacketType.SUBMIT_JOB_LOW: (LOW, False),
    PacketType.SUBMIT_JOB_LOW_BG: (LOW, True),
}

_NOT_FOUND: Final[dict[int, bytes]] = {  # packet type -> gearmand's words for it
    PacketType.WORK_DATA: b"Job does not exist on server",
    PacketType.WORK_WARNING: b"Job does not exist on server",
    PacketType.WORK_STATUS: b"Job given in work result not found",
    PacketType.WORK_COMPLETE: b"Job given in work result not found",
    PacketType.WORK_FAIL: b"Job given in work result not found",
    PacketType.WORK_EXCEPTION: b"An exception was received for a job that does not exist",
}

_RESULTS: Final = frozenset({PacketType.WORK_COMPLETE, PacketType.WORK_EXCEPTION, PacketType.WORK_DATA})

_OPTIONS: Final = frozenset({b"exceptions", b"gearflow"})

AnswerText = Callable[[bytes], bytes]


class Notice(NamedTuple):
    """Something that operators should read in the log: a limit was met."""

    text: str
    session: Session
    subject: bytes


class Broker:
    """All jobs, functions and sessions of one server. Owns state; single-threaded.

    ``handle_prefix`` begins every job's handle. ``answer_text`` answers a line of the text protocol, which
    asks for facts of the shell's. Times are float seconds of a monotonic clock; ``clock_offset``, kept by
    the shell, is what that clock lacks to Unix time.
    """

    def __init__(self, handle_prefix: bytes, answer_text: AnswerText, limits: Limits = Limits()) -> None:  # noqa: B008  (frozen)
        self.sessions: dict[Session, None] = {}
        self.functions: dict[bytes, FunctionQueue] = {}
        self.jobs: dict[bytes, Job] = {}  # by handle
        self.dirty: list[Session] = []
        self.notices: list[Notice] = []
        self.clock_offset = 0.0
        self._handle_prefix = handle_prefix
        self._answer_text = answer_text
        self._now = 0.0
        self._submitted = 0
        self._turns = 0
        self._many_functions = MANY_FUNCTIONS
        self._delayed: list[tuple[float, int, Job]] = []  # heap: Unix time, number, job
        self._deadlines = Deadlines()
        self._waking = Waking(lambda session: self._send(session, _NOOP))
        self._limits = limits
        self._queued_bytes = 0
        self._intake = Intake(self._handlers(), self._text, self._error, self._oversized, limits)

    # ------------------------------------------------------------------------ what the shell calls

    def connected(self, fd: int, address: str) -> Session:
        """A connection was accepted; ``fd`` and ``address`` are for the listing ``workers``."""
        session = Session(fd, address)
        self.sessions[session] = None
        return session

    def receive(self, session: Session, data: bytes, now: float) -> None:
        """Handle the packets and text lines that ``data`` completes, in order.

        Raises:
            RemoteProtocolError: These bytes are not Gearman's. What came before them was handled; the
                connection is to be closed (after its outbox is written).
        """
        self._now = now
        self._intake.receive(session, data, now)

    def receive_large(self, session: Session, count: int, now: float) -> None:
        """Another ``count`` bytes have come into the partial packet's ``room()``. Raises as ``receive``."""
        self._now = now
        self._intake.receive_large(session, count)

    @property
    def partials(self) -> Mapping[Session, Partial]:
        """What sessions have sent of packets that have not come whole."""
        return self._intake.partials

    def overdue(self, now: float) -> list[Session]:
        """The sessions in the middle of a packet that takes too long to come; they are to be closed."""
        return self._intake.overdue(now)

    def disconnected(self, session: Session, now: float) -> None:
        """The connection is gone: its jobs go to others, and jobs that only it wanted are dropped."""
        self._now = now
        del self.sessions[session]
        self._forget_abilities(session)
        for job in reversed(session.running.values()):
            self._requeue(job)
        session.running.clear()
        for job in session.attached:
            job.clients = tuple(client for client in job.clients if client is not session)
            if not job.wanted and job.state is not _RUNNING:
                self._abandon(job)
        session.attached.clear()
        session.outbox.clear()
        self._intake.partials.pop(session, None)

    def tick(self, now: float) -> None:
        """Time has passed: queue what is due, take overdue jobs from their workers, wake where none came."""
        self._now = now
        while self._delayed and self._delayed[0][0] <= now + self.clock_offset:
            job = heappop(self._delayed)[2]
            if job.state is JobState.DELAYED:
                job.function.delayed -= 1
                job.state = _WAITING
                self._queue(job)
        for job, worker in self._deadlines.expired(now):
            del worker.running[job.handle]
            self._requeue(job)
        self._waking.tick(now)

    def next_due(self) -> float | None:
        """When ``tick`` is to be called next, if nothing else happens."""
        due = self._waking.next_due()
        overdue = self._deadlines.next_due()
        if overdue is not None and (due is None or overdue < due):
            due = overdue
        if self._delayed:
            epoch = self._delayed[0][0] - self.clock_offset
            due = epoch if due is None or epoch < due else due
        return due

    # ------------------------------------------------------------------------- what operators ask for

    def limit(self, name: bytes, high: int | None, normal: int | None, low: int | None) -> None:
        """Cap a function's jobs: a submission is refused while the function has so many, or more, in all.

        The priority of the submission says which of the limits holds. An unknown function is left so.
        """
        function = self.functions.get(name)
        if function is not None:
            limits = (high, normal, low)
            function.limits = None if limits == (None, None, None) else limits

    def cancel(self, handle: bytes) -> bool:
        """End a job; its clients hear WORK_FAIL, and nothing afterwards. False if there is no such job.

        A job that waits is not run. One that runs cannot be stopped by the protocol: its worker is told if it
        listens to ``gearflow:events``; what it still says of the job is accepted and goes nowhere, and the
        unique is free for a new job at once.
        """
        job = self.jobs.get(handle)
        if job is None:
            return False
        self._relay(job, _WORK_FAIL, handle)
        for client in job.clients:
            client.attached.pop(job, None)
        job.clients = ()
        job.background = False
        if job.state is not _RUNNING:
            self._abandon(job)
            return True
        if job.unique_key:
            del job.function.uniques[job.unique_key]
            job.unique_key = b""
        for session in self.sessions:
            if session.events and session.running.get(handle) is job:
                event = reserved.cancel_event(handle)
                self._respond(session, PacketType.WORK_DATA, session.events, event)
        return True

    def create(self, name: bytes) -> None:
        """Make a function known."""
        if name not in self.functions and not name.startswith(reserved.PREFIX):
            self._new_function(name)

    def drop(self, name: bytes) -> bool:
        """Forget a function. False if it has workers or jobs. Raises KeyError if it is not known."""
        function = self.functions[name]
        if function.workers or function.total:
            return False
        del self.functions[name]
        return True

    # ---------------------------------------------------------------------------------- who does what

    def _handlers(self) -> dict[PacketType, Handler]:
        """By packet type; what only a server sends, and what nobody implements, has none."""
        return {
            **dict.fromkeys(map(PacketType, _SUBMISSIONS), self._submit),
            PacketType.CAN_DO: self._can_do,
            PacketType.CAN_DO_TIMEOUT: self._can_do_timeout,
            PacketType.CANT_DO: self._cant_do,
            PacketType.RESET_ABILITIES: self._reset_abilities,
            PacketType.PRE_SLEEP: self._pre_sleep,
            PacketType.GRAB_JOB: self._grab,
            PacketType.GRAB_JOB_UNIQ: self._grab,
            PacketType.GRAB_JOB_ALL: self._grab,
            PacketType.SUBMIT_JOB_EPOCH: self._submit_epoch,
            PacketType.SUBMIT_REDUCE_JOB: self._submit_reduce,
            PacketType.SUBMIT_REDUCE_JOB_BACKGROUND: self._submit_reduce,
            PacketType.WORK_DATA: self._work_data,
            PacketType.WORK_WARNING: self._work_data,
            PacketType.WORK_STATUS: self._work_status,
            PacketType.WORK_COMPLETE: self._work_complete,
            PacketType.WORK_FAIL: self._work_fail,
            PacketType.WORK_EXCEPTION: self._work_exception,
            PacketType.GET_STATUS: self._get_status,
            PacketType.GET_STATUS_UNIQUE: self._get_status_unique,
            PacketType.ECHO_REQ: self._echo,
            PacketType.OPTION_REQ: self._option,
            PacketType.SET_CLIENT_ID: self._set_client_id,
        }

    # ------------------------------------------------------------------------------------ submitting

    def _submit(self, session: Session, kind: int, body: Body) -> None:
        (name, unique), workload = split(body, 2, kind)
        priority, background = _SUBMISSIONS[kind]
        self._accept(session, name, unique, workload, priority, background, None, 0.0)

    def _submit_reduce(self, session: Session, kind: int, body: Body) -> None:
        (name, unique, reducer, _), workload = split(body, 4, kind)
        if len(reducer) > self._limits.unique:
            self._error(session, b"ARGUMENT_TOO_LARGE", b"Unique value too large")
            return
        background = kind == PacketType.SUBMIT_REDUCE_JOB_BACKGROUND
        self._accept(session, name, unique, workload, NORMAL, background, reducer, 0.0)

    def _submit_epoch(self, session: Session, kind: int, body: Body) -> None:
        (name, unique, epoch), workload = split(body, 3, kind)
        self._accept(session, name, unique, workload, NORMAL, True, None, float(integer(epoch)))

    def _accept(
        self,
        session: Session,
        name: bytes,
        unique: bytes,
        workload: Body,
        priority: int,
        background: bool,
        reducer: bytes | None,
        epoch: float,
    ) -> None:
        """A submission, whatever its packet: join the live job of its unique, or make a new one."""
        function = self.functions.get(name)
        if function is None:
            if name.startswith(reserved.PREFIX):
                self._call_reserved(session, name, background)
                return
            function = self._new_function(name)
        key = b""
        if unique:
            if len(unique) > self._limits.unique:
                self._error(session, b"ARGUMENT_TOO_LARGE", b"Unique value too large")
                return
            key = unique if unique != b"-" else _payload_key(workload)
            job = function.uniques.get(key)
            if job is not None:
                self._join(session, job, background)
                return
        if function.limits is not None and function.full(priority):
            self._error(session, b"QUEUE_ERROR", b"Job queue is full")
            return
        self._queued_bytes += len(workload)
        if self._limits.queued is not None and self._queued_bytes > self._limits.queued:
            self._queued_bytes -= len(workload)
            self.notices.append(Notice("refused a job: as many bytes are queued as may be", session, name))
            self._error(session, b"QUEUE_ERROR", b"Job queue is full: the server holds all the bytes it may")
            return
        handle = self._new_handle()
        if len(handle) + len(name) + 2 + len(workload) > MAX_BODY:
            self._queued_bytes -= len(workload)
            self._error(
                session, b"ARGUMENT_TOO_LARGE", b"with its handle the job would not fit into a packet"
            )
            return
        job = Job(handle, function, unique, key, workload, priority, background, reducer)
        if key:
            function.uniques[key] = job
        if not background:
            job.clients = (session,)
            session.attached[job] = None
        self.jobs[handle] = job
        if epoch > self._now + self.clock_offset:
            job.state = JobState.DELAYED
            function.delayed += 1
            heappush(self._delayed, (epoch, self._submitted, job))
            self._created(session, job)
        else:
            self.stored(session, job)

    def stored(self, session: Session, job: Job) -> None:
        """The second step of a submission: the job is safe where it is kept, so it counts from now on."""
        self._created(session, job)
        self._queue(job)

    def _call_reserved(self, session: Session, name: bytes, background: bool) -> None:
        """A submission of a function that the server answers itself; see ``gearflow.protocol.reserved``."""
        if background:
            self._error(
                session, b"INVALID_FUNCTION_NAME", b"a reserved function is for foreground submissions"
            )
            return
        handle = self._new_handle()
        self._respond(session, PacketType.JOB_CREATED, handle)
        if name == reserved.EVENTS:
            session.events = handle
            return
        reason = b"there is no reserved function %b" % name[:80]
        if session.exceptions:
            self._respond(session, PacketType.WORK_EXCEPTION, handle, reason)
        else:
            self._respond(session, PacketType.WORK_WARNING, handle, reason)
            self._respond(session, PacketType.WORK_FAIL, handle)

    def _new_handle(self) -> bytes:
        self._submitted += 1
        return b"%b%d" % (self._handle_prefix, self._submitted)

    def _join(self, session: Session, job: Job, background: bool) -> None:
        """A submission coalesces on a live job; from now on the job is wanted by this client too."""
        if background:
            job.background = True
        else:
            job.clients += (session,)
            session.attached[job] = None
        self._created(session, job)

    def _created(self, session: Session, job: Job) -> None:
        handle = job.handle
        outbox = session.outbox
        if not outbox:
            self.dirty.append(session)
        outbox.append(_CREATED[len(handle)] + handle)

    def _new_function(self, name: bytes) -> FunctionQueue:
        if len(name) > self._limits.function:
            limit = self._limits.function
            raise RemoteProtocolError(f"a function name of {len(name)} bytes is over the limit of {limit}")
        if len(self.functions) >= self._many_functions:
            self.functions = {name: function for name, function in self.functions.items() if function.in_use}
            self._many_functions = max(MANY_FUNCTIONS, 2 * len(self.functions))
        function = self.functions[name] = FunctionQueue(name)
        return function

    # ------------------------------------------------------------------------------ queues and workers

    def _queue(self, job: Job) -> None:
        """Put a WAITING job in its lane, and wake somebody for it."""
        function = job.function
        function.lanes[job.priority].append(job)
        function.waiting += 1
        if function.sleepers:
            self._waking.wake(function, self._now)

    def _requeue(self, job: Job) -> None:
        """A job comes back from a worker that will not finish it; its progress is void."""
        if job.deadline:
            self._deadlines.disarm(job)
        job.function.running -= 1
        job.state = _WAITING
        if job.wanted:
            job.progress = NO_PROGRESS
            self._queue(job)
        else:
            self._forget(job)

    def _abandon(self, job: Job) -> None:
        """Nobody wants a delayed or waiting job any more: its place and its memory are free at once."""
        if job.state is JobState.DELAYED:
            job.function.delayed -= 1
            job.state = _OVER
        else:
            job.state = _OVER
            job.function.forget(job)
        self._forget(job)

    def _forget(self, job: Job) -> None:
        """A job is over: its handle and its unique are free."""
        job.state = _OVER
        self._queued_bytes -= len(job.workload)
        job.workload = b""
        del self.jobs[job.handle]
        if job.unique_key:
            del job.function.uniques[job.unique_key]

    def _can_do(self, session: Session, kind: int, body: Body) -> None:
        self._offer(session, name_in(body), 0.0)

    def _can_do_timeout(self, session: Session, kind: int, body: Body) -> None:
        (name,), milliseconds = split(body, 1, kind)
        self._offer(session, name, max(integer(bytes(milliseconds)), 0) / 1000)

    def _offer(self, session: Session, name: bytes, timeout: float) -> None:
        """A worker offers a function; the last word on its time limit (seconds, 0: none) counts."""
        if name.startswith(reserved.PREFIX):
            self._error(session, b"INVALID_FUNCTION_NAME", b"the server answers reserved functions itself")
            return
        function = self.functions.get(name) or self._new_function(name)
        if function not in session.abilities:
            function.workers += 1
            if session.asleep:
                function.sleepers[session] = None
        session.abilities[function] = timeout
        if session.asleep and function.waiting > function.wakes:
            self._waking.wake(function, self._now)

    def _cant_do(self, session: Session, kind: int, body: Body) -> None:
        function = self.functions.get(name_in(body))
        if function is not None and function in session.abilities:
            del session.abilities[function]
            function.workers -= 1
            function.sleepers.pop(session, None)
            if session in self._waking.pending:
                self._waking.answered(session, self._now)

    def _reset_abilities(self, session: Session, kind: int, body: Body) -> None:
        self._forget_abilities(session)

    def _forget_abilities(self, session: Session) -> None:
        for function in session.abilities:
            function.workers -= 1
            function.sleepers.pop(session, None)
        session.abilities.clear()
        if session in self._waking.pending:
            self._waking.answered(session, self._now)

    def _pre_sleep(self, session: Session, kind: int, body: Body) -> None:
        for function in session.abilities:
            if function.waiting:
                self._send(session, _NOOP)
                return
        self._waking.sleep(session)
        if session in self._waking.pending:
            self._waking.answered(session, self._now)

    def _grab(self, session: Session, kind: int, body: Body) -> None:
        if session.asleep:
            self._waking.rise(session)
        job = self._next_job(session)
        if job is None:
            self._send(session, _NO_JOB)
        else:
            self._assign(session, job, kind)
        if session in self._waking.pending:
            self._waking.answered(session, self._now)

    def _next_job(self, session: Session) -> Job | None:
        """The job of the highest priority over all functions of the worker.

        Functions of one priority take turns: the one served longest ago comes first.
        """
        abilities = session.abilities
        if len(abilities) == 1:
            (function,) = abilities
            return function.pop() if function.waiting else None
        able = [function for function in abilities if function.waiting]
        if not able:
            return None
        chosen = min(able, key=FunctionQueue.turn)
        self._turns += 1
        chosen.served = self._turns
        return chosen.pop()

    def _assign(self, session: Session, job: Job, kind: int) -> None:
        job.state = _RUNNING
        job.function.running += 1
        handle = job.handle
        session.running[handle] = job
        timeout = session.abilities[job.function]
        if timeout:
            self._deadlines.arm(job, session, self._now + timeout)
        if kind == _GRAB_JOB:
            head, number = b"%b\0%b\0" % (handle, job.function.name), _JOB_ASSIGN
        elif kind == _GRAB_JOB_ALL and job.reducer is not None:
            fields = (handle, job.function.name, job.unique, job.reducer)
            head, number = b"%b\0%b\0%b\0%b\0" % fields, _JOB_ASSIGN_ALL
        else:
            head, number = b"%b\0%b\0%b\0" % (handle, job.function.name, job.unique), _JOB_ASSIGN_UNIQ
        workload = job.workload
        size = len(workload)
        if len(head) + size > MAX_BODY:  # without its unique, then: the handle and the function fit
            head, number = b"%b\0%b\0" % (handle, job.function.name), _JOB_ASSIGN
        head = HEADER.pack(RES, number, len(head) + size) + head
        outbox = session.outbox
        if not outbox:
            self.dirty.append(session)
        if size < LARGE:
            outbox.append(head + workload)
        else:
            outbox.append(head)
            outbox.append(workload)

    # ----------------------------------------------------------------------- what workers say of jobs

    def _work_data(self, session: Session, kind: int, body: Body) -> None:
        handle, body = handle_of(body)
        job = session.running.get(handle)
        if job is None:
            self._error(session, b"JOB_NOT_FOUND", _NOT_FOUND[kind])
        else:
            self._relay(job, kind, body)

    def _work_status(self, session: Session, kind: int, body: Body) -> None:
        handle, body = handle_of(body)
        job = session.running.get(handle)
        if job is None:
            self._error(session, b"JOB_NOT_FOUND", _NOT_FOUND[kind])
            return
        fields = bytes(body).split(b"\0", 2)
        if len(fields) == 2:  # Perl's send_work_status leaves the denominator out
            fields.append(b"")
            body = bytes(body) + b"\0"
        job.progress = fields[1], fields[2]
        self._relay(job, kind, body)

    def _work_complete(self, session: Session, kind: int, body: Body) -> None:
        handle, body = handle_of(body)
        job = session.running.pop(handle, None)
        if job is None:
            self._error(session, b"JOB_NOT_FOUND", _NOT_FOUND[kind])
        else:
            self._relay(job, kind, body)
            self._end(job)

    def _work_fail(self, session: Session, kind: int, body: Body) -> None:
        job = session.running.pop(name_in(body), None)
        if job is None:
            self._error(session, b"JOB_NOT_FOUND", _NOT_FOUND[kind])
        else:
            self._relay(job, kind, job.handle)
            self._end(job)

    def _work_exception(self, session: Session, kind: int, body: Body) -> None:
        handle, body = handle_of(body)
        job = session.running.pop(handle, None)
        if job is None:
            self._error(session, b"JOB_NOT_FOUND", _NOT_FOUND[kind])
            return
        clients = job.clients
        job.clients = tuple(client for client in clients if client.exceptions)
        self._relay(job, kind, body)
        job.clients = tuple(client for client in clients if not client.exceptions)
        self._relay(job, _WORK_FAIL, handle)
        job.clients = clients
        self._end(job)

    def _relay(self, job: Job, kind: int, body: Body) -> None:
        """Send a packet about a job to each client that is attached to it."""
        size = len(body)
        head = HEADER.pack(RES, kind, size)
        packet = [head + body] if size < LARGE else [head, body]
        for client in job.clients:
            outbox = client.outbox
            if not outbox:
                self.dirty.append(client)
            outbox += packet

    def _end(self, job: Job) -> None:
        """A running job has ended, and its clients have been told."""
        if job.deadline:
            self._deadlines.disarm(job)
        job.function.running -= 1
        for client in job.clients:
            client.attached.pop(job, None)
        job.clients = ()
        self._forget(job)

    def _oversized(self, session: Session, kind: int, first: bytes, size: int) -> None:
        """A body over the limit is being thrown away: its sender is told, and a job it is about fails."""
        handle = first.partition(b"\0")[0]
        job = session.running.pop(handle, None) if kind in _RESULTS else None
        if job is not None:
            self._relay(job, _WORK_FAIL, handle)
            self._end(job)
        what = b"the result of %b" % handle if job else b"a packet of type %d" % kind
        self.notices.append(Notice(f"refused a body of {size} bytes, which is over the limit", session, what))
        self._error(
            session,
            b"ARGUMENT_TOO_LARGE",
            b"a body of %d bytes is over the limit of %d" % (size, self._limits.body),
        )

    # ------------------------------------------------------------------------------ status and options

    def _get_status(self, session: Session, kind: int, body: Body) -> None:
        handle = name_in(body)
        self._respond(session, PacketType.STATUS_RES, handle, *_status(self.jobs.get(handle)))

    def _get_status_unique(self, session: Session, kind: int, body: Body) -> None:
        unique = name_in(body)
        found = [f.uniques[unique] for f in self.functions.values() if unique in f.uniques]
        # With one unique in several functions the newest job is meant, as in gearmand.
        job = max(found, key=lambda job: (len(job.handle), job.handle), default=None)
        clients = b"%d" % (len(job.clients) if job else 0)
        self._respond(session, PacketType.STATUS_RES_UNIQUE, unique, *_status(job), clients)

    def _echo(self, session: Session, kind: int, body: Body) -> None:
        self._send(session, HEADER.pack(RES, PacketType.ECHO_RES, len(body)))
        session.outbox.append(body)

    def _option(self, session: Session, kind: int, body: Body) -> None:
        option = bytes(body)
        if option.lower() not in _OPTIONS:
            self._error(session, b"UNKNOWN_OPTION", b"Server does not recognize given option")
            return
        if option.lower() == b"exceptions":
            session.exceptions = True
        self._respond(session, PacketType.OPTION_RES, option)

    def _set_client_id(self, session: Session, kind: int, body: Body) -> None:
        session.client_id = name_in(body)[:MAX_CLIENT_ID]

    # ----------------------------------------------------------------------------------- what comes out

    def _respond(self, session: Session, kind: PacketType, *fields: bytes) -> None:
        body = b"\0".join(fields)
        self._send(session, HEADER.pack(RES, kind, len(body)) + body)

    def _error(self, session: Session, code: bytes, text: bytes) -> None:
        self._respond(session, PacketType.ERROR, code, text)

    def _text(self, session: Session, line: bytes) -> None:
        self._send(session, self._answer_text(line))

    def _send(self, session: Session, packet: bytes) -> None:
        outbox = session.outbox
        if not outbox:
            self.dirty.append(session)
        outbox.append(packet)


def _payload_key(workload: Body) -> bytes:
    """The unique key of a workload that coalesces with its equals; no real unique contains a NUL."""
    return b"-\0" + blake2b(workload, digest_size=32).digest() if len(workload) else b""


def _status(job: Job | None) -> tuple[bytes, bytes, bytes, bytes]:
    if job is None:
        return b"0", b"0", b"0", b"0"
    running = b"1" if job.state is _RUNNING else b"0"
    numerator, denominator = (b"%d" % (integer(number) & 0xFFFF_FFFF) for number in job.progress)
    return b"1", running, numerator, denominator
