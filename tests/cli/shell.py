"""The real command in real processes, as a user's shell starts it."""

import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from tests.cli.warm import UNCLEAN, Warm

COMMAND: Final = (sys.executable, "-m", "gearflow_cli")

TIMEOUT: Final = 60.0
"""Seconds."""

_WARM: Final = Warm()

_STARTS_OTHERS: Final = (("dev",), ("server",), ("worker",))
"""Commands that may start processes as they were started themselves."""


def outcome(ended: "subprocess.CompletedProcess[bytes]") -> tuple[int, str, str]:
    """The exit code, and what was said on stdout and on stderr."""
    return ended.returncode, ended.stdout.decode(), ended.stderr.decode()


def said_on(ours: int, theirs: int) -> bytes:
    """What was written to a terminal whose programs have ended. Closes both of its ends."""
    os.close(theirs)
    said = b""
    with suppress(OSError):  # EIO is the end of a terminal
        while part := os.read(ours, 65536):
            said += part
    os.close(ours)
    return said


@dataclass(frozen=True, slots=True)
class Shell:
    """Where commands run, and what is in their environment beside what a shell always has."""

    directory: Path
    environment: dict[str, str] = field(default_factory=dict[str, str])

    def run(
        self, *arguments: str, stdin: bytes = b"", **environment: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end, without the imports if nothing of it depends on how it was started."""
        variables = self._environment(environment)
        is_usual = all(name.startswith(("GEARMAN_", "GEARFLOW_")) for name in self.environment | environment)
        if is_usual and arguments[:1] not in _STARTS_OTHERS:
            ended = _WARM.run(arguments, self.directory, variables, stdin, TIMEOUT)
            if ended is not None:
                return ended
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=self.directory,
            env=variables,
            input=stdin,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )

    @contextmanager
    def start(
        self, *arguments: str, closed: str = "", **environment: str
    ) -> Generator["Running", None, None]:
        """Start a command that runs for the time of the block; ``closed``: streams that are, to a shell."""
        command = [*COMMAND, *arguments]
        if closed:
            command = ["/bin/sh", "-c", f"exec {shlex.join(command)} {closed}"]
        with subprocess.Popen(
            command,
            cwd=self.directory,
            env=self._environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                yield Running(process)
            finally:
                process.kill()

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(UNCLEAN)}
        return clean | {"COLUMNS": "200"} | self.environment | more


class Running:
    """A command that has been started."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self._stdout = _pipe(process.stdout)
        self._stderr = _pipe(process.stderr)

    def until(self, text: str) -> str:
        """Read its stderr up to the line that contains a text; that line."""
        seen: list[str] = []
        for line in self._stderr:
            seen.append(line.decode())
            if text in seen[-1]:
                return seen[-1]
        raise AssertionError(f"it ended without saying {text!r}; it said: {''.join(seen)}")

    def until_all(self, *texts: str) -> None:
        """Read its stderr up to the line by which each of some texts was said, in any order."""
        missing = set(texts)
        while missing:
            line = self.until("")
            missing = {text for text in missing if text not in line}

    def drain(self) -> None:
        """Read on what it says on stderr, and forget it: a full pipe would stop it."""
        threading.Thread(target=self._stderr.read, daemon=True).start()

    def close_stderr(self) -> None:
        """Read no more of what it says on stderr: its next line cannot be written."""
        self._stderr.close()

    def output(self) -> str:
        """The next line of its stdout."""
        return self._stdout.readline().decode().rstrip("\n")

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Wait for its end: the exit code, and what it said on stderr until then."""
        _, stderr = self.process.communicate(timeout=30)
        return self.process.returncode, stderr.decode()


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream
