"""Requests that no visitor of the dashboard makes, and what they get."""

import base64
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import Page, expect
from starlette.requests import Request

import gearflow.web
from gearflow.client import SyncClient
from gearflow.client.operate import server_info
from gearflow.protocol.rights import Tokens
from gearflow.security.tokens import parse_tokens, token_line
from gearflow.server import JobServer
from gearflow.web.access import AccessTokens, TrustedHeader
from gearflow.web.pages import SECTIONS
from tests.web.conftest import served

SAME: Final = {"Sec-Fetch-Site": "same-origin"}
VIEWER, OPERATOR, SUBMITTER = "view" * 8, "oper" * 8, "subm" * 8
TOKENS: Final = "\n".join(
    ["view:" + VIEWER, token_line(OPERATOR, next(iter(Tokens.of(b"x"))).rights), "submit:" + SUBMITTER]
)

ROUTES: Final = [route for section in SECTIONS for route in section.routes]
ACTS: Final = [route.pattern for route in ROUTES if route.is_act]
PAGES: Final = [route.pattern for route in ROUTES if not route.is_act]


@pytest.fixture
def function(server: JobServer, fresh: Callable[..., str]) -> Iterator[str]:
    """A function with a waiting job, which is not paused at the end either."""
    name = fresh("work")
    with SyncClient([server.address]) as client:
        client.submit_background(name, b"")
        yield name
        assert client.status_by_unique(name) is not None
        assert name not in client.run(server_info).paused, "an attack has paused the function"


def post(url: str, headers: dict[str, str], data: dict[str, str] | None = None) -> httpx.Response:
    return httpx.post(url, headers=headers, data=data or {}, verify=False, trust_env=False, timeout=20)


def viewer(request: Request) -> gearflow.web.Right:
    return "view"


def nobody(request: Request) -> None:
    return None


def get(url: str, headers: Any = None) -> httpx.Response:
    return httpx.get(url, headers=headers, verify=False, trust_env=False, timeout=20)


# ------------------------------------------------------------------------------------- other origins


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="neither header"),
        pytest.param({"Origin": "https://evil.example"}, id="another origin"),
        pytest.param({"Origin": "null"}, id="an opaque origin"),
        pytest.param({"Origin": "http://127.0.0.1"}, id="another port"),
        pytest.param(
            {"Origin": "http://127.0.0.1:{port}.evil.example"}, id="a host that begins in the same way"
        ),
        pytest.param({"Origin": "http://user@127.0.0.1:{port}"}, id="an origin with a user"),
        pytest.param({"Origin": "file://127.0.0.1:{port}"}, id="a file"),
        pytest.param({"Referer": "http://127.0.0.1:{port}/"}, id="only a referer"),
        pytest.param({"Sec-Fetch-Site": "cross-site"}, id="cross-site"),
        pytest.param({"Sec-Fetch-Site": "same-site"}, id="same-site"),
        pytest.param({"Sec-Fetch-Site": "none"}, id="typed by hand"),
        pytest.param({"Sec-Fetch-Site": ""}, id="an empty header"),
        pytest.param(
            {"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1:{port}"}, id="cross-site, own origin"
        ),
    ],
)
def test_an_act_from_elsewhere_is_refused(
    dashboard: Callable[..., str], server: JobServer, function: str, headers: dict[str, str]
) -> None:
    url = dashboard(server)
    port = url.rpartition(":")[2]
    sent = {name: value.replace("{port}", port) for name, value in headers.items()}
    answer = post(f"{url}/functions/{function}/pause", sent)
    assert answer.status_code == 403
    assert "nothing was done" in answer.text


@pytest.mark.parametrize("same", ["fetch metadata", "origin"])
def test_an_act_of_the_dashboard_itself_is_done(
    dashboard: Callable[..., str], server: JobServer, fresh: Callable[..., str], same: str
) -> None:
    url, name = dashboard(server), fresh()
    headers = SAME if same == "fetch metadata" else {"Origin": url}
    with SyncClient([server.address]) as client:
        client.submit_background(name, b"")
        answer = post(f"{url}/functions/{name}/pause", headers)
        assert answer.status_code == 303
        assert name in client.run(server_info).paused


def test_a_form_on_another_site_does_nothing(
    dashboard: Callable[..., str], server: JobServer, function: str, open_tab: Callable[..., Page]
) -> None:
    target = f"{dashboard(server)}/functions/{function}/pause"

    async def evil(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        page = f'<form method=post action="{target}"><button>Win a prize</button></form>'.encode()
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]}
        )
        await send({"type": "http.response.body", "body": page})

    with served(evil, lifespan="off") as url:
        tab = open_tab(quiet=False)
        tab.goto(url.replace("127.0.0.1", "localhost"))
        tab.get_by_role("button").click()
        expect(tab.get_by_role("heading", level=1)).to_have_text("Not allowed")


@pytest.mark.parametrize("path", [*PAGES, "/events?page=/", "/nothing"])
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Origin": "https://evil.example"}, id="fetched"),
        pytest.param({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, id="embedded"),
        pytest.param(
            {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
            id="framed",
        ),
    ],
)
def test_other_sites_read_nothing(
    dashboard: Callable[..., str], server: JobServer, path: str, headers: dict[str, str]
) -> None:
    answer = get(dashboard(server) + path, headers=headers)
    assert answer.status_code == 403
    assert server.address not in answer.text


def test_other_sites_may_link_to_a_page(dashboard: Callable[..., str], server: JobServer) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert get(dashboard(server), headers=headers).status_code == 200


# --------------------------------------------------------------------------------------------- hosts


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:1", 200),
        ("localhost", 200),
        ("LOCALHOST:8730", 200),
        ("[::1]:8730", 200),
        ("10.1.2.3", 200),
        ("ops.example.com", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("ops.example.com.evil.example", 421),
        ("evil.example@127.0.0.1", 400),
        ("127.0.0.1/evil", 400),
        ("127.0.0.1:99999999", 400),
        ("[::1", 400),
        ("", 400),
        ("evil.example:1 127.0.0.1", 400),
    ],
)
def test_only_known_hosts_are_answered(
    dashboard: Callable[..., str], server: JobServer, host: str, status: int
) -> None:
    url = dashboard(server, hosts=["ops.example.com"])
    for path in ("/", "/static/gearflow.css", "/events?page=/no", "/nothing"):
        answer = get(url + path, headers={"Host": host})
        known = {"/": 200, "/static/gearflow.css": 200}.get(path, 404)
        assert answer.status_code == (known if status == 200 else status)
    if status == 421:
        assert f"--host {host.lower()}" in answer.text


def test_a_request_with_two_hosts_is_refused(dashboard: Callable[..., str], server: JobServer) -> None:
    answer = raw(dashboard(server), b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")


def raw(url: str, request: bytes) -> bytes:
    """The answer to the bytes of a request."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


# --------------------------------------------------------------------------------------------- rights


def _some(pattern: str) -> str:
    return re.sub(r"\{\w+\}", "x", pattern)


@pytest.mark.parametrize("act", ACTS)
def test_every_act_needs_the_right_to_operate(
    dashboard: Callable[..., str], server: JobServer, act: str
) -> None:
    for options in ({"read_only": True}, {"allow": "view"}, {"allow": viewer}):
        answer = post(dashboard(server, **options) + _some(act), SAME)
        assert answer.status_code == 403
        assert "Nothing was done" in answer.text


@pytest.mark.parametrize("path", [*PAGES, "/events?page=/", "/metrics"])
def test_every_page_needs_the_right_to_view(
    dashboard: Callable[..., str], server: JobServer, path: str
) -> None:
    url = dashboard(server, allow=nobody)
    answer = get(url + _some(path))
    assert answer.status_code == 403
    assert server.address not in answer.text


def test_the_right_may_be_asked_for_in_a_coroutine_function(
    dashboard: Callable[..., str], server: JobServer
) -> None:
    async def allow(request: Request) -> gearflow.web.Right | None:
        return "view" if request.headers.get("x-team") == "ops" else None

    url = dashboard(server, allow=allow)
    assert get(url).status_code == 403
    assert get(url, headers={"X-Team": "ops"}).status_code == 200


def test_a_wrong_answer_of_allow_shows_nothing(dashboard: Callable[..., str], server: JobServer) -> None:
    def everybody(request: Request) -> bool:
        return True

    url = dashboard(server, allow=everybody)
    assert get(url).status_code == 500


def test_read_only_shows_no_buttons(
    dashboard: Callable[..., str], server: JobServer, function: str, tab: Page
) -> None:
    url = dashboard(server, read_only=True)
    for path in ("/functions", f"/functions/{function}"):
        tab.goto(url + path)
        expect(tab.locator("main")).to_contain_text(function)
        expect(tab.locator("form[method=post]")).to_have_count(0)
        expect(tab.locator(".side")).to_contain_text("You may look, not act")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "GET", "HEAD"])
def test_an_act_is_only_a_post(
    dashboard: Callable[..., str], server: JobServer, function: str, method: str
) -> None:
    answer = httpx.request(
        method, f"{dashboard(server)}/functions/{function}/pause", headers=SAME, trust_env=False, timeout=20
    )
    assert answer.status_code == 405


def test_a_page_is_no_act(dashboard: Callable[..., str], server: JobServer) -> None:
    assert post(f"{dashboard(server)}/functions", SAME).status_code == 405


# --------------------------------------------------------------------------------------- access tokens


@pytest.fixture
def tokens() -> AccessTokens:
    return AccessTokens(parse_tokens(TOKENS, "tokens"))


def test_a_token_is_typed_once(
    dashboard: Callable[..., str],
    server: JobServer,
    function: str,
    tokens: AccessTokens,
    open_tab: Callable[..., Page],
) -> None:
    tab = open_tab(quiet=False)  # the first answer is 401, which the browser writes on its console
    tab.goto(f"{dashboard(server, allow=tokens)}/functions?text={function}")
    tab.get_by_label("Access token").fill("wrong")
    tab.get_by_role("button").click()
    expect(tab.get_by_role("alert")).to_contain_text("no access token")
    tab.get_by_label("Access token").fill(VIEWER)
    tab.get_by_role("button").click()
    expect(tab.locator("tbody tr")).to_have_count(1)
    expect(tab.get_by_role("button", name="Pause")).to_have_count(0)
    expect(tab.locator("#stream")).to_have_text("Live")
    [cookie] = [each for each in tab.context.cookies() if each.get("name") == "gearflow_session"]
    assert cookie.get("httpOnly")
    assert cookie.get("sameSite") == "Strict"
    assert VIEWER not in str(cookie)
    tab.get_by_role("button", name="Log out").click()
    expect(tab.get_by_label("Access token")).to_be_visible()
    tab.get_by_label("Access token").fill(OPERATOR)
    tab.get_by_role("button").click()
    expect(tab.get_by_role("button", name="Log out")).to_be_visible()
    tab.goto(tab.url + f"functions/{function}")
    expect(tab.get_by_role("button", name="Pause")).to_be_visible()
    tokens.replace(parse_tokens(VIEWER, "tokens"))  # the token was removed
    expect(tab.locator("#stream")).to_have_text("Stopped. Reload the page.")
    tab.reload()
    expect(tab.get_by_label("Access token")).to_be_visible()


def test_the_page_of_the_token_may_be_loaded_again(
    dashboard: Callable[..., str], server: JobServer, tokens: AccessTokens
) -> None:
    url = dashboard(server, allow=tokens)
    with httpx.Client(trust_env=False, follow_redirects=True, headers=SAME, timeout=20) as browser:
        assert browser.post(f"{url}/login", data={"token": "wrong"}).status_code == 401
        asked = browser.get(f"{url}/login")
        to = re.search(r'name="to" value="([^"]*)"', asked.text)
        assert to is not None
        answer = browser.post(f"{url}/login", data={"token": VIEWER, "to": to[1]})
        assert (answer.status_code, answer.url.path) == (200, "/")


@pytest.mark.parametrize(
    ("header", "view", "act"),
    [
        (f"Bearer {OPERATOR}", 200, 404),
        (f"bearer {VIEWER}", 200, 403),
        (f"Bearer {SUBMITTER}", 401, 401),
        ("Bearer", 401, 401),
        ("Bearer \xff", 401, 401),
        (f"Basic {OPERATOR}", 401, 401),
    ],
)
def test_a_token_may_come_in_a_header(
    dashboard: Callable[..., str], server: JobServer, tokens: AccessTokens, header: str, view: int, act: int
) -> None:
    url = dashboard(server, allow=tokens)
    headers = {"Authorization": header, **SAME}
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    assert get(url, headers=encoded).status_code == view
    answer = httpx.post(f"{url}/limits/none/pause", headers=encoded, verify=False, timeout=20)
    assert answer.status_code == act


@pytest.mark.parametrize(
    "cookie", ["", ".", "9999999999.", "9999999999.AAAA", "x.y", "1.{signature}", "9999999999.{signature}"]
)
def test_a_forged_or_old_cookie_is_no_session(
    dashboard: Callable[..., str], server: JobServer, tokens: AccessTokens, cookie: str
) -> None:
    good = tokens.cookie(OPERATOR)
    assert good is not None
    url = dashboard(server, allow=tokens)
    assert get(url, headers={"Cookie": f"gearflow_session={good}"}).status_code == 200
    value = cookie.replace("{signature}", good.partition(".")[2])
    answer = get(url, headers={"Cookie": f"gearflow_session={value}"})
    assert answer.status_code == 401
    other = AccessTokens(parse_tokens(TOKENS, "tokens")).cookie(OPERATOR)  # of another process
    answer = get(url, headers={"Cookie": f"gearflow_session={other}"})
    assert answer.status_code == 401


@pytest.mark.parametrize(
    "to",
    [
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "\\\\evil",
        "evil",
        "/a\r\nSet-Cookie: x=1",
    ],
)
def test_after_the_token_nobody_is_sent_elsewhere(
    dashboard: Callable[..., str], server: JobServer, tokens: AccessTokens, to: str
) -> None:
    answer = post(f"{dashboard(server, allow=tokens)}/login", SAME, {"token": VIEWER, "to": to})
    assert answer.headers["location"] == "/"
    assert "x" not in answer.cookies


@pytest.mark.parametrize("back", ["//evil.example", "https://evil.example", "/\\evil", "/\r\nX: y"])
def test_after_an_act_nobody_is_sent_elsewhere(
    dashboard: Callable[..., str], server: JobServer, fresh: Callable[..., str], back: str
) -> None:
    name = fresh()
    with SyncClient([server.address]) as client:
        client.submit_background(name, b"")
    answer = post(f"{dashboard(server)}/functions/{name}/purge", SAME, {"back": back})
    assert answer.headers["location"] == "/functions"


# ------------------------------------------------------------------------------------ a proxy's header


def test_a_user_that_a_proxy_names_may_look_or_act(dashboard: Callable[..., str], server: JobServer) -> None:
    allow = TrustedHeader("X-Forwarded-User", operators=["ada"])
    url = dashboard(server, allow=allow)

    def status(**headers: str) -> tuple[int, int]:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return (
            get(url, headers=sent).status_code,
            post(f"{url}/limits/none/pause", {**SAME, **sent}).status_code,
        )

    assert status() == (403, 403)
    assert status(X_Forwarded_User="") == (403, 403)
    assert status(X_Forwarded_User="eve") == (200, 403)
    assert status(X_Forwarded_User="ada") == (200, 404)
    two = raw(
        url, b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-User: a\r\nX-Forwarded-User: ada\r\n\r\n"
    )
    assert two.startswith(b"HTTP/1.1 403")


def test_the_header_counts_only_from_the_proxy(dashboard: Callable[..., str], server: JobServer) -> None:
    url = dashboard(server, allow=TrustedHeader("X-Forwarded-User", proxies=["10.0.0.0/8"]))
    headers = {"X-Forwarded-User": "ada", "X-Forwarded-For": "10.0.0.1"}
    assert get(url, headers=headers).status_code == 403


# -------------------------------------------------------------------------------------------- requests


@pytest.mark.parametrize(
    "path",
    [
        "/static/../site.py",
        "/static/%2e%2e/site.py",
        "/static/..%2fsite.py",
        "/static//etc/passwd",
        "/static/",
        "//evil",
        "/%00",
        "/functions//",
        "/functions/a/b",
    ],
)
def test_no_path_leads_out_of_the_dashboard(
    dashboard: Callable[..., str], server: JobServer, path: str
) -> None:
    answer = raw(
        dashboard(server), f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )
    assert answer.startswith(b"HTTP/1.1 404")
    assert b"def app" not in answer


def test_an_address_with_too_many_values_is_refused(dashboard: Callable[..., str], server: JobServer) -> None:
    assert get(f"{dashboard(server)}/functions?{'a=1&' * 200}").status_code == 400


def test_a_line_end_in_a_name_makes_no_header(
    dashboard: Callable[..., str], server: JobServer, fresh: Callable[..., str]
) -> None:
    name = fresh() + "\r\nSet-Cookie: stolen=1"
    with SyncClient([server.address]) as client:
        client.submit_background(name, b"")
        url = dashboard(server)
        quoted = name.replace("\r", "%0d").replace("\n", "%0a")
        for act in ("pause", "resume"):
            answer = post(f"{url}/functions/{quoted}/{act}", SAME, {"back": "/functions/" + quoted})
            assert answer.status_code == 303
            assert "stolen" not in answer.cookies
            assert "set-cookie: stolen" not in str(answer.headers).lower()


def test_a_dashboard_connects_to_no_server_but_its_own(
    dashboard: Callable[..., str], server: JobServer, function: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0)
        address = f"127.0.0.1:{other.getsockname()[1]}"
        answer = post(f"{dashboard(server)}/functions/{function}/pause", SAME, {"server": address})
        assert answer.status_code == 400
        assert get(f"{dashboard(server)}/functions?server={address}").status_code == 400
        with pytest.raises(BlockingIOError):
            other.accept()


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"--x--", 415),
        ({"Content-Type": "application/json"}, b"{}", 415),
        ({"Content-Type": "text/plain"}, b"back=/", 415),
        ({}, b"a=" + b"x" * 70_000, 413),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"\xff=\xfe", 400),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"a&" * 5000, 400),
    ],
)
def test_a_form_that_is_none_is_refused(
    dashboard: Callable[..., str],
    server: JobServer,
    function: str,
    headers: dict[str, str],
    body: bytes,
    status: int,
) -> None:
    answer = httpx.post(
        f"{dashboard(server)}/functions/{function}/pause",
        headers={**SAME, **headers},
        content=body,
        verify=False,
        trust_env=False,
        timeout=20,
    )
    assert answer.status_code == status


def test_a_long_form_without_a_length_is_refused(
    dashboard: Callable[..., str], server: JobServer, function: str
) -> None:
    answer = httpx.post(
        f"{dashboard(server)}/functions/{function}/pause",
        headers=SAME,
        content=iter([b"x" * 40_000, b"x" * 40_000]),
        verify=False,
        trust_env=False,
        timeout=20,
    )
    assert answer.status_code == 413


@pytest.mark.parametrize("path", ["/", "/nothing", "/static/gearflow.js", "/events?page=/no", "/login"])
def test_every_answer_has_the_headers_that_keep_browsers_safe(
    dashboard: Callable[..., str], server: JobServer, path: str
) -> None:
    headers = get(dashboard(server) + path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "same-origin"
    assert "access-control-allow-origin" not in headers
    assert headers["cache-control"] == ("no-store" if "static" not in path else headers["cache-control"])


def test_no_page_has_an_inline_script_or_style(
    dashboard: Callable[..., str], server: JobServer, function: str
) -> None:
    url = dashboard(server)
    for pattern in PAGES:
        text = get(url + pattern.replace("{name}", function)).text
        assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=|javascript:", text)


@pytest.mark.parametrize("name", ["%FF", "a%ED%A0%80"])
def test_a_name_that_is_not_utf_8_is_of_nothing(
    dashboard: Callable[..., str], server: JobServer, name: str
) -> None:
    url = dashboard(server)
    for ask, patterns in ((get, PAGES), (post, ACTS)):
        for pattern in patterns:
            if "{" in pattern:
                assert ask(url + re.sub(r"\{\w+\}", name, pattern), SAME).status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/jobs?after=" + "[" * 20_000,
        '/jobs?after={"127.0.0.1:4730":"\\ud800"}',
        '/dead?after={"127.0.0.1:4730":7}',
        "/functions?text=%ff",
        "/events?page=" + "%255B" * 4000,
    ],
)
def test_a_query_that_makes_no_sense_is_refused(
    dashboard: Callable[..., str], server: JobServer, path: str
) -> None:
    assert get(dashboard(server) + path).status_code in (400, 404)


def test_a_form_with_a_handle_that_is_not_utf_8_is_refused(
    dashboard: Callable[..., str], server: JobServer
) -> None:
    answer = httpx.post(
        f"{dashboard(server)}/dead/replay", headers=SAME, content=b"handle=%ff", verify=False, timeout=20
    )
    assert answer.status_code == 400


@pytest.mark.parametrize("notice", [b"[" * 40_000, b"7", b"{}", b'{"text":1,"ok":"x"}', b"\xff"])
def test_a_forged_notice_breaks_no_page(
    dashboard: Callable[..., str], server: JobServer, notice: bytes
) -> None:
    cookie = base64.urlsafe_b64encode(notice).decode()
    assert get(dashboard(server), headers={"Cookie": f"gearflow_notice={cookie}"}).status_code == 200


@pytest.mark.parametrize("letter", ["é", '"', "\x1b", "\u202e"])
def test_a_long_name_does_not_lose_the_notice(
    dashboard: Callable[..., str], server: JobServer, letter: str
) -> None:
    url = dashboard(server)
    path = f"/functions/{quote(letter * 1000)}/resume"
    with httpx.Client(trust_env=False, headers=SAME, timeout=20) as browser:
        answer = browser.post(url + path)
        assert len(answer.headers["set-cookie"]) < 4096
        assert "Resumed " in browser.get(url).text


def test_a_form_with_two_lengths_ends_the_connection(
    dashboard: Callable[..., str], server: JobServer, function: str
) -> None:
    smuggled = b"GET /jobs HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = f"POST /functions/{function}/pause HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: same-origin\r\n"
    lengths = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    answer = raw(dashboard(server), head.encode() + lengths + smuggled)
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1
