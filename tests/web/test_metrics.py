"""``/metrics`` of a dashboard: what Prometheus gets about all its servers, those of others included."""

import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable

import pytest
from starlette.requests import Request

from gearflow.client import SyncClient
from gearflow.server import JobServer
from tests.metrics.figures import series, value

Dashboards = Callable[..., str]

PATIENCE = 20.0  # seconds


def page(base: str, **query: str) -> str:
    url = f"{base}/metrics" + (f"?{urllib.parse.urlencode(query)}" if query else "")
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        return str(answer.read().decode())


def until(base: str, expected: float, name: str, **labels: str) -> str:
    """Ask until a series has a value: the dashboard looks at the servers from time to time."""
    deadline = time.monotonic() + PATIENCE
    while True:
        text = page(base)
        if series(text).get((name, frozenset(labels.items()))) == expected:
            return text
        assert time.monotonic() < deadline, text
        time.sleep(0.05)


def test_the_page_has_the_sums_over_gearflow_and_gearmand(
    dashboard: Dashboards, server: JobServer, gearmand: str, function: str
) -> None:
    base = dashboard(server, gearmand)
    for address, count in ((server.address, 3), (gearmand, 4)):
        with SyncClient([address]) as client:
            for _ in range(count):
                client.submit_background(function, b"{}")
    labels = {"function": function, "priority": "normal", "state": "waiting"}
    text = until(base, 7, "gearflow_jobs", **labels)
    assert value(text, "gearflow_servers", state="up") == 2
    assert value(text, "gearflow_jobs_submitted_total", function=function) == 3
    for address in (server.address, gearmand):
        assert address not in text
    alone = page(base, server=gearmand)
    assert value(alone, "gearflow_jobs", **labels) == 4
    assert ("gearflow_jobs_submitted_total", frozenset({("function", function)})) not in series(alone)


def test_a_server_that_is_away_does_not_keep_the_others_from_being_seen(
    dashboard: Dashboards, server: JobServer, function: str
) -> None:
    with JobServer(port=0) as gone:
        base = dashboard(server, gone)
        with SyncClient([gone.address]) as client:
            client.submit_background(function, b"{}")
        until(base, 1, "gearflow_jobs_submitted_total", function=function)
    text = until(base, 1, "gearflow_servers", state="down")
    assert value(text, "gearflow_servers", state="up") == 1
    assert value(text, "gearflow_jobs_submitted_total", function=function) == 1  # it does not fall
    labels = {"function": function, "priority": "normal", "state": "waiting"}
    assert ("gearflow_jobs", frozenset(labels.items())) not in series(text)


def test_only_servers_of_the_dashboard_can_be_asked(dashboard: Dashboards, server: JobServer) -> None:
    base = dashboard(server)
    code, _ = refusal(base, server="169.254.169.254:80")
    assert code == 400


def nobody(request: Request) -> None:
    """Gives no rights."""


def test_who_may_not_look_gets_no_metrics(dashboard: Dashboards, server: JobServer) -> None:
    code, text = refusal(dashboard(server, allow=nobody))
    assert code == 403
    assert "gearflow_" not in text


def refusal(base: str, **query: str) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        page(base, **query)
    with caught.value as error:
        return error.code or 0, error.read().decode()
