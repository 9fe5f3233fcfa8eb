"""Servers whose answers make no sense. A dashboard shows what it can, and says what is wrong."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import gearflow.web
from gearflow.protocol.jobs import ListedJob
from gearflow.protocol.messages import Message
from gearflow.protocol.metrics import Metrics
from gearflow.protocol.server_calls import JobInfo, ServerInfo
from gearflow.server import JobServer
from gearflow.web.formatting import ago, clock, moment
from tests.web.conftest import served

PAGES = ("/", "/functions", "/jobs", "/dead", "/workers", "/schedules", "/limits", "/servers", "/metrics")


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[type[Any], bytes]:
    """What the server of this test answers instead of such a message."""
    lies: dict[type[Any], bytes] = {}
    tell = Message.to_wire

    def lie(message: Message) -> bytes:
        return lies.get(type(message)) or tell(message)

    monkeypatch.setattr(Message, "to_wire", lie)
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


DIGITS = b"9" * 400
INFO = (
    b'{"version":"gearflow-9","durable":true,"store":"file","functions":[],"keep":1,"max_deaths":3,"jobs":%b}'
)
JOB = b'{"handle":"H:1","function":"f","state":"waiting","submitted":%b}'


@pytest.mark.parametrize(
    ("kind", "answer", "key"),
    [
        pytest.param(Metrics, b'{"time":1,"started":1,"functions":[{"function":"f","running":-1}]}',
                     "functions.0.running: Input should be greater than or equal to 0", id="below 0"),
        pytest.param(Metrics, b'{"time":1,"started":1,"received":%b}' % DIGITS,
                     "received: Input should be less than or equal to 9223372036854775807", id="400 digits"),
        pytest.param(Metrics, b'{"time":1e300,"started":1}', "time: Input should be", id="a time"),
        pytest.param(Metrics, b'{"time":1,"started":1,"commits":{"counts":[%b]}}' % b",".join([b"1"] * 3000),
                     "commits.counts: ", id="buckets"),
        pytest.param(ServerInfo, INFO % DIGITS, "jobs: Input should be", id="jobs"),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_are_refused_by_their_names(
    url: str, answers: dict[type[Any], bytes], kind: type[Any], answer: bytes, key: str
) -> None:
    answers[kind] = answer
    for page in PAGES:
        assert httpx.get(url + page, trust_env=False).status_code == 200
    shown = httpx.get(f"{url}/servers", trust_env=False).text
    assert f"which is no {kind.__name__}: {key}" in shown
    assert "answers what it should not: " in httpx.get(url, trust_env=False).text


@pytest.mark.parametrize(
    ("kind", "answer", "path"),
    [
        pytest.param(ListedJob, b'{"job":%b,"listed":"waiting"}' % (JOB % b"1e300"), "/jobs", id="in a list"),
        pytest.param(JobInfo, JOB % b"-1", "/jobs/H:1", id="a job"),
    ],
)
def test_a_lie_about_jobs_is_no_fault_of_the_dashboard(
    url: str, answers: dict[type[Any], bytes], kind: type[Any], answer: bytes, path: str
) -> None:
    answers[kind] = answer
    page = httpx.get(url + path, trust_env=False)
    assert page.status_code in (200, 404, 503)


@pytest.mark.parametrize("at", [-1e300, -1.0, 2.6e11, 1e300])
def test_a_time_that_no_calendar_has_is_shown_anyway(at: float) -> None:
    assert moment(at)[4] == "-"
    assert "<time" in ago(at, 1.0)
    assert "<time" in clock(at)
