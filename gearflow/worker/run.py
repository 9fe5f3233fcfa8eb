"""One run of a job: its task, what the job says of it, and its way to the server that gave it.

How a run ended, in one word: for the log, and for what is counted.

The line of the log that each run ends with; never its payload, so no traceback of what is invalid.
"""

import logging
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

from gearflow.errors import PayloadInvalid, TaskTimeout
from gearflow.protocol.codec import encode
from gearflow.protocol.envelope import Envelope, unwrap
from gearflow.protocol.packets import Packet, WorkFail, WorkStatus
from gearflow.tasks import Context, RunInfo
from gearflow.tasks.control_flow import Control, Discard, Snooze
from gearflow.tasks.wait_tracking import Waiting
from gearflow.worker.connection import WorkerConnection
from gearflow.worker.event_loop import LoopStarted
from gearflow.worker.executor import AnyTask, OverdueRuns
from gearflow.worker.retry_policy import RetryAfter, said

_NOTHING_SAID: Final = Envelope()


class Run:
    """State of one run. The worker makes it when the job gets a slot, and forgets it when it has ended."""

    __slots__ = (
        "_over",
        "_overdue",
        "_waits",
        "again",
        "began",
        "cancelled",
        "connection",
        "context",
        "envelope",
        "handed_on",
        "handle",
        "interrupt",
        "is_overdue",
        "is_under_way",
        "limit",
        "started",
        "task",
    )

    def __init__(
        self, task: AnyTask, handle: bytes, connection: WorkerConnection, overdue: OverdueRuns
    ) -> None:
        self.task = task
        self.handle = handle
        self.connection = connection
        self.envelope = _NOTHING_SAID
        self.limit: float | None = None  # seconds it may take
        self.context: Context | None = None  # if the task takes one
        self.began = time.perf_counter()  # or, from its first step on, when it took that
        self.interrupt: Callable[[], None] | None = None  # ends what a process does of it
        self.started: LoopStarted | None = None  # holds the loop's task, which the loop itself does not
        self.is_under_way = False  # its first step was made, and it may be cancelled
        self.cancelled = False  # at the server: nobody waits for it
        self.handed_on = False  # the server gives the job to another worker
        self.is_overdue = False  # its thread goes on after the end of the job
        self.again: RetryAfter | None = None  # how the job goes on
        self._over = False  # nothing more is said of it but how it ends
        self._overdue = overdue
        self._waits: set[Waiting] = set()  # of its threads, for other tasks

    def named(self) -> dict[str, Any]:
        """What the log calls it."""
        return {
            "task": self.task.name,
            "handle": _text(self.handle),
            "server": str(self.connection.server),
            "attempt": self.envelope.attempt,
        }

    def info(self) -> RunInfo:
        """The same for middleware and operators."""
        return RunInfo(
            task=self.task.name,
            handle=_text(self.handle),
            server=str(self.connection.server),
            attempt=self.envelope.attempt,
            started=time.time() - (time.perf_counter() - self.began),
        )

    def open(self, workload: bytes) -> bytes:
        """Take in what the workload says beside the payload, which is returned; the run begins now.

        Raises:
            PayloadInvalid: The workload begins as an envelope, and goes on as none.
        """
        self.envelope, payload = unwrap(workload)
        limit = self.limit = self.task.timeout if self.envelope.timeout is None else self.envelope.timeout
        if self.task.takes_context:
            self.context = Context(
                handle=_text(self.handle),
                function=self.task.name,
                send=self.send,
                attempt=self.envelope.attempt,
                deadline=None if limit is None else time.time() + limit,
            )
        return payload

    def send(self, packet: Packet) -> None:
        """Report something before the end; from any thread. What comes after the end is dropped."""
        if self._over or self.handed_on:
            return
        outbox = self.connection.outbox
        if isinstance(packet, WorkStatus):
            outbox.add_progress(self.handle, encode(packet))
        else:
            outbox.add(self.handle, encode(packet))
        self.connection.wake_from_anywhere()

    def end(self, packet: bytes) -> None:
        """Write the one packet that ends the job: WORK_FAIL, whatever came of it, if nobody wants it."""
        self._over = True
        if not self.handed_on:
            if self.cancelled:
                packet = encode(WorkFail(self.handle))
            self.connection.outbox.add(self.handle, packet)
            self.connection.wake()

    def settle(self) -> None:
        """The call is over, though what becomes of the job is not: it is not stopped any more."""
        self._over = True
        self.is_under_way = False

    @property
    def is_settled(self) -> bool:
        """Whether the call is over."""
        return self._over

    @property
    def is_for_nobody(self) -> bool:
        """Whether its end is not wanted any more: the job was cancelled, or another worker gets it."""
        return self.cancelled or self.handed_on

    def waits(self, wait: Waiting) -> None:
        """A thread of it waits for another task, as long as the result is wanted. Called in any thread."""
        self._waits.add(wait)
        # First note it, then look: whichever of the two threads comes second sees the other.
        if self.is_for_nobody or self.is_overdue:
            wait.end()

    def has_waited(self, wait: Waiting) -> None:
        """It does not any more. Called in any thread."""
        self._waits.discard(wait)

    def cancel(self) -> None:
        """Nobody wants the job any more: stop a coroutine or a process, tell a thread.

        It still ends at the server.
        """
        self.cancelled = True
        self._tell()
        if self.interrupt is not None:
            self.interrupt()
        elif self._can_be_stopped:
            self._cancel()

    def hand_on(self) -> None:
        """The connection is gone: stop a coroutine or a process, tell a thread."""
        self._lose()
        if self._can_be_stopped:
            self._cancel()

    def abandon(self) -> None:
        """The worker leaves: stop a coroutine or a process, leave a thread to itself."""
        self._lose()
        self._cancel()

    def overran(self) -> None:
        """The call was given up; its thread goes on, and keeps the slot."""
        self.is_overdue = True
        self._tell()
        self._overdue.began(self.task.name)

    def overdue_finished(self) -> None:
        """The thread has ended, and gives the slot back."""
        self._overdue.ended(self.task.name)

    @property
    def _can_be_stopped(self) -> bool:
        return self.task.is_async or self.task.executor == "process"

    def _lose(self) -> None:
        self.handed_on = True
        self._tell()

    def _tell(self) -> None:
        """Have its threads hear that they work for nobody: their waits for other tasks end."""
        if self.context is not None:
            self.context.cancelled = True
        for wait in list(self._waits):
            wait.end()

    def _cancel(self) -> None:
        # A task of asyncio's that is cancelled before its first step never makes it, so nobody would
        # give its slot back; it looks at handed_on instead. A second cancellation would disturb the task
        # that tidies up after the first.
        if self.started is not None and self.is_under_way:
            self.is_under_way = False
            self.started.cancel()


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


class RunOutcome(StrEnum):
    """The word that the log has for it."""

    DONE = "done"
    SNOOZED = "snoozed"
    RETRIED = "retried"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    INVALID = "invalid"  # payload or result do not fit their types
    DISCARDED = "discarded"
    CANCELLED = "cancelled"
    HANDED_ON = "handed on"


def outcome_of(run: Run, failure: BaseException | None) -> RunOutcome:
    """How a run ended; ``failure`` is what it raised."""
    if run.handed_on:
        return RunOutcome.HANDED_ON
    if run.cancelled:
        return RunOutcome.CANCELLED
    if run.again is not None:
        return RunOutcome.SNOOZED if isinstance(failure, Snooze) else RunOutcome.RETRIED
    match failure:
        case None:
            return RunOutcome.DONE
        case TaskTimeout():
            return RunOutcome.TIMED_OUT
        case PayloadInvalid():
            return RunOutcome.INVALID
        case Discard():
            return RunOutcome.DISCARDED
        case _:
            return RunOutcome.FAILED


logger = logging.getLogger("gearflow.worker")

_AS_USUAL: Final = (RunOutcome.DONE, RunOutcome.SNOOZED, RunOutcome.CANCELLED)


def log_run_ended(run: Run, outcome: RunOutcome, failure: BaseException | None, seconds: float) -> None:
    """Log how a run ended after so many seconds; ``failure`` is what it raised."""
    level = logging.INFO if outcome in _AS_USUAL else logging.WARNING
    if not logger.isEnabledFor(level):
        return
    fields = {**run.named(), "duration": seconds, "outcome": str(outcome)}
    if run.again is not None:
        fields |= {"delay": run.again.delay, "reason": run.again.reason}
    elif outcome is RunOutcome.DISCARDED and isinstance(failure, Discard):
        fields["reason"] = said(failure)
    shown = failure if outcome is RunOutcome.FAILED or outcome is RunOutcome.RETRIED else None
    if isinstance(shown, Control):
        shown = shown.__cause__
    logger.log(level, f"job {outcome}", extra=fields, exc_info=shown)


def log_handed_on(fields: dict[str, object]) -> None:
    """Log that a job which waited here for its next run is another worker's now."""
    logger.warning("job handed on", extra={**fields, "outcome": str(RunOutcome.HANDED_ON)})
