"""Matches answers to requests. Pure. Client, worker and handshake share it.

The protocol has no request numbers. A server answers the requests of a connection in the order in which they
were sent, so an answer belongs to the oldest request that has none. ERROR refuses the oldest request,
whatever it is. Packets about a job come in between. They carry its handle.

``RequestQueue`` does the matching. ``CallQueue`` also follows the calls of a connection to their ends. The
client does that itself, because several of its jobs may share a handle.
"""

from collections import deque
from collections.abc import Awaitable, Iterable, Iterator
from typing import Final, Generic, Protocol, TypeVar

from gearflow.errors import (
    ConnectionLost,
    GearflowError,
    QueueFull,
    RemoteProtocolError,
    ServerError,
    SubmitUnknown,
)
from gearflow.protocol.codec import decode, encode
from gearflow.protocol.constants import AUTH, GEARFLOW, PacketType
from gearflow.protocol.packets import (
    Error,
    JobCreated,
    OptionReq,
    OptionRes,
    Packet,
    WorkComplete,
    WorkException,
    WorkFail,
    WorkWarning,
)

IDENTIFY: Final = encode(OptionReq(GEARFLOW))
"""Asks whether the server is gearflow's own. See ``Identification``."""

REFUSED: Final = "gearflow:refused"
"""The code of a refusal that came without one."""

UNCERTAIN: Final = "gearflow:uncertain"
"""The code of a submission of which the server does not know whether the job is stored."""

_ABOUT_JOBS: Final = frozenset(
    {
        PacketType.WORK_STATUS,
        PacketType.WORK_DATA,
        PacketType.WORK_WARNING,
        PacketType.WORK_COMPLETE,
        PacketType.WORK_FAIL,
        PacketType.WORK_EXCEPTION,
    }
)


class Signal(Protocol):
    """Set when a request is answered: an event, or something that many requests share."""

    def set(self) -> object:
        """The request is answered."""
        ...

    def wait(self) -> Awaitable[object]:
        """To be awaited until it is."""
        ...


class Ignored:
    """A signal for a request whose answer nobody waits for."""

    def set(self) -> None:
        """Do nothing."""

    async def wait(self) -> None:
        """Return at once."""


class Request:
    """A request from its creation to its answer. Owns its answer; compared by identity.

    Attributes:
        expected: The packet number of the answer.
        what: Names the request in error messages.
        answered: Set when there is an ``answer`` or a ``failure``.
        abandoned: Nobody waits for the answer any more.
    """

    __slots__ = ("abandoned", "answer", "answered", "expected", "failure", "what")

    def __init__(self, expected: PacketType, what: str, answered: Signal) -> None:
        self.expected = expected
        self.what = what
        self.answered = answered
        self.answer: Packet | None = None
        self.failure: Exception | None = None
        self.abandoned = False

    @property
    def is_answered(self) -> bool:
        """Whether the server answered, or the connection closed."""
        return self.answer is not None or self.failure is not None

    def resolve(self, answer: Packet) -> None:
        """The server answered it."""
        self.answer = answer
        self.answered.set()

    def refuse(self, failure: Exception) -> None:
        """The server refused it, or the connection closed."""
        self.failure = failure
        self.answered.set()

    def lost(self, server: object, reason: str) -> GearflowError:
        """The error of a request that was sent, if the connection closes before the answer."""
        return ConnectionLost(f"{server} was lost ({reason}) before it answered {self.what}")


class Identification(Request):
    """OPTION_REQ ``gearflow``. Only gearflow's own server knows the option, and all answer it."""

    __slots__ = ()

    def __init__(self, answered: Signal) -> None:
        Request.__init__(self, PacketType.OPTION_RES, "OPTION_REQ gearflow", answered)

    @property
    def is_gearflow(self) -> bool:
        """The server is gearflow's own."""
        return self.answer is not None

    @property
    def wants_token(self) -> bool:
        """It requires a token before anything else."""
        return self.answer == OptionRes(AUTH)

    @property
    def group(self) -> tuple[str, str]:
        """The names of its group and of this run of it, if it shares a database with others. Else empty."""
        if not isinstance(self.answer, OptionRes):
            return "", ""
        _, *names = self.answer.option.decode(errors="replace").split("\0")
        return (names[0], names[1]) if len(names) == 2 else ("", "")


class Call(Request):
    """A submission. If it is ``attached``, the end of the job is its answer, otherwise JOB_CREATED is.

    Attributes:
        handle: The server's name for the job, once there is one.
        warning: The last warning about it.
    """

    __slots__ = ("attached", "handle", "warning")

    def __init__(self, answered: Signal, *, attached: bool = True, what: str = "a submission") -> None:
        Request.__init__(self, PacketType.JOB_CREATED, what, answered)
        self.attached = attached
        self.handle = b""
        self.warning = ""


R = TypeVar("R", bound=Request)


class RequestQueue(Generic[R]):
    """The requests of a connection that were sent and have no answer, oldest first. Owns state."""

    __slots__ = ("_sent",)

    def __init__(self) -> None:
        self._sent: deque[R] = deque()

    @property
    def first(self) -> R | None:
        """The request that the next answer belongs to."""
        return self._sent[0] if self._sent else None

    def __iter__(self) -> Iterator[R]:
        return iter(self._sent)

    def sent(self, requests: Iterable[R]) -> None:
        """These were sent after all others."""
        self._sent.extend(requests)

    def match(self, kind: int) -> R:
        """Take the request that an answer with this packet number belongs to.

        Raises:
            RemoteProtocolError: There is none, or another answer is due.
        """
        if not self._sent:
            raise RemoteProtocolError(f"{PacketType(kind).name} came, which answers nothing")
        expected = self._sent[0].expected
        if kind != expected:
            raise RemoteProtocolError(f"{PacketType(kind).name} came where {expected.name} was due")
        return self._sent.popleft()

    def refuse(self, code: bytes, text: bytes) -> R | None:
        """Take the request that an ERROR refuses, which gets its ``failure``. None if there is none."""
        if not self._sent:
            return None
        request = self._sent.popleft()
        request.refuse(refusal(code.decode("utf-8", "replace"), text.decode("utf-8", "replace")))
        return request

    def drain(self) -> list[R]:
        """Take all requests: the connection is closed."""
        requests = list(self._sent)
        self._sent.clear()
        return requests


class CallQueue(RequestQueue[Request]):
    """The requests of a connection, with its attached calls until they end. Owns state."""

    __slots__ = ("_attached",)

    def __init__(self) -> None:
        super().__init__()
        self._attached: dict[bytes, Call] = {}  # by handle

    @property
    def pending(self) -> list[Request]:
        """All requests that have no answer."""
        return [*self._sent, *self._attached.values()]

    def call(self, body: bytes) -> Call | None:
        """The attached call that a WORK_* packet with this body is about."""
        return self._attached.get(body.partition(b"\0")[0])

    def receive(self, kind: int, body: bytes) -> Request | None:
        """Process a packet from the server. Returns the request that it answers, if it answers one.

        Raises:
            RemoteProtocolError: It is neither an answer to a request nor about an attached call.
        """
        if kind in _ABOUT_JOBS:
            call = self.call(body)
            if call is None:
                raise RemoteProtocolError(f"{PacketType(kind).name} came, which is about no call of ours")
            return self._about_job(call, decode(kind, body))
        packet = decode(kind, body)
        if isinstance(packet, Error):
            return self.refuse(packet.code, packet.text)
        request = self.match(kind)
        if isinstance(packet, JobCreated) and isinstance(request, Call):
            request.handle = packet.handle
            if request.attached:
                self._attached[packet.handle] = request
                return None
        request.resolve(packet)
        return request

    def drain(self) -> list[Request]:
        """Take all requests and calls: the connection is closed."""
        requests = self.pending
        self._sent.clear()
        self._attached.clear()
        return requests

    def _about_job(self, call: Call, packet: Packet) -> Call | None:
        match packet:
            case WorkComplete():
                call.resolve(packet)
            case WorkFail():
                call.refuse(ServerError(REFUSED, call.warning))
            case WorkException(_, exception):
                fault = server_fault(exception) or (REFUSED, exception.decode("utf-8", "replace"))
                call.refuse(ServerError(*fault))
            case WorkWarning(_, data):
                call.warning = data.decode("utf-8", "replace")
                return None
            case _:
                return None
        del self._attached[call.handle]
        return call


def refusal(code: str, text: str) -> GearflowError:
    """The error of a request that the server answered with ERROR."""
    if code == UNCERTAIN:
        return uncertain(text)
    full = code.upper() == "QUEUE_ERROR" and "full" in text.lower()
    return (QueueFull if full else ServerError)(code, text)


def uncertain(text: str) -> SubmitUnknown:
    """The error of a submission of which the server does not know whether the job is stored."""
    return SubmitUnknown(
        f"the server does not know whether it has stored the job ({text}); the job may exist or not. Submit "
        "it again only if running it twice does no harm"
    )


def server_fault(exception: bytes) -> tuple[str, str] | None:
    """Type and message of a ``Fault`` of gearflow's server; None for the exception of a worker."""
    if b'"gearflow:' not in exception:
        return None
    from gearflow.protocol.server_calls import Fault  # it imports pydantic

    try:
        fault = Fault.model_validate_json(exception)
    except ValueError:
        return None
    return fault.type, fault.message
