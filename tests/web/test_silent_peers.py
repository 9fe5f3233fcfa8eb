"""Peers of the dashboard that send half of a request, or read nothing."""

import logging
import socket
from collections.abc import Iterator
from queue import Queue
from typing import ClassVar

import httpx
import pytest

import gearflow.web
from gearflow.server import JobServer
from gearflow_cli.process.web_server import TimedProtocol
from tests.web.conftest import served


class ShortTimed(TimedProtocol):
    """Waits less, so that tests do."""

    peer_timeout = 0.5
    ended: ClassVar[Queue[int]] = Queue()
    """The ports of the peers whose connections have ended."""

    def connection_lost(self, exc: Exception | None) -> None:
        assert self.client is not None
        self.ended.put(self.client[1])
        super().connection_lost(exc)


@pytest.fixture(scope="module")
def url(server: JobServer) -> Iterator[str]:
    app = gearflow.web.app([server.address], allow="operate", interval=0.05)
    with served(app, http=ShortTimed) as url:
        yield url


def connected(url: str, sent: bytes) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(sent)
    return connection


POST = b"POST /limits/none/pause HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: same-origin\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: local", id="half of the headers"),
        pytest.param(POST + b"Content-Length: 100\r\n\r\nback=", id="half of a form"),
        pytest.param(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP", id="half of the next"),
    ],
)
def test_who_sends_half_of_a_request_is_hung_up_on(url: str, sent: bytes) -> None:
    with connected(url, sent) as connection:
        try:
            while connection.recv(65_536):
                pass
        except ConnectionResetError:
            pass


def test_a_stream_goes_on_while_it_is_read(url: str) -> None:
    with httpx.stream("GET", f"{url}/events?page=/servers", trust_env=False, timeout=20) as events:
        lines = (line for line in events.iter_lines() if line == "event: parts")
        assert [next(lines) for _ in range(2)]  # two seconds, which are four times the limit


def test_who_goes_away_in_a_form_is_no_fault_of_the_dashboard(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        connected(url, POST + b"Content-Length: 100\r\n\r\nback=").close()
        assert httpx.get(f"{url}/servers", trust_env=False, timeout=20).status_code == 200
    assert "failed on" not in caplog.text


def test_who_reads_nothing_is_hung_up_on(url: str) -> None:
    ask = b"GET /static/gearflow.css HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connected(url, ask * 1000) as connection:
        port = connection.getsockname()[1]
        while ShortTimed.ended.get(timeout=20) != port:
            pass
