"""What a store costs: groups of jobs and of ends, the start with many jobs, a sync.

    python -m tests.benchmarks.store [--jobs 100000] [--rounds 5] [--directory DIR]

Printed are medians over the rounds, in microseconds of CPU time of the thread that calls (in a server, that
is the loop's), and of wall time where a disk is waited for. The directory should be on the disk in question.
"""

import argparse
import gc
import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from gearflow.broker.storage import Change, Forgotten, JobOutcome, JobRecord, Store, StoredJob
from gearflow.stores import MemoryStore, SqliteStore

GROUPS = (1, 100, 1000)


def job(number: int, workload: bytes = b"0123456789abcdef") -> StoredJob:
    unique = b"unique-%d" % number
    return StoredJob(number, b"work", unique, 1, 1e9 + number, 0.0, None, b"", 0, 0, workload)


def end(number: int) -> JobRecord:
    return JobRecord(
        number=number,
        function=b"work",
        unique=b"unique-%d" % number,
        outcome=JobOutcome.COMPLETED,
        body=b"result",
        submitted=1e9 + number,
        started=1e9 + number,
        ended=1e9 + number,
        attempt=1,
        deaths=0,
        worker=b"worker-1",
        notes=b"",
        expires=2e9 + number / 1e4,
    )


def groups(make: Callable[[int], Change], first: int, jobs: int, size: int) -> Iterator[list[Change]]:
    for start in range(first, first + jobs, size):
        yield [make(number) for number in range(start, start + size)]


def cpu(store: Store, make: Callable[[int], Change], first: int, jobs: int, size: int) -> float:
    """Microseconds a change."""
    spent = 0.0
    for group in groups(make, first, jobs, size):
        start = time.thread_time()
        store.write(group)
        spent += time.thread_time() - start
    return spent / jobs * 1e6


def writing(table: Table, name: str, open_store: Callable[[], Store], jobs: int, rounds: int) -> None:
    for size in GROUPS:
        count = max(size, jobs // 20 if size == 1 else jobs)
        stored: list[float] = []
        ended: list[float] = []
        forgotten: list[float] = []
        for _ in range(rounds):
            store = open_store()
            stored.append(cpu(store, job, 0, count, size))
            store.sync()
            ended.append(cpu(store, end, 0, count, size))
            store.sync()
            cpu(store, job, count, count, size)
            store.sync()
            forgotten.append(cpu(store, Forgotten, count, count, size))
            store.close()
        table.add_row(name, f"{size}", *(f"{median(figures):.2f}" for figures in (stored, ended, forgotten)))


def starting(console: Console, path: Path, jobs: int) -> None:
    store = SqliteStore(path)
    for group in groups(job, 0, jobs, 1000):
        store.write(group)
    store.close()
    start = time.thread_time()
    store = SqliteStore(path)
    count = sum(1 for _ in store.load().jobs)
    spent = time.thread_time() - start
    store.close()
    console.print(
        f"start with {count} jobs: {spent / count * 1e6:.2f} us each, "
        f"{path.stat().st_size / count:.0f} bytes of the file each"
    )


def syncing(console: Console, path: Path, rounds: int) -> None:
    store = SqliteStore(path, sync="always")
    taken: list[float] = []
    for number in range(20 * rounds):
        start = time.perf_counter()
        store.write([job(number)])
        store.sync()
        taken.append(time.perf_counter() - start)
    store.close()
    console.print(f"one job, synced: {median(taken) * 1e6:.0f} us of wall time")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path)
    arguments = parser.parse_args()
    console = Console()
    gc.disable()  # the server's thresholds are so high that it does not matter there
    parent: Path | None = arguments.directory
    directory = Path(tempfile.mkdtemp(dir=parent))
    numbers = itertools.count()
    try:
        table = Table("store", "group", "stored", "ended", "forgotten", title="us of CPU time a change")
        writing(table, "memory", MemoryStore, arguments.jobs, arguments.rounds)
        writing(
            table,
            "sqlite",
            lambda: SqliteStore(directory / f"{next(numbers)}.db"),
            arguments.jobs,
            arguments.rounds,
        )
        console.print(table)
        starting(console, directory / "start.db", 10 * arguments.jobs)
        syncing(console, directory / "sync.db", arguments.rounds)
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
