"""What happens to jobs, for those who watch them (``gearflow:watch``).

A watcher never slows a job. While its connection has more to receive than ``SLOW``, it gets no parts, no
warnings, and no progress. Once it has caught up, it gets the newest progress, and the position up to which it
missed parts.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final, Literal

from gearflow.broker import serialization
from gearflow.broker.core import Core
from gearflow.broker.job import JobState, QueuedJob
from gearflow.broker.parser import Body, integer
from gearflow.broker.session import Session
from gearflow.broker.storage import StoredJob
from gearflow.protocol.constants import PacketType
from gearflow.protocol.server_events import part_event, watch_event

SLOW: Final = 1 << 20
"""Bytes that wait for a connection, from which on its watchers miss something."""

_LOOK: Final = 0.1
"""Seconds between two looks whether a watcher that misses something has caught up."""

STATES: Final[dict[JobState, Any]] = {
    JobState.STORING: "waiting",
    JobState.DELAYED: "delayed",
    JobState.WAITING: "waiting",
    JobState.RUNNING: "running",
}
"""The names of the states in answers."""


class JobWatcher:
    """A call of ``gearflow:watch``. Two watchers differ by identity alone."""

    __slots__ = ("call", "job", "looks", "missed", "misses_progress", "parts", "session")

    def __init__(self, job: QueuedJob, session: Session, call: bytes, parts: bool) -> None:
        self.job = job
        self.session = session
        self.call = call  # its handle
        self.parts = parts  # it gets the parts as well
        self.missed = 0  # the position up to which it has missed parts, of which it does not know
        self.misses_progress = False
        self.looks = False  # a timer is set


class Watching:
    """Sends events to watchers. Owns nothing: a job has its watchers.

    The shell lowers ``slow`` if it stops reading from those that feed a connection before.
    """

    def __init__(self, core: Core) -> None:
        self.slow = SLOW
        self._core = core
        self._outgoing = core.outgoing

    def watch(self, job: QueuedJob, session: Session, call: bytes, parts: bool) -> JobWatcher:
        """A call begins to watch a job. Its first event is the state of the job."""
        watcher = JobWatcher(job, session, call, parts)
        details = job.ensure_details()
        details.watchers[watcher] = None
        is_running = job.state is JobState.RUNNING
        done, total = details.progress or (b"", b"")
        event = watch_event(
            "state",
            state=STATES[job.state],
            attempt=details.attempt + is_running,
            progress=[integer(done), integer(total)] if details.progress is not None else None,
            message=_text(details.message),
            parts=details.log.position if details.log is not None else 0,
            worker=_name(job.worker) if is_running else "",
            since=self._since(job) if is_running else None,
        )
        self._send(watcher, event)
        return watcher

    def show(self, stored: StoredJob, session: Session, call: bytes) -> None:
        """The state of a job that another server has, as far as it is known here."""
        details = serialization.details_of(stored)
        done, total, message = details.previous or (0, 0, None) if details is not None else (0, 0, None)
        event = watch_event(
            "state",
            state=stored_state(stored, self._core.clock.unix()),
            attempt=stored.attempt,
            progress=[done, total] if total else None,
            message=message or "",
            parts=0,
            worker="",
            since=None,
        )
        if session.is_open:
            self._outgoing.respond(session, PacketType.WORK_DATA, call, event)

    # ---------------------------------------------------------------- what happens to a job that is watched

    def started(self, job: QueuedJob, worker: Session) -> None:
        """A run has begun."""
        attempt = job.ensure_details().attempt + 1
        event = watch_event("started", attempt=attempt, worker=_name(worker), since=self._since(job))
        self._send_all(job, event)

    def retrying(self, job: QueuedJob, delay: float, reason: str) -> None:
        """A run has ended, and the job is to run again."""
        attempt = job.ensure_details().attempt + 1
        self._send_all(job, watch_event("retrying", attempt=attempt, delay=delay, reason=reason))

    def progressed(self, job: QueuedJob) -> None:
        """The worker has reported progress."""
        event = _progress(job)
        for watcher in job.ensure_details().watchers:
            if self._is_slow(watcher):
                watcher.misses_progress = True
            else:
                self.catch_up(watcher)
                self._send(watcher, event)

    def warned(self, job: QueuedJob, text: bytes) -> None:
        """The worker has sent WORK_WARNING."""
        event = watch_event("warned", text=_text(text))
        for watcher in job.ensure_details().watchers:
            if not self._is_slow(watcher):
                self.catch_up(watcher)
                self._send(watcher, event)

    def came(self, job: QueuedJob, position: int, part: Body) -> None:
        """A part has come, and its readers may have it."""
        event = b""
        for watcher in job.ensure_details().watchers:
            if not watcher.parts:
                continue
            if self._is_slow(watcher):
                watcher.missed = position
                continue
            self.catch_up(watcher)
            event = event or part_event(position, part)
            self._send(watcher, event)

    def _since(self, job: QueuedJob) -> float:
        """When the run began, in Unix time. It tells two runs apart for a watcher that was away."""
        return job.started + self._core.clock.offset

    # ------------------------------------------------------------------------------------- slow watchers

    def _is_slow(self, watcher: JobWatcher) -> bool:
        """Whether a watcher has to miss something. Then it is looked at again soon."""
        session = watcher.session
        outbox, (place, packet) = session.outbox, session.last_event
        if len(outbox) <= place or id(outbox[place]) != packet:  # it has been taken, with all before it
            session.watched = 0
        if session.watched + self._outgoing.unsent(session) <= self.slow:
            return False
        if not watcher.looks:
            watcher.looks = True
            self._look_later(watcher)
        return True

    def _look_later(self, watcher: JobWatcher) -> None:
        due = self._core.clock.unix() + _LOOK
        self._core.timers.add(due, partial(self._look, watcher), partial(_is_watching, watcher))

    def _look(self, watcher: JobWatcher) -> None:
        watcher.looks = False
        if (watcher.missed or watcher.misses_progress) and not self._is_slow(watcher):
            self.catch_up(watcher)

    def catch_up(self, watcher: JobWatcher) -> None:
        """Tell a watcher what it has missed."""
        if watcher.missed:
            self._send(watcher, watch_event("gap", position=watcher.missed))
            watcher.missed = 0
        if watcher.misses_progress:
            watcher.misses_progress = False
            if watcher.job.ensure_details().progress is not None:  # else that run has ended
                self._send(watcher, _progress(watcher.job))

    # ------------------------------------------------------------------------------------------ sending

    def _send_all(self, job: QueuedJob, event: bytes) -> None:
        for watcher in job.ensure_details().watchers:
            self.catch_up(watcher)
            self._send(watcher, event)

    def _send(self, watcher: JobWatcher, event: bytes) -> None:
        session = watcher.session
        if session.is_open:
            session.watched += len(event)
            self._outgoing.respond(session, PacketType.WORK_DATA, watcher.call, event)
            session.last_event = len(session.outbox) - 1, id(session.outbox[-1])


def _progress(job: QueuedJob) -> bytes:
    """The event of the newest progress."""
    details = job.ensure_details()
    done, total = details.progress or (b"", b"")
    return watch_event("progress", done=integer(done), total=integer(total), message=_text(details.message))


def _is_watching(watcher: JobWatcher) -> bool:
    details = watcher.job.details
    return details is not None and watcher in details.watchers


def _name(session: Session | None) -> str:
    return _text(serialization.name_of(session)) if session is not None else ""


def _text(text: bytes) -> str:
    return text.decode(errors="replace")


def stored_state(stored: StoredJob, now: float) -> Literal["delayed", "waiting"]:
    """The state of a job at the store. It may run: that is not written there."""
    return "delayed" if stored.due > now else "waiting"
