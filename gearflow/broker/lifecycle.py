"""What happens to jobs between their submission and their end: they wait, become due, come back, are
revived."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from hashlib import blake2b
from typing import Final

from gearflow.broker import serialization
from gearflow.broker.core import Core
from gearflow.broker.dispatch import Dispatcher
from gearflow.broker.endings import Endings
from gearflow.broker.job import EndedRun, JobState, QueuedJob
from gearflow.broker.parser import Body
from gearflow.broker.policies import FailedRun, JobPolicy
from gearflow.broker.session import Session
from gearflow.broker.storage import PENDING, Answer, DamagedEntry, JobOf, JobOutcome, StoredJob, StoredParts
from gearflow.broker.streams import Streams
from gearflow.broker.suspects import Suspects
from gearflow.broker.watching import Watching
from gearflow.errors import StoreError
from gearflow.protocol.constants import PacketType
from gearflow.protocol.trace import detached

LONG_HASH: Final = 4 << 20
"""Bytes of a workload from which on it is hashed in steps. One MiB takes about a millisecond."""

_STEP: Final = 1 << 20
"""Bytes that are hashed before others get their turn."""

WARNINGS: Final = 100
"""Warnings of a job that are kept: the last ones."""

_WORK_WARNING: Final = int(PacketType.WORK_WARNING)

_DELAYED: Final = JobState.DELAYED
_WAITING: Final = JobState.WAITING


class Lifecycle:
    """Moves jobs between the states of ``TRANSITIONS``, except to RUNNING and OVER. Owns the timers of
    jobs."""

    def __init__(
        self,
        core: Core,
        streams: Streams,
        watching: Watching,
        suspects: Suspects,
        endings: Endings,
        dispatcher: Dispatcher,
    ) -> None:
        self._core = core
        self._streams = streams
        self._watching = watching
        self._clock = core.clock
        self._suspects = suspects
        self._endings = endings
        self._dispatcher = dispatcher

    # ----------------------------------------------------------------------------- jobs that wait

    def begin(self, job: QueuedJob) -> None:
        """A job begins to wait for a worker, or until it is due."""
        details = job.details
        if details is None:
            job.state = _WAITING
            self._dispatcher.queue(job)
            return
        if details.expires:
            self._expire_at(job, details.expires)
        self._queue_when_due(job, details.due)

    def edit(
        self, job: QueuedJob, priority: int | None, due: float | None = None, expires: float | None = None
    ) -> None:
        """Change a job that waits or is delayed. If it has another place in the queue then, it is the last.

        ``due`` and ``expires`` are Unix times, and None leaves each as it is.
        """
        details = job.ensure_details()
        if expires is not None:
            details.expires = expires
            self._expire_at(job, expires)
        if due is None and (priority is None or priority == job.priority):
            return
        if job.state is _WAITING:
            self._dispatcher.take_out(job)
        else:
            del job.function.delayed[job]
            details.ready = self._clock.now
        if priority is not None:
            job.priority = priority
        if due is not None:
            details.due = due
        self._queue_when_due(job, details.due)

    def _expire_at(self, job: QueuedJob, time: float) -> None:
        self._core.timers.add(time, partial(self._expire, job), partial(_may_expire, job, time))

    def _queue_when_due(self, job: QueuedJob, due: float) -> None:
        if due > self._clock.unix():
            job.ensure_details().due = due
            job.state = _DELAYED
            job.function.delayed[job] = None
            self._core.timers.add(due, partial(self._become_due, job), partial(_is_delayed, job, due))
        else:
            job.state = _WAITING
            self._dispatcher.queue(job)

    def _become_due(self, job: QueuedJob) -> None:
        del job.function.delayed[job]
        details = job.ensure_details()
        details.ready = details.due - self._clock.offset
        job.state = _WAITING
        self._dispatcher.queue(job)

    def _expire(self, job: QueuedJob) -> None:
        body = serialization.failure("Expired", "it had not started when its time was over")
        self._endings.fail(job, JobOutcome.EXPIRED, body, None)

    # ------------------------------------------------------------------------ jobs that come back

    def requeue(
        self,
        job: QueuedJob,
        reason: str,
        due: float = 0.0,
        *,
        counts: bool = False,
        run: EndedRun | None = None,
        begun: bool = False,
    ) -> None:
        """A worker gives a job back. Its progress is that of an earlier run. The run may count as failed.

        ``run`` is what is to be known of the run. With it, or with ``begun``, the worker has begun the job.
        """
        self._core.timeouts.disarm(job)
        details = job.ensure_details() if run is not None else job.details
        if details is not None:
            if details.watchers:
                self._watching.retrying(job, max(due - self._clock.unix(), 0.0) if due else 0.0, reason)
            details.attempt += counts
            serialization.end_run(details)
            if run is not None:
                details.runs = serialization.with_run(details, run)
            if run is not None or begun:
                details.trace = detached(details.trace)
            if details.log is not None:
                self._streams.unblock(details.log)
        if not job.wanted:
            self._endings.abandon(job)
            return
        if job.details is not None and job.details.slots is not None:
            self._core.limiter.release(job)
        job.function.running -= 1
        job.function.counts.retried += counts
        job.ensure_details().ready = self._clock.now
        worker = job.worker
        self._queue_when_due(job, due)
        if self._suspects.exist:
            self._suspects.ended(worker)

    def ended_run(self, job: QueuedJob, reason: str) -> EndedRun:
        """The run of a job that ends now, because the job is to run again."""
        return serialization.ended_run(job, reason, self._clock.unix(), self._clock.offset)

    def run_again(
        self,
        job: QueuedJob,
        worker: Session,
        policy: JobPolicy,
        outcome: JobOutcome,
        handle: bytes,
        body: Body,
    ) -> bool:
        """Have a job whose run has failed run again if its policy says so. False if the job is to end.

        gearflow's workers apply the policy themselves, because they know the exception.
        """
        if worker.gearflow or not job.background:
            return False
        details = job.ensure_details()
        delay = policy.retry(job, details)
        if delay is None:
            return False
        packet = "WORK_FAIL" if outcome is JobOutcome.FAILED else "WORK_EXCEPTION"
        reason = FailedRun(packet, bytes(body[len(handle) + 1 :])).reason(details.attempt + 1, delay)
        warning = reason.encode()
        details.warnings.append(warning)
        del details.warnings[:-WARNINGS]
        self._core.outgoing.relay(job.clients, _WORK_WARNING, b"%b\0%b" % (handle, warning))
        due = self._clock.unix() + delay if delay else 0.0
        run = self.ended_run(job, reason)
        if job.kept or self._core.journal.is_ahead(job.number):
            self._core.journal.add(serialization.rescheduled(job, details, due, details.attempt + 1, run))
        self.requeue(job, reason, due, counts=True, run=run)
        return True

    def worker_died(self, job: QueuedJob, worker: Session) -> None:
        """The worker disconnected while it ran the job.

        If the worker overran a time limit before, this is no death. It got an ERROR for its late result, and
        libgearman and Perl take that for the answer to their next GRAB_JOB. Many workers then end, and hold a
        job that they have not begun.
        """
        if worker.overran:
            self.requeue(job, _of(worker, "went away"))
            return
        self._cut_off(job, worker, JobOutcome.WORKERS_DIED, "WorkersDied", "went away")

    def timed_out(self, job: QueuedJob, worker: Session) -> None:
        """The worker ran the job for longer than its time limit (CAN_DO_TIMEOUT, or that of a policy)."""
        worker.overran = True
        policy = job.function.policy
        by_policy = policy is not None and policy.timeout is not None
        how = f"overran its time limit ({'the policy of its function' if by_policy else 'CAN_DO_TIMEOUT'})"
        self._cut_off(job, worker, JobOutcome.RAISED, "gearflow.errors.TaskTimeout", how)

    def _cut_off(self, job: QueuedJob, worker: Session, outcome: JobOutcome, kind: str, how: str) -> None:
        """A run was cut off. The job is queued again until ``limits.deaths``."""
        details = job.ensure_details()
        details.deaths += 1
        most = self._core.limits.deaths
        if most is not None and details.deaths >= most and job.wanted:
            times = "once" if details.deaths == 1 else f"{details.deaths} times"
            text = f"it was cut off {times}; the last time, {_of(worker, how)}"
            self._endings.fail(job, outcome, serialization.failure(kind, text), worker)
            return
        run = self.ended_run(job, _of(worker, how))
        if job.kept or self._core.journal.is_ahead(job.number):
            change = serialization.rescheduled(job, details, details.due, details.attempt, run)
            self._core.journal.add(change)
        job.function.counts.retried += job.wanted
        self.requeue(job, run.reason, run=run)

    # -------------------------------------------------------------------- jobs that the store has

    def revive(
        self, stored: StoredJob, key: bytes, parts: StoredParts | None = None, *, is_restored: bool = False
    ) -> None:
        """A job that the store has waits again, under its unique key. The store may have parts of it.

        It may be a dead letter that is replayed. A job that is restored has waited since it was submitted, or
        due, as far as that is known.
        """
        function = self._core.functions.ensure(stored.function)
        if self._core.jobs.find(function, key) is not None:
            key = b""
        details = serialization.details_of(stored)
        if details is not None and (details.attempt or details.deaths):
            details.expires = 0.0  # it has started before
        offset = self._clock.offset
        submitted = stored.submitted - offset
        job = QueuedJob(
            stored.number,
            function,
            stored.unique,
            key,
            stored.workload,
            stored.priority,
            True,
            submitted,
            details,
        )
        job.kept = True
        if not is_restored:
            job.ensure_details().ready = self._clock.now
        else:
            function.counts.restored += 1
            if details is not None and details.due:
                details.ready = max(submitted, details.due - offset)
        if parts is not None:
            self._streams.restored(job, parts)
        self._core.jobs.add(job)
        self._core.live.returned(job.number)
        self.begin(job)

    def restore(self, stored: StoredJob, parts: StoredParts | None = None) -> None:
        """Revive a job of an earlier server. If its payload is its unique key, others may be able to join it
        only once the store has answered. Raises StoreError.
        """
        workload = stored.workload
        if stored.unique != b"-":
            self.revive(stored, stored.unique, parts, is_restored=True)
        elif not isinstance(workload, int):
            self.revive(stored, payload_key(workload), parts, is_restored=True)
        else:
            answer = self._core.journal.ask(JobOf(stored.number), partial(self._name_later, stored.number))
            key = b"" if answer is PENDING else self.key_in(answer)
            self.revive(stored, key, parts, is_restored=True)

    def key_in(self, answer: Answer) -> bytes:
        """The unique key of a job whose unique is ``-``, by the store's answer; empty if it has none.

        Raises:
            StoreError: The store cannot be read. Damage is only reported.
        """
        whole = self.payload_in(answer)
        return payload_key(whole) if whole is not None else b""

    def payload_in(self, answer: Answer) -> Body | None:
        """The payload in the answer to ``JobOf``. Raises as ``key_in``."""
        if isinstance(answer, DamagedEntry):
            self._core.report(answer)
        elif isinstance(answer, StoreError):
            raise answer
        elif isinstance(answer, StoredJob) and not isinstance(answer.workload, int):
            return answer.workload
        return None

    def _name_later(self, number: int, answer: Answer) -> None:
        """Others join a job that was restored from now on, unless it is over, or another has its key."""
        try:
            key = self.key_in(answer)
        except StoreError as error:
            self._core.report(error)
            return
        job = self._core.jobs.by_number.get(number)
        if key and job is not None and not job.cancelled and self._core.jobs.find(job.function, key) is None:
            self._core.jobs.name(job, key)


def _of(worker: Session, how: str) -> str:
    """A sentence about a worker."""
    return f"the worker {serialization.name_of(worker).decode(errors='replace')} {how}"


def payload_key(workload: Body) -> bytes:
    """The unique key of a workload that coalesces with its equals. No other unique contains a NUL."""
    return b"-\0" + blake2b(workload, digest_size=32).digest() if len(workload) else b""


def hash_payload(workload: Body) -> Generator[None, None, bytes]:
    """As ``payload_key``, in steps."""
    view = memoryview(workload)
    digest = blake2b(digest_size=32)
    for start in range(0, len(view), _STEP):
        digest.update(view[start : start + _STEP])
        yield
    return b"-\0" + digest.digest() if len(view) else b""


def _may_expire(job: QueuedJob, time: float) -> bool:
    """Whether a job can still expire at that time: it has not started."""
    return job.state in (_DELAYED, _WAITING) and not job.started and job.ensure_details().expires == time


def _is_delayed(job: QueuedJob, due: float) -> bool:
    """Whether a job is delayed until that time."""
    return job.state is _DELAYED and job.ensure_details().due == due
