"""Turns the counts of a worker into metrics for Prometheus. Needs the extra ``metrics``."""

from collections.abc import Iterator

from gearflow.metrics.families import (
    LabelCap,
    Metric,
    add_histogram,
    counter,
    gauge,
    histograms,
)
from gearflow.metrics.worker_counts import FunctionRuns, WorkerSample
from gearflow.protocol.metrics import Histogram


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
