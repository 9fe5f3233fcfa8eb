"""Job servers for the benchmarks: gearflow's own and C gearmand, each a process of its own."""

import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent.parent
GEARMAND: Final = shutil.which("gearmand", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
GEARMAND_AT_ITS_BEST: Final = ("-t", "0", "-b", "4096", "-w", "1", "--hashtable-buckets", "1000003")


@dataclass(frozen=True)
class Server:
    """A running job server."""

    name: str
    port: int
    pid: int


def shared() -> Path:
    """Where a second load generator may be: GEARFLOW_SHARED, or ``shared`` beside the checkout."""
    return Path(os.environ.get("GEARFLOW_SHARED") or ROOT.parent / "shared")


def cache() -> Path:
    """Where programs and environments are kept for the next time, outside of the checkout."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(home) / "gearflow-benchmarks"
    path.mkdir(parents=True, exist_ok=True)
    return path


def cpu(pid: int) -> float:
    """Seconds of CPU time that a process has used, with all its threads."""
    return time.clock_gettime((~pid << 3) | 2)  # as clock_getcpuclockid(3) makes it, which Python lacks


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def gearmand(
    name: str = "gearmand", options: Sequence[str] = (), prefix: Sequence[str] = ()
) -> Generator[Server]:
    """C gearmand with these options; ``prefix`` goes before its command. SQLite's queue gets a new file."""
    if GEARMAND is None:
        sys.exit("gearmand is not installed (Debian: gearman-job-server)")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        file = [f"--libsqlite3-db={folder}/queue.db"] if "libsqlite3" in options else []
        where = ("-p", str(port), "-L", "127.0.0.1", "-l", f"{folder}/log")
        command = [*prefix, GEARMAND, *where, *options, *file]
        with running(name, command, port) as server:
            yield server


@contextmanager
def gearflow(python: Path = Path(sys.executable), *, isolated: bool = False) -> Generator[Server]:
    """gearflow's server in memory. If ``isolated``, it is the one that this interpreter has installed."""
    port = free_port()
    interpreter = [str(python), *["-I"] * isolated]
    command = [*interpreter, "-m", "gearflow_cli", "server", "--memory", "-p", str(port)]
    with running("gearflow", command, port) as server:
        yield server


@contextmanager
def durable(
    data: Path | None = None, sync: str = "batch", prefix: Sequence[str] = (), further: Sequence[str] = ()
) -> Generator[Server]:
    """gearflow's server with its jobs in a file: a new one, or that of a folder."""
    port = free_port()
    with tempfile.TemporaryDirectory() as new:
        options = ("--data", str(data or new), "--sync", sync, "-p", str(port), *further)
        command = [*prefix, sys.executable, "-m", "gearflow_cli", "server", *options]
        with running(f"gearflow, {sync}", command, port) as server:
            yield server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(name: str, command: Sequence[str], port: int) -> Generator[Server]:
    """A server by its command, from when it listens to the end of the block."""
    _raise_file_limit()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_until_it_listens(process, port)
            yield Server(name, port, process.pid)
        finally:
            process.terminate()


def _raise_file_limit() -> None:
    """Thousands of connections need as many open files, here and in the children."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20_000), hard))


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.02)
        else:
            return
    sys.exit(f"{process.args!r} did not begin to listen")
