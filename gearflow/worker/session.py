"""What is said on one connection between a worker and a server. Pure: frames in, bytes and events out.

A session opens with, in one write: OPTION_REQ ``gearflow`` (only gearflow's own server knows it),
SET_CLIENT_ID, a CAN_DO for each function, and the first GRAB. A worker with something to report before its
first job waits for the answer to OPTION_REQ with that GRAB. From then on its ``ServerSlots`` says when to
GRAB and when to PRE_SLEEP, and the runs say WORK_*. It may also submit: on gearflow's own server it calls
``gearflow:events``, which tells when a job that runs here is cancelled there, and how far its parts were
taken. The runs call others.

ERROR carries no hint of what it answers, but a server answers in order:

* OPTION_REQ is the first request and always answered, so the first answer is its own;
* FORBIDDEN before the first answer to a GRAB says that the token gives no right to work;
* JOB_NOT_FOUND answers a WORK_* packet: the job had been taken from us;
* before the first answer to a GRAB, on a server that is not gearflow's, ERROR means that it does not know
  GRAB_JOB_UNIQ (the Perl server); the session goes on with GRAB_JOB, which all servers know;
* any other ERROR before that answer refuses one of our functions, and later the oldest submission that
  has no answer (which no job of ours makes before it has come).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias, cast

from gearflow.client.transport import NO_TLS, NO_TOKEN, Unreachable
from gearflow.errors import RemoteProtocolError
from gearflow.protocol import packets
from gearflow.protocol.codec import LAYOUTS, encode, split
from gearflow.protocol.constants import FORBIDDEN, TLS_REQUIRED, PacketType
from gearflow.protocol.request_queue import IDENTIFY, Call, CallQueue, Identification, Ignored, Request
from gearflow.protocol.server_events import EVENTS, Credit, cancelled_handle, credit_of
from gearflow.worker.slots import ServerSlots

GRAB_JOB: Final = encode(packets.GrabJob())
GRAB_JOB_UNIQ: Final = encode(packets.GrabJobUniq())
PRE_SLEEP: Final = encode(packets.PreSleep())

# Plain numbers: a comparison with an IntEnum's member costs four times as much.
_NOOP: Final = int(PacketType.NOOP)
_NO_JOB: Final = int(PacketType.NO_JOB)
_JOB_ASSIGN: Final = int(PacketType.JOB_ASSIGN)
_JOB_ASSIGN_UNIQ: Final = int(PacketType.JOB_ASSIGN_UNIQ)


class Assignment(NamedTuple):
    """A job, to be run now."""

    handle: bytes
    function: bytes
    workload: bytes


_assignment: Final[Callable[..., Assignment]] = cast(
    Any, tuple
).__new__  # without the function that a NamedTuple's class calls


@dataclass(frozen=True, slots=True)
class Refusal:
    """The server refused something; the session goes on without it."""

    what: str
    code: bytes
    text: bytes


@dataclass(frozen=True, slots=True)
class Echo:
    """The server has handled everything that was sent before the ECHO_REQ with this data."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Recognized:
    """The server is gearflow's own."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The job with this handle is wanted by nobody any more, or was cancelled: nobody will hear of it."""

    handle: bytes


Event: TypeAlias = Assignment | Refusal | Echo | Recognized | Cancelled | Credit


class WorkerSession:
    """One connection's conversation, from ``hello`` on. Owns state.

    ``poll`` is the interval in seconds at which a server that is not gearflow's own is asked for jobs
    although it has not called, ``None`` for never. With ``reports`` no GRAB is written before it is known
    which server it is, and whether it takes reports. gearflow's server learns of the ``slots``, which are
    the jobs that the connection runs at once.
    """

    __slots__ = (
        "_call_events",
        "_client_id",
        "_events",
        "_functions",
        "_grab",
        "_lane",
        "_option",
        "_poll",
        "_reports",
        "_requests",
        "_slots",
        "group",
        "has_answered_grab",
        "is_gearflow",
        "registered",
        "server",
    )

    def __init__(
        self,
        lane: ServerSlots,
        functions: Sequence[bytes],
        client_id: bytes,
        poll: float | None,
        *,
        reports: bool = False,
        slots: int = 1,
    ) -> None:
        self._lane = lane
        self._functions = functions
        self._client_id = client_id
        self._poll = poll
        self._reports = reports
        self._slots = slots
        self._grab = GRAB_JOB_UNIQ
        self._option = Identification(Ignored())
        self._call_events = False  # it is time to
        self._events = Call(Ignored())
        self._requests = CallQueue()
        self.is_gearflow = False
        self.group = self.server = ""  # the names of its group, and of this run of it, if it is in one
        self.has_answered_grab = False  # since ``owes_grab`` last looked
        self.registered = False  # the server has answered a GRAB, so it knows our functions

    @property
    def is_basic(self) -> bool:
        """The server knows the oldest packets only: no WORK_WARNING, no delayed jobs."""
        return self._grab is GRAB_JOB

    @property
    def calls(self) -> list[Request]:
        """The calls of this worker that have no answer."""
        return [each for each in self._requests.pending if each not in (self._option, self._events)]

    def owes_grab(self) -> bool:
        """Whether GRABs are in flight, and none was answered since the last call of this."""
        answered, self.has_answered_grab = self.has_answered_grab, False
        return bool(self._lane.unanswered) and not answered

    def sent(self, call: Call) -> None:
        """A call is written after all others."""
        self._requests.sent([call])

    def lost(self, server: object, reason: str) -> None:
        """The connection is closed: no call has an answer any more."""
        for request in self._requests.drain():
            request.refuse(request.lost(server, reason))

    def hello(self) -> bytes:
        """The registration. The first GRAB follows with the next ``requests``, or after a report."""
        if not self._reports:
            self._lane.start()
        self._requests.sent([self._option])
        names = [packets.SetClientId(self._client_id), *map(packets.CanDo, self._functions)]
        return IDENTIFY + b"".join(map(encode, names))

    def requests(self, now: float) -> bytes:
        """What to ask the server now, if anything."""
        if self._call_events:
            self._call_events = False
            self._requests.sent([self._events])
            request = b'{"slots":%d}' % self._slots if self._slots > 1 else b""
            return encode(packets.SubmitJob(EVENTS, b"", request)) + self.requests(now)
        grabs, sleep = self._lane.requests(now)
        if grabs:
            return self._grab * grabs
        return PRE_SLEEP if sleep else b""

    def received(self, kind: int, body: bytes, now: float) -> Event | None:
        """Take one frame in.

        Raises:
            RemoteProtocolError: A server does not say this to a worker.
            Unreachable: The server does not want this worker as it is.
        """
        if kind == _JOB_ASSIGN_UNIQ:
            try:
                handle, function, _, workload = body.split(b"\0", 3)
            except ValueError:
                raise _incomplete(kind, body, 4) from None
            self._grab_answered()
            self._lane.assigned()
            return _assignment(Assignment, (handle, function, workload))
        if kind == _NO_JOB:
            self._grab_answered()
            self._lane.no_job()
            return None
        if kind == _NOOP:
            self._lane.noop(now)
            return None
        if kind == _JOB_ASSIGN:
            try:
                handle, function, workload = body.split(b"\0", 2)
            except ValueError:
                raise _incomplete(kind, body, 3) from None
            self._grab_answered()
            self._lane.assigned()
            return _assignment(Assignment, (handle, function, workload))
        return self._rare(kind, body)

    def _rare(self, kind: int, body: bytes) -> Event | None:
        if kind == PacketType.ECHO_RES:
            if self._reports and self._requests.first is self._option:
                self._not_gearflow()  # the server gave no answer to the option
            return Echo(body)
        if kind == PacketType.ERROR:
            return self._error(*split(LAYOUTS[PacketType.ERROR], kind, body))
        if kind == PacketType.JOB_CREATED and self._requests.first is None:
            return None  # its answer was taken for that of another request
        if kind == PacketType.WORK_DATA and self._requests.call(body) is self._events:
            event = split(LAYOUTS[PacketType.WORK_DATA], kind, body)[1]
            credit = credit_of(event)
            if credit is not None:
                return credit
            cancelled = cancelled_handle(event)
            return Cancelled(cancelled) if cancelled is not None else None
        return self._answered(self._requests.receive(kind, body))

    def _answered(self, request: Request | None) -> Event | None:
        if request is self._option:
            if self._option.wants_token:
                raise Unreachable(NO_TOKEN)
            self.is_gearflow = True
            self.group, self.server = self._option.group
            self._call_events = True
            if self._reports:
                self._lane.start()
            self._lane.wake()
            return Recognized()
        if request is self._events:  # the server sends no events, or no longer
            code, text = getattr(self._events.failure, "code", ""), getattr(self._events.failure, "text", "")
            return Refusal("gearflow:events", code.encode(), text.encode() or b"it has ended")
        return None

    def _error(self, code: bytes, text: bytes) -> Event | None:
        if code == TLS_REQUIRED:
            raise Unreachable(NO_TLS)
        if code == FORBIDDEN and not self.registered:
            raise Unreachable(f"its token gives no right to work: {text.decode('utf-8', 'replace')}")
        if self._requests.first is self._option:
            self._not_gearflow()
            return None
        if code.upper() == b"JOB_NOT_FOUND":
            return Refusal("a result: the job had been taken from this worker", code, text)
        if (
            self._grab is GRAB_JOB_UNIQ
            and not (self.registered or self.is_gearflow)
            and self._lane.unanswered
        ):
            self._grab = GRAB_JOB
            self._lane.refused()
            return Refusal("GRAB_JOB_UNIQ, so this worker uses GRAB_JOB", code, text)
        if self.registered and self._requests.first is not None:
            return self._answered(self._requests.refuse(code, text))
        return Refusal("a request of this worker, probably one of its functions", code, text)

    def _grab_answered(self) -> None:
        lane = self._lane
        if lane.in_flight <= lane.granted:
            raise RemoteProtocolError("an answer to a GRAB came, but none was in flight")
        self.has_answered_grab = True
        if not self.registered:
            self.registered = True
            if self._requests.first is self._option:
                self._not_gearflow()  # the server gave no answer to the option

    def _not_gearflow(self) -> None:
        self._requests.match(PacketType.OPTION_RES)
        if self._reports:
            self._lane.start()
        if self._poll is not None:
            self._lane.poll_every(self._poll)


def _incomplete(kind: int, body: bytes, count: int) -> RemoteProtocolError:
    found = body.count(b"\0") + 1
    return RemoteProtocolError(f"packet {kind} has {found} of its {count} arguments")
