"""The options of ``gearflow submit``, and which of them clash."""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from gearflow_cli.errors import ExitCode, Failure
from gearflow_cli.server_queries import TIMEOUT

if TYPE_CHECKING:
    from gearflow.client import SubmitOptions
    from gearflow.tasks import Task

    AnyTask: TypeAlias = Task[..., Any]


@dataclass(frozen=True, slots=True)
class SubmitChoices:
    """The options of a job. None means the task's own. Durations are in seconds."""

    background: bool
    priority: str | None
    unique: str | None
    delay: float | None
    at: datetime | None
    expires: float | None
    keep: float | None
    reuse: bool | None
    resubmit: bool | None
    retries: int | None
    run_limit: float | None
    timeout: float | None
    verbose: bool

    @property
    def patience(self) -> float:
        """Seconds that a server has for each answer until the job is submitted."""
        return min(TIMEOUT, self.timeout or TIMEOUT)

    def for_task(self) -> dict[str, Any]:
        """The options for the call of a task."""
        wished = {
            "priority": self.priority,
            "unique": self.unique,
            "delay": self.delay,
            "at": self.at,
            "expires": self.expires,
            "keep": self.keep,
            "reuse": self.reuse,
            "resubmit": self.resubmit,
            "retries": self.retries,
            "timeout": self.run_limit,
        }
        return {name: value for name, value in wished.items() if value is not None}

    def for_function(self) -> "SubmitOptions | None":
        """What is wished beyond a unique and a priority, of a function without a task; None for nothing."""
        from gearflow.client import SubmitOptions
        from gearflow.tasks import Retry

        wished = SubmitOptions(
            delay=self.delay,
            at=None if self.at is None else self.at.timestamp(),
            expires=self.expires,
            keep=self.keep,
            reuse=bool(self.reuse),
            resubmit=bool(self.resubmit),
            retries=None if self.retries is None else Retry(self.retries + 1).to_plan(),
            timeout=self.run_limit,
        )
        return None if wished == SubmitOptions() else wished

    def check(self) -> None:
        """Raises Failure if options make no sense together."""
        has_start = self.delay is not None or self.at is not None
        if self.delay is not None and self.at is not None:
            _refuse("--delay and --at both say when the job may start: leave out one of them")
        if has_start and not self.background:
            name = "--at" if self.delay is None else "--delay"
            _refuse(f"{name} is for jobs that nobody waits for: add --bg")
        if self.timeout is not None and self.background:
            _refuse(
                "--timeout limits the wait for the result, and --bg does not wait: leave out one of them "
                "(--run-limit limits the run)"
            )
        if self.unique == "":
            _refuse("--unique needs a key; leave it out to join nothing")
        if self.run_limit == 0:
            _refuse("--run-limit 0: a task cannot run in no time; leave it out for no limit")

    def check_with(self, task: "AnyTask | None", *, raw: bool) -> None:
        """Raises Failure if options make no sense for the task. With ``raw``, its own do not apply."""
        has_key = task is not None and not raw and task.call_options.unique is not False
        if self.reuse and self.unique is None and not has_key:
            _refuse("--reuse asks for what is kept of a job with the same key: add --unique")
        if task is not None and task.foreign and (self.retries is not None or self.run_limit is not None):
            _refuse(f"--retries and --run-limit are for gearflow's workers, and others run {task.name}")


def _refuse(fault: str) -> NoReturn:
    raise Failure(ExitCode.USAGE, fault)
