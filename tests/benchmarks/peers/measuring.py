"""One peer at work: its broker, its workers, its clients, and what is seen of them from outside."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.benchmarks.peers.environments import SIDES, Missing
from tests.benchmarks.peers.field import Peer
from tests.benchmarks.servers import Server, cpu

_LOOK: Final = 0.001
"""Seconds between two looks at a file, or a process."""

_NOT_OFFERED: Final = 3


class TooLong(Exception):
    """What was waited for did not happen; the text says what."""


class Trial:
    """A peer with a new broker. Owns what it starts, and the file of marks."""

    def __init__(self, peer: Peer, broker: Server, folder: Path, turns: int, limit: float) -> None:
        self._limit = limit
        self._command = peer.command()
        self._marks = folder / "marks"
        self._marks.touch()
        self._log = folder / "log"
        self._environment = {
            **os.environ,
            "PEERS_BROKER": f"127.0.0.1:{broker.port}",
            "PEERS_MARKS": str(self._marks),
            "PEERS_VARIANT": peer.variant,
            "PEERS_TURNS": str(turns),
        }

    @contextmanager
    def worker(self, kind: str = "light", slots: int = 10) -> Generator["Tree"]:
        """A worker for the time of the block, which may kill it itself.

        Raises:
            Missing: This peer has no such worker.
        """
        command = [*self._command, "work", kind, str(slots)]
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                command, cwd=SIDES, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        tree = Tree(process)
        try:
            yield tree
        except TooLong:
            if process.poll() == _NOT_OFFERED:
                raise Missing(self.said()) from None
            raise
        finally:
            tree.kill()

    def client(self, *arguments: object) -> tuple[float, list[float]]:
        """Run a client: when it began, and the seconds of each step.

        Raises:
            TooLong: It takes too long.
            Missing: It failed.
        """
        return self._run([*self._command, *map(str, arguments)])

    def results(self, command: str, count: int) -> list[float]:
        """Run a client that waits for so many results: the seconds of each step.

        Raises:
            Missing: It came back before that many jobs had run: what it took then is no figure.
            TooLong: As ``client``.
        """
        _, seconds = self.client(command, count)
        there = self.there()
        if there < count:
            raise Missing(f"its client ended with {there} of {count} jobs run: it does not wait for results")
        return seconds

    def bare(self, count: int) -> float:
        """Seconds that so many tasks that compute take in two processes without any queue."""
        _, seconds = self._run([sys.executable, str(SIDES / "bare.py"), str(count)])
        return sum(seconds)

    def marked(self, count: int, what: str = "", within: float | None = None) -> float:
        """The time at which so many marks are there, or of what has marks of its own.

        Raises:
            TooLong: They do not come.
        """
        deadline = time.monotonic() + (within or self._limit)
        marks = self._marks.with_name(self._marks.name + what)
        marks.touch()
        while (there := marks.stat().st_size) < count:
            if time.monotonic() > deadline:
                raise TooLong(f"{there} of {count} runs in {within or self._limit:.0f} s")
            time.sleep(_LOOK)
        return time.monotonic()

    def forget(self) -> None:
        """All marks so far."""
        os.truncate(self._marks, 0)

    def there(self) -> int:
        """How many marks there are now."""
        return self._marks.stat().st_size

    def said(self) -> str:
        """The last line that a worker said."""
        return _last_line(self._log.read_text())

    def _run(self, command: list[str]) -> tuple[float, list[float]]:
        try:
            done = subprocess.run(
                command,
                cwd=SIDES,
                env=self._environment,
                capture_output=True,
                timeout=self._limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise TooLong(f"{' '.join(command[2:])}: over {self._limit:.0f} s") from None
        if done.returncode:
            raise Missing(_last_line(done.stderr.decode().partition("Exception ignored")[0]))
        said = json.loads(done.stdout)
        return said["began"], said["seconds"]


class Tree:
    """A process with all its descendants, in a session of its own."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self.began = time.monotonic()

    def kill(self) -> None:
        """SIGKILL to all of them."""
        for pid in self._pids():
            _kill(pid)
        self._process.wait()
        for pid in self._pids():
            _kill(pid)

    def cpu(self) -> float:
        """Seconds of CPU time that those who live have used."""
        return sum(_cpu(pid) for pid in self._pids())

    def memory(self) -> float:
        """MiB: what they share is counted once (PSS)."""
        return sum(_memory(pid) for pid in self._pids()) / 1024

    def _pids(self) -> list[int]:
        """All processes of the session."""
        return [pid for pid in _all_pids() if self._is_ours(pid)]

    def _is_ours(self, pid: int) -> bool:
        try:
            return os.getsid(pid) == self._process.pid
        except ProcessLookupError:
            return False


def _all_pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _cpu(pid: int) -> float:
    try:
        return cpu(pid)
    except OSError:  # it has ended
        return 0.0


def _memory(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _last_line(said: str) -> str:
    lines = [line for line in said.strip().splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"
