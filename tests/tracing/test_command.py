"""A trace over real processes: a caller, ``gearflow worker`` with an SDK, and a process that runs a task."""

import json
import signal
from pathlib import Path
from typing import Any

from gearflow.client import SyncClient
from tests.cli.shell import Shell
from tests.tracing.conftest import Spans

TASKS = """
import logging

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from gearflow import task

provider = TracerProvider()
lines = open("spans", "a")
exporter = ConsoleSpanExporter(out=lines, formatter=lambda span: span.to_json(indent=None) + "\\n")
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)


@task
def fetch(url: str) -> str:
    logging.getLogger("app").info("fetching")
    with trace.get_tracer("app").start_as_current_span("GET"):
        return url


@task(executor="process")
def crunch(text: str) -> str:
    logging.getLogger("app").info("crunching")
    with trace.get_tracer("app").start_as_current_span("SUM"):
        return fetch.call(text)
"""


def test_a_trace_goes_through_all_processes(bundled: str, tmp_path: Path, spans: Spans) -> None:
    (tmp_path / "app.py").write_text(TASKS)
    shell = Shell(tmp_path, {"GEARMAN_SERVERS": bundled})
    with shell.start("worker", "app", "--log-json", "--processes", "1") as worker:
        worker.until("registered")
        with SyncClient([bundled]) as client, spans.tracer.start_as_current_span("request"):
            assert client.submit("app.crunch", b"text").result(timeout=30) == b"text"
        lines = [json.loads(worker.until(text)) for text in ("crunching", "fetching", "job done", "job done")]
        worker.signal(signal.SIGTERM)
        assert worker.end()[0] == 0
    (sent,) = spans.named("send app.crunch")
    found = sent.get_span_context()
    assert found is not None
    trace_id = f"{found.trace_id:032x}"
    of_worker: dict[str, Any] = {
        each["name"]: each for each in map(json.loads, (tmp_path / "spans").read_text().splitlines())
    }
    path = ["process app.crunch", "SUM", "send app.fetch", "process app.fetch", "GET"]
    above = f"0x{found.span_id:016x}"
    for name in path:
        span = of_worker.pop(name)
        assert (span["context"]["trace_id"], span["parent_id"]) == (f"0x{trace_id}", above), name
        above = span["context"]["span_id"]
    assert not of_worker
    assert {(line["trace_id"], line["attempt"]) for line in lines} == {(trace_id, 1)}
    assert [line["function"] for line in lines] == ["app.crunch", "app.fetch", "app.fetch", "app.crunch"]
    assert len({line["handle"] for line in lines}) == 2
