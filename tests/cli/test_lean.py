"""What a worker's process has imported when it runs a task: nothing that it does without.

A process keeps what it imports for good, and there is one for each core.
"""

import json
from pathlib import Path

import pytest

from gearflow.client import SyncClient
from gearflow.server import JobServer
from tests.cli.shell import Shell

TASKS = """
import sys

from gearflow import task


@task
async def imported(number: int) -> list[str]:
    return sorted(sys.modules)


@task
def imported_in_a_thread(number: int) -> list[str]:
    return sorted(sys.modules)
"""

OF_OTHER_COMMANDS = {
    f"gearflow_cli.commands.{name}"
    for name in ("cron", "dead", "dev", "job", "map", "pause", "server", "submit", "tasks", "watch")
}
NEEDLESS = OF_OTHER_COMMANDS | {
    "concurrent.futures.process",
    "gearflow.broker",
    "gearflow.client.admin",
    "gearflow.supervisor.supervisor",
    "gearflow.tracing.spans",
    "gearflow.protocol.server_calls",
    "gearflow.server",
    "gearflow.stores",
    "multiprocessing",
    "opentelemetry",
    "rich",
    "sqlite3",
    "trio",
    "unittest",
    "watchfiles",
}


@pytest.mark.parametrize("task", ["imported", "imported_in_a_thread"])
@pytest.mark.parametrize("options", [(), ("--processes", "2")], ids=["alone", "in a fleet"])
def test_a_worker_has_imported_nothing_that_it_does_without(
    options: tuple[str, ...], task: str, tmp_path: Path
) -> None:
    (tmp_path / "lean.py").write_text(TASKS)
    with JobServer(port=0) as server, SyncClient([server.address]) as client:
        shell = Shell(tmp_path, {"GEARMAN_SERVERS": server.address})
        with shell.start("worker", "lean", *options) as worker:
            worker.until("registered")
            worker.drain()
            modules = json.loads(client.submit(f"lean.{task}", b'{"number": 1}').result(timeout=20))
    needless = {name for name in modules if any(f"{name}.".startswith(f"{each}.") for each in NEEDLESS)}
    assert needless == set()
