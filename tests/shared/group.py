"""Servers that share a PostgreSQL, and workers that are connected to all of them: the real commands."""

import os
import re
import signal
import subprocess
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from gearflow.client import SyncClient
from gearflow.client.operate import server_info
from tests.ports import free_port
from tests.postgres.cluster import Cluster, Database, eventually
from tests.postgres.proxy import Proxy
from tests.soak.fleet import Process

LEASE: Final = 2.0
"""Seconds."""

STORE_TIMEOUT: Final = 3.0
"""Seconds."""


_OWNED: Final = (
    "gearflow.lots JOIN (SELECT DISTINCT ON (address) server, address FROM gearflow.servers"
    " ORDER BY address, started DESC) AS latest ON server = owner"
)
"""Lots of the last server at each address. Those of its dead predecessors may not be adopted yet."""

_EXCEPTION: Final = re.compile(r"  \w+: ")
"""A line of a server's log that tells of an exception. It has another one before it, which says where."""


class Group:
    """Owns its processes, and a proxy before PostgreSQL for each server.

    The processes are those of one test after another. What a test has ended is started again by ``recover``.
    """

    def __init__(
        self,
        directory: Path,
        database: Database,
        *,
        servers: int,
        workers: int,
        conninfo: str = "",
        options: Sequence[str] = (),
        clocks: Sequence[float] = (),
    ) -> None:
        """``conninfo``: of all servers, where they are to go past the proxies. ``clocks``: seconds by which
        each server's wall clock is wrong.
        """
        self.directory = directory
        self.database = database
        self.runs = directory / "runs"
        ports = [free_port() for _ in range(servers)]
        self.addresses = [f"127.0.0.1:{port}" for port in ports]
        self.proxies = [Proxy(database.cluster.port) for _ in range(servers)]
        self._conninfo = conninfo
        self._options = ["--lease", f"{LEASE:g}s", "--store-timeout", f"{STORE_TIMEOUT:g}s", *options]
        self._ports = ports
        self.servers: list[Process] = []
        everywhere = [option for address in self.addresses for option in ("-s", address)]
        self.workers = [
            Process(
                f"worker-{number}",
                ("worker", "tests.soak.tasks", "tests.shared.tasks", "--drain", "10s", *everywhere),
                "registered with a server",
                directory,
            )
            for number in range(workers)
        ]
        self._clocks = clocks or [0.0] * servers
        self._paused: set[int] = set()

    @contextmanager
    def running(self) -> Generator["Group"]:
        """All of them, for the time of the block."""
        with ExitStack() as stack:
            for proxy in self.proxies:
                stack.enter_context(proxy.running())
            self.servers = [self._server(number) for number in range(len(self.addresses))]
            everyone = [*self.servers, *self.workers]
            for process in everyone:
                stack.callback(process.clear)
                process.start()
            for process in everyone:
                process.wait_until_ready()
            yield self
            for process in reversed(everyone):
                if process.runs:
                    process.end(signal.SIGTERM)
        assert not self.complaints(), "\n".join(self.complaints())

    def _server(self, number: int) -> Process:
        conninfo = self._conninfo or self.database.cluster.conninfo(
            self.database.name, port=self.proxies[number].port
        )
        command = ["server", "-p", str(self._ports[number]), "--postgres", conninfo, *self._options]
        return Process(
            f"server-{number}",
            [*command, "--log-level", "info"],
            "listens on",
            self.directory,
            **self._wrong_clock(self._clocks[number]),
        )

    def _wrong_clock(self, seconds: float) -> dict[str, str]:
        """The environment of a process whose wall clock is wrong: Python runs such a module at its start."""
        if not seconds:
            return {}
        place = self.directory / f"clock{seconds:+g}"
        place.mkdir(exist_ok=True)
        (place / "sitecustomize.py").write_text(
            f"import time\n\n_time = time.time\ntime.time = lambda: _time() + {seconds!r}\n"
        )
        return {"PYTHONPATH": os.pathsep.join([str(place), *filter(None, [os.environ.get("PYTHONPATH")])])}

    # ------------------------------------------------------------------------------------ what happens to it

    def kill(self, number: int) -> None:
        """SIGKILL to a server."""
        self.servers[number].end(signal.SIGKILL)

    def stop(self, number: int) -> None:
        """SIGTERM to a server. It has to end in good order."""
        self.servers[number].end(signal.SIGTERM)

    def start(self, number: int) -> None:
        """Start a server again, on the same port."""
        self.servers[number].start()
        self.servers[number].wait_until_ready()

    @contextmanager
    def paused(self, number: int) -> Generator[None]:
        """SIGSTOP to a server, and SIGCONT in the end."""
        self.servers[number].signal(signal.SIGSTOP)
        self._paused.add(number)
        try:
            yield
        finally:
            self.servers[number].signal(signal.SIGCONT)
            self._paused.discard(number)

    def recover(self) -> None:
        """Start and heal whatever is not well."""
        cluster: Cluster = self.database.cluster
        if not cluster.runs:
            cluster.start()
        for proxy in self.proxies:
            proxy.heal()
        for process in [*self.servers, *self.workers]:
            if not process.runs:
                process.start()
                process.wait_until_ready()
        eventually(lambda: not any(map(refusal_of, self.addresses)), "each server takes background jobs")

    # ------------------------------------------------------------------------------------ what is seen of it

    def owners(self) -> dict[int, tuple[str, int]]:
        """For each lot of a server that lives: who owns it, and its epoch."""
        rows = self.database.psql(f"SELECT lot, owner, epoch FROM {_OWNED}", role="postgres")
        return {
            int(lot): (owner, int(epoch))
            for lot, owner, epoch in (row.split("\t") for row in rows.splitlines())
        }

    def lots_of(self, number: int) -> frozenset[int]:
        """The lots that a server owns, by what PostgreSQL has."""
        rows = self.database.psql(
            f"SELECT lot FROM {_OWNED} WHERE address = '{self.addresses[number]}'", role="postgres"
        )
        return frozenset(map(int, rows.splitlines()))

    def complaints(self) -> list[str]:
        """What processes told of exceptions. (Workers also log those of tasks, which are meant to fail.)"""
        told = [
            f"{server.name}: {lines[number - 1]} {line}"
            for server in self.servers
            for lines in [server.log.splitlines()]
            for number, line in enumerate(lines)
            if _EXCEPTION.match(line)
        ]
        return told + [
            f"{process.name}: {log[log.index('Traceback') :][:3000]}"
            for process in (*self.servers, *self.workers)
            if "Traceback" in (log := process.log)
        ]


def refusal_of(address: str) -> str:
    """Why a server says that it refuses background jobs. Empty if it accepts them."""
    with SyncClient([address], discover=False) as client:
        closed = client.run(lambda asked: server_info(asked)).closed
    return closed.reason if closed is not None else ""


@contextmanager
def c_worker(program: str, address: str, function: str, log: Path) -> Generator[subprocess.Popen[bytes]]:
    """libgearman's worker for the time of the block. It appends the payloads of jobs to a file."""
    host, _, port = address.rpartition(":")
    command = [program, "-w", "-h", host, "-p", port, "-f", function, "--", "tee", "-a", str(log)]
    log.touch()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env={**os.environ}
    ) as process:
        try:
            yield process
        finally:
            process.kill()
