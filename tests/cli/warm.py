"""Commands in real processes that do not import what all commands do: they are forked from one that has.

Most of the time of a short command is that of its imports. The process that has done them runs no command
itself, and has neither threads nor an event loop. A command gets the arguments, the directory, the variables
and the streams that it would get from a shell, and it ends as ``python -m gearflow_cli`` does.
"""

import atexit
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Final

IMPORTS: Final = (
    "anyio._backends._asyncio",
    "gearflow.client.admin",
    "gearflow.client.operate",
    "gearflow.tasks",
    "gearflow_cli.app",
    "gearflow_cli.progress",
    "gearflow_cli.server_queries",
    "gearflow_cli.submit_options",
    "rich.table",
)
"""What most commands import. Nothing of it reads the environment when it is imported."""

UNCLEAN: Final = ("GEARFLOW_", "GEARMAN_", "FORCE_COLOR", "PYTHONWARNINGS")
"""What a command has of the environment of the tests only if a test says so."""

LONGEST: Final = 1 << 16
"""Bytes of a request."""


class Warm:
    """Starts the process that has imported all, with the first command. It ends with this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes]

    def run(
        self,
        arguments: Sequence[str],
        directory: Path,
        environment: Mapping[str, str],
        stdin: bytes,
        timeout: float,
    ) -> "subprocess.CompletedProcess[bytes] | None":
        """Run a command to its end. None if it has more arguments than can be passed on."""
        request = json.dumps([[*arguments], str(directory), {**environment}]).encode()
        if len(request) > LONGEST:
            return None
        with ExitStack() as stack:
            pipes = [os.pipe() for _ in range(4)]
            ends = [pipes[0][0], *(write for _, write in pipes[1:])]
            feed = stack.enter_context(open(pipes[0][1], "wb", buffering=0))  # noqa: PTH123
            out, err, status = (stack.enter_context(open(read, "rb")) for read, _ in pipes[1:])  # noqa: PTH123
            with self._lock:
                socket.send_fds(self._started(), [request], ends)
            for end in ends:
                os.close(end)
            process = int.from_bytes(_all(status), "little")
            killed = threading.Event()
            late = threading.Timer(timeout, _kill, (process, killed))
            late.start()
            feeding = threading.Thread(target=_feed, args=(feed, stdin))
            feeding.start()
            errors: list[bytes] = []
            reading = threading.Thread(target=lambda: errors.append(err.read()))
            reading.start()
            output = out.read()
            reading.join()
            feeding.join()
            code = int.from_bytes(_all(status), "little", signed=True)
            late.cancel()
        if killed.is_set():
            raise subprocess.TimeoutExpired([*arguments], timeout, output, errors[0])
        return subprocess.CompletedProcess([*arguments], code, output, errors[0])

    def _started(self) -> socket.socket:
        if self._channel is None:
            self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            clean = {name: value for name, value in os.environ.items() if not name.startswith(UNCLEAN)}
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "tests.cli.warm", str(theirs.fileno())],
                    cwd=Path(__file__).parents[2],
                    env=clean | {"COLUMNS": "200"},
                    stdin=subprocess.PIPE,  # as those of a command, so that Python makes the same of them
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=[theirs.fileno()],
                )
            atexit.register(self._end)
        return self._channel

    def _end(self) -> None:
        assert self._channel is not None
        self._channel.close()
        self._process.communicate()


def _feed(stream: IO[bytes], data: bytes) -> None:
    with stream, suppress(BrokenPipeError):
        while data:
            data = data[stream.write(data) :]


def _all(status: IO[bytes]) -> bytes:
    """What the process that waits for the command tells next."""
    told = status.read(4)
    assert len(told) == 4, "the process with the imports failed"
    return told


def _kill(process: int, killed: threading.Event) -> None:
    killed.set()
    os.kill(process, signal.SIGKILL)


def serve(channel: socket.socket) -> None:
    """Fork for each request. Returns in the process of a command, and in the first one at the end of all."""
    while True:
        request, descriptors, _, _ = socket.recv_fds(channel, LONGEST, 4)
        if not request:
            sys.exit()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if os.fork() == 0:
            channel.close()
            _become(descriptors, *json.loads(request))
            return
        for descriptor in descriptors:
            os.close(descriptor)


def _become(
    descriptors: list[int], arguments: list[str], directory: str, environment: dict[str, str]
) -> None:
    """Fork once more, and be the process of a command. The other one waits for it, and tells how it ended."""
    *streams, status = descriptors
    if process := os.fork():
        os.write(status, process.to_bytes(4, "little"))
        for stream in (*streams, *range(3)):
            os.close(stream)
        _, ended = os.waitpid(process, 0)
        os.write(status, os.waitstatus_to_exitcode(ended).to_bytes(4, "little", signed=True))
        os._exit(0)
    os.close(status)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    sys.argv[1:] = arguments
    sys.path[0] = directory


if __name__ == "__main__":
    for _name in IMPORTS:
        import_module(_name)
    serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module("gearflow_cli", run_name="__main__", alter_sys=True)
