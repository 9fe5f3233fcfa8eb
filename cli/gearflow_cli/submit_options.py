"""The options of ``gearflow submit``, and which of them clash."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from gearflow_cli.errors import CliError, ExitCode
from gearflow_cli.server_queries import TIMEOUT

if TYPE_CHECKING:
    from gearflow.client import Priority, SubmitOptions
    from gearflow.tasks.definition import TaskDefinition

    AnyTask: TypeAlias = TaskDefinition


@dataclass(frozen=True, slots=True)
class SubmitChoices:
    """The options of the command line."""

    background: bool
    options: dict[str, Any]
    """Those of the call, as ``CallOptions`` has them. An option that is not given is left to the task."""
    timeout: float | None
    verbose: bool
    output: Path | None = None
    """The file for the result."""

    @property
    def patience(self) -> float:
        """Seconds that a server has for each answer until the job is submitted."""
        return min(TIMEOUT, self.timeout or TIMEOUT)

    def for_function(self) -> "tuple[Priority, SubmitOptions | None]":
        """The priority and the other options, for a function without a task."""
        from gearflow.tasks.options import Options

        options = Options().updated(self.options)
        return options.priority, None if options.is_plain else options.asked

    def check(self) -> None:
        """Raises CliError if options make no sense together."""
        from gearflow.protocol.uniques import is_fresh

        starts = [f"--{name}" for name in ("delay", "at") if name in self.options]
        if len(starts) > 1:
            _refuse("--delay and --at both say when the job may start: leave out one of them")
        if starts and not self.background:
            _refuse(f"{starts[0]} is for jobs that nobody waits for: add --bg")
        self._check_debounce(starts)
        if self.timeout is not None and self.background:
            _refuse(
                "--timeout limits the wait for the result, and --bg does not wait: leave out one of them "
                "(--run-limit limits the run)"
            )
        if self.output is not None and self.background:
            _refuse("--output is for the result, and --bg does not wait: leave out one of them")
        if self.options.get("unique") == "":
            _refuse("--unique needs a key; leave it out to join nothing")
        if is_fresh(self.options.get("unique", "")):
            _refuse("--unique: '~' and 32 hexadecimal digits are for gearflow's own keys; give another key")
        if self.options.get("timeout") == 0:
            _refuse("--run-limit 0: a task cannot run in no time; leave it out for no limit")

    def _check_debounce(self, starts: Sequence[str]) -> None:
        if "debounce" not in self.options:
            if "max_wait" in self.options:
                _refuse("--max-wait limits the wait of --debounce: add --debounce")
            return
        if not self.background:
            _refuse("--debounce is for jobs that nobody waits for: add --bg")
        if starts or self.options.get("reuse"):
            others = [*starts, *(["--reuse"] if self.options.get("reuse") else [])]
            _refuse(f"{others[0]} and --debounce do not go together: leave out one of them")

    def check_with(self, task: "AnyTask | None", *, raw: bool) -> None:
        """Raises CliError if options make no sense for the task. With ``raw``, its own do not apply."""
        has_key = task is not None and not raw and task.call_options.unique is not False
        if self.options.get("reuse") and "unique" not in self.options and not has_key:
            _refuse("--reuse asks for what is kept of a job with the same key: add --unique")
        if "debounce" in self.options and "unique" not in self.options and not has_key:
            _refuse("--debounce replaces the job with the same key: add --unique")
        if task is not None and task.foreign and self.options.keys() & {"retries", "timeout"}:
            _refuse(f"--retries and --run-limit are for gearflow's workers, and others run {task.name}")


def _refuse(fault: str) -> NoReturn:
    raise CliError(ExitCode.USAGE, fault)
