"""A user's project with tasks, a worker that serves it, and a shell in its directory."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from gearflow.server import JobServer
from tests.cli.shell import Shell
from tests.ports import free_port

TASKS = '''
import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
import time
from decimal import Decimal
from pathlib import Path

from pydantic import BaseModel

from gearflow.tasks import Context, Retry, task


class Item(BaseModel):
    name: str
    price: Decimal = Decimal(1)


@task
def add(a: int, b: int = 2) -> int:
    """Add two numbers."""
    return a + b


@task
async def count_up(ctx: Context, to: int) -> AsyncIterator[int]:
    for n in range(to):
        yield n
    if to == 3:
        raise LookupError("no more")


@task
def letters(text: str) -> Iterator[str]:
    yield from text


@task
def blobs(number: int) -> Iterator[bytes]:
    for _ in range(number):
        yield b"\\0" * 1_000_000


@task
def odd(a: int) -> bool:
    return a % 2 == 1


@task
def sum_up(numbers: list[int]) -> int:
    return sum(numbers)


@task
async def double(a: int) -> int:
    return await add.acall(a, a)


@task
def buy(item: Item) -> Item:
    return item


@task(timeout=30, priority="high", unique=True)
async def settings_of(text: str, number: int = 0) -> dict[str, str | int]:
    return {"text": text, "number": number}


@task
def shout(text: str) -> str:
    return text.upper()


@task
def reverse(data: bytes) -> bytes:
    return data[::-1]


@task
def divide(a: float, b: float) -> float:
    return a / b


@task
def nothing() -> None:
    pass


@task
def warn(ctx: Context) -> str:
    ctx.warn("half way\\x1b[31m")
    ctx.progress(1, 2)
    return "done"


@task
async def until(ctx: Context, path: Path) -> str:
    """Ends when there is a file of that name."""
    ctx.warn("it runs")
    print("a job runs", file=sys.stderr, flush=True)
    while not path.exists():
        await asyncio.sleep(0.01)  # the test is in another process, and a file wakes nobody
    return "finished"


@task
def watch_for(path: Path) -> None:
    """The same in a thread, which cannot be stopped."""
    while not path.exists():
        time.sleep(0.01)  # as above


@task
async def blocking(seconds: float) -> None:
    print("a job runs", file=sys.stderr, flush=True)
    time.sleep(seconds)  # the user's mistake: it blocks the loop


@task(retries=Retry(4, on=(ConnectionError, TimeoutError), backoff=2, max_delay=5), keep=3600, expires=60)
def fetch(url: str) -> str:
    return url


@task
def read(path: Path) -> str:
    """Fails as long as there is no such file."""
    return path.read_text()


@task(foreign=True)
def elsewhere(text: str) -> str: ...
'''


@pytest.fixture(scope="session")
def module() -> str:
    """The name of the user's module; nobody else uses it on the shared servers."""
    return f"shop_{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="session")
def project(module: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's directory, with a module of tasks in it."""
    directory = tmp_path_factory.mktemp("project")
    (directory / f"{module}.py").write_text(TASKS)
    return directory


@pytest.fixture(scope="session")
def shell(project: Path, bundled: str) -> Shell:
    """A shell in the user's directory, with the shared server in GEARMAN_SERVERS."""
    return Shell(project, {"GEARMAN_SERVERS": bundled})


@pytest.fixture(scope="session")
def served(shell: Shell, module: str) -> Iterator[Shell]:
    """The same, while a worker serves the module."""
    with shell.start("worker", module) as worker:
        worker.until("registered with a server")
        worker.drain()
        yield shell


@pytest.fixture
def own(project: Path) -> Iterator[Shell]:
    """A shell in the user's directory with a server of its own, where no worker is."""
    with JobServer(port=0) as server:
        yield Shell(project, {"GEARMAN_SERVERS": server.address})


@pytest.fixture
def terminal() -> tuple[int, int]:
    """Two ends of a terminal, that of a person and that of a program; the test closes them."""
    try:
        return os.openpty()
    except OSError as error:
        pytest.skip(f"this machine has no terminal devices: {error}")


@pytest.fixture
def free_ports() -> tuple[int, int]:
    """Two ports on which nobody listens."""
    return free_port(), free_port()
