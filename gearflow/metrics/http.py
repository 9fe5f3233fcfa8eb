"""The HTTP port of a server or a worker: ``/metrics``, ``/healthz`` and ``/readyz``.

It has a thread of its own, so that it answers while the event loop is busy, for example while a server reads
a large file. It needs nothing but the standard library. ``metrics`` may need more.

``/healthz`` says whether the process lives, so a service manager may end it if it does not answer 200.
``/readyz`` says whether it is to get work. Anyone who reaches the port can read all three.
"""

import asyncio
import gzip
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Final, Self, TypeAlias, TypeVar

from gearflow.runtime.fork import forget_in_children

logger = logging.getLogger(__name__)

T = TypeVar("T")

PEER_TIMEOUT: Final = 10.0
"""Seconds for which a peer may be silent."""

ANSWER: Final = 5.0
"""Seconds in which an event loop must answer."""

_SILENT: Final = 64
"""Connections at a time that have not asked yet. For one more, the oldest of them is closed."""

_MOST: Final = 256
"""Connections at a time. For one more, the oldest is closed."""

_SHORT: Final = 1000
"""Bytes of a page up to which it is not compressed."""

_TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Page:
    """What a request is answered with."""

    status: HTTPStatus
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": _TEXT})

    @classmethod
    def of(cls, text: str, status: HTTPStatus = HTTPStatus.OK) -> Self:
        """A page with a line of text."""
        return cls(status, f"{text}\n".encode())

    @classmethod
    def of_state(cls, state: "State") -> Self:
        """A page with the answer to a probe."""
        return cls.of(state.text, HTTPStatus.OK if state.is_good else HTTPStatus.SERVICE_UNAVAILABLE)


@dataclass(frozen=True, slots=True)
class State:
    """The answer to a probe."""

    is_good: bool
    text: str
    """A line for people, such as ``loading, 40 %``."""


class Unavailable(Exception):
    """There are no metrics now. The text says why."""


Families: TypeAlias = Callable[[], Iterable[Any]]
"""Makes the metrics of prometheus_client, in a thread of the port. Raises ``Unavailable``."""

Probe: TypeAlias = Callable[[], State]
"""Answers a probe, in a thread of the port."""


def metrics_page(families: Iterable[Any], accept: str = "", encodings: str = "") -> Page:
    """The page with metrics, in the format and the encoding that the request asks for.

    Args:
        families: Metrics of prometheus_client.
        accept: The header ``Accept``.
        encodings: The header ``Accept-Encoding``.
    """
    from prometheus_client.exposition import choose_encoder

    class Collected:
        def collect(self) -> Iterable[Any]:
            return families

    encode, kind = choose_encoder(accept)
    body = encode(Collected())
    headers = {"Content-Type": kind}
    if len(body) > _SHORT and "gzip" in encodings:
        body = gzip.compress(body, 1)
        headers["Content-Encoding"] = "gzip"
    return Page(HTTPStatus.OK, body, headers)


class MetricsPort:
    """An HTTP port for the time of a block. Owns its socket and its threads.

    Args:
        host: The address to listen on.
        port: The port. 0 takes a free one.
        metrics: Makes the metrics.
        healthy: Whether the process lives.
        ready: Whether it is to get work.

    Raises:
        OSError: On construction, if it cannot listen.
    """

    def __init__(self, host: str, port: int, *, metrics: Families, healthy: Probe, ready: Probe) -> None:
        pages: dict[str, Callable[[Mapping[str, str]], Page]] = {
            "/metrics": _SharedPage(metrics).page,
            "/healthz": lambda _: Page.of_state(healthy()),
            "/readyz": lambda _: Page.of_state(ready()),
        }
        self._server = _Server(host, port, pages)
        forget_in_children(self, MetricsPort._forget)
        self._thread = threading.Thread(target=self._server.serve, name="gearflow-metrics", daemon=True)

    @property
    def address(self) -> str:
        """``HOST:PORT`` on which it listens."""
        name, port = self._server.name, self._server.server_port
        return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()
        self._thread.join()
        self._server.server_close()
        self._server.close_connections()

    def _forget(self) -> None:
        self._server.socket.close()


class _SharedPage:
    """The page with metrics, made once for all who ask while it is made. Owns state.

    A page of a server with many functions takes a second. So those who ask at the same time would hold up
    each other, and the server.
    """

    def __init__(self, metrics: Families) -> None:
        self._metrics = metrics
        self._lock = threading.Lock()
        self._last: tuple[float, tuple[str, str], Page] | None = None

    def page(self, headers: Mapping[str, str]) -> Page:
        """The page as it is now, or a little later."""
        asked = time.monotonic()
        kind = headers.get("Accept", ""), headers.get("Accept-Encoding", "")
        with self._lock:
            if self._last is None or self._last[0] < asked or self._last[1] != kind:
                self._last = time.monotonic(), kind, self._make(*kind)
            return self._last[2]

    def _make(self, accept: str, encodings: str) -> Page:
        try:
            return metrics_page(self._metrics(), accept, encodings)
        except Unavailable as error:
            return Page.of(str(error), HTTPStatus.SERVICE_UNAVAILABLE)


class _Server(ThreadingHTTPServer):
    """Listens, and has a thread for each connection."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self, host: str, port: int, pages: Mapping[str, Callable[[Mapping[str, str]], Page]]
    ) -> None:
        self.pages = pages
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family = found[0][0]
        self._open: dict[socket.socket, None] = {}  # the oldest first
        self._silent: dict[socket.socket, None] = {}  # those of them that have not asked yet
        self._lock = threading.Lock()
        self._stopped = False
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind. The one of ``HTTPServer`` also asks the DNS for the machine's name."""
        TCPServer.server_bind(self)
        self.name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def serve(self) -> None:
        """Accept connections until ``stop``. (``serve_forever`` wakes up twice a second.)"""
        while not self._stopped:
            self.handle_request()

    def stop(self) -> None:
        """Have ``serve`` return."""
        self._stopped = True
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # another system than Linux
            with suppress(OSError):
                socket.create_connection((self.name, self.server_port), timeout=PEER_TIMEOUT).close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own. If there are many, the oldest connection has to end."""
        with self._lock:
            full = (
                self._silent
                if len(self._silent) >= _SILENT
                else self._open
                if len(self._open) >= _MOST
                else ()
            )
            oldest = next(iter(full), None)
            if oldest is not None:
                self._forget(oldest)
            self._open[request] = self._silent[request] = None
        if oldest is not None:
            _hang_up(oldest)
        super().process_request(request, client_address)

    def _forget(self, connection: socket.socket) -> None:
        self._open.pop(connection, None)
        self._silent.pop(connection, None)

    def answers(self, connection: socket.socket) -> None:
        """Note that a connection has asked."""
        with self._lock:
            self._silent.pop(connection, None)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._lock:
            self._forget(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        """Close all connections."""
        with self._lock:
            for request in self._open:
                _hang_up(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that goes away is no news. Everything else is a fault of ours."""
        logger.debug("a request for metrics failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """Answers one request: the connection ends with it."""

    timeout = PEER_TIMEOUT
    error_content_type = _TEXT
    error_message_format = "%(message)s\n"

    def do_GET(self) -> None:
        """Answer GET, and HEAD."""
        assert isinstance(self.server, _Server)
        self.server.answers(self.connection)
        page = self._page(self.server.pages)
        self.send_response(page.status)
        for name, value in page.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(page.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page.body)

    do_HEAD = do_GET  # noqa: N815  (as above)

    def _page(self, pages: Mapping[str, Callable[[Mapping[str, str]], Page]]) -> Page:
        make = pages.get(self.path.partition("?")[0])
        if make is None:
            return Page.of(f"there are {', '.join(pages)}", HTTPStatus.NOT_FOUND)
        headers = {name.title(): value for name, value in self.headers.items()}
        try:
            return make(headers)
        except Exception:
            logger.exception("metrics cannot be shown")
            return Page.of("an error, which is in the log", HTTPStatus.INTERNAL_SERVER_ERROR)

    def version_string(self) -> str:
        """The header ``Server``."""
        return "gearflow"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the standard library's name)
        """Log no requests."""


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # it has ended
        connection.shutdown(socket.SHUT_RDWR)


def ask(loop: asyncio.AbstractEventLoop, question: Callable[[], T], timeout: float = ANSWER) -> T:
    """Call something on an event loop, and return what it returns. Raises what it raises.

    Raises:
        Unavailable: The loop has not answered in time, or has ended.
    """
    answer: Future[T] = Future()

    def reply() -> None:
        if not answer.set_running_or_notify_cancel():
            return  # nobody waits any more
        try:
            answer.set_result(question())
        except Exception as error:  # noqa: BLE001  (it is raised where the question was asked)
            answer.set_exception(error)

    try:
        loop.call_soon_threadsafe(reply)
    except RuntimeError:
        raise Unavailable("stopped") from None
    try:
        return answer.result(timeout)
    except TimeoutError:
        if answer.cancel():
            raise Unavailable(f"the event loop has not answered for {timeout:g} s") from None
        raise  # the question raised it


def liveness(loop: asyncio.AbstractEventLoop, timeout: float = ANSWER) -> State:
    """Whether an event loop answers."""
    try:
        ask(loop, lambda: None, timeout)
    except Unavailable as error:
        return State(False, str(error))
    return State(True, "alive")
