"""A dashboard that is served to a real browser, and real job servers behind it.

``dashboard(server)`` serves one and gives its URL. ``tab`` is a page of a browser. At its end no error may
be on its console, and no request may have gone to another host.
"""

import math
import socket
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright
from sse_starlette import EventSourceResponse

import gearflow.web
from gearflow.server import JobServer
from gearflow.web import sampler, searches
from gearflow.web.server_sent_events import LiveStreams
from tests.conftest import missing, run_gearmand

CHROMIUM: Final = "/usr/bin/chromium"

QUIET: Final = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-domain-reliability",
    "--disable-gpu",
    "--disable-sync",
    "--metrics-recording-only",
    "--no-first-run",
    "--no-default-browser-check",
]
"""Arguments of chromium. Tests run as root, and nothing is to leave the machine."""

expect.set_options(timeout=20_000)


class Served:
    """An ASGI application in a thread of its own."""

    def __init__(self, app: Any, **options: Any) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))  # those who connect now wait in the backlog
        defaults: dict[str, Any] = {"log_level": "warning", "timeout_graceful_shutdown": 1, "lifespan": "on"}
        config = uvicorn.Config(app, ws="none", proxy_headers=False, **{**defaults, **options})
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def stop(self) -> None:
        """Let it end."""
        self._server.should_exit = True

    def wait(self) -> None:
        """Return when it has ended."""
        self._thread.join()
        self._listener.close()


@contextmanager
def served(app: Any, **options: Any) -> Generator[str]:
    """Serve an ASGI application for the time of the block. Its URL."""
    running = Served(app, **options)
    try:
        yield running.url
    finally:
        running.stop()
        running.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[JobServer]:
    """A job server of this module's own."""
    with JobServer(port=0) as running:
        yield running


@pytest.fixture(scope="module")
def gearmand(program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A C gearmand of this module's own. A page shows the first of its jobs, and here they are known."""
    with run_gearmand(program("gearmand"), tmp_path_factory.mktemp("gearmand") / "log") as address:
        yield address


@pytest.fixture(scope="module")
def dashboard() -> Iterator[Callable[..., str]]:
    """``dashboard(server, read_only=True)``: the URL of a dashboard for a server. Everybody may operate.

    Its pages follow the servers ten times as fast, so that tests wait less. Each visit asks the servers, so
    that it shows what the test has done before. A long search is done before the page is answered.
    """
    respond = LiveStreams.response

    def respond_fast(streams: LiveStreams, parts: Any, every: float) -> EventSourceResponse:
        return respond(streams, parts, every / 10)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LiveStreams, "response", respond_fast)
        patch.setattr(sampler, "SHARE", math.inf)
        patch.setattr(searches, "STEP", 5.0)  # the machine may be busy
        running: dict[Any, Served] = {}

        def serve(*servers: JobServer | str, **options: Any) -> str:
            addresses = [each if isinstance(each, str) else each.address for each in servers]
            key = str(addresses), str(sorted(options.items()))  # objects of the same text are the same
            if key not in running:
                running[key] = serve_new(addresses, options)
            return running[key].url

        def serve_new(addresses: list[str], options: dict[str, Any]) -> Served:
            defaults: dict[str, Any] = {"allow": "operate", "interval": 0.0}
            app = gearflow.web.app(addresses, **{**defaults, **options})
            return Served(app)

        yield serve
        for each in running.values():  # all at once
            each.stop()
        for each in running.values():
            each.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's chromium. The test is skipped if it is not installed."""
    if not Path(CHROMIUM).exists():
        missing("chromium is not installed")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield running
        running.close()


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[Callable[..., Page]]:
    """``open_tab(java_script_enabled=False)``: a page in a context of its own, which has the options."""
    contexts: list[BrowserContext] = []
    faults: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            faults.append(f"{message.type}: {message.text} ({message.location})")

    def open_one(*, quiet: bool = True, **options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(20_000)
        tab = context.new_page()
        if quiet:
            tab.on("console", note)
            tab.on("pageerror", lambda error: faults.append(str(error)))
            tab.on("request", lambda asked: _only_here(asked.url, faults))
        return tab

    yield open_one
    for context in contexts:
        context.close()
    assert not faults, faults


@pytest.fixture
def tab(open_tab: Callable[..., Page]) -> Page:
    """A page of a browser."""
    return open_tab()


def _only_here(url: str, faults: list[str]) -> None:
    if not url.startswith(("http://127.0.0.1:", "http://localhost:", "data:")):
        faults.append(f"a request to {url}")
