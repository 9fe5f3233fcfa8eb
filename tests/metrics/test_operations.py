"""The files in ``docs/operations``: Prometheus reads them, and they are about metrics that there are."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gearflow.metrics.exporter import (
    ServerSample,
    process_families,
    state_families,
    worker_families,
)
from gearflow.metrics.families import LabelCap
from gearflow.metrics.fleet_exporter import FleetExporter
from gearflow.metrics.worker_counts import RunCounts, WorkerSample
from tests.conftest import ROOT
from tests.metrics.figures import BUSY, exported, text_of

FOLDER = ROOT / "docs" / "operations"
PAGE = ROOT / "docs" / "reference" / "metrics.md"
HOW_TO = ROOT / "docs" / "how-to" / "metrics.md"
ON_CALL = ROOT / "docs" / "how-to" / "first-hour-on-call.md"


_SUFFIX = re.compile(r"_(bucket|sum|count)$")
_SERIES = re.compile(r"\b((?:gearflow|process)_\w+)")


def families() -> dict[str, str]:
    """The names of all metrics, with the suffix of a counter, and their types."""
    runs = RunCounts()
    runs.ended("f", "succeeded", 0.1)
    worker = WorkerSample(runs.functions((), ()))
    text = exported(ServerSample(BUSY)) + text_of(state_families(is_ready=True, loaded=1.0))
    text += text_of(worker_families(worker, LabelCap())) + text_of(process_families())
    text += text_of(FleetExporter().families({}))
    return dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))


def run(program: str, *arguments: str | Path) -> None:
    done = subprocess.run([program, *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "grafana-dashboard.json").read_text())
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """Each expression of the dashboard, with the title of its panel."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for annotation in dashboard()["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


def test_the_configuration_and_the_alert_rules_are_valid(program: Callable[[str], str]) -> None:
    run(program("promtool"), "check", "config", "prometheus.yml")
    run(program("promtool"), "check", "rules", "--lint-fatal", "alerts.yml")


def test_each_alert_fires_when_it_should_and_not_before(program: Callable[[str], str]) -> None:
    run(program("promtool"), "test", "rules", "alerts.test.yml")
    alerts = re.findall(r"- alert: (\w+)", (FOLDER / "alerts.yml").read_text())
    examples = (FOLDER / "alerts.test.yml").read_text()
    assert len(alerts) == len(set(alerts)) > 10
    for alert in alerts:
        assert f"alertname: {alert} }}" in examples, f"{alert} is not shown to keep silent"
        assert f"alertname: {alert}\n        exp_alerts:" in examples, f"{alert} is not shown to fire"


def test_the_page_for_people_on_call_has_every_alert() -> None:
    alerts = re.findall(r"- alert: (\w+)", (FOLDER / "alerts.yml").read_text())
    listed = [
        name
        for row in re.findall(r"^\| (`Gearflow.+?) \|", ON_CALL.read_text(), re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    ]
    assert sorted(listed) == sorted(alerts)


def test_prometheus_understands_each_expression(program: Callable[[str], str], tmp_path: Path) -> None:
    queries = re.findall(r"query: (.*)", (FOLDER / "keda.yaml").read_text())
    assert len(queries) == 2
    (examples,) = re.findall(r"```text promql\n(.*?)```", HOW_TO.read_text(), re.DOTALL)
    found = [*queries, *examples.strip().split("\n\n"), *(expression for _, expression in expressions())]
    rules = [
        {"record": f"example:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(found)
    ]
    file = tmp_path / "rules.json"  # which is YAML, too
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    run(program("promtool"), "check", "rules", file)


@pytest.mark.parametrize(
    "file", ["alerts.yml", "alerts.test.yml", "keda.yaml", "grafana-dashboard.json", "../how-to/metrics.md"]
)
def test_the_files_are_about_metrics_that_there_are(file: str) -> None:
    known = families()
    used = set(_SERIES.findall((FOLDER / file).read_text()))
    assert used
    assert {name for name in used if name not in known and _SUFFIX.sub("", name) not in known} == set()


def test_counters_are_shown_as_rates_and_gauges_are_not() -> None:
    kinds = families()
    for title, expression in expressions():
        for rated, name in re.findall(
            r"((?:rate|increase|changes)\()?((?:gearflow|process)_\w+)", expression
        ):
            kind = kinds.get(name) or kinds[_SUFFIX.sub("", name)]
            is_start = name == "gearflow_server_start_time_seconds"
            assert bool(rated) == (kind in ("counter", "histogram")) or is_start, (title, expression)


def test_the_dashboard_has_a_place_for_each_panel() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not mine & places, panel["title"]
        assert max(x for x, _ in mine) < 24
        places |= mine


def test_the_page_has_each_metric_and_no_other() -> None:
    documented = {name for name in _SERIES.findall(PAGE.read_text()) if name.startswith("gearflow_")}
    assert documented == {name for name in families() if name.startswith("gearflow_")}
