"""What is asked of a server on one connection, from the outbox to the answer.

``Request`` is any question. ``Submission`` is one that is answered with a job's handle. Two kinds of it go
to functions that gearflow's own server answers itself: ``ReservedSubmission`` is the job it submits,
``ReservedCall`` is about other jobs. Their jobs tell what the server says (a ``Fault``) from what a worker
says.
"""

from functools import partial
from math import inf
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

import anyio

from gearflow.client.config import ServerAddress
from gearflow.client.job import ClientJob, JobEvent, JobFailed, JobHandle, JobOwner
from gearflow.client.names import to_text
from gearflow.errors import (
    ConnectionLost,
    GearflowError,
    QueueFull,
    RemoteProtocolError,
    ServerError,
    SubmitUnknown,
    UnknownJob,
)
from gearflow.protocol.constants import PacketType
from gearflow.protocol.packets import WorkData, WorkStatus
from gearflow.protocol.request_queue import Ignored, Request, Signal, server_fault, uncertain

if TYPE_CHECKING:
    from gearflow.protocol.server_calls import Message  # it imports pydantic

M = TypeVar("M", bound="Message")


class NotSent(Exception):
    """The connection is closed and the request never left; it may be sent elsewhere."""


def unknown(function: str, unique: bytes, server: object, reason: str) -> SubmitUnknown:
    """What the caller gets if the connection closed after a submission was sent."""
    shown = f", unique {to_text(unique)!r}" if unique else ""
    return SubmitUnknown(
        f"function {function!r}{shown}: sent to {server}, which was lost ({reason}) before it "
        "acknowledged; the job may exist or not. Submit it again only if running it twice does no harm"
    )


def is_unsupported(failure: Exception | None) -> bool:
    """Whether the failure of a ``BackgroundSubmission`` says that the server is an older one. It has no
    job."""
    return isinstance(failure, ServerError) and failure.code == "INVALID_FUNCTION_NAME"


class Heartbeat(Request):
    """A ping. Nobody waits for the answer."""

    __slots__ = ()

    def __init__(self) -> None:
        Request.__init__(self, PacketType.ECHO_RES, "a heartbeat", Ignored())


class Submission(Request):
    """A submission, attached (foreground) or not; ``job`` or ``handle`` is its answer.

    ``joins`` is a job that goes on as the one that is submitted; ``None`` for a new one. With ``to_the_end``
    the caller is woken only when the job has ended.
    """

    __slots__ = ("attached", "function", "handle", "job", "joins", "to_the_end", "unique")

    job_type: ClassVar[type[ClientJob]] = ClientJob

    def __init__(
        self, function: str, unique: bytes, answered: Signal, *, attached: bool, to_the_end: bool = False
    ) -> None:
        # Without Request.__init__, because there is one for each call.
        self.expected = PacketType.JOB_CREATED
        self.what = "a submission"
        self.answered = answered
        self.answer = None
        self.failure = None
        self.abandoned = False
        self.function = function
        self.unique = unique
        self.attached = attached
        self.to_the_end = to_the_end
        self.job: ClientJob | None = None
        self.joins: ClientJob | None = None
        self.handle: JobHandle | None = None

    def lost(self, server: object, reason: str) -> GearflowError:
        return unknown(self.function, self.unique, server, reason)


class BackgroundSubmission(Submission):
    """A background submission with options, in the form that is answered as one without.

    A server that does not know the form refuses it. See ``is_unsupported``.
    """

    __slots__ = ()

    def __init__(self, function: str, unique: bytes, answered: Signal) -> None:
        Submission.__init__(self, function, unique, answered, attached=False)


class Feed(Protocol):
    """Collects what comes about a job."""

    def add_data(self, data: bytes, /) -> None:
        """WORK_DATA came."""
        ...

    def add_status(self, status: WorkStatus, /) -> bool:
        """WORK_STATUS came. Returns whether it belongs here, and not to the job."""
        ...


class ReservedJob(ClientJob):
    """A job that may also be ended by the server, which then says why in its own words."""

    __slots__ = ("feed", "has_left_parts", "is_refused")

    def __init__(self, raw_handle: bytes, server: ServerAddress, function: str, owner: JobOwner) -> None:
        ClientJob.__init__(self, raw_handle, server, function, owner)
        self.is_refused = False
        self.feed: Feed | None = None
        """Takes the events of a job that is read as a stream or watched, in place of the job."""
        self.has_left_parts = False
        """Whether nobody is going to read the parts for which the job waits."""

    def leave_parts(self) -> None:
        """Nobody is going to read the parts. gearflow's server has the job wait for a reader until then."""
        self.has_left_parts = True
        self._owner.leave_parts(self.raw_handle)

    def add_event(self, event: JobEvent) -> None:
        feed = self.feed
        if feed is not None and type(event) is WorkData:
            self.add_data(feed, event.data)
        elif feed is not None and type(event) is WorkStatus and feed.add_status(event):
            if self._news is not None:
                self._notify()
        else:
            super().add_event(event)

    def add_data(self, feed: Feed, data: bytes) -> None:
        """WORK_DATA came, for its feed."""
        feed.add_data(data)
        if self._news is not None:
            self._notify()

    def fail_remotely(self, exception: bytes | None) -> None:
        fault = None if exception is None else server_fault(exception)
        if fault is None:
            super().fail_remotely(exception)
        else:
            self.is_refused = True
            self.fail(partial(_error, *fault))


class ReservedSubmission(Submission):
    """A submission by way of ``gearflow:submit``.

    An attached one is the job. Of a detached one, ``job`` is only the call, and its result says which job
    the server has.
    """

    __slots__ = ()

    job_type = ReservedJob

    def __init__(self, function: str, unique: bytes, answered: Signal) -> None:
        Submission.__init__(self, function, unique, answered, attached=True)

    async def check(self) -> None:
        """Raise the server's refusal, if it has come already, as what ``Connection.ask`` would raise."""
        if isinstance(self.job, ReservedJob) and self.job.is_refused:
            await self.job.result()

    async def submitted(self, limit: float = inf) -> JobHandle:
        """The job that the server has, for a detached one; waits for the end of the call.

        Args:
            limit: Seconds to wait.

        Raises:
            SubmitUnknown: The connection closed before, or there was no answer in time.
            QueueFull, ServerError: The server refused it.
            RemoteProtocolError: The answer cannot be read. The job may exist.
        """
        from gearflow.protocol.server_calls import Submitted

        assert self.job is not None  # the call was accepted
        server = self.job.server
        try:
            with anyio.move_on_after(limit):
                answer = await self.job.result()
                return JobHandle(read_answer(Submitted, answer, "gearflow:submit", server).handle, server)
        except ConnectionLost as error:
            raise self.lost(server, "the connection closed") from error
        except JobFailed as error:
            raise refused("a submission with options", error) from error
        self.job.cancel()
        raise self.lost(server, f"it gave no answer for {limit:g} s")


class ReservedCall(Submission):
    """A call of a reserved function; ``job`` is the call."""

    __slots__ = ()

    job_type = ReservedJob

    def __init__(self, function: str, answered: Signal) -> None:
        Submission.__init__(self, function, b"", answered, attached=True)

    def lost(self, server: object, reason: str) -> GearflowError:
        return ConnectionLost(f"{server} was lost ({reason}) before it answered {self.function}")


class Tally:
    """An event that is set once for each of many requests. A waiter waits for all of them."""

    __slots__ = ("_all", "_missing")

    def __init__(self, count: int, signal: Signal) -> None:
        self._missing = count
        self._all = signal

    def set(self) -> None:
        """One of them is answered."""
        self._missing -= 1
        if not self._missing:
            self._all.set()

    async def wait(self) -> None:
        """Return when all of them are."""
        await self._all.wait()


def refused(what: str, failure: JobFailed) -> ServerError:
    """The error of a call that ended as a failed job, which gearflow's own server does not do."""
    data = failure.exception
    said = "it gave no reason" if data is None else data[:2000].decode(errors="replace")
    return ServerError("WORK_FAIL", f"{what} was refused: {said}")


def read_answer(kind: type[M], data: bytes, function: str, server: object) -> M:
    """The answer of a reserved function.

    Raises:
        RemoteProtocolError: The function does not answer this.
    """
    try:
        return kind.model_validate_json(data)
    except ValueError as error:
        what = f"{server} answered {function} with {data[:80]!r}, which is no {kind.__name__}"
        raise RemoteProtocolError(what + _wrong_key(error)) from error


def _wrong_key(error: ValueError) -> str:
    """The first key of an answer that is not as it should be, and why. Empty if it is no object at all."""
    errors = getattr(error, "errors", None)  # pydantic's, which this module does not import
    for each in errors(include_url=False, include_input=False) if errors is not None else ():
        if each["loc"]:
            return f": {'.'.join(map(str, each['loc']))[:200]}: {each['msg'][:200]}"
    return ""


def _error(kind: str, message: str) -> Exception:
    match kind:
        case "gearflow:full":
            return QueueFull(kind, message)
        case "gearflow:timeout":
            return TimeoutError(message)
        case "gearflow:unknown":
            return UnknownJob(message)
        case "gearflow:uncertain":
            return uncertain(message)
        case _:
            return ServerError(kind, message)
