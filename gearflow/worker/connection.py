"""One connection to a server, while it lasts.

Its stream hands over what comes, and asks once in a turn of the event loop for what is to be written. So the
results of a turn and the GRABs for the slots that they free leave in one write. Beside it one loop looks for
a heartbeat, since the protocol has none: a server that is frozen or cut off would keep its GRABs unanswered,
and their slots from the other servers. Another one closes the connection to a server that is there, and
leaves a GRAB or a call of this worker without an answer. A third one waits for the time of the next request.

A connection that is closed on purpose (its loops are cancelled) says so to gearflow's own server, which
else would take the worker for dead: it releases each job that runs, and waits a moment for the answers.

What is to be written to one connection: collected from the loop and from threads, taken in one piece.

Progress that is newer than what the connection has taken replaces it: a task may report a million times
while the server takes ten, and nobody wants the others. It never moves past another packet of its job.
"""

import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Final

import anyio

from gearflow.client.stream import ServerStream
from gearflow.client.transport import BROKEN, PING, describe, until_silent
from gearflow.errors import ConnectionLost
from gearflow.protocol.codec import encode
from gearflow.protocol.constants import MAX_ANSWER, RES
from gearflow.protocol.framing import FrameBuffer
from gearflow.protocol.heartbeat import CHECKS, Timeouts
from gearflow.protocol.packets import EchoReq, Packet, SubmitJob, WorkComplete
from gearflow.protocol.request_queue import Call, Request
from gearflow.protocol.server_events import Credit
from gearflow.worker.parts import PartWindow
from gearflow.worker.session import (
    Assignment,
    Cancelled,
    Echo,
    Event,
    Recognized,
    Refusal,
)

if TYPE_CHECKING:
    from gearflow.protocol.server_calls import Message
    from gearflow.worker.runner import Runner
    from gearflow.worker.server_link import ServerLink


class Outbox:
    """Encoded packets in order. Owns state; safe to use from several threads."""

    __slots__ = ("_lock", "_packets", "_progress")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._packets: list[bytes] = []
        self._progress: dict[bytes, int] = {}  # handle -> where its last packet is, if that is progress

    def add(self, handle: bytes, packet: bytes) -> None:
        """Put a packet about a job at the end."""
        with self._lock:
            if self._progress:
                self._progress.pop(handle, None)
            self._packets.append(packet)

    def add_progress(self, handle: bytes, packet: bytes) -> None:
        """Put progress of a job at the end, or in the place of its progress that is not written yet."""
        with self._lock:
            place = self._progress.get(handle)
            if place is None:
                self._progress[handle] = len(self._packets)
                self._packets.append(packet)
            else:
                self._packets[place] = packet

    def drain(self) -> list[bytes]:
        """All that is there; the outbox is empty then."""
        with self._lock:
            packets, self._packets = self._packets, []
            if self._progress:
                self._progress.clear()
        return packets


_FLUSH: Final = b"flush"


class WorkerConnection:
    """One connection while it lasts. Owns its outbox, not the runs of the jobs that came through it."""

    def __init__(self, stream: ServerStream, owner: "ServerLink", runner: "Runner") -> None:
        self.reason = "it was closed"
        self.server = owner.address
        self.server_name = str(owner.address)
        self.batch = owner.batch
        self.outbox = Outbox()
        self.streams: dict[bytes, PartWindow] = {}
        """The windows of runs whose task yields, by the handles of their jobs."""
        self._stream = stream
        self._owner = owner
        self._runner = runner
        self._lane, self._session = owner.session(self.wake)
        self._is_woken = False
        self._has_begun = False
        self._due = inf  # of the lane, as ``_watch_due`` knows it
        self._due_changed = anyio.Event()
        self._is_registered = False
        self._tasks = anyio.create_task_group()
        limit = owner.max_workload + MAX_ANSWER
        self._frames = FrameBuffer(RES, max_body=limit, setting="max_workload", text=False)
        self._heard = True  # something, since the heartbeat last looked
        self._unsent = 0  # bytes, when the heartbeat last looked
        self._flushed = anyio.Event()
        self._is_leaving = False
        self._is_over = False  # no loop runs any more
        self._is_retired = False
        self._retired_for = ""  # the reason
        self._drained = anyio.Event()  # it is retired, and its last job has ended
        self._is_given_up = False  # the server is there, and does not answer
        self._is_closed = False

    @property
    def is_gearflow(self) -> bool:
        """The server is gearflow's own."""
        return self._session.is_gearflow

    def offers(self, function: str) -> bool:
        """Whether jobs of a function come by this connection."""
        return self._owner.offers(function)

    @property
    def group(self) -> str:
        """The name of the server's group, if it is in one."""
        return self._session.group

    @property
    def is_basic(self) -> bool:
        """The server knows the oldest packets only: no WORK_WARNING, no delayed jobs."""
        return self._session.is_basic

    @property
    def is_retired(self) -> bool:
        """Whether it takes no more jobs, and is closed when the last one has ended."""
        return self._is_retired

    async def serve(self, timeouts: Timeouts) -> None:
        """Talk until the connection ends; ``reason`` then says why."""
        try:
            async with self._tasks as tasks:
                loops = (
                    partial(self._stream.serve, self),
                    partial(self._watch_heartbeat, timeouts.heartbeat),
                    partial(self._watch_answers, timeouts.answer),
                    self._watch_due,
                    self._close_when_drained,
                )
                for loop in loops:
                    tasks.start_soon(self._until_broken, loop)
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(timeouts.release, shield=True):
                await self._leave()
            raise
        finally:
            self._is_over = True
        if self._is_given_up:
            with anyio.move_on_after(timeouts.release):
                await self._leave()

    def close(self) -> None:
        """Nothing more comes or goes: GRABs and submissions will not be answered."""
        self._is_closed = True
        self._lane.lost()
        self._flushed.set()
        self._session.lost(self.server, self.reason)

    async def submit(self, handle: bytes, packet: Packet, *, attached: bool) -> bytes:
        """Submit something on behalf of a job that runs here; returns the server's name for it.

        Returns when the server has it, or, if it is ``attached``, when it has ended.

        Raises:
            ServerError: The server refused, or it failed.
            ConnectionLost: The connection went first.
            LocalProtocolError: The packet is over the wire's limits.
        """
        if self._is_closed:
            raise ConnectionLost(f"the connection to {self.server} is closed")
        call = Call(anyio.Event(), attached=attached)
        self._send_call(call, handle, encode(packet))
        await call.answered.wait()
        if call.failure is not None:
            raise call.failure
        return call.handle

    async def ask(self, packet: bytes) -> bytes:
        """Make a call of a reserved function, and return its answer. Raises as ``submit``."""
        if self._is_closed:
            raise ConnectionLost(f"the connection to {self.server} is closed")
        call = Call(anyio.Event())
        self._send_call(call, b"", packet)
        await call.answered.wait()
        if call.failure is not None:
            raise call.failure
        assert isinstance(call.answer, WorkComplete)
        return call.answer.result

    def retire(self, reason: str) -> None:
        """Take no more jobs, and close the connection once those that came from here have ended.

        The stream may call this, so it starts no task.
        """
        if not self._is_retired and not self._is_over:
            self._is_retired, self._retired_for = True, reason
            self._lane.retire()
            self.check_drained()

    def check_drained(self) -> None:
        """A run may have been the last one."""
        if self._is_retired and not self._lane.in_flight and not self._runner.has_runs_of(self):
            self._drained.set()

    def release(self, handle: bytes, *, begun: bool) -> None:
        """Give a job back that is not run to its end here, if the server knows how to take it.

        ``begun`` is whether it was begun here.
        """
        from gearflow.protocol.server_calls import RELEASE, ReleaseRequest  # now: few workers need its models

        request = ReleaseRequest(handle=handle.decode(errors="replace"), begun=begun)
        self._notify(RELEASE, handle, request)

    def report(
        self,
        overdue: Mapping[str, int],
        texts: Mapping[str, str],
        resumable: Sequence[str],
        limits: Mapping[str, str],
        redact: Mapping[str, list[str]],
    ) -> None:
        """Report overdue runs and what is to be known of the tasks, to gearflow's own server."""
        from gearflow.protocol.workers import REPORT, ReportRequest  # as above

        report = ReportRequest(
            overdue=dict(overdue),
            texts=dict(texts),
            resumable=list(resumable),
            limits=dict(limits),
            redact=dict(redact),
        )
        self._notify(REPORT, b"", report)

    def wake(self) -> None:
        """Have the stream ask for what is to be written. To be called on the loop."""
        if not self._is_woken:
            self._is_woken = True
            self._stream.wake()

    def wake_from_anywhere(self) -> None:
        """As ``wake``, from any thread."""
        # The flag is cleared before the outbox is emptied. A caller that sees it set after it
        # put something in knows that it will be sent.
        if not self._is_woken:
            self._runner.post(self.wake)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call something on the loop after that time. From any thread."""
        self._runner.call_later(seconds, callback)

    async def flush(self) -> None:
        """Return when the server has handled all that was sent before, or the connection is gone.

        Closing a socket with unread bytes in it (a late NOOP) resets the connection, which may destroy
        what the server has not read yet; so its answer has to be awaited.
        """
        self.outbox.add(b"", encode(EchoReq(_FLUSH)))
        self.wake()
        await self._flushed.wait()
        for call in self._session.calls:  # they may have to wait for the server's disk
            await call.answered.wait()

    def _notify(self, function: bytes, handle: bytes, request: "Message") -> None:
        """Call a reserved function whose answer nobody waits for; nothing happens where there is none."""
        if self.is_gearflow and not self._is_closed:
            self._send_call(Call(anyio.Event()), handle, encode(SubmitJob(function, b"", request.to_wire())))

    def _send_call(self, call: Call, handle: bytes, packet: bytes) -> None:
        self._session.sent(call)
        self.outbox.add(handle, packet)
        self.wake()

    async def _leave(self) -> None:
        """Give back what runs here, if the server knows how to take it. To be called after the loops."""
        if not self.is_gearflow or self._stream.is_cut:
            return  # what follows could be taken for the rest of a packet
        self._is_leaving = True
        for run in self._runner.abandon(self):
            self.release(run.handle, begun=run.has_begun)
        try:
            await self._send(self.outbox.drain())
            while self._lane.unanswered or self._session.calls:  # a GRAB may still bring a job
                self.received(await self._stream.receive())
                await self._send(self.outbox.drain())
        except BROKEN:
            pass  # it is gone before it took them all

    async def _close_when_drained(self) -> None:
        await self._drained.wait()
        await self.flush()
        self.reason = self._retired_for

    async def _until_broken(self, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await loop()
        except BROKEN as error:
            self.reason = describe(error)
        self._tasks.cancel_scope.cancel()

    # -------------------------------------------------------------------------- called by the stream

    def received(self, data: bytes) -> None:
        """Handle bytes that came."""
        received, assigned = self._session.received, self._runner.assigned
        self._heard = True
        now = time.monotonic()
        for kind, body in self._frames.feed(data):
            event = received(kind, body, now)
            if type(event) is Assignment and not self._is_leaving:
                assigned(self, event)
            elif event is not None:
                self._handle(event)
        if self._session.registered and not self._is_registered:
            self._registered()
        if self._is_retired:
            self.check_drained()

    def take(self) -> bytes:
        """What is to be written now."""
        self._is_woken = False
        now = time.monotonic()
        if self._has_begun:
            packets = self.outbox.drain()
            packets.append(self._session.requests(now))
            if self.streams and not self.is_gearflow:
                for window in self.streams.values():
                    window.taken(window.position)
        else:
            self._has_begun = True
            hello = self._session.hello()
            # A quiet or busy worker asks for no job, but must still know that the server is there.
            packets = [hello, self._session.requests(now) or PING]
        if self._lane.due != self._due:
            self._due = self._lane.due
            self._due_changed.set()
        return b"".join(packets)

    def _registered(self) -> None:
        if not self._is_registered:
            self._is_registered = True
            self._owner.registered()

    def _handle(self, event: Event) -> None:
        match event:
            case Assignment(handle):  # which comes while this leaves
                self.release(handle, begun=False)
                self._owner.declined()
            case Recognized():
                self._runner.recognized(self)
                self._owner.recognized(self._session.group, self._session.server)
            case Cancelled(handle):
                self._runner.cancelled(self, handle)
            case Credit(handle, parts):
                if (window := self.streams.get(handle)) is not None:  # the run may have ended here
                    window.taken(parts)
            case Refusal():
                self._owner.refused(event)
            case Echo(data):
                self._registered()  # it has handled what was sent before
                if data == _FLUSH:
                    self._flushed.set()

    async def _send(self, packets: list[bytes]) -> None:
        if packets:
            await self._stream.send(b"".join(packets))

    async def _watch_due(self) -> None:
        """Have the lane looked at when it is due: it is asleep, or pausing."""
        while True:
            self._due_changed = anyio.Event()
            seconds = self._due - time.monotonic()
            if seconds <= 0:
                self.wake()
            with anyio.move_on_after(seconds if seconds > 0 else inf):
                await self._due_changed.wait()

    async def _watch_heartbeat(self, heartbeat: float) -> None:
        """Return when the server has been silent for too long."""
        self.reason = await until_silent(heartbeat, self._take_heard, self._ping)

    async def _watch_answers(self, limit: float) -> None:
        """Return when the server has left a call or all GRABs without an answer for too long."""
        calls: dict[Request, int] = {}  # and at how many checks each had no answer
        grabs = 0
        while True:
            await anyio.sleep(limit / CHECKS)
            if self._stream.unsent:  # a long result is before them; the heartbeat sees whether it goes on
                calls, grabs = {}, 0
                continue
            calls = {call: calls.get(call, 0) + 1 for call in self._session.calls}
            grabs = grabs + 1 if self._session.owes_grab() else 0
            if max(grabs, *calls.values(), 0) > CHECKS:
                self.reason = f"it left a request without an answer for {limit:g} s"
                self._is_given_up = True
                return

    def _take_heard(self) -> bool:
        """Whether the server has said something, or taken a part of what is sent, since the last look."""
        unsent = self._stream.unsent
        heard = self._heard or unsent < self._unsent
        self._heard, self._unsent = False, unsent
        return heard

    def _ping(self) -> None:
        self.outbox.add(b"", PING)
        self.wake()
