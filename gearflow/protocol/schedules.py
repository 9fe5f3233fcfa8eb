"""The reserved functions ``gearflow:schedule`` and ``gearflow:schedules``: jobs that the server itself makes.

The first one changes schedules, the second one shows them. Durations are seconds, times are Unix time. See
``gearflow.protocol.server_calls``.
"""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from gearflow.protocol.constants import Priority
from gearflow.protocol.messages import Answer, Count, Message, Moment, Seconds, Trace, UnixTime
from gearflow.protocol.server_calls import RetryPlan, State

SCHEDULE: Final = b"gearflow:schedule"
SCHEDULES: Final = b"gearflow:schedules"

MAX_PAYLOAD: Final = 65_536
"""Bytes of the payload of a schedule."""

MAX_BACKFILL: Final = 10_000
"""Jobs of one backfill."""

MAX_TIMES: Final = 100
"""Next times of a schedule that an answer has."""

Missed = Literal["once", "skip", "all"]
Overlap = Literal["skip", "queue", "allow", "cancel"]
ScheduleName = Annotated[str, Field(min_length=1, max_length=512)]


# ------------------------------------------------------------------------------------------- requests


class ScheduleWhen(Message):
    """When a schedule is due, and what happens to ticks that come late or too early."""

    cron: Annotated[str, Field(max_length=256)] | None = None
    """A cron expression. Either this or ``every`` is required."""

    every: Annotated[float, Field(ge=1, le=1e9)] | None = None
    """The time between two ticks. They count from ``start``, or from the time of the first put."""

    tz: Annotated[str, Field(max_length=64)] = "UTC"
    """The time zone of the cron expression."""

    start: UnixTime | None = None
    """There are no ticks before this time."""

    end: UnixTime | None = None
    """There are no ticks after this time."""

    jitter: Seconds = 0
    """The job of a tick starts up to this time later, at random."""

    missed: Missed = "once"
    """Whether the last of the ticks that were missed while no server was there is made up for, or none, or
    all."""

    grace: Seconds = 86_400
    """Missed ticks that are older than this are not made up for."""

    overlap: Overlap = "skip"
    """What happens to a tick while the job of an earlier one has not ended. ``skip`` counts it only. With
    ``queue`` its job follows. ``allow`` runs both. ``cancel`` cancels the earlier one."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.cron is None) == (self.every is None):
            raise ValueError("a schedule has either cron or every")
        if self.start is not None and self.end is not None and self.end < self.start:
            raise ValueError("end is before start, so the schedule would never be due")
        return self


class ScheduleSpec(Message):
    """A schedule, as a client puts it."""

    name: ScheduleName
    """The name of the schedule. It replaces the schedule of the same name."""

    function: Annotated[str, Field(min_length=1)]
    """The function of the jobs."""

    when: ScheduleWhen
    """When they are made."""

    payload: str = ""
    """The payload of the jobs, of up to 64 KiB."""

    encoding: Literal["utf-8", "base64"] = "utf-8"
    """How ``payload`` has the bytes of the payload."""

    priority: Priority = Priority.NORMAL
    """The priority of the jobs."""

    expires: Seconds | None = None
    """How long after its tick a job may start. It then ends as a dead letter."""

    keep: Seconds | None = None
    """How long the outcome of a job is kept. Without it, the server's default counts."""

    retries: RetryPlan | None = None
    """When a failed run is repeated. For the worker."""

    timeout: Annotated[float, Field(gt=0, le=1e10)] | None = None
    """How long a run may take. For the worker."""

    keys: dict[str, Annotated[str, Field(max_length=255)]] | None = None
    """The keys of the jobs for limits by their names, for rules whose key the caller sends."""

    group: Annotated[str, Field(max_length=255)] | None = None
    """The group of the jobs among those that take turns, if the caller sends it."""


class ScheduleRequest(Message):
    """``gearflow:schedule``: change schedules.

    ``put``, ``apply`` and ``delete`` are answered with ``ScheduleChanges``, ``pause`` and ``resume`` with
    ``ScheduleInfo``, ``trigger`` and ``backfill`` with ``ScheduledJobs``.
    """

    do: Literal["put", "apply", "delete", "pause", "resume", "trigger", "backfill"]
    """``put`` sets schedules, ``apply`` sets those of an origin. ``delete`` removes a schedule. A paused
    schedule makes no jobs. ``trigger`` makes a job now. ``backfill`` makes the jobs of past times."""

    name: ScheduleName | None = None
    """The schedule. All but ``put`` and ``apply`` need it."""

    schedules: tuple[ScheduleSpec, ...] = ()
    """For ``put`` and ``apply``, the schedules."""

    origin: Annotated[str, Field(max_length=128)] = "client"
    """For ``put`` and ``apply``, where these schedules come from. A schedule of another origin is neither
    replaced nor removed by them. The request is refused if it has the name of one."""

    prune: bool = False
    """For ``apply``, removes schedules of the origin that are neither in ``schedules`` nor in ``others``."""

    others: tuple[ScheduleName, ...] = ()
    """For ``apply``, schedules that ``prune`` leaves, because other requests have them."""

    dry_run: bool = False
    """For ``apply``, answers with the changes but makes none."""

    since: UnixTime | None = None
    """For ``backfill``, the first time."""

    until: UnixTime | None = None
    """For ``backfill``, the last time. Without it, now."""

    trace: Trace | None = None
    """The trace context of the caller. The runs of the schedules and jobs that it makes link to it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        sets = self.do in ("put", "apply")
        if sets == (self.name is not None):
            text = (
                f"{self.do} has schedules, and no name" if sets else f"{self.do} needs the name of a schedule"
            )
            raise ValueError(text)
        if self.do == "put" and not self.schedules:
            raise ValueError("put needs schedules")
        if not sets and self.schedules:
            raise ValueError(f"schedules are not for {self.do}")
        if self.do != "apply" and (self.prune or self.others or self.dry_run):
            raise ValueError("prune, others and dry_run are for apply")
        if (self.do == "backfill") != (self.since is not None):
            raise ValueError("backfill needs since, which nothing else has")
        if self.do != "backfill" and self.until is not None:
            raise ValueError("until is for backfill")
        if len({schedule.name for schedule in self.schedules}) < len(self.schedules):
            raise ValueError("two schedules have the same name")
        return self


class SchedulesRequest(Message):
    """``gearflow:schedules``: list schedules, or show one. Answered with ``Schedules``."""

    name: ScheduleName | None = None
    """Selects the schedule of this name."""

    function: str | None = None
    """Selects the schedules of this function."""

    origin: str | None = None
    """Selects the schedules of this origin."""

    after: str | None = None
    """Starts after the schedule of this name. They are sorted by their names."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    """The largest number to return."""

    times: Annotated[int, Field(ge=1, le=MAX_TIMES)] = 1
    """How many next times of each schedule to return."""


# -------------------------------------------------------------------------------------------- answers


class ScheduleChanges(Answer):
    """The schedules that a request changed, by name."""

    created: tuple[str, ...] = ()
    """The new ones."""

    changed: tuple[str, ...] = ()
    """Those that were replaced."""

    unchanged: tuple[str, ...] = ()
    """Those that were the same before."""

    removed: tuple[str, ...] = ()
    """Those that are not there any more."""


class ScheduledJobs(Answer):
    """The jobs that ``trigger`` or ``backfill`` made."""

    jobs: Count
    """The number of jobs."""

    joined: Count = 0
    """The number of further times whose job was there already and has not ended."""

    handle: str = ""
    """The handle of the job of ``trigger``."""


class ScheduleInfo(Answer):
    """Everything the server knows about a schedule."""

    schedule: ScheduleSpec
    """The schedule as it was put."""

    origin: str = ""
    """Where it comes from."""

    paused: bool = False
    """Whether it is paused."""

    next: tuple[Moment, ...] = ()
    """The next times, as many as the request asked for. Empty if there is none."""

    first: Moment = 0
    """When it was first put. Without ``start``, the ticks of ``every`` count from this."""

    last: Moment | None = None
    """The time of the last tick."""

    handle: str = ""
    """The handle of the last tick's job."""

    state: State | None = None
    """The state of that job, if the server knows it."""

    ticks: Count = 0
    """How many jobs were made at their time, or made up for."""

    missed: Count = 0
    """How many ticks were missed and not made up for."""

    skipped: Count = 0
    """How many ticks were skipped because it was paused."""

    overlapped: Count = 0
    """How many ticks were skipped because the job of an earlier one had not ended."""

    queued: Moment | None = None
    """The time of the tick that waits until the job of an earlier one ends, with the overlap ``queue``."""

    has_worker: bool = False
    """Whether a worker offers the function. On servers that share a database, a worker of this server."""

    fault: str = ""
    """Why the server cannot find the next time. For example, it lacks the time zone."""


class Schedules(Answer):
    """The answer to ``gearflow:schedules``."""

    schedules: tuple[ScheduleInfo, ...]
    """The schedules, sorted by their names."""

    total: Count = 0
    """How many schedules were selected, also those before ``after`` and beyond ``limit``."""
