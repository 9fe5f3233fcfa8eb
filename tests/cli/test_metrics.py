"""``--metrics``: what Prometheus and probes get from real processes."""

import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from gearflow.client import SyncClient
from gearflow.client.job import JobFailed
from gearflow.server import JobServer
from gearflow_cli.options import HttpAddress, http_address
from tests.cli.shell import Running, Shell, outcome
from tests.metrics.figures import series, value
from tests.server.filled import filled

PATIENCE = 20.0  # seconds

TASKS = """
import os
from gearflow import task


@task
def fine() -> int:
    return os.getpid()


@task
def fails() -> None:
    raise ValueError


@task(executor="process")
def apart() -> int:
    return os.getpid()


@task
def dies() -> None:
    os._exit(9)
"""


def get(base: str, path: str) -> tuple[int, str]:
    """The status and the body of a page."""
    try:
        with urllib.request.urlopen(f"{base}{path}", timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def port_of(running: Running) -> str:
    """The URL of the port that a command names."""
    found = re.search(r"http://[^/]+", running.until("metrics are at"))
    assert found is not None
    return found[0]


def until(base: str, path: str, fits: Callable[[int, str], bool]) -> str:
    """Ask for a page until it fits: what another process counts arrives some time later."""
    deadline = time.monotonic() + PATIENCE
    while True:
        status, text = get(base, path)
        if fits(status, text):
            return text
        assert time.monotonic() < deadline, (status, text)
        time.sleep(0.02)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "metered.py").write_text(TASKS)
    return tmp_path


def test_a_worker_shows_its_runs_and_whether_it_is_ready(shop: Path) -> None:
    with JobServer(port=0) as server, SyncClient([server.address]) as client:
        shell = Shell(shop, {"GEARMAN_SERVERS": server.address, "GEARFLOW_METRICS": "127.0.0.1:0"})
        with shell.start("worker", "metered") as worker:
            base = port_of(worker)
            worker.drain()
            until(base, "/readyz", lambda status, _: status == 200)
            assert get(base, "/readyz") == (200, "1 of 1 servers are connected\n")
            assert get(base, "/healthz") == (200, "alive\n")
            for _ in range(3):
                client.submit("metered.fine", b"{}").result(PATIENCE)
            client.submit("metered.apart", b"{}").result(PATIENCE)
            with pytest.raises(JobFailed):
                client.submit("metered.fails", b"{}").result(PATIENCE)
            until_counted(base, 3, "fine")
            until_counted(base, 1, "apart")
            until_counted(base, 1, "fails", "failed")
            worker.signal(signal.SIGTSTP)
            assert until(base, "/readyz", lambda status, _: status == 503) == "quiet\n"
            worker.signal(signal.SIGCONT)
            until(base, "/readyz", lambda status, _: status == 200)
            worker.signal(signal.SIGTERM)
            assert worker.process.wait(PATIENCE) == 0


def test_a_supervisor_sums_over_its_processes_also_those_that_died(shop: Path) -> None:
    with JobServer(port=0, max_deaths=1) as server, SyncClient([server.address]) as client:
        shell = Shell(shop, {"GEARMAN_SERVERS": server.address})
        with shell.start("worker", "metered", "--processes", "2", "--metrics", "127.0.0.1:0") as worker:
            base = port_of(worker)
            worker.drain()
            until(base, "/readyz", lambda _, text: text == "2 of 2 processes serve\n")
            assert get(base, "/healthz") == (200, "alive\n")
            used: set[bytes] = set()
            count = 0
            while len(used) < 2:
                used.add(client.submit("metered.fine", b"{}").result(PATIENCE))
                count += 1
            until_counted(base, count, "fine")
            with pytest.raises(JobFailed):
                client.submit("metered.dies", b"{}").result(PATIENCE)
            lost = until(base, "/metrics", lambda _, text: "processes_lost_total 1.0" in text)
            assert value(lost, "gearflow_worker_processes_wanted") == 2
            until(base, "/readyz", lambda _, text: text == "2 of 2 processes serve\n")
            until_counted(base, count, "fine")
            page = until(base, "/metrics", lambda _, text: "gearflow_worker_concurrency 20.0" in text)
            labels = {name for _, labels in series(page) for name, _ in labels}
            assert labels == {"function", "ended", "le"}
            worker.signal(signal.SIGTERM)
            assert worker.process.wait(PATIENCE) == 0


def until_counted(base: str, expected: float, function: str, how: str = "succeeded") -> str:
    """Ask until the metrics have so many runs. They never have more."""
    key = "gearflow_worker_runs_total", frozenset({("function", f"metered.{function}"), ("ended", how)})

    def fits(_: int, text: str) -> bool:
        found = series(text).get(key, 0)
        assert found <= expected
        return found == expected

    return until(base, "/metrics", fits)


ADDRESSES = ("9730", ":9730", "127.0.0.1", "127.0.0.1:99999", "127.0.0.1:x", "::1:9730", "http://x:1", "")


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_is_none_is_refused_with_an_example(address: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"Write 127\.0\.0\.1:9730"):
        http_address(address)


def test_addresses_have_a_host_and_a_port(shop: Path) -> None:
    assert http_address("127.0.0.1:0") == HttpAddress("127.0.0.1", 0)
    assert http_address("[::1]:9730") == HttpAddress("::1", 9730)
    assert http_address("localhost:65535") == HttpAddress("localhost", 65535)
    code, _, stderr = outcome(Shell(shop).run("worker", "metered", "--metrics", "9730"))
    assert code == 2
    assert "Write 127.0.0.1:9730" in stderr


def test_a_port_that_is_taken_is_named(shop: Path) -> None:
    with JobServer(port=0) as server:
        port = server.port
        code, _, stderr = outcome(
            Shell(shop, {"GEARMAN_SERVERS": server.address}).run(
                "worker", "metered", "--metrics", server.address
            )
        )
    assert code == 78
    assert f"port {port} of 127.0.0.1: it is taken; choose another with --metrics" in stderr


def test_a_server_shows_its_counts_and_that_it_is_ready(tmp_path: Path) -> None:
    shell = Shell(tmp_path, {"GEARFLOW_SERVER_METRICS": "127.0.0.1:0"})
    with shell.start("server", "-p", "0", "--data", "jobs", "--log-level", "info") as server:
        base = port_of(server)
        address = address_of(server)
        server.drain()
        until(base, "/readyz", lambda status, _: status == 200)
        assert get(base, "/readyz") == (200, "ready\n")
        assert get(base, "/healthz") == (200, "alive\n")
        with SyncClient([address]) as client:
            for _ in range(3):
                client.submit_background("resize", b"{}")
        page = get(base, "/metrics")[1]
        assert value(page, "gearflow_jobs", function="resize", priority="normal", state="waiting") == 3
        assert value(page, "gearflow_jobs_submitted_total", function="resize") == 3
        assert value(page, "gearflow_server_ready") == 1
        assert value(page, "gearflow_server_loaded_ratio") == 1
        assert value(page, "gearflow_store_commit_seconds_count") > 0
        assert value(page, "gearflow_store_free_bytes") > 0
        assert value(page, "process_resident_memory_bytes") > 1e6
        server.signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0


def test_a_server_that_reads_a_large_file_says_how_far_it_is(tmp_path: Path) -> None:
    filled(tmp_path, 40_000)
    with Shell(tmp_path).start(
        *("server", "-p", "0", "--data", str(tmp_path), "--metrics", "127.0.0.1:0")
    ) as server:
        base = port_of(server)
        server.drain()
        texts: list[str] = []
        healthy: set[int] = set()
        ratios: list[float] = []

        def fits(status: int, text: str) -> bool:
            texts.append(text)
            healthy.add(get(base, "/healthz")[0])
            ratios.append(value(get(base, "/metrics")[1], "gearflow_server_loaded_ratio"))
            return status == 200

        until(base, "/readyz", fits)
        loading = [int(found[1]) for text in texts if (found := re.fullmatch(r"loading, (\d+) %\n", text))]
        assert len(set(loading)) > 2
        assert loading == sorted(loading)
        assert any(10 < share < 100 for share in loading)
        assert healthy == {200}
        assert ratios == sorted(ratios)
        assert ratios[-1] == 1
        assert value(get(base, "/metrics")[1], "gearflow_jobs_restored_total", function="work") == 40_000


def address_of(running: Running) -> str:
    found = re.search(r"listens on ([\w.]+:\d+)", running.until("listens on"))
    assert found is not None
    return found[1]


@pytest.mark.parametrize(
    "command", ["server --memory -p 0", "worker metered", "worker metered --processes 2"]
)
def test_without_prometheus_client_the_error_has_the_remedy(shop: Path, command: str) -> None:
    words = [*command.split(), "--metrics", "127.0.0.1:0"]
    program = (
        "import sys; sys.modules['prometheus_client'] = None; from gearflow_cli.app import main; "
        f"sys.argv[1:] = {words}; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=shop, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 78, done.stderr
    assert "pip install 'gearflow[metrics]'" in done.stderr
