"""What a server knows of a job -> lines for a person."""

from datetime import datetime
from typing import TYPE_CHECKING

from gearflow_cli.render import Row

if TYPE_CHECKING:
    from gearflow.protocol.reserved import JobInfo


def rows(job: "JobInfo") -> list[Row]:
    """All that is known, by name; what is empty is left out."""
    done, total = job.progress or (0, 0)
    known = {
        "handle": job.handle,
        "function": job.function,
        "unique": job.unique,
        "state": _state(job),
        "kind": "background" if job.background else "attached",
        "priority": job.priority,
        "submitted": when(job.submitted),
        "due": when(job.due),
        "started": when(job.started),
        "ended": when(job.ended),
        "kept until": when(job.kept_until),
        "attempt": job.attempt or None,
        "deaths": job.deaths or None,
        "worker": job.worker,
        "progress": f"{done} of {total}" if job.progress else None,
        "size": f"{job.size} bytes",
    }
    shown = [(name, str(value)) for name, value in known.items() if value not in (None, "")]
    shown.extend(("warning", warning) for warning in job.warnings)
    if job.failure is not None:
        shown.append(("failure", failure(job)))
    return shown


def _state(job: "JobInfo") -> str:
    if job.dead:
        return f"{job.state}, a dead letter"
    return f"{job.state}; its function is paused" if job.paused else job.state


def failure(job: "JobInfo") -> str:
    """Why a job failed, as one text; empty if nothing is known."""
    said = job.failure
    if said is None:
        return ""
    return ": ".join(part for part in (said.type, said.message) if part)


def when(time: float | None) -> str:
    """A Unix time as a local one; empty for none."""
    if time is None:
        return ""
    try:
        return datetime.fromtimestamp(time).astimezone().isoformat(" ", "seconds")
    except (ValueError, OverflowError, OSError):  # a server takes any number
        return "after the year 9999"
