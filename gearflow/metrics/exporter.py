"""Turns what a server or a worker has counted into metrics for Prometheus. Needs the extra ``metrics``.

A server that does not count, such as C gearmand, has only the metrics about what there is now.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from gearflow.metrics.families import (
    CounterMetricFamily,
    LabelCap,
    Metric,
    ProcessCollector,
    add_histogram,
    counter,
    gauge,
    histograms,
    printable,
)
from gearflow.metrics.worker_counts import FunctionRuns, WorkerSample
from gearflow.protocol.histograms import Histogram, added
from gearflow.protocol.metrics import FunctionMetrics, Metrics

OUTCOMES: Final = ("succeeded", "failed", "cancelled", "expired", "dead")
"""The values of the label ``outcome``."""

_PRIORITIES: Final = ("high", "normal", "low")


@dataclass(frozen=True, slots=True)
class ServerSample:
    """What is known of a server at a moment."""

    metrics: Metrics
    version: str = ""
    closed: bool = False
    """Whether it refuses background jobs, because it cannot keep them."""

    group: str = ""
    """The group of servers that it shares its store with. Empty if it is alone."""

    has_counted: bool = True
    """Whether it counts. If not, ``metrics`` has only what there is now: functions with their jobs and
    workers."""


@dataclass(slots=True)
class ServerCaps:
    """The names that have series of their own."""

    functions: LabelCap = field(default_factory=LabelCap)
    limits: LabelCap = field(default_factory=LabelCap)
    schedules: LabelCap = field(default_factory=LabelCap)


def server_families(sample: ServerSample, caps: ServerCaps) -> Iterator[Metric]:
    """The metrics of one server."""
    groups = caps.functions.grouped(
        sample.metrics.functions, lambda each: each.function, lambda each: each.workers + each.submitted
    )
    yield from _now(groups)
    if sample.has_counted:
        yield from _workers(groups)
        yield from _counted(groups)
        yield from _durations(groups)
        yield from _of_limits(sample.metrics, caps)
        yield from _of_schedules(sample.metrics, caps)
        yield from _of_server(sample)


def _now(groups: dict[str, list[FunctionMetrics]]) -> Iterator[Metric]:
    """What there is now."""
    jobs = gauge(
        "gearflow_jobs",
        "Jobs that wait (by priority), are delayed, or run.",
        *("function", "priority", "state"),
    )
    workers = gauge("gearflow_workers", "Connections of workers that offer the function.", "function")
    for name, group in groups.items():
        for index, priority in enumerate(_PRIORITIES):
            jobs.add_metric((name, priority, "waiting"), sum(each.waiting[index] for each in group))
        jobs.add_metric((name, "", "delayed"), sum(each.delayed for each in group))
        jobs.add_metric((name, "", "running"), sum(each.running for each in group))
        workers.add_metric((name,), sum(each.workers for each in group))
    yield from (jobs, workers)


def _workers(groups: dict[str, list[FunctionMetrics]]) -> Iterator[Metric]:
    """How well the workers keep up."""
    oldest = gauge(
        "gearflow_oldest_waiting_seconds",
        "For how long the job that has waited longest could have run. 0 if no job waits.",
        "function",
    )
    slots = gauge(
        "gearflow_slots",
        "Jobs that these workers can run at once. Workers share their slots among their functions.",
        *("function", "state"),
    )
    paused = gauge("gearflow_function_paused", "1 if the jobs of the function are not given out.", "function")
    for name, group in groups.items():
        oldest.add_metric((name,), max(each.oldest or 0.0 for each in group))
        free = sum(each.free for each in group)
        slots.add_metric((name, "free"), free)
        slots.add_metric((name, "busy"), max(sum(each.slots for each in group) - free, 0))
        paused.add_metric((name,), any(each.paused for each in group))
    yield from (oldest, slots, paused)


def _counted(groups: dict[str, list[FunctionMetrics]]) -> Iterator[Metric]:
    """How often what happened to jobs."""

    def family(what: str, text: str, *labels: str) -> CounterMetricFamily:
        return counter(f"gearflow_jobs_{what}_total", text, "function", *labels)

    submitted = family(
        "submitted", "New jobs that were accepted. Replays of dead letters and ticks of schedules count, too."
    )
    joined = family("joined", "Submissions that joined a live job with the same unique.")
    restored = family(
        "restored", "Jobs that the server found at its start, or took over from another server."
    )
    passed_on = family("passed_on", "Jobs that another server of the group has taken over.")
    started = family("started", "Runs that began.")
    retried = family(
        "retried", "Runs that failed, or were cut off, and after which the job was queued again."
    )
    finished = family("finished", "Jobs that ended, by outcome.", "outcome")
    for name, group in groups.items():
        submitted.add_metric((name,), sum(each.submitted for each in group))
        joined.add_metric((name,), sum(each.joined for each in group))
        restored.add_metric((name,), sum(each.restored for each in group))
        passed_on.add_metric((name,), sum(each.passed_on for each in group))
        started.add_metric((name,), sum(each.started for each in group))
        retried.add_metric((name,), sum(each.retried for each in group))
        counts = (
            sum(each.succeeded for each in group),
            sum(each.failed for each in group),
            sum(each.cancelled for each in group),
            sum(each.expired for each in group),
            sum(each.dead for each in group),
        )
        for outcome, count in zip(OUTCOMES, counts, strict=True):
            finished.add_metric((name, outcome), count)
    yield from (submitted, joined, restored, passed_on, started, retried, finished)


def _durations(groups: dict[str, list[FunctionMetrics]]) -> Iterator[Metric]:
    """How long jobs took."""
    wait = histograms(
        "gearflow_job_wait_seconds",
        "From the time at which a job could run to the start of its run.",
        "function",
    )
    run = histograms(
        "gearflow_job_run_seconds",
        "From the start of a run to the end of its job, for jobs that ended while they ran.",
        "function",
    )
    for name, group in groups.items():
        add_histogram(wait, (name,), added(each.wait for each in group))
        add_histogram(run, (name,), added(each.run for each in group))
    yield from (wait, run)


def _of_limits(metrics: Metrics, caps: ServerCaps) -> Iterator[Metric]:
    waiting = gauge(
        "gearflow_limit_waiting", "Jobs that wait because of a limit, over all its keys.", "limit"
    )
    running = gauge("gearflow_limit_running", "Jobs that count in a limit now, over all its keys.", "limit")
    groups = caps.limits.grouped(metrics.limits, lambda each: each.name, lambda each: each.running)
    for name, group in groups.items():
        waiting.add_metric((name,), sum(each.waiting for each in group))
        running.add_metric((name,), sum(each.running for each in group))
    yield from (waiting, running)


def _of_schedules(metrics: Metrics, caps: ServerCaps) -> Iterator[Metric]:
    def family(what: str, text: str) -> CounterMetricFamily:
        return counter(f"gearflow_schedule_{what}_total", text, "schedule")

    ticks = family("ticks", "Ticks that made a job.")
    missed = family("missed", "Ticks that made no job, because no server was there.")
    skipped = family(
        "skipped", "Ticks that made no job, because they were too late or the schedule was paused."
    )
    overlapped = family("overlapped", "Ticks that made no job, because the job before had not ended.")
    groups = caps.schedules.grouped(metrics.schedules, lambda each: each.name, lambda each: each.ticks)
    for name, group in groups.items():
        ticks.add_metric((name,), sum(each.ticks for each in group))
        missed.add_metric((name,), sum(each.missed for each in group))
        skipped.add_metric((name,), sum(each.skipped for each in group))
        overlapped.add_metric((name,), sum(each.overlapped for each in group))
    yield from (ticks, missed, skipped, overlapped)


def _of_server(sample: ServerSample) -> Iterator[Metric]:
    """What the server counts beside jobs."""
    metrics = sample.metrics
    commits = histograms("gearflow_store_commit_seconds", "Writes of the store, each for many changes.")
    add_histogram(commits, (), metrics.commits)
    yield commits
    info = gauge("gearflow_server_info", "Always 1. The label has the server's version.", "version")
    info.add_metric((printable(sample.version),), 1)
    yield info
    for name, text, value in _gauges(sample):
        family = gauge(name, text)
        family.add_metric((), value)
        yield family
    for name, text, value in _totals(metrics):
        total = counter(name, text)
        total.add_metric((), value)
        yield total


def _gauges(sample: ServerSample) -> Sequence[tuple[str, str, float]]:
    metrics = sample.metrics
    return (
        ("gearflow_connections", "Open connections.", metrics.connections),
        (
            "gearflow_dead_letters",
            "Dead letters in the store. In a group of servers, those of all.",
            metrics.dead,
        ),
        (
            "gearflow_server_closed",
            "1 if the server refuses background jobs, because it cannot keep them.",
            sample.closed,
        ),
        ("gearflow_server_start_time_seconds", "When the server started, as Unix time.", metrics.started),
        *_store(metrics),
    )


def _store(metrics: Metrics) -> Iterator[tuple[str, str, float]]:
    """The room of the store. Nothing for a store that is no file."""
    store = metrics.store
    if store is None:
        return
    for name, text, value in (
        ("size", "Bytes of the server's file and its log.", store.size),
        ("free", "Bytes that the file system of the file has left for the server.", store.free),
        ("room", "Bytes of the file system of the file.", store.room),
    ):
        if value is not None:
            yield f"gearflow_store_{name}_bytes", text, value


def _totals(metrics: Metrics) -> Sequence[tuple[str, str, float]]:
    return (
        ("gearflow_connections_accepted_total", "Connections that were accepted.", metrics.accepted),
        ("gearflow_received_bytes_total", "Bytes that came from connections.", metrics.received),
        ("gearflow_sent_bytes_total", "Bytes that were written to connections.", metrics.sent),
        ("gearflow_store_changes_total", "Changes that were made durable.", metrics.kept),
        (
            "gearflow_store_damaged_total",
            "Jobs and results that were found damaged.",
            metrics.store.damaged if metrics.store is not None else 0,
        ),
        ("gearflow_results_fetched_total", "How often the end of a job was fetched.", metrics.fetched),
    )


def worker_families(sample: WorkerSample, cap: LabelCap) -> Iterator[Metric]:
    """The metrics of a worker, or of all its processes together."""
    groups = cap.grouped(
        sample.functions.items(), lambda each: each[0], lambda each: sum(each[1].outcomes.values())
    )
    runs = counter("gearflow_worker_runs_total", "Runs that ended, by how they ended.", "function", "ended")
    seconds = histograms("gearflow_worker_run_seconds", "How long runs took.", "function")
    running = gauge("gearflow_worker_running", "Jobs that run now.", "function")
    for name, group in groups.items():
        total = FunctionRuns()
        for _, each in group:
            total.add(each)
        for outcome, count in {"succeeded": 0, "failed": 0, **total.outcomes}.items():
            runs.add_metric((name, outcome), count)
        add_histogram(seconds, (name,), Histogram(counts=tuple(total.buckets), sum=total.seconds))
        running.add_metric((name,), total.running)
    yield from (runs, seconds, running)
    state = sample.state
    for what, text, value in (
        ("concurrency", "Jobs that can run at once.", state.concurrency),
        ("held_jobs", "Jobs that wait in the worker for their next run.", state.held),
        ("overdue_threads", "Threads that run on although their job has timed out.", state.overdue),
        ("servers", "Servers from which jobs are taken, for each process.", state.servers),
        ("connected_servers", "Those of them that know the functions.", state.connected),
        ("processes", "Processes that serve.", sample.processes),
        ("processes_wanted", "Processes that should serve.", sample.processes_wanted),
    ):
        family = gauge(f"gearflow_worker_{what}", text)
        family.add_metric((), value)
        yield family
    lost = counter("gearflow_worker_processes_lost_total", "Processes that died.")
    lost.add_metric((), sample.processes_lost)
    yield lost


def state_families(*, is_ready: bool, loaded: float) -> Iterator[Metric]:
    """Whether a server is ready, and how much of its file it has read."""
    for name, text, value in (
        ("gearflow_server_ready", "1 if the server serves and accepts background jobs.", is_ready),
        ("gearflow_server_loaded_ratio", "How much of its file the server has read, from 0 to 1.", loaded),
    ):
        family = gauge(name, text)
        family.add_metric((), value)
        yield family


def process_families() -> Iterable[Metric]:
    """The memory, the processor time and the open files of this process, where the system tells them."""
    return ProcessCollector(registry=None).collect()
