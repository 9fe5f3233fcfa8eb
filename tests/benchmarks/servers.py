"""Job servers for the benchmarks: gearflow's own and C gearmand, each a process of its own."""

import os
import platform
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
GEARMAND_AT_ITS_BEST: Final = ("-t", "0", "-b", "4096", "-w", "1", "--hashtable-buckets", "1000003")


@dataclass(frozen=True)
class Server:
    """A running job server."""

    name: str
    port: int
    pid: int


def machine() -> str:
    """What the figures depend on: an interpreter as distributions build it is a fifth faster than others."""
    return f"{os.cpu_count()} cores, Python {platform.python_version()} ({Path(sys.executable).resolve()})"


def shared() -> Path:
    """Where gearload is: GEARFLOW_SHARED, or ``shared`` beside the checkout."""
    path = Path(os.environ.get("GEARFLOW_SHARED") or ROOT.parent / "shared")
    if not path.is_dir():
        sys.exit(f"{path} is not there; set GEARFLOW_SHARED to where bench/gearload.c is")
    return path


@contextmanager
def gearload() -> Generator[Path]:
    """The load generator, compiled for the time of the block."""
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "gearload"
        subprocess.run(["cc", "-O2", "-o", program, shared() / "bench" / "gearload.c"], check=True)
        yield program


@contextmanager
def gearmand(
    name: str = "gearmand", options: Sequence[str] = (), prefix: Sequence[str] = ()
) -> Generator[Server]:
    """C gearmand with these options; ``prefix`` goes before its command."""
    program = shutil.which("gearmand", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        sys.exit("gearmand is not installed (Debian: gearman-job-server)")
    port = free_port()
    with tempfile.NamedTemporaryFile() as log:
        command = [*prefix, program, "-p", str(port), "-L", "127.0.0.1", "-l", log.name, *options]
        with running(name, command, port) as server:
            yield server


@contextmanager
def gearflow() -> Generator[Server]:
    """gearflow's server, as ``gearflow server`` starts it."""
    port = free_port()
    command = [sys.executable, "-m", "gearflow_cli", "server", "--memory", "-p", str(port)]
    with running("gearflow", command, port) as server:
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
