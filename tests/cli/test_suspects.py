"""A job that kills its worker, among others, in real processes."""

import uuid
from pathlib import Path

import pytest

from gearflow.client import JobFailed, SyncClient
from gearflow.server import JobServer
from tests.cli.shell import Shell

PATIENCE = 60.0  # seconds

TASKS = """
import asyncio
import os

from gearflow import task


@task
async def work(number: int) -> int:
    await asyncio.sleep(0.3)  # long enough to be there when the other job kills the process
    if number == 17:
        os._exit(1)
    return number
"""


def test_it_alone_is_a_dead_letter(tmp_path: Path) -> None:
    module = f"poison_{uuid.uuid4().hex[:8]}"
    (tmp_path / f"{module}.py").write_text(TASKS)
    with JobServer(port=0) as server, SyncClient([server.address]) as client:
        shell = Shell(tmp_path, {"GEARMAN_SERVERS": server.address})
        with shell.start("worker", module, "--processes", "3", "-c", "10") as fleet:
            fleet.until("all worker processes are ready")
            jobs = [client.submit(f"{module}.work", b'{"number": %d}' % number) for number in range(51)]
            poison = jobs.pop(17)
            assert len({job.result(PATIENCE) for job in jobs}) == 50
            with pytest.raises(JobFailed, match="it was cut off 3 times"):
                poison.result(PATIENCE)
            fleet.process.kill()
