"""One run of a job: its task, the options of its envelope, and its way to the server that gave it.

Middleware is called around it: the first is the outermost, the task is inside the last.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from gearflow.errors import LocalProtocolError
from gearflow.protocol.codec import encode
from gearflow.protocol.constants import HEADER, MAX_BODY, REQ, WINDOW_BYTES, WINDOW_PARTS, PacketType
from gearflow.protocol.envelope import MAGIC, Envelope, unwrap
from gearflow.protocol.packets import Packet, WorkFail, WorkStatus
from gearflow.protocol.trace import trace_id_of
from gearflow.tasks import Context, Progress, RunInfo
from gearflow.tasks.context import moment_of
from gearflow.tasks.hooks import Middleware, Proceed, name_of
from gearflow.tasks.wait_tracking import Waiting
from gearflow.tracing import find_tracing
from gearflow.worker.connection import WorkerConnection
from gearflow.worker.event_loop import LoopStarted
from gearflow.worker.executor import AnyTask, OverdueRuns
from gearflow.worker.parts import PROCESS_BYTES, PROCESS_PARTS, PartWindow
from gearflow.worker.retry_policy import RetryAfter
from gearflow.worker.slots import SlotAllocator

if TYPE_CHECKING:
    from gearflow.tracing.spans import RunSpan  # it imports OpenTelemetry

_NO_ENVELOPE: Final = Envelope()
_WORK_COMPLETE: Final = int(PacketType.WORK_COMPLETE)
_WORK_DATA: Final = int(PacketType.WORK_DATA)


class Run:
    """State of one run. The runner makes it when the job gets a slot, and forgets it when it has ended."""

    # A worker makes many of them, so what few of them change belongs to the class.
    interrupt: Callable[[], None] | None = None  # ends what a process does of it
    interrupt_item: Callable[[int], None] | None = None  # has it know that an item is cancelled
    is_overdue: bool = False  # its thread runs on after the end of the job
    retry: RetryAfter | None = None  # when the job runs again
    alone: Callable[[], object] | None = None  # begins it, if the worker is to run nothing else
    parts: PartWindow | None = None  # if the task yields
    last_status: WorkStatus | None = None  # that was reported
    slots: SlotAllocator | None = None  # of its task, if those are not the worker's
    span: "RunSpan | None" = None  # of this run, if the program traces
    trace_id: str = ""  # if there is a trace
    has_begun: bool = True
    """Whether the next run of the job is not its first. If it is released, the server learns of it."""

    def __init__(
        self, task: AnyTask, handle: bytes, connection: WorkerConnection, overdue: OverdueRuns
    ) -> None:
        self.task = task
        self.handle = handle
        self.connection = connection
        self.envelope = _NO_ENVELOPE
        self.limit: float | None = None  # seconds it may take
        self.context: Context | None = None  # if the task takes one
        self.began = time.perf_counter()  # or, from its first step on, when it took that
        self.started: LoopStarted | None = None  # holds the loop's task, which the loop itself does not
        self.is_under_way = False  # its first step was made, and it may be cancelled
        self.is_settled = False  # the call is over: only the end of the job is still sent
        self.cancelled = False  # at the server: nobody waits for it
        self.handed_on = False  # the server gives the job to another worker
        self._overdue = overdue
        self._waits: set[Waiting] = set()  # of its threads, for other tasks

    @property
    def handle_text(self) -> str:
        """The handle, for contexts and the log."""
        return self.handle.decode("utf-8", "surrogateescape")

    @property
    def last_progress(self) -> tuple[int, int, str | None] | None:
        """The progress for the envelope of the next run: the last of this run, or of the one before."""
        if self.last_status is None:
            return self.envelope.previous
        total, _, message = self.last_status.denominator.partition(b"\0")
        return int(self.last_status.numerator), int(total), message.decode() or None

    @property
    def previous(self) -> Progress | None:
        """The last progress of the run before."""
        if self.envelope.previous is None:
            return None
        done, total, message = self.envelope.previous
        return Progress(done, total, message or "")

    def log_fields(self) -> dict[str, Any]:
        """The fields of a log record about it."""
        return {
            "task": self.task.name,
            "handle": self.handle_text,
            "server": self.connection.server_name,
            **self.record_fields(),
        }

    def record_fields(self) -> dict[str, object]:
        """The fields of all log records that are made in it."""
        fields: dict[str, object] = {
            "handle": self.handle_text,
            "function": self.task.name,
            "attempt": self.envelope.attempt,
        }
        if self.trace_id:
            fields["trace_id"] = self.trace_id
        return fields

    @property
    def traced(self) -> "Sequence[Run]":
        """The runs of the jobs that are traced."""
        return (self,)

    def trace(self) -> None:
        """Begin the span of this run, and make it the current one in this context."""
        traces = [run.envelope.trace for run in self.traced if run.envelope.trace is not None]
        tracing = find_tracing()
        if tracing is not None:
            server = self.connection.server
            self.span = tracing.process(
                self.task.name,
                traces,
                handle=self.handle.decode(errors="replace"),
                attempt=self.envelope.attempt,
                server=(server.host, server.port),
                count=self.envelope.chunk or len(self.traced),
                may_be_child=self.task.batch is None,
            )
            self.trace_id = self.span.trace_id
        elif len(traces) == 1:
            self.trace_id = trace_id_of(traces[0])

    def info(self) -> RunInfo:
        """The same for middleware and operators."""
        return RunInfo(
            task=self.task.name,
            handle=self.handle_text,
            server=self.connection.server_name,
            attempt=self.envelope.attempt,
            started=time.time() - (time.perf_counter() - self.began),
        )

    def open(self, workload: bytes) -> bytes:
        """Read the envelope, if there is one, and return the payload.

        Raises:
            PayloadInvalid: The workload starts like an envelope, but has no valid one.
        """
        if workload.startswith(MAGIC):
            self.envelope, workload = unwrap(workload)
        self.limit = self.task.timeout if self.envelope.timeout is None else self.envelope.timeout
        if self.task.payload.signature.takes_context:
            self.renew_context()
        if self.task.is_stream:
            self._open_parts()
        return workload

    def renew_context(self) -> None:
        """Make the context of a call that begins now, if the task takes one."""
        if self.task.payload.signature.takes_context:
            self.context = Context(
                handle=self.handle_text,
                function=self.task.name,
                send=self.send,
                attempt=self.envelope.attempt,
                deadline=None if self.limit is None else time.time() + self.limit,
                parts=self.envelope.parts,
                previous=self.previous,
                scheduled_at=moment_of(self.envelope.scheduled_at),
                later=self.connection.call_later,
            )
            # First set it, then check, as in ``waits``.
            if self.is_for_nobody:
                self.context.cancelled = True

    def _open_parts(self) -> None:
        in_process = self.task.executor == "process"  # it has a part of the window itself
        self.parts = PartWindow(
            self._send_part,
            position=self.envelope.parts,
            parts=WINDOW_PARTS - (PROCESS_PARTS if in_process else 0),
            size=WINDOW_BYTES - (PROCESS_BYTES if in_process else 0),
        )
        self.connection.streams[self.handle] = self.parts

    def _send_part(self, part: bytes) -> None:
        handle = self.handle
        size = len(handle) + 1 + len(part)
        if size > MAX_BODY:
            raise _too_large(part)
        packet = b"%b%b\0%b" % (HEADER.pack(REQ, _WORK_DATA, size), handle, part)  # as in ``complete``
        self.connection.outbox.add(handle, packet)
        self.connection.wake_from_anywhere()

    def _close_parts(self) -> None:
        if self.parts is not None:
            self.parts.close()
            streams = self.connection.streams
            if streams.get(self.handle) is self.parts:  # else the job runs here again
                del streams[self.handle]

    def send(self, packet: Packet) -> None:
        """Report something before the end; from any thread. What comes after the end is dropped."""
        if self.is_settled or self.handed_on:
            return
        outbox = self.connection.outbox
        if isinstance(packet, WorkStatus):
            is_first, self.last_status = self.last_status is None, packet
            if not self.connection.is_gearflow:  # which alone takes a message
                packet = replace(packet, denominator=packet.denominator.partition(b"\0")[0])
            (outbox.add if is_first else outbox.add_progress)(self.handle, encode(packet))
        else:
            outbox.add(self.handle, encode(packet))
        self.connection.wake_from_anywhere()

    def complete(self, result: bytes) -> None:
        """End the job with its result.

        Raises:
            LocalProtocolError: The result is over the wire's limit.
        """
        handle = self.handle
        size = len(handle) + 1 + len(result)
        if size > MAX_BODY:
            raise _too_large(result)
        # One is written for each job, so it does without the codec's packets.
        self.end(b"%b%b\0%b" % (HEADER.pack(REQ, _WORK_COMPLETE, size), handle, result))

    def end(self, packet: bytes) -> None:
        """Write the one packet that ends the job: WORK_FAIL, whatever came of it, if it was cancelled."""
        if self.context is None and self.parts is None:
            self.is_settled = True
        else:
            self._stop_reports()
        if not self.handed_on:
            if self.cancelled:
                packet = encode(WorkFail(self.handle))
            self.connection.outbox.add(self.handle, packet)
            self.connection.wake()

    def _stop_reports(self) -> None:
        """Send the last progress, and then nothing but the end of the job."""
        if self.context is not None:
            self.context.flush()
        self.is_settled = True
        if self.parts is not None:
            self._close_parts()

    def fail(self) -> None:
        """End the job with WORK_FAIL."""
        self.end(encode(WorkFail(self.handle)))

    def settle(self) -> None:
        """The call is over, though what becomes of the job is not decided: it is not stopped any more."""
        self._stop_reports()
        self.is_under_way = False

    @property
    def is_for_nobody(self) -> bool:
        """Whether its end is not wanted any more: the job was cancelled, or another worker gets it."""
        return self.cancelled or self.handed_on

    def waits(self, wait: Waiting) -> None:
        """A thread of it waits for another task, as long as the result is wanted. Called in any thread."""
        self._waits.add(wait)
        # First note it, then check: whichever of the two threads comes second sees the other.
        if self.is_for_nobody or self.is_overdue:
            wait.end()

    def has_waited(self, wait: Waiting) -> None:
        """It does not any more. Called in any thread."""
        self._waits.discard(wait)

    def cancel(self) -> None:
        """Nobody wants the job any more: stop a coroutine or a process, notify a thread.

        It still ends at the server.
        """
        self.cancelled = True
        self._notify_threads()
        if self.interrupt is not None:
            self.interrupt()
        elif self._can_be_stopped:
            self._cancel()

    def hand_on(self) -> None:
        """The connection is gone: stop a coroutine or a process, notify a thread."""
        self.handed_on = True
        self._notify_threads()
        if self._can_be_stopped:
            self._cancel()

    def abandon(self) -> None:
        """The worker leaves: stop a coroutine or a process, leave a thread to itself."""
        self.handed_on = True
        self._notify_threads()
        self._cancel()

    def overran(self) -> None:
        """The call was given up; its thread runs on, and keeps the slot."""
        self.is_overdue = True
        self._notify_threads()
        self._overdue.began(self.task.name)

    def overdue_finished(self) -> None:
        """The thread has ended, and gives the slot back."""
        self._overdue.ended(self.task.name)

    @property
    def _can_be_stopped(self) -> bool:
        return self.task.is_async or self.task.executor == "process"

    def _notify_threads(self) -> None:
        """Set ``Context.cancelled``, and end the waits of its threads for other tasks and for readers."""
        if self.context is not None:
            self.context.cancelled = True
        if self.alone is not None:  # it may wait for the end of the others
            self.alone()
        self._close_parts()
        for wait in list(self._waits):
            wait.end()

    def _cancel(self) -> None:
        # A task of asyncio's that is cancelled before its first step never makes it, so nobody would
        # give its slot back; it checks handed_on instead. A second cancellation would disturb the task
        # that tidies up after the first.
        if self.started is not None and self.is_under_way:
            self.is_under_way = False
            self.started.cancel()


def _too_large(result: bytes) -> LocalProtocolError:
    return LocalProtocolError(f"a result of {len(result)} bytes is over the wire's limit of 4 GiB")


async def run_within(
    middleware: Sequence[Middleware], info: RunInfo, call: Callable[[], Awaitable[bytes]]
) -> bytes:
    """What the call returns, which is made inside all middleware.

    Raises:
        RuntimeError: One did not await ``proceed()``, or did it twice.
        BaseException: What the call or a middleware raised.
    """
    results: list[bytes] = []

    async def innermost() -> None:
        results.append(await call())

    proceed: Proceed = innermost
    for each in reversed(middleware):
        proceed = _Step(each, info, proceed).run
    await proceed()
    return results[0]


class _Step:
    """One middleware, and what is inside it. Owns state."""

    def __init__(self, middleware: Middleware, info: RunInfo, inside: Proceed) -> None:
        self._middleware = middleware
        self._info = info
        self._inside = inside
        self._has_begun = False
        self._has_ended = False
        self._failure: BaseException | None = None

    async def run(self) -> None:
        await self._middleware(self._info, self._proceed)
        if self._failure is not None:  # and the middleware has swallowed it, but there is no result
            raise self._failure
        if not self._has_ended:
            raise RuntimeError(
                f"middleware {name_of(self._middleware)} returned before the run had ended; "
                "it has to 'await proceed()'"
            )

    async def _proceed(self) -> None:
        if self._has_begun:
            raise RuntimeError(
                f"middleware {name_of(self._middleware)} called proceed() twice; a run happens once"
            )
        self._has_begun = True
        try:
            await self._inside()
        except BaseException as failure:
            self._failure = failure
            raise
        self._has_ended = True
