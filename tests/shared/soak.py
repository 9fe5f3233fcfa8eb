"""A soak of a group: jobs for a while, as its servers, workers, network and PostgreSQL fail in turn.

    python -m tests.shared.soak [--minutes 5] [--servers 3] [--rate 100] [--pause 3] [--seed 1] [--keep DIR]

A transaction stays open all the while (again after each restart of PostgreSQL), as that of a long backup: no
dead row can be removed. What must hold: every job that was acknowledged has run, and has its record; nothing
that was refused has run; no process told of an exception.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from signal import SIGKILL, SIGTERM
from typing import Final

from tests.postgres.cluster import Cluster, Database, folder
from tests.postgres.proxy import BOTH, Fault, Way, What
from tests.shared.callers import Habits, callers
from tests.shared.group import LEASE, Group
from tests.shared.ledger import Ledger, Standing
from tests.soak.audit import Outage

PATIENCE: Final = 120.0
"""Seconds after the last fault in which everything must have ended."""


@dataclass(frozen=True)
class Plan:
    """So long, with so many servers, and so much trouble."""

    seconds: float
    servers: int = 3
    workers: int = 2
    pause: float = 2.0
    """Seconds from one fault to the next, on average."""
    callers: int = 6
    rate: float = 100.0
    """Jobs a second, at most."""
    seed: int = 1


@dataclass
class Report:
    """What it came to."""

    seconds: float
    settled: float
    """Seconds until nothing was left to run."""
    times: list[tuple[str, Outage]]
    """What was done, and when."""
    ledger: Ledger
    standing: Standing
    sizes: dict[str, str]
    """Of tables: bytes, dead rows."""
    wrong: list[str] = field(default_factory=list[str])

    def __str__(self) -> str:
        """A table in Markdown, and what is wrong."""
        ledger = self.ledger
        ran = {mark.handle for mark in ledger.marks() if mark.ended}
        rows = [
            (
                "jobs acknowledged",
                f"{len(ledger.promises):,} in {self.seconds / 60:.1f} minutes, by {_servers(ledger)}",
            ),
            ("of these, run", f"{sum(promise.handle in ran for promise in ledger.promises):,}"),
            ("lost", f"{len(ledger.lost(self.standing)):,}"),
            ("runs that were not the first", f"{ledger.repeated():,}"),
            ("refused", f"{len(ledger.refused):,}"),
            ("not known by their callers", f"{len(ledger.unknown):,}"),
            ("errors that callers saw", _listed(ledger.errors)),
            ("faults", _listed(Counter(name for name, _ in self.times))),
            ("longest times in which nothing was acknowledged", self._gaps()),
            ("all had run, after the last fault", f"{self.settled:.1f} s"),
            *((f"table {name}", size) for name, size in self.sizes.items()),
        ]
        lines = ["| measured | figure |", "|---|---|", *(f"| {name} | {figure} |" for name, figure in rows)]
        return "\n".join([*lines, *(f"FAULT: {fault}" for fault in self.wrong)])

    def _gaps(self) -> str:
        """The longest three, each with the faults that there were."""
        longest = sorted(self.ledger.gaps, key=lambda gap: gap.begin - gap.end)[:3]
        return "; ".join(
            f"{gap.end - gap.begin:.1f} s ({', '.join(name for name, at in self.times if at.meets(*gap))})"
            for gap in longest
        )


def soak(plan: Plan, directory: Path, database: Database) -> Report:
    """Carry out a plan. PostgreSQL is the soak's alone; the processes' logs are in the directory."""
    database.cluster.set(autovacuum="off")
    habits = Habits(callers=plan.callers, pause=plan.callers / plan.rate)
    group = Group(directory, database, servers=plan.servers, workers=plan.workers)
    trouble = Trouble(group, Random(plan.seed))
    wrong: list[str] = []
    with group.running():
        begin = time.monotonic()
        with callers(group.addresses, group.runs, habits) as ledger, long_transaction(database) as renew:
            while time.monotonic() < begin + plan.seconds:
                ledger.wait_for(1)
                trouble.strike()
                renew()
                time.sleep(trouble.chance.expovariate(1 / plan.pause))  # how long all is well
            seconds = time.monotonic() - begin
        begin = time.monotonic()
        try:
            standing = ledger.settle(database, PATIENCE)
        except AssertionError as error:
            wrong.append(str(error))
            standing = Standing.of(database)
        settled = time.monotonic() - begin
        sizes = _sizes(database)
        wrong += group.complaints()
    return Report(seconds, settled, trouble.times, ledger, standing, sizes, wrong)


class Trouble:
    """Faults at random, each of which is over when its method returns. Owns the account of them."""

    def __init__(self, group: Group, chance: Random) -> None:
        self.times: list[tuple[str, Outage]] = []
        """What was done, and when."""
        self.chance = chance
        self._group = group
        self._count = 0
        self._kinds: list[Callable[[], str]] = [
            self._kill,
            self._stop,
            self._pause,
            self._crash,
            self._cut_one,
            self._kill_worker,
            self._restart,
            self._terminate,
            self._cut_all,
        ]

    def strike(self) -> None:
        """The first ones are one of each kind; then all are drawn."""
        kinds = self._kinds
        kind = kinds[self._count] if self._count < len(kinds) else self.chance.choice(kinds)
        self._count += 1
        begin = time.monotonic()
        name = kind()
        self.times.append((name, Outage(begin, time.monotonic())))

    def _kill(self) -> str:
        count = self.chance.randrange(1, max(2, len(self._group.servers)))
        self._replace(count, self._group.kill)
        return "SIGKILL server" if count == 1 else f"SIGKILL {count} servers at once"

    def _stop(self) -> str:
        self._replace(1, self._group.stop)
        return "SIGTERM server"

    def _replace(self, count: int, end: Callable[[int], None]) -> None:
        victims = self.chance.sample(range(len(self._group.servers)), count)
        for number in victims:
            end(number)
        self._for_leases(self.chance.choice((0, 0.3, 2)))
        for number in victims:
            self._group.start(number)

    def _pause(self) -> str:
        leases = self.chance.choice((0.3, 1.2, 2))
        with self._group.paused(self._server()):
            self._for_leases(leases)
        return f"SIGSTOP server for {leases:g} leases"

    def _crash(self) -> str:
        cluster = self._group.database.cluster
        if self.chance.random() < 0.5:
            cluster.kill()
        else:
            cluster.stop("immediate")
        self._for_leases(self.chance.choice((0, 0.5, 1.5)))
        cluster.start()
        return "crash of PostgreSQL"

    def _restart(self) -> str:
        cluster = self._group.database.cluster
        cluster.stop("fast")
        self._for_leases(self.chance.choice((0, 0.5)))
        cluster.start()
        return "restart of PostgreSQL"

    def _terminate(self) -> str:
        self._group.database.cluster.terminate()
        return "all sessions terminated"

    def _kill_worker(self) -> str:
        number = self.chance.choice((SIGKILL, SIGTERM))
        worker = self.chance.choice(self._group.workers)
        worker.end(number)
        worker.start()
        worker.wait_until_ready()
        return f"{number.name} worker"

    def _cut_one(self) -> str:
        what = self.chance.choice(list(What))
        ways = self.chance.choice((BOTH, frozenset({Way.UP}), frozenset({Way.DOWN})))
        with self._group.proxies[self._server()].failing(Fault(what, ways)):
            self._for_leases(self.chance.choice((0.3, 1, 2)))
        return f"network of one server: {what.name}"

    def _cut_all(self) -> str:
        what = self.chance.choice(list(What))
        with ExitStack() as cuts:
            for proxy in self._group.proxies:
                cuts.enter_context(proxy.failing(what))
            self._for_leases(self.chance.choice((0.3, 1.5)))
        return f"network of all servers: {what.name}"

    def _server(self) -> int:
        return self.chance.randrange(len(self._group.servers))

    def _for_leases(self, leases: float) -> None:
        time.sleep(leases * LEASE)  # how long the fault lasts: no wait for anything


@contextmanager
def long_transaction(database: Database) -> Generator[Callable[[], None]]:
    """A snapshot is held for the time of the block. What it yields begins another one, if it was ended."""
    sessions: list[subprocess.Popen[bytes]] = []

    def renew() -> None:
        if sessions and sessions[-1].poll() is None:
            return
        cluster = database.cluster
        psql = [str(cluster.bindir / "psql"), "-XAtq", "-d", cluster.conninfo(database.name, role="postgres")]
        session = subprocess.Popen(
            psql, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        sessions.append(session)
        assert session.stdin is not None
        session.stdin.write(b"BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class;\n")
        session.stdin.flush()

    try:
        renew()
        yield renew
    finally:
        for session in sessions:
            session.kill()
            session.communicate()


def _sizes(database: Database) -> dict[str, str]:
    rows = database.psql(
        "SELECT relname, pg_size_pretty(pg_total_relation_size(relid)), n_dead_tup FROM pg_stat_user_tables"
        " ORDER BY pg_total_relation_size(relid) DESC LIMIT 4",
        role="postgres",
    )
    return {
        name: f"{size}, {int(dead):,} dead rows"
        for name, size, dead in (row.split("\t") for row in rows.splitlines())
    }


def _servers(ledger: Ledger) -> str:
    lots = {promise.number >> 40 for promise in ledger.promises}
    return f"{len(lots)} lots"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common()) or "none"


def main() -> int:
    """Run it by hand. The exit code is 1 if something was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--servers", type=int, default=3)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--rate", type=float, default=100, help="jobs a second, at most")
    parser.add_argument("--pause", type=float, default=3, help="seconds from one fault to the next")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="an empty folder for the logs, which are thrown away else")
    asked = parser.parse_args()
    plan = Plan(
        asked.minutes * 60, asked.servers, asked.workers, asked.pause, rate=asked.rate, seed=asked.seed
    )
    with (
        folder() as place,
        tempfile.TemporaryDirectory() as directory,
        Cluster(place).running() as cluster,
        cluster.database() as database,
    ):
        if asked.keep is not None:
            asked.keep.mkdir(parents=True, exist_ok=True)
        report = soak(plan, asked.keep or Path(directory), database)
    sys.stdout.write(f"{report}\n")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
