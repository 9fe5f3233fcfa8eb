"""All tables of docs/explanation/performance.md, with the machine and the interpreter.

    python -m tests.benchmarks [--only server,peers] [--small] [--rounds 3]

It takes some 20 minutes on two cores that have nothing else to do, and prints Markdown. ``--only`` chooses
tables, ``--small`` takes tiny numbers, and only shows that everything runs. Each table has a command of its
own with more options: see the modules here.

    server       the server beside gearmand
    compiled     the server with its core compiled (needs a C compiler)
    durable      the cost of durability
    full-queue   a million jobs waiting
    calls        calls through @task
    streams      values that tasks yield
    maps         map, alone and in chunks
    memory       the memory of a worker
    peers        other task queues, on the same tasks (needs redis-server, and installs the queues with pip)
    limits       what limits cost, how exact rates are, and 1,000 tenants of which one floods
    group        several servers on one PostgreSQL (needs PostgreSQL and psycopg, and takes half an hour more)
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

from tests.benchmarks import calls, durable, full_queue, group, limits, maps, memory, server, streams
from tests.benchmarks.load import generator
from tests.benchmarks.peers import __main__ as peers
from tests.benchmarks.peers.field import FIELD
from tests.benchmarks.peers.rows import ROWS
from tests.benchmarks.report import Table, busy, conditions
from tests.postgres.cluster import NoPostgres

Tables: TypeAlias = Iterator[Table | str]

SMALL: Final = 0.01
"""Of the usual number of jobs."""

QUICK_ROWS: Final = ("b", "c", "e")
"""Rows of the peers that take little time, so that they have several rounds."""

LEFT_OUT: Final = {"celery prefork", "rq", "arq"}
"""Peers that take so long that the docs have no column for them."""


def server_tables(rounds: int, small: bool) -> Tables:
    scale = server.SCALE * (SMALL if small else 1)
    yield server.table(generator(), server.ROWS, rounds, scale)


def compiled_tables(rounds: int, small: bool) -> Tables:
    yield server.compiled_table(generator(), rounds, server.SCALE * (SMALL if small else 1))


def durable_tables(rounds: int, small: bool) -> Tables:
    yield from durable.tables(generator(), durable.ROWS, rounds, 600 if small else 60_000)


def full_queue_tables(rounds: int, small: bool) -> Tables:
    yield full_queue.table(generator(), 10_000 if small else full_queue.QUEUED, rounds)


def calls_tables(rounds: int, small: bool) -> Tables:
    yield calls.table(200 if small else 20_000, 100, rounds)


def streams_tables(rounds: int, small: bool) -> Tables:
    yield streams.streams_table(500 if small else 50_000, rounds)


def maps_tables(rounds: int, small: bool) -> Tables:
    yield maps.table(500 if small else 50_000, rounds)


def memory_tables(rounds: int, small: bool) -> Tables:
    yield memory.table(rounds)


def peers_tables(rounds: int, small: bool) -> Tables:
    chosen = peers.available([peer for peer in FIELD if peer.name not in LEFT_OUT], say)
    results: peers.Results = {}
    peers.measure(results, chosen, [*ROWS], 1, small=small, say=say)
    peers.measure(results, chosen, QUICK_ROWS, rounds - 1, small=small, say=say)
    yield peers.table(results, chosen)
    yield peers.versions(chosen)


def limits_tables(rounds: int, small: bool) -> Tables:
    yield from limits.tables(limits.PARTS, rounds, 1_000 if small else 100_000, 2.0 if small else 60.0)


def group_tables(rounds: int, small: bool) -> Tables:
    sizes = group.SMALL if small else group.SIZES
    try:
        yield from group.measured_tables(group.ROWS, {**sizes, "rounds": rounds}, say)
    except NoPostgres as error:
        say(f"group is left out: {error}")


SECTIONS: Final[dict[str, Callable[[int, bool], Tables]]] = {
    "server": server_tables,
    "compiled": compiled_tables,
    "durable": durable_tables,
    "full-queue": full_queue_tables,
    "calls": calls_tables,
    "streams": streams_tables,
    "maps": maps_tables,
    "memory": memory_tables,
    "peers": peers_tables,
    "limits": limits_tables,
    "group": group_tables,
}


def say(text: str) -> None:
    """Tell how far it is, apart from the tables."""
    print(text, file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="TABLES", help=", ".join(SECTIONS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="tiny numbers: only to see that all of it runs")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else [*SECTIONS]
    if unknown := {*names} - {*SECTIONS}:
        parser.error(f"no such table: {', '.join(sorted(unknown))} (there are {', '.join(SECTIONS)})")
    signal.signal(signal.SIGTERM, peers.stop)
    print(f"{conditions()}\n{options.rounds} rounds in turns, {busy()} at the beginning", flush=True)
    for name in names:
        began = time.monotonic()
        say(f"{name} ...")
        for each in SECTIONS[name](options.rounds, options.small):
            print(each, flush=True)
        say(f"{name}: {time.monotonic() - began:.0f} s")
    print(f"{busy()} at the end")


if __name__ == "__main__":
    main()
