"""The servers and workers of a soak, each a process of the real command, and who kills them at random."""

import os
import signal
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from math import inf
from pathlib import Path
from random import Random
from typing import Final

import anyio
import anyio.to_thread

from tests.cli.shell import COMMAND
from tests.conftest import ROOT
from tests.ports import free_port
from tests.soak.audit import Outage
from tests.soak.tasks import LOG

PATIENCE: Final = 60.0
"""Seconds that a process has to begin, or to stop in good order."""


class Process:
    """One process after another, all by the same command. What they say is appended to a log.

    A process is ``ready`` when it has said so: a signal before that would meet it without its handlers.
    """

    def __init__(
        self, name: str, arguments: Sequence[str], ready: str, directory: Path, **environment: str
    ) -> None:
        self.name = name
        self._log = directory / f"{name}.log"
        self._ready = ready
        self._said = 0  # bytes of the log that its predecessors wrote
        self._command = [*COMMAND, *arguments]
        self._environment = {**os.environ, LOG: str(directory / "runs"), **environment}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Whether it was started, and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """All that was said."""
        return self._log.read_text() if self._log.exists() else ""

    def start(self) -> None:
        """Start it."""
        self._said = len(self.log)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_until_ready(self, times: int = 1) -> None:
        """Until it has said so often that it is."""
        assert self._process is not None
        deadline = time.monotonic() + PATIENCE
        while self.log.count(self._ready, self._said) < times:
            assert self._process.poll() is None, f"{self.name} ended at once: {self.log[self._said :]}"
            assert time.monotonic() < deadline, f"{self.name} is not ready: {self.log[self._said :]}"
            time.sleep(0.02)

    def end(self, number: signal.Signals) -> None:
        """Send a signal and wait until it is gone: killed, or with exit code 0, as it is to stop."""
        assert self._process is not None
        self._process.send_signal(number)
        status = self._process.wait(PATIENCE)
        expected = -number if number is signal.SIGKILL else 0
        assert status == expected, f"{self.name} ended with {status}: {self.log[-3000:]}"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal that does not end it."""
        assert self._process is not None
        self._process.send_signal(number)

    def children(self) -> list[int]:
        """The pids of the processes that it supervises."""
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return list(map(int, path.read_text().split()))

    def clear(self) -> None:
        """SIGKILL, if it still runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE)


class Fleet:
    """All processes of a soak. Owns them, and the account of what was done to them."""

    def __init__(self, directory: Path, servers: int, workers: int) -> None:
        ports = [free_port() for _ in range(servers)]
        self.addresses = [f"127.0.0.1:{port}" for port in ports]
        self.servers = [
            Process(
                f"server-{number}",
                ("server", "-p", str(port), "--data", str(directory / f"data-{number}"), "--max-deaths", "0"),
                "listens on",
                directory,
            )
            for number, port in enumerate(ports)
        ]
        everywhere = [option for address in self.addresses for option in ("-s", address)]
        # Only the first worker, which is spared, counts itself; the last one is two processes.
        own: list[tuple[str, ...]] = [(), *[("-f", "answer", "-f", "note")] * (workers - 1)]
        own[-1] = (*own[-1], "--processes", "2")
        self.workers = [
            Process(
                f"worker-{number}",
                ("worker", "tests.soak.tasks", *everywhere, *options),
                "registered with a server",
                directory,
            )
            for number, options in enumerate(own)
        ]
        self.killed: dict[int, Outage] = {}
        """Workers, by their pid."""
        self.outages = defaultdict[str, list[Outage]](list)
        """Of servers, by their address."""
        self.ended: list[str] = []
        """What was ended, and how."""

    @contextmanager
    def running(self) -> Generator[None]:
        """All of them, for the time of the block. At its begin each worker is registered with each server."""
        everyone = [*self.servers, *self.workers]
        try:
            for process in everyone:
                process.start()
            for server in self.servers:
                server.wait_until_ready()
            for worker in self.workers:
                worker.wait_until_ready(times=len(self.servers))
            yield
            for process in reversed(everyone):
                process.end(signal.SIGTERM)
        finally:
            for process in everyone:
                process.clear()

    @asynccontextmanager
    async def in_danger(self, chance: Random, pause: float) -> AsyncGenerator[None]:
        """In the block processes are ended at random, ``pause`` seconds apart on average, and started again.

        The first two are a server and a worker that are killed. The last server and the first worker are
        spared: they are to show what they hold after all that. The event loop goes on until the last one is
        back, so that the client knows which connections it has lost.
        """
        over = threading.Event()
        faults: list[BaseException] = []

        def endanger() -> None:
            first = [self._kill_server, self._kill_worker]
            try:
                while not over.wait(chance.expovariate(1 / pause)):
                    strike = first.pop(0) if first else self._strike
                    strike(chance)
            except BaseException as error:  # noqa: BLE001  (the test's thread is to see it)
                faults.append(error)

        thread = threading.Thread(target=endanger, name="danger")
        thread.start()
        try:
            yield
        finally:
            over.set()
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(thread.join)
        if faults:
            raise faults[0]

    def _kill_server(self, chance: Random) -> None:
        self._end_server(signal.SIGKILL, chance)

    def _kill_worker(self, chance: Random) -> None:
        self._end_worker(chance.choice(self.workers[1:]), signal.SIGKILL, chance)

    def _strike(self, chance: Random) -> None:
        number = chance.choice((signal.SIGKILL, signal.SIGTERM))
        if chance.random() < 0.4:
            self._end_server(number, chance)
            return
        worker = chance.choice(self.workers[1:])
        children = worker.children()
        match chance.choice(("replace", "replace", "child", "reload")) if children else "replace":
            case "child":
                self._kill_child(chance.choice(children))
            case "reload":
                worker.signal(signal.SIGHUP)
                self.ended.append("SIGHUP supervisor")
            case _:
                self._end_worker(worker, number, chance)

    def _end_server(self, number: signal.Signals, chance: Random) -> None:
        place = chance.randrange(len(self.servers) - 1)
        outage = self._replace(self.servers[place], number, chance)
        self.outages[self.addresses[place]].append(outage)

    def _end_worker(self, worker: Process, number: signal.Signals, chance: Random) -> None:
        pid = worker.pid
        outage = self._replace(worker, number, chance)
        if number is signal.SIGKILL:
            self.killed[pid] = outage

    def _replace(self, victim: Process, number: signal.Signals, chance: Random) -> Outage:
        """End a process, and start it again a little later."""
        begin = time.monotonic()
        victim.end(number)
        time.sleep(chance.random())  # how long it is away: no wait for anything
        victim.start()
        victim.wait_until_ready()
        self.ended.append(f"{number.name} {victim.name.partition('-')[0]}")
        return Outage(begin, time.monotonic())

    def _kill_child(self, pid: int) -> None:
        """Kill a supervised worker, whom its supervisor replaces."""
        begin = time.monotonic()
        with suppress(ProcessLookupError):  # it has ended by itself meanwhile: a reload
            os.kill(pid, signal.SIGKILL)
        self.killed[pid] = Outage(begin, inf)
        self.ended.append("SIGKILL child")

    def complaints(self) -> list[str]:
        """Logs in which a process told of an exception."""
        logs = {process.name: process.log for process in (*self.servers, *self.workers)}
        return [
            f"{name}: {log[log.index('Traceback') :][:2000]}"
            for name, log in logs.items()
            if "Traceback" in log
        ]
