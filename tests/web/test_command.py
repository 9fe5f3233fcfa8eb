"""``gearflow web``: where it listens, whom it lets in, how it ends."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from gearflow.server import JobServer
from gearflow_cli.app import app

TOKEN = "0123456789abcdef" * 2

pytestmark = pytest.mark.usefixtures("loggers_as_before")


@contextmanager
def running(
    *arguments: str, environment: dict[str, str] | None = None
) -> Generator[tuple[subprocess.Popen[str], str]]:
    """The program and its URL, for the time of the block. It ends without an error."""
    command = [sys.executable, "-m", "gearflow_cli", "web", *arguments]
    variables = {**os.environ, **(environment or {})}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=variables) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            match = re.search(r"the dashboard is at (http://\S+)/", line)
            assert match, line + process.stderr.read()
            yield process, match[1]
        finally:
            process.terminate()
        assert process.wait(timeout=20) == 0


def get(url: str, token: str = "") -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.get(url, headers=headers, verify=False, trust_env=False, timeout=20)


def refused(*arguments: str) -> str:
    """The message of a program that does not start because of its options. It runs in this process."""
    done = CliRunner().invoke(app, ["web", *arguments])
    assert done.exit_code in (2, 78), done.stderr
    return re.sub(r"\s*\n[\s│]*|\s+│\n│\s+", " ", done.stderr)


def test_it_stops_in_good_order_while_somebody_waits_for_a_server_that_hangs() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with running("-s", address, "--listen", "127.0.0.1:0") as (process, url):
            stream = httpx.stream("GET", f"{url}/events?page=/", verify=False, trust_env=False, timeout=20)
            with stream, silent.accept()[0]:  # the dashboard asks
                process.terminate()
                assert process.stderr is not None
                assert "ERROR" not in process.stderr.read()


def test_it_stops_in_good_order_while_somebody_looks(server: JobServer) -> None:
    with running("-s", server.address, "--listen", "127.0.0.1:0") as (process, url):
        stream = httpx.stream("GET", f"{url}/events?page=/servers", verify=False, trust_env=False, timeout=20)
        with stream as events:
            lines = events.iter_lines()
            assert next(lines) == "event: parts"
            process.terminate()
            assert list(lines)  # the stream ends, and is not cut off
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_it_shows_the_servers_on_loopback_and_serves_metrics(server: JobServer) -> None:
    with running("-s", server.address, "--listen", "127.0.0.1:0") as (_, url):
        assert server.address in get(f"{url}/servers").text
        metrics = get(f"{url}/metrics")
        assert metrics.headers["content-type"].startswith("text/plain")
        assert 'gearflow_servers{state="up"} 1.0' in metrics.text
        assert "server" not in metrics.headers


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "10.255.255.1:0", "example.com:0"])
def test_it_refuses_to_be_open_to_other_machines(address: str) -> None:
    message = refused("--listen", address)
    assert "everybody there could read all jobs and act on the servers" in message
    assert "--access-token-file" in message
    assert "--trust-header" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--listen", "8730"], "is no address to listen on"),
        (["--trust-proxy", "10.0.0.1"], "are for --trust-header"),
        (["--trust-header", "X-User", "--trust-proxy", "proxy"], "does not appear to be an IPv4 or IPv6"),
        (["--trust-header", "X-User", "--access-token-file", "x"], "give either"),
        (["--access-token-file", "/nowhere"], "/nowhere"),
        (["--prefix", "queue"], "is no prefix"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments: list[str], message: str) -> None:
    assert message in refused(*arguments)


def test_a_file_without_a_token_for_people_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"submit:{TOKEN}\n")
    assert "no token has the right to view or to operate" in refused("--access-token-file", str(file))


def test_tokens_are_read_again_at_hup(server: JobServer, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"view:{TOKEN}\n")
    arguments = ("-s", server.address, "--listen", "0.0.0.0:0", "--access-token-file", str(file))
    with running(*arguments) as (process, url):
        url = url.replace("0.0.0.0", "127.0.0.1")
        assert get(url).status_code == 401
        assert get(url, TOKEN).status_code == 200
        assert process.stderr is not None
        assert "unencrypted" in process.stderr.readline()
        file.write_text("view:" + "f" * 32)
        process.send_signal(signal.SIGHUP)
        assert "the access tokens are those of" in process.stderr.readline()
        assert get(url, TOKEN).status_code == 401
        assert get(url, "f" * 32).status_code == 200
        file.write_text(f"submit:{TOKEN}\n")
        process.send_signal(signal.SIGHUP)
        assert "the access tokens stay as they are" in process.stderr.readline()
        assert get(url, "f" * 32).status_code == 200


def test_settings_may_be_variables_of_the_environment(server: JobServer) -> None:
    variables = {
        "GEARFLOW_WEB_LISTEN": "127.0.0.1:0",
        "GEARFLOW_WEB_HOST": "a.example,b.example",
        "GEARMAN_SERVERS": server.address,
    }
    with running(environment={**variables, "GEARFLOW_WEB_READ_ONLY": "1"}) as (_, url):
        answer = httpx.get(url, headers={"Host": "b.example"}, verify=False, trust_env=False, timeout=20)
        assert "You may look, not act" in answer.text


def test_a_port_that_is_taken_is_named(server: JobServer) -> None:
    reason = "it is taken; choose another with --listen"
    assert f"cannot listen on port {server.port} of 127.0.0.1: {reason}" in refused(
        "--listen", server.address
    )


def test_an_address_of_another_machine_is_named() -> None:
    reason = "this machine has no such address; choose another with --listen"
    assert reason in refused("--listen", "192.0.2.1:0", "--trust-header", "X-User")
