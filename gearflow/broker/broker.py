"""The broker: bytes of a connection in, packets for all connections out.

Theory of operation. The shell gives the broker what a connection received (``receive``), when one went
away (``disconnected``) and what time it is (``now`` with each call, ``tick`` when ``next_due`` has come).
The broker changes its state and appends encoded packets to the outboxes of the sessions concerned;
sessions that got something are in ``dirty``, and what operators should know is in ``notices``; the shell
drains both. Nothing else leaves the broker.

This is the hot path of the server, so packets are not built as objects: ``intake`` scans the bytes in
place, a body is split once, and what is relayed is relayed as it came.

Two steps to a queue. A submission makes a job (``place``); with a durable store it then waits, and is
queued and answered when the shell has had what is in ``journal`` written. Answers are matched by their
order alone, so a session with a submission at the store goes on with background submissions only; its
other packets wait (``resumable`` tells when they need not any more). Other sessions never wait.

Source: gearman-protocol, sections 3 to 9.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from typing import Final, NamedTuple

from gearflow.broker import serialization
from gearflow.broker.auth import Authenticator
from gearflow.broker.calls import ServerCalls
from gearflow.broker.dispatch import Grabs, Waking
from gearflow.broker.functions import FunctionQueue
from gearflow.broker.job import HIGH, LOW, NO_PROGRESS, NORMAL, Extras, JobState, QueuedJob
from gearflow.broker.journal import Entry
from gearflow.broker.limits import Refused, SizeLimits
from gearflow.broker.parser import (
    Body,
    Handler,
    PacketParser,
    Partial,
    compact,
    handle_of,
    integer,
    name_in,
    split,
)
from gearflow.broker.session import LARGE, WHOLE, Session
from gearflow.broker.storage import (
    Change,
    Contents,
    Forgotten,
    JobRecord,
    Outcome,
    Paused,
    Rescheduled,
    Reserved,
    Store,
    StoredJob,
)
from gearflow.broker.timers import JobTimeouts, TimerQueue
from gearflow.errors import RemoteProtocolError, StoreError
from gearflow.protocol import envelope, server_calls
from gearflow.protocol.constants import HEADER, MAX_ARGUMENT, MAX_BODY, MAX_CLIENT_ID, RES, PacketType

MANY_FUNCTIONS: Final = 10_000
"""Names of functions that are remembered although nobody uses them; from then on those are forgotten."""

NUMBERS: Final = 1_000_000
"""Numbers that are reserved at a time: so many handles may be skipped at a restart."""

INLINE: Final = 1024
"""Bytes of a kept job's workload up to which it stays in memory while the job waits."""

WARNINGS: Final = 100
"""Warnings of a job that are kept: the last ones."""

_NOOP: Final = HEADER.pack(RES, PacketType.NOOP, 0)
_NO_JOB: Final = HEADER.pack(RES, PacketType.NO_JOB, 0)

_CREATED: Final = [HEADER.pack(RES, PacketType.JOB_CREATED, size) for size in range(256)]
"""The header of JOB_CREATED by the length of the handle."""

_JOB_ASSIGN: Final = int(PacketType.JOB_ASSIGN)
_JOB_ASSIGN_UNIQ: Final = int(PacketType.JOB_ASSIGN_UNIQ)
_JOB_ASSIGN_ALL: Final = int(PacketType.JOB_ASSIGN_ALL)
_GRAB_JOB: Final = int(PacketType.GRAB_JOB)
_GRAB_JOB_ALL: Final = int(PacketType.GRAB_JOB_ALL)
_WORK_COMPLETE: Final = int(PacketType.WORK_COMPLETE)
_WORK_FAIL: Final = int(PacketType.WORK_FAIL)
_WORK_EXCEPTION: Final = int(PacketType.WORK_EXCEPTION)
_WORK_WARNING: Final = int(PacketType.WORK_WARNING)

_STORING: Final = JobState.STORING
_DELAYED: Final = JobState.DELAYED
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

_BACKGROUND: Final = frozenset(
    {
        PacketType.SUBMIT_JOB_BG,
        PacketType.SUBMIT_JOB_HIGH_BG,
        PacketType.SUBMIT_JOB_LOW_BG,
        PacketType.SUBMIT_JOB_EPOCH,
        PacketType.SUBMIT_REDUCE_JOB_BACKGROUND,
    }
)

_NEARLY_TOO_LARGE: Final = MAX_BODY - 2 * MAX_ARGUMENT

_RESULTS: Final = frozenset({PacketType.WORK_COMPLETE, PacketType.WORK_EXCEPTION, PacketType.WORK_DATA})

_OPTIONS: Final = frozenset({b"exceptions", b"gearflow"})

AnswerText = Callable[[bytes], bytes]


_ENDS: Final[dict[Outcome, int]] = {Outcome.COMPLETED: _WORK_COMPLETE, Outcome.RAISED: _WORK_EXCEPTION}
"""The packet that tells how a job ended; the others are WORK_FAIL, or the server's own exception."""


class Notice(NamedTuple):
    """Something that operators should read in the log: a limit was met."""

    text: str
    session: Session | None
    subject: bytes


class Broker:
    """All jobs, functions and sessions of one server. Owns state; single-threaded.

    ``handle_prefix`` begins every job's handle. ``answer_text`` answers a line of the text protocol, which
    asks for facts of the shell's. Times are float seconds of a monotonic clock; ``clock_offset``, kept by
    the shell, is what that clock lacks to Unix time. Without a ``store`` nothing is kept of a job that has
    ended. With a ``token`` only connections that say it are served.
    """

    def __init__(
        self,
        handle_prefix: bytes,
        answer_text: AnswerText,
        limits: SizeLimits = SizeLimits(),  # noqa: B008  (frozen)
        store: Store | None = None,
        token: bytes | None = None,
    ) -> None:
        self.sessions: dict[Session, None] = {}
        self.functions: dict[bytes, FunctionQueue] = {}
        self.jobs: dict[int, QueuedJob] = {}  # by number
        self.dirty: list[Session] = []
        self.journal: list[Entry] = []
        self.pressing = False  # somebody waits for what is in the journal
        self.unkept: Sequence[Entry] = ()  # a group of which something is not kept, while it is told
        self.resumable: dict[Session, None] = {}
        self.notices: list[Notice] = []
        self.clock_offset = 0.0
        self.limits = limits
        self.store = store
        self.now = 0.0
        self.version = ""
        self._durable = store is not None and store.durable
        self._handle_prefix = handle_prefix
        self._store_name = handle_prefix[handle_prefix.rfind(b"-") + 1 :].removesuffix(b":")
        self._answer_text = answer_text
        self._submitted = 0
        self._reserved = 0 if self._durable else 1 << 62  # numbers below it may be given
        self._reserve_at = self._reserved  # when to reserve more
        self._has_asked = False  # the store is being asked for more
        self._turns = 0
        self._many_functions = MANY_FUNCTIONS
        self.agenda = TimerQueue()
        self._deadlines = JobTimeouts()
        self._waking = Waking(self._call)
        self._grabs = Grabs()
        self.unanswered = self._grabs.waiting  # the shell asks ``next_due`` while there are any
        self._queued_bytes = 0
        self._overdue_entries: list[Entry] = []  # which could not be written
        self.store_fault = ""  # why a job could not be kept
        self._reserved_functions = ServerCalls(self)
        self._intake = PacketParser(
            self._handlers(), _BACKGROUND, self._text, self._error, self._oversized, limits
        )
        self._door = Authenticator(token, self._option_of_stranger, self._admit, self.send)
        self.strangers: Mapping[Session, bytes] = self._door.strangers  # that have not said the token

    # ------------------------------------------------------------------------ what the shell calls

    def connected(self, fd: int, address: str) -> Session:
        """A connection was accepted; ``fd`` and ``address`` are for the listing ``workers``."""
        session = Session(fd, address)
        self.sessions[session] = None
        self._door.knock(session)
        return session

    def receive(self, session: Session, data: bytes, now: float) -> None:
        """Handle the packets and text lines that ``data`` completes, in order.

        Raises:
            RemoteProtocolError: These bytes are not Gearman's. What came before them was handled; the
                connection is to be closed (after its outbox is written).
            Unauthorized: They are, but the token has to be said first. As above.
        """
        self.now = now
        if self.strangers and session in self.strangers:
            self._door.receive(session, data)
        else:
            self._intake.receive(session, data, now)

    def receive_large(self, session: Session, count: int, now: float) -> None:
        """Another ``count`` bytes have come into the partial packet's ``room()``. Raises as ``receive``."""
        self.now = now
        self._intake.receive_large(session, count)

    def resume(self, session: Session, now: float) -> None:
        """Handle what the session sent while it had submissions at the store. Raises as ``receive``."""
        self.now = now
        self._intake.resume(session, now)

    @property
    def stalled(self) -> Mapping[Session, list[bytes]]:
        """What sessions have sent that waits until their submissions are kept: do not read more of them."""
        return self._intake.stalled

    @property
    def partials(self) -> Mapping[Session, Partial]:
        """What sessions have sent of packets that have not come whole."""
        return self._intake.partials

    def overdue(self, now: float) -> list[Session]:
        """The sessions in the middle of a packet that takes too long to come; they are to be closed."""
        return self._intake.overdue(now)

    def disconnected(self, session: Session, now: float) -> None:
        """The connection is gone: its jobs go to others, and jobs that only it wanted end."""
        self.now = now
        del self.sessions[session]
        if session in self.unanswered:
            self._grabs.pop(session)
        self._forget_abilities(session)
        for job in reversed(session.running.values()):
            self._died(job, session)
        session.running.clear()
        for job in session.attached:
            job.clients = tuple(client for client in job.clients if client is not session)
            self.end_if_unwanted(job)
        session.attached.clear()
        for job in session.watched:
            extras = job.more()
            extras.watchers = [watcher for watcher in extras.watchers if watcher[0] is not session]
        session.watched.clear()
        session.outbox.clear()
        self._intake.forget(session)
        self._door.forget(session)

    def tick(self, now: float) -> None:
        """Time has passed: queue what is due, take overdue jobs from their workers, wake where none came."""
        self.now = now
        for do in self.agenda.due(now + self.clock_offset):
            do()
        for job, worker in self._deadlines.expired(now):
            del worker.running[self.handle(job)]
            self.requeue(job)
        self._waking.tick(now)
        for session in self._grabs.overdue(now):
            self._answer_grab(session)

    def next_due(self) -> float | None:
        """When ``tick`` is to be called next, if nothing else happens."""
        due = self._waking.next_due()
        overdue = self._deadlines.next_due()
        if overdue is not None and (due is None or overdue < due):
            due = overdue
        overdue = self._grabs.next_due()
        if overdue is not None and (due is None or overdue < due):
            due = overdue
        epoch = self.agenda.next_due()
        if epoch is not None:
            epoch -= self.clock_offset
            due = epoch if due is None or epoch < due else due
        return due

    def restore(self, contents: Contents) -> int:
        """Take over what a store holds, before anything else happens; the number of jobs.

        Raises:
            StoreError: It cannot be read.
        """
        self._submitted = contents.reserved - 1
        if self._durable:
            self._reserved = self._reserve_at = contents.reserved
            self._ask_for_numbers(contents.reserved)
        for name in contents.paused:
            self.pause(name, True)
        for stored in contents.jobs:
            self.revive(stored)
        return len(self.jobs)

    def take_overdue(self) -> list[Entry]:
        """What could not be written and has to be, to try it again."""
        overdue, self._overdue_entries = self._overdue_entries, []
        return overdue

    def put_back(self, entries: Sequence[Entry]) -> None:
        """These could not be written again."""
        self._overdue_entries[:0] = entries

    def is_ending(self, number: int | None, function: bytes, unique: bytes) -> bool:
        """Whether what became of a job is in the journal, so that the store will know soon."""
        return any(_find_end(entries, number, function, unique) for entries in (self.journal, self.unkept))

    def unwritten(self, number: int | None, function: bytes, unique: bytes) -> JobRecord | None:
        """What became of a job, where the store could not be told yet."""
        end = _find_end(self._overdue_entries, number, function, unique)
        return end if isinstance(end, JobRecord) else None

    def is_overdue(self, numbers: Collection[int]) -> bool:
        """Whether what became of one of these jobs could not be written yet."""
        return any(
            change.number in numbers
            for change, _ in self._overdue_entries
            if isinstance(change, (JobRecord, Forgotten))
        )

    @property
    def behind(self) -> bool:
        """Whether something could not be written that has to be."""
        return bool(self._overdue_entries)

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
        job = self.find(handle)
        if job is None or job.state is _STORING or job.cancelled:
            return False
        self.relay(job.clients, _WORK_FAIL, handle)
        self._cancel(job)
        return True

    def pause(self, name: bytes, paused: bool) -> int:
        """Give out no job of a function until it goes on; the number of its jobs that wait."""
        function = self.functions.get(name) or self.new_function(name)
        if paused:
            function.pause()
        elif function.paused:
            function.go_on()
            while function.waiting and function.grabbers:
                self._give_to_grabber(function)
            for _ in range(min(function.waiting - function.wakes, len(function.sleepers))):
                self._waking.wake(function, self.now)
        return function.waiting + function.parked

    def paused(self) -> Paused:
        """Which functions are paused, as the store is to know it."""
        return Paused(tuple(function.name for function in self.functions.values() if function.paused))

    def create(self, name: bytes) -> None:
        """Make a function known."""
        if name not in self.functions and not name.startswith(server_calls.PREFIX):
            self.new_function(name)

    def drop(self, name: bytes) -> bool:
        """Forget a function. False if it has workers or jobs. Raises KeyError if it is not known."""
        function = self.functions[name]
        if function.workers or function.total:
            return False
        del self.functions[name]
        if function.paused and self.store is not None:
            self.journal.append((self.paused(), None))
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

    def _submit(self, session: Session, kind: int, body: Body) -> bool:
        (name, unique), workload = split(body, 2, kind)
        priority, background = _SUBMISSIONS[kind]
        return self._accept(session, name, unique, workload, priority, background, None)

    def _submit_reduce(self, session: Session, kind: int, body: Body) -> bool:
        (name, unique, reducer, _), workload = split(body, 4, kind)
        background = kind == PacketType.SUBMIT_REDUCE_JOB_BACKGROUND
        if len(reducer) > self.limits.unique:
            refused = Refused(b"ARGUMENT_TOO_LARGE", b"Unique value too large")
            return self.answer(session, None, background, refused)
        extras = Extras()
        extras.reducer = reducer
        return self._accept(session, name, unique, workload, NORMAL, background, extras)

    def _submit_epoch(self, session: Session, kind: int, body: Body) -> bool:
        (name, unique, epoch), workload = split(body, 3, kind)
        extras = Extras()
        extras.due = float(integer(epoch))
        return self._accept(session, name, unique, workload, NORMAL, True, extras)

    def _accept(
        self,
        session: Session,
        name: bytes,
        unique: bytes,
        workload: Body,
        priority: int,
        background: bool,
        extras: Extras | None,
    ) -> bool:
        """A submission, whatever its packet; whether its answer has to wait for the store."""
        job: QueuedJob | None = None
        refused: Refused | None = None
        try:
            function = self.functions.get(name)
            if function is None:
                if name.startswith(server_calls.PREFIX) and not background:
                    return self._reserved_functions.call(session, name, workload)
                function = self.new_function(name)
            client = None if background else session
            job = self.place(function, unique, workload, priority, background, extras, client)
        except Refused as error:
            refused = error
        # What most submissions are: nothing of it waits for the store.
        plain = not self._durable or not (background or (job is not None and job.state is _STORING))
        if job is not None and plain and not session.storing:
            self._created(session, job)
            return False
        return self.answer(session, job, background, refused)

    def answer(
        self,
        session: Session,
        job: QueuedJob | None,
        background: bool = False,
        refused: Refused | None = None,
    ) -> bool:
        """Answer a submission with its job, or its refusal; whether that has to wait for the store."""
        if session.storing or (job is not None and self.is_storing(job, background)):
            session.storing += 1
            durably = background or (job is not None and job.state is _STORING)
            self.keep(None, partial(self._answer, session, job, durably, refused))
            return True
        if job is not None:
            self._created(session, job)
        elif refused is not None:
            self._error(session, refused.code, refused.text)
        return False

    def is_storing(self, job: QueuedJob, background: bool) -> bool:
        """Whether a submission that made the job, or joined it, can be answered only when it is kept."""
        return self._durable and (not job.kept if background else job.state is _STORING)

    def place(
        self,
        function: FunctionQueue,
        unique: bytes,
        workload: Body,
        priority: int,
        background: bool,
        extras: Extras | None,
        client: Session | None,
    ) -> QueuedJob:
        """Join the live job of the unique, or make a new one; the caller answers.

        Raises:
            Refused: The job is more than the server takes.
        """
        key = b""
        limits = self.limits
        if unique:
            if len(unique) > limits.unique:
                raise Refused(b"ARGUMENT_TOO_LARGE", b"Unique value too large")
            key = unique if unique != b"-" else _payload_key(workload)
            job = function.uniques.get(key)
            if job is not None:
                self._join(job, background, extras, client)
                return job
        if function.limits is not None and function.full(priority):
            raise Refused(b"QUEUE_ERROR", b"Job queue is full")
        size = len(workload)
        if limits.queued is not None and self._queued_bytes + size > limits.queued:
            self.notices.append(
                Notice("refused a job: as many bytes are queued as may be", client, function.name)
            )
            raise Refused(b"QUEUE_ERROR", b"Job queue is full: the server holds all the bytes it may")
        if size >= _NEARLY_TOO_LARGE and size + len(self._handle_prefix) + len(function.name) + 24 > MAX_BODY:
            raise Refused(b"ARGUMENT_TOO_LARGE", b"with its handle the job would not fit into a packet")
        number = self._submitted + 1
        if number >= self._reserve_at:
            self._reserve(number)
        self._submitted = number
        self._queued_bytes += size
        job = QueuedJob(number, function, unique, key, workload, priority, background, self.now, extras)
        self.jobs[number] = job
        if key:
            function.uniques[key] = job
        if client is not None:
            job.clients = (client,)
            client.attached[job] = None
        if background and self._durable:
            job.state = _STORING
            function.storing += 1
            change = serialization.stored_job(job, self.clock_offset)
            self.keep(change, partial(self._stored, job))
        elif extras is None:
            self._queue(job)
        else:
            self._begin(job, extras)
        return job

    def _join(self, job: QueuedJob, background: bool, extras: Extras | None, client: Session | None) -> None:
        """A submission coalesces on a live job; from now on the job is wanted by this client too."""
        if client is not None:
            job.clients += (client,)
            client.attached[job] = None
        if background and not job.background:
            job.background = True
            if self._durable and not job.kept:
                change = serialization.stored_job(job, self.clock_offset)
                self.keep(change, partial(self._stored, job))
        if extras is not None and extras.keep is not None:
            more = job.more()
            more.keep = max(extras.keep, more.keep or 0.0)

    def _stored(self, job: QueuedJob, error: str | None) -> None:
        """The second step of a submission: the job is safe where it is kept, so it counts from now on."""
        function = job.function
        if error is None:
            job.kept = job.state is not _OVER and not job.cancelled  # else it has ended since
            if job.unstored:
                job.more().unstored = False
            if job.state is _STORING:
                function.storing -= 1
                job.state = _WAITING
                if job.size > INLINE and not (function.sleepers or function.grabbers):
                    job.workload = job.size
                if job.extras is None:
                    self._queue(job)
                else:
                    self._begin(job, job.extras)
            return
        self.store_fault = error
        job.more().unstored = True
        job.background = False
        if job.state is _STORING:
            function.storing -= 1
            self._detach_all(job)
            self._forget(job)
        elif job.state is not _OVER:
            self.end_if_unwanted(job)

    def _answer(
        self,
        session: Session,
        job: QueuedJob | None,
        durably: bool,
        refused: Refused | None,
        error: str | None,
    ) -> None:
        """Answer a submission that waited for the store, or for answers before it.

        ``durably``: the job had to be stored first.
        """
        self.go_on(session)
        if refused is not None:
            self._error(session, refused.code, refused.text)
        elif job is not None and error is None and not (durably and job.unstored):
            self._created(session, job)
        else:
            fault = (error or self.store_fault).encode(errors="replace")
            self._error(session, b"QUEUE_ERROR", b"the job could not be stored: " + fault)

    def go_on(self, session: Session) -> None:
        """An answer does not wait any more."""
        session.storing -= 1
        if not session.storing and session in self._intake.stalled:
            self.resumable[session] = None

    def keep(self, change: Change | None, done: Callable[[str | None], None]) -> None:
        """Have something kept that somebody waits for: ``done`` is called then."""
        self.journal.append((change, done))
        self.pressing = True

    def _begin(self, job: QueuedJob, extras: Extras) -> None:
        """A job begins to wait: for a worker, or for its time."""
        if extras.expires:
            self.agenda.add(extras.expires, partial(self._expire, job), partial(_may_expire, job))
        if extras.due > self.now + self.clock_offset:
            self._delay(job, extras)
        else:
            self._queue(job)

    def revive(self, stored: StoredJob) -> None:
        """A job that the store has: it waits as it did."""
        function = self.functions.get(stored.function) or self.new_function(stored.function)
        unique = stored.unique
        key = self.unique_key_of(stored)
        if key in function.uniques:
            key = b""
        submitted = stored.submitted - self.clock_offset
        workload, number = stored.workload, stored.number
        extras = serialization.extras_of(stored)
        if extras is not None and (extras.attempt or extras.deaths):
            extras.expires = 0.0  # it has started before
        job = QueuedJob(number, function, unique, key, workload, stored.priority, True, submitted, extras)
        job.kept = True
        self._queued_bytes += job.size
        self.jobs[number] = job
        if key:
            function.uniques[key] = job
        if extras is None:
            self._queue(job)
        else:
            self._begin(job, extras)

    def unique_key_of(self, stored: StoredJob) -> bytes:
        """Under which others join it while it is live; empty if none do."""
        if stored.unique != b"-":
            return stored.unique
        workload = stored.workload
        if isinstance(workload, int) and self.store is not None:
            whole = self.store.job(stored.number)
            workload = whole.workload if whole is not None else workload
        return _payload_key(workload) if not isinstance(workload, int) else b""

    def new_number(self) -> int:
        """A number that no job had before.

        Raises:
            Refused: None can be had: the store cannot be written.
        """
        number = self._submitted + 1
        if number >= self._reserve_at:
            self._reserve(number)
        self._submitted = number
        return number

    def _reserve(self, number: int) -> None:
        """More numbers are wanted, before this one is given. Raises as above."""
        if not self._has_asked:
            self._ask_for_numbers(number)
        if number >= self._reserved:
            raise Refused(b"QUEUE_ERROR", b"no number for the job: the store cannot be written")

    def _ask_for_numbers(self, number: int) -> None:
        self._has_asked = True
        self._reserve_at = self._reserved
        below = number + NUMBERS
        self.keep(Reserved(below), partial(self._have_reserved, below))

    def _have_reserved(self, below: int, error: str | None) -> None:
        if error is None:
            self._has_asked = False
            self._reserved = below
            self._reserve_at = below - NUMBERS // 2
        else:
            self._overdue_entries.append((Reserved(below), partial(self._have_reserved, below)))

    def handle(self, job: QueuedJob) -> bytes:
        """What the protocol calls a job."""
        return self.handle_of_number(job.number)

    def handle_of_number(self, number: int) -> bytes:
        """The handle that a job of that number has, or had."""
        return b"%b%d" % (self._handle_prefix, number)

    def number_of(self, handle: bytes) -> int | None:
        """The number in a handle of this store's, or None; the host may have had another name."""
        head, _, digits = handle.rpartition(b":")
        if head.endswith(self._store_name) and digits.isdigit() and len(digits) < 20 and digits[:1] != b"0":
            return int(digits)
        return None

    def find(self, handle: bytes) -> QueuedJob | None:
        """The job of that handle, if it is not over."""
        number = self.number_of(handle)
        return self.jobs.get(number) if number is not None else None

    def _created(self, session: Session, job: QueuedJob) -> None:
        if session in self.unanswered:
            self._answer_grab(session)
        handle = b"%b%d" % (self._handle_prefix, job.number)
        outbox = session.outbox
        if not outbox:
            self.dirty.append(session)
        outbox.append(_CREATED[len(handle)] + handle)

    def new_function(self, name: bytes) -> FunctionQueue:
        """Make a function known that is not."""
        if name.startswith(server_calls.PREFIX):
            raise Refused(b"INVALID_FUNCTION_NAME", b"a reserved function is for foreground submissions")
        if len(name) > self.limits.function:
            limit = self.limits.function
            raise RemoteProtocolError(f"a function name of {len(name)} bytes is over the limit of {limit}")
        if len(self.functions) >= self._many_functions:
            self.functions = {name: function for name, function in self.functions.items() if function.in_use}
            self._many_functions = max(MANY_FUNCTIONS, 2 * len(self.functions))
        function = self.functions[name] = FunctionQueue(name)
        return function

    # ------------------------------------------------------------------------------ queues and workers

    def _queue(self, job: QueuedJob) -> None:
        """Put a WAITING job in its lane, and wake somebody for it."""
        function = job.function
        function.lanes[job.priority].append(job)
        if function.paused:
            function.parked += 1
            return
        function.waiting += 1
        if function.grabbers:
            self._give_to_grabber(function)
        elif function.sleepers:
            self._waking.wake(function, self.now)

    def _call(self, session: Session) -> None:
        """Tell a sleeper that there is a job."""
        self._grabs.called(session, self.now)
        self.send(session, _NOOP)

    def _delay(self, job: QueuedJob, extras: Extras) -> None:
        """The job waits for its time."""
        job.state = _DELAYED
        job.function.delayed += 1
        self.agenda.add(extras.due, partial(self._fall_due, job), partial(_is_delayed, job, extras.due))

    def _fall_due(self, job: QueuedJob) -> None:
        job.function.delayed -= 1
        job.state = _WAITING
        self._queue(job)

    def _expire(self, job: QueuedJob) -> None:
        """Its time is over, and it has not started: it ends."""
        body = serialization.failure("Expired", "it had not started when its time was over")
        self._fail(job, Outcome.EXPIRED, body, None)

    def requeue(self, job: QueuedJob, due: float = 0.0) -> None:
        """A job comes back from a worker that will not finish it; its progress is void."""
        extras = job.extras
        if extras is not None:
            if extras.deadline:
                self._deadlines.disarm(job)
            extras.progress = NO_PROGRESS
        job.function.running -= 1
        job.state = _WAITING
        if not job.wanted:
            self._record(job, Outcome.CANCELLED, b"", None)
            self._forget(job)
        elif due > self.now + self.clock_offset:
            job.more().due = due
            self._delay(job, job.more())
        else:
            self._queue(job)

    def reschedule(self, job: QueuedJob) -> None:
        """Have the store know how often a job was tried, and when it is to be tried again."""
        if job.kept:
            extras = job.more()
            change = Rescheduled(job.number, extras.due, extras.attempt, extras.deaths)
            self.journal.append((change, None))

    def _died(self, job: QueuedJob, worker: Session) -> None:
        """The worker went away in the middle of the job: another gets it, if not too many did."""
        extras = job.more()
        extras.deaths += 1
        most = self.limits.deaths
        if most is not None and extras.deaths >= most and job.wanted:
            text = f"{extras.deaths} workers went away in the middle of it; the last was "
            body = serialization.failure(
                "WorkersDied", text + serialization.name_of(worker).decode(errors="replace")
            )
            self._fail(job, Outcome.WORKERS_DIED, body, worker)
            return
        self.reschedule(job)
        self.requeue(job)

    def _fail(self, job: QueuedJob, outcome: Outcome, exception: bytes, worker: Session | None) -> None:
        """The server itself ends a job."""
        handle = self.handle(job)
        self._finish(job, worker, outcome, _WORK_EXCEPTION, handle, b"%b\0%b" % (handle, exception))

    def detach(self, session: Session, handle: bytes) -> bool:
        """A client that is attached to a job wants it no more. False if it is not attached.

        If it is attached several times, one of them ends.
        """
        job = self.find(handle)
        if job is None or session not in job.clients:
            return False
        clients = list(job.clients)
        clients.remove(session)
        job.clients = tuple(clients)
        if session not in clients:
            del session.attached[job]
        self.end_if_unwanted(job)
        return True

    def end_if_unwanted(self, job: QueuedJob) -> None:
        """A job that nobody wants ends, unless it runs where nobody can be told.

        Such a run goes on, and whoever joins it has its result.
        """
        if job.wanted:
            return
        if job.state is _RUNNING and not (job.worker is not None and job.worker.events):
            return
        self._cancel(job)

    def _cancel(self, job: QueuedJob) -> None:
        """End a job of which nobody is to hear any more; one that runs, by telling its worker."""
        self._record(job, Outcome.CANCELLED, b"", None)
        job.kept = False
        if job.extras is not None:
            job.extras.keep = None
        self._detach_all(job)
        job.background = False
        if job.state is not _RUNNING:
            self._abandon(job)
            return
        job.more().cancelled = True
        if job.unique_key:
            del job.function.uniques[job.unique_key]
            job.unique_key = b""
        worker = job.worker
        if worker is not None and worker.events:
            event = server_calls.cancel_event(self.handle(job))
            self.respond(worker, PacketType.WORK_DATA, worker.events, event)

    def _abandon(self, job: QueuedJob) -> None:
        """A delayed or waiting job is not to run: its place and its memory are free at once."""
        if job.state is _DELAYED:
            job.function.delayed -= 1
            job.state = _OVER
        else:
            job.state = _OVER
            job.function.forget(job)
        self._forget(job)

    def _forget(self, job: QueuedJob) -> None:
        """A job is over: its handle and its unique are free."""
        job.state = _OVER
        workload = job.workload
        self._queued_bytes -= workload if isinstance(workload, int) else len(workload)
        job.workload = b""
        del self.jobs[job.number]
        if job.unique_key:
            del job.function.uniques[job.unique_key]

    def _detach_all(self, job: QueuedJob) -> None:
        """Nobody hears of the job any more."""
        for client in job.clients:
            client.attached.pop(job, None)
        job.clients = ()

    def _can_do(self, session: Session, kind: int, body: Body) -> None:
        self._offer(session, name_in(body), 0.0)

    def _can_do_timeout(self, session: Session, kind: int, body: Body) -> None:
        (name,), milliseconds = split(body, 1, kind)
        self._offer(session, name, max(integer(bytes(milliseconds)), 0) / 1000)

    def _offer(self, session: Session, name: bytes, timeout: float) -> None:
        """A worker offers a function; the last word on its time limit (seconds, 0: none) counts."""
        self._answer_grab(session)
        if name.startswith(server_calls.PREFIX):
            self._error(session, b"INVALID_FUNCTION_NAME", b"the server answers reserved functions itself")
            return
        function = self.functions.get(name) or self.new_function(name)
        if function not in session.abilities:
            function.workers += 1
            if session.asleep:
                function.sleepers[session] = None
        session.abilities[function] = timeout
        if session.asleep and function.waiting > function.wakes:
            self._waking.wake(function, self.now)

    def _cant_do(self, session: Session, kind: int, body: Body) -> None:
        self._answer_grab(session)
        function = self.functions.get(name_in(body))
        if function is not None and function in session.abilities:
            del session.abilities[function]
            function.workers -= 1
            function.sleepers.pop(session, None)
            if session in self._waking.pending:
                self._waking.answered(session, self.now)

    def _reset_abilities(self, session: Session, kind: int, body: Body) -> None:
        self._answer_grab(session)
        self._forget_abilities(session)

    def _forget_abilities(self, session: Session) -> None:
        for function in session.abilities:
            function.workers -= 1
            function.sleepers.pop(session, None)
        session.abilities.clear()
        if session in self._waking.pending:
            self._waking.answered(session, self.now)

    def _pre_sleep(self, session: Session, kind: int, body: Body) -> None:
        self._answer_grab(session)
        for function in session.abilities:
            if function.waiting:
                self._call(session)
                return
        self._waking.sleep(session)
        if session in self._waking.pending:
            self._waking.answered(session, self.now)

    def _grab(self, session: Session, kind: int, body: Body) -> None:
        if session.asleep:
            self._waking.rise(session)
        self._answer_grab(session)
        if not self._give(session, kind):
            if session.expects:
                self._grabs.wait(session, kind, self.now)
            else:
                self._no_job(session)
        if session in self._waking.pending:
            self._waking.answered(session, self.now)

    def _give(self, session: Session, kind: int) -> bool:
        """Answer a GRAB with a job, if there is one."""
        job = self._next_job(session)
        while job is not None and not self._assign(session, job, kind):
            job = self._next_job(session)
        return job is not None

    def _give_to_grabber(self, function: FunctionQueue) -> None:
        """A job waits, and so does a GRAB for it."""
        session = next(iter(function.grabbers))
        if not self._give(session, self._grabs.pop(session)):
            self._no_job(session)

    def _answer_grab(self, session: Session) -> None:
        """If a GRAB of the session waits, it has waited in vain."""
        if session in self.unanswered:
            self._grabs.pop(session)
            self._no_job(session)

    def _no_job(self, session: Session) -> None:
        session.no_job_at = self.now
        self.send(session, _NO_JOB)

    def _next_job(self, session: Session) -> QueuedJob | None:
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

    def _assign(self, session: Session, job: QueuedJob, kind: int) -> bool:
        """Give a job to a worker; False if it cannot be read, and has ended."""
        function = job.function
        job.state = _RUNNING
        job.started = self.now
        function.running += 1
        workload = job.workload
        if isinstance(workload, int):
            try:
                workload = self._fetch(job)
            except StoreError as error:
                self._fail(job, Outcome.RAISED, serialization.failure("StoreError", str(error)), None)
                return False
        handle = b"%b%d" % (self._handle_prefix, job.number)
        session.running[handle] = job
        job.worker = session
        timeout = session.abilities[function]
        if timeout:
            self._deadlines.arm(job, session, self.now + timeout)
        extras = job.extras
        if kind == _GRAB_JOB:
            head, number = b"%b\0%b\0" % (handle, function.name), _JOB_ASSIGN
        elif kind == _GRAB_JOB_ALL and extras is not None and extras.reducer is not None:
            fields = (handle, function.name, job.unique, extras.reducer)
            head, number = b"%b\0%b\0%b\0%b\0" % fields, _JOB_ASSIGN_ALL
        else:
            head, number = b"%b\0%b\0%b\0" % (handle, function.name, job.unique), _JOB_ASSIGN_UNIQ
        if session.gearflow and extras is not None:
            head += envelope.header(
                attempt=extras.attempt + 1, timeout=extras.timeout, retries=extras.retries
            )
        size = len(workload)
        if len(head) + size > MAX_BODY:  # without its unique, then: the handle and the function fit
            head, number = b"%b\0%b\0" % (handle, function.name), _JOB_ASSIGN
        head = HEADER.pack(RES, number, len(head) + size) + head
        outbox = session.outbox
        if not outbox:
            self.dirty.append(session)
        if size < LARGE:
            outbox.append(head + workload)
        else:
            outbox.append(head)
            outbox.append(workload)
            session.has_large = session.has_large or size >= WHOLE
        return True

    def _fetch(self, job: QueuedJob) -> Body:
        """The workload that the store has. Raises StoreError."""
        assert self.store is not None
        stored = self.store.job(job.number)
        if stored is None or isinstance(stored.workload, int):
            raise StoreError(f"the workload of job {job.number} is gone from the store")
        return stored.workload

    # ----------------------------------------------------------------------- what workers say of jobs

    def _work_data(self, session: Session, kind: int, body: Body) -> None:
        handle, body = handle_of(body)
        job = session.running.get(handle)
        if job is None:
            self._error(session, b"JOB_NOT_FOUND", _NOT_FOUND[kind])
            return
        if kind == _WORK_WARNING and job.background and self.store is not None:
            warnings = job.more().warnings
            warnings.append(bytes(body[len(handle) + 1 : len(handle) + 1 + MAX_ARGUMENT]))
            del warnings[:-WARNINGS]
        self.relay(job.clients, kind, body)

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
        job.more().progress = fields[1], fields[2]
        self.relay(job.clients, kind, body)

    def _work_complete(self, session: Session, kind: int, body: Body) -> None:
        handle, body = handle_of(body)
        job = session.running.pop(handle, None)
        if job is None:
            self._error(session, b"JOB_NOT_FOUND", _NOT_FOUND[kind])
        elif job.background or job.extras is not None:
            self._finish(job, session, Outcome.COMPLETED, kind, handle, body)
        else:
            self.relay(job.clients, kind, body)
            self._end(job)

    def _work_fail(self, session: Session, kind: int, body: Body) -> None:
        handle = name_in(body)
        job = session.running.pop(handle, None)
        if job is None:
            self._error(session, b"JOB_NOT_FOUND", _NOT_FOUND[kind])
        else:
            self._finish(job, session, Outcome.FAILED, kind, handle, handle)

    def _work_exception(self, session: Session, kind: int, body: Body) -> None:
        handle, body = handle_of(body)
        job = session.running.pop(handle, None)
        if job is None:
            self._error(session, b"JOB_NOT_FOUND", _NOT_FOUND[kind])
        else:
            self._finish(job, session, Outcome.RAISED, kind, handle, body)

    def _finish(
        self, job: QueuedJob, worker: Session | None, outcome: Outcome, kind: int, handle: bytes, body: Body
    ) -> None:
        """A job has ended: its clients are told, and what is to be kept of it is."""
        extras, clients = job.extras, job.clients
        told: Callable[[], None] | None = None
        if clients:
            if extras is not None and extras.keep and self.store is not None:
                told = partial(self._tell_end, clients, kind, handle, body)
            else:
                self._tell_end(clients, kind, handle, body)
        self._record(job, outcome, body[len(handle) + 1 :], worker, told)
        if job.state is _RUNNING:
            self._end(job)
        else:
            self._detach_all(job)
            self._abandon(job)

    def _tell_end(self, clients: Sequence[Session], kind: int, handle: bytes, body: Body) -> None:
        """Tell clients how their job ended: an exception only to those that asked for them."""
        if kind != _WORK_EXCEPTION:
            self.relay(clients, kind, body)
            return
        self.relay([client for client in clients if client.exceptions], kind, body)
        self.relay([client for client in clients if not client.exceptions], _WORK_FAIL, handle)

    def _record(
        self,
        job: QueuedJob,
        outcome: Outcome,
        body: Body,
        worker: Session | None,
        told: Callable[[], None] | None = None,
    ) -> None:
        """Have the store know what became of a job, as far as that is kept; ``told`` is called then."""
        extras = job.extras
        watchers = extras.watchers if extras is not None else []
        change: JobRecord | Forgotten | None = None
        if self.store is not None:
            dead = job.background and outcome >= Outcome.FAILED
            keep = self.limits.keep if job.background else 0.0
            if extras is not None and extras.keep is not None:
                keep = extras.keep
            if dead or keep:
                letter = serialization.stored_job(job, self.clock_offset) if dead else None
                offset = self.clock_offset
                expires = self.now + offset + (self.limits.keep_dead if dead else keep)
                body = bytes(body) if len(body) < LARGE else compact(body)
                change = serialization.ended(job, outcome, body, worker, self.now, offset, expires, letter)
            elif self._durable and job.background:  # else it was cancelled, which is what is kept of it
                change = Forgotten(job.number, job.function.name, job.unique)
        if change is None and not watchers:
            if told is not None:
                told()
            return
        if watchers:
            job.more().watchers = []
            for session, _ in watchers:
                session.watched.pop(job, None)
            told = partial(self._reserved_functions.tell_watchers, tuple(watchers), outcome, body, told)
        if told is not None:
            self.keep(change, partial(self._recorded, change, told))
        elif self._durable:
            self.journal.append((change, partial(self._recorded, change, None)))
        else:
            self.journal.append((change, None))

    def _recorded(
        self, change: JobRecord | Forgotten | None, told: Callable[[], None] | None, error: str | None
    ) -> None:
        if error is not None and change is not None:
            if not self._overdue_entries:
                text = f"cannot record that jobs have ended ({error}); they may run again after a restart"
                self.notices.append(Notice(text, None, self.handle_of_number(change.number)))
            self._overdue_entries.append((change, partial(self._recorded, change, None)))
        if told is not None:
            told()

    def relay(self, clients: Sequence[Session], kind: int, body: Body) -> None:
        """Send a packet about a job to each client that is attached to it."""
        size = len(body)
        head = HEADER.pack(RES, kind, size)
        if size < LARGE:
            packet = head + body
            for client in clients:
                outbox = client.outbox
                if not outbox:
                    self.dirty.append(client)
                outbox.append(packet)
        else:
            for client in clients:
                self.send_in_two(client, head, body)

    def _end(self, job: QueuedJob) -> None:
        """A running job has ended, and its clients have been told."""
        if job.extras is not None and job.extras.deadline:
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
            self._finish(job, session, Outcome.FAILED, _WORK_FAIL, handle, handle)
        what = b"the result of %b" % handle if job else b"a packet of type %d" % kind
        self.notices.append(Notice(f"refused a body of {size} bytes, which is over the limit", session, what))
        self._error(
            session,
            b"ARGUMENT_TOO_LARGE",
            b"a body of %d bytes is over the limit of %d" % (size, self.limits.body),
        )

    # ------------------------------------------------------------------------------ status and options

    def _get_status(self, session: Session, kind: int, body: Body) -> None:
        handle = name_in(body)
        self.respond(session, PacketType.STATUS_RES, handle, *_status(self.find(handle)))

    def _get_status_unique(self, session: Session, kind: int, body: Body) -> None:
        unique = name_in(body)
        found = [f.uniques[unique] for f in self.functions.values() if unique in f.uniques]
        # With one unique in several functions the newest job is meant, as in gearmand.
        job = max(found, key=lambda job: job.number, default=None)
        clients = b"%d" % (len(job.clients) if job else 0)
        self.respond(session, PacketType.STATUS_RES_UNIQUE, unique, *_status(job), clients)

    def _echo(self, session: Session, kind: int, body: Body) -> None:
        self.send_in_two(session, HEADER.pack(RES, PacketType.ECHO_RES, len(body)), body)

    def _option(self, session: Session, kind: int, body: Body) -> None:
        option = bytes(body)
        if option.lower() not in _OPTIONS:
            self._error(session, b"UNKNOWN_OPTION", b"Server does not recognize given option")
            return
        if option.lower() == b"exceptions":
            session.exceptions = True
        else:
            session.gearflow = True
        self.respond(session, PacketType.OPTION_RES, option)

    def _option_of_stranger(self, session: Session, option: bytes) -> None:
        if option.lower() == b"gearflow":
            self.respond(session, PacketType.OPTION_RES, server_calls.AUTH)
        else:
            self._option(session, PacketType.OPTION_REQ, option)

    def _admit(self, session: Session, data: bytes) -> None:
        """A stranger has said the token, and maybe more behind it."""
        self._accept(session, server_calls.AUTH, b"", b"", NORMAL, False, None)
        if data:
            self._intake.receive(session, data, self.now)

    def _set_client_id(self, session: Session, kind: int, body: Body) -> None:
        session.client_id = name_in(body)[:MAX_CLIENT_ID]

    # ----------------------------------------------------------------------------------- what comes out

    def respond(self, session: Session, kind: PacketType, *fields: bytes) -> None:
        """Send a packet of a few fields."""
        body = b"\0".join(fields)
        self.send(session, HEADER.pack(RES, kind, len(body)) + body)

    def _error(self, session: Session, code: bytes, text: bytes) -> None:
        self.respond(session, PacketType.ERROR, code, text)

    def _text(self, session: Session, line: bytes) -> None:
        self.send(session, self._answer_text(line))

    def send_in_two(self, session: Session, head: bytes, body: Body) -> None:
        """Send a packet whose body is sent as it is, if it is large."""
        self.send(session, head)
        session.outbox.append(body)
        session.has_large = session.has_large or len(body) >= WHOLE

    def send(self, session: Session, packet: bytes) -> None:
        """Send bytes: an answer, in the order of what was asked."""
        if session in self.unanswered:
            self._answer_grab(session)
        outbox = session.outbox
        if not outbox:
            self.dirty.append(session)
        outbox.append(packet)


def _may_expire(job: QueuedJob) -> bool:
    """Whether a job can still end because its time is over: it has not started."""
    return job.state in (_DELAYED, _WAITING) and not job.started


def _is_delayed(job: QueuedJob, due: float) -> bool:
    """Whether a job waits for that time."""
    return job.state is _DELAYED and job.more().due == due


def _find_end(
    entries: Sequence[Entry], number: int | None, function: bytes, unique: bytes
) -> JobRecord | Forgotten | None:
    """The end of the job of that number, or of the last one of that unique, if it is there."""
    for change, _ in reversed(entries):
        if isinstance(change, (JobRecord, Forgotten)) and (
            change.number == number
            if number is not None
            else (change.function, change.unique) == (function, unique)
        ):
            return change
    return None


def _payload_key(workload: Body) -> bytes:
    """The unique key of a workload that coalesces with its equals; no real unique contains a NUL."""
    return b"-\0" + blake2b(workload, digest_size=32).digest() if len(workload) else b""


def _status(job: QueuedJob | None) -> tuple[bytes, bytes, bytes, bytes]:
    if job is None:
        return b"0", b"0", b"0", b"0"
    running = b"1" if job.state is _RUNNING else b"0"
    progress = job.extras.progress if job.extras is not None else NO_PROGRESS
    numerator, denominator = (b"%d" % (integer(number) & 0xFFFF_FFFF) for number in progress)
    return b"1", running, numerator, denominator
