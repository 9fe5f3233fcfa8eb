"""The pictures of commands in the docs are what these commands print about a shop with some trouble.

    WRITE_SCREENS=1 python -m pytest tests/cli/test_pictures.py

writes them again. It is the shop of the dashboard's pictures.
"""

import re
import shlex
import socket
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest
from rich.text import Text
from typer.testing import CliRunner

from gearflow.client import SubmitOptions, SyncClient
from gearflow.client.operate import pause
from gearflow.metrics.exporter import ServerCaps, ServerSample, server_families
from gearflow.metrics.http import MetricsPort, State
from gearflow.server import JobServer
from gearflow_cli import output
from gearflow_cli.app import app
from gearflow_cli.errors import ExitCode
from tests import drawing
from tests.cli.shell import Shell, outcome
from tests.web.shop import open_shop, order

CHARGE: Final = "billing.charge"
COLUMNS: Final = 108
PATIENCE: Final = 20.0  # seconds


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobServer]:
    """A server with a function that failed and is paused, one without a worker, and a worker that is busy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "shop")
        data = tmp_path_factory.mktemp("shop")
        with JobServer(port=0, data=data) as server, open_shop(server.address) as shop:
            shop.end(shop.submit("report.build", number=1))
            shop.is_broken = True
            for customer in (4711, 4712):
                shop.end(shop.submit(CHARGE, customer=customer, card="4111"))
            shop.client.run(lambda client: pause(client, CHARGE))
            shop.client.submit_many([order(CHARGE, customer=each, card="4222") for each in (4713, 4714)])
            shop.client.submit_background("mail.send", b'{"customer": 4711}')
            shop.client.submit_background("report.build", b'{"number": 2}', options=SubmitOptions(delay=3600))
            encoding = shop.submit("video.encode", name="holiday.mp4", frames=900)
            until = time.monotonic() + PATIENCE
            while not shop.client.info(encoding).message:
                assert time.monotonic() < until, "it does not run"
                time.sleep(0.01)
            yield server


def shown(*arguments: str, code: int = 0, **variables: str) -> str:
    """A prompt with a command, and what it prints on a terminal."""
    ended = CliRunner().invoke(
        app, list(arguments), env={**variables, "COLUMNS": str(COLUMNS), "FORCE_COLOR": "1"}
    )
    assert ended.exit_code == code, ended.output
    return prompt("gearflow", *arguments) + ended.output


def prompt(*words: str) -> str:
    """A line with a command."""
    return f"\x1b[1m$ {shlex.join(words)}\x1b[0m\n"


def compare(name: str, *parts: str, fixed: Mapping[str, str] | None = None) -> None:
    """Compare what a terminal shows with the picture of that name."""
    text = "\n".join(parts)
    for pattern, replacement in (
        *(fixed or {}).items(),
        (r"127\.0\.0\.1:\d{5}", "127.0.0.1:4730"),
        (r"(?<=sha256:)[0-9a-f]{64}", "9f86d081884c7d65…"),
        (r"(?<=H:shop-)[0-9a-f]{8}:", "5f3a91c2:"),
        (r"(?m)^\w{4}(?=-\d+ )", "k3f0"),
        (r"gearflow-[\d.]+\w*", "gearflow-0.1.0"),
        (
            r"[\d.]+ \wiB of disk left, round trip [^,]+, clock \S+",
            "68 GiB of disk left, round trip < 1 ms, clock +0.001",
        ),
    ):
        text = re.sub(pattern, replacement, text)
    lines = Text.from_ansi(text).split("\n")
    drawing.compare(name, drawing.terminal(list(lines), COLUMNS, "gearflow", unique=name))


@pytest.fixture(autouse=True)
def on_a_terminal(monkeypatch: pytest.MonkeyPatch, server: JobServer, loggers_as_before: None) -> None:
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    monkeypatch.setenv("GEARMAN_SERVERS", server.address)
    monkeypatch.setenv("FORCE_COLOR", "1")


@pytest.mark.usefixtures("healthy")
def test_the_pictures_show_what_commands_print(
    server: JobServer, free_ports: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, because some of the commands change what the next ones show."""
    compare("shell-workers", shown("workers"), shown("workers", "--quiet", "shop-1"), shown("workers"))
    shown("workers", "--resume", "shop-1")
    show_metrics(server)
    away = f"127.0.0.1:{free_ports[0]}"
    examined = shown("doctor", "-s", server.address, "-s", away, code=2)
    compare("shell-doctor", examined, fixed={server.address: "jobs-1:4730", away: "jobs-2:4730"})
    listed = shown("jobs")
    replayed = shown("jobs", "--state", "dead", "--error", "KeyError", "--replay", "--yes")
    compare("shell-jobs", listed, replayed)
    monkeypatch.chdir(tmp_path)
    show_tokens()


def show_metrics(server: JobServer) -> None:
    """What ``curl`` prints of ``gearflow server --metrics``."""
    caps, fine = ServerCaps(), State(True, "ready")
    with (
        MetricsPort(
            "127.0.0.1",
            0,
            metrics=lambda: server_families(ServerSample(server.metrics(), "gearflow-0.1.0"), caps),
            healthy=lambda: fine,
            ready=lambda: fine,
        ) as port,
        urllib.request.urlopen(f"http://{port.address}/metrics", timeout=PATIENCE) as answer,
    ):
        metrics = answer.read().decode()
    lines = re.findall(rf"^gearflow_(?:jobs|oldest|workers|slots).*{CHARGE}.*\n", metrics, re.MULTILINE)
    command = f"curl -s 127.0.0.1:9730/metrics | grep -E '^gearflow_(jobs|oldest|workers|slots).*{CHARGE}'"
    compare("shell-metrics", f"\x1b[1m$ {command}\x1b[0m\n{''.join(lines)}")


def show_tokens() -> None:
    """Tokens are made, and one of them is used for more than it allows."""
    made = [
        shown("token", "submit", "--name", "web shop", "--add", "tokens", "--save", "shop.token"),
        shown("token", "operate", "--name", "on call", "--add", "tokens", "--save", "operator.token"),
    ]
    token = Path("shop.token").read_text().strip()
    with JobServer(port=0, token_file=Path("tokens")) as server:
        with SyncClient([server.address], token=token) as client:
            client.submit_background(CHARGE, b"{}")
        shell = Shell(Path.cwd(), {"GEARMAN_SERVERS": server.address})  # a token is one of the whole process
        code, _, refused = outcome(shell.run("pause", CHARGE, "--token-file", "shop.token"))
    assert code == ExitCode.NO_SERVER
    compare(
        "shell-tokens",
        *made,
        f"{prompt('cat', 'tokens')}{Path('tokens').read_text()}",
        f"{prompt('gearflow', 'pause', CHARGE, '--token-file', 'shop.token')}{refused}",
    )
