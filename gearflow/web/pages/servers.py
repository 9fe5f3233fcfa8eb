"""The page Servers: kind, version, store, promises and replication of each."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from gearflow.observe import ServerView, percentile
from gearflow.observe.findings import Severity, shortage
from gearflow.quantities import counted
from gearflow.web.formatting import NOTHING, ago, duration, number, size
from gearflow.web.sections import Rendered, Section
from gearflow.web.visit import Visit

section = Section("Servers", "/servers", order=80)

KINDS: Mapping[str, str] = {
    "gearflow": "gearflow's own server",
    "gearmand": "gearmand, the server in C",
    "other": "a Gearman server",
    "away": "unknown",
}
"""What each kind of server is."""

_KINDS: Mapping[Severity | None, str] = {None: "", "warning": "warn", "error": "bad"}

_CRASHES: Mapping[str, str] = {
    "always": "A crash of its machine loses no background job, either.",
    "batch": "A crash of its machine loses at most the background jobs of the last second.",
    "off": "A crash of its machine may damage the file.",
}
"""What a crash of the machine does, by how the server syncs its file."""

_FAR: float = 2.0
"""Seconds between two clocks that are worth a warning."""


class Fact(NamedTuple):
    """A line about a server."""

    name: str
    text: object
    kind: str = ""
    """``bad`` or ``warn`` if it needs attention."""


class Described(NamedTuple):
    """A server in words."""

    view: ServerView
    facts: list[Fact]
    promises: list[str]
    """What holds for the jobs that it has accepted."""


@section.page("/servers")
async def servers(visit: Visit) -> Rendered:
    """All servers, also those that do not answer."""
    sample = await visit.sample("workers", "group")
    described = [
        Described(view, list(_facts(view, sample.at)), list(promises(view))) for view in sample.servers
    ]
    groups = {view.group.group: view.group for view in sample.fleet.distinct if view.group is not None}
    return Rendered("servers.html", "Servers", {"servers": described, "groups": groups.values()})


def promises(view: ServerView) -> Iterator[str]:
    """What a server promises for the jobs that it has accepted, in sentences."""
    info = view.info
    if info is None:
        if view.answers:
            yield "A background job survives a crash only if the server was started with a queue plugin."
            yield "A job whose worker dies goes to another worker, without a limit."
            yield "It keeps no results, no dead letters and no schedules."
        return
    if info.group:
        yield "A background job survives the loss of this server. Another server of the group takes it over."
    elif info.durable:
        yield "A background job survives a crash of the server as soon as it is accepted."
        sync = view.metrics.store.sync if view.metrics is not None and view.metrics.store is not None else ""
        if sync in _CRASHES:
            yield _CRASHES[sync]
    else:
        yield "Jobs are in memory, and are lost when the server stops."
    if info.max_deaths is not None:
        yield f"A job of which {counted(info.max_deaths, 'worker')} died becomes a dead letter."
    yield f"Results of background jobs are kept for {duration(info.keep)} by default."


def _facts(view: ServerView, now: float) -> Iterator[Fact]:
    if not view.answers:
        return
    yield Fact("Kind", KINDS[view.kind])
    yield Fact("Version", view.version.removeprefix("gearflow-") or NOTHING)
    yield Fact("Round trip", duration(view.round_trip))
    if view.clock is not None and abs(view.clock) > _FAR:
        direction = "ahead" if view.clock > 0 else "behind"
        yield Fact("Clock", f"{duration(abs(view.clock))} {direction} of this machine's", "warn")
    info, metrics = view.info, view.metrics
    file = metrics.store if metrics is not None else None
    if info is not None:
        store = {"file": "a file", "memory": "memory", "postgres": "PostgreSQL"}.get(info.store, info.store)
        yield Fact("Store", store)
        if file is not None and file.size is not None:
            left = f", its disk has {size(file.free)} left" if file.free is not None else ""
            yield Fact("File", f"{size(file.size)}{left}", _KINDS[shortage(file)])
        if info.closed is not None:
            yield Fact("Refuses", f"background jobs: {info.closed.reason}", "bad")
        yield Fact("Jobs", f"{number(info.jobs)} not ended")
    if metrics is not None:
        yield Fact("Started", ago(metrics.started, now))
        yield Fact(
            "Connections", f"{number(metrics.connections)} open, {number(metrics.accepted)} since the start"
        )
        yield Fact("Traffic", f"{size(metrics.received)} in, {size(metrics.sent)} out")
        if metrics.kept:
            typical, slow = percentile(metrics.commits, 0.5), percentile(metrics.commits, 0.99)
            yield Fact("Commits", f"half within {duration(typical)}, 99 % within {duration(slow)}")
    yield Fact("Workers", number(len(view.workers)))
    for part, fault in view.faults.items():
        yield Fact(part.capitalize(), fault, "bad" if fault in view.malformed else "warn")
