"""All about one job, dead letter, worker or server, as lines of text."""

import time
from collections.abc import Sequence
from typing import Any, Final

from gearflow.client import Client, JobHandle, ServerAddress
from gearflow.client.operate import jobs
from gearflow.observe import ServerView
from gearflow.protocol.jobs import JobFilter
from gearflow_cli import output
from gearflow_cli.commands.workers import state
from gearflow_cli.text import printable_lines
from gearflow_cli.top.columns import KnownJob, ListedWorker, span

_MOST: Final = 4096
"""Bytes of a payload that are shown."""


def title_of(subject: Any) -> str:
    """A heading."""
    match subject:
        case KnownJob(handle=handle, is_dead=is_dead):
            return f"{'Dead letter' if is_dead else 'Job'} {handle}"
        case ListedWorker(worker=worker):
            return f"Worker {worker.client_id} {worker.id}"
        case _:
            return f"Server {subject.address}"


async def describe(client: Client, subject: Any) -> Sequence[str]:
    """What is known now. Raises as the calls of ``client``."""
    match subject:
        case KnownJob():
            return await _job(client, subject)
        case ListedWorker():
            return _worker(subject)
        case _:
            return _server(subject)


async def _job(client: Client, each: KnownJob) -> list[str]:
    if each.job is None:
        return ["This server tells only the handles of jobs."]
    address = each.server.address
    page = await jobs(client, JobFilter(handle=each.handle), payload=_MOST, server=address)
    if page.jobs:
        job, payload = page.jobs[0].job, page.jobs[0].payload
    else:  # it has ended
        job, payload = await client.info(JobHandle(each.handle, ServerAddress.parse(address))), None
    lines = output.labelled(output.job_rows(job)).splitlines()
    if payload is not None:
        lines += ["", "payload", *printable_lines(payload).splitlines()]
    if job.failure is not None and job.failure.traceback:
        lines += ["", *printable_lines(job.failure.traceback.rstrip()).splitlines()]
    return lines


def _worker(each: ListedWorker) -> list[str]:
    worker, now = each.worker, time.time()
    rows = [
        ("server", each.server.address),
        ("id", worker.id),
        ("name", worker.client_id),
        ("address", worker.address),
        ("state", state(worker) if each.server.info is not None else ""),
        ("since", output.when(worker.since or None)),
        ("slots", f"{worker.running} of {worker.slots} busy" if each.server.info is not None else ""),
        ("functions", "\n".join(worker.functions)),
        ("overdue", "\n".join(f"{count} of {name}" for name, count in worker.overdue.items())),
    ]
    lines = output.labelled([(name, text) for name, text in rows if text]).splitlines()
    if worker.jobs:
        lines += ["", "runs"]
        lines += [f"{span(now - job.since):>6}  {job.handle}  {job.function}" for job in worker.jobs]
    return lines


def _server(view: ServerView) -> list[str]:
    info, metrics = view.info, view.metrics
    rows = [("address", view.address), ("kind", view.kind), ("version", view.version), ("error", view.error)]
    rows += [("round trip", span(view.round_trip))]
    if view.clock is not None:
        rows.append(("clock", f"{view.clock:+.3f} s from the one here"))
    if info is not None:
        rows += [
            ("jobs", f"{info.jobs:,}"),
            ("store", f"{info.store}, {'durable' if info.durable else 'not durable'}"),
            ("group", info.group),
            ("group's servers", "\n".join(info.servers)),
            ("results", f"kept for {output.duration(info.keep)}"),
            ("max deaths", "no limit" if info.max_deaths is None else str(info.max_deaths)),
            ("paused", "\n".join(info.paused)),
        ]
        if info.closed is not None:
            rows.append(("closed", f"since {output.when(info.closed.since)}: {info.closed.reason}"))
    if metrics is not None:
        rows += [
            ("started", output.when(metrics.started)),
            ("connections", f"{metrics.connections:,} now, {metrics.accepted:,} accepted"),
            ("bytes", f"{metrics.received:,} received, {metrics.sent:,} sent"),
            ("dead letters", f"{metrics.dead:,}"),
        ]
    rows += [(f"no {part}", reason) for part, reason in view.faults.items()]
    return output.labelled([(name, text) for name, text in rows if text]).splitlines()
