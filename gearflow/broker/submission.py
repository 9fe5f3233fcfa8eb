"""How a submission becomes a job, or joins one, and how it is answered.

Two steps lead to the queue. A submission makes a job (``place``). With a durable store a background job then
waits, and is queued and answered when the shell has written the journal. Answers are matched by their order
alone, so a session with a submission at the store continues with background submissions only; its other
packets wait (``ready_to_resume`` has the sessions that may continue). Other sessions never wait.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from gearflow.broker import serialization
from gearflow.broker.core import Core
from gearflow.broker.dispatch import Dispatcher
from gearflow.broker.endings import Endings
from gearflow.broker.functions import FunctionQueue
from gearflow.broker.job import JobDetails, JobState, QueuedJob
from gearflow.broker.lifecycle import Lifecycle, hash_payload, payload_key
from gearflow.broker.limits import Rejected
from gearflow.broker.ownership import Ownership
from gearflow.broker.parser import Body
from gearflow.broker.session import Session
from gearflow.broker.storage import Done, Joined, Uncertain
from gearflow.broker.turns import Steps
from gearflow.protocol.constants import HEADER, MAX_ARGUMENT, MAX_BODY, RES, PacketType

INLINE: Final = 1024
"""Bytes up to which the workload of a kept job stays in memory while the job waits."""

_CREATED: Final = [HEADER.pack(RES, PacketType.JOB_CREATED, size) for size in range(256)]
"""The header of JOB_CREATED by the length of the handle."""

_NOT_ENDED: Final = "the end of another job of its unique is not written yet; submit it again"

_NEARLY_TOO_LARGE: Final = MAX_BODY - 2 * MAX_ARGUMENT

_STORING: Final = JobState.STORING
_WAITING: Final = JobState.WAITING
_OVER: Final = JobState.OVER


class Submissions:
    """Places submissions and answers them. Owns ``ready_to_resume``.

    ``stalled`` has the sessions that have sent more than may be handled while a submission is at the store.
    """

    def __init__(
        self,
        core: Core,
        endings: Endings,
        dispatcher: Dispatcher,
        lifecycle: Lifecycle,
        ownership: Ownership,
        stalled: Mapping[Session, object],
    ) -> None:
        self.ready_to_resume: dict[Session, None] = {}
        self._clock = core.clock
        self._jobs = core.jobs
        self._handles = core.handles
        self._journal = core.journal
        self._durable = core.journal.durable
        self._outgoing = core.outgoing
        self._limiter = core.limiter
        self._limits = core.limits
        self._turns = core.turns
        self._endings = endings
        self._dispatcher = dispatcher
        self._lifecycle = lifecycle
        self._ownership = ownership
        self._stalled = stalled

    # ------------------------------------------------------------------------------------- placing

    def place(
        self,
        function: FunctionQueue,
        unique: bytes,
        workload: Body,
        priority: int,
        background: bool,
        details: JobDetails | None,
        client: Session | None,
        known_key: bytes = b"",
        keep: Callable[[QueuedJob], None] | None = None,
    ) -> QueuedJob:
        """Join the live job of the unique, or make a new job; the caller answers.

        A large workload whose unique is ``-`` is to be hashed before (``hash_first``). If there is ``keep``,
        it has a new background job kept, and then calls ``stored``.

        An attached job whose lot this server does not own cannot become a background job, because it cannot
        be kept under its number. So it goes on by itself, and a background submission makes a new job, which
        has the unique from now on. Equal attached jobs of two servers also run at the same time.

        Raises:
            Rejected: The job is over a limit.
        """
        key = b""
        limits = self._limits
        handles = self._handles
        if unique:
            if len(unique) > limits.unique:
                raise Rejected(b"ARGUMENT_TOO_LARGE", b"Unique value too large")
            key = unique if unique != b"-" else known_key or payload_key(workload)
            job = self._jobs.find(function, key) if key in self._jobs.by_unique else None
            if job is not None and (not background or job.background or handles.owns(job.number)):
                self._join(job, background, details, client)
                return job
        if function.guarded:
            details = self._admit(function, workload, priority, details)
        size = len(workload)
        if limits.queued is not None and self._jobs.queued_bytes + size > limits.queued:
            text = "refused a job: as many bytes are queued as may be"
            self._outgoing.notify(text, client, function.name)
            raise Rejected(b"QUEUE_ERROR", b"Job queue is full: the server holds all the bytes it may")
        if size >= _NEARLY_TOO_LARGE and size + len(handles.prefix) + len(function.name) + 24 > MAX_BODY:
            raise Rejected(b"ARGUMENT_TOO_LARGE", b"with its handle the job would not fit into a packet")
        number = handles.last + 1
        if number >= handles.reserve_at:
            number = handles.reserve(number, background)
        handles.last = number
        job = QueuedJob(
            number, function, unique, key, workload, priority, background, self._clock.now, details
        )
        self._jobs.add(job)
        if client is not None:
            job.clients = (client,)
            client.attached[job] = None
        if background and (self._durable or keep is not None):
            job.state = _STORING
            function.storing += 1
            if keep is None:
                self._store(job, size)
            else:
                keep(job)
        elif details is None:
            self._dispatcher.queue(job)
        else:
            self._lifecycle.begin(job)
        return job

    def _admit(
        self, function: FunctionQueue, workload: Body, priority: int, details: JobDetails | None
    ) -> JobDetails | None:
        """The details of a job of a function that has limits, of whatever kind. Raises Rejected."""
        if function.full(priority):
            raise Rejected(b"QUEUE_ERROR", b"Job queue is full")
        return self._limiter.prepare(function, workload, details) if function.has_keys else details

    def hash_first(
        self, session: Session, workload: Body, place: Callable[[bytes], object], *, may_be_gone: bool
    ) -> None:
        """Make the unique key of a large workload in steps, then have the submission placed under it.

        Until then the session's next requests wait. If it is gone by then, only a submission that needs no
        client is placed.
        """
        self.block(session)
        self._turns.run(self._hash_first(session, workload, place, may_be_gone))

    def _hash_first(
        self, session: Session, workload: Body, place: Callable[[bytes], object], may_be_gone: bool
    ) -> Steps:
        key = yield from hash_payload(workload)
        self.unblock(session)
        if session.is_open or may_be_gone:
            place(key)

    def _join(
        self, job: QueuedJob, background: bool, details: JobDetails | None, client: Session | None
    ) -> None:
        """A submission coalesces with a live job; from now on this client is attached too."""
        job.function.counts.joined += 1
        if client is not None:
            job.attach(client)
            client.attached[job] = None
        if background and not job.background:
            job.background = True
            if self._durable and not job.kept:
                self._store(job, job.size)
        if details is not None and details.keep is not None:
            own = job.ensure_details()
            own.keep = max(details.keep, own.keep or 0.0)
        if details is not None and background:
            own = job.ensure_details()
            own.stream_keep = max(details.stream_keep, own.stream_keep)
            if own.log is not None and own.log.keep:
                own.log.keep = own.stream_keep

    def _store(self, job: QueuedJob, size: int) -> None:
        """Have a job kept."""
        change = serialization.stored_job(job, self._clock.offset)
        if size < self._journal.large:
            self._journal.keep(change, partial(self.stored, job))
        else:
            self._journal.keep_ahead(change, partial(self.stored, job))

    def stored(self, job: QueuedJob, outcome: str | Joined | None) -> None:
        """The second step: the job is kept, so it counts from now on; or it could not be kept."""
        function, details = job.function, job.details
        if outcome is not None and not (job.kept and job.state is not _OVER):
            self._not_stored(job, outcome)
            return
        job.kept = job.state is not _OVER and not job.cancelled  # else it has ended since
        if details is not None:
            details.unstored, details.joined = None, 0
        if job.state is _STORING:
            function.storing -= 1
            if job.size > INLINE and not (function.sleepers or function.waiting_grabs):
                job.workload = job.size
            self._lifecycle.begin(job)
        elif job.state is _WAITING and function.holds:
            function.hold_back(job)

    def _not_stored(self, job: QueuedJob, outcome: str | Joined) -> None:
        """The store did not keep a job, because it cannot, or because another server has one of its unique.

        In the second case clients may be attached, which had joined the job before. It goes on as an attached
        job of theirs, as it would have done without the background submission.
        """
        details = job.ensure_details()
        details.unstored, details.joined = None, 0
        if isinstance(outcome, Joined) and not self._ownership.has_ended_here(outcome.number, job):
            details.joined = outcome.number
            job.function.counts.joined += not job.clients
            self._ownership.find(outcome.number)
        else:
            fault = _NOT_ENDED if isinstance(outcome, Joined) else outcome
            self._journal.fault = details.unstored = fault
        job.background = False
        if job.state is _STORING and details.joined and job.clients:
            job.function.storing -= 1
            self._lifecycle.begin(job)
        self._endings.streams.not_kept(job)
        if job.state is _STORING:
            self._endings.discard(job)
        elif job.state is not _OVER:
            self._endings.end_if_unwanted(job)
        if isinstance(outcome, Uncertain):
            self._ownership.doubt(job)

    # ----------------------------------------------------------------------------------- answering

    def answer(
        self,
        session: Session,
        job: QueuedJob | None,
        background: bool = False,
        refused: Rejected | None = None,
    ) -> bool:
        """Answer a submission with its job or its refusal; whether that has to wait for the store."""
        if session.pending_writes or (job is not None and self.is_storing(job, background)):
            session.pending_writes += 1
            durably = background or (job is not None and job.state is _STORING)
            done = partial(self._answer_later, session, job, background, durably, refused)
            if job is not None and self._journal.is_ahead(job.number):
                session.blocks_pipeline += 1  # else later answers would come before this one
                self._journal.keep_after(job.number, partial(_unblock, session, done))
            else:
                self._journal.keep(None, done)
            return True
        if job is not None:
            self.created(session, job)
        elif refused is not None:
            self._outgoing.error(session, refused.code, refused.text)
        return False

    def is_storing(self, job: QueuedJob, background: bool) -> bool:
        """Whether a submission that made or joined the job can be answered only once the job is kept."""
        return self._durable and (not job.kept if background else job.state is _STORING)

    def created(self, session: Session, job: QueuedJob) -> None:
        """Send JOB_CREATED."""
        handle = b"%b%d" % (self._handles.prefix, job.number)
        self._outgoing.send(session, _CREATED[len(handle)] + handle)

    def _answer_later(
        self,
        session: Session,
        job: QueuedJob | None,
        background: bool,
        durably: bool,
        refused: Rejected | None,
        error: str | Joined | None,
    ) -> None:
        """Answer a submission that waited for the store (``durably``), or only for answers before it."""
        self.resume(session)
        if refused is not None:
            self._outgoing.error(session, refused.code, refused.text)
        elif job is not None and error is None and background and job.joined:
            self._outgoing.respond(session, PacketType.JOB_CREATED, self._handles.handle(job.joined))
        elif job is not None and error is None and not (durably and job.unstored):
            self.created(session, job)
        else:
            reason = job.details.unstored if job is not None and job.details is not None else None
            fault = reason or self._journal.fault if error is None else error
            is_uncertain = isinstance(fault, Uncertain)
            text = f"the job {'may have been' if is_uncertain else 'could not be'} stored: {fault}"
            code = b"gearflow:uncertain" if is_uncertain and session.gearflow else b"QUEUE_ERROR"
            self._outgoing.error(session, code, text.encode(errors="replace"))

    def block(self, session: Session) -> None:
        """Nothing else that the session sends is handled until ``unblock``."""
        session.pending_writes += 1
        session.blocks_pipeline += 1

    def unblock(self, session: Session) -> None:
        """The end of ``block``."""
        session.blocks_pipeline -= 1
        self.resume(session)

    def resume(self, session: Session) -> None:
        """One answer of the session waits no longer."""
        session.pending_writes -= 1
        if not session.pending_writes and session in self._stalled:
            self.ready_to_resume[session] = None


def _unblock(session: Session, done: Done, error: str | Joined | None) -> None:
    session.blocks_pipeline -= 1
    done(error)
