"""Functions that gearflow's own server answers itself, as any client can call them.

They stay inside the protocol, so every Gearman library can use them: a foreground submission of a function
whose name begins with ``gearflow:``, with a JSON object as its workload. They are listed nowhere, no worker
can offer them, and a background submission is refused, since its answer would reach nobody.

The answer is a JSON object as WORK_COMPLETE. What goes wrong is a ``Fault``: WORK_EXCEPTION with it as JSON
where the caller set the option ``exceptions``, else WORK_WARNING with its message, then WORK_FAIL. Two
functions answer otherwise:

* ``gearflow:submit``: the options are the first line of the workload, the payload is what follows its
  newline. An attached submission *is* the job: JOB_CREATED has the job's own handle, and all that is said
  of the job follows. A detached one is answered with ``Submitted`` once the job is kept.
* ``gearflow:result`` ends exactly as the job ended: with the worker's own bytes.

``gearflow:auth`` takes a token as its workload. Where the server wants one, nothing else is served before it,
and a wrong one is answered with ERROR and the end of the connection.

``gearflow:events`` takes an empty workload and never ends: for as long as the connection lasts, WORK_DATA
brings one JSON object for each event that concerns it. So far there is one: ``{"event": "cancel",
"handle": ...}`` tells a worker that a job it runs has been cancelled, or that the last client that wanted it
has gone: nobody will hear of it.

Durations are seconds, times are Unix time.
"""

from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gearflow.protocol.constants import AUTH as AUTH
from gearflow.protocol.events import EVENTS as EVENTS
from gearflow.protocol.events import cancel_event as cancel_event
from gearflow.protocol.events import cancelled_handle as cancelled_handle

PREFIX: Final = b"gearflow:"
SUBMIT: Final = b"gearflow:submit"
RESULT: Final = b"gearflow:result"
INFO: Final = b"gearflow:info"
RETRY: Final = b"gearflow:retry"
RELEASE: Final = b"gearflow:release"
CANCEL: Final = b"gearflow:cancel"
DETACH: Final = b"gearflow:detach"
DEAD: Final = b"gearflow:dead"
PAUSE: Final = b"gearflow:pause"
PURGE: Final = b"gearflow:purge"
REPORT: Final = b"gearflow:report"
WORKERS: Final = b"gearflow:workers"

Seconds = Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False)]
UnixTime = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]


class Message(BaseModel):
    """A request, or an answer: in a request unknown keys are refused; numbers are no texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, strict=True)

    def to_wire(self) -> bytes:
        """As JSON on one line, without what is left at its default."""
        return self.model_dump_json(exclude_defaults=True).encode()


# ------------------------------------------------------------------------------------------- requests


class RetryPlan(Message):
    """When a failed task is run again; the worker decides by it, since it knows what was raised."""

    delays: tuple[Seconds, ...]
    """Before each further run, at most."""

    jitter: bool = True
    """Whether each delay is drawn between half of it and all of it."""

    on: tuple[str, ...] = ("builtins.Exception",)
    """Classes of exceptions, as ``module.name``, after which it is run again, and those derived from them."""


class SubmitRequest(Message):
    """``gearflow:submit``: a submission with options for which the protocol has no packet."""

    function: Annotated[str, Field(min_length=1)]
    unique: str = ""
    """Joins the live job of the function with the same one; ``-``: the payload is the key."""

    priority: Literal["high", "normal", "low"] = "normal"
    detached: bool = False
    """A background job: it is kept, and the caller is answered at once."""

    delay: Seconds | None = None
    """Not to be run before so long from now; for detached jobs."""

    at: UnixTime | None = None
    """Not to be run before; for detached jobs."""

    expires: Seconds | None = None
    """If it has not started so long from now, it is not worth running: it ends, and is a dead letter."""

    keep: Seconds | None = None
    """For how long what became of it is kept. Not given: the server's default for detached jobs; attached
    ones are not kept."""

    reuse: bool = False
    """A kept success of the same function and unique is the answer, at once."""

    retries: RetryPlan | None = None
    """For the worker."""

    timeout: Annotated[float, Field(gt=0, le=1e10)] | None = None
    """How long a run may take; for the worker."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.reuse and not self.unique:
            raise ValueError("reuse asks for a kept result of the same unique, and there is no unique")
        if self.reuse and self.unique == "-":
            raise ValueError("reuse needs a unique of its own: results are not kept by their payloads")
        if self.delay is not None and self.at is not None:
            raise ValueError("delay and at both say when the job may start: give one of them")
        if not self.detached and (self.delay is not None or self.at is not None):
            raise ValueError("delay and at are for detached jobs")
        return self


class JobName(Message):
    """A job, by its handle, or the last one of a function with a unique."""

    handle: str | None = None
    function: str | None = None
    unique: str | None = None

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        by_unique = self.function is not None and self.unique is not None
        if (self.handle is not None) == by_unique or (self.function is None) != (self.unique is None):
            raise ValueError("a job is named by its handle, or by function and unique")
        return self


class ResultRequest(JobName):
    """``gearflow:result``: wait for the end of a job, and end as it ended."""

    timeout: Seconds | None = None
    """How long to wait; then the fault is ``timeout``."""


class InfoRequest(Message):
    """``gearflow:info``: without a job, of the server. The answers are ``JobInfo`` and ``ServerInfo``."""

    handle: str | None = None
    function: str | None = None
    unique: str | None = None

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if self.handle is not None or self.function is not None or self.unique is not None:
            self.job()
        return self

    def job(self) -> JobName | None:
        """The job that is asked for, if it is one."""
        if self.handle is None and self.function is None and self.unique is None:
            return None
        return JobName(handle=self.handle, function=self.function, unique=self.unique)


class RetryRequest(Message):
    """``gearflow:retry``: in place of a job's end packet, from the connection that holds the job.

    It is answered once that is kept. If it is refused, the job is still to be ended.
    """

    handle: str
    delay: Seconds = 0
    counted: bool = True
    """Whether the run counts as an attempt."""

    reason: str = ""
    """For whoever is attached: it gets a WORK_WARNING."""


class ReleaseRequest(Message):
    """``gearflow:release``: the connection that holds a job lets go of it: another worker gets it at once."""

    handle: str


class CancelRequest(Message):
    """``gearflow:cancel``: end a job that waits or runs; answered with ``Done``."""

    handle: str


class DetachRequest(Message):
    """``gearflow:detach``: the connection wants a job no more that it submitted, or a result it waits for.

    If it submitted the job several times, that takes one of them back. Nothing follows about the job, and a
    job that nobody else wants ends. Answered with ``Done``.
    """

    handle: str
    """The job's, or that of a call of ``gearflow:result``."""


class DeadRequest(Message):
    """``gearflow:dead``: dead letters.

    ``list`` is answered with ``Letters``, ``show`` with ``Letter``, ``replay`` and ``purge`` with ``Done``.
    """

    action: Literal["list", "show", "replay", "purge"]
    handle: str | None = None
    """Which one; ``show`` needs it."""

    function: str | None = None
    """Those of this function. With neither, all are meant."""

    after: str | None = None
    """For ``list``: those after the one with this handle."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    """For ``list``: so many at most."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.action == "show" and self.handle is None:
            raise ValueError("show needs a handle")
        return self


class PauseRequest(Message):
    """``gearflow:pause``: give out no job of a function, or go on; answered with ``Done``.

    A server with a file answers when that is written: it holds for the next server, too.
    """

    function: Annotated[str, Field(min_length=1)]
    paused: bool = True


class PurgeRequest(Message):
    """``gearflow:purge``: cancel the waiting and delayed jobs of a function; answered with ``Done``."""

    function: Annotated[str, Field(min_length=1)]


class ReportRequest(Message):
    """``gearflow:report``: what a worker says of itself, in the place of what it said before.

    Answered with ``Done``.
    """

    overdue: dict[str, Annotated[int, Field(ge=0)]] = {}
    """By function: runs that go on although their job has ended, since a thread cannot be stopped. Each
    keeps a slot of the worker."""


class WorkersRequest(Message):
    """``gearflow:workers``: who works for this server. It has no keys; the answer is ``Workers``."""


# -------------------------------------------------------------------------------------------- answers


class Answer(Message):
    """An answer: keys that a reader does not know are ignored, as later servers may add some."""

    model_config = ConfigDict(extra="ignore")


class Submitted(Answer):
    """The answer to a detached ``gearflow:submit``."""

    handle: str


class Admitted(Answer):
    """The answer to ``gearflow:auth``, where the token is right, or none is wanted: that is all it says."""


class Done(Answer):
    """How many jobs were concerned."""

    jobs: int
    left: int = 0
    """For ``replay``: those that stay dead letters, as another job of their unique waits or runs."""


State = Literal[
    "delayed", "waiting", "running", "completed", "cancelled", "failed", "raised", "workers_died", "expired"
]


class Failure(BaseModel):
    """What a worker said in WORK_EXCEPTION, as far as it can be read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: str | None = None
    message: str = ""
    traceback: str | None = None


class JobInfo(Answer):
    """What the server knows of a job."""

    handle: str
    function: str
    unique: str = ""
    state: State
    dead: bool = False
    """It is a dead letter."""

    background: bool = True
    priority: Literal["high", "normal", "low"] | None = None
    submitted: float | None = None
    due: float | None = None
    started: float | None = None
    ended: float | None = None
    kept_until: float | None = None
    attempt: int = 0
    """Which run it is in, or was in, from 1."""

    deaths: int = 0
    """Workers that went away in the middle of it."""

    worker: str = ""
    progress: tuple[int, int] | None = None
    warnings: tuple[str, ...] = ()
    failure: Failure | None = None
    size: int = 0
    """Bytes of the result, or of the payload while it has not ended."""

    paused: bool = False
    """It has not started, and does not as long as its function is paused."""


class Letters(Answer):
    """The answer to ``list``."""

    letters: tuple[JobInfo, ...]


class Letter(Answer):
    """The answer to ``show``: the job, and its payload in base64 (and as text, where it is UTF-8)."""

    job: JobInfo
    payload: str
    text: str | None = None


class ServerInfo(Answer):
    """What the server is."""

    version: str
    durable: bool
    """Whether jobs survive its restart."""

    store: str
    functions: tuple[str, ...]
    """Those that begin with ``gearflow:``."""

    keep: float
    """For how long what became of a background job is kept by default."""

    max_deaths: int | None
    jobs: int
    """Those that have not ended."""

    paused: tuple[str, ...] = ()
    """Functions of which no jobs are given out."""


class WorkerInfo(Answer):
    """A worker: a connection that offers functions."""

    client_id: str
    """What it calls itself; ``-`` if it did not say."""

    address: str
    functions: tuple[str, ...]
    running: int = 0
    """Jobs that it has."""

    overdue: dict[str, int] = {}
    """By function: runs that go on although their job has ended, as it said in ``gearflow:report``."""


class Workers(Answer):
    """The answer to ``gearflow:workers``."""

    workers: tuple[WorkerInfo, ...]


class Fault(Message):
    """Why a reserved function failed. ``type`` is for programs, ``message`` is for people.

    It has just these two, by which it is told from what a worker says of a failed job.
    """

    type: Literal[
        "gearflow:invalid",  # the request makes no sense
        "gearflow:unknown",  # there is no such job, or no such function
        "gearflow:timeout",  # the job has not ended in time, and goes on
        "gearflow:full",  # there are as many jobs, or bytes, as may be
        "gearflow:refused",  # not now, or not from this connection
        "gearflow:store",  # it could not be kept
    ]
    message: str
