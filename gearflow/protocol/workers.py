"""Reserved functions about workers: the list, ``gearflow:quiet``, and what workers tell of themselves.

A worker is a connection that offers functions, also one of a program in another language. A program may have
several connections. See ``gearflow.protocol.server_calls``.

Durations are seconds, times are Unix time.
"""

from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from gearflow.protocol.messages import Answer, Count, Message, Moment

WORKERS: Final = b"gearflow:workers"
QUIET: Final = b"gearflow:quiet"
REPORT: Final = b"gearflow:report"

MOST_RUNS: Final = 1_000_000_000
"""The largest number of slots, and of overdue runs, that a worker may tell."""

_FieldName = Annotated[str, Field(min_length=1, max_length=255)]


class WorkersRequest(Message):
    """``gearflow:workers``: list the workers. Answered with ``Workers``."""

    jobs: Annotated[int, Field(ge=0, le=1000)] = 0
    """Up to so many of the jobs that each worker runs are returned, the one that began first before all."""


class QuietRequest(Message):
    """``gearflow:quiet``: give workers no more jobs, or go on. Answered with ``QuietDone``.

    A quiet worker ends what it runs. It is named by its id, or by its client id, which several may have. The
    server forgets this when the connection closes, so a worker that connects again gets jobs.
    """

    id: str | None = None
    """The id of one worker, from ``gearflow:workers``."""

    client_id: Annotated[str, Field(min_length=1)] | None = None
    """The name that workers have set. All workers of this name are meant."""

    quiet: bool = True
    """False to go on."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.id is None) == (self.client_id is None):
            raise ValueError("a worker is named by id or by client_id: give one of them")
        return self


class EventsRequest(Message):
    """``gearflow:events``: be notified of what concerns this worker. The call never ends."""

    slots: Annotated[int, Field(ge=1, le=MOST_RUNS)] = 1
    """How many jobs the worker runs at once. For operators, the server gives jobs to all who ask."""


class ReportRequest(Message):
    """``gearflow:report``: the state of a worker that the server cannot see.

    It replaces the connection's earlier report. Answered with ``Done``.
    """

    overdue: dict[str, Annotated[int, Field(ge=0, le=MOST_RUNS)]] = Field(default={})
    """Runs by function that go on although their job has ended, because a thread cannot be stopped. Each
    keeps a slot of the worker."""

    texts: dict[str, str] = Field(default={})
    """Functions whose payload is a text, with the name of their only parameter."""

    resumable: list[str] = Field(default=[])
    """Functions that go on after the parts of an earlier run. All others start again."""

    limits: dict[str, str] = Field(default={})
    """The limits that the worker's code declares, as a text for each function. ``gearflow status`` compares
    them with those of the server."""

    redact: dict[str, Annotated[list[_FieldName], Field(max_length=64)]] = Field(default={})
    """The fields of payloads that are not shown to operators, by function. ``*`` means the whole payload.
    Only functions that the connection offers count. The server keeps them until a report has others."""


class WorkerJob(Answer):
    """A job that a worker runs."""

    handle: str
    """The handle of the job."""

    function: str
    """The function of the job."""

    since: Moment
    """When the run began."""


class WorkerInfo(Answer):
    """A worker, which is a connection that offers functions."""

    id: str = ""
    """The server's name for the connection. No other one has it, also after a restart of the server."""

    client_id: str
    """The name that the worker has set, or ``-``."""

    address: str
    """The address of the connection."""

    functions: tuple[str, ...]
    """The functions that the worker offers."""

    since: Moment = 0
    """When it first offered a function."""

    slots: Count = 1
    """How many jobs it runs at once, from ``gearflow:events``. 1 if it has not told."""

    quiet: bool = False
    """Whether the server gives it no jobs, because of ``gearflow:quiet``."""

    running: Count = 0
    """The number of jobs that the worker has."""

    jobs: tuple[WorkerJob, ...] = ()
    """Those jobs that were asked for."""

    overdue: dict[str, Count] = Field(default={})
    """Runs by function that go on although their job has ended, from ``gearflow:report``."""

    texts: dict[str, str] = Field(default={})
    """Functions whose payload is a text, with the name of their only parameter, from ``gearflow:report``."""

    limits: dict[str, str] = Field(default={})
    """The limits that the worker's code declares, by function, from ``gearflow:report``."""


class Workers(Answer):
    """The answer to ``gearflow:workers``."""

    workers: tuple[WorkerInfo, ...]


class QuietDone(Answer):
    """The answer to ``gearflow:quiet``."""

    workers: Count
    """The number of workers that were named."""

    running: Count = 0
    """The number of jobs that they still run."""
