"""Count the words of many files, on several worker processes, and check the sum.

    python -m examples.wordcount [DIRECTORY] [--workers 2]

Without a directory it is the sources of Python's standard library, which are on every machine. A job
server is started on a free port, and worker processes in the way one would in a shell. Then ``count`` is
mapped over the files, one job each, and ``add_up`` reduces what comes back in further jobs. In the end one
process counts the same files by itself, by calling the same functions plainly: the results must be equal.

Do not expect two workers to be twice as fast: a file is counted in a millisecond, which is hardly more
than it costs to send its count around.
"""

import argparse
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from examples.wordcount.tasks import add_up, count
from gearflow import JobServer, connect
from gearflow.client import SyncAdmin

ROOT: Final = Path(__file__).parents[2]  # where workers find this package
NO_SOURCES: Final = {"site-packages", "dist-packages", "__pycache__"}  # what others put among them
FAN_IN: Final = 128  # counts per sum: most words are in many files, so a sum of many is not much larger
PATIENCE: Final = 30.0  # seconds for workers to start, and to end


def main() -> None:
    """Count on workers, show the result, and compare it with a plain count."""
    options = _options()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # which ends the workers, too
    if options.directory is None:
        directory = Path(sysconfig.get_path("stdlib"))
        paths = [path for path in files(directory) if path.endswith(b".py")]
    else:
        directory = options.directory
        paths = [path for path in files(directory) if is_text(path)]

    began = time.perf_counter()
    with JobServer(port=0) as server, workers(options.workers, server.address):
        ready = time.perf_counter()
        tell(f"{options.workers} workers are ready after {ready - began:.1f} s")
        words = count_on_workers(paths, server.address)
        done = time.perf_counter()

    for word, times in sorted(words.items(), key=lambda item: (-item[1], item[0]))[:20]:
        print(f"{times:9,}  {word}")
    print(f"{sum(words.values()):,} words, {len(words):,} of them distinct, in {len(paths):,} files")
    print(f"below {directory}")

    here = time.perf_counter()
    expected = count_here(paths)
    here = time.perf_counter() - here
    if words != expected:
        sys.exit("a plain count in one process gives another result: please report this")
    print("a plain count in one process gives the same")
    tell(f"on workers it took {done - ready:.1f} s, in one process {here:.1f} s")


def tell(message: str) -> None:
    """Say something on stderr: what is on stdout is the same on every run."""
    print(message, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.wordcount", description="Count words.")
    parser.add_argument("directory", nargs="?", type=Path, help="default: the standard library's sources")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="worker processes (default: 2)")
    options = parser.parse_args()
    if options.directory is not None and not options.directory.is_dir():
        parser.error(f"{options.directory} is not a directory")
    if options.workers < 1:
        parser.error("at least one worker is needed")
    return options


def files(directory: Path) -> Iterator[bytes]:
    """The files below a directory, in order."""
    for parent, directories, names in os.walk(os.fsencode(directory.resolve())):
        directories[:] = sorted(name for name in directories if os.fsdecode(name) not in NO_SOURCES)
        for name in sorted(names):
            path = os.path.join(parent, name)  # noqa: PTH118  (a Path cannot be of bytes)
            if os.path.isfile(path):  # noqa: PTH113  (nor a pipe or a socket)
                yield path


def is_text(path: bytes) -> bool:
    """Whether a file can be read and is text, by the rule of git: no NUL near its beginning."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123  (as above)
            return b"\0" not in file.read(8000)
    except OSError:
        return False


def count_on_workers(paths: list[bytes], server: str) -> dict[str, int]:
    """Map ``count`` over the files, reduce with ``add_up``, show a bar on the way."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with connect(server), Progress(*columns, console=Console(stderr=True)) as bar:
        row = bar.add_task("counting", total=len(paths))
        counts = count.map(paths, progress=lambda done, _: bar.update(row, completed=done))
        return counts.reduce(add_up, fan_in=FAN_IN).result()


def count_here(paths: list[bytes]) -> dict[str, int]:
    """The same without workers: a plain call of a task runs here."""
    total: Counter[str] = Counter()
    for path in paths:
        total.update(count(path))
    return total


@contextmanager
def workers(number: int, server: str) -> Generator[None]:
    """Worker processes for the time of the block, ready when it begins."""
    command = [sys.executable, "-m", "gearflow_cli", "worker", "examples.wordcount.tasks"]
    command += ["--server", server, "--concurrency", "2", "--log-level", "warning"]
    with ExitStack() as stack:
        log = stack.enter_context(TemporaryFile("w+"))
        started = [
            stack.enter_context(_ending(subprocess.Popen(command, cwd=ROOT, stderr=log)))
            for _ in range(number)
        ]
        _wait_for(started, server, log.fileno())
        yield


@contextmanager
def _ending(process: subprocess.Popen[bytes]) -> Generator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(started: list[subprocess.Popen[bytes]], server: str, log: int) -> None:
    """Return when the server knows all workers."""
    admin = SyncAdmin(server)
    deadline = time.monotonic() + PATIENCE
    while sum(row.workers for row in admin.status() if row.name == count.name.encode()) < len(started):
        if any(process.poll() is not None for process in started) or time.monotonic() > deadline:
            os.lseek(log, 0, os.SEEK_SET)
            sys.exit(f"a worker did not start:\n{os.read(log, 10_000).decode(errors='replace')}")
        time.sleep(0.02)


if __name__ == "__main__":
    main()
