"""Who takes part: each peer with its broker, and what its side can be run with."""

import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

from tests.benchmarks.peers import environments
from tests.benchmarks.peers.environments import Missing
from tests.benchmarks.servers import Server, durable, free_port, gearflow, gearmand, running

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

    @property
    def title(self) -> str:
        """As the docs have it."""
        name, _, variant = self.name.partition(" ")
        titles = {"celery": "Celery", "dramatiq": "Dramatiq", "rq": "RQ", "huey": "Huey"}
        return f"{titles.get(name, name)}, {variant}" if variant else titles.get(name, name)

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


FIELD: Final = (
    Peer("gearflow", gearflow, "with_gearflow"),
    Peer("gearflow durable", durable, "with_gearflow"),
    Peer("gearflow on gearmand", gearmand, "with_gearflow"),
    Peer("celery threads", redis, "with_celery", ("celery[redis]", "hiredis"), "threads"),
    Peer("celery prefork", redis, "with_celery", ("celery[redis]", "hiredis"), "prefork"),
    Peer("dramatiq", redis, "with_dramatiq", ("dramatiq[redis]", "hiredis")),
    Peer("taskiq", redis, "with_taskiq", ("taskiq", "taskiq-redis", "uvloop", "hiredis")),
    Peer("rq", redis, "with_rq", ("rq", "hiredis")),
    Peer("huey", redis, "with_huey", ("huey", "redis", "hiredis")),
    Peer("arq", redis, "with_arq", ("arq", "uvloop", "hiredis")),
    Peer("aiogear", gearmand, "with_aiogear", ("aiogear", "uvloop")),
    Peer("pygearman", gearmand, "with_pygearman", ("pygearman",)),
    Peer("libgearman", gearmand, "with_libgearman.c", rows="e"),
)
