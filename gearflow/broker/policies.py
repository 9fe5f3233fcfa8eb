"""The policy of a function: retries, the time limit and the keeping of jobs that do not say it themselves.

Most programs in other languages cannot send such options, and their workers do not apply them. So an operator
sets them for all jobs of a function. gearflow's workers get them in the envelope, as they get those of a
submission. For other workers the server itself takes the job back when the time is over, and runs a failed
job again. A policy is looked at when a job is given out and when it ends, so it also holds for the jobs that
wait when it is set.
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple
from zlib import crc32

from gearflow.broker.job import JobDetails, QueuedJob

_SHOWN: Final = 200
"""Characters of a worker's error that the reason for a retry shows."""


class JobPolicy:
    """What holds for the jobs of a function. Owns nothing, and never changes."""

    __slots__ = ("keep", "limit", "retries", "timeout")

    def __init__(
        self,
        retries: dict[str, object] | None = None,
        keep: float | None = None,
        timeout: float | None = None,
        limit: int | None = None,
    ) -> None:
        self.retries = retries  # a RetryPlan as JSON objects
        self.keep = keep  # seconds
        self.timeout = timeout  # seconds
        self.limit = limit  # jobs that run at once

    def retries_of(self, job: QueuedJob, details: JobDetails) -> dict[str, object] | None:
        """The plan of a job: that of its submission, else the policy's if it is a background job."""
        return details.retries if details.retries is not None or not job.background else self.retries

    def timeout_of(self, details: JobDetails) -> float | None:
        """How long a run of a job may take: as its submission says, else as the policy does."""
        return details.timeout if details.timeout is not None else self.timeout

    def limit_run(self, details: JobDetails, own: float | None) -> float | None:
        """The time limit of a run at a worker that does not know it, which may have set one of its own."""
        timeout = self.timeout_of(details) if self.timeout is not None else None
        return min(own, timeout) if own and timeout is not None else timeout or own

    def retry(self, job: QueuedJob, details: JobDetails) -> float | None:
        """Seconds to the next run of a background job whose run has failed. None if that was the last."""
        plan = self.retries_of(job, details) if self.retries is not None else None
        if plan is None:
            return None
        delays: Any = plan["delays"]
        if details.attempt >= len(delays):
            return None
        delay: float = delays[details.attempt]
        if plan.get("jitter", True):
            # By the number of the job, because the broker draws no random numbers.
            part: float = crc32(b"%d:%d" % (job.number, details.attempt)) / 0xFFFF_FFFF
            return delay * (1 + part) / 2
        return delay


class FailedRun(NamedTuple):
    """A run that a worker has ended with an error."""

    packet: str  # its name
    text: bytes  # the worker's error, or nothing

    def reason(self, attempt: int, delay: float) -> str:
        """Why the job runs again, for people."""
        said = self.text[: 4 * _SHOWN].decode(errors="ignore")  # Perl's is no text
        text = " ".join("".join(letter if letter.isprintable() else " " for letter in said).split())
        cause = f": {text[:_SHOWN]}" if text else ""
        when = f"in {delay:.{0 if delay >= 10 else 1}f} s" if delay >= 0.05 else "at once"
        return f"run {attempt} failed ({self.packet}{cause}). The next run is {when}"


def read_policy(value: bytes) -> JobPolicy:
    """A policy as the store has it. A value that is none raises what Python raises."""
    options: dict[str, Any] = json.loads(value)
    retries = options.get("retries")
    if retries is not None:
        retries = {**retries, "delays": [float(delay) for delay in retries["delays"]]}
    return JobPolicy(retries, options.get("keep"), options.get("timeout"), options.get("limit"))
