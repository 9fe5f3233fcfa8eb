"""Who takes part: each peer with its broker, and what its side can be run with."""

import shutil
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

from tests.benchmarks.peers import environments
from tests.benchmarks.peers.environments import Missing
from tests.benchmarks.servers import Server, free_port, gearmand, running

Broker: TypeAlias = Callable[[], AbstractContextManager[Server]]


@dataclass(frozen=True)
class Peer:
    """One way to queue tasks. ``rows``: all it takes part in, by their letters; empty for all."""

    name: str
    broker: Broker
    side: str
    packages: tuple[str, ...] = ()
    variant: str = ""
    rows: str = ""

    def command(self) -> list[str]:
        """The program of its side.

        Raises:
            Missing: It is not here, and cannot be made.
        """
        if self.side.endswith(".c"):
            return [str(environments.compiled(self.side, "libgearman.so.8"))]
        environment = self.name.partition(" ")[0]
        interpreter = environments.python(environment, self.packages)
        return [str(interpreter), str(environments.SIDES / "run.py"), self.side]

    def versions(self) -> str:
        """Of its packages, as they are installed."""
        if not self.packages:
            return ""
        interpreter = environments.python(self.name.partition(" ")[0], self.packages)
        return environments.versions(interpreter, self.packages)


@contextmanager
def redis() -> Generator[Server]:
    """Redis without a file: the fastest that it has."""
    program = shutil.which("redis-server")
    if program is None:
        raise Missing("redis-server is not installed")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        options = (
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            folder,
        )
        with running("redis", [program, *options], port) as server:
            yield server


@contextmanager
def bundled() -> Generator[Server]:
    """gearflow's server, in memory."""
    port = free_port()
    command = [sys.executable, "-m", "gearflow_cli", "server", "--memory", "-p", str(port)]
    with running("gearflow, memory", command, port) as server:
        yield server


@contextmanager
def durable() -> Generator[Server]:
    """gearflow's server with a file, as it is by default."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "gearflow_cli", "server", "--data", folder, "-p", str(port)]
        with running("gearflow, durable", command, port) as server:
            yield server


FIELD: Final = (
    Peer("gearflow", bundled, "with_gearflow"),
    Peer("gearflow durable", durable, "with_gearflow"),
    Peer("gearflow gearmand", gearmand, "with_gearflow"),
    Peer("celery threads", redis, "with_celery", ("celery[redis]",), "threads"),
    Peer("celery prefork", redis, "with_celery", ("celery[redis]",), "prefork"),
    Peer("dramatiq", redis, "with_dramatiq", ("dramatiq[redis]",)),
    Peer("taskiq", redis, "with_taskiq", ("taskiq", "taskiq-redis")),
    Peer("rq", redis, "with_rq", ("rq",)),
    Peer("huey", redis, "with_huey", ("huey", "redis")),
    Peer("arq", redis, "with_arq", ("arq",)),
    Peer("aiogear", gearmand, "with_aiogear", ("aiogear",)),
    Peer("pygearman", gearmand, "with_pygearman", ("pygearman",)),
    Peer("libgearman", gearmand, "with_libgearman.c", rows="e"),
)
