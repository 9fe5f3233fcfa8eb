"""What the sides have in common; by the standard library alone, for each runs in an environment of its own.

A side is one task queue, seen from outside: a module with its tasks, and as ``SIDE`` its worker and its
client. ``run.py`` has the command line. Where the broker is stands in the environment, and the file in which
each run that ends leaves a byte (``mark``).
"""

import asyncio
import os
import sys
import time
from functools import cache
from pathlib import Path
from typing import Protocol

BROKER = os.environ.get("PEERS_BROKER", "")
"""``host:port``."""

VARIANT = os.environ.get("PEERS_VARIANT", "")
"""How this side is to be used, where there are several ways."""

TURNS = int(os.environ.get("PEERS_TURNS", "1"))
"""Of an empty loop, which take 20 ms."""

NAP = 0.01
HANG = 60.0

NOT_OFFERED = 3
"""The exit code for what a side has no way to do."""


class Side(Protocol):
    """One task queue. Clients' methods may be coroutines; they are then all run in one event loop."""

    def work(self, kind: str, slots: int) -> None:
        """Become a worker."""

    def enqueue(self, task: str, count: int) -> None:
        """Hand over many jobs."""

    def submit(self) -> None:
        """Hand over one job without work, and wait until that is acknowledged."""

    def call(self) -> None:
        """Have one job without work done, and wait for its result."""

    def gather(self, count: int) -> None:
        """Submit so many jobs without work, and then wait for all results."""


@cache
def _marks(what: str) -> int:
    return os.open(os.environ["PEERS_MARKS"] + what, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def mark(what: str = "") -> None:
    """A job has come to its end; the cost, a microsecond or two, is the same for everybody."""
    os.write(_marks(what), b".")


def spin() -> None:
    """Use 20 ms of CPU time in Python."""
    for _ in range(TURNS):
        pass
    mark()


def nap() -> None:
    """Wait in a thread."""
    time.sleep(NAP)
    mark()


def hang() -> None:
    """Begin what takes so long that the worker is killed in the middle."""
    mark(".hang")
    time.sleep(HANG)


async def async_nap() -> None:
    """Wait on the event loop."""
    await asyncio.sleep(NAP)
    mark()


async def async_hang() -> None:
    """As ``hang``, on the event loop."""
    mark(".hang")
    await asyncio.sleep(HANG)


def in_processes(count: int, work) -> None:
    """Be so many workers, where a queue has no way to start several."""
    for _ in range(count - 1):
        if os.fork() == 0:
            break
    work()


def become(*command: object) -> None:
    """Run another program of this environment in place of this one."""
    program = Path(sys.executable).parent / str(command[0])
    os.execv(program, [str(program), *map(str, command[1:])])


def not_offered(what: str) -> None:
    """End: this queue has no such way."""
    print(what, file=sys.stderr)
    sys.exit(NOT_OFFERED)
