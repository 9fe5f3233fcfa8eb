"""The dashboard under a prefix: behind a proxy, and in another application."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

import gearflow.web
from gearflow.client import SyncClient
from gearflow.server import JobServer
from gearflow.web.access import COOKIE, AccessTokens
from gearflow.web.paths import match, name_of, route_of, segment
from tests.web.conftest import served


def _use(tab: Page, url: str, server: JobServer, name: str) -> None:
    """Look at a page, follow it, act, and come back to it."""
    with SyncClient([server.address]) as client:
        client.submit_background(name, b"")
        tab.goto(url)
        expect(tab.locator("#stream")).to_have_text("Live")
        tab.get_by_role("navigation").get_by_role("link", name="Functions").click()
        tab.locator("tr", has_text=name).get_by_role("button", name="Pause").click()
        expect(tab.locator("#notice")).to_contain_text(f"Paused {name}")
        expect(tab).to_have_url(f"{url.rstrip('/')}/functions")
        tab.get_by_role("link", name=name).click()
        tab.get_by_role("button", name="Resume").click()
        expect(tab.locator("#notice")).to_contain_text(f"Resumed {name}")
        tab.get_by_role("link", name="gearflow").click()
        expect(tab.get_by_role("heading", level=1)).to_have_text("Overview")
        tab.goto("about:blank")


def test_it_works_where_another_application_mounts_it(
    server: JobServer, tab: Page, fresh: Callable[..., str]
) -> None:
    async def home(request: Any) -> PlainTextResponse:
        return PlainTextResponse("the application itself")

    dashboard = gearflow.web.app([server.address], allow="operate", interval=0.2)
    with served(Starlette(routes=[Route("/", home), Mount("/ops/queue", dashboard)])) as url:
        _use(tab, f"{url}/ops/queue/", server, fresh("mount<&>ed"))
        assert httpx.get(url, verify=False, trust_env=False, timeout=20).text == "the application itself"


@pytest.mark.parametrize("strips", [True, False], ids=["the proxy removes it", "the proxy leaves it"])
def test_it_works_under_a_prefix_behind_a_proxy(
    server: JobServer, tab: Page, fresh: Callable[..., str], strips: bool
) -> None:
    dashboard = gearflow.web.app([server.address], allow="operate", prefix="/queue", interval=0.2)

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and strips:
            assert scope["path"].startswith("/queue"), f"a link leads out of the prefix: {scope['path']}"
            raw = scope["raw_path"].removeprefix(b"/queue")
            scope = {**scope, "path": scope["path"].removeprefix("/queue"), "raw_path": raw}
        await dashboard(scope, receive, send)

    with served(proxy) as url:
        _use(tab, f"{url}/queue", server, fresh("proxied"))


def test_a_prefix_that_is_none_is_refused() -> None:
    for prefix in ("queue", "/queue/", "/", "//queue", "/a;b", "/a b", "/a/../b", "/ö", "/a?b", "/a\n"):
        with pytest.raises(ValueError, match="is no prefix"):
            gearflow.web.app(["127.0.0.1:1"], allow="view", prefix=prefix)


@pytest.mark.parametrize(
    "name", ["plain", "a/b", "..", ".", "ä ö", "%2f", "?#&", "a\r\nb", "\udcff\udc80", "<b>"]
)
def test_a_name_survives_its_way_through_a_path(name: str) -> None:
    quoted = segment(name)
    assert "/" not in quoted
    assert quoted not in (".", "..")
    assert name_of(quoted) == name
    assert match("/functions/{name}/pause", f"/functions/{quoted}/pause") == {"name": name}


@pytest.mark.parametrize(
    ("root", "prefix", "path", "expected"),
    [
        ("", "", "/a", ("", "/a")),
        ("", "", "", ("", "/")),
        ("/m", "", "/m/a", ("/m", "/a")),
        ("/m", "", "/m", ("/m", "/")),
        ("/m", "", "/mx", ("/m", "/mx")),
        ("", "/q", "/q/a", ("/q", "/a")),
        ("", "/q", "/a", ("/q", "/a")),
        ("/q", "/q", "/q/a", ("/q", "/a")),
        ("/m", "/q", "/m/q/a", ("/m/q", "/a")),
        ("", "", "/a%2Fb", ("", "/a%2Fb")),
    ],
)
def test_the_path_below_the_prefix(root: str, prefix: str, path: str, expected: tuple[str, str]) -> None:
    assert route_of({"root_path": root, "raw_path": path.encode(), "path": path}, prefix) == expected


@pytest.mark.parametrize("path", ["/api/ops/queue/a%2Fb", "/ops/queue/a%2Fb"])
def test_the_path_below_a_mount_in_an_application_with_a_prefix(path: str) -> None:
    scope = {"root_path": "/api/ops/queue", "app_root_path": "/api", "raw_path": path.encode(), "path": path}
    assert route_of(scope, "") == ("/api/ops/queue", "/a%2Fb")


def test_processes_with_the_same_key_know_the_cookies_of_each_other(tmp_path: Path) -> None:
    (file := tmp_path / "tokens").write_text("view:a-long-token-of-a-team-that-looks everybody\n")
    mine, other, third = (AccessTokens.read(file, key=key) for key in (b"k" * 32, b"k" * 32, None))
    cookie = mine.cookie("a-long-token-of-a-team-that-looks")
    scope = {"type": "http", "headers": [(b"cookie", f"{COOKIE}={cookie}".encode())]}
    assert [tokens(Request(scope)) for tokens in (mine, other, third)] == ["view", "view", None]
