"""Every error that gearflow raises on purpose, in one tree.

    GearflowError
    ├── ProtocolError            one side broke the protocol
    │   ├── LocalProtocolError       gearflow was about to break it, by a bug or a wrong argument
    │   └── RemoteProtocolError      the peer broke it, and the connection is closed
    ├── ServerError              the server refused a request
    │   └── QueueFull                it has reached a limit of jobs or bytes
    ├── NoServer                 no configured server can be reached, and nothing was sent
    ├── ConnectionLost           the connection closed while a job was attached to it, and the job may run on
    ├── SubmitUnknown            sent but not acknowledged, so the job may or may not exist
    ├── PartlySubmitted          the server accepted only some of many submissions
    ├── UnknownJob               the server does not know the job, or no longer knows it (also a LookupError)
    ├── StreamGap                parts of a stream are gone, and the iteration goes on with the next one
    ├── StreamRestarted          a stream begins again, and the iteration goes on with its first part
    ├── UnsupportedByServer      the server cannot honour an option of this call, and nothing was sent
    ├── StartupFailed            the worker took no job, because a hook raised or a limit is too low
    ├── StoreError               the server cannot use its job file, and the message names the remedy
    ├── PayloadInvalid           arguments or result do not fit the task's types (also a ValueError)
    ├── TaskFailed               the task raised on the worker
    │   ├── TaskTimeout              the run exceeded its ``timeout``
    │   └── TaskCrashed              the task ended its process, by a signal, ``os._exit`` or lack of memory
    ├── TaskDefinitionError      a function cannot be a task as it is written (also a TypeError)
    ├── UnknownTask              no registered task has that name (also a LookupError)
    └── UnknownSchedule          no schedule has that name, or several have it (also a LookupError)

A class exists only if a caller would act differently on it. If a result does not arrive in time
(``result(timeout=)``), the error is the builtin ``TimeoutError``, and the job runs on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "ConnectionLost",
    "GearflowError",
    "LocalProtocolError",
    "NoServer",
    "PartlySubmitted",
    "PayloadInvalid",
    "ProtocolError",
    "QueueFull",
    "RemoteProtocolError",
    "ServerError",
    "StartupFailed",
    "StoreError",
    "StreamGap",
    "StreamRestarted",
    "SubmitUnknown",
    "TaskCrashed",
    "TaskDefinitionError",
    "TaskFailed",
    "TaskTimeout",
    "UnknownJob",
    "UnknownSchedule",
    "UnknownTask",
    "UnsupportedByServer",
]


class GearflowError(Exception):
    """The root of all errors that gearflow raises on purpose."""


class ProtocolError(GearflowError):
    """One side broke the Gearman protocol. The two subclasses say which side."""


class LocalProtocolError(ProtocolError):
    """gearflow was about to send something that is not legal on the wire, such as a NUL in a handle."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that is not legal on the wire. The connection cannot be used any more.

    The error also appears if an answer of gearflow's server cannot be read. The message names the server.
    """


class ServerError(GearflowError):
    """The server refused a request, with an ERROR packet or as the fault of a ``gearflow:*`` function.

    Attributes:
        code: The code, for programs. Compare it without case, because servers differ.
        text: The text, for people.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}" if text and text != code else code)
        self.code = code
        self.text = text

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code, self.text)  # what __init__ takes, not the message it makes


class QueueFull(ServerError):
    """The function has reached its limit of jobs, or the server its limit of bytes. Try again later."""


class NoServer(GearflowError):
    """No configured server can be reached. Nothing was sent, so you can safely try again.

    With ``resubmit`` a call also ends like this if its server was lost and no other can be reached.
    ``__cause__`` then names the lost server, and a job there may run on.

    Attributes:
        reasons: Maps the address of each server to the reason why it was not used.
        remedy: The advice at the end of the message. Empty if the reasons are clear without it.
    """

    def __init__(self, reasons: Mapping[str, str], remedy: str = "") -> None:
        tried = "; ".join(f"{server}: {reason}" for server, reason in reasons.items()) or "none is configured"
        if not remedy and all(reason == "connection refused" for reason in reasons.values()):
            remedy = "is one running? start one with 'gearflow server'"
        message = f"no Gearman server can be reached ({tried})"
        super().__init__(f"{message}; {remedy}" if remedy else message)
        self.reasons = dict(reasons)
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reasons, self.remedy)


class ConnectionLost(GearflowError):
    """The connection closed while you waited for an attached job.

    The server had accepted the job. It may have run, may still run, or was dropped with the connection.

    The error also appears if a server accepts a call such as ``info`` or ``cancel``, and does not end it in
    time.
    """


class SubmitUnknown(GearflowError):
    """A submission was sent, but the connection closed before the server acknowledged it.

    The error also appears if a server that shares a database with others cannot find out in time whether the
    database has the job.

    The job may or may not exist, so gearflow does not send it again by itself. Submit it again only if
    running it twice does no harm (``resubmit=True`` does so), or with a ``unique`` that the second submission
    joins.
    """


class PartlySubmitted(GearflowError):
    """The server accepted only some of many submissions. The attributes say which, by place among the items.

    Attributes:
        accepted: A reference for each job that the server has.
        failures: The error of each other submission that was tried. After ``NoServer`` and ``PayloadInvalid``
            it was not sent. After ``SubmitUnknown`` the job may or may not exist.
        untried: Items from this place on were not tried.
    """

    def __init__(self, accepted: Mapping[int, Any], failures: Mapping[int, Exception], untried: int) -> None:
        first = min(failures, default=None)
        because = "" if first is None else f"; item {first}: {failures[first]}"
        super().__init__(
            f"{len(accepted)} jobs were accepted and {len(failures)} were not, items from {untried} on were "
            f"not tried{because}"
        )
        self.accepted = dict(accepted)
        self.failures = dict(failures)
        self.untried = untried

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.accepted, self.failures, self.untried)


class UnknownJob(GearflowError, LookupError):
    """The server does not know the job. It never had it, or it no longer keeps the outcome."""


class StreamGap(GearflowError):
    """Parts of a stream are gone. You can go on with the iteration, which returns the part ``first`` next.

    The server dropped them before this reader asked for them, or the reader was too slow and has
    ``lag="skip"``.

    Attributes:
        first: The position of the next part. Positions count from 1.
        last: The position of the last part before the gap.
    """

    def __init__(self, first: int, last: int) -> None:
        missing = f"part {last + 1} is" if first == last + 2 else f"parts {last + 1} to {first - 1} are"
        super().__init__(f"{missing} gone; the next part of the stream is {first}")
        self.first = first
        self.last = last

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.first, self.last)


class StreamRestarted(GearflowError):
    """A job began again after parts of its earlier run were delivered, so the earlier parts may not hold.

    The worker died or the run failed, and the task is not ``resumable``. You can go on with the iteration,
    which returns the first part of the new run next.

    Attributes:
        run: The number of the new run, from 1, as far as the server counts them.
        reason: Why the job began again.
    """

    def __init__(self, run: int, reason: str) -> None:
        super().__init__(f"the stream begins again from its first part: {reason}")
        self.run = run
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.run, self.reason)


class UnsupportedByServer(GearflowError):
    """The server cannot honour an option of this call. Nothing was sent."""


class StartupFailed(GearflowError):
    """The worker took no job. A lifespan hook raised, and ``__cause__`` is its error.

    The error also appears if the worker already uses more memory than ``max_rss`` allows.
    """


class StoreError(GearflowError):
    """The server cannot read or write its job file. The message names the file and the remedy.

    The data of a failed write is not stored, and must not be acknowledged. Earlier data is not lost.
    """


class PayloadInvalid(GearflowError, ValueError):
    """The arguments or the result do not fit the task's types.

    Attributes:
        errors: pydantic's list, with one dict for each error. The keys are ``loc``, ``msg``, ``type``, and
            ``input`` if it can be shown as JSON.
    """

    def __init__(self, message: str, errors: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(message)
        self.errors = [dict(error) for error in errors]


class TaskFailed(GearflowError):
    """The task raised an exception on the worker, or the worker failed the job without a reason.

    If the class of the remote exception is known here, the error is also an instance of that class. If not,
    ``str()`` puts the name of the class before the message.

    Attributes:
        type: The full name of the remote exception's class, or the server's reason, or None.
        message: The message alone.
        traceback: The remote traceback as text, if the worker sent one.
        errors: pydantic's list if the payload was not valid on the worker.
        handle: The server's name for the job.
    """

    def __init__(
        self,
        message: str,
        *,
        type: str | None = None,  # noqa: A002  (the field's name on the wire)
        traceback: str | None = None,
        errors: Sequence[Mapping[str, Any]] = (),
        handle: str | None = None,
    ) -> None:
        super().__init__(message)
        self.type = type
        self.message = message
        self.traceback = traceback
        self.errors = [dict(error) for error in errors]
        self.handle = handle

    def __str__(self) -> str:
        if type(self) is not TaskFailed or not self.type or self.type == f"{__name__}.TaskFailed":
            return self.message
        return f"{self.type}: {self.message}" if self.message else self.type


class TaskTimeout(TaskFailed):
    """The run exceeded its time limit (``timeout=``) on the worker."""


class TaskCrashed(TaskFailed):
    """The task ended the process that ran it. The message says how, and quotes its memory and last output."""


class TaskDefinitionError(GearflowError, TypeError):
    """The function cannot be a task as it is written. The message names the remedy."""


class UnknownTask(GearflowError, LookupError):
    """No registered task has that name. The message suggests the nearest names."""


class UnknownSchedule(GearflowError, LookupError):
    """No schedule has that name, or several have it as the last part. The message suggests names."""
