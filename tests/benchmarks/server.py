"""gearflow's server beside C gearmand, under the same load, in turns.

    python -m tests.benchmarks.server [--pairs 5] [--scale 0.4] [--compiled] [ROW ...]

Each row runs the servers one after another, each newly started, ``--pairs`` times over, so that a machine
whose speed drifts treats them alike. The table has medians, and the median of the ratios pair by pair with
its range, which shows how noisy the machine was. A ratio above 1 says how much better gearflow's server is.
``best`` is gearmand with the options that suit the load. The last column is the CPU time of each server for a
job. ``--compiled`` adds gearflow's server with its compiled core, from an environment that is made for it.
"""

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final, TypeAlias

from tests.benchmarks.load import Figures, Generator, Load, gearload_option, generator, run
from tests.benchmarks.report import Table, busy, conditions, ratios, shown
from tests.benchmarks.servers import GEARMAND_AT_ITS_BEST, ROOT, Server, cache, gearflow, gearmand

Start: TypeAlias = Callable[[], AbstractContextManager[Server]]


@dataclass(frozen=True)
class Row:
    """A kind of load, and the figure of it that counts. ``jobs`` are at scale 1."""

    title: str
    load: Load
    figure: Callable[[Figures], float]
    unit: str
    more_is_better: bool = True
    once: bool = False
    """One run is enough: the figure hardly varies, and takes long."""


def _rate(title: str, load: Load, *, once: bool = False) -> Row:
    return Row(title, load, lambda each: each.rate, "jobs/s", once=once)


_CROWD: Final = Load("idle", workers=5000)
_ENQUEUE: Final = Load("enqueue", 300_000, 8, 256)

ROWS: Final[dict[str, Row]] = {
    "latency": Row(
        "one call at a time, p50",
        Load("calls", 20_000, workers=1),
        lambda each: each.latency["p50"],
        "us",
        more_is_better=False,
    ),
    "calls-32x1": _rate("32 clients, one call each", Load("calls", 100_000, 32, 1, 8)),
    "calls-32x64": _rate("32 clients, 64 calls each", Load("calls", 100_000, 32, 64, 8)),
    "grabs-32": _rate("the same, 32 grabs in flight per worker", Load("calls", 300_000, 32, 64, 8, grabs=32)),
    "enqueue": _rate("background submissions, pipelined, 120,000", _ENQUEUE),
    "drain": _rate("draining a queue of 80,000", Load("drain", 200_000, 8, 256, 8)),
    "drain-long": _rate("the same, 200,000", Load("drain", 500_000, 8, 256, 8), once=True),
    "1-KiB": _rate("payloads of 1 KiB", Load("calls", 100_000, 32, 4, 8, payload=1 << 10)),
    "64-KiB": _rate("payloads of 64 KiB", Load("calls", 20_000, 8, 4, 8, payload=1 << 16)),
    "1-MiB": _rate("payloads of 1 MiB", Load("calls", 1_000, 4, 2, 4, payload=1 << 20)),
    "64-MiB": _rate("payloads of 64 MiB", Load("calls", 20, workers=1, payload=1 << 26)),
    "wake": _rate("one job at a time among 500 sleepers", Load("wake", 2_000, workers=500)),
    "idle": Row(
        "memory of an idle connection",
        _CROWD,
        lambda each: each.grown / _CROWD.workers,
        "bytes",
        more_is_better=False,
        once=True,
    ),
    "queued": Row(
        "memory of a queued job of 16 bytes, a million queued",
        replace(_ENQUEUE, jobs=2_500_000),
        lambda each: each.grown / each.load.jobs,
        "bytes",
        more_is_better=False,
        once=True,
    ),
    "connect": Row(
        "5,000 connections at once",
        _CROWD,
        lambda each: each.phase.seconds,
        "s",
        more_is_better=False,
        once=True,
    ),
}

COMPILED_ROWS: Final = ("calls-32x1", "calls-32x64", "grabs-32", "enqueue", "drain")
SCALE: Final = 0.4
"""Of the jobs: at this scale the lengths of queues are those that the titles say."""


def measured(
    made: Generator, starts: Mapping[str, Start], row: Row, pairs: int, scale: float
) -> dict[str, list[Figures]]:
    """Runs of the load by server, each against a server that is started for it."""
    load = replace(row.load, jobs=max(round(row.load.jobs * scale), 1) if row.load.jobs else 0)
    runs: dict[str, list[Figures]] = {server: [] for server in starts}
    for _ in range(1 if row.once else pairs):
        for name, start in starts.items():
            with start() as server:
                runs[name].append(run(made, server, load))
    return runs


def table(made: Generator, rows: Iterable[str], pairs: int, scale: float) -> Table:
    """gearflow beside gearmand."""
    starts: dict[str, Start] = {"gearflow": gearflow, **_gearmands()}
    columns = ("load", "gearflow", "gearmand", "ratio (range)", "best", "ratio (range)", "CPU for a job, us")
    result = Table("The server beside gearmand", columns)
    for name in rows:
        row = ROWS[name]
        runs = measured(made, starts, row, pairs, scale)
        ours, *theirs = _figures(row, runs)
        cells = [cell for each in theirs for cell in (shown(median(each)), _ratio(row, ours, each))]
        result.add(
            row.title, f"{shown(median(ours))} {row.unit}", *cells, _cpu(runs) if row.load.jobs else ""
        )
    return result


def compiled_table(made: Generator, pairs: int, scale: float) -> Table:
    """The compiled core beside the pure one, and beside gearmand."""
    python = compiled_core()
    starts: dict[str, Start] = {
        "compiled": lambda: gearflow(python, isolated=True),
        "gearflow": gearflow,
        **_gearmands(),
    }
    columns = ("load", "pure Python", "compiled", "ratio to gearmand", "to its best", "CPU for a job, us")
    result = Table("The compiled core", columns)
    for name in COMPILED_ROWS:
        row = ROWS[name]
        runs = measured(made, starts, row, pairs, scale)
        ours, pure, *theirs = _figures(row, runs)
        cells = [f"{shown(median(pure))} {row.unit}", shown(median(ours))]
        cpu = _cpu({name: runs[name] for name in ("gearflow", "compiled")})
        result.add(row.title, *cells, *(_ratio(row, ours, each) for each in theirs), cpu)
    return result


def _gearmands() -> dict[str, Start]:
    return {"gearmand": gearmand, "best": lambda: gearmand("gearmand, best", GEARMAND_AT_ITS_BEST)}


def _figures(row: Row, runs: Mapping[str, Sequence[Figures]]) -> list[list[float]]:
    return [[row.figure(each) for each in figures] for figures in runs.values()]


def _ratio(row: Row, ours: Sequence[float], theirs: Sequence[float]) -> str:
    return ratios(ours, theirs, more_is_better=row.more_is_better)


def _cpu(runs: Mapping[str, Sequence[Figures]]) -> str:
    return ", ".join(shown(median(each.server_cpu for each in figures)) for figures in runs.values())


def compiled_core() -> Path:
    """The interpreter of an environment that has this checkout with its core compiled."""
    sources = sorted((ROOT / "gearflow").rglob("*.py")) + sorted((ROOT / "cli").rglob("*.py"))
    digest = hashlib.sha256(sys.version.encode() + b"".join(path.read_bytes() for path in sources))
    place = cache() / "compiled"
    python = place / "bin" / "python"
    made = place / "made-for"
    if not made.exists() or made.read_text() != digest.hexdigest():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", str(ROOT)]
        subprocess.run(command, check=True, env={**os.environ, "GEARFLOW_COMPILE": "1"})
        made.write_text(digest.hexdigest())
    return python


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"which of {', '.join(ROWS)} (all)")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--scale", type=float, default=SCALE, help="so many times the jobs")
    parser.add_argument("--compiled", action="store_true", help="the compiled core instead")
    gearload_option(parser)
    options = parser.parse_args()
    made = generator(options.gearload)
    if options.compiled:
        print(compiled_table(made, options.pairs, options.scale))
    else:
        print(table(made, options.rows or ROWS, options.pairs, options.scale))
    print(f"{conditions()}\n{options.pairs} runs each in turns, {busy()} at the end")


if __name__ == "__main__":
    main()
