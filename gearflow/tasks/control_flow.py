"""Exceptions that a running task raises to decide how its job goes on.

They are not failures. The worker does what they ask for, and callers never see them. They are ``Exception``s,
so a task that catches everything catches them too.
"""

from datetime import timedelta

from gearflow.tasks.durations import seconds


class Control(Exception):
    """The base of all of them."""


class TryAgain(Control):
    """Raise this to run the job again, as in ``raise TryAgain(after=30) from error``.

    The run counts as an attempt, whatever the ``on=`` of the task's ``retries`` says. Without ``retries``
    there are as many attempts as ``Retry()`` has.

    Args:
        after: Seconds until the next run. By default the schedule of the task's ``retries`` decides.

    Attributes:
        after: Seconds until the next run, or None.
    """

    def __init__(self, after: float | timedelta | None = None) -> None:
        super().__init__(after)  # as they came, so that it can be pickled
        self.after: float | None = None if after is None else seconds("after", after)

    def __str__(self) -> str:
        return "to be tried again" + ("" if self.after is None else f" after {self.after:g} s")


class Snooze(Control):
    """Raise this to run the job again in some seconds. The run does not count as an attempt.

    Args:
        seconds_: Seconds until the next run.

    Attributes:
        seconds: Seconds until the next run.
    """

    def __init__(self, seconds_: float | timedelta, /) -> None:
        super().__init__(seconds_)
        self.seconds: float = seconds("seconds", seconds_)

    def __str__(self) -> str:
        return f"to be run in {self.seconds:g} s"


class Discard(Control):
    """Raise this to end the job as failed, even if it has retries left, as in ``raise Discard("closed")``.

    Args:
        reason: The message of the failure.

    Attributes:
        reason: The message of the failure.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason or "discarded"


class Fail(Discard):
    """Raise this to end the job with WORK_FAIL alone, as in ``raise Fail("no such order")``.

    Like ``Discard`` it ends the retries. Clients learn that the job failed, but not why. The reason is only
    in the worker's log. Use it for clients of other libraries that distinguish a failure (WORK_FAIL) from an
    exception.
    """
