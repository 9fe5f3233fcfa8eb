"""gearflow's server beside C gearmand, under the same load, in turns.

    python -m tests.benchmarks.server [--pairs 5] [--jobs 100000] [--best] [ROW ...]

Each row runs the servers one after another, ``--pairs`` times over, so that a machine whose speed drifts
treats them alike; printed are medians, and the median of the ratios pair by pair with its range, which
tells how noisy the machine was. The load comes from gearload, a C program that plays clients and
workers on one core. ``us/job`` is the server's CPU time for each job.
"""

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tests.benchmarks.servers import GEARMAND_AT_ITS_BEST, Server, gearflow, gearload, gearmand

ROWS: Final[dict[str, tuple[str, ...]]] = {
    "fg-1x1": ("--mode", "fg", "--clients", "1", "--depth", "1", "--workers", "1"),
    "fg-32x1": ("--mode", "fg", "--clients", "32", "--depth", "1", "--workers", "8"),
    "fg-32x64": ("--mode", "fg", "--clients", "32", "--depth", "64", "--workers", "8"),
    "fg-32x64-grabs32": (
        "--mode",
        "fg",
        "--clients",
        "32",
        "--depth",
        "64",
        "--workers",
        "8",
        "--grabs",
        "32",
    ),
}


def measure(program: Path, server: Server, row: Sequence[str], jobs: int) -> dict[str, Any]:
    """One run of the load against a server."""
    command = [
        str(program),
        "--server",
        f"127.0.0.1:{server.port}",
        "--pid",
        str(server.pid),
        *row,
        "--jobs",
        str(jobs),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"which of {', '.join(ROWS)} (all)")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument(
        "--best", action="store_true", help="also gearmand at its best, not only at its defaults"
    )
    options = parser.parse_args()

    table = Table(
        "row", "server", "jobs/s", "p50 us", "p99 us", "us/job", "gearflow is x times as fast (range)"
    )
    with ExitStack() as stack:
        program = stack.enter_context(gearload())
        servers = [stack.enter_context(gearflow()), stack.enter_context(gearmand())]
        if options.best:
            servers.append(stack.enter_context(gearmand("gearmand, best", GEARMAND_AT_ITS_BEST)))
        for name in options.rows or ROWS:
            jobs = options.jobs // 5 if name == "fg-1x1" else options.jobs
            runs: dict[str, list[dict[str, Any]]] = {server.name: [] for server in servers}
            for _ in range(options.pairs):
                for server in servers:
                    runs[server.name].append(measure(program, server, ROWS[name], jobs))
            for server in servers:
                table.add_row(name, server.name, *_figures(runs[server.name]), _ratio(runs, server.name))
            table.add_section()
    console = Console(width=120)
    console.print(table)
    load = os.getloadavg()[0]
    console.print(
        f"{os.cpu_count()} cores, Python {platform.python_version()}, {options.pairs} runs each in turns, "
        f"load average at the end {load:.1f}"
    )


def _figures(runs: Sequence[dict[str, Any]]) -> list[str]:
    rate = median(run["run"]["jobs_per_s"] for run in runs)
    p50, p99 = (median(run["latency_us"][quantile] for run in runs) for quantile in ("p50", "p99"))
    cpu = median(run["run"]["server_cpu_us_per_job"] for run in runs)
    return [f"{rate:,.0f}", f"{p50:,.0f}", f"{p99:,.0f}", f"{cpu:.1f}"]


def _ratio(runs: dict[str, list[dict[str, Any]]], other: str) -> str:
    if other == "gearflow":
        return ""
    pairs = zip(runs["gearflow"], runs[other], strict=True)
    ratios = [ours["run"]["jobs_per_s"] / theirs["run"]["jobs_per_s"] for ours, theirs in pairs]
    return f"{median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f})"


if __name__ == "__main__":
    main()
