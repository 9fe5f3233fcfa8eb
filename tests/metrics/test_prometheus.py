"""A real Prometheus reads the metrics of a server, and evaluates the alert rules on them."""

import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from gearflow.metrics.exporter import ServerCaps, ServerSample, server_families, state_families
from gearflow.metrics.families import LabelCap
from gearflow.metrics.http import MetricsPort, State
from gearflow.protocol.metrics import FunctionMetrics, Metrics
from tests.conftest import ROOT
from tests.metrics.figures import BUSY
from tests.ports import free_port

PATIENCE = 20.0  # seconds

NAMES = ('a"b', "a\\b", "a\nb", "müll", "\udcff", *(f"f{number}" for number in range(30)))

STATE = State(True, "ready")


class Reader:
    """A Prometheus that runs."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}/api/v1"

    def ask(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self._base}{path}?{query}", timeout=PATIENCE) as answer:
            return json.loads(answer.read())["data"]

    def until(self, query: str) -> list[Any]:
        """The result of a query, once it has one."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                found: list[Any] = self.ask("/query", query=query)["result"]
            except OSError:  # it does not listen yet
                found = []
            if found:
                return found
            time.sleep(0.02)
        raise AssertionError(f"nothing is found by {query}")


@contextmanager
def served(sample: ServerSample) -> Generator[str]:
    caps = ServerCaps(functions=LabelCap(20))

    def families() -> Iterator[Any]:
        yield from server_families(sample, caps)
        yield from state_families(is_ready=True, loaded=1.0)

    with MetricsPort("127.0.0.1", 0, metrics=families, healthy=lambda: STATE, ready=lambda: STATE) as port:
        yield port.address


@pytest.fixture(scope="module")
def reader(program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    binary = program("prometheus")
    folder: Path = tmp_path_factory.mktemp("prometheus")
    strange = tuple(FunctionMetrics(function=name, submitted=1) for name in NAMES)
    with ExitStack() as stack:
        addresses = [
            stack.enter_context(served(ServerSample(metrics, "gearflow-1")))
            for metrics in (BUSY, Metrics(time=1, started=1, functions=strange))
        ]
        targets = [
            {"targets": [address], "labels": {"target": str(number)}}
            for number, address in enumerate(addresses)
        ]
        config = {
            "global": {"scrape_interval": "200ms", "evaluation_interval": "200ms"},
            "scrape_configs": [{"job_name": "gearflow", "static_configs": targets}],
            "rule_files": [str(ROOT / "docs" / "operations" / "alerts.yml")],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))  # which is YAML, too
        port = free_port()
        command = [
            binary,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
        ]
        process = stack.enter_context(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        stack.callback(process.kill)
        yield Reader(port)


def test_it_reads_all_metrics_of_a_server(reader: Reader) -> None:
    [finished] = reader.until('gearflow_jobs_finished_total{function="resize", outcome="dead", target="0"}')
    assert finished["value"][1] == "8"
    [wait] = reader.until(
        'histogram_quantile(0.99, sum by (le) (gearflow_job_wait_seconds_bucket{function="resize"}))'
    )
    assert 0.002 < float(wait["value"][1]) <= 0.004
    reader.until("count(up == 1) == 2")


def test_names_that_are_strange_or_many_lose_nothing(reader: Reader) -> None:
    [total] = reader.until('sum(gearflow_jobs_submitted_total{target="1"})')
    assert total["value"][1] == str(len(NAMES))
    assert len(reader.until('gearflow_workers{target="1"}')) == 21
    for target in reader.ask("/targets")["activeTargets"]:
        assert target["lastError"] == ""


def test_it_evaluates_the_alert_rules(reader: Reader) -> None:
    reader.until('up{target="1"}')
    deadline = time.monotonic() + PATIENCE
    while True:
        rules = [rule for group in reader.ask("/rules")["groups"] for rule in group["rules"]]
        assert len(rules) > 10
        if all(rule["health"] == "ok" for rule in rules):
            return
        assert time.monotonic() < deadline, [rule.get("lastError") for rule in rules]
        time.sleep(0.02)
