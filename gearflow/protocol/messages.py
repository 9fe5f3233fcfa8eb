"""What the messages of the reserved functions have in common, and small values in many of them.

See ``gearflow.protocol.server_calls``.
"""

from typing import Annotated, Any, Final, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from gearflow.protocol.trace import LONGEST_NAME, LONGEST_VALUE, MOST_HEADERS

Seconds = Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False)]
UnixTime = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]


class WhenRead:
    """Bounds of a value that hold only where an answer is read. A frozen value.

    A server trusts its own numbers, so making an answer costs what it did. A reader does not trust a server:
    nothing behind it has to be ready for a number of 400 digits, or for a time that no calendar has.

    Args:
        bounds: As in pydantic's core schemas, such as ``ge`` and ``le``.
    """

    def __init__(self, **bounds: Any) -> None:
        self._bounds = bounds

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        made = handler(source)
        read = cast(CoreSchema, {**made, **self._bounds})
        return core_schema.json_or_python_schema(read, made)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return handler(cast(Any, schema)["python_schema"])  # the reference says the bounds once


Count = Annotated[int, WhenRead(ge=0, le=(1 << 63) - 1)]
"""A number of things in an answer. It fits into 64 bits."""

Progress = Annotated[int, WhenRead(gt=-(10**20), lt=10**20)]
"""A number that a worker has sent. Those in packets have up to 20 digits, and may be negative."""

LATEST: Final = 2.5e11
"""The last time in an answer, in the year 9892. It is beyond all times that a request may have."""

Moment = Annotated[float, WhenRead(ge=0, le=LATEST)]
"""A Unix time in an answer."""

Due = Annotated[float, WhenRead(gt=-1e20, le=1e20)]
"""A Unix time that a client has sent. A packet may have one of 20 digits."""

Span = Annotated[float, WhenRead(ge=-1e11, le=1e19)]
"""A duration in an answer, also the sum of many. It is negative if two clocks differ."""
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

    attempt: Count
    """The number of the run, from 1. A run that did not count has the same number as the next one."""

    started: Moment
    """When it began."""

    ended: Moment
    """When it ended."""

    worker: str = ""
    """The name of the worker that had the job."""

    reason: str = ""
    """Why the job was queued again, such as the error of the task. Up to 500 characters."""
