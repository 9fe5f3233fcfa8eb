"""Job servers and workers, each a process that can be killed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from examples.fleet.tasks import RUNS

ROOT: Final = Path(__file__).parents[2]  # where workers find this package
PATIENCE: Final = 30.0  # seconds for a process to start, and to end


class DidNotStart(Exception):
    """A server did not start. The text is what it printed."""


class Process:
    """A command of gearflow, with a log file."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self._log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gearflow_cli", *arguments],
                cwd=ROOT,
                env=os.environ | {RUNS: str(log.parent / "runs")},
                stdout=file,
                stderr=file,
            )

    def said(self) -> str:
        """All that it has printed so far."""
        return self._log.read_text(errors="replace")

    @property
    def has_ended(self) -> bool:
        """Whether it has ended by itself, or has been ended."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """End it as the loss of its machine would: with SIGKILL, which it cannot notice."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it in an orderly way."""
        if not self.has_ended:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()


def start_server(log: Path, conninfo: str, lease: str) -> Process:
    """A job server on a free port, one of those that share the database."""
    return Process(log, "server", "--port", "0", "--postgres", conninfo, "--lease", lease)


def address_of(server: Process) -> str:
    """Where a server listens, as soon as it does.

    Raises:
        DidNotStart: It has ended, or takes too long.
    """
    deadline = time.monotonic() + PATIENCE
    while (listens := re.search(r"listens on (\S+:\d+)", server.said())) is None:
        if server.has_ended or time.monotonic() > deadline:
            raise DidNotStart(server.said().strip()[-3000:])
        time.sleep(0.05)
    return listens[1]


def start_worker(log: Path, servers: list[str]) -> Process:
    """Two worker processes, each connected to all servers."""
    addresses = [word for address in servers for word in ("--server", address)]
    return Process(log, "worker", "examples.fleet.tasks", "--processes", "2", "-c", "4", *addresses)
