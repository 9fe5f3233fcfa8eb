"""The rate of one, two and three servers on one PostgreSQL, and which processor time bounds it."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Final

from tests.benchmarks.database import by_process, fresh, member, used
from tests.benchmarks.load import Generator, Load, Running
from tests.benchmarks.report import Table, ratios, shown, spread
from tests.benchmarks.servers import cpu
from tests.postgres.cluster import Cluster

SERVERS: Final = (1, 2, 3)

_FULL: Final = 0.9
"""Of a core, from which on it bounds."""


@dataclass(frozen=True)
class Run:
    """One run. CPU times are in cores: seconds for each second."""

    rate: float
    servers: tuple[float, ...]
    postgres: float
    backend: float
    """The busiest process of PostgreSQL."""

    load: tuple[float, ...]

    @property
    def bound(self) -> str:
        """What has no processor time left."""
        if sum(self.servers) + self.postgres + sum(self.load) >= _FULL * (os.cpu_count() or 1):
            return "all cores"
        if min(self.servers) >= _FULL:
            return "the servers"
        if self.backend >= _FULL:
            return "a process of PostgreSQL"
        return "the load" if min(self.load) >= _FULL else "none: it waits for the disk"


def table(cluster: Cluster, made: Generator, rounds: int, jobs: int, payload: int) -> Table:
    """A row for each number of servers. Each of them has a load of its own."""
    load = Load("stream", jobs, 8, 256, 8, payload=payload, fresh=True)
    runs: dict[int, list[Run]] = {count: [] for count in SERVERS}
    for _ in range(rounds):
        for count in SERVERS:
            runs[count].append(_run(cluster, made, count, load))
    columns = (
        "servers",
        "all together, jobs/s",
        "of one (range)",
        "cores: servers",
        "PostgreSQL (its busiest)",
    )
    made_table = Table("Servers that share a PostgreSQL", (*columns, "load", "bound by"))
    for count, some in runs.items():
        middle = sorted(some, key=lambda each: each.rate)[len(some) // 2]
        made_table.add(
            str(count),
            spread([each.rate for each in some]),
            ratios([each.rate for each in some], [each.rate for each in runs[SERVERS[0]]]),
            " + ".join(map(shown, middle.servers)),
            f"{shown(middle.postgres)} ({shown(median(each.backend for each in some))})",
            " + ".join(map(shown, middle.load)),
            f"{middle.bound} ({os.cpu_count()})" if middle.bound == "all cores" else middle.bound,
        )
    return made_table


def _run(cluster: Cluster, made: Generator, count: int, load: Load) -> Run:
    with ExitStack() as stack:
        database = stack.enter_context(fresh(cluster))
        servers = [stack.enter_context(member(database, ("--keep", "0"))) for _ in range(count)]
        before = [cpu(server.pid) for server in servers]
        postgres, processes = used(cluster), by_process(cluster)
        began = time.perf_counter()
        loads = [Running(made, server, load) for server in servers]
        figures = [each.end() for each in loads]
        seconds = time.perf_counter() - began
        postgres = used(cluster) - postgres
        busiest = max(spent - processes.get(pid, 0.0) for pid, spent in by_process(cluster).items())
        spent = [cpu(server.pid) - earlier for server, earlier in zip(servers, before, strict=True)]
    return Run(
        count * load.jobs / seconds,
        tuple(each / seconds for each in spent),
        postgres / seconds,
        busiest / seconds,
        tuple(sum(phase.own_cpu for phase in each.phases.values()) / seconds for each in figures),
    )
