"""The disk itself: what a sync and a commit of SQLite's cost, and how to have a slower one.

python -m tests.benchmarks.disk TIMES    microseconds, medians, as JSON
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from statistics import median
from typing import Any

from tests.benchmarks.servers import ROOT


def slower(milliseconds: float) -> list[str]:
    """What goes before a command so that each of its syncs takes so much longer; its pid stays its own."""
    if not milliseconds:
        return []
    if shutil.which("strace") is None:
        sys.exit("strace is not installed (Debian: strace); --slower needs it")
    syncs = "fsync,fdatasync"
    delay = f"inject={syncs}:delay_exit={milliseconds * 1000:.0f}"
    return [
        "strace",
        "-D",
        "-f",
        "-qqq",
        "--seccomp-bpf",
        "-o",
        "/dev/null",
        "-e",
        f"trace={syncs}",
        "-e",
        delay,
    ]


def measured(times: int, prefix: Sequence[str]) -> dict[str, float]:
    """Microseconds by what they are for, of a process that is started with this prefix."""
    command = [*prefix, sys.executable, "-m", "tests.benchmarks.disk", str(times)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def timed(times: int, call: Callable[[], None]) -> float:
    """The median of a call's microseconds."""
    taken: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return median(taken) * 1e6


def _sync(fd: int) -> None:
    os.write(fd, bytes(4096))
    os.fdatasync(fd)


def _commit(connection: sqlite3.Connection) -> None:
    with connection:
        connection.execute("INSERT INTO jobs (workload) VALUES (?)", (bytes(16),))


def main() -> None:
    times = int(sys.argv[1])
    figures: dict[str, float] = {}
    with tempfile.TemporaryFile() as file:
        figures["a sync of the disk"] = timed(times, partial(_sync, file.fileno()))
    with tempfile.TemporaryDirectory() as folder, closing(sqlite3.connect(f"{folder}/rows.db")) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE jobs (number INTEGER PRIMARY KEY, workload BLOB)")
        figures["a commit of SQLite's"] = timed(times, partial(_commit, connection))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
