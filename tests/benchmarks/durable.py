"""What durability costs: gearflow's file beside gearmand's SQLite queue, and beside the disk itself.

    python -m tests.benchmarks.durable [--pairs 3] [--jobs 60000] [--slower 2] [ROW ...]

Servers are newly started for each run and take turns; the table has medians, and the median of the ratios
pair by pair with its range. gearmand gets a hundredth of the jobs: it makes one transaction of each, and
syncs it. Files are in the folder for temporary files: set TMPDIR to one on the disk that is meant.
With ``--slower 2`` each sync of that disk takes 2 ms longer, for gearflow, gearmand and SQLite alike: the
virtual disks of virtual machines are often quicker than the disks that jobs are kept on. (strace does that;
it has to be installed. Nothing but a sync is traced.)

    enqueue    background jobs of 16 bytes, pipelined, 8 clients
    drain      the same jobs, run by 8 workers that grab one at a time
    attached   foreground jobs, with a file and without one
    submit     one client, one job at a time, beside a commit of SQLite's on the same disk (WAL,
               synchronous=FULL), and beside a sync of it after 4 KiB
    restart    how long a server that was killed takes until it serves its queued jobs, five times as many
               as ``--jobs``, and what each needs
"""

import argparse
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, TypeAlias

from gearflow.protocol.codec import encode
from gearflow.protocol.packets import EchoReq, SubmitJobBg
from tests.benchmarks.disk import measured, slower, timed
from tests.benchmarks.load import Generator, Load, gearload_option, generator, run
from tests.benchmarks.report import Table, busy, conditions, ratios, shown, spread
from tests.benchmarks.servers import Server, durable, gearflow, gearmand, resident

Start: TypeAlias = Callable[[], AbstractContextManager[Server]]
Prefix: TypeAlias = Sequence[str]  # of a server's command

SYNCS: Final = ("batch", "always")
SQLITE: Final = ("-q", "libsqlite3")

_SUBMISSION: Final = encode(SubmitJobBg(b"work", b"", b"x" * 16))
_ECHO: Final = encode(EchoReq(b""))


def tables(made: Generator, rows: Sequence[str], pairs: int, jobs: int, prefix: Prefix = ()) -> list[Table]:
    """The rows that compare with gearmand, and then those that compare with the disk."""
    columns = ("load", "`--sync batch`", "`--sync always`", "gearmand, libsqlite3", "ratios (range)")
    queue = Table("The cost of durability", columns)
    for row in rows:
        if row in ("enqueue", "drain"):
            queue.add(*_queue(made, pairs, jobs, row, prefix))
        elif row == "attached":
            queue.add(*_attached(made, pairs, jobs))
    disk = Table("The cost of durability: one at a time, and a restart", ("figure", "median (range)"))
    for row in rows:
        if row == "submit":
            for name, values in _submit(pairs, jobs, prefix).items():
                disk.add(name, spread(values, " us"))
        elif row == "restart":
            _restart(disk, made, pairs, jobs * 5)
    return [each for each in (queue, disk) if each.rows]


def _queue(made: Generator, pairs: int, jobs: int, kind: str, prefix: Prefix) -> list[str]:
    starts: dict[str, Start] = {sync: partial(durable, None, sync, prefix) for sync in SYNCS}
    starts["gearmand"] = partial(gearmand, "gearmand, libsqlite3", SQLITE, prefix)
    load = Load("drain" if kind == "drain" else "enqueue", jobs, 8, 256, 8)
    rates: dict[str, list[float]] = {name: [] for name in starts}
    for _ in range(pairs):
        for name, start in starts.items():
            with start() as server:
                count = max(jobs // 100, 1) if name == "gearmand" else jobs
                rates[name].append(run(made, server, replace(load, jobs=count)).rate)
    theirs = rates["gearmand"]
    title = "draining them, one grab at a time" if kind == "drain" else "background submissions, pipelined"
    compared = " and ".join(ratios(rates[sync], theirs) for sync in SYNCS)
    return [f"{title}, jobs/s", *(shown(median(each)) for each in rates.values()), compared]


def _attached(made: Generator, pairs: int, jobs: int) -> list[str]:
    starts: dict[str, Start] = {"batch": durable, "memory": gearflow}
    load = Load("calls", max(jobs // 2, 1), clients=32, depth=64, workers=8)
    rates: dict[str, list[float]] = {name: [] for name in starts}
    for _ in range(pairs):
        for name, start in starts.items():
            with start() as server:
                rates[name].append(run(made, server, load).rate)
    compared = f"{ratios(rates['batch'], rates['memory'])} of those without"
    return [
        "attached calls, with a file and without, jobs/s",
        shown(median(rates["batch"])),
        "",
        "",
        compared,
    ]


def _submit(pairs: int, jobs: int, prefix: Prefix) -> dict[str, list[float]]:
    """Microseconds, medians: of a submission until it is acknowledged, and of a sync of the same disk."""
    times = max(jobs // 60, 10)
    figures: dict[str, list[float]] = {}
    for _ in range(pairs):
        for name, figure in measured(times, prefix).items():
            figures.setdefault(name, []).append(figure)
        for sync in SYNCS:
            with durable(None, sync, prefix) as server:
                figures.setdefault(f"a submission, `--sync {sync}`", []).append(acknowledged(server, times))
    return figures


def acknowledged(server: Server, times: int) -> float:
    """The median of a submission's microseconds, one after the other."""
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return timed(times, partial(_ask, client))


def echoed(server: Server, times: int) -> float:
    """The median of the microseconds that a server takes to send back an empty packet."""
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return timed(times, partial(_ask, client, _ECHO))


def _ask(client: socket.socket, packet: bytes = _SUBMISSION) -> None:
    client.sendall(packet)
    client.recv(4096)


def _restart(table: Table, made: Generator, pairs: int, jobs: int) -> None:
    """Seconds until a server serves that has so many jobs queued, killed before; and bytes for each."""
    seconds: list[float] = []
    sizes: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        with durable(Path(folder)) as server:
            empty = resident(server.pid)
            run(made, server, Load("enqueue", jobs, 8, 256, unique=False))
            os.kill(server.pid, signal.SIGKILL)
        for _ in range(pairs):
            began = time.perf_counter()
            with durable(Path(folder)) as server:
                seconds.append(time.perf_counter() - began)
                sizes.append((resident(server.pid) - empty) / jobs)
                os.kill(server.pid, signal.SIGKILL)
    table.add(f"restart with {jobs:,} jobs", spread(seconds, " s"))
    table.add("memory of each of them", spread(sizes, " bytes"))


ROWS: Final = ("enqueue", "drain", "attached", "submit", "restart")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", choices=[*ROWS, []], help=f"which of {', '.join(ROWS)} (all)"
    )
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=60_000)
    parser.add_argument("--slower", type=float, default=0.0, metavar="MS", help="for enqueue, drain, submit")
    gearload_option(parser)
    options = parser.parse_args(arguments)
    made = generator(options.gearload)
    for each in tables(made, options.rows or ROWS, options.pairs, options.jobs, slower(options.slower)):
        print(each)
    print(f"{conditions()}\n{options.pairs} runs each in turns, {busy()} at the end")
    print(f"files in {tempfile.gettempdir()}, each sync {options.slower:g} ms longer")


if __name__ == "__main__":
    main()
