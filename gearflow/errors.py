"""Every error gearflow raises on purpose, in one tree.

    GearflowError
    ├── ProtocolError            the wire
    │   ├── LocalProtocolError       we were about to break the protocol: a bug of ours or of the caller
    │   └── RemoteProtocolError      the peer broke it: the connection is closed
    ├── ServerError              the server refused a request
    │   └── QueueFull                it holds as many jobs, or bytes, as it may
    ├── NoServer                 none of the configured servers can be reached; nothing was sent
    ├── ConnectionLost           the connection went away while a job was attached to it; the job may run on
    ├── SubmitUnknown            sent, not acknowledged, connection lost: the job may exist or not
    ├── PartlySubmitted          of many submissions some were accepted, and some were not
    ├── UnknownJob               the server knows no such job, or no longer (also a LookupError)
    ├── UnsupportedByServer      the server at hand cannot honour an option of this call; nothing was sent
    ├── StartupFailed            the worker took no job: a lifespan hook raised, or a limit cannot be kept
    ├── StoreError               the server's file of jobs cannot be used; the message names the remedy
    ├── PayloadInvalid           arguments or result do not fit the task's types (also a ValueError)
    ├── TaskFailed               the task raised on the worker
    │   ├── TaskTimeout              it overran its ``timeout`` and was stopped there
    │   └── TaskCrashed              it ended its process: a signal, ``os._exit``, no memory left
    ├── TaskDefinitionError      a function that cannot be a task as it is written (also a TypeError)
    └── UnknownTask              no registered task of that name (also a LookupError)

A class exists only where a caller would act differently on it. Waiting too long for a result
(``result(timeout=)``) is the builtin ``TimeoutError``: the job itself runs on.
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
    "SubmitUnknown",
    "TaskCrashed",
    "TaskDefinitionError",
    "TaskFailed",
    "TaskTimeout",
    "UnknownJob",
    "UnknownTask",
    "UnsupportedByServer",
]


class GearflowError(Exception):
    """The root of the tree."""


class ProtocolError(GearflowError):
    """The Gearman protocol was broken; see the two subclasses for by whom."""


class LocalProtocolError(ProtocolError):
    """What we were asked to send is not legal on the wire (a NUL in a handle, a body over 4 GiB)."""


class RemoteProtocolError(ProtocolError):
    """What the peer sent is not legal on the wire; the connection cannot be used further."""


class ServerError(GearflowError):
    """The server refused a request: with an ERROR packet, or as ``gearflow:*`` functions do.

    ``code`` is for programs (match it without case: servers differ), ``text`` is for people.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}" if text and text != code else code)
        self.code = code
        self.text = text

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code, self.text)  # what __init__ takes, not the message it makes


class QueueFull(ServerError):
    """The function's queue, or the server, has as much as it may; try again when jobs have been done."""


class NoServer(GearflowError):
    """No configured server can be reached. Nothing was sent, so trying again is safe.

    What may be submitted again (``resubmit``) ends so, too, when its server was lost and no other can be
    reached; ``__cause__`` then says which one, and a job there may run on.

    ``reasons`` maps each server's address to why it was not used. ``remedy`` is what the message ends with,
    which is empty where the reasons say it themselves.
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
    """The connection closed while a job was attached to it.

    The server accepted the job; whether it ran, runs or was dropped with the connection cannot be known.
    """


class SubmitUnknown(GearflowError):
    """A submission was sent, and the connection closed before the server acknowledged it.

    The job may exist or not, so it is never sent again unasked. Submit it again only if running it
    twice does no harm (``resubmit=True`` does so), or with a ``unique`` on which the second submission
    coalesces.
    """


class PartlySubmitted(GearflowError):
    """Of many submissions some were accepted, and some were not: the account, by place among the items.

    Attributes:
        accepted: A reference for each job that the server has.
        failures: What became of the others that were tried: ``QueueFull``, ``ServerError``, ``NoServer``
            (not sent), ``PayloadInvalid`` (not sent); after ``SubmitUnknown`` the job may exist or not.
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
    """The server knows no such job: it never had it, or what became of it is not kept any more."""


class UnsupportedByServer(GearflowError):
    """The server at hand cannot honour an option of this call. Nothing was sent."""


class StartupFailed(GearflowError):
    """The worker took no job. A lifespan hook raised as it was entered: its error is the ``__cause__``.

    Or the worker is larger already than ``max_rss`` allows.
    """


class StoreError(GearflowError):
    """Where a server keeps its jobs cannot be read or written. The message names the file and the remedy.

    What was to be written is not kept, and must not be acknowledged; what was kept before is not lost by it.
    """


class PayloadInvalid(GearflowError, ValueError):
    """Arguments (or a result) do not fit the task's types.

    ``errors`` is pydantic's list: one dict per fault with ``loc``, ``msg``, ``type`` and, if it can be
    shown as JSON, ``input``.
    """

    def __init__(self, message: str, errors: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(message)
        self.errors = [dict(error) for error in errors]


class TaskFailed(GearflowError):
    """The task raised an exception on the worker, or the worker failed the job without a reason.

    Where the remote exception's class is known here, what is raised is also an instance of that class. Where
    it is not, ``str()`` tells its name (``type``) before the ``message``.
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
    """The task overran its run limit (``timeout=``) on the worker."""


class TaskCrashed(TaskFailed):
    """The task ended the process that ran it. The message has how, its memory, and what it wrote last."""


class TaskDefinitionError(GearflowError, TypeError):
    """A function cannot be offered as a task as it is written; the message names the remedy."""


class UnknownTask(GearflowError, LookupError):
    """No registered task has that name; the message offers the nearest ones."""
