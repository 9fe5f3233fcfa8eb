"""What a broker holds, as rows for the text protocol: read-only."""

from __future__ import annotations

from collections.abc import Iterator

from gearflow.broker.broker import Broker
from gearflow.broker.job import JobState
from gearflow.protocol.admin import FunctionPriorities, FunctionStatus, JobInfo, WorkerInfo


def functions(broker: Broker) -> Iterator[FunctionStatus]:
    """Each function ever named, with its jobs and workers."""
    for function in broker.functions.values():
        yield FunctionStatus(function.name, function.total, function.running, function.workers)


def priorities(broker: Broker) -> Iterator[FunctionPriorities]:
    """Each function ever named, with its waiting jobs by priority; delayed jobs count as normal ones."""
    for function in broker.functions.values():
        high, normal, low = (sum(job.state is JobState.WAITING for job in lane) for lane in function.lanes)
        yield FunctionPriorities(function.name, high, normal + function.delayed, low, function.workers)


def connections(broker: Broker) -> Iterator[WorkerInfo]:
    """Each connection, with the functions it offers."""
    for session in broker.sessions:
        names = tuple(function.name for function in reversed(session.abilities))  # newest first, as gearmand
        yield WorkerInfo(session.fd, session.address, session.client_id, names)


def jobs(broker: Broker) -> Iterator[JobInfo]:
    """Each job that is not over. A job that nobody wants any more is ignored: it ends with its run."""
    for job in broker.jobs.values():
        yield JobInfo(broker.handle(job), retries=0, ignored=not job.wanted, background=job.background)


def uniques(broker: Broker) -> Iterator[bytes]:
    """The unique of each job that is not over; b"" for those without."""
    for job in broker.jobs.values():
        yield job.unique
