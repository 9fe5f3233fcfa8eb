"""``gearflow server`` and ``gearflow dev`` in processes of their own."""

import re
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gearflow.client import SyncAdmin, SyncClient
from gearflow.protocol import packets as p
from gearflow.protocol.constants import HEADER, REQ
from gearflow.server import ServerSettings
from gearflow_cli.app import app
from gearflow_cli.commands import server as server_command
from tests.cli.shell import Running, Shell
from tests.server.wire import Wire


def address_of(server: Running) -> str:
    found = re.search(r"listens on (\S+);", server.until("listens on"))
    assert found is not None
    return found[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_and_ends_well(tmp_path: Path, number: int) -> None:
    with Shell(tmp_path).start("server", "-p", "0", "--memory") as server:
        line = server.until("listens on")
        assert "jobs live in memory only and are lost when it ends" in line
        found = re.search(r"listens on (127\.0\.0\.1:\d+);", line)
        assert found is not None
        assert SyncAdmin(found[1]).pid() == server.process.pid
        server.signal(number)
        assert server.end() == (0, "")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"host": "127.0.0.1"}, None),
        ({"host": "::1"}, None),
        ({"host": "localhost"}, None),
        ({"host": "0.0.0.0"}, "anyone who reaches this port can submit and cancel jobs"),
        ({"host": "::"}, "anyone who reaches this port"),
        ({"host": "example.com"}, "anyone who reaches this port"),
        ({"host": "0.0.0.0", "tls_cert": "x"}, "Require a token with --token-file"),
        (
            {"host": "0.0.0.0", "token": "t" * 32},
            "the token and all payloads travel unencrypted; add --tls-cert",
        ),
        ({"host": "0.0.0.0", "token": "t" * 32, "tls_cert": "x"}, None),
        ({"host": "0.0.0.0", "tls_ca": "y", "tls_cert": "x"}, None),
    ],
)
def test_a_server_that_is_open_to_the_network_says_what_that_means(
    settings: dict[str, str], said: str | None
) -> None:
    risk = server_command._risk(ServerSettings.model_validate(settings))  # pyright: ignore[reportPrivateUsage]
    assert (risk is None) if said is None else (risk is not None and said in risk)


def test_it_warns_when_it_starts(tmp_path: Path) -> None:
    with Shell(tmp_path).start("server", "-p", "0", "--memory", "-L", "0.0.0.0") as server:
        assert "anyone who reaches this port" in server.until("warning")


def test_a_choice_that_there_is_not_is_told_without_the_name_of_an_exception() -> None:
    ended = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["server", "--sync", "sometimes"])
    assert ended.exit_code == 2
    assert "'sometimes' is not one of" in ended.stderr
    assert "Value error" not in ended.stderr


def test_it_ends_while_clients_are_connected_and_jobs_wait(tmp_path: Path) -> None:
    with (
        Shell(tmp_path).start("server", "--memory", GEARFLOW_PORT="0") as server,
        SyncClient([address_of(server)]) as client,
    ):
        client.submit("nobody.serves.this", b"")
        server.signal(signal.SIGTERM)
        assert server.end()[0] == 0


def test_hup_does_not_end_a_server_without_tls(tmp_path: Path) -> None:
    with Shell(tmp_path).start("server", "-p", "0", "--memory") as server:
        address = address_of(server)
        for _ in range(2):
            server.signal(signal.SIGHUP)
            server.until("HUP has no effect")
        assert SyncAdmin(address).pid() == server.process.pid
        server.signal(signal.SIGTERM)
        assert server.end() == (0, "")


_HANGS_UP = """
import os, signal, sys
from gearflow_cli.app import main
from gearflow_cli.commands import server

server.recover_folder = lambda folder: os.kill(os.getpid(), signal.SIGHUP)
sys.argv = ["gearflow", "server", "-p", "0", "--data", "jobs", "--recover"]
main()
"""
"""A server that gets HUP while it recovers its file."""


def test_hup_does_not_end_a_server_that_recovers_its_file(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HANGS_UP], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            server = Running(process)
            address_of(server)
            server.signal(signal.SIGTERM)
            assert server.end() == (0, "")
        finally:
            process.kill()


def test_bytes_that_are_not_gearman_are_logged_in_a_line(tmp_path: Path) -> None:
    with Shell(tmp_path).start("server", "-p", "0", "--memory") as server:
        host, _, port = address_of(server).rpartition(":")
        with socket.create_connection((host, int(port)), timeout=20) as stranger:
            stranger.sendall(b"\0XXX" + bytes(8))
            assert stranger.recv(1) == b""
        assert "127.0.0.1" in server.until("does not speak Gearman")


def test_a_body_for_which_there_is_no_memory_is_refused_and_logged(tmp_path: Path) -> None:
    with Shell(tmp_path).start("server", "-p", "0", "--memory") as server:
        port = int(address_of(server).rpartition(":")[2])
        with Wire(port) as neighbour, Wire(port) as greedy:
            neighbour.sync()
            status = Path(f"/proc/{server.process.pid}/status").read_text()
            used = int(status.partition("VmSize:")[2].split()[0]) << 10
            resource.prlimit(server.process.pid, resource.RLIMIT_AS, (used + (256 << 20), -1))
            greedy.send(HEADER.pack(REQ, p.SubmitJob.type, 1 << 30) + b"add\0\0" + bytes(100))
            assert greedy.receive() is None
            assert "Cannot allocate memory" in server.until("no memory for a body of 1073741824 bytes")
            neighbour.sync()


def test_a_taken_port_is_78_and_the_remedy_is_told(shell: Shell, bundled: str) -> None:
    port = bundled.rpartition(":")[2]
    ended = shell.run("server", "-p", port, "--memory")
    assert ended.returncode == 78
    assert f"port {port} of 127.0.0.1" in ended.stderr.decode()
    assert "choose a port with -p" in ended.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["-p", "65536"], 2, "65535"),
        (["--max-body", "0"], 2, "--max-body"),
        (["--max-body", "lots"], 2, "Write 65536, 64K, 512M or 1G"),
        (["-p", "0"], 2, "name one with --data DIR, or add --memory"),
        (["--memory", "--data", "jobs"], 2, "--data is about jobs in a file, and --memory has none"),
        (["--memory", "--sync", "always"], 2, "--sync is about jobs in a file"),
        (["--memory", "--recover"], 2, "--recover is about jobs in a file"),
        (["--sync", "sometimes"], 2, "always"),
        (["--memory", "--max-deaths", "-1"], 2, "--max-deaths"),
        (["bakcup"], 2, "No such command"),
        (["-p", "0", "--memory", "-L", "192.0.2.1"], 78, "choose another with -L"),
    ],
)
@pytest.mark.usefixtures("loggers_as_before")
def test_what_it_cannot_do_is_told(arguments: list[str], code: int, said: str) -> None:
    ended = CliRunner().invoke(app, ["server", *arguments])
    assert ended.exit_code == code
    assert said in ended.stderr


def test_dev_runs_a_server_and_a_worker_until_interrupted(shell: Shell, module: str) -> None:
    with shell.start("dev", module, "-p", "0") as dev:
        address = address_of(dev)
        dev.until("registered")
        ended = shell.run("submit", "add", "a=1", "-s", address)
        assert (ended.returncode, ended.stdout) == (0, b"3\n")
        dev.signal(signal.SIGINT)
        code, stderr = dev.end()
        assert code == 0
        assert "Traceback" not in stderr


def test_dev_takes_the_server_that_is_there(own: Shell, module: str) -> None:
    address = own.environment["GEARMAN_SERVERS"]
    with own.start("dev", module, "-p", address.rpartition(":")[2]) as dev:
        assert "using that one" in dev.until(f"listens on {address} already")
        dev.until("registered")
        assert own.run("submit", "add", "a=1").stdout == b"3\n"
        dev.signal(signal.SIGTERM)
        assert dev.end()[0] == 0
    assert SyncAdmin(address).status()  # it lives on


def test_dev_does_not_mistake_another_program_for_a_server(shell: Shell, module: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        ended = shell.run("dev", module, "-p", str(port))
    assert ended.returncode == 78
    assert f"port {port} of 127.0.0.1: it is taken" in ended.stderr.decode()


def test_a_server_waits_for_its_database_and_ends_so_that_it_is_started_again(tmp_path: Path) -> None:
    there = f"host={tmp_path} dbname=gearflow"  # no socket is there
    command = ("server", "-p", "0", "--postgres", there, "--store-timeout", "1s")
    with Shell(tmp_path).start(*command) as server:
        code, said = server.end()
    assert code == 69
    assert said.count("waiting for the database") == 1
    assert "gearflow: PostgreSQL cannot be reached" in said
