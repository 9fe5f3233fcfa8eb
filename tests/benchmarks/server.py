"""gearflow's server beside C gearmand, under the same load, in turns.

    python -m tests.benchmarks.server [--pairs 5] [--scale 1.0] [--best] [ROW ...]

Each row runs the servers one after another, each newly started, ``--pairs`` times over, so that a machine
whose speed drifts treats them alike; printed are medians, and the median of the ratios pair by pair with
its range, which tells how noisy the machine was. The load comes from gearload, a C program that plays
clients and workers on one core. ``us/job`` is the server's CPU time for each job.
"""

import argparse
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, TypeAlias

from rich.console import Console
from rich.table import Table

from tests.benchmarks.servers import GEARMAND_AT_ITS_BEST, Server, gearflow, gearload, gearmand, machine

Result: TypeAlias = dict[str, Any]
Start: TypeAlias = Callable[[], AbstractContextManager[Server]]


@dataclass(frozen=True)
class Row:
    """A kind of load, and the figure that counts in what gearload prints."""

    load: str
    jobs: int
    figure: Callable[[Result], float]
    unit: str
    more_is_better: bool = True
    phase: str = "run"

    def ratio(self, ours: Result, theirs: Result) -> float:
        """How many times better ours is."""
        mine, other = self.figure(ours), self.figure(theirs)
        return mine / other if self.more_is_better else other / mine


def _rate(phase: str) -> Callable[[Result], float]:
    return lambda result: float(result[phase]["jobs_per_s"])


def _bytes_per_job(result: Result) -> float:
    enqueue = result["enqueue"]
    return float(enqueue["rss_after_kb"] - enqueue["rss_before_kb"]) * 1024 / float(enqueue["jobs"])


def _calls(options: str, jobs: int) -> Row:
    return Row(f"fg {options}", jobs, _rate("run"), "jobs/s")


ROWS: Final[dict[str, Row]] = {
    "latency": Row(
        "fg --clients 1 --workers 1", 20_000, lambda r: float(r["latency_us"]["p50"]), "us, p50", False
    ),
    "fg-32x1": _calls("--clients 32 --workers 8", 100_000),
    "fg-32x64": _calls("--clients 32 --depth 64 --workers 8", 100_000),
    "fg-32x64-grabs32": _calls("--clients 32 --depth 64 --workers 8 --grabs 32", 300_000),
    "enqueue": Row(
        "bg-enqueue --clients 8 --depth 256", 300_000, _rate("enqueue"), "jobs/s", phase="enqueue"
    ),
    "drain": Row(
        "bg-drain --clients 8 --depth 256 --workers 8", 200_000, _rate("drain"), "jobs/s", phase="drain"
    ),
    "1-KiB": _calls("--clients 32 --depth 4 --workers 8 --payload 1024", 100_000),
    "64-KiB": _calls("--clients 8 --depth 4 --workers 8 --payload 65536", 20_000),
    "1-MiB": _calls("--clients 4 --depth 2 --workers 4 --payload 1048576", 1_000),
    "64-MiB": _calls("--clients 1 --workers 1 --payload 67108864", 20),
    "wake-1-of-500": Row("wake --workers 500", 2_000, _rate("run"), "jobs/s"),
    "idle-connection": Row(
        "idle --idle 5000", 0, lambda r: float(r["idle"]["bytes_per_connection"]), "bytes", False, "idle"
    ),
    "connect-5000": Row("idle --idle 5000", 0, lambda r: float(r["idle"]["seconds"]), "s", False, "idle"),
    "queued-job": Row(
        "bg-enqueue --clients 8 --depth 256", 1_000_000, _bytes_per_job, "bytes", False, "enqueue"
    ),
}


def measure(program: Path, start: Start, row: Row, scale: float) -> Result:
    """One run of the load against a server that is started for it."""
    mode, *options = row.load.split()
    jobs = max(round(row.jobs * scale), 1)
    with start() as server:
        where = ("--server", f"127.0.0.1:{server.port}", "--pid", str(server.pid))
        command = [str(program), *where, "--mode", mode, *options, "--jobs", str(jobs)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: Result = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"which of {', '.join(ROWS)} (all)")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="so many times the jobs")
    parser.add_argument(
        "--best", action="store_true", help="also gearmand at its best, not only at its defaults"
    )
    options = parser.parse_args()

    starts: dict[str, Start] = {"gearflow": gearflow, "gearmand": gearmand}
    if options.best:
        starts["gearmand, best"] = lambda: gearmand("gearmand, best", GEARMAND_AT_ITS_BEST)
    table = Table("row", "server", "figure", "unit", "us/job", "gearflow is x times as good (range)")
    with gearload() as program:
        for name in options.rows or ROWS:
            row = ROWS[name]
            runs: dict[str, list[Result]] = {server: [] for server in starts}
            for _ in range(options.pairs):
                for server, start in starts.items():
                    runs[server].append(measure(program, start, row, options.scale))
            for server, results in runs.items():
                figure = median(row.figure(result) for result in results)
                shown = f"{figure:,.2f}" if figure < 10 else f"{figure:,.0f}"
                cost = median(result[row.phase].get("server_cpu_us_per_job", 0.0) for result in results)
                ratio = "" if server == "gearflow" else _ratio(row, runs["gearflow"], results)
                table.add_row(name, server, shown, row.unit, f"{cost:.1f}" if cost else "", ratio)
            table.add_section()
    console = Console(width=110)
    console.print(table)
    load = os.getloadavg()[0]
    console.print(f"{machine()}, {options.pairs} runs each in turns, load average at the end {load:.1f}")


def _ratio(row: Row, ours: Sequence[Result], theirs: Sequence[Result]) -> str:
    ratios = [row.ratio(mine, other) for mine, other in zip(ours, theirs, strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f})"


if __name__ == "__main__":
    main()
