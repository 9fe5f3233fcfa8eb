"""gearflow beside other task queues, each with its own worker and its own client, on the same tasks.

    python -m tests.benchmarks.peers [--rounds 3] [--only celery,a] [--small]

Peers are Celery, Dramatiq, taskiq, RQ, Huey and arq on Redis, aiogear and pygearman on gearmand, and
libgearman's C client; gearflow runs on its own server (in memory, and durable) and on gearmand. Each peer is
installed into an environment of its own below ~/.cache/gearflow-peers. One that cannot be is told, and left
out. They take turns, each time with a new broker; printed are medians, with the range.

What makes it fair: the tasks are the same, and write one byte to a file at their end, by which they are
counted from outside. JSON wherever there is a choice, Redis without a file, acknowledgement after the run
where there is one (Celery, taskiq), no log lines for jobs, results only where the row asks for them, and the
best shape that each has for a row: ``sides/with_*.py`` has the settings. All run on the same cores: broker,
worker and client share them.
"""

import argparse
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from math import inf
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Final, NoReturn

from rich.console import Console
from rich.table import Table

from tests.benchmarks.peers.environments import Missing
from tests.benchmarks.peers.field import FIELD, Peer
from tests.benchmarks.peers.measuring import TooLong, Trial
from tests.benchmarks.peers.rows import CPU_TASK, ROWS, Sizes

SMALL: Final = Sizes(drain=200, calls=20, gather=50, submit=50, cpu=10, naps=200, patience=5)
LIMIT: Final = 300.0
"""Seconds after which a step of a row is given up."""

SMALL_LIMIT: Final = 20.0
"""The same for tiny numbers."""

Results = dict[str, dict[str, list[float]]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="names of peers (or the first word), letters of rows")
    parser.add_argument("--small", action="store_true", help="tiny numbers: only to see that all of it runs")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _stop)
    chosen = [word.strip() for word in options.only.split(",") if word.strip()]
    rows = [letter for letter in ROWS if letter in chosen] or list(ROWS)
    words = [word for word in chosen if word not in ROWS]
    peers = [peer for peer in FIELD if not words or {peer.name, peer.name.partition(" ")[0]} & {*words}]
    console = Console(width=130)
    turns = _turns()
    results: Results = {}
    noise = [_loop(turns)]
    for peer in list(peers):
        try:
            peer.command()
        except Missing as missing:
            console.print(f"{peer.name} is left out: {missing}")
            peers.remove(peer)
    try:
        for number in range(options.rounds):
            for letter in rows:
                for peer in peers:
                    if not peer.rows or letter in peer.rows:
                        console.print(f"round {number + 1}, row {letter}: {peer.name}", style="dim")
                        _run(peer, letter, turns, results, console, small=options.small)
                noise.append(_loop(turns))
    finally:  # what there is, also if it is stopped
        _tell(results, peers, noise, options.rounds, console)


def _tell(
    results: Results, peers: Sequence[Peer], noise: Sequence[float], rounds: int, console: Console
) -> None:
    """Print the table, and how it came about."""
    console.print(_table(results))
    console.print(
        f"{os.cpu_count()} cores, Python {platform.python_version()}, {rounds} rounds in turns; "
        f"a loop of {CPU_TASK * 1e3:.0f} ms took {min(noise) * 1e3:.1f} to {max(noise) * 1e3:.1f} ms between "
        f"rows; load average at the end {os.getloadavg()[0]:.1f}"
    )
    console.print("; ".join(sorted({peer.versions() for peer in peers if peer.packages})))


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """End in good order, so that no worker is left behind."""
    sys.exit(128 + number)


def _run(peer: Peer, letter: str, turns: int, results: Results, console: Console, *, small: bool) -> None:
    """One row of one peer; what goes wrong is told."""
    try:
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            peer.broker() as broker,
        ):
            trial = Trial(peer, broker, Path(folder), turns, SMALL_LIMIT if small else LIMIT)
            try:
                figures = ROWS[letter](trial, SMALL if small else Sizes())
            except TooLong as error:
                console.print(f"{peer.name}, row {letter}: {error} ({trial.said()})")
                return
    except Missing as missing:
        console.print(f"{peer.name}, row {letter}: {missing}")
        return
    for name, figure in figures.items():
        results.setdefault(name, {}).setdefault(peer.name, []).append(figure)


def _turns() -> int:
    """Of an empty loop, for 20 ms."""
    turns = 100_000
    return int(turns * CPU_TASK / min(_loop(turns) for _ in range(20)))


def _loop(turns: int) -> float:
    """Seconds that an empty loop takes: a yardstick of how busy the machine is otherwise."""
    begin = time.perf_counter()
    for _ in range(turns):
        pass
    return time.perf_counter() - begin


def _table(results: Results) -> Table:
    table = Table("row", "peer", "median", "range")
    for row in sorted(results):
        for peer, figures in results[row].items():
            table.add_row(
                row, peer, _shown(median(figures)), f"{_shown(min(figures))} .. {_shown(max(figures))}"
            )
        table.add_section()
    return table


def _shown(figure: float) -> str:
    if figure == inf:
        return "not in time"
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.2f}"


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
