"""``gearflow doctor``: what it prints, and its exit codes."""

import json
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from anyio import to_thread
from typer.testing import CliRunner

from gearflow.client import Client, SyncClient
from gearflow.client.config import ServerAddress
from gearflow.client.operate import workers
from gearflow.server import JobServer
from gearflow.tasks import Concurrency, task
from gearflow.worker import Worker
from gearflow_cli.app import app

pytestmark = pytest.mark.usefixtures("healthy")


@pytest.fixture
def server(tmp_path: Path, loggers_as_before: None) -> Iterator[str]:
    with JobServer(port=0, data=tmp_path) as server:
        yield server.address


def test_a_server_that_is_well_is_0(server: str) -> None:
    ended = CliRunner().invoke(app, ["doctor", "-s", server])
    assert ended.exit_code == 0, ended.output
    about, verdict = ended.stdout.splitlines()
    assert about.startswith(f"{server}: gearflow-")
    assert "jobs live in a file (sync batch), " in about
    assert verdict == "all is well"


def test_warnings_are_1_and_have_a_remedy(server: str) -> None:
    with SyncClient([server]) as client:
        client.submit_background("alone\x1b[31m", b"x")
    ended = CliRunner().invoke(app, ["doctor", "-s", server])
    assert ended.exit_code == 1, ended.output
    _, warning, remedy, verdict = ended.stdout.splitlines()
    assert warning == f"warning: {server}: 1 job of alone\\x1b[31m waits, and no worker offers it"
    assert remedy == "  remedy: start a worker for it, or run: gearflow purge 'alone\\x1b[31m'"
    assert verdict == "1 warning"


async def test_limits_of_code_that_were_not_applied_are_a_warning(server: str) -> None:
    @task(name="limited", limits=[Concurrency(3)])
    async def limited() -> None: ...

    async with Worker([limited], servers=[server]), Client([server]) as client:
        with anyio.fail_after(20):
            while not any(each.limits for each in await workers(client)):
                await anyio.lowlevel.checkpoint()
        ended = await to_thread.run_sync(lambda: CliRunner().invoke(app, ["doctor", "-s", server]))
    assert ended.exit_code == 1, ended.output
    assert "a worker declares limits of limited that the server does not have" in ended.stdout


def test_errors_are_2_and_json_has_everything(server: str, free_ports: tuple[int, int]) -> None:
    away = str(ServerAddress("127.0.0.1", free_ports[0]))
    ended = CliRunner().invoke(app, ["doctor", "-s", server, "-s", away, "--json"])
    assert ended.exit_code == 2
    shown = json.loads(ended.stdout)
    assert [each["server"] for each in shown["servers"]] == [server, away]
    assert (shown["servers"][0]["sync"], shown["servers"][0]["rights"]) == ("batch", ["all"])
    (finding,) = shown["findings"]
    assert (finding["severity"], finding["check"], finding["server"]) == ("error", "reach", away)
    assert finding["remedy"]


@pytest.mark.parametrize("options", [["--unknown"], ["-s", "127.0.0.1:99999"], ["argument"]])
def test_wrong_usage_is_64(options: list[str]) -> None:
    ended = CliRunner().invoke(app, ["doctor", *options])
    assert ended.exit_code == 64
    assert "Usage: gearflow doctor" in ended.stderr
    assert CliRunner().invoke(app, ["status", *options]).exit_code == 2
