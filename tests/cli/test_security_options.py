"""TLS and the token from the shell: a server that wants both, and every command that talks to it."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gearflow.client import TLS, SyncAdmin
from gearflow_cli.app import app
from tests.authority import Authority
from tests.cli.conftest import TASKS
from tests.cli.shell import Shell, outcome

TOKEN = "open sesame"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Path:
    """A folder with tasks, a token and the files of TLS."""
    folder = tmp_path_factory.mktemp("secured")
    (folder / "secured_tasks.py").write_text(TASKS)
    (folder / "token").write_text(f"{TOKEN}\n")
    (folder / "other").write_text("abracadabra\n")
    (folder / "ca.pem").write_bytes(authority.ca.read_bytes())
    (folder / "me.pem").write_bytes(authority.client.read_bytes())
    return folder


@pytest.fixture(scope="module")
def known(place: Path) -> list[str]:
    """The options with which the server is reached."""
    return ["--tls-ca", "ca.pem", "--tls-cert", "me.pem", "--token-file", "token"]


@pytest.fixture(scope="module")
def shell(place: Path, authority: Authority) -> Iterator[Shell]:
    """A shell in the folder, where a server that wants everything is the one by default."""
    options = ["--tls-cert", str(authority.server), "--tls-ca", "ca.pem", "--token-file", "token"]
    with Shell(place).start("server", "--memory", "-p", "0", *options) as server:
        line = server.until("listens on")
        found = re.search(r"listens on (\S+) and wants TLS, a certificate, the token; jobs live", line)
        assert found is not None, line
        server.drain()
        yield Shell(place, {"GEARMAN_SERVERS": found[1]})


@pytest.fixture
def here(shell: Shell, monkeypatch: pytest.MonkeyPatch, loggers_as_before: None) -> CliRunner:
    """Commands in this process, in the shell's folder and environment; what they set there is gone again."""
    monkeypatch.chdir(shell.directory)
    monkeypatch.setattr(os, "environ", os.environ | shell.environment)
    return CliRunner()


def test_a_worker_serves_and_a_call_is_answered(shell: Shell, known: list[str]) -> None:
    with shell.start("worker", "secured_tasks", *known) as worker:
        worker.until("registered")
        call = ["submit", "-m", "secured_tasks", "double", "a=2"]
        assert outcome(shell.run(*call, *known)) == (0, "4\n", "")
        told = shell.run(*call, GEARFLOW_TLS_CA="ca.pem", GEARFLOW_TLS_CERT="me.pem", GEARFLOW_TOKEN=TOKEN)
        assert outcome(told) == (0, "4\n", "")
        worker.signal(signal.SIGTERM)
        assert worker.end()[0] == 0


@pytest.mark.parametrize(
    "command",
    [["status", "--json"], ["dead", "list"], ["worker", "--check"], ["submit", "--bg", "any.task", "a=1"]],
)
def test_every_command_takes_the_options_and_tells_where_they_are_missing(
    shell: Shell, known: list[str], command: list[str]
) -> None:
    given = shell.run(*command, *known)
    assert given.returncode == 0, given.stderr
    code, stdout, stderr = outcome(shell.run(*command))
    assert code == 69
    assert "it speaks TLS only; see tls= in Python, --tls and --tls-ca in the shell" in stdout + stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            "--tls-ca ca.pem",
            "it requires a certificate from us; give one with cert and key (--tls-cert",
        ),
        ("--tls-ca ca.pem --tls-cert me.pem", "it serves only who knows its token; see token= in Python, "),
        ("--tls-ca ca.pem --tls-cert me.pem --token-file other", "it does not accept our token"),
        ("--tls-ca ca.pem --no-tls", "it speaks TLS only"),
    ],
)
def test_what_is_missing_is_told(here: CliRunner, options: str, told: str) -> None:
    ended = here.invoke(app, ["status", *options.split()])
    assert ended.exit_code == 69
    assert told in ended.stderr
    assert "abracadabra" not in ended.output


def test_the_command_line_goes_before_the_environment(here: CliRunner, known: list[str]) -> None:
    os.environ |= {"GEARFLOW_TOKEN": "abracadabra", "GEARFLOW_TLS_CA": "none.pem"}
    assert here.invoke(app, ["status", *known]).exit_code == 0


def test_no_tls_in_the_environment_is_undone_by_an_option(here: CliRunner, known: list[str]) -> None:
    os.environ["GEARFLOW_TLS"] = "0"
    assert here.invoke(app, ["status", *known]).exit_code == 69
    assert here.invoke(app, ["status", *known, "--tls"]).exit_code == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--tls-ca", "none.pem"], "none.pem, the file of a certificate, cannot be read: no such file"),
        (["--tls-ca", "token"], "there is no certificate in token; is it a PEM file, and the right one?"),
        (["--tls-key", "me.pem"], "the key me.pem has no certificate beside it: give cert, too"),
        (["--token-file", "none"], "the token in none cannot be read: no such file or directory"),
    ],
)
def test_what_cannot_be_used_is_78_and_told(here: CliRunner, options: list[str], told: str) -> None:
    for command in (["status"], ["worker", "secured_tasks"]):
        ended = here.invoke(app, [*command, *options])
        assert (ended.exit_code, told in ended.stderr) == (78, True), ended.stderr


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--tls-cert", "none.pem"], 78, "none.pem, the file of a certificate, cannot be read: no such file"),
        (["--tls-cert", "ca.pem"], 78, "there is no private key in ca.pem"),
        (
            ["--tls-cert", "ca.pem", "--tls-key", "me.pem"],
            78,
            "me.pem is not that of the certificate in ca.pem",
        ),
        (["--tls-cert", "me.pem", "--tls-ca", "token"], 78, "there is no certificate in token"),
        (["--tls-key", "me.pem"], 2, "give tls-cert"),
        (["--token-file", "none"], 78, "the tokens in none cannot be read"),
        (["--token-file", "/dev/null"], 78, "there is no token in /dev/null"),
    ],
)
def test_what_a_server_cannot_use_is_told(here: CliRunner, options: list[str], code: int, told: str) -> None:
    ended = here.invoke(app, ["server", "-p", "0", "--memory", *options])
    assert (ended.exit_code, told in ended.stderr) == (code, True), ended.stderr


def test_hup_reads_the_files_again(tmp_path: Path, authority: Authority) -> None:
    own, newer = tmp_path / "own.pem", Authority(tmp_path)
    own.write_bytes(authority.server.read_bytes())
    options = ["--tls-cert", "own.pem", "--log-level", "info"]
    with Shell(tmp_path).start("server", "--memory", "-p", "0", *options) as server:
        found = re.search(r"listens on (\S+) and wants TLS; ", server.until("wants TLS"))
        assert found is not None
        assert SyncAdmin(found[1], tls=TLS(ca=authority.ca)).pid() == server.process.pid
        own.write_text("")
        server.signal(signal.SIGHUP)
        assert "there is no certificate in own.pem" in server.until("cannot reload the TLS files")
        assert SyncAdmin(found[1], tls=TLS(ca=authority.ca)).pid() == server.process.pid
        own.write_bytes(newer.server.read_bytes())
        server.signal(signal.SIGHUP)
        server.until("reloaded the TLS files")
        assert SyncAdmin(found[1], tls=TLS(ca=newer.ca)).pid() == server.process.pid
        server.signal(signal.SIGTERM)
        assert server.end()[0] == 0


def test_a_server_does_not_take_the_clients_variables_for_its_own(
    tmp_path: Path, authority: Authority
) -> None:
    with Shell(tmp_path).start(
        "server", "--memory", "-p", "0", GEARFLOW_TLS_CA=str(authority.ca), GEARFLOW_TOKEN=TOKEN
    ) as server:
        assert "and wants the token; jobs live" in server.until("listens on")


def test_dev_speaks_to_its_own_server_whatever_others_want(place: Path, authority: Authority) -> None:
    environment = {"GEARFLOW_TLS_CA": str(authority.ca), "GEARFLOW_TOKEN": TOKEN}
    with Shell(place).start("dev", "secured_tasks", "-p", "0", "--no-reload", **environment) as dev:
        dev.until("registered with a server")
