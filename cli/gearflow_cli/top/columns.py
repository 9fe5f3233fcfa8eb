"""The columns of ``gearflow top``: what each shows of a function, a worker, a job or a server. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, NamedTuple, TypeVar

from gearflow.observe import Activity, FleetView, ServerView, percentile
from gearflow.protocol.histograms import Histogram
from gearflow.protocol.metrics import FunctionMetrics
from gearflow.protocol.server_calls import JobInfo
from gearflow.protocol.workers import WorkerInfo
from gearflow.quantities import short_duration, short_number
from gearflow_cli import output
from gearflow_cli.commands.workers import runs, state
from gearflow_cli.top.model import TopPage

NONE: Final = "-"
"""Stands for what a server does not tell."""


class ListedWorker(NamedTuple):
    """A worker and its server."""

    server: ServerView
    worker: WorkerInfo


class KnownJob(NamedTuple):
    """A job and its server. Other servers than gearflow's tell the handle alone."""

    server: ServerView
    handle: str
    job: JobInfo | None
    listed: str

    @property
    def function(self) -> str:
        """Its function, if that is known."""
        return self.job.function if self.job is not None else NONE

    @property
    def is_dead(self) -> bool:
        """Whether it is a dead letter."""
        return self.job is not None and self.job.dead

    @property
    def attempt(self) -> int:
        """The number of its run, if that is known."""
        return self.job.attempt if self.job is not None else 0


@dataclass(frozen=True)
class Seen:
    """What there is to show."""

    fleet: FleetView
    activities: Mapping[str, Activity] | None
    """What happened since the look before, by function. None after the first look."""

    now: float
    """The time of the look (Unix time)."""

    jobs: Sequence[KnownJob] = ()
    more: bool = False
    """Whether there are more jobs than these."""

    searched: str = ""
    """How many jobs the servers have searched, if that is not all of them."""

    several: bool = False
    """Whether there are several servers."""


R = TypeVar("R")


def _plain(item: object, shown: Seen) -> str:
    """No style."""
    return ""


class TopColumn(NamedTuple, Generic[R]):
    """A column. ``width`` is the least one, and ``flexible`` columns share what is left.

    A column with a ``drop`` is left out where the terminal is too narrow. The highest one goes first.
    """

    title: str
    width: int
    cell: Callable[[R, Seen], str]
    sort: Callable[[R, Seen], Any] | None = None
    style: Callable[[R, Seen], str] = _plain
    right: bool = False
    flexible: bool = False
    drop: int = 0


def _words(
    title: str,
    width: int,
    cell: Callable[[R, Seen], str],
    sort: Callable[[R, Seen], Any] | None = None,
    style: Callable[[R, Seen], str] = _plain,
    *,
    flexible: bool = False,
    drop: int = 0,
) -> TopColumn[R]:
    """Words."""
    return TopColumn(title, width, cell, sort, style, flexible=flexible, drop=drop)


def _number(
    title: str,
    width: int,
    cell: Callable[[R, Seen], str],
    sort: Callable[[R, Seen], Any] | None,
    style: Callable[[R, Seen], str] = _plain,
    drop: int = 0,
) -> TopColumn[R]:
    """Figures: the largest come first."""
    return TopColumn(title, width, cell, sort, style, right=True, drop=drop)


def _largest(value: float | None) -> float:
    return -1.0 * (value if value is not None else -1.0)


# ------------------------------------------------------------------------------------------ functions


def _rates(function: FunctionMetrics, shown: Seen) -> Activity | None:
    """None if they are not known."""
    if shown.activities is None or not _is_counted(function, shown):
        return None
    return shown.activities.get(function.function, _IDLE)


_IDLE: Final = Activity()


def _is_counted(function: FunctionMetrics, shown: Seen) -> bool:
    return any(view.counted for view in shown.fleet.of(function.function))


def _ended(function: FunctionMetrics, shown: Seen) -> float | None:
    rates = _rates(function, shown)
    return None if rates is None else rates.ended


def _failed(function: FunctionMetrics, shown: Seen) -> float | None:
    rates = _rates(function, shown)
    return None if rates is None else rates.lost + rates.retried


def _runs_of(function: FunctionMetrics, shown: Seen) -> Histogram:
    """How long the runs took: those since the look before if there were any, else all."""
    rates = _rates(function, shown)
    return rates.run if rates is not None and any(rates.run.counts) else function.run


def _waits_for(function: FunctionMetrics, shown: Seen) -> str:
    if function.paused and not any(function.waiting):
        return "paused"
    return shown.fleet.waits_for(function.function)


def _of_waiting(function: FunctionMetrics, shown: Seen) -> str:
    waits = any(function.waiting) and (function.paused or not function.workers)
    return "yellow" if waits or function.paused else ""


_FUNCTIONS: Final[tuple[TopColumn[FunctionMetrics], ...]] = (
    _words(
        "FUNCTION",
        16,
        lambda f, _: f.function,
        lambda f, _: f.function.lower(),
        lambda f, _: "" if f.running or any(f.waiting) or f.delayed else "dim",
        flexible=True,
    ),
    _number("WAITING", 7, lambda f, _: count(sum(f.waiting)), lambda f, _: -sum(f.waiting), _of_waiting),
    _number(
        "DELAYED",
        7,
        lambda f, shown: count(f.delayed) if _is_counted(f, shown) else NONE,
        lambda f, _: -f.delayed,
        drop=6,
    ),
    _number(
        "RUNNING",
        7,
        lambda f, _: count(f.running),
        lambda f, _: -f.running,
        lambda f, _: "green" if f.running else "",
    ),
    _number("WORKERS", 7, lambda f, _: count(f.workers), lambda f, _: -f.workers, drop=5),
    _number("FREE", 5, lambda f, shown: count(f.free) if _is_counted(f, shown) else NONE, None, drop=8),
    _number("OLDEST", 6, lambda f, _: span(f.oldest), lambda f, _: _largest(f.oldest), drop=1),
    _number("ENDED/S", 7, lambda f, s: rate(_ended(f, s)), lambda f, s: _largest(_ended(f, s))),
    _number(
        "FAILED/S",
        8,
        lambda f, s: rate(_failed(f, s)),
        lambda f, s: _largest(_failed(f, s)),
        lambda f, s: "red" if _failed(f, s) else "",
    ),
    _number("P50", 6, lambda f, s: span(percentile(_runs_of(f, s), 0.5)), None, drop=7),
    _number(
        "P99",
        6,
        lambda f, s: span(percentile(_runs_of(f, s), 0.99)),
        lambda f, s: _largest(percentile(_runs_of(f, s), 0.99)),
        drop=4,
    ),
    _words("WAITS FOR", 10, _waits_for, None, lambda f, _: "yellow", flexible=True, drop=2),
)


# -------------------------------------------------------------------------------------------- workers


def _worker_state(each: ListedWorker, shown: Seen) -> str:
    return state(each.worker) if each.server.info is not None else NONE


def _of_worker(each: ListedWorker, shown: Seen) -> str:
    word = state(each.worker)
    return "red" if "overdue" in word else {"running": "green", "quiet": "yellow"}.get(word, "dim")


def _server(server_of: Callable[[R], ServerView], *, drop: int) -> TopColumn[R]:
    return _words(
        "SERVER",
        14,
        lambda each, _: server_of(each).address,
        lambda each, _: server_of(each).address,
        drop=drop,
    )


def _since(each: ListedWorker, shown: Seen) -> float | None:
    return shown.now - each.worker.jobs[0].since if each.worker.jobs else None


_WORKERS: Final[tuple[TopColumn[ListedWorker], ...]] = (
    _words("NAME", 12, lambda w, _: w.worker.client_id, lambda w, _: w.worker.client_id, flexible=True),
    _words("ID", 8, lambda w, _: w.worker.id or NONE),
    _server(lambda w: w.server, drop=2),
    _words("ADDRESS", 15, lambda w, _: w.worker.address, drop=5),
    _number(
        "BUSY",
        8,
        lambda w, _: f"{w.worker.running}/{w.worker.slots}" if w.server.info is not None else NONE,
        lambda w, _: -w.worker.running,
    ),
    _words("STATE", 9, _worker_state, lambda w, _: state(w.worker), _of_worker),
    _words("RUNS", 14, lambda w, _: runs(w.worker), lambda w, s: _largest(_since(w, s)), flexible=True),
    _words("FUNCTIONS", 12, lambda w, _: ", ".join(w.worker.functions), flexible=True, drop=1),
    _number("UP", 6, lambda w, s: span(s.now - w.worker.since) if w.worker.since else NONE, None, drop=4),
)


# ----------------------------------------------------------------------------------- jobs, dead letters


def _age(each: KnownJob, shown: Seen) -> float | None:
    """For how long it has been in its state."""
    job = each.job
    if job is None:
        return None
    since = job.ended or (job.started if each.listed == "running" else None) or job.submitted
    return None if since is None else max(0.0, shown.now - since)


def _about(each: KnownJob, shown: Seen) -> str:
    """What there is to say about a job."""
    job = each.job
    if job is None:
        return "only gearflow's server tells more"
    if job.progress is not None and each.listed == "running":
        done, total = job.progress
        return f"{done:,} of {total:,}" + (f": {job.message}" if job.message else "")
    return _error(job) or job.why or ("paused" if job.paused else "")


def _error(job: JobInfo | None) -> str:
    """Why a job has failed. Its state if there is no other reason."""
    if job is None:
        return ""
    if job.damage:
        return job.damage.partition("\n")[0]
    return output.failure_text(job).partition("\n")[0] or (job.state if job.ended else "")


_OF_STATE: Final = {
    "running": "green",
    "waiting": "",
    "delayed": "yellow",
    "succeeded": "green",
    "cancelled": "yellow",
}

_JOBS: Final[tuple[TopColumn[KnownJob], ...]] = (
    _words("HANDLE", 18, lambda j, _: j.handle, flexible=True),
    _words(
        "FUNCTION",
        14,
        lambda j, _: j.function,
        lambda j, _: j.function,
        flexible=True,
    ),
    _words(
        "STATE", 9, lambda j, _: j.listed, lambda j, _: j.listed, lambda j, _: _OF_STATE.get(j.listed, "red")
    ),
    _number("FOR", 6, lambda j, s: span(_age(j, s)), lambda j, s: _largest(_age(j, s))),
    _number(
        "ATTEMPT",
        7,
        lambda j, _: str(j.attempt or ""),
        lambda j, _: -j.attempt,
        drop=3,
    ),
    _words("WORKER", 12, lambda j, _: j.job.worker if j.job else "", drop=4),
    _server(lambda j: j.server, drop=2),
    _words("ABOUT", 12, _about, None, flexible=True, drop=1),
)

_DEAD: Final[tuple[TopColumn[KnownJob], ...]] = (
    _words("HANDLE", 18, lambda j, _: j.handle, flexible=True),
    _words("FUNCTION", 14, lambda j, _: j.function, lambda j, _: j.function, flexible=True),
    _number("AGO", 6, lambda j, s: span(_age(j, s)), lambda j, s: _age(j, s) or 0.0),
    _number("ATTEMPT", 7, lambda j, _: str(j.attempt), lambda j, _: -j.attempt, drop=2),
    _server(lambda j: j.server, drop=1),
    _words(
        "ERROR",
        20,
        lambda j, _: _error(j.job),
        lambda j, _: _error(j.job),
        lambda j, _: "red",
        flexible=True,
    ),
)


# --------------------------------------------------------------------------------------------- servers


def _server_state(view: ServerView, shown: Seen) -> str:
    if view.error:
        return view.error
    if view.info is not None and view.info.closed is not None:
        return f"refuses background jobs: {view.info.closed.reason}"
    return next(iter(view.faults.values()), "answers")


def _of_server(view: ServerView, shown: Seen) -> str:
    closed = view.info is not None and view.info.closed is not None
    return "red" if view.error or closed else "yellow" if view.faults else "green"


def _waiting(view: ServerView) -> int:
    return sum(sum(function.waiting) for function in view.functions)


def _running(view: ServerView) -> int:
    return sum(function.running for function in view.functions)


def _up(view: ServerView) -> float | None:
    return view.metrics.time - view.metrics.started if view.metrics is not None else None


def _kind(view: ServerView, shown: Seen) -> str:
    return "gearmand (C)" if view.kind == "gearmand" else view.kind


_SERVERS: Final[tuple[TopColumn[ServerView], ...]] = (
    _words("SERVER", 15, lambda v, _: v.address, lambda v, _: v.address, flexible=True),
    _words("KIND", 12, _kind, _kind),
    _words("VERSION", 8, lambda v, _: v.version.removeprefix("gearflow-"), drop=4),
    _words("STATE", 10, _server_state, None, _of_server, flexible=True),
    _number("WAITING", 7, lambda v, _: count(_waiting(v)), lambda v, _: -_waiting(v)),
    _number("RUNNING", 7, lambda v, _: count(_running(v)), lambda v, _: -_running(v)),
    _number("CONNS", 6, lambda v, _: count(v.metrics.connections) if v.metrics else NONE, None, drop=3),
    _number("ROUND TRIP", 10, lambda v, _: span(v.round_trip), lambda v, _: _largest(v.round_trip), drop=1),
    _number("UP", 6, lambda v, _: span(_up(v)), None, drop=2),
    _words("STORE", 9, lambda v, _: (v.info.group or v.info.store) if v.info else NONE, drop=5),
)

COLUMNS: Final[Mapping[TopPage, tuple[TopColumn[Any], ...]]] = {
    TopPage.FUNCTIONS: _FUNCTIONS,
    TopPage.WORKERS: _WORKERS,
    TopPage.JOBS: _JOBS,
    TopPage.DEAD: _DEAD,
    TopPage.SERVERS: _SERVERS,
}


# ------------------------------------------------------------------------------- figures in few characters


def count(number: int) -> str:
    """``812``, ``12,345``, ``1.23M``."""
    return short_number(number, exact=1_000_000)


def rate(number: float | None) -> str:
    """``0``, ``0.02``, ``3.1``, ``812``, ``12.3k``. A dash if it is not known."""
    return NONE if number is None else short_number(number)


def span(seconds: float | None) -> str:
    """``25ms``, ``3.2s``, ``5m10s``. A dash if it is not known."""
    return NONE if seconds is None else short_duration(seconds)
