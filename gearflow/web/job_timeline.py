"""The life of a job as a list of moments, and its runs as bars on one line of time."""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from gearflow.protocol.server_calls import JobInfo
from gearflow.quantities import counted
from gearflow.web.formatting import duration

Mood: TypeAlias = Literal["", "good", "bad", "warn", "accent"]

WIDTH: Final = 1000
"""The width of the line of time."""

_NARROWEST: Final = 4
"""The width of a run that took nearly no time."""

_ENDS: Final[dict[str, tuple[str, Mood]]] = {
    "completed": ("Succeeded", "good"),
    "cancelled": ("Cancelled", "warn"),
    "failed": ("Failed", "bad"),
    "raised": ("Failed", "bad"),
    "workers_died": ("Given up", "bad"),
    "expired": ("Expired", "warn"),
    "damaged": ("Damaged", "bad"),
}


@dataclass(frozen=True, slots=True)
class Moment:
    """What happened to a job, or what happens now. A frozen value."""

    title: str
    at: float | None = None
    mood: Mood = ""
    text: str = ""
    worker: str = ""
    took: float | None = None
    """Seconds that a run took, or that it has taken until now."""

    is_now: bool = False
    """Whether it goes on."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A run on the line of time, from 0 to ``WIDTH``. A frozen value."""

    x: float
    width: float
    mood: Mood
    title: str


def moments(job: JobInfo, now: float) -> list[Moment]:
    """What is known of the life of a job, in order."""
    found = [Moment("Submitted", job.submitted)] if job.submitted is not None else []
    last = 0
    for run in job.runs:
        if run.attempt > last + 1:
            found.append(Moment(f"{counted(run.attempt - last - 1, 'run')} of which nothing is kept"))
        last = run.attempt
        took = max(run.ended - run.started, 0.0)
        found.append(Moment(f"Run {run.attempt}", run.started, "bad", run.reason, run.worker, took))
    if job.ended is None:
        found.append(_present(job, now))
    else:
        found += _end(job)
    return found


def bars(job: JobInfo, now: float) -> list[Bar]:
    """The runs of a job between its submission and its end, or now. Empty if there was none."""
    begin = job.submitted
    end = job.ended if job.ended is not None else now
    if begin is None or end <= begin:
        return []
    runs: list[tuple[float, float, Mood, str]] = [
        (run.started, run.ended, "bad", f"Run {run.attempt}") for run in job.runs
    ]
    if job.started is not None and (job.ended is not None or job.state == "running"):
        mood = _ENDS[job.state][1] if job.ended is not None else "accent"
        runs.append((job.started, end, mood, f"Run {job.attempt}"))
    scale = WIDTH / (end - begin)
    found: list[Bar] = []
    for started, ended, mood, name in runs:
        width = max((ended - started) * scale, _NARROWEST)
        x = min(max((started - begin) * scale, 0.0), WIDTH - width)
        found.append(Bar(round(x, 1), round(width, 1), mood, f"{name}: {duration(ended - started)}"))
    return found


def _present(job: JobInfo, now: float) -> Moment:
    if job.state == "running":
        took = max(now - job.started, 0.0) if job.started is not None else None
        title = f"Run {job.attempt}" if job.attempt else "Runs"
        return Moment(title, job.started, "accent", "", job.worker, took, True)
    if job.state == "delayed":
        return Moment("Not due before", job.due, "", job.why, is_now=True)
    return Moment("Waits", None, "", job.why or "for its turn", is_now=True)


def _end(job: JobInfo) -> list[Moment]:
    title, mood = _ENDS[job.state]
    found: list[Moment] = []
    if job.started is not None and job.ended is not None:
        took = max(job.ended - job.started, 0.0)
        found.append(Moment(f"Run {job.attempt}", job.started, mood, "", job.worker, took))
    said = job.failure
    text = ": ".join(part for part in (said.type, said.message.partition("\n")[0]) if part) if said else ""
    found.append(Moment(title, job.ended, mood, text))
    if job.dead:
        found.append(Moment("A dead letter", None, "bad", "You can replay it.", is_now=True))
    return found
