"""Programs that others wrote, started beside a test and ended with it."""

import subprocess
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, Unpack

import anyio
import pytest

from gearflow.tasks import Task
from gearflow.worker import Worker, WorkerOptions
from tests.conftest import missing

Start: TypeAlias = Callable[..., subprocess.Popen[bytes]]


@asynccontextmanager
async def serving(
    server: str, *tasks: Task[..., Any], **options: Unpack[WorkerOptions]
) -> AsyncGenerator[None, None]:
    """A worker that its server knows, for the time of the block, which may take ten seconds."""
    with anyio.fail_after(20):
        settings: WorkerOptions = {**options, "servers": [server]}
        async with Worker(tasks, **settings) as worker:
            await worker.ready.wait()
            yield


@pytest.fixture
def start(program: Callable[[str], str]) -> Iterator[Start]:
    """``start("gearman", "-w", ...)``: runs a program until the test is over.

    A worker need not be waited for: jobs wait for it in the server.
    """
    running: list[subprocess.Popen[bytes]] = []

    def run(name: str, *arguments: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([program(name), *arguments], stdin=subprocess.DEVNULL)
        running.append(process)
        return process

    try:
        yield run
    finally:
        for process in running:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def perl(program: Callable[[str], str]) -> str:
    """The path of a Perl that has Gearman::Client and Gearman::Worker."""
    path = program("perl")
    if subprocess.run(
        [path, "-MGearman::Client", "-MGearman::Worker", "-e1"], capture_output=True
    ).returncode:
        missing("Perl's Gearman::Client and Gearman::Worker are not installed")
    return path


@pytest.fixture(scope="session")
def php(program: Callable[[str], str]) -> str:
    """The path of a PHP that has the gearman extension."""
    path = program("php")
    if subprocess.run([path, "-r", "exit((int) !extension_loaded('gearman'));"]).returncode:
        missing("PHP's gearman extension is not installed")
    return path


@pytest.fixture(scope="session")
def node(program: Callable[[str], str]) -> str:
    """The path of Node."""
    return program("node")
