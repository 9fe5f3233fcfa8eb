"""How jobs end: which clients hear of it, what is kept of it, and which place becomes free.

``ENDS`` has every way in which a job may end, by its state and outcome. Everything that ends jobs goes
through ``Endings.end``. The one exception is the hottest path, a foreground job that completes, of which
nothing is kept (``release``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, NamedTuple

from gearflow.broker import serialization
from gearflow.broker.core import Core
from gearflow.broker.job import Clients, JobState, QueuedJob
from gearflow.broker.parser import Body, compact
from gearflow.broker.parts import PartLog
from gearflow.broker.session import LARGE, ResultWaiter, Session
from gearflow.broker.storage import Forgotten, JobOutcome, JobRecord, Joined
from gearflow.broker.streams import Streams
from gearflow.broker.suspects import Suspects
from gearflow.broker.turns import MANY, Steps
from gearflow.protocol.constants import PacketType
from gearflow.protocol.server_events import cancel_event

_WORK_FAIL: Final = int(PacketType.WORK_FAIL)
_WORK_WARNING: Final = int(PacketType.WORK_WARNING)
_WORK_EXCEPTION: Final = int(PacketType.WORK_EXCEPTION)

_LOST: Final = b"another server has this job now; its result is there"
"""A warning for clients that are attached to a job that goes."""

_STORING: Final = JobState.STORING
_DELAYED: Final = JobState.DELAYED
_RUNNING: Final = JobState.RUNNING
_OVER: Final = JobState.OVER
_COMPLETED: Final = JobOutcome.COMPLETED
_FAILED: Final = JobOutcome.FAILED


class JobEnding(NamedTuple):
    """What one way to end involves."""

    sends: bool  # the clients that are attached get an end packet
    records: bool  # the store hears of it, as far as anything of the job is kept
    releases: bool  # its place is free at once; else when its worker ends the run


_USUAL: Final = JobEnding(sends=True, records=True, releases=True)
_QUIET: Final = JobEnding(sends=False, records=True, releases=True)

ENDS: Final[dict[JobState, dict[JobOutcome, JobEnding]]] = {
    JobState.DELAYED: {JobOutcome.CANCELLED: _QUIET, JobOutcome.EXPIRED: _USUAL},
    JobState.WAITING: {JobOutcome.CANCELLED: _QUIET, JobOutcome.EXPIRED: _USUAL},
    JobState.RUNNING: {
        JobOutcome.COMPLETED: _USUAL,
        JobOutcome.FAILED: _USUAL,
        JobOutcome.RAISED: _USUAL,
        JobOutcome.WORKERS_DIED: _USUAL,
        # The protocol cannot stop a run. A worker with ``gearflow:events`` is notified. Whatever it still
        # sends of the job is accepted and goes nowhere.
        JobOutcome.CANCELLED: JobEnding(sends=False, records=True, releases=False),
    },
}
"""A job that is at the store for the first time is not here: it cannot end before it is kept
(``discard``)."""


class Endings:
    """Ends jobs. Owns no state of its own: it changes the job, its function, its sessions and the journal."""

    def __init__(self, core: Core, streams: Streams, suspects: Suspects) -> None:
        self._core = core
        self.streams = streams
        self._suspects = suspects
        self._clock = core.clock
        self._jobs = core.jobs
        self._handles = core.handles
        self._journal = core.journal
        self._outgoing = core.outgoing
        self._timeouts = core.timeouts
        self._functions = core.functions
        self._limiter = core.limiter
        self._turns = core.turns
        self._recent_ends = core.recent_ends

    # ------------------------------------------------------------------------------- the ways to end

    def fail(self, job: QueuedJob, outcome: JobOutcome, exception: bytes, worker: Session | None) -> None:
        """End a job with an exception of the server's own."""
        handle = self._handles.handle(job.number)
        self.end(job, outcome, worker, _WORK_EXCEPTION, handle, b"%b\0%b" % (handle, exception))

    def cancel(self, handle: bytes) -> bool:
        """End a job: its clients get WORK_FAIL, and nothing afterwards. False if there is no such job.

        A waiting job is not run. The protocol cannot stop a running one: see ``ENDS``.
        """
        job = self._core.find(handle)
        if job is None or job.state is _STORING or job.cancelled:
            return False
        self._relay_end(job.clients, _WORK_FAIL, handle, handle)
        self._cancel(job)
        return True

    def _cancel(self, job: QueuedJob) -> None:
        """End a job of which no client is to hear any more."""
        handle = self._handles.handle(job.number)
        self.end(job, JobOutcome.CANCELLED, None, _WORK_FAIL, handle, handle)

    def refuse(self, job: QueuedJob, kind: str, why: str) -> None:
        """End a job because of a limit. Its clients get WORK_EXCEPTION, and nothing afterwards."""
        handle = self._handles.handle(job.number)
        body = b"%b\0%b" % (handle, serialization.failure(kind, why))
        self._relay_end(job.clients, _WORK_EXCEPTION, handle, body)
        self.end(job, JobOutcome.CANCELLED, None, _WORK_FAIL, handle, body)

    def detach(self, session: Session, handle: bytes) -> bool:
        """Detach a client from a job. False if it is not attached. If it is attached twice, once remains."""
        job = self._core.find(handle)
        if job is None or session not in job.clients:
            return False
        self._detach(job, session, 1)
        if session not in job.clients:
            del session.attached[job]
        self.end_if_unwanted(job)
        return True

    def _detach(self, job: QueuedJob, client: Session, times: int | None) -> None:
        job.detach(client, times)
        if job.details is not None and job.details.log is not None:
            self.streams.detach(job.details.log, client, times)

    def leave(self, session: Session) -> Steps:
        """The connection is closed: it waits for no job any more."""
        jobs = deque(session.attached)  # each is freed with its step
        session.attached = {}
        while jobs:
            job = jobs.popleft()
            if session in job.clients:  # else it has ended meanwhile
                self._detach(job, session, None)
                self.end_if_unwanted(job)
                yield
        for waiter in list(session.waits.values()):
            waiter.stop()
            yield
        yield from self.streams.leave(session)

    def end_if_unwanted(self, job: QueuedJob) -> None:
        """Cancel a job that has no client and no background, unless it runs on a worker without events.

        Such a run goes on, and a client that joins it gets its result.
        """
        if job.wanted:
            return
        if job.state is _RUNNING and not (job.worker is not None and job.worker.events):
            return
        self._cancel(job)

    def abandon(self, job: QueuedJob) -> None:
        """A worker gives back a job that has become unwanted."""
        self._count(job, JobOutcome.CANCELLED)
        self._record(job, JobOutcome.CANCELLED, b"", None, None)
        self.release(job)

    def discard(self, job: QueuedJob) -> None:
        """Drop a job that the store did not accept. Its submitters get ERROR elsewhere."""
        waiters, log = self._listeners(job)
        if waiters is not None or log is not None:
            self._recorded(None, None, waiters, log, JobOutcome.CANCELLED, b"", None)
        job.function.storing -= 1
        self._detach_all(job)
        self._jobs.remove(job)
        self._functions.rest(job.function)

    def lose(self, job: QueuedJob) -> None:
        """Another server has a kept job now. Nothing of it stays here, and the store has what it has.

        Calls that wait for its end look for it again. Its attached clients cannot do that. They are sent an
        end, as those of a server that is gone.
        """
        handle = self._handles.handle(job.number)
        if job.clients:
            self._outgoing.relay(job.clients, _WORK_WARNING, b"%b\0%b" % (handle, _LOST))
            self._relay_end(job.clients, _WORK_FAIL, handle, handle)
        job.function.counts.passed_on += 1
        if job.state is _RUNNING:
            self._take_from_worker(job, handle)
        elif job.state is _DELAYED:
            del job.function.delayed[job]
        else:
            job.state = _OVER
            job.function.forget(job)
        self._detach_all(job)
        self._jobs.remove(job)
        if self._suspects.exist:
            self._suspects.arrange(job.function)
            self._suspects.ended(job.worker)
        self._functions.rest(job.function)
        details = job.details
        if details is None:
            return
        waiters, details.waiters, details.watchers = details.waiters, {}, {}
        if waiters:
            self._turns.run(_resume(deque(waiters), None, b""))
        if details.log is not None:
            self.streams.lose(details.log)

    def _take_from_worker(self, job: QueuedJob, handle: bytes) -> None:
        """A running job is another server's. What its worker sends of it is about no job of this server."""
        self._timeouts.disarm(job)
        self._limiter.release(job)
        job.function.running -= 1
        worker = job.worker
        if worker is not None and worker.running.pop(handle, None) is not None:
            worker.overran = True
            if worker.events:
                self._outgoing.respond(worker, PacketType.WORK_DATA, worker.events, cancel_event(handle))

    # -------------------------------------------------------------------------------------- the steps

    def end(
        self,
        job: QueuedJob,
        outcome: JobOutcome,
        worker: Session | None,
        kind: int,
        handle: bytes,
        body: Body,
    ) -> None:
        """End a job as ``ENDS`` says."""
        end = ENDS[job.state][outcome]
        details, clients = job.details, job.clients
        if outcome is _COMPLETED and (details is None or not details.cancelled):
            job.function.counts.run.add(self._clock.now - job.started)
        else:
            self._count(job, outcome)
        send: Callable[[], None] | None = None
        if end.sends and clients:
            if details is not None and details.keep and self._journal.exists:
                send = partial(self._relay_end, clients, kind, handle, body)
            else:
                self._relay_end(clients, kind, handle, body)
        if end.records:
            self._record(job, outcome, body[len(handle) + 1 :], worker, send)
        if not end.releases:
            self._leave_to_worker(job, handle)
        elif job.state is _RUNNING:
            self.release(job)
        else:
            self._detach_all(job)
            if job.state is _DELAYED:
                del job.function.delayed[job]
                job.state = _OVER
            else:
                job.state = _OVER
                job.function.forget(job)
                if self._suspects.exist:
                    self._suspects.arrange(job.function)
            self._jobs.remove(job)
            self._functions.rest(job.function)

    def _count(self, job: QueuedJob, outcome: JobOutcome) -> None:
        """A job ends without success, unless it was cancelled before, and only its run ends."""
        counts = job.function.counts
        if job.cancelled:
            return
        counts.end(outcome, job.background and outcome >= _FAILED and self._journal.exists)
        if job.state is _RUNNING:
            counts.stop(self._clock.now - job.started)

    def release(self, job: QueuedJob) -> None:
        """A running job has ended, and its clients have been sent its end: its slot is free."""
        if job.details is not None:
            self._timeouts.disarm(job)
            if job.details.slots is not None:
                self._limiter.release(job)
            if job.details.cancelled:
                job.function.counts.lingering -= 1
        function = job.function
        function.running -= 1
        clients = job.clients
        if len(clients) == 1:
            (client,) = clients
            job.clients = ()
            del client.attached[job]
        elif clients:
            self._detach_all(job)
        self._jobs.remove(job)
        if self._suspects.exist:
            self._suspects.ended(job.worker)
        if not function.workers:
            self._functions.rest(function)

    def _leave_to_worker(self, job: QueuedJob, handle: bytes) -> None:
        """A running job was cancelled: it is over for all but its worker."""
        details = job.ensure_details()
        if not details.cancelled:
            details.cancelled = True
            job.function.counts.lingering += 1
        details.keep = None
        job.kept = job.background = False
        self._detach_all(job)
        if job.unique_key:  # free for a new job at once
            self._jobs.free_unique(job)
        worker = job.worker
        if worker is not None and worker.events:
            self._outgoing.respond(worker, PacketType.WORK_DATA, worker.events, cancel_event(handle))

    def _detach_all(self, job: QueuedJob) -> None:
        clients = job.clients
        job.clients = ()
        if len(clients) > MANY:
            self._turns.run(_detach(clients, job))
        else:
            for client in clients:
                client.attached.pop(job, None)

    def _relay_end(
        self, clients: tuple[Session, ...] | Clients, kind: int, handle: bytes, body: Body
    ) -> None:
        """Send clients how their job ended. Nothing else is sent them about it afterwards."""
        if len(clients) > MANY:
            self._turns.run(self._outgoing.relay_end_in_steps(clients, kind, handle, body))
        else:
            self._outgoing.relay_end(clients, kind, handle, body)

    def _record(
        self,
        job: QueuedJob,
        outcome: JobOutcome,
        body: Body,
        worker: Session | None,
        send: Callable[[], None] | None,
    ) -> None:
        """Have the store know how a job ended, as far as that is kept; then ``send``, and resume the
        waiters and the readers."""
        change = self._change(job, outcome, body, worker)
        waiters, log = self._listeners(job)
        if change is None and waiters is None and log is None:
            if send is not None:
                send()
            return
        if self._recent_ends is not None and change is not None:
            self._recent_ends.add(job.number)
        done = partial(self._recorded, change, send, waiters, log, outcome, body)
        if len(body) >= self._journal.large and isinstance(change, JobRecord):
            self._journal.keep_ahead(change, done)
        elif send is not None or waiters is not None or log is not None:
            self._journal.keep(change, done)
        elif self._journal.durable:
            self._journal.add(change, partial(self._recorded, change, None, None, None, outcome, b""))
        else:
            self._journal.add(change)

    def _listeners(self, job: QueuedJob) -> tuple[deque[ResultWaiter] | None, PartLog | None]:
        """The calls that are to hear of the end of a job, and its log, if it has readers."""
        details = job.details
        if details is None:
            return None, None
        waiters = deque(details.waiters) if details.waiters else None
        log = details.log if details.log is not None and self.streams.detached(details.log) else None
        details.waiters = {}
        details.log = None
        return waiters, log

    def _change(
        self, job: QueuedJob, outcome: JobOutcome, body: Body, worker: Session | None
    ) -> JobRecord | Forgotten | None:
        """What the store is to know of the end of a job."""
        if not self._journal.exists:
            return None
        details = job.details
        dead = job.background and outcome >= _FAILED
        keep = self._core.limits.keep if job.background else 0.0
        policy = job.function.policy
        if policy is not None and policy.keep is not None and job.background:
            keep = policy.keep
        if details is not None and details.keep is not None:
            keep = details.keep
        if dead or keep:
            clock = self._clock
            letter = serialization.stored_job(job, clock.offset) if dead else None
            if letter is not None and job.kept and job.size >= self._journal.large:
                letter = letter._replace(workload=job.size)  # the store has it
            expires = clock.unix() + (self._core.limits.keep_dead if dead else keep)
            body = bytes(body) if len(body) < LARGE else compact(body)
            return serialization.ended(job, outcome, body, worker, clock.now, clock.offset, expires, letter)
        if self._journal.durable and job.background:  # else it was cancelled, and the store knows
            return Forgotten(job.number, job.function.name, job.unique)
        return None

    def _recorded(
        self,
        change: JobRecord | Forgotten | None,
        send: Callable[[], None] | None,
        waiters: deque[ResultWaiter] | None,
        log: PartLog | None,
        outcome: JobOutcome,
        body: Body,
        error: str | Joined | None,
    ) -> None:
        """The end is kept, or could not be; the clients hear of it either way."""
        if self._recent_ends is not None and change is not None:
            if error is None:
                self._recent_ends.kept(change.number)
            elif not self._handles.owns(change.number):
                self._recent_ends.lost(change.number)
        if error is not None and change is not None and not self._handles.owns(change.number):
            text = "another server has a job that ended here, so its end is not recorded, and it runs again"
            self._outgoing.notify(text, None, self._handles.handle(change.number))
        elif error is not None and change is not None:
            if not self._journal.has_failed:
                text = "cannot record that jobs have ended (%s); they may run again after a restart"
                self._outgoing.notify(text, None, self._handles.handle(change.number), error)
            again = partial(self._recorded, change, None, None, None, outcome, b"")
            self._journal.add_failed(change, again)
        if waiters:
            self._turns.run(_resume(waiters, outcome, body))
        if log is not None:
            self.streams.ended(log, outcome, body)
        if send is not None:
            send()


def _detach(clients: Iterable[Session], job: QueuedJob) -> Steps:
    """A job with many clients has ended."""
    for client in clients:
        client.attached.pop(job, None)
        yield


def _resume(waiters: deque[ResultWaiter], outcome: JobOutcome | None, body: Body) -> Steps:
    """The end of a job is kept, or the job is another server's now: continue the calls that wait for it."""
    while waiters:
        waiter = waiters.popleft()  # each is freed with its step
        if waiter.session.waits.pop(waiter.call, None) is waiter:  # else the caller has left
            waiter.resume(outcome, body)
        yield
