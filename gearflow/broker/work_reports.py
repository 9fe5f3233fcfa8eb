"""What workers tell about the jobs that they run: parts, warnings, progress, and how a job ended."""

from __future__ import annotations

from typing import Final

from gearflow.broker.core import Core
from gearflow.broker.endings import Endings
from gearflow.broker.lifecycle import WARNINGS, Lifecycle
from gearflow.broker.parser import Body, handle_of, integer, name_in
from gearflow.broker.session import Session
from gearflow.broker.storage import JobOutcome
from gearflow.broker.streams import Streams
from gearflow.broker.turns import LONG, MANY
from gearflow.broker.watching import Watching
from gearflow.protocol.constants import MAX_ARGUMENT, PacketType

_WORK_FAIL: Final = int(PacketType.WORK_FAIL)

_COMPLETED: Final = JobOutcome.COMPLETED
_FAILED: Final = JobOutcome.FAILED
_RAISED: Final = JobOutcome.RAISED

_NOT_FOUND: Final[dict[int, bytes]] = {  # packet type -> gearmand's text for it
    PacketType.WORK_DATA: b"Job does not exist on server",
    PacketType.WORK_WARNING: b"Job does not exist on server",
    PacketType.WORK_STATUS: b"Job given in work result not found",
    PacketType.WORK_COMPLETE: b"Job given in work result not found",
    PacketType.WORK_FAIL: b"Job given in work result not found",
    PacketType.WORK_EXCEPTION: b"An exception was received for a job that does not exist",
}

_RESULTS: Final = frozenset({PacketType.WORK_COMPLETE, PacketType.WORK_EXCEPTION, PacketType.WORK_DATA})


class WorkReports:
    """Handles the packets of the type WORK_* that a worker sends."""

    def __init__(
        self, core: Core, streams: Streams, watching: Watching, endings: Endings, lifecycle: Lifecycle
    ) -> None:
        self._streams = streams
        self._watching = watching
        self._endings = endings
        self._lifecycle = lifecycle
        self._outgoing = core.outgoing
        self._journal = core.journal
        self._clock = core.clock
        self._relay = core.outgoing.relay

    def data(self, session: Session, kind: int, body: Body) -> int | None:
        """WORK_DATA: a part of a result."""
        handle, body = handle_of(body)
        job = session.running.get(handle)
        if job is None:
            self._outgoing.error(session, b"JOB_NOT_FOUND", _NOT_FOUND[kind])
            return None
        return self._streams.received(job, handle, body)

    def warning(self, session: Session, kind: int, body: Body) -> int | None:
        """WORK_WARNING."""
        handle, body = handle_of(body)
        job = session.running.get(handle)
        if job is None:
            self._outgoing.error(session, b"JOB_NOT_FOUND", _NOT_FOUND[kind])
            return None
        if job.background and self._journal.exists:
            warnings = job.ensure_details().warnings
            warnings.append(bytes(body[len(handle) + 1 : len(handle) + 1 + MAX_ARGUMENT]))
            del warnings[:-WARNINGS]
        if job.details is not None and job.details.watchers:
            self._watching.warned(job, bytes(body[len(handle) + 1 :]))
        self._relay(job.clients, kind, body)
        return LONG if len(job.clients) > MANY else None

    def status(self, session: Session, kind: int, body: Body) -> int | None:
        """WORK_STATUS: progress, or how many parts a reader has taken."""
        handle, body = handle_of(body)
        fields = bytes(body).split(b"\0", 3)
        job = session.running.get(handle)
        if job is None:
            reader = session.readers.get(handle)
            if reader is not None:
                self._streams.take(reader, integer(fields[1]))
                return LONG
            if session.has_read and fields[2:] == [b"0"]:  # of a reader that has just ended
                return None
            self._outgoing.error(session, b"JOB_NOT_FOUND", _NOT_FOUND[kind])
            return None
        message = b""
        if len(fields) != 3:
            if len(fields) == 2:  # Perl's send_work_status leaves the denominator out
                fields.append(b"")
            else:
                message = fields.pop()[:MAX_ARGUMENT]
            body = b"\0".join(fields)
        details = job.ensure_details()
        details.progress, details.message = (fields[1], fields[2]), message
        if details.watchers:
            self._watching.progressed(job)
        self._relay(job.clients, kind, body)
        return LONG if len(job.clients) > MANY else None

    def complete(self, session: Session, kind: int, body: Body) -> int | None:
        """WORK_COMPLETE: the job succeeded."""
        if isinstance(body, bytes) and (end := body.find(b"\0")) >= 0:  # as ``handle_of`` does it
            handle = body[:end]
        else:
            handle, body = handle_of(body)
        job = session.running.pop(handle, None)
        if job is None:
            self._outgoing.error(session, b"JOB_NOT_FOUND", _NOT_FOUND[kind])
        elif job.background or job.details is not None:
            is_long = len(job.clients) > MANY
            self._endings.end(job, _COMPLETED, session, kind, handle, body)
            return LONG if is_long else None
        else:
            self._relay(job.clients, kind, body)
            job.function.counts.run.add(self._clock.now - job.started)
            self._endings.release(job)
        return None

    def fail(self, session: Session, kind: int, body: Body) -> int | None:
        """WORK_FAIL: the job failed."""
        handle = name_in(body)
        if handle == session.raised and handle not in session.running:
            session.raised = b""  # Perl's worker sends both, and dies of an ERROR
            return None
        return self._end(session, _FAILED, kind, handle, handle)

    def exception(self, session: Session, kind: int, body: Body) -> int | None:
        """WORK_EXCEPTION: the job failed, and why."""
        handle, body = handle_of(body)
        if handle in session.running:
            session.raised = handle
        return self._end(session, _RAISED, kind, handle, body)

    def _end(self, session: Session, outcome: JobOutcome, kind: int, handle: bytes, body: Body) -> int | None:
        job = session.running.pop(handle, None)
        if job is None:
            self._outgoing.error(session, b"JOB_NOT_FOUND", _NOT_FOUND[kind])
            return None
        is_long = len(job.clients) > MANY
        policy = job.function.policy
        if policy is None or not self._lifecycle.run_again(job, session, policy, outcome, handle, body):
            self._endings.end(job, outcome, session, kind, handle, body)
        return LONG if is_long else None

    def oversized(self, session: Session, kind: int, first: bytes) -> bytes | None:
        """A body over the limit is being thrown away. If it is the result of a job, that has failed.

        Returns:
            The handle of the job. None if the packet is no result.
        """
        handle = first.partition(b"\0")[0]
        job = session.running.pop(handle, None) if kind in _RESULTS else None
        if job is None:
            return None
        self._endings.end(job, _FAILED, session, _WORK_FAIL, handle, handle)
        return handle
