"""A module's lifespan hooks and middleware, run by the real command."""

import signal
from pathlib import Path

import pytest

from gearflow.client import SyncClient
from tests.cli.shell import Shell, outcome

MODULE = """
import os
from contextvars import ContextVar

from gearflow import Proceed, RunInfo, lifespan, middleware, task

greeting: ContextVar[str] = ContextVar("greeting")


@lifespan
async def greetings():
    if "NO_GREETING" in os.environ:
        raise ConnectionRefusedError("nobody greets")
    greeting.set("hello")
    yield
    print("goodbye", flush=True)


@middleware
async def louder(run: RunInfo, proceed: Proceed) -> None:
    greeting.set(greeting.get().upper())
    await proceed()


@task(name="greet")
def greet(whom: str) -> str:
    return f"{greeting.get()}, {whom}"
"""


def test_hooks_of_the_module_are_around_its_tasks(bundled: str, tmp_path: Path) -> None:
    (tmp_path / "greeter.py").write_text(MODULE)
    shell = Shell(tmp_path, {"GEARMAN_SERVERS": bundled})
    with SyncClient([bundled]) as client, shell.start("worker", "greeter") as worker:
        assert client.submit("greet", b"you").result(10) == b"HELLO, you"
        worker.signal(signal.SIGTERM)
        assert worker.output() == "goodbye"
        code, _ = worker.end()
        assert code == 0


def test_a_hook_that_fails_is_told_with_the_users_own_line(bundled: str, tmp_path: Path) -> None:
    (tmp_path / "greeter.py").write_text(MODULE)
    shell = Shell(tmp_path, {"GEARMAN_SERVERS": bundled})
    code, _, said = outcome(shell.run("worker", "greeter", NO_GREETING="1"))
    assert code == 78
    assert "gearflow: lifespan hook greeter.greetings failed: ConnectionRefusedError: nobody greets\n" in said
    assert said.count("nobody greets") == 2  # of the message, and of the line that raised
    assert 'raise ConnectionRefusedError("nobody greets")' in said
    assert "gearflow_cli" not in said


REFUSES = """
import sys

from gearflow import lifespan, task


@task
def nothing() -> None: ...


@lifespan
async def begin():
    sys.exit({})
    yield
"""

ENDS = """
import asyncio
import sys

from gearflow import lifespan, task


@task
def nothing() -> None: ...


async def fail() -> None:
    {}


@lifespan
async def feed():
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fail())
        yield
"""


@pytest.mark.parametrize("options", [[], ["--processes", "2"]])
@pytest.mark.parametrize(
    ("reason", "told"), [("'no DATABASE_URL'", "SystemExit: no DATABASE_URL"), ("0", "SystemExit: 0")]
)
def test_a_hook_may_refuse_to_start_by_sys_exit(
    bundled: str, tmp_path: Path, options: list[str], reason: str, told: str
) -> None:
    (tmp_path / "refusing.py").write_text(REFUSES.format(reason))
    shell = Shell(tmp_path, {"GEARMAN_SERVERS": bundled})
    code, _, said = outcome(shell.run("worker", "refusing", *options))
    assert code == 78
    assert f"gearflow: lifespan hook refusing.begin failed: {told}\n" in said
    assert f"sys.exit({reason})" in said
    assert "Traceback" not in said


def test_a_hook_whose_task_fails_ends_the_worker_and_is_named(bundled: str, tmp_path: Path) -> None:
    (tmp_path / "feeding.py").write_text(ENDS.format("raise ValueError('no more feed')"))
    shell = Shell(tmp_path, {"GEARMAN_SERVERS": bundled})
    code, _, said = outcome(shell.run("worker", "feeding"))
    assert code == 1
    assert "ERROR   lifespan hook feeding.feed failed\n" in said
    assert "in fail\n" in said
    assert "ValueError: no more feed\n" in said
    assert said.endswith("gearflow: lifespan hook feeding.feed failed, which ends the worker\n")
    assert "bug in gearflow" not in said
    assert "gearflow_cli" not in said


def test_who_exits_beside_the_tasks_ends_the_worker_but_not_as_a_success(
    bundled: str, tmp_path: Path
) -> None:
    (tmp_path / "exiting.py").write_text(ENDS.format("sys.exit(0)"))
    shell = Shell(tmp_path, {"GEARMAN_SERVERS": bundled})
    code, _, said = outcome(shell.run("worker", "exiting"))
    assert code == 1
    assert "gearflow: code on the event loop raised SystemExit, which ends the worker\n" in said
    assert "sys.exit(0)" in said
    assert "Traceback" not in said
