"""How ``gearflow watch`` shows jobs: as bars on a terminal, else as lines, or as JSON.

All of them take the events of several jobs, each with the job's name.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from gearflow_cli import output
from gearflow_cli.errors import tell
from gearflow_cli.text import indented, printable

if TYPE_CHECKING:
    from rich.progress import TaskID

    from gearflow.tasks import Event

INTERVAL: Final = 10.0
"""Seconds between two lines about the progress of a job."""


class View(Protocol):
    """Shows events, in a block that gives the terminal back at its end."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def show(self, name: str, event: "Event[Any]") -> None:
        """Show an event of a job."""
        ...

    def say(self, text: str) -> None:
        """Print a message on stderr."""
        ...

    def drop(self, name: str) -> None:
        """A job cannot be watched any more."""
        ...

    def tick(self) -> None:
        """A second has passed."""
        ...


@dataclass
class _Job:
    """What is known of a job. Owns state."""

    state: str = "waiting"
    done: int = 0
    total: int = 0
    message: str = ""
    began: tuple[float, int] | None = None
    """When the first progress of the run came, and how far it was."""

    shown: float = field(default_factory=time.monotonic)
    """When its last line was printed."""

    def take(self, event: "Event[Any]") -> None:
        """Note an event."""
        from gearflow.tasks import Ended, Progress, Retrying, Started

        match event:
            case Started(attempt=attempt, worker=worker):
                on = f" on {worker}" if worker else ""
                self.state = f"running{on}" if attempt == 1 else f"running{on}, attempt {attempt}"
                self._begin()
            case Progress(done=done, total=total, message=message):
                self.done, self.total, self.message = done, total, message
                self.began = self.began or (time.monotonic(), done)
            case Retrying(attempt=attempt, delay=delay, reason=reason):
                self.state = f"attempt {attempt} ended, again in {delay:g} s: {reason}"
                self._begin()
            case Ended(state=state):
                self.state, self.began = state, None
                if state == "completed":
                    self.done, self.total, self.message = 0, 0, ""
            case _:
                pass

    def _begin(self) -> None:
        self.done, self.total, self.message, self.began = 0, 0, "", None

    @property
    def rate(self) -> float | None:
        """Steps in a second, in this run. None if that is not known yet."""
        if self.began is None:
            return None
        since, first = self.began
        seconds = time.monotonic() - since
        return (self.done - first) / seconds if seconds > 0 and self.done > first else None

    @property
    def pace(self) -> str:
        """How fast it is, and how long it may take."""
        rate = self.rate
        if rate is None:
            return ""
        left = f", {_duration((self.total - self.done) / rate)} left" if self.total > self.done else ""
        return f"{rate:.3g}/s{left}"

    def in_words(self) -> str:
        """All of it on one line."""
        of = f" of {self.total:,}" if self.total else ""
        progress = f"{self.done:,}{of}" if self.total or self.done else ""
        return ", ".join(part for part in (self.state, progress, self.pace, self.message) if part)


def _duration(seconds: float) -> str:
    """Seconds as a clock shows them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Printed:
    """A view without a state of the terminal."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """There is nothing to give back."""

    def say(self, text: str) -> None:
        """Print a message on stderr."""
        tell(text)


class Lines(_Printed):
    """A line on stdout for each change of the state, for each warning, and every ten seconds."""

    def __init__(self) -> None:
        self._jobs: dict[str, _Job] = {}

    def show(self, name: str, event: "Event[Any]") -> None:
        """Print a line, unless the event is only progress."""
        from gearflow.tasks import Part, Progress, Warned

        job = self._jobs.setdefault(name, _Job())
        job.take(event)
        if isinstance(event, Warned):
            output.write_sentence(f"{name}: warning: {event.text.rstrip()}")
        elif not isinstance(event, Progress | Part):
            self._write(name, job)

    def drop(self, name: str) -> None:
        """Print no further line about a job."""
        self._jobs.pop(name, None)

    def tick(self) -> None:
        """Print the jobs that have had no line for a while."""
        now = time.monotonic()
        for name, job in self._jobs.items():
            if now - job.shown >= INTERVAL and job.state.startswith("running"):
                self._write(name, job)

    def _write(self, name: str, job: _Job) -> None:
        job.shown = time.monotonic()
        output.write_sentence(f"{name}: {job.in_words()}")
        output.write_bytes(b"")  # flushed


class JsonLines(_Printed):
    """One JSON object a line for each event."""

    def show(self, name: str, event: "Event[Any]") -> None:
        """Print the event."""
        output.write_json_line({"handle": name, **_fields(event)})

    def drop(self, name: str) -> None:
        """Nothing, because no more events come."""

    def tick(self) -> None:
        """Nothing, because only events are printed."""


def _fields(event: "Event[Any]") -> dict[str, Any]:
    from gearflow.tasks import Ended, Part, Progress, Retrying, Started, Warned

    match event:
        case Started(attempt=attempt, worker=worker):
            return {"event": "started", "attempt": attempt, "worker": worker}
        case Progress(done=done, total=total, message=message):
            return {"event": "progress", "done": done, "total": total, "message": message}
        case Warned(text=text):
            return {"event": "warned", "text": text}
        case Retrying(attempt=attempt, delay=delay, reason=reason):
            return {"event": "retrying", "attempt": attempt, "delay": delay, "reason": reason}
        case Part(position=position):
            return {"event": "part", "position": position}
        case Ended(state=state, failure=failure):
            ended: dict[str, Any] = {"event": "ended", "state": state}
            if failure is not None:
                ended |= {"type": failure.type, "message": failure.message}
            return ended


class Bars:
    """A bar for each job, with warnings above all of them."""

    def __init__(self, names: Iterable[str]) -> None:
        from rich.markup import escape
        from rich.progress import BarColumn, Progress, TextColumn

        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[words]}"),
            console=output.output_console(),
        )
        self._rows: dict[str, TaskID] = {
            name: self._bars.add_task(escape(printable(name)), total=None, words="waiting") for name in names
        }
        self._jobs = {name: _Job() for name in names}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, name: str, event: "Event[Any]") -> None:
        """Move the bar, or print a warning above all bars."""
        from gearflow.tasks import Ended, Warned

        job, row = self._jobs[name], self._rows[name]
        total = job.total
        job.take(event)
        if isinstance(event, Warned):
            text = indented(event.text.rstrip())
            self._bars.console.print(printable(f"{name}: warning: {text}"), markup=False)
        if isinstance(event, Ended):
            total = total or 1
            self._bars.update(row, total=total, completed=total if event.state == "completed" else job.done)
        else:
            self._bars.update(row, total=job.total or None, completed=job.done)
        self._write(name, job)

    def say(self, text: str) -> None:
        """Print a message on stderr."""
        self._bars.stop()
        tell(text)
        self._bars.start()

    def drop(self, name: str) -> None:
        """Remove the bar of a job."""
        self._bars.update(self._rows[name], visible=False)

    def tick(self) -> None:
        """Show how fast the jobs are now."""
        for name, job in self._jobs.items():
            self._write(name, job)

    def _write(self, name: str, job: _Job) -> None:
        from rich.markup import escape

        self._bars.update(self._rows[name], words=escape(printable(job.in_words())))
