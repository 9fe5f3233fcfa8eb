"""The functions that gearflow's own server answers itself, for any client.

They stay inside the protocol, so every Gearman library can use them. A call is a foreground submission of a
function whose name begins with ``gearflow:``, with a JSON object as its workload. The server does not list
these functions, no worker can offer them, and the server refuses a background submission of one, because its
answer would reach nobody. The exception is ``gearflow:submit``.

The answer is a JSON object in WORK_COMPLETE. An error is a ``Fault``. If the caller has set the option
``exceptions``, the server sends it as JSON in WORK_EXCEPTION. If not, it sends the message in WORK_WARNING,
and then WORK_FAIL. Two functions answer in another way:

* ``gearflow:submit`` takes the options as the first line of the workload. The payload follows the newline. An
  attached submission *is* the job. JOB_CREATED has the job's own handle, and the job's packets follow. A
  detached one is answered with ``Submitted`` once the job is stored. It may also be a background submission
  of ``gearflow:submit``, which is answered as all of these are: with JOB_CREATED, which has the job's own
  handle, or with ERROR. Then the packet has the unique and the priority, so requests for the same options are
  equal. The server reads equal requests once.
* ``gearflow:result`` ends exactly as the job ended, with the worker's own bytes.
* ``gearflow:stream`` brings the parts of a job, each in WORK_DATA, and then ends as ``gearflow:result`` does.
  Before a part whose number is not the next one, WORK_STATUS brings the position (the number of parts before
  it) and the run. The caller sends WORK_STATUS with the position up to which it has taken the parts.
* ``gearflow:watch`` brings what happens to a job, each event in WORK_DATA, and then ends in the same way.

``gearflow:auth`` takes a token as its workload. A server that requires a token answers nothing else before
it. It answers a wrong token with ERROR and closes the connection.

``gearflow:events`` never ends. While the connection lasts, WORK_DATA brings one
JSON object for each event that concerns it. ``{"event": "cancel", "handle": ...}`` tells a worker that a job
it runs was cancelled, or that the last client that wanted it has gone. Nobody receives the result.
``{"event": "credit", "handle": ..., "parts": ...}`` says up to which position the parts of a job are taken.

Durations are seconds, times are Unix time.
"""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from gearflow.protocol.constants import AUTH as AUTH
from gearflow.protocol.constants import STREAM_KEEP, Priority
from gearflow.protocol.constants import SUBMIT as SUBMIT
from gearflow.protocol.messages import LATEST as LATEST
from gearflow.protocol.messages import Answer as Answer
from gearflow.protocol.messages import Count as Count
from gearflow.protocol.messages import Due as Due
from gearflow.protocol.messages import Failure as Failure
from gearflow.protocol.messages import Fault as Fault
from gearflow.protocol.messages import Message as Message
from gearflow.protocol.messages import Moment as Moment
from gearflow.protocol.messages import PastRun as PastRun
from gearflow.protocol.messages import Progress as Progress
from gearflow.protocol.messages import Seconds as Seconds
from gearflow.protocol.messages import Span as Span
from gearflow.protocol.messages import Trace as Trace
from gearflow.protocol.messages import UnixTime as UnixTime
from gearflow.protocol.server_events import EVENTS as EVENTS
from gearflow.protocol.server_events import STREAM as STREAM
from gearflow.protocol.server_events import WATCH as WATCH
from gearflow.protocol.server_events import cancel_event as cancel_event
from gearflow.protocol.server_events import cancelled_handle as cancelled_handle
from gearflow.protocol.uniques import check_unique_options

RESULT: Final = b"gearflow:result"
INFO: Final = b"gearflow:info"
RETRY: Final = b"gearflow:retry"
RELEASE: Final = b"gearflow:release"
CANCEL: Final = b"gearflow:cancel"
EDIT: Final = b"gearflow:edit"
DETACH: Final = b"gearflow:detach"
DEAD: Final = b"gearflow:dead"
PAUSE: Final = b"gearflow:pause"
PURGE: Final = b"gearflow:purge"
REOPEN: Final = b"gearflow:reopen"

# ------------------------------------------------------------------------------------------- requests


class RetryPlan(Message):
    """When a failed task runs again. The worker applies it, because it knows the exception."""

    delays: tuple[Seconds, ...]
    """Longest pause before each further run."""

    jitter: bool = True
    """Whether each pause is a random time between half of the delay and all of it."""

    on: tuple[str, ...] = ("builtins.Exception",)
    """Exception classes, as ``module.name``, after which the task runs again. Subclasses count too."""


class SubmitRequest(Message):
    """``gearflow:submit``: submit a job with options for which the protocol has no packet."""

    function: Annotated[str, Field(min_length=1)]
    unique: str = ""
    """Joins the function's live job with the same unique. ``-`` makes the payload the key."""

    priority: Priority = Priority.NORMAL
    detached: bool = False
    """Makes it a background job. The server stores it and answers at once."""

    delay: Seconds | None = None
    """Time from now before which the job does not run. For detached jobs."""

    at: UnixTime | None = None
    """Time before which the job does not run. For detached jobs."""

    debounce: Seconds | None = None
    """Replaces the detached job of this unique that has not started, and starts it this time from now."""

    max_wait: Seconds | None = None
    """The longest time from the first of these submissions to the start of the job."""

    expires: Seconds | None = None
    """Time from now after which the job does not start. It then ends as a dead letter."""

    keep: Seconds | None = None
    """How long the outcome is kept. Without it, detached jobs get the server's default, and the outcome of
    attached jobs is not kept."""

    reuse: bool = False
    """Answers at once with a kept success of the same function and unique, if there is one."""

    retries: RetryPlan | None = None
    """When a failed run is repeated. For the worker."""

    timeout: Annotated[float, Field(gt=0, le=1e10)] | None = None
    """How long a run may take. For the worker."""

    parts: Literal["relay", "keep", "wait"] = "relay"
    """How the caller gets the job's parts. ``relay`` sends WORK_DATA on the job's own handle. With ``keep``
    it calls ``gearflow:stream`` for them. With ``wait`` it does too, and the worker waits until it has."""

    stream_keep: Annotated[int, Field(ge=0)] = STREAM_KEEP
    """Bytes of the parts of a background job that are kept. The oldest are dropped. A part counts as at least
    16 bytes."""

    keys: dict[str, Annotated[str, Field(max_length=255)]] | None = None
    """The keys of the job for limits by their names, for rules whose key the caller sends."""

    group: Annotated[str, Field(max_length=255)] | None = None
    """The group of the job among those that take turns, if the caller sends it."""

    trace: Trace | None = None
    """The trace context of the call, as up to 8 headers of its propagator. For the worker."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.detached and self.parts != "relay":
            raise ValueError("parts is for attached jobs")
        if self.delay is not None and self.at is not None:
            raise ValueError("delay and at both say when the job may start: give one of them")
        if not self.detached and (self.delay is not None or self.at is not None):
            raise ValueError("delay and at are for detached jobs")
        check_unique_options(self)
        return self


class JobName(Message):
    """Names a job by its handle, or the last job of a function with a unique."""

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
    """How long to wait. After it the fault is ``timeout``."""


class StreamRequest(JobName):
    """``gearflow:stream``: read the parts of a job, then end as it ended."""

    after: Annotated[int, Field(ge=0)] | Literal["latest"] = 0
    """The position to start after, which is the number of parts that are skipped. ``latest`` skips all that
    have come."""

    lag: Literal["wait", "skip"] = "wait"
    """Whether the worker waits for this reader, or the reader misses parts if it is too slow."""


class WatchRequest(JobName):
    """``gearflow:watch``: see what happens to a job, until it ends."""

    parts: bool = False
    """Whether the parts of the job are events, too."""


class InfoRequest(Message):
    """``gearflow:info``: show a job or the server. Answered with ``JobInfo`` or ``ServerInfo``."""

    handle: str | None = None
    function: str | None = None
    unique: str | None = None

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if self.handle is not None or self.function is not None or self.unique is not None:
            self.job()
        return self

    def job(self) -> JobName | None:
        """Return the requested job, or ``None`` if the request is about the server."""
        if self.handle is None and self.function is None and self.unique is None:
            return None
        return JobName(handle=self.handle, function=self.function, unique=self.unique)


class RetryRequest(Message):
    """``gearflow:retry``: run a job again later.

    The connection that holds the job sends it in place of the job's end packet. The server answers once the
    retry is stored. If it refuses, the worker still has to end the job.
    """

    handle: str
    delay: Seconds = 0
    counted: bool = True
    """Whether the run counts as an attempt."""

    reason: str = ""
    """Sent as WORK_WARNING to the clients that are attached to the job."""


class ReleaseRequest(Message):
    """``gearflow:release``: give a job back. The server gives it to another worker at once."""

    handle: str
    begun: bool = False
    """Whether the worker has begun to run it, so that the next run is not the first."""


class CancelRequest(Message):
    """``gearflow:cancel``: end a job that waits or runs. Answered with ``Done``."""

    handle: str


class EditRequest(Message):
    """``gearflow:edit``: change a job that waits or is delayed. Everything else stays as it is. Answered
    with ``Done`` once the change is kept."""

    handle: str
    priority: Priority | None = None
    delay: Seconds | None = None
    """Time from now before which the job does not run. 0 means at once. For background jobs."""

    at: UnixTime | None = None
    """Time before which the job does not run. For background jobs."""

    expires: Seconds | None = None
    """Time from now after which the job does not start. For jobs that have not started before."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.delay is not None and self.at is not None:
            raise ValueError("delay and at both say when the job may start: give one of them")
        if self.model_dump(exclude_none=True).keys() == {"handle"}:
            raise ValueError("there is nothing to change: give priority, delay, at or expires")
        return self


class DetachRequest(Message):
    """``gearflow:detach``: detach the connection from a job that it submitted, or end a call that it made.

    If the connection submitted the job several times, this takes back one of them. The server sends nothing
    more about it, and a job that nobody else wants ends. Answered with ``Done``.
    """

    handle: str
    """The handle of the job, or that of a call of ``gearflow:result``, ``gearflow:stream`` or
    ``gearflow:watch``."""


class DeadRequest(Message):
    """``gearflow:dead``: list, show, replay or purge dead letters.

    ``list`` is answered with ``Letters``, ``show`` with ``Letter``, ``replay`` and ``purge`` with ``Done``.
    """

    action: Literal["list", "show", "replay", "purge"]
    handle: str | None = None
    """The dead letter. ``show`` needs it."""

    function: str | None = None
    """Selects the dead letters of this function. Without handle and function, the request is about all."""

    after: str | None = None
    """For ``list``, starts after the dead letter with this handle."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    """For ``list``, the largest number to return."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.action == "show" and self.handle is None:
            raise ValueError("show needs a handle")
        return self


class PauseRequest(Message):
    """``gearflow:pause``: stop giving out the jobs of a function, or go on. Answered with ``Done``.

    A server with a file answers once that is written, so it also holds for the next server.
    """

    function: Annotated[str, Field(min_length=1)]
    paused: bool = True


class PurgeRequest(Message):
    """``gearflow:purge``: cancel the waiting and delayed jobs of a function. Answered with ``Done``."""

    function: Annotated[str, Field(min_length=1)]


class ReopenRequest(Message):
    """``gearflow:reopen``: accept background jobs again after a failed sync. Answered with ``Reopened``.

    It has no keys. The server first makes sure that its file has everything, and that the disk has the file.
    """


# -------------------------------------------------------------------------------------------- answers


class Submitted(Answer):
    """The answer to a detached ``gearflow:submit``."""

    handle: str


class Admitted(Answer):
    """The answer to ``gearflow:auth`` if the token is right or not required. It has no keys."""


class Done(Answer):
    """How many jobs a call affected."""

    jobs: Count
    """The number of affected jobs."""

    left: Count = 0
    """For ``replay``, the number of dead letters that stay because another job has their unique."""

    damaged: Count = 0
    """For ``replay``, the number of dead letters that stay because they were found damaged."""


State = Literal[
    "delayed",
    "waiting",
    "running",
    "completed",
    "cancelled",
    "failed",
    "raised",
    "workers_died",
    "expired",
    "damaged",
]


class JobInfo(Answer):
    """Everything the server knows about a job."""

    handle: str
    """The server's name for the job."""

    function: str
    """The function of the job."""

    unique: str = ""
    """The unique of the job, or empty."""

    state: State
    """The state of the job."""

    dead: bool = False
    """Whether it is a dead letter."""

    background: bool = True
    """Whether it is a background job."""

    priority: Priority | None = None
    """The priority, if the job has not ended."""

    submitted: Moment | None = None
    """When it was submitted."""

    due: Due | None = None
    """When it may start, if that is not at once."""

    started: Moment | None = None
    """When its current or last run began."""

    ended: Moment | None = None
    """When it ended."""

    kept_until: Moment | None = None
    """When the server forgets the outcome."""

    attempt: Count = 0
    """The number of its current or last run, from 1."""

    deaths: Count = 0
    """Runs that were cut off, because the worker went away or overran its time limit (CAN_DO_TIMEOUT)."""

    worker: str = ""
    """The name of the worker that has the job, or had it last."""

    progress: tuple[Progress, Progress] | None = None
    """The last reported progress, as numerator and denominator."""

    message: str = ""
    """The message of the last progress, if it had one."""

    parts: Count = 0
    """The number of parts that have come, in the current or last run and those that it continued."""

    warnings: tuple[str, ...] = ()
    """The last warnings of the worker."""

    runs: tuple[PastRun, ...] = ()
    """The runs after which it was queued again: the first one and the last 15. Jobs that a worker gave back
    without a run have none."""

    failure: Failure | None = None
    """The reason why the job failed, if the worker gave one."""

    size: Count = 0
    """Bytes of the result, or of the payload if the job has not ended."""

    paused: bool = False
    """Whether it has not started because its function is paused."""

    why: str = ""
    """Why it waits, such as ``shopify: 100/m, next in 3 s``. Empty if it only waits for its turn."""

    damage: str | None = None
    """The damage to the job in the server's file, if the server has noticed any, with the remedy."""

    owner: str = ""
    """The address of the server that has the job, if the answer is from another one of its group."""


class Letters(Answer):
    """The answer to ``list``."""

    letters: tuple[JobInfo, ...]


class Letter(Answer):
    """A dead letter with its payload, the answer to ``show``."""

    job: JobInfo
    """The job."""

    payload: str
    """The payload in base64, without what its task redacts. Empty if it is damaged, see ``damage`` of the
    job."""

    text: str | None = None
    """The payload as text, if it is UTF-8."""


class Reopened(Answer):
    """The answer to ``gearflow:reopen``. From now on the server accepts background jobs."""

    was_closed: bool
    """Whether it refused them before."""


class Closed(Answer):
    """A server that refuses background jobs, because it cannot keep them."""

    since: Moment
    """Since when."""

    reason: str
    """The error of its disk, with the file, or of the way to its database."""


class ServerInfo(Answer):
    """The state of the server."""

    version: str
    """The version of the server, such as ``gearflow-0.1.0``."""

    durable: bool
    """Whether jobs survive a restart of the server."""

    store: str
    """Where jobs and results are kept: ``file``, ``memory`` or ``postgres``."""

    functions: tuple[str, ...]
    """The names of the reserved functions, which begin with ``gearflow:``."""

    keep: Span
    """How long the outcome of a background job is kept by default."""

    max_deaths: Count | None
    """Workers that may die of a job before it becomes a dead letter, if there is a limit."""

    jobs: Count
    """The number of jobs that have not ended."""

    paused: tuple[str, ...] = ()
    """The paused functions, whose jobs are not given out."""

    closed: Closed | None = None
    """Why the server refuses background jobs, if it does."""

    group: str = ""
    """The name of the group, if the server shares a database with others."""

    server: str = ""
    """The name of this run of the server, if it is in a group."""

    address: str = ""
    """The address of the server among those of its group."""

    servers: tuple[str, ...] = ()
    """The addresses of the live servers of the group, this one among them."""

    rights: tuple[str, ...] = ()
    """The rights of the connection that asks, if its token does not have all."""
