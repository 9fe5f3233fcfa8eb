"""gearflow beside other task queues, each with its own worker and its own client, on the same tasks.

    python -m tests.benchmarks.peers [--rounds 3] [--only celery,a] [--small]

Peers are Celery, Dramatiq, taskiq, RQ, Huey and arq on Redis, aiogear and pygearman on gearmand, and
libgearman's C client; gearflow runs on its own server (in memory, and durable) and on gearmand. Each peer is
installed into an environment of its own below ~/.cache/gearflow-benchmarks. One that cannot be is reported,
and left out. They take turns, each time with a new broker; the table has medians.

What makes it fair: the tasks are the same, and write one byte to a file at their end, by which they are
counted from outside. JSON wherever there is a choice, Redis without a file, acknowledgement after the run
where there is one (Celery, taskiq), no log lines for jobs, results only where the row asks for them,
uvloop and hiredis where they can be used, and the best shape that each has for a row: ``sides/with_*.py`` has
the settings. All run on the same cores: broker, worker and client share them.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Final, NoReturn

from tests.benchmarks.peers.environments import Missing
from tests.benchmarks.peers.field import FIELD, Peer
from tests.benchmarks.peers.measuring import TooLong, Trial
from tests.benchmarks.peers.rows import CPU_TASK, ROWS, Sizes
from tests.benchmarks.report import Table, busy, conditions, shown

SMALL: Final = Sizes(drain=200, calls=20, gather=50, submit=50, cpu=10, naps=200, patience=5)
LIMIT: Final = 300.0
"""Seconds after which a step of a row is given up."""

SMALL_LIMIT: Final = 20.0
"""The same for tiny numbers."""

Results = dict[str, dict[str, list[float]]]


def measure(
    results: Results,
    peers: Sequence[Peer],
    rows: Sequence[str],
    rounds: int,
    *,
    small: bool,
    say: Callable[[str], None] = print,
) -> None:
    """Add the figures by row and peer. What goes wrong is reported, and left out."""
    turns = _turns()
    for number in range(rounds):
        for letter in rows:
            for peer in peers:
                if not peer.rows or letter in peer.rows:
                    say(f"round {number + 1}, row {letter}: {peer.name}")
                    _run(peer, letter, turns, results, say, small=small)


def table(results: Results, peers: Sequence[Peer]) -> Table:
    """A row for each kind of figure, a column for each peer."""
    made = Table("Beside other task queues", ("", *(peer.title for peer in peers)))
    for row in sorted(results):
        figures = [results[row].get(peer.name) for peer in peers]
        made.add(row, *(_shown(median(each)) if each else "" for each in figures))
    return made


def available(peers: Sequence[Peer], say: Callable[[str], None] = print) -> list[Peer]:
    """Those that are installed, or can be."""
    found: list[Peer] = []
    for peer in peers:
        try:
            peer.command()
        except Missing as missing:
            say(f"{peer.name} is left out: {missing}")
        else:
            found.append(peer)
    return found


def versions(peers: Sequence[Peer]) -> str:
    return "; ".join(sorted({peer.versions() for peer in peers if peer.packages}))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="names of peers (or the first word), letters of rows")
    parser.add_argument("--small", action="store_true", help="tiny numbers: only to see that all of it runs")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, stop)
    chosen = [word.strip() for word in options.only.split(",") if word.strip()]
    rows = [letter for letter in ROWS if letter in chosen] or list(ROWS)
    words = [word for word in chosen if word not in ROWS]
    wanted = [peer for peer in FIELD if not words or {peer.name, peer.name.partition(" ")[0]} & {*words}]
    peers = available(wanted)
    results: Results = {}
    try:
        measure(results, peers, rows, options.rounds, small=options.small)
    finally:  # what there is, also if it is stopped
        print(table(results, peers))
        print(f"{conditions()}\n{versions(peers)}\n{options.rounds} rounds in turns, {busy()} at the end")


def stop(number: int, frame: FrameType | None) -> NoReturn:
    """End in good order, so that no worker is left behind."""
    sys.exit(128 + number)


def _run(
    peer: Peer, letter: str, turns: int, results: Results, say: Callable[[str], None], *, small: bool
) -> None:
    """One row of one peer. What goes wrong is reported."""
    try:
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            peer.broker() as broker,
        ):
            trial = Trial(peer, broker, Path(folder), turns, SMALL_LIMIT if small else LIMIT)
            try:
                figures = ROWS[letter](trial, SMALL if small else Sizes())
            except TooLong as error:
                say(f"{peer.name}, row {letter}: {error} ({trial.said()})")
                return
    except Missing as missing:
        say(f"{peer.name}, row {letter}: {missing}")
        return
    for name, figure in figures.items():
        results.setdefault(name, {}).setdefault(peer.name, []).append(figure)


def _turns() -> int:
    """Of an empty loop, for 20 ms."""
    turns = 100_000
    return int(turns * CPU_TASK / min(_loop(turns) for _ in range(20)))


def _loop(turns: int) -> float:
    """Seconds that an empty loop takes."""
    begin = time.perf_counter()
    for _ in range(turns):
        pass
    return time.perf_counter() - begin


def _shown(figure: float) -> str:
    return "not in time" if figure == inf else shown(figure)


if __name__ == "__main__":
    main()
