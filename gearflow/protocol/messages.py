"""What the messages of the reserved functions have in common, and small values in many of them.

See ``gearflow.protocol.server_calls``.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from gearflow.protocol.trace import LONGEST_NAME, LONGEST_VALUE, MOST_HEADERS

Seconds = Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False)]
UnixTime = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]
_HeaderName = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
_HeaderValue = Annotated[str, Field(max_length=LONGEST_VALUE)]
Trace = Annotated[dict[_HeaderName, _HeaderValue], Field(max_length=MOST_HEADERS)]


class Message(BaseModel):
    """A request or an answer. A request refuses unknown keys, and does not take numbers for strings."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, strict=True, allow_inf_nan=False
    )

    def to_wire(self) -> bytes:
        """Return the message as JSON on one line, without the keys that have their defaults."""
        return self.model_dump_json(exclude_defaults=True).encode()


class Answer(Message):
    """An answer. A reader ignores unknown keys, because later servers may add some."""

    model_config = ConfigDict(extra="ignore")


class Fault(Message):
    """Why a reserved function failed. ``type`` is for programs, ``message`` is for people.

    A fault has exactly these two keys. They distinguish it from a worker's exception for a failed job.
    """

    type: Literal[
        "gearflow:invalid",  # the request makes no sense
        "gearflow:unknown",  # there is no such job, or no such function
        "gearflow:timeout",  # the job has not ended in time, and goes on
        "gearflow:full",  # the limit of jobs or bytes is reached
        "gearflow:refused",  # not now, or not from this connection
        "gearflow:forbidden",  # the connection's token has no right to it
        "gearflow:store",  # it could not be kept
        "gearflow:uncertain",  # nobody knows whether it is kept
    ]
    message: str


class Failure(BaseModel):
    """The worker's WORK_EXCEPTION, as far as it can be read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: str | None = None
    """The class of the exception, as ``module.name``."""

    message: str = ""
    """The message of the exception."""

    traceback: str | None = None
    """The traceback as text."""


class PastRun(Answer):
    """A run of a job after which the job was queued again."""

    attempt: int
    """The number of the run, from 1. A run that did not count has the same number as the next one."""

    started: float
    """When it began."""

    ended: float
    """When it ended."""

    worker: str = ""
    """The name of the worker that had the job."""

    reason: str = ""
    """Why the job was queued again, such as the error of the task. Up to 500 characters."""
