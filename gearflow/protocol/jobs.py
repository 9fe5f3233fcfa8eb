"""The reserved functions ``gearflow:jobs`` and ``gearflow:bulk``: lists of jobs, and acts on all that match.

``gearflow:jobs`` lists the jobs that a filter selects, page by page, whether they live or have ended. A
server of a group lists the live jobs that it owns, and the ended jobs of the whole group. ``gearflow:bulk``
counts the jobs that a filter selects, or acts on all of them.

Durations are seconds, times are Unix time. See ``gearflow.protocol.server_calls``.
"""

from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from gearflow.protocol.messages import Answer, Count, Message, Moment, UnixTime
from gearflow.protocol.server_calls import JobInfo

JOBS: Final = b"gearflow:jobs"
BULK: Final = b"gearflow:bulk"

ListedState: TypeAlias = Literal[
    "waiting", "running", "delayed", "succeeded", "failed", "cancelled", "expired", "dead"
]
"""The states by which jobs are listed. ``failed`` has the jobs whose outcome is kept and that are no dead
letters. ``dead`` has all dead letters, also those that expired. ``expired`` has those alone."""

LIVE: Final[tuple[ListedState, ...]] = ("running", "waiting", "delayed")
ENDED: Final[tuple[ListedState, ...]] = ("succeeded", "failed", "cancelled", "expired", "dead")


class JobFilter(Message):
    """Selects jobs. A job has to match all that is given."""

    states: tuple[ListedState, ...] = ()
    """Selects jobs in one of these states. Empty means all states."""

    handle: str | None = None
    """Selects the job with this handle. The server finds it without a search."""

    function: str | None = None
    """Selects jobs of this function."""

    text: str | None = None
    """Selects jobs with this text in the handle, the function, the unique, the payload or the error. Case
    does not matter. Of a payload or error, the first 64 KiB count. Fields that the task redacts do not count,
    nor do payloads so large that the server has them only on the disk in pieces."""

    error: str | None = None
    """Selects jobs that ended with this type of error, such as ``KeyError``."""

    since: UnixTime | None = None
    """Selects jobs that were submitted at this time or later. For ended jobs, those that ended then."""

    until: UnixTime | None = None
    """Selects jobs that were submitted before this time. For ended jobs, those that ended before it."""


class JobsRequest(JobFilter):
    """``gearflow:jobs``: list jobs. Answered with ``JobPage``."""

    after: str = ""
    """``next`` of the page before."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    """The largest number of jobs to return."""

    payload: Annotated[int, Field(ge=0, le=65536)] = 0
    """Up to so many bytes of each payload are returned."""


class ListedJob(Answer):
    """A job in a list."""

    job: JobInfo
    """The job."""

    listed: ListedState
    """The state by which it is listed."""

    payload: str | None = None
    """The beginning of the payload as text, if it was asked for and is UTF-8. Fields that the task redacts
    are replaced."""


class JobPage(Answer):
    """A page of a list of jobs: first running, waiting and delayed jobs in the order of their numbers, then
    those that ended, the last one first. If only dead letters are selected, they come by their numbers, the
    largest first."""

    jobs: tuple[ListedJob, ...] = ()
    """The jobs of the page."""

    next: str = ""
    """Pass this as ``after`` for the next page. Empty if this is the last page. A page may have fewer jobs
    than asked for, or none, because the server looks at a limited number of jobs for each page."""

    searched: Count = 0
    """About how many jobs the server has looked at for this page."""

    left: Count | None = None
    """About how many jobs the server has to look at for the pages that follow. None if it does not know."""


class BulkRequest(JobFilter):
    """``gearflow:bulk``: act on all jobs that match. Answered with ``BulkDone``.

    ``cancel`` is for live jobs, ``replay`` and ``purge`` are for dead letters. Jobs in other states are not
    touched and do not count.
    """

    do: Literal["count", "cancel", "replay", "purge", "errors"]
    """``count`` and ``errors`` change nothing. ``errors`` groups dead letters by function and error."""

    expected: Annotated[int, Field(ge=0)] | None = None
    """Refuses if more jobs match than this. So nothing happens to jobs that nobody has seen counted."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        wrong = {"cancel": ENDED, "replay": LIVE, "purge": LIVE, "errors": LIVE}.get(self.do, ())
        if others := sorted({*self.states} & {*wrong}):
            raise ValueError(f"{self.do} is not for jobs that are {' or '.join(others)}")
        return self


class ErrorGroup(Answer):
    """Dead letters of one function that ended with one type of error."""

    function: str
    """The function."""

    error: str
    """The type of the error, or a word such as ``Expired`` or ``WorkersDied``."""

    message: str
    """The message of the last of them."""

    count: Count
    """The number of dead letters."""

    first: Moment
    """When the first of them ended."""

    last: Moment
    """When the last of them ended."""

    handle: str
    """The handle of the last of them."""


class BulkDone(Answer):
    """The outcome of an act on many jobs."""

    matched: Count
    """Jobs that matched."""

    done: Count = 0
    """Jobs that the act has changed."""

    left: Count = 0
    """Jobs that stay as they are, such as dead letters whose unique another job has now."""

    errors: tuple[ErrorGroup, ...] = ()
    """The answer to ``errors``, with the largest group first."""
