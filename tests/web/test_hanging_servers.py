"""A server that begins to hang while a visitor looks at it: every page comes soon, and says so."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import httpx
import pytest

import gearflow.web
from gearflow.client import SubmitOptions, SyncClient
from gearflow.server import JobServer
from gearflow.web import sampler
from tests.relay import HangingRelay, relayed
from tests.web.conftest import served

SOON: Final = 15.0
"""Seconds. The client of the dashboard itself waits for 25."""

PAGES: Final = ("/", "/functions", "/jobs", "/dead", "/workers", "/schedules", "/limits", "/servers")


@pytest.fixture
def hanging() -> Iterator[HangingRelay]:
    with JobServer(port=0) as server, relayed(server.address) as relay:
        yield relay


@pytest.fixture
def url(hanging: HangingRelay, server: JobServer) -> Iterator[str]:
    """A dashboard that has looked at both servers, and takes what it saw for fresh from then on."""
    addresses = [hanging.address, server.address]
    with served(gearflow.web.app(addresses, allow="operate", interval=1000)) as url:
        text = httpx.get(f"{url}/servers", trust_env=False).text
        assert text.count('<span class="badge good">answers</span>') == 2
        yield url


def got(url: str, *paths: str) -> list[httpx.Response]:
    """Pages, which are asked for at once."""

    def get(path: str) -> httpx.Response:
        return httpx.get(url + path, trust_env=False, timeout=SOON)

    with ThreadPoolExecutor(len(paths)) as asking:
        return list(asking.map(get, paths))


def test_a_list_of_jobs_shows_those_of_the_others(url: str, hanging: HangingRelay, server: JobServer) -> None:
    with SyncClient([server.address]) as client:
        handle = client.submit_background("work", b"x", options=SubmitOptions(delay=1000)).handle
    hanging.hang()
    jobs, dead, job, other = got(
        url, "/jobs", "/dead", f"/jobs/{handle}?server={server.address}", "/jobs/H:1"
    )
    assert [jobs.status_code, dead.status_code, job.status_code] == [200, 200, 200]
    assert f"{hanging.address} gave no answer within 2 s" in jobs.text
    assert handle in jobs.text
    assert f"{hanging.address} gave no answer within 2 s" in dead.text
    assert other.status_code == 404
    assert "No server that answers knows the job H:1 now." in other.text


def test_all_pages_say_since_when_it_has_not_answered(
    hanging: HangingRelay, server: JobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "SHARE", 1.0)
    addresses = [hanging.address, server.address]
    with served(gearflow.web.app(addresses, allow="operate", interval=0.01)) as url:
        got(url, "/functions")
        hanging.hang()
        while "does not answer" not in httpx.get(url, trust_env=False, timeout=SOON).text:
            pass
        for page in got(url, *PAGES):
            assert page.status_code == 200
            assert "does not answer: no answer within 2 s. This is so since " in page.text
