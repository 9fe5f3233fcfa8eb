"""One connection to one server: what is to be sent, and what waits for answers.

The protocol has no request numbers. A server answers the requests of a connection in the order it got
them, and what workers say of jobs comes in between, named by handle alone. So:

* a request goes into the *outbox*, from which the stream takes all there is and sends it at once; from
  then on it stands in the queue of those *sent*, whose first one the next answer belongs to;
* JOB_CREATED registers the job there and then, because its end may be in the same bytes;
* a caller that gives up leaves its request in the queue, marked, so that its answer is still taken.

A request in the outbox is certainly not known to the server; one that was handed to the socket may be.
When the connection goes, this decides between ``NotSent`` (another server may get it) and
``SubmitUnknown`` (nobody may, unasked). A server that leaves a request without an answer for too long is
as good as gone, and the connection is closed: a stopped process keeps its connections open for ever. For
the end of a job there is no such limit; where nothing is heard while one is attached, the server is asked
for an echo.

On C gearmand a gearflow worker tells how a job fails by a marked WORK_WARNING, and ends it by WORK_FAIL
(``gearflow.protocol.codec`` says why). Such a warning is held back until the next packet of its job. Before
WORK_FAIL it is the exception; before any other packet it is a warning.

A caller that no longer wants a job is forgotten here at once. The client notifies gearflow's own server
(``gearflow:detach``); it sends one copy less from where it accepts that on.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Final

import anyio

from gearflow.client.attached_jobs import AttachedJobs, Withdrawal, jobs_of
from gearflow.client.config import ServerAddress
from gearflow.client.job import ClientJob, JobEvent, JobHandle
from gearflow.client.names import to_text
from gearflow.client.requests import Heartbeat, NotSent, ReservedJob, Submission
from gearflow.client.stream import ServerStream
from gearflow.client.transport import (
    BROKEN,
    NO_TLS,
    NO_TOKEN,
    PING,
    Unreachable,
    describe,
    open_stream,
    until_silent,
)
from gearflow.errors import ConnectionLost, RemoteProtocolError
from gearflow.protocol.codec import decode, encode, marked_failure
from gearflow.protocol.constants import MAX_ANSWER, MAX_PAYLOAD, RES, TLS_REQUIRED, PacketType
from gearflow.protocol.framing import FrameBuffer
from gearflow.protocol.heartbeat import CHECKS, Timeouts
from gearflow.protocol.packets import (
    Error,
    OptionReq,
    SubmitJob,
    WorkData,
    WorkException,
    WorkFail,
    WorkStatus,
    WorkWarning,
)
from gearflow.protocol.request_queue import IDENTIFY, Identification, Ignored, Request, RequestQueue
from gearflow.runtime.eventloop import signals
from gearflow.security.tls import PLAIN, Security

logger = logging.getLogger(__name__)

_EXCEPTIONS: Final = encode(OptionReq(b"exceptions"))
_MIB: Final = 1 << 20
_CREATED: Final = int(PacketType.JOB_CREATED)  # an enum's member takes twice as long to look up
_COMPLETE: Final = int(PacketType.WORK_COMPLETE)
_DATA: Final = int(PacketType.WORK_DATA)


@dataclass(frozen=True, slots=True)
class ServerFeatures:
    """The features that a server reported when this client connected."""

    gearflow: bool
    """Whether it is gearflow's own server, with its reserved functions."""
    exceptions: bool
    """Whether it passes on why jobs failed (WORK_EXCEPTION)."""
    group: str = ""
    """The name of its group, if it shares a database with others."""
    server: str = ""
    """The name of this run of the server, if it is in a group. It is the same by whatever address it is
    reached."""


class Connection:
    """A connection for its whole life; ``run`` is that life, in a task of the client's task group."""

    def __init__(
        self,
        server: ServerAddress,
        security: Security = PLAIN,
        max_result: int = MAX_PAYLOAD,
        on_open: "Callable[[Connection], object]" = lambda _: None,
    ) -> None:
        self.server = server
        self._on_open = on_open
        self._security = security
        self.features = ServerFeatures(gearflow=False, exceptions=False)
        self.opened = anyio.Event()
        """Set when the handshake is over, in whatever way; see ``is_open``."""
        self.new_signal: Final = signals()
        """A signal for a caller."""
        self.takes_options = True
        """Whether gearflow's server takes options in a background submission; until it refuses one."""
        self.is_open = False
        self.served = False
        """Whether it was ever open."""
        self.reason = ""
        """Why it is not open (any more), once ``opened`` is set."""
        self.fell_silent = False
        """Whether it was given up because the server said nothing any more."""
        self._fault: RemoteProtocolError | None = None  # that ended it
        self._life: anyio.CancelScope | None = None  # while it is connected
        self._max_result = max_result
        self._frames = FrameBuffer(RES, max_body=MAX_ANSWER, setting="max_result", text=False)
        self._outbox: dict[Request, bytes] = {}
        self._sent = RequestQueue[Request]()
        self._attached: dict[bytes, ClientJob | AttachedJobs] = {}  # by handle; most have a single job
        self._stream: ServerStream  # once it is connected
        self._batch_size = 0  # bytes of what was sent last, or is being sent
        self._heard = True  # something, since the heartbeat last looked
        self._closed = False
        self._has_complained = False  # about an error that answers nothing, once
        self._notices: dict[bytes, bytes] = {}  # packets that have no answer, by handle
        self._holders: set[object] = set()  # as long as there is one, nothing is read

    # ------------------------------------------------------------------------------------ for callers

    async def ask(self, request: Request, packet: bytes) -> None:
        """Send a request and wait until it is answered; its answer is then in the request.

        A cancelled caller leaves nothing behind: what was not sent never will be, an answer on its way is
        taken and dropped, a job is detached from.

        Raises:
            NotSent: The connection closed before the request left.
            SubmitUnknown, ConnectionLost: It closed after that, before the answer.
            ServerError: The server refused the request; QueueFull for a full queue.
        """
        self.post(request, packet)
        try:
            await request.answered.wait()
        except BaseException:
            self.abandon(request)
            raise
        if request.failure is not None:
            raise request.failure

    def post(self, request: Request, packet: bytes) -> None:
        """Send a request, together with others; ``request.answered`` tells when it is answered, or failed.

        Raises:
            NotSent: The connection is closed.
        """
        if self._closed:
            raise NotSent(self.reason)
        is_first = not self._outbox
        self._outbox[request] = packet
        if self._frames.max_body < self._max_result:
            self._expect(request, packet)
        if is_first:
            # Where nothing is under way, most likely nothing else is to be sent in this turn.
            self._stream.wake(now=not self._attached and self._sent.first is None)

    def _expect(self, request: Request, packet: bytes) -> None:
        """Let in an answer as large as this request may bring one."""
        frames = self._frames
        if isinstance(request, Submission) and request.attached:
            frames.max_body = self._max_result + MAX_ANSWER
        elif request.expected is PacketType.ECHO_RES:
            frames.max_body = max(frames.max_body, len(packet))

    def abandon(self, request: Request) -> None:
        """Nobody waits for the answer any more: do not send the request, or drop what it brings."""
        if self._outbox.pop(request, None) is None:
            request.abandoned = True
            if isinstance(request, Submission) and request.job is not None:
                request.job.cancel()

    def detach(self, job: ClientJob) -> bool:
        """Forget a job. True if its server is notified that the job is no longer needed.

        Its handle stays until the server has taken that in, or ends the job: what comes is known to be ours.
        """
        attached = self._group(job.raw_handle)
        if attached is None or job not in attached.jobs:
            return False
        attached.jobs.remove(job)
        return self._withdraw(job.raw_handle)

    def leave_parts(self, handle: bytes) -> None:
        """Notify gearflow's server that a job need not wait for a reader of its parts.

        A reader comes, at the end, and leaves at once.
        """
        if self._closed or not self.features.gearflow:
            return
        from gearflow.protocol.server_calls import STREAM, StreamRequest

        request = StreamRequest(handle=handle.decode(errors="replace"), after="latest", lag="skip")
        call = Submission(to_text(STREAM), b"", Ignored(), attached=True)
        self.post(call, encode(SubmitJob(STREAM, b"", request.to_wire())))
        call.abandoned = True  # it is sent, and the connection detaches from it when it has a handle

    def tell(self, handle: bytes, packet: bytes) -> None:
        """Send a packet that has no answer. A later one with the same handle may replace it."""
        if not self._closed:
            self._notices[handle] = packet
            self._stream.wake()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way: no request, and no job."""
        return not (self._outbox or self._attached or self._notices) and self._sent.first is None

    def leave(self, reason: str) -> None:
        """Close it, if nothing is under way. What comes later is not sent."""
        if self.is_open and self.is_idle and self._life is not None:
            self.reason = reason
            self._closed, self.is_open = True, False
            self._life.cancel()

    def hold(self, holder: object) -> None:
        """Read no more from the server until all that hold the connection have released it."""
        if not self._closed:
            self._holders.add(holder)
            self._stream.pause()

    def release(self, holder: object) -> None:
        """Read on, unless others hold the connection."""
        if holder in self._holders:
            self._holders.discard(holder)
            if not self._holders:
                self._stream.resume()

    def _withdraw(self, handle: bytes) -> bool:
        """Tell gearflow's server that a submission wants its job no more."""
        if not self.features.gearflow:
            return False
        from gearflow.protocol.server_calls import DETACH, DetachRequest  # it imports pydantic

        request = DetachRequest(handle=handle.decode(errors="replace"))
        withdrawal = Withdrawal(self._attached, handle)
        call = Submission(to_text(DETACH), b"", withdrawal, attached=False)
        self.post(call, encode(SubmitJob(DETACH, b"", request.to_wire())))
        return True

    # ---------------------------------------------------------------------------------------- its life

    async def run(self, timeouts: Timeouts) -> None:
        """Connect, shake hands, serve until the connection ends or the surrounding scope is cancelled."""
        self.reason = "the client was closed"  # unless something else ends it
        try:
            await self._connect_and_serve(timeouts)
        finally:
            self._on_connection_lost()

    async def _connect_and_serve(self, timeouts: Timeouts) -> None:
        deadline = anyio.current_time() + timeouts.connect
        try:
            stream = await open_stream(self.server, self._security, timeouts.connect)
        except Unreachable as error:
            self.reason = str(error)
            return
        async with stream, anyio.create_task_group() as tasks:
            self._stream = stream
            tasks.start_soon(self._serve, tasks.cancel_scope)
            with anyio.CancelScope(deadline=deadline) as limit:
                await self._shake_hands()
            if limit.cancelled_caught:
                self.reason = (
                    f"it did not answer OPTION_REQ within {timeouts.connect:g} s; is it a Gearman server?"
                )
            elif self.is_open:
                self._life = tasks.cancel_scope
                tasks.start_soon(self._watch_heartbeat, timeouts.heartbeat, tasks.cancel_scope)
                await self._watch(timeouts.answer)
            tasks.cancel_scope.cancel()

    async def _shake_hands(self) -> None:
        """Set the options, and learn from the answers what the server is."""
        exceptions = Request(PacketType.OPTION_RES, "OPTION_REQ exceptions", self.new_signal())
        identification = Identification(self.new_signal())
        self.post(exceptions, _EXCEPTIONS)
        self.post(identification, IDENTIFY)
        await exceptions.answered.wait()
        await identification.answered.wait()
        if identification.wants_token:
            self.reason = NO_TOKEN
            return
        gearflow = identification.is_gearflow
        group, server = identification.group
        self.features = ServerFeatures(gearflow, exceptions.answer is not None, group, server)
        self.is_open = self.served = True
        self._on_open(self)
        self.opened.set()
        logger.debug("connected", extra={"server": str(self.server), "gearflow": gearflow})

    def take(self) -> bytes:
        """All that is in the outbox, which counts as sent now."""
        batch = self._outbox
        if not batch:
            return self._take_notices() if self._notices else b""
        self._outbox = {}
        self._sent.sent(batch)
        data = b"".join(batch.values())
        if self._notices:
            data += self._take_notices()
        self._batch_size = len(data)
        return data

    def _take_notices(self) -> bytes:
        notices, self._notices = self._notices, {}
        return b"".join(notices.values())

    async def _watch(self, timeout: float) -> None:
        """Return when the server has left a request without an answer for too long.

        A heartbeat has a limit of its own, which does not hold once no job is attached. So it hides no
        request behind it.
        """
        oldest: Request | None = None
        looks = 0
        while True:
            await anyio.sleep(timeout / CHECKS)
            looks += 1
            unanswered = chain(self._sent, self._outbox)
            first = next((request for request in unanswered if not isinstance(request, Heartbeat)), None)
            if first is None or first is not oldest or self._holders:
                oldest, looks = first, 0
            elif (looks - CHECKS) * timeout / CHECKS >= self._batch_size / _MIB:
                self.reason = f"it gave no answer for {looks * timeout / CHECKS:g} s"
                self.fell_silent = True
                return

    async def _watch_heartbeat(self, heartbeat: float, life: anyio.CancelScope) -> None:
        """End the connection when a server that has an attached job is silent for too long."""
        self.reason = await until_silent(heartbeat, self._take_heard, self._ping, self._owes_an_answer)
        self.fell_silent = True
        life.cancel()

    def _take_heard(self) -> bool:
        heard, self._heard = self._heard, False
        return heard or not self._attached or bool(self._holders)

    def _ping(self) -> None:
        self.post(Heartbeat(), PING)

    def _owes_an_answer(self) -> bool:
        """Whether the next answer is not that to a ping. ``_watch`` has a limit for it."""
        return not isinstance(self._sent.first, Heartbeat)

    async def _serve(self, life: anyio.CancelScope) -> None:
        """Send what is in the outbox and take in what the server says, until it stops or talks nonsense."""
        try:
            await self._stream.serve(self)
        except BROKEN as error:
            self.reason = describe(error)
            if isinstance(error, RemoteProtocolError):
                self._fault = error
        life.cancel()

    def _on_connection_lost(self) -> None:
        """Close the connection. Everybody who waits learns the state of their request or job."""
        self._closed = True
        self.is_open = False
        for request in self._sent.drain():
            request.refuse(request.lost(self.server, self.reason))
        for request in self._outbox:
            request.refuse(NotSent(self.reason))
        self._outbox.clear()
        lost, self._attached = self._attached, {}
        for attached in lost.values():
            for job in jobs_of(attached):
                job.lose(partial(_lost, self._lost_message(job), self._fault))
        self.opened.set()
        logger.debug("connection closed", extra={"server": str(self.server), "reason": self.reason})

    def _lost_message(self, job: ClientJob) -> str:
        return (
            f"{self.server} was lost ({self.reason}) while job {job.handle} of {job.function!r} "
            "was attached; the job may run on"
        )

    # ---------------------------------------------------------------------------- what the server says

    def received(self, data: bytes) -> None:
        """Handle what the server says."""
        self._heard = True
        # The two packets of every job, and parts, are taken apart here, all others by the codec.
        for kind, body in self._frames.feed(data):
            if kind == _CREATED:
                self._handle_created(body)
            elif kind == _COMPLETE:
                handle, _, result = body.partition(b"\0")
                attached = self._attached.pop(handle, None)
                if isinstance(attached, ClientJob):
                    attached.complete(result)
                elif attached is not None:
                    for job in jobs_of(attached):
                        job.complete(result)
            elif kind == _DATA:
                handle, _, part = body.partition(b"\0")
                fed = self._attached.get(handle)
                if isinstance(fed, ReservedJob) and (feed := fed.feed) is not None:
                    fed.add_data(feed, part)
                else:
                    self._handle_packet(kind, body)
            else:
                self._handle_packet(kind, body)

    def _handle_packet(self, kind: int, body: bytes) -> None:
        packet = decode(kind, body)
        match packet:
            case WorkData() | WorkStatus() | WorkWarning():
                self._handle_event(packet, kind, body)
            case WorkFail(handle):
                attached = self._attached.get(handle)
                failure = attached.failure() if isinstance(attached, AttachedJobs) else None
                for job in self._ended(handle):
                    job.fail_remotely(failure)
            case WorkException(handle, exception):
                for job in self._ended(handle):
                    job.fail_remotely(exception)
            case Error(code, text):
                self._handle_error(code, text)
            case _:
                self._sent.match(kind).resolve(packet)

    def _handle_created(self, handle: bytes) -> None:
        request = self._sent.match(PacketType.JOB_CREATED)
        assert isinstance(request, Submission)  # nothing else expects this packet
        if not request.attached:
            request.handle = JobHandle(to_text(handle), self.server)
        elif request.abandoned:
            self._attach(handle, None)
            self._withdraw(handle)
        else:
            job = request.joins
            if job is None:
                job = request.job_type(handle, self.server, request.function, self)
            request.job = job
            if handle in self._attached:
                self._attach(handle, job)
            else:
                self._attached[handle] = job
            if request.joins is not None:
                job.move(handle, self.server, self)
            if request.to_the_end and not job.done:
                job.wake_at_end(request.answered)
                return
        request.answered.set()

    def _attach(self, handle: bytes, job: ClientJob | None) -> None:
        group = self._group(handle)
        if group is None:
            group = self._attached[handle] = AttachedJobs()
        group.attach(job)

    def _group(self, handle: bytes) -> AttachedJobs | None:
        """The jobs on a handle, with what is known about them; None for one that is not ours."""
        attached = self._attached.get(handle)
        if isinstance(attached, ClientJob):
            job, attached = attached, AttachedJobs()
            attached.attach(job)
            self._attached[handle] = attached
        return attached

    def _handle_event(self, event: JobEvent, kind: int, body: bytes) -> None:
        job = self._attached.get(event.handle)
        if isinstance(job, ReservedJob) and job.feed is not None and type(event) is WorkStatus:
            job.add_event(event)  # by itself, so that its parts are passed on without a group
            return
        attached = self._group(event.handle)
        if attached is None or attached.is_copy(kind, body):
            return
        if (
            type(event) is WorkWarning
            and not self.features.gearflow
            and marked_failure(event.data) is not None
        ):
            attached.notify_held_back()
            attached.held_back = event
        else:
            attached.notify(event)

    def _handle_error(self, code: bytes, text: bytes) -> None:
        if code == TLS_REQUIRED:
            raise Unreachable(NO_TLS)
        if self._sent.refuse(code, text) is None:
            level = logging.DEBUG if self._has_complained else logging.WARNING
            self._has_complained = True
            logger.log(
                level,
                "the server sent an error that answers nothing",
                extra={"code": to_text(code), "text": to_text(text)},
            )

    def _ended(self, handle: bytes) -> list[ClientJob]:
        """The jobs on a handle that the server will not name again; none for one that is not ours."""
        attached = self._attached.pop(handle, None)
        return [] if attached is None else jobs_of(attached)


def _lost(message: str, cause: RemoteProtocolError | None) -> ConnectionLost:
    """The error of a job whose connection closed."""
    error = ConnectionLost(message)
    error.__cause__ = cause
    return error
