"""What the worker's tests share: a gearmand of a test's own, to be killed."""

import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


class Gearmand:
    """A C gearmand of one test's own, which may be killed and started again on the same port."""

    def __init__(self, program: str, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._program = program
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it listens a little later."""
        assert self._process is None
        options = ["--port", str(self.port), "--listen", "127.0.0.1", "--log-file", str(self._log)]
        self._process = subprocess.Popen([self._program, *options])

    def kill(self) -> None:
        """Kill it, as a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def close(self) -> None:
        """End it, if it runs."""
        if self._process is not None:
            self.kill()


@pytest.fixture
def own_gearmand(program: Callable[[str], str], tmp_path: Path) -> Iterator[Gearmand]:
    """A gearmand that is not started yet."""
    server = Gearmand(program("gearmand"), tmp_path / "log")
    yield server
    server.close()
    shutil.rmtree(tmp_path, ignore_errors=True)
