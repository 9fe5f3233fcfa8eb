"""The reserved function ``gearflow:metrics``: what the server has counted since it started, and its last day.

The counts are exact, because the server sees every change of a job. They begin with zero at each start of the
server. The history outlives the start of a durable server. In a group of servers each counts its own jobs.

Durations are seconds, times are Unix time. See ``gearflow.protocol.server_calls``.
"""

from typing import Final

from pydantic import Field

from gearflow.protocol.histograms import BucketCounts, Histogram
from gearflow.protocol.messages import Answer, Count, Message, Moment, Span, UnixTime

METRICS: Final = b"gearflow:metrics"

ALL: Final = ""
"""In the history, the name of the sum of all functions."""

OTHER: Final = "other"
"""In the history, the name of the sum of functions that have no line of their own, because there are many."""


class MetricsRequest(Message):
    """``gearflow:metrics``: show the counts of the server. Answered with ``Metrics``."""

    functions: tuple[str, ...] | None = None
    """Selects functions, also in the history, where an empty name stands for all of them together. None means
    every function, and in the history the sum of all alone."""

    since: UnixTime | None = None
    """Includes the minutes of the history that began at this time or later. None means no history."""


class FunctionMetrics(Answer):
    """One function: what happened to its jobs since the start of the server, and how many there are now.

    ``submitted`` equals the sum of all outcomes and of the jobs that are delayed, waiting and running, less
    the jobs that were there at the start of the server and those that came from other servers (``restored``).
    """

    function: str
    """The name of the function."""

    submitted: Count = 0
    """New jobs that were accepted. Dead letters that are replayed and ticks of schedules count, too."""

    joined: Count = 0
    """Submissions that joined a live job with the same unique, or took its place. They are not in
    ``submitted``."""

    restored: Count = 0
    """Jobs that the server found in its store when it started, or took over from another server."""

    passed_on: Count = 0
    """Jobs that another server of the group has taken over."""

    started: Count = 0
    """Runs that began."""

    succeeded: Count = 0
    """Jobs that ended with a result."""

    failed: Count = 0
    """Jobs that ended with a failure and left no dead letter."""

    cancelled: Count = 0
    """Jobs that were cancelled, or that nobody wanted any more."""

    expired: Count = 0
    """Jobs that had not started when their time was over."""

    dead: Count = 0
    """Jobs that became dead letters, except those that expired."""

    retried: Count = 0
    """Runs that failed, or were cut off, and after which the job was queued again."""

    fetched: Count = 0
    """How often the end of one of its jobs was fetched. See ``Metrics.fetched``."""

    waiting: tuple[Count, Count, Count] = (0, 0, 0)
    """Jobs that wait now, by priority: high, normal, low."""

    delayed: Count = 0
    """Jobs that are not due yet."""

    running: Count = 0
    """Jobs that run now."""

    oldest: Span | None = None
    """For how long the job that has waited longest has been ready to run. None if no job waits."""

    workers: Count = 0
    """Connections that offer the function."""

    slots: Count = 0
    """Jobs that these workers can run at once. Workers share their slots among their functions."""

    free: Count = 0
    """Those of the slots in which nothing runs."""

    paused: bool = False
    """Whether its jobs are not given out."""

    wait: Histogram = Histogram()
    """From the time at which a job could run to the start of the run, for each run that began."""

    run: Histogram = Histogram()
    """From the start of a run to the end of its job, for each job that ended while it ran."""


class LimitMetrics(Answer):
    """One limit, over all its keys."""

    name: str
    """The name of the limit."""

    waiting: Count = 0
    """Jobs that wait because of it, as far as the server has tried to start them."""

    running: Count = 0
    """Jobs that count in it now. Always 0 for a rate."""


class ScheduleMetrics(Answer):
    """One schedule. These counts are kept with the schedule."""

    name: str
    """The name of the schedule."""

    ticks: Count = 0
    """Ticks that made a job."""

    missed: Count = 0
    """Ticks that made no job, because no server was there."""

    skipped: Count = 0
    """Ticks that made no job, because they were too late or the schedule was paused."""

    overlapped: Count = 0
    """Ticks that made no job, because the job of the tick before had not ended."""


class FunctionMinute(Answer):
    """One minute of a function, or of all of them. The counts are as in ``FunctionMetrics``."""

    submitted: Count = 0
    started: Count = 0
    succeeded: Count = 0
    failed: Count = 0
    cancelled: Count = 0
    expired: Count = 0
    dead: Count = 0
    retried: Count = 0
    waiting: Count = 0
    """Jobs that wait at the end of the minute, of all priorities."""

    running: Count = 0
    """Jobs that run at the end of the minute."""

    oldest: Span | None = None
    """For how long the job that has waited longest has been ready to run, at the end of the minute."""

    wait: BucketCounts = ()
    """The counts of a histogram of the runs that began in this minute."""

    run: BucketCounts = ()
    """The counts of a histogram of the runs that ended in this minute."""


class Minute(Answer):
    """What happened in one minute."""

    at: Moment
    """When it began."""

    functions: dict[str, FunctionMinute] = Field(default={})
    """By function. The empty name is the sum of all. Functions in which nothing happened are left out."""


class StoreState(Answer):
    """The store of a server."""

    sync: str = ""
    """How safe an acknowledged background job is: ``always``, ``batch`` or ``off``. Empty in memory."""

    size: Count | None = None
    """Bytes of the file and its log. None in memory, and with a database."""

    free: Count | None = None
    """Bytes that the file system of the file has left for the server."""

    room: Count | None = None
    """Bytes of that file system."""

    damaged: Count = 0
    """Jobs and results that were found damaged since the server started."""


class Metrics(Answer):
    """What a server has counted."""

    time: Moment
    """The time of the answer."""

    started: Moment
    """When the server started."""

    functions: tuple[FunctionMetrics, ...] = ()
    """By function, in the order of their names."""

    limits: tuple[LimitMetrics, ...] = ()
    """By limit, in the order of their names."""

    schedules: tuple[ScheduleMetrics, ...] = ()
    """By schedule, in the order of their names."""

    connections: Count = 0
    """Open connections."""

    accepted: Count = 0
    """Connections that were accepted."""

    received: Count = 0
    """Bytes that came from connections."""

    sent: Count = 0
    """Bytes that were written to connections."""

    commits: Histogram = Histogram()
    """Writes of the store, each of which may be for many jobs. Empty without a durable store."""

    kept: Count = 0
    """Changes that these writes have made durable."""

    dead: Count = 0
    """Dead letters in the store, if the server knows their number. In a group, those of all servers."""

    fetched: Count = 0
    """How often the end of a job was fetched with ``gearflow:result``, ``gearflow:stream``,
    ``gearflow:watch`` or the option ``reuse``."""

    store: StoreState | None = None
    """The store. None for a server that does not tell."""

    history: tuple[Minute, ...] = ()
    """The minutes that were asked for, in order. Minutes in which no server ran are missing."""
