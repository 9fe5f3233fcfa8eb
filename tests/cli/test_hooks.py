"""A module's lifespan hooks and middleware, run by the real command."""

import signal
from pathlib import Path

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
    assert 'raise ConnectionRefusedError("nobody greets")' in said
    assert "gearflow_cli" not in said
