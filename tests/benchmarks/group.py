"""Several servers on one PostgreSQL: beside SQLite, raw commits and procrastinate, and what a takeover costs.

    python -m tests.benchmarks.group [--rounds 3] [--jobs 100000] [--adopted 1000000] [--small] [ROW ...]

It makes a cluster of PostgreSQL in the folder for temporary files, with ``fsync`` on. Set TMPDIR to a folder
on the disk that is meant. All that are compared run in turns, each on a new database, a new server or a new
file. The tables have medians, and the median of the ratios round by round with its range. A ratio says how
much better gearflow's server on PostgreSQL is. ``--small`` takes tiny numbers, and only shows that everything
runs. procrastinate gets an environment of its own below ~/.cache/gearflow-benchmarks, and fewer jobs.

    enqueue    background jobs, pipelined, 8 clients: with uniques that mean nothing, and with others
    drain      the same jobs, run by 8 workers that grab one at a time: results kept, and not kept
    submit     one client, one job at a time
    clients    32 clients, one job at a time each
    kill       a server of two is killed: how long until the other has its jobs
    adopt      a server of two ends in good order, and the other adopts ``--adopted`` jobs
    held       whole jobs while a snapshot is held open, beside the same without
    scale      one, two and three servers on one PostgreSQL
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final, TypeAlias

from tests.benchmarks import scale
from tests.benchmarks.database import Cost, Meter, fresh, member, postgres, raw
from tests.benchmarks.disk import measured as disk_figures
from tests.benchmarks.disk import timed
from tests.benchmarks.durable import acknowledged, echoed
from tests.benchmarks.load import Figures, Generator, Load, generator, run
from tests.benchmarks.peers.environments import Missing
from tests.benchmarks.peers.field import Peer
from tests.benchmarks.peers.measuring import TooLong, Trial
from tests.benchmarks.report import Table, busy, conditions, ratios, shown, spread
from tests.benchmarks.servers import Server, cpu, durable
from tests.benchmarks.takeover import takeover
from tests.postgres.cluster import Cluster, NoPostgres

Say: TypeAlias = Callable[[str], None]

PAYLOAD: Final = 60
"""Bytes."""

OURS: Final = "gearflow, PostgreSQL"
SQLITE: Final = "SQLite, `--sync always`"
RAW: Final = "raw commits, one connection"
ECHO: Final = "an echo of the server, and that commit"
BATCH: Final = "procrastinate, `batch_defer` of 1,000"
DEFER: Final = "procrastinate, `defer`"
WORKER: Final = "procrastinate's worker"
WITHOUT: Final = "the same without a snapshot"

PROCRASTINATE: Final = ("procrastinate==3.10.0", "psycopg[binary]", "uvloop")
_NOTHING_KEPT: Final = ("--keep", "0")
_HELD: Final = 4
"""Loads one after the other while a snapshot is held. The last one counts."""

_LIMIT: Final = 600.0


@dataclass
class Comparison:
    """One load: the figures of each side, round by round, and what gearflow is to reach beside them."""

    title: str
    unit: str
    targets: Mapping[str, float] = field(default_factory=dict[str, float])
    more_is_better: bool = True
    figures: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    costs: dict[str, list[tuple[float, ...]]] = field(default_factory=dict[str, list[tuple[float, ...]]])

    def add(self, side: str, figure: float) -> None:
        self.figures.setdefault(side, []).append(figure)

    def spent(self, side: str, cost: Cost, jobs: int, server: float) -> None:
        """What these jobs cost PostgreSQL, and the server in seconds of CPU time."""
        each = (cost.cpu / jobs * 1e6, cost.wal / jobs, server / jobs * 1e6)
        self.costs.setdefault(side, []).append(each)

    def show(self, table: Table, costs: Table) -> None:
        """Add a row for each side that gearflow is compared with, and one for the costs of each."""
        ours = self.figures[OURS]
        for side, theirs in self.figures.items():
            if side != OURS and len(theirs) == len(ours):
                ratio = ratios(ours, theirs, more_is_better=self.more_is_better)
                target = f"{self.targets[side]:.3g}" if side in self.targets else ""
                own = f"{spread(ours)} {self.unit}"
                table.add(self.title, own, side, spread(theirs), ratio, target)
        for side, spent in self.costs.items():
            columns = [median(column) for column in zip(*spent, strict=True)]
            costs.add(f"{self.title}: {side}", *(shown(column) if column else "" for column in columns))


class Bench:
    """A cluster, and what is to be run on it."""

    def __init__(
        self,
        cluster: Cluster,
        made: Generator,
        *,
        rounds: int,
        jobs: int,
        adopted: int,
        lease: float,
        say: Say,
    ) -> None:
        self.cluster = cluster
        self.made = made
        self.rounds = rounds
        self.jobs = jobs
        self.adopted = adopted
        self.lease = lease
        self.say = say
        self.missing: set[str] = set()

    # ------------------------------------------------------------------------ loads of the load generator

    def ours(self, into: Comparison, load: Load, options: Sequence[str] = ()) -> None:
        """A load on a new database."""
        with fresh(self.cluster) as database, member(database, options, lease=self.lease) as server:
            meter, before = Meter(self.cluster), cpu(server.pid)
            figures = run(self.made, server, load)
            into.spent(OURS, meter.read(), load.jobs, cpu(server.pid) - before)
        into.add(OURS, figures.rate)

    def sqlite(self, into: Comparison, load: Load, options: Sequence[str] = ()) -> None:
        """The same load on a new file."""
        with durable(None, "always", further=options) as server:
            into.add(SQLITE, run(self.made, server, load).rate)

    def raw(self, into: Comparison, times: int) -> None:
        """Rows a second, each committed."""
        into.add(RAW, 1e6 / self._commit(times))

    def _commit(self, times: int) -> float:
        """Microseconds of a row that is committed: the median."""
        numbers = iter(range(times))
        with fresh(self.cluster) as database, raw(database) as connection:
            connection.prepare_inserts()
            return timed(times, lambda: connection.insert(next(numbers), bytes(PAYLOAD)))

    # ------------------------------------------------------------------------------------- procrastinate

    def defer(self, into: Comparison, side: str, jobs: int) -> None:
        """procrastinate's submissions, in groups or one by one."""
        with fresh(self.cluster) as database, tempfile.TemporaryDirectory() as folder:
            try:
                trial = self._trial(database.name, folder)
                trial.client("submit", 1)  # it makes the schema
                meter = Meter(self.cluster)
                command = ("enqueue", "noop", jobs) if side == BATCH else ("submit", jobs)
                _, seconds = trial.client(*command)
                into.spent(side, meter.read(), jobs, 0)
            except (Missing, TooLong) as error:
                self._leave_out(side, error)
            else:
                into.add(side, jobs / sum(seconds))

    def work(self, into: Comparison, kind: str, jobs: int) -> None:
        """procrastinate's worker with 20 slots, from its first job to its last."""
        with fresh(self.cluster) as database, tempfile.TemporaryDirectory() as folder:
            try:
                trial = self._trial(database.name, folder)
                trial.client("enqueue", "noop", jobs)
                with trial.worker(kind, 20):
                    trial.marked(1)
                    meter, before = Meter(self.cluster), trial.there()
                    trial.marked(jobs)
                    cost, done = meter.read(), jobs - before
            except (Missing, TooLong) as error:
                self._leave_out(WORKER, error)
                return
        if done > 0:
            into.spent(WORKER, cost, done, 0)
            into.add(WORKER, done / cost.seconds)

    def _trial(self, database: str, folder: str) -> Trial:
        server = Server("PostgreSQL", self.cluster.port, 0)
        side = ("with_procrastinate", PROCRASTINATE, database)
        peer = Peer("procrastinate", lambda: nullcontext(server), *side)
        return Trial(peer, server, Path(folder), 1, _LIMIT)

    def _leave_out(self, side: str, error: Exception) -> None:
        if side not in self.missing:
            self.missing.add(side)
            self.say(f"{side} is left out: {error}")

    # ------------------------------------------------------------------------------------------- the rows

    def enqueue(self) -> Iterator[Comparison]:
        """Submissions, pipelined."""
        plain = Load("enqueue", self.jobs, 8, 256, payload=PAYLOAD, fresh=True)
        titles = {
            "background submissions": (plain, {SQLITE: 0.6, BATCH: 12, DEFER: 100, RAW: 12}),
            "the same, uniques that mean something": (
                Load("enqueue", self.jobs, 8, 256, payload=PAYLOAD),
                {SQLITE: 0.35, BATCH: 6},
            ),
        }
        for title, (load, targets) in titles.items():
            into = Comparison(title, "jobs/s", targets)
            for _ in range(self.rounds):
                self.ours(into, load)
                self.sqlite(into, load)
                self.defer(into, BATCH, max(self.jobs // 5, 1000))
                if load is plain:
                    self.raw(into, self._few())
                    self.defer(into, DEFER, self._few())
            yield into

    def drain(self) -> Iterator[Comparison]:
        """Runs, one GRAB at a time."""
        load = Load("drain", self.jobs, 8, 256, 8, payload=PAYLOAD, fresh=True)
        kinds: dict[str, tuple[str, Sequence[str], dict[str, float]]] = {
            "draining, no results kept": ("light", _NOTHING_KEPT, {SQLITE: 0.8, WORKER: 100}),
            "draining, results kept": ("kept", (), {SQLITE: 0.6}),
        }
        for title, (kind, options, targets) in kinds.items():
            into = Comparison(title, "jobs/s", targets)
            for _ in range(self.rounds):
                self.ours(into, load, options)
                self.sqlite(into, load, options)
                self.work(into, kind, self._few())
            yield into

    def submit(self) -> Iterator[Comparison]:
        """One submission, alone."""
        into = Comparison("one submission, alone", "us", {RAW: 1 / 1.5}, more_is_better=False)
        for _ in range(self.rounds):
            with fresh(self.cluster) as database, member(database, lease=self.lease) as server:
                into.add(OURS, acknowledged(server, self._few()))
                echo = echoed(server, self._few())
            with durable(None, "always") as server:
                into.add(SQLITE, acknowledged(server, self._few()))
            commit = self._commit(self._few())
            into.add(RAW, commit)
            into.add(ECHO, echo + commit)
        yield into

    def clients(self) -> Iterator[Comparison]:
        """Many clients, a submission at a time each."""
        load = Load("enqueue", max(self.jobs // 5, 500), 32, 1, payload=PAYLOAD, fresh=True)
        into = Comparison("32 clients, one submission at a time each", "jobs/s", {RAW: 6})
        for _ in range(self.rounds):
            self.ours(into, load)
            self.sqlite(into, load)
            self.raw(into, self._few())
        yield into

    def held(self) -> Iterator[Comparison]:
        """Whole jobs, each inserted and deleted, while a snapshot is held."""
        load = Load("drain", self.jobs, 8, 256, 8, payload=PAYLOAD, fresh=True)
        into = Comparison(
            f"a snapshot held since {(_HELD - 1) * self.jobs:,} jobs ago", "jobs/s", {WITHOUT: 0.9}
        )
        for _ in range(self.rounds):
            for side in (OURS, WITHOUT):
                with ExitStack() as stack:
                    database = stack.enter_context(fresh(self.cluster))
                    server = stack.enter_context(member(database, _NOTHING_KEPT, lease=self.lease))
                    if side == OURS:
                        holder = stack.enter_context(raw(database))
                        holder.do("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class")
                    for _ in range(_HELD - 1):
                        run(self.made, server, load)
                    into.add(side, _whole(run(self.made, server, load)))
        yield into

    def _few(self) -> int:
        """So many for a side that does them one by one."""
        return max(self.jobs // 50, 50)

    def takeovers(self, jobs: int, ending: signal.Signals) -> dict[str, list[float]]:
        """Seconds of each round."""
        figures: dict[str, list[float]] = {}
        for _ in range(self.rounds):
            for name, figure in takeover(self.cluster, self.made, jobs, self.lease, ending).items():
                figures.setdefault(name, []).append(figure)
        return figures


COMPARED: Final[dict[str, Callable[[Bench], Iterator[Comparison]]]] = {
    "enqueue": Bench.enqueue,
    "drain": Bench.drain,
    "submit": Bench.submit,
    "clients": Bench.clients,
    "held": Bench.held,
}
TAKEOVERS: Final = {"kill": signal.SIGKILL, "adopt": signal.SIGTERM}
ROWS: Final = (*COMPARED, *TAKEOVERS, "scale")
SIZES: Final[Mapping[str, float]] = {"rounds": 3, "jobs": 100_000, "adopted": 1_000_000, "lease": 10.0}
SMALL: Final[Mapping[str, float]] = {"rounds": 1, "jobs": 1_000, "adopted": 5_000, "lease": 3.0}


def tables(bench: Bench, rows: Sequence[str]) -> Iterator[Table]:
    """Three tables, and one of costs, those that have rows. Each comes when it is complete."""
    columns = ("load", OURS, "beside", "its figure", "ratio (range)", "target")
    compared = Table("One server on PostgreSQL", columns)
    costs = Table("CPU time for a job", ("load", "PostgreSQL, us", "its log, bytes", "server, us"))
    for row in rows:
        if row in COMPARED:
            bench.say(f"{row} ...")
            for each in COMPARED[row](bench):
                each.show(compared, costs)
                sides = (f"{side} {spread(values)}" for side, values in each.figures.items())
                bench.say(f"{each.title}, {each.unit}: {'; '.join(sides)}")
    yield compared
    yield costs
    moved = Table("Jobs that go to another server", ("figure", "median (range)"))
    for row, ending in TAKEOVERS.items():
        if row in rows:
            bench.say(f"{row} ...")
            jobs = bench.jobs if row == "kill" else bench.adopted
            event = f"a server killed, lease {bench.lease:g} s" if row == "kill" else "a server stopped"
            for name, values in bench.takeovers(jobs, ending).items():
                moved.add(f"{event}, {jobs:,} jobs: {name}", spread(values, " s"))
    yield moved
    if "scale" in rows:
        bench.say("scale ...")
        yield scale.table(bench.cluster, bench.made, bench.rounds, bench.jobs, PAYLOAD)


def measured_tables(rows: Sequence[str], sizes: Mapping[str, Any], say: Say) -> Iterator[Table | str]:
    """What the figures depend on, and then the tables, measured on a cluster that is made for them.

    Raises:
        NoPostgres: There can be none.
    """
    with postgres() as cluster:
        yield _facts(cluster)
        for each in tables(Bench(cluster, generator(), **sizes, say=say), rows):
            if each.rows:
                yield each


def _facts(cluster: Cluster) -> str:
    """Beside the machine."""
    disk = disk_figures(200, ())
    syncs = ", ".join(f"{name} {shown(figure)} us" for name, figure in disk.items())
    version = cluster.psql("SHOW server_version")
    return f"PostgreSQL: {version}, fsync {cluster.psql('SHOW fsync')}, in {cluster.directory}; {syncs}"


def _whole(figures: Figures) -> float:
    """Jobs a second that are submitted and then run."""
    return figures.load.jobs / sum(phase.seconds for phase in figures.phases.values())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(ROWS)
    parser.add_argument("rows", nargs="*", metavar="ROW", choices=[*ROWS, []], help=f"which of {names} (all)")
    for name, usual in SIZES.items():
        kind = int if isinstance(usual, int) else float
        parser.add_argument(f"--{name}", type=kind, metavar="N", help=f"{usual:,}; with --small fewer")
    parser.add_argument("--small", action="store_true", help="tiny numbers: only to see that all of it runs")
    options = parser.parse_args(arguments)
    given = {name: getattr(options, name) for name in SIZES if getattr(options, name) is not None}
    sizes = {**(SMALL if options.small else SIZES), **given}
    print(f"{conditions()}\n{sizes['rounds']} rounds in turns, {busy()} at the beginning", flush=True)
    try:
        for each in measured_tables(options.rows or ROWS, sizes, partial(print, file=sys.stderr)):
            print(each, flush=True)
    except NoPostgres as error:
        sys.exit(str(error))
    print(f"{busy()} at the end, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
