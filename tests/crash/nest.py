"""Real server processes that can be killed, and that start in milliseconds.

The nest is a process that has imported everything. It forks a server for each line of JSON. A server runs an
``Engine`` on an event loop and stops cleanly on SIGTERM. ``tests.crash.faults`` can make its store fail.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

from gearflow.runtime.eventloop import new_event_loop
from gearflow.server import ServerSettings, tune_garbage_collection
from gearflow.server.engine import Engine, Timings
from gearflow.server.persistence import CommitTimings, open_store
from tests.conftest import ROOT
from tests.crash import faults
from tests.crash.faults import OpenStore

TIMEOUT: Final = 30.0
"""Seconds after which what does not happen fails its test."""

_TIMINGS: Final = Timings(commit=CommitTimings(retry=0.05, fault_over=0.0, idle=0.5))

_COUNTED: Final = replace(_TIMINGS, history=False)
"""For a server that fails at the n-th write: the end of a minute is none of them."""


class NotStarted(Exception):
    """The server refused to start; the text is its reason."""


class Server:
    """One server process."""

    def __init__(self, nest: Nest, pid: int, port: int, log: Path) -> None:
        self._nest = nest
        self.pid = pid
        self.port = port
        self._log = log
        self._status: int | None = None

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        self._end(signal.SIGKILL)
        assert self._status == -signal.SIGKILL, self.why(f"it had ended before, with {self._status}")

    def stop(self) -> None:
        """SIGTERM; it has to end in good order, and must not have logged an exception."""
        self._end(signal.SIGTERM)
        assert self._status == 0, self.why(f"it ended with {self._status}")
        assert "Traceback" not in self.log, self.why("an exception")

    def wait(self) -> int:
        """Its exit status (negative: the signal) once it has ended by itself."""
        if self._status is None:
            status: int = self._nest.ask({"do": "wait", "pid": self.pid})["status"]
            self._status = status
            self._nest.servers.discard(self)
        return self._status

    @property
    def log(self) -> str:
        return self._log.read_text()

    def why(self, what: str) -> str:
        return f"{what}: {self.log[-3000:]}"

    def memory(self) -> int:
        """Bytes of memory that are resident."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    def _end(self, number: signal.Signals) -> None:
        if self._status is None:
            os.kill(self.pid, number)
            self.wait()


class Nest:
    """Starts servers; those that still live end with its block."""

    def __init__(self) -> None:
        self.servers: set[Server] = set()

    def __enter__(self) -> Self:
        command = [sys.executable, "-c", "from tests.crash import nest; nest.hatch()"]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        for server in list(self.servers):
            os.kill(server.pid, signal.SIGKILL)
            server.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(TIMEOUT)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def start(self, data: Path, fault: faults.Fault | None = None, **settings: Any) -> Server:
        """Start a server on that folder. Beside the folder it writes a log.

        Raises:
            NotStarted: It did not start.
        """
        log = data.with_name(f"{data.name}.log")
        answer = self.ask(
            {
                "do": "start",
                "settings": {"port": 0, "data": str(data), **settings},
                "fault": fault._asdict() if fault else None,
                "log": str(log),
            }
        )
        if "port" not in answer:
            self.ask({"do": "wait", "pid": answer["pid"]})
            raise NotStarted(answer.get("error") or f"it died: {log.read_text()[-3000:]}")
        server = Server(self, answer["pid"], answer["port"], log)
        self.servers.add(server)
        return server

    def ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


# ------------------------------------------------------------------------------- in the nest's process


def hatch() -> None:
    """Do what is asked until nobody asks any more."""
    new_event_loop().close()  # so that all is imported
    gc.collect()
    gc.freeze()  # so that no child looks at it again
    for line in sys.stdin:
        command = json.loads(line)
        answer = _start(command) if command["do"] == "start" else _wait(command["pid"])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _wait(pid: int) -> dict[str, Any]:
    return {"status": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}


def _start(command: dict[str, Any]) -> dict[str, Any]:
    receiver, sender = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receiver)
        status = 1
        try:
            status = _be_a_server(command, sender)
        finally:
            os._exit(status)
    os.close(sender)
    with os.fdopen(receiver) as file:
        return {"pid": pid, **json.loads(file.readline() or "{}")}


def _be_a_server(command: dict[str, Any], sender: int) -> int:
    log = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for old, new in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(old, new)
    logging.basicConfig(level="INFO", force=True, stream=sys.stderr)
    logging.getLogger().handlers[0].setFormatter(_Formatter("%(levelname)s %(message)s"))
    fault = command["fault"]
    store: OpenStore = open_store if fault is None else faults.faulty(faults.Fault(**fault))
    timings = _TIMINGS if fault is None else _COUNTED
    settings = ServerSettings.model_validate(command["settings"])
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(_serve(settings, timings, store, sender))


async def _serve(settings: ServerSettings, timings: Timings, store: OpenStore, sender: int) -> int:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    try:
        engine = Engine(settings, timings, store)
        await engine.start()
    except Exception as error:  # noqa: BLE001  (whatever it is, the test is to see it)
        os.write(sender, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode() + b"\n")
        return 1
    tune_garbage_collection()
    os.write(sender, json.dumps({"port": engine.port}).encode() + b"\n")
    os.close(sender)
    await stop.wait()
    await engine.stop()
    return 0


class _Formatter(logging.Formatter):
    """With the reason of what went wrong, and how many it concerned, which stand in fields."""

    def format(self, record: logging.LogRecord) -> str:
        extras = [str(vars(record)[name]) for name in ("reason", "refused_jobs") if name in vars(record)]
        return " ".join([super().format(record), *extras])
