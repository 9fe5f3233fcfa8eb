"""``gearflow workers`` lists workers, and makes them quiet."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gearflow.client import SyncClient
from gearflow.client.operate import workers
from gearflow.protocol.packets import CanDo, GrabJob, JobAssign, NoJob, SetClientId
from gearflow.server import JobServer
from gearflow.testing.peer import ScriptedPeer
from tests.cli.shell import Shell, outcome


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[Shell, str, str]]:
    """A shell, and the addresses of two servers that it uses."""
    with ExitStack() as stack:
        one, other = (stack.enter_context(JobServer(port=0)).address for _ in range(2))
        yield Shell(tmp_path, {"GEARMAN_SERVERS": f"{one},{other}"}), one, other


@pytest.fixture
async def php(servers: tuple[Shell, str, str]) -> AsyncIterator[ScriptedPeer]:
    """A worker of another library on the first server. It has a job, and another one waits."""
    _, address, _ = servers
    with SyncClient([address]) as client:
        for _ in range(2):
            client.submit_background("resize", b"")
    host, _, port = address.rpartition(":")
    async with await ScriptedPeer.connect(host, int(port), timeout=20) as peer:
        await peer.send(SetClientId(b"php-1"), CanDo(b"resize"), CanDo(b"crop"), GrabJob())
        assert isinstance(await peer.receive(), JobAssign)
        yield peer


async def test_workers_are_listed_with_what_they_run(
    servers: tuple[Shell, str, str], php: ScriptedPeer
) -> None:
    shell, address, other = servers
    code, stdout, stderr = outcome(shell.run("workers"))
    assert (code, stderr) == (0, "")
    header, row = stdout.splitlines()
    assert header.split() == ["server", "id", "name", "address", "busy", "state", "runs", "functions"]
    assert row.split()[0] == address
    assert "php-1" in row
    assert "1 of 1  running  resize for " in row
    assert row.endswith("resize, crop")
    (line,) = shell.run("workers", "--json").stdout.splitlines()
    worker = json.loads(line)
    assert (worker["server"], worker["client_id"], worker["running"]) == (address, "php-1", 1)
    assert [job["function"] for job in worker["jobs"]] == ["resize"]
    assert outcome(shell.run("workers", "-s", other, "--json")) == (0, "", "")


async def test_a_worker_is_made_quiet_by_its_id_or_its_name_and_resumed(
    servers: tuple[Shell, str, str], php: ScriptedPeer
) -> None:
    shell, address, _ = servers
    with SyncClient([address]) as client:
        ((worker),) = client.run(workers)
        code, stdout, _ = outcome(shell.run("workers", "--quiet", worker.id))
        assert (code, stdout) == (
            0,
            f"{address}: gives no more jobs to 1 worker, which still runs 1 job\n",
        )
        await php.send(GrabJob())
        assert isinstance(await php.receive(), NoJob)
        assert "quiet" in shell.run("workers").stdout.decode()
        assert outcome(shell.run("workers", "--resume", "php-1"))[:2] == (
            0,
            f"{address}: gives jobs again to 1 worker\n",
        )
        assert [each.quiet for each in client.run(workers)] == [False]
        await php.send(GrabJob())
        assert isinstance(await php.receive(), JobAssign)


def test_a_worker_that_nobody_has_is_an_error(servers: tuple[Shell, str, str]) -> None:
    shell, *_ = servers
    code, stdout, stderr = outcome(shell.run("workers", "--quiet", "nobody"))
    assert code
    assert stdout == ""
    assert "there is no worker nobody" in stderr
    assert outcome(shell.run("workers", "--quiet", "a", "--resume", "b"))[0] == 2


def test_gearmand_lists_its_workers_too(
    gearmand: str, tmp_path: Path, bundled: str, free_ports: tuple[int, int]
) -> None:
    shell = Shell(tmp_path, {"GEARMAN_SERVERS": gearmand})
    code, stdout, stderr = outcome(shell.run("workers", "-s", gearmand, "-s", f"127.0.0.1:{free_ports[0]}"))
    assert code == 0
    assert stdout.startswith("server")
    assert stderr.endswith("does not answer: connection refused\n")
    code, _, stderr = outcome(shell.run("workers", "-s", f"127.0.0.1:{free_ports[0]}"))
    assert code
    assert "connection refused" in stderr


def test_a_token_that_may_not_see_workers_is_an_error(tmp_path: Path) -> None:
    tokens, token = tmp_path / "tokens", tmp_path / "token"
    tokens.write_text(f"work:{'w' * 20}\n")
    token.write_text("w" * 20)
    with JobServer(port=0, token_file=tokens) as server:
        shell = Shell(tmp_path, {"GEARMAN_SERVERS": server.address, "GEARFLOW_TOKEN_FILE": str(token)})
        code, stdout, stderr = outcome(shell.run("workers"))
        assert (code, stdout) == (69, "")
        assert (
            f"{server.address}: gearflow:forbidden: gearflow:workers needs the right view or submit" in stderr
        )
        code, _, stderr = outcome(shell.run("top"))
        assert "gearflow:metrics needs the right view" in stderr
