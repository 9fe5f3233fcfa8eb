"""A PostgreSQL for the benchmarks: its cluster, gearflow's servers on it, what it costs, and what it can do.

The cluster is a new one in the folder for temporary files, with PostgreSQL's own settings and ``fsync`` on.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.benchmarks.servers import Server, cpu, free_port, running
from tests.postgres.cluster import Cluster, Database, NoPostgres, folder

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

_DEFAULTS: Final = {"shared_buffers": "128MB", "max_wal_size": "1GB"}
"""Where the clusters of tests differ from what PostgreSQL does by itself."""

_TICK: Final = os.sysconf("SC_CLK_TCK")


class Cost(NamedTuple):
    """What was spent in a block. It is complete when the block has ended."""

    seconds: float
    cpu: float
    """Seconds of all processes of PostgreSQL, also of those that have ended meanwhile."""

    wal: int
    """Bytes of its log."""


@contextmanager
def postgres() -> Generator[Cluster]:
    """A cluster for the time of the block.

    Raises:
        NoPostgres: There can be none, or psycopg is not installed.
    """
    if find_spec("psycopg") is None:
        raise NoPostgres("psycopg is not installed; pip install 'gearflow[postgres]'")
    with folder() as directory:
        cluster = Cluster(directory)
        with cluster.running():
            cluster.stop()
            cluster.start(**_DEFAULTS)
            yield cluster


@contextmanager
def fresh(cluster: Cluster) -> Generator[Database]:
    """A new database. A checkpoint comes before, so that all that are compared write the same full pages."""
    with cluster.database() as database:
        cluster.psql("CHECKPOINT")
        yield database


@contextmanager
def member(database: Database, options: Sequence[str] = (), *, lease: float = 10.0) -> Generator[Server]:
    """gearflow's server on a database, for the time of the block."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    where = ("--postgres", database.conninfo, "--advertise", address, "--lease", f"{lease:g}s")
    command = [sys.executable, "-m", "gearflow_cli", "server", "-p", str(port), *where, *options]
    with running("gearflow, PostgreSQL", command, port) as server:
        yield server


class Meter:
    """What PostgreSQL spends from its creation on."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._wal = self._position()
        self._cpu = used(cluster)
        self._began = time.perf_counter()

    def read(self) -> Cost:
        """So far."""
        seconds, spent = time.perf_counter() - self._began, used(self._cluster) - self._cpu
        return Cost(seconds, spent, self._position() - self._wal)

    def _position(self) -> int:
        return int(self._cluster.psql("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))


def used(cluster: Cluster) -> float:
    """Seconds of CPU time that all processes of a cluster have used, with those that have ended."""
    first = int((cluster.data / "postmaster.pid").read_text().split()[0])
    fields = Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()
    ended = sum(int(ticks) for ticks in fields[13:15]) / _TICK
    return cpu(first) + ended + sum(by_process(cluster).values())


def by_process(cluster: Cluster) -> dict[int, float]:
    """The same of each process but the first, by pid."""
    return {pid: _cpu(pid) for pid in cluster.processes()}


def _cpu(pid: int) -> float:
    try:
        return cpu(pid)
    except OSError:  # it has just ended
        return 0.0


class Raw:
    """A connection by libpq alone, as gearflow's store has one, which waits for each answer."""

    def __init__(self, database: Database) -> None:
        from psycopg import pq

        self._connection: PGconn = pq.PGconn.connect(database.conninfo.encode())
        self._good = {pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK}

    def do(self, sql: str) -> None:
        """Run statements."""
        self._check(self._connection.exec_(sql.encode()))

    def prepare_inserts(self) -> None:
        """Make a table for ``insert``."""
        self.do("CREATE TABLE raw (number bigint PRIMARY KEY, workload bytea NOT NULL)")
        self._check(self._connection.prepare(b"insert", b"INSERT INTO raw VALUES ($1, $2)", [20, 17]))

    def insert(self, number: int, workload: bytes) -> None:
        """Insert a row, and commit it."""
        params = (number.to_bytes(8, "big"), workload)
        self._check(self._connection.exec_prepared(b"insert", params, [1, 1], 1))

    def close(self) -> None:
        self._connection.finish()

    def _check(self, result: PGresult) -> None:
        if result.status not in self._good:
            sys.exit(f"PostgreSQL: {result.error_message.decode()}")


@contextmanager
def raw(database: Database) -> Generator[Raw]:
    """A connection for the time of the block."""
    connection = Raw(database)
    try:
        yield connection
    finally:
        connection.close()
