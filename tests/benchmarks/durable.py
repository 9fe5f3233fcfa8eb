"""What durability costs: gearflow's file beside gearmand's SQLite queue, and beside the disk itself.

    python -m tests.benchmarks.durable [--pairs 5] [--jobs 200000] [--slower 2] [ROW ...]

Servers are newly started for each run and take turns; printed are medians, and the median of the ratios
pair by pair with its range. gearmand gets a hundredth of the jobs: it makes one transaction of each, and
syncs it. Files are in the folder for temporary files: set TMPDIR to one on the disk that is meant.
With ``--slower 2`` each sync of that disk takes 2 ms longer, for gearflow, gearmand and SQLite alike: the
virtual disks of virtual machines are often quicker than the disks that jobs are kept on. (strace does that;
it has to be installed. Nothing but a sync is traced.)

    enqueue    background jobs of 16 bytes, pipelined, 8 clients
    drain      the same jobs, run by 8 workers that grab one at a time
    submit     one client, one job at a time, beside a commit of SQLite's on the same disk (WAL,
               synchronous=FULL), and beside a sync of it after 4 KiB
    attached   foreground jobs, with a file and without one
    restart    how long a server with a million queued jobs takes until it serves, and what each needs
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final, TypeAlias

from rich.console import Console
from rich.table import Table

from gearflow.protocol.codec import encode
from gearflow.protocol.packets import SubmitJobBg
from tests.benchmarks.disk import measured, slower, timed
from tests.benchmarks.servers import Server, free_port, gearload, gearmand, machine, running

Start: TypeAlias = Callable[[], AbstractContextManager[Server]]
Figures: TypeAlias = dict[str, list[float]]
Prefix: TypeAlias = Sequence[str]  # of a server's command

SYNCS: Final = ("batch", "always", "off")

_SUBMISSION: Final = encode(SubmitJobBg(b"work", b"", b"x" * 16))


@contextmanager
def gearflow(data: Path, sync: str, prefix: Prefix = ()) -> Generator[Server]:
    """gearflow's server with its jobs in a folder."""
    port = free_port()
    command = [sys.executable, "-m", "gearflow_cli", "server", "--data", str(data), "--sync", sync]
    with running(f"gearflow, {sync}", [*prefix, *command, "-p", str(port)], port) as server:
        yield server


@contextmanager
def in_memory() -> Generator[Server]:
    """gearflow's server without a file."""
    port = free_port()
    command = [sys.executable, "-m", "gearflow_cli", "server", "--memory", "-p", str(port)]
    with running("gearflow, memory", command, port) as server:
        yield server


@contextmanager
def with_file(sync: str, prefix: Prefix = ()) -> Generator[Server]:
    """gearflow's server with a new file."""
    with tempfile.TemporaryDirectory() as folder, gearflow(Path(folder), sync, prefix) as server:
        yield server


@contextmanager
def gearmand_with_sqlite(prefix: Prefix) -> Generator[Server]:
    """gearmand with its own persistence."""
    with tempfile.TemporaryDirectory() as folder:
        options = ("-q", "libsqlite3", f"--libsqlite3-db={folder}/queue.db")
        with gearmand("gearmand, libsqlite3", options, prefix) as server:
            yield server


def load(program: Path, server: Server, options: str, jobs: int) -> dict[str, Any]:
    """What gearload says of one run."""
    where = ("--server", f"127.0.0.1:{server.port}", "--pid", str(server.pid))
    command = [str(program), *where, *options.split(), "--jobs", str(jobs)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def queues(program: Path, pairs: int, jobs: int, row: str, prefix: Prefix) -> Figures:
    """Jobs a second, by server."""
    starts: dict[str, Start] = {f"gearflow, {sync}": partial(with_file, sync, prefix) for sync in SYNCS}
    starts["gearmand, libsqlite3"] = partial(gearmand_with_sqlite, prefix)
    figures: Figures = {name: [] for name in starts}
    workers = " --workers 8" if row == "drain" else ""
    mode = "--mode bg-drain" if row == "drain" else "--mode bg-enqueue"
    for _ in range(pairs):
        for name, start in starts.items():
            with start() as server:
                count = max(jobs // 100, 1) if name.startswith("gearmand") else jobs
                result = load(program, server, f"{mode} --clients 8 --depth 256{workers}", count)
            figures[name].append(float(result[row]["jobs_per_s"]))
    return figures


def attached(program: Path, pairs: int, jobs: int) -> Figures:
    """Foreground jobs a second."""
    starts: dict[str, Start] = {"gearflow, batch": lambda: with_file("batch"), "gearflow, memory": in_memory}
    figures: Figures = {name: [] for name in starts}
    for _ in range(pairs):
        for name, start in starts.items():
            with start() as server:
                result = load(program, server, "--mode fg --clients 32 --depth 64 --workers 8", jobs // 2)
            figures[name].append(float(result["run"]["jobs_per_s"]))
    return figures


def submit(pairs: int, jobs: int, prefix: Prefix) -> Figures:
    """Microseconds, medians: of a submission until it is acknowledged, and of a sync of the same disk."""
    figures: Figures = {}
    for _ in range(pairs):
        for name, figure in measured(jobs // 200, prefix).items():
            figures.setdefault(name, []).append(figure)
        for sync in SYNCS:
            with with_file(sync, prefix) as server:
                figures.setdefault(f"gearflow, {sync}", []).append(_asked(server, jobs // 200))
    return figures


def _asked(server: Server, times: int) -> float:
    """The median of a submission's microseconds, one after the other."""
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return timed(times, partial(_ask, client))


def _ask(client: socket.socket) -> None:
    client.sendall(_SUBMISSION)
    client.recv(4096)


def restart(program: Path, pairs: int, jobs: int) -> tuple[Figures, Figures]:
    """Seconds until a server serves that has so many jobs queued, killed before; and bytes for each."""
    seconds: Figures = {f"gearflow, {jobs:,} jobs": []}
    sizes: Figures = {f"gearflow, {jobs:,} jobs": []}
    with tempfile.TemporaryDirectory() as folder:
        with gearflow(Path(folder), "batch") as server:
            empty = _resident(server.pid)
            load(program, server, "--mode bg-enqueue --clients 8 --depth 256 --unique 0", jobs)
            os.kill(server.pid, signal.SIGKILL)
        for _ in range(pairs):
            began = time.perf_counter()
            with gearflow(Path(folder), "batch") as server:
                seconds[f"gearflow, {jobs:,} jobs"].append(time.perf_counter() - began)
                sizes[f"gearflow, {jobs:,} jobs"].append((_resident(server.pid) - empty) / jobs)
                os.kill(server.pid, signal.SIGKILL)
    return seconds, sizes


def _resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def show(
    table: Table, row: str, unit: str, figures: Figures, base: str | None, more_is_better: bool = True
) -> None:
    """A line for each server, compared with one of them."""
    for name, values in figures.items():
        shown = f"{median(values):,.2f}" if median(values) < 100 else f"{median(values):,.0f}"
        ratio = ""
        if base is not None and name != base:
            ratios = [
                mine / other if more_is_better else other / mine
                for mine, other in zip(values, figures[base], strict=True)
            ]
            ratio = f"{median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f})"
        table.add_row(row, name, shown, unit, ratio)
    table.add_section()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    rows = ("enqueue", "drain", "submit", "attached", "restart")
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", choices=[*rows, []], help=f"which of {', '.join(rows)} (all)"
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=200_000)
    parser.add_argument("--slower", type=float, default=0.0, metavar="MS", help="for enqueue, drain, submit")
    options = parser.parse_args(arguments)
    prefix = slower(options.slower)
    table = Table("row", "server", "figure", "unit", "times as good as the last (range)")
    with gearload() as program:
        for row in options.rows or rows:
            if row in ("enqueue", "drain"):
                figures = queues(program, options.pairs, options.jobs, row, prefix)
                show(table, row, "jobs/s", figures, "gearmand, libsqlite3")
            elif row == "submit":
                figures = submit(options.pairs, options.jobs, prefix)
                show(table, row, "us, p50", figures, "a commit of SQLite's", False)
            elif row == "attached":
                figures = attached(program, options.pairs, options.jobs)
                show(table, row, "jobs/s", figures, "gearflow, memory")
            else:
                seconds, sizes = restart(program, options.pairs, options.jobs * 5)
                show(table, row, "s", seconds, None)
                show(table, row, "bytes/job", sizes, None)
    console = Console(width=110)
    console.print(table)
    load_average = os.getloadavg()[0]
    console.print(
        f"{machine()}, {options.pairs} runs each in turns, "
        f"load average at the end {load_average:.1f}, files in {tempfile.gettempdir()}"
        + (f", each sync {options.slower:g} ms longer" if prefix else "")
    )


if __name__ == "__main__":
    main()
