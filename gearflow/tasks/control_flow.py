"""What a running task raises to say what is to become of its job.

They are no failures, though they are exceptions: the worker does what they say, and a caller never sees
them as themselves. They are ``Exception``, so a task that catches everything catches them too.
"""

from datetime import timedelta

from gearflow.tasks.durations import seconds


class Control(Exception):
    """What all of them have in common."""


class TryAgain(Control):
    """Run the job again: ``raise TryAgain(after=30)``, best ``from`` the error that is the reason.

    It counts as an attempt, whatever the ``on=`` of the task's ``retries``; without ``retries`` there are
    as many attempts as ``Retry()`` has.

    Args:
        after: Seconds until then; by default what the schedule of the task's ``retries`` says.
    """

    def __init__(self, after: float | timedelta | None = None) -> None:
        super().__init__(after)  # as they came, so that it can be pickled
        self.after = None if after is None else seconds("after", after)

    def __str__(self) -> str:
        return "to be tried again" + ("" if self.after is None else f" after {self.after:g} s")


class Snooze(Control):
    """Run the job again in some seconds, without counting this run as an attempt: it is too early."""

    def __init__(self, seconds_: float | timedelta, /) -> None:
        super().__init__(seconds_)
        self.seconds = seconds("seconds", seconds_)

    def __str__(self) -> str:
        return f"to be run in {self.seconds:g} s"


class Discard(Control):
    """End the job as failed, whatever retries are left: ``raise Discard("the account is closed")``."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason or "discarded"


class Fail(Discard):
    """End the job with WORK_FAIL alone: ``raise Fail("no such order")``. As ``Discard`` it ends the retries.

    Clients learn that the job failed, and not why: the reason is only in the worker's log. Use it for clients
    of other libraries that tell a failure (WORK_FAIL) from an exception.
    """
