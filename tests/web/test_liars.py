"""Servers whose answers make no sense. A dashboard shows what it can, and says what is wrong."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import gearflow.web
from gearflow.protocol.metrics import Metrics
from gearflow.server import JobServer
from gearflow.web.formatting import ago, clock, moment
from tests.web.conftest import served

PAGES = ("/", "/functions", "/jobs", "/dead", "/workers", "/schedules", "/limits", "/servers", "/metrics")


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[type[Any], bytes]:
    """What the server of this test answers instead of such a message."""
    lies: dict[type[Any], bytes] = {}
    tell = Metrics.to_wire

    def lie(message: Metrics) -> bytes:
        return lies.get(type(message)) or tell(message)

    monkeypatch.setattr(Metrics, "to_wire", lie)
    return lies


@pytest.fixture
def url(answers: dict[type[Any], bytes]) -> Iterator[str]:
    with (
        JobServer(port=0) as server,
        served(gearflow.web.app([server.address], allow="view", interval=0.1)) as url,
    ):
        yield url


@pytest.mark.parametrize(
    "metrics",
    [
        b"\xff\xfe",
        b"[]",
        b"[" * 100_000,
        b'{"time":NaN,"started":1,"functions":[{"function":"f","oldest":NaN,"wait":{"counts":[1],"sum":NaN}}]}',
        b'{"time":1,"started":-Infinity}',
    ],
)
def test_pages_survive_metrics_that_are_none(
    url: str, answers: dict[type[Any], bytes], metrics: bytes
) -> None:
    answers[Metrics] = metrics
    for page in PAGES:
        assert httpx.get(url + page, trust_env=False, timeout=20).status_code == 200
    assert "which is no Metrics" in httpx.get(f"{url}/servers", trust_env=False, timeout=20).text


@pytest.mark.parametrize("at", [-1e300, -1.0, 2.6e11, 1e300])
def test_a_time_that_no_calendar_has_is_shown_anyway(at: float) -> None:
    assert moment(at)[4] == "-"
    assert "<time" in ago(at, 1.0)
    assert "<time" in clock(at)
