"""The reserved function ``gearflow:edit``: change a job that waits. See ``gearflow.protocol.server_calls``.

Durations are seconds, times are Unix time.
"""

from typing import Final, Self

from pydantic import model_validator

from gearflow.protocol.constants import Priority
from gearflow.protocol.server_calls import Message, Seconds, UnixTime

EDIT: Final = b"gearflow:edit"


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
