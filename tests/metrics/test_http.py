"""The HTTP port: what it answers, and what peers cannot do to it."""

import gzip
import http.client
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.core import GaugeMetricFamily, Metric

from gearflow.metrics.http import MetricsPort, State, Unavailable

PATIENCE = 20.0  # seconds


class Subject:
    """What a port shows. Tests change it."""

    def __init__(self) -> None:
        self.count = 1
        self.fault: Exception | None = None
        self.state = State(True, "ready")

    def metrics(self) -> list[Metric]:
        if self.fault is not None:
            raise self.fault
        family = GaugeMetricFamily("gearflow_jobs", "Jobs.", labels=["function"])
        for number in range(self.count):
            family.add_metric((f"f{number}",), number)
        return [family]

    def probe(self) -> State:
        return self.state


@pytest.fixture
def subject() -> Subject:
    return Subject()


@pytest.fixture
def port(subject: Subject) -> Iterator[MetricsPort]:
    with listening(subject) as port:
        yield port


def listening(subject: Subject, number: int = 0, host: str = "127.0.0.1") -> MetricsPort:
    return MetricsPort(host, number, metrics=subject.metrics, healthy=subject.probe, ready=subject.probe)


def ask(
    port: MetricsPort, path: str, method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection(port.address, timeout=PATIENCE)
    try:
        connection.request(
            method, path, headers={name.replace("_", "-"): text for name, text in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def test_metrics_are_text_for_prometheus(port: MetricsPort) -> None:
    status, headers, body = ask(port, "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert headers["Cache-Control"] == "no-store"
    assert b'gearflow_jobs{function="f0"} 0.0\n' in body


def test_metrics_come_in_the_format_that_is_asked_for(port: MetricsPort) -> None:
    _, headers, body = ask(port, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_a_long_page_is_compressed_if_the_peer_reads_that(subject: Subject, port: MetricsPort) -> None:
    subject.count = 1000
    _, headers, body = ask(port, "/metrics", Accept_Encoding="gzip")
    assert headers["Content-Encoding"] == "gzip"
    assert b'{function="f999"} 999.0' in gzip.decompress(body)
    _, headers, body = ask(port, "/metrics")
    assert "Content-Encoding" not in headers
    assert b'{function="f999"} 999.0' in body


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_a_probe_is_answered_with_a_code_and_a_line(subject: Subject, port: MetricsPort, path: str) -> None:
    assert ask(port, path)[::2] == (200, b"ready\n")
    subject.state = State(False, "loading, 40 %")
    assert ask(port, path)[::2] == (503, b"loading, 40 %\n")


def test_head_has_no_body(port: MetricsPort) -> None:
    status, headers, body = ask(port, "/metrics", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 0


@pytest.mark.parametrize("path", ["/", "/metrics/", "/../etc/passwd", "/<script>"])
def test_other_paths_are_not_found_and_are_not_repeated(port: MetricsPort, path: str) -> None:
    status, _, body = ask(port, path)
    assert (status, body) == (404, b"there are /metrics, /healthz, /readyz\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(port: MetricsPort, method: str) -> None:
    status, headers, body = ask(port, "/metrics", method)
    assert status == 501
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert b"<" not in body


def test_metrics_that_are_not_there_are_503_with_the_reason(subject: Subject, port: MetricsPort) -> None:
    subject.fault = Unavailable("the event loop is busy")
    assert ask(port, "/metrics")[::2] == (503, b"the event loop is busy\n")


def test_a_fault_is_logged_and_not_shown(
    subject: Subject, port: MetricsPort, caplog: pytest.LogCaptureFixture
) -> None:
    subject.fault = ValueError("secret")
    status, _, body = ask(port, "/metrics")
    assert (status, body) == (500, b"an error, which is in the log\n")
    assert "secret" in caplog.text
    subject.fault = None
    assert ask(port, "/metrics")[0] == 200


def test_peers_that_say_nothing_do_not_keep_others_out(port: MetricsPort) -> None:
    host, _, number = port.address.partition(":")
    silent = [socket.create_connection((host, int(number)), timeout=PATIENCE) for _ in range(80)]
    try:
        assert ask(port, "/metrics")[0] == 200
        assert silent[0].recv(1) == b""  # the oldest was closed
    finally:
        for each in silent:
            each.close()


def test_many_who_ask_at_once_are_all_answered(subject: Subject) -> None:
    may_end = threading.Event()

    def slow() -> list[Metric]:
        assert may_end.wait(PATIENCE)
        return subject.metrics()

    with (
        MetricsPort("127.0.0.1", 0, metrics=slow, healthy=subject.probe, ready=subject.probe) as port,
        ThreadPoolExecutor(40) as pool,
    ):
        asked = [pool.submit(ask, port, "/metrics") for _ in range(40)]
        assert ask(port, "/readyz")[0] == 200
        may_end.set()
        assert {each.result(PATIENCE)[0] for each in asked} == {200}


def test_nonsense_does_no_harm(port: MetricsPort) -> None:
    host, _, number = port.address.partition(":")
    for nonsense in (b"\0" * 1000, b"GET\r\n\r\n", b"GET /metrics HTTP/9.9\r\n\r\n", b"x" * 100_000, b""):
        with socket.create_connection((host, int(number)), timeout=PATIENCE) as peer:
            peer.sendall(nonsense)
    assert ask(port, "/metrics")[0] == 200


def test_the_port_is_free_when_it_has_ended(subject: Subject) -> None:
    with listening(subject) as port:
        number = int(port.address.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            listening(subject, number)
    with listening(subject, number) as port:
        assert ask(port, "/readyz")[0] == 200


def test_a_forked_child_does_not_hold_the_port(subject: Subject) -> None:
    reader, writer = os.pipe()
    with listening(subject) as port:
        child = os.fork()
        if not child:  # pragma: no cover
            os.close(writer)
            os.read(reader, 1)  # until the test has seen enough
            os._exit(0)
    try:
        with listening(subject, int(port.address.rpartition(":")[2])) as again:
            assert ask(again, "/readyz")[0] == 200
    finally:
        os.close(writer)
        os.close(reader)
        os.waitpid(child, 0)


def test_ipv6_addresses_are_written_in_brackets(subject: Subject) -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    try:
        with listening(subject, host="::1") as port:
            assert port.address.startswith("[::1]:")
    except OSError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
