"""One connection to one server: a reader, a writer, and what waits for answers.

The protocol has no request numbers. A server answers the requests of a connection in the order it got
them, and what workers say of jobs comes in between, named by handle alone. So:

* a request goes into the *outbox*, from which the writer takes all there is and sends it at once; from
  then on it stands in the queue of those *sent*, whose first one the next answer belongs to;
* JOB_CREATED makes the reader register the job there and then, because its end may be in the same bytes;
* a caller that gives up leaves its request in the queue, marked, so that its answer is still taken.

A request in the outbox is certainly not known to the server; one that was handed to the socket may be.
When the connection goes, this decides between ``NotSent`` (another server may get it) and
``SubmitUnknown`` (nobody may, unasked). A server that leaves a request without an answer for too long is
as good as gone, and the connection is closed: a stopped process keeps its connections open for ever.

Several submissions of one connection may coalesce on one job. gearmand, the Perl server and gearflow's
own then send everything once for each of them; ``_Attached`` passes one copy to each.
"""

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, cast

import anyio
from anyio.abc import SocketAttribute, SocketStream

from gearflow.client.address import ServerAddress
from gearflow.client.job import ClientJob, JobEvent, JobHandle
from gearflow.client.names import to_text
from gearflow.client.requests import NotSent, Request, Submission
from gearflow.errors import ConnectionLost, QueueFull, RemoteProtocolError, ServerError
from gearflow.protocol.codec import decode, encode
from gearflow.protocol.constants import RES, PacketType
from gearflow.protocol.framing import TEXT, Frame, FrameBuffer
from gearflow.protocol.packets import (
    Error,
    OptionReq,
    WorkData,
    WorkException,
    WorkFail,
    WorkStatus,
    WorkWarning,
)

logger = logging.getLogger(__name__)

RECEIVE_SIZE: Final = 262_144
"""Bytes: what asyncio's transports read at most in one go."""

KEEPALIVE: Final = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
"""A host that vanished without a word is noticed after two minutes: the protocol has no heartbeat."""

OPTIONS: Final = (b"exceptions", b"gearflow")

LOOKS: Final = 4
"""How often it is looked, in the time a server has to answer, whether it has. They are counted, rather than
the time: where the event loop stood still, the answer may be there unread."""

_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ServerFeatures:
    """What a server said it can do when this client connected."""

    gearflow: bool
    """It is gearflow's own server, with its reserved functions."""
    exceptions: bool
    """It passes on why jobs failed (WORK_EXCEPTION)."""


class _Attached:
    """The jobs of this connection on one handle, and how often the server sends each packet for them."""

    __slots__ = ("_copies", "_seen", "_theirs", "jobs")

    def __init__(self) -> None:
        self.jobs: list[ClientJob] = []
        self._theirs = 0  # submissions attached in the server's eyes: also those detached here
        self._copies: tuple[int, bytes] | None = None
        self._seen = 0

    def attach(self, job: ClientJob | None) -> None:
        self._theirs += 1
        self._copies = None
        if job is not None:
            self.jobs.append(job)

    def is_copy(self, kind: int, body: bytes) -> bool:
        """Whether this packet only repeats the one before for another of our submissions.

        The copies of a packet come in a row. A server that sends a single one is understood too, except
        when it sends two equal packets in a row.
        """
        if self._theirs == 1:
            return False
        if self._seen < self._theirs and self._copies == (kind, body):
            self._seen += 1
            return True
        self._copies, self._seen = (kind, body), 1
        return False


class Connection:
    """A connection for its whole life; ``run`` is that life, in a task of the client's task group."""

    def __init__(self, server: ServerAddress) -> None:
        self.server = server
        self.features = ServerFeatures(gearflow=False, exceptions=False)
        self.opened = anyio.Event()
        """Set when the handshake is over, in whatever way; see ``is_open``."""
        self.new_event: Final[Callable[[], anyio.Event]] = type(self.opened)
        """An event for a caller; anyio.Event() looks up the event loop each time, at thrice the cost."""
        self.is_open = False
        self.served = False
        """Whether it was ever open."""
        self.reason = ""
        """Why it is not open (any more), once ``opened`` is set."""
        self._outbox: dict[Request, bytes] = {}
        self._sent: deque[Request] = deque()
        self._attached: dict[bytes, _Attached] = {}
        self._wake: anyio.Event | None = None  # the writer sleeps on it
        self._batch_size = 0  # bytes of what was sent last, or is being sent
        self._closed = False

    # ------------------------------------------------------------------------------------ for callers

    async def ask(self, request: Request, packet: bytes) -> None:
        """Send a request and wait until it is answered; its answer is then in the request.

        A cancelled caller leaves nothing behind: what was not sent never will be, an answer on its way is
        taken and dropped, a job is detached.

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
        self._outbox[request] = packet
        if self._wake is not None:
            self._wake.set()
            self._wake = None

    def abandon(self, request: Request) -> None:
        """Nobody waits for the answer any more: do not send the request, or drop what it brings."""
        if self._outbox.pop(request, None) is None:
            request.abandoned = True
            if isinstance(request, Submission) and request.job is not None:
                request.job.cancel()

    def detach(self, job: ClientJob) -> None:
        """Forget a job. Its handle stays until the server ends it: what comes for it is known to be ours."""
        attached = self._attached.get(job.raw_handle)
        if attached is not None and job in attached.jobs:
            attached.jobs.remove(job)

    # ---------------------------------------------------------------------------------------- its life

    async def run(self, connect_timeout: float, answer_timeout: float) -> None:
        """Connect, shake hands, serve until the connection ends or the surrounding scope is cancelled.

        Connecting and shaking hands have ``connect_timeout`` seconds together, each answer has
        ``answer_timeout``, and a second more for each MiB that had to be sent before.
        """
        self.reason = "the client was closed"  # unless something else ends it
        try:
            await self._connect_and_serve(connect_timeout, answer_timeout)
        finally:
            self._lose()

    async def _connect_and_serve(self, connect_timeout: float, answer_timeout: float) -> None:
        deadline = anyio.current_time() + connect_timeout
        stream: SocketStream | None = None
        try:
            with anyio.CancelScope(deadline=deadline):
                stream = await anyio.connect_tcp(self.server.host, self.server.port)
        except OSError as error:
            self.reason = describe(error)
            return
        if stream is None:
            self.reason = f"no connection within {connect_timeout:g} s"
            return
        async with stream, anyio.create_task_group() as tasks:
            _tune(stream)
            tasks.start_soon(self._write, stream)
            tasks.start_soon(self._read, stream, tasks.cancel_scope)
            with anyio.CancelScope(deadline=deadline):
                await self._shake_hands()
            if not self.is_open:
                self.reason = (
                    f"it did not answer OPTION_REQ within {connect_timeout:g} s; is it a Gearman server?"
                )
                tasks.cancel_scope.cancel()
                return
            await self._watch(answer_timeout)
            tasks.cancel_scope.cancel()

    async def _shake_hands(self) -> None:
        """Set the options, and learn from the answers what the server is."""
        requests = [
            Request(PacketType.OPTION_RES, f"OPTION_REQ {option.decode()}", self.new_event())
            for option in OPTIONS
        ]
        for request, option in zip(requests, OPTIONS, strict=True):
            self.post(request, encode(OptionReq(option)))
        for request in requests:
            await request.answered.wait()
        exceptions, gearflow = (request.failure is None for request in requests)
        self.features = ServerFeatures(gearflow=gearflow, exceptions=exceptions)
        self.is_open = self.served = True
        self.opened.set()
        logger.debug("connected", extra={"server": str(self.server), "gearflow": gearflow})

    async def _write(self, stream: SocketStream) -> None:
        """Send what is in the outbox, all at once, whenever there is something."""
        while True:
            if not self._outbox:
                self._wake = self.new_event()
                await self._wake.wait()
            batch, self._outbox = self._outbox, {}
            self._sent.extend(batch)
            data = b"".join(batch.values())
            self._batch_size = len(data)
            try:
                await stream.send(data)
            except anyio.BrokenResourceError:
                return  # the reader takes what the server still said, and then finds the end
            del batch, data  # which may be large, and the next one a long time off

    async def _watch(self, timeout: float) -> None:
        """Return when the server has left a request without an answer for too long."""
        oldest: Request | None = None
        looks = 0
        while True:
            await anyio.sleep(timeout / LOOKS)
            looks += 1
            first = self._sent[0] if self._sent else None
            if first is None or first is not oldest:
                oldest, looks = first, 0
            elif (looks - LOOKS) * timeout / LOOKS >= self._batch_size / _MIB:
                self.reason = f"it gave no answer for {looks * timeout / LOOKS:g} s"
                return

    async def _read(self, stream: SocketStream, life: anyio.CancelScope) -> None:
        """Take in what the server says until it stops or talks nonsense; this ends the connection."""
        frames = FrameBuffer(RES)
        try:
            while True:
                self._take_all(frames.feed(await stream.receive(RECEIVE_SIZE)))
        except anyio.EndOfStream:
            self.reason = "the server closed the connection"
        except anyio.BrokenResourceError as error:
            self.reason = describe(error)
        except RemoteProtocolError as error:
            self.reason = f"it broke the protocol: {error}"
        life.cancel()

    def _lose(self) -> None:
        """The end: everybody who waits is told what is known of his request or job."""
        self._closed = True
        self.is_open = False
        for request in self._sent:
            self._refuse(request, request.lost(self.server, self.reason))
        for request in self._outbox:
            self._refuse(request, NotSent(self.reason))
        self._sent.clear()
        self._outbox.clear()
        lost, self._attached = self._attached, {}
        for attached in lost.values():
            for job in attached.jobs:
                job.fail(partial(ConnectionLost, self._lost_message(job)))
        self.opened.set()
        logger.debug("connection closed", extra={"server": str(self.server), "reason": self.reason})

    def _lost_message(self, job: ClientJob) -> str:
        return (
            f"{self.server} was lost ({self.reason}) while job {job.handle} of {job.function!r} "
            "was attached; the job may run on"
        )

    # ---------------------------------------------------------------------------- what the server says

    def _take_all(self, frames: Iterator[Frame]) -> None:
        for kind, body in frames:  # here, so that the last body is not kept while the next one is waited for
            self._take_in(kind, body)

    def _take_in(self, kind: int, body: bytes) -> None:
        # The two packets of every job are taken apart here, all others by the codec.
        if kind == PacketType.JOB_CREATED:
            self._take_created(body)
        elif kind == PacketType.WORK_COMPLETE:
            handle, _, result = body.partition(b"\0")
            for job in self._ended(handle):
                job.complete(result)
        elif kind == TEXT:
            raise RemoteProtocolError(f"a line of text came: {body[:80]!r}; is it a Gearman server?")
        else:
            self._take_packet(kind, body)

    def _take_packet(self, kind: int, body: bytes) -> None:
        packet = decode(kind, body)
        match packet:
            case WorkData() | WorkStatus() | WorkWarning():
                self._take_event(packet, kind, body)
            case WorkFail(handle):
                for job in self._ended(handle):
                    job.fail_remotely(None)
            case WorkException(handle, exception):
                for job in self._ended(handle):
                    job.fail_remotely(exception)
            case Error(code, text):
                self._take_error(to_text(code), to_text(text))
            case _:
                request = self._next(kind)
                request.answer = packet
                request.answered.set()

    def _take_created(self, handle: bytes) -> None:
        request = self._next(PacketType.JOB_CREATED)
        assert isinstance(request, Submission)  # nothing else expects this packet
        if request.attached:
            attached = self._attached.get(handle)
            if attached is None:
                attached = self._attached[handle] = _Attached()
            if not request.abandoned:
                request.job = request.job_type(handle, self.server, request.function, self)
            attached.attach(request.job)
        else:
            request.handle = JobHandle(to_text(handle), self.server)
        request.answered.set()

    def _take_event(self, event: JobEvent, kind: int, body: bytes) -> None:
        attached = self._attached.get(event.handle)
        if attached is not None and not attached.is_copy(kind, body):
            for job in attached.jobs:
                job.add_event(event)

    def _take_error(self, code: str, text: str) -> None:
        if not self._sent:
            logger.warning(
                "the server sent an error that answers nothing", extra={"code": code, "text": text}
            )
            return
        full = code.upper() == "QUEUE_ERROR" and "full" in text.lower()
        self._refuse(self._sent.popleft(), (QueueFull if full else ServerError)(code, text))

    def _next(self, kind: int) -> Request:
        """The request that this answer belongs to."""
        name = PacketType(kind).name
        if not self._sent:
            raise RemoteProtocolError(f"{name} came, which answers nothing")
        expected = self._sent[0].expected
        if kind != expected:
            raise RemoteProtocolError(f"{name} came where {expected.name} was due")
        return self._sent.popleft()

    def _ended(self, handle: bytes) -> list[ClientJob]:
        """The jobs on a handle that the server will not name again; none for one that is not ours."""
        attached = self._attached.pop(handle, None)
        return attached.jobs if attached is not None else []

    def _refuse(self, request: Request, failure: Exception) -> None:
        request.failure = failure
        request.answered.set()


def _tune(stream: SocketStream) -> None:
    """Send small packets at once, and notice a host that is gone."""
    raw = stream.extra(SocketAttribute.raw_socket)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE:
        if (option := getattr(socket, name, None)) is not None:  # not every platform has each
            raw.setsockopt(socket.IPPROTO_TCP, option, value)


def describe(error: BaseException) -> str:
    """Why a connection failed, in the words of the operating system, without its number."""
    if isinstance(error, BaseExceptionGroup):  # one for each address of a name
        return describe(cast("BaseExceptionGroup[BaseException]", error).exceptions[0])
    if isinstance(error, socket.gaierror):  # its numbers are not the operating system's
        return str(error.strerror).lower()
    if isinstance(error, OSError) and error.errno:  # asyncio and trio each have a text of their own
        return os.strerror(error.errno).lower()
    if error.__cause__ is not None:  # anyio says only that it failed
        return describe(error.__cause__)
    return str(error) or type(error).__name__
