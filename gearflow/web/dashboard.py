"""The application: checks a request, finds its page or act, and answers."""

import base64
import inspect
import json
import logging
import re
from collections.abc import Collection, Iterable
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from gearflow.client.config import ServerAddress
from gearflow.errors import ConnectionLost, GearflowError, NoServer, UnknownJob
from gearflow.security.tls import TLS
from gearflow.web import paths
from gearflow.web.access import COOKIE, SESSION, AccessTokens, Allow, Right
from gearflow.web.formatting import visible
from gearflow.web.guard import HEADERS, SAFE, Guard, Refused
from gearflow.web.pages import SECTIONS
from gearflow.web.rendering import STATIC, Templates
from gearflow.web.sampler import Sampler
from gearflow.web.sections import Rendered, Route, find
from gearflow.web.server_sent_events import LiveParts, LiveStreams
from gearflow.web.visit import Visit, own_path

logger = logging.getLogger(__name__)

NOTICE: Final = "gearflow_notice"
"""The cookie with the sentence about the last act. The next page shows it and deletes it."""

_LONGEST_NOTICE: Final = 1400
"""Bytes. Even if each is escaped, browsers take the cookie, which may have 4,096 bytes."""

_NOTICE_AGE: Final = 60
"""Seconds for which the next page may show it."""

_PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+", re.ASCII)
"""It is in headers, cookies and links as it is."""

_FOREVER: Final = "public, max-age=31536000, immutable"


def app(
    servers: str | Iterable[str | ServerAddress] | None = None,
    *,
    allow: Allow,
    read_only: bool = False,
    hide_payloads: bool = False,
    hosts: Collection[str] = (),
    prefix: str = "",
    tls: TLS | bool | None = None,
    token: str | None = None,
    interval: float = 2.0,
) -> "Dashboard":
    """Make the dashboard, an ASGI application. Mount it in your own, or run it with a server on asyncio.

    Args:
        servers: The servers that it shows. None means those in GEARMAN_SERVERS, else 127.0.0.1:4730.
        allow: The rights of visitors. A function that gets the request (of Starlette) and returns ``"view"``,
            ``"operate"`` or None, or a coroutine function. A right alone is for everybody. There is no
            default, because payloads may be secret and acts are not harmless.
        read_only: Whether nobody may act, whatever ``allow`` says.
        hide_payloads: Whether payloads, results and parts of streams are not shown.
        hosts: Names by which browsers reach it, such as ``ops.example.com``. Addresses and ``localhost``
            always count. Requests for other names are refused, as these may be a trick (DNS rebinding).
        prefix: The path at which a proxy has it, such as ``/queue``. Leave it out if your application mounts
            it, because a mount says it itself.
        tls: How to use TLS with the servers. See ``Client``.
        token: The token for servers that require one. See ``Client``.
        interval: Seconds between two looks at the servers while somebody watches.

    Raises:
        ValueError: An address, the prefix or a setting is not valid.
    """
    if prefix and not _PREFIX.fullmatch(prefix):
        raise ValueError(
            f"{prefix!r} is no prefix: write a path such as /queue, with letters, digits, -, _ and ~ only"
        )
    sampler = Sampler(servers, tls=tls, token=token, interval=interval)
    return Dashboard(
        sampler, allow, Guard(hosts), prefix=prefix, read_only=read_only, hide_payloads=hide_payloads
    )


class Dashboard:
    """The dashboard of some servers as an ASGI application. ``gearflow.web.app`` makes it."""

    def __init__(
        self,
        sampler: Sampler,
        allow: Allow,
        guard: Guard,
        *,
        prefix: str = "",
        read_only: bool = False,
        hide_payloads: bool = False,
    ) -> None:
        self._sampler = sampler
        self._allow = allow
        self._guard = guard
        self._prefix = prefix
        self._read_only = read_only
        self._hides = hide_payloads
        self._templates = Templates(SECTIONS)
        self._routes = [route for section in SECTIONS for route in section.routes]
        self._streams = LiveStreams()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            request = Request(scope, receive)
            try:
                response = await self._answer(request)
            except ClientDisconnect:
                return
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
            response.headers.setdefault("cache-control", "no-store")
            await response(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await self._sampler.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, request: Request) -> Response:
        root, path = paths.route_of(request.scope, self._prefix)
        try:
            self._guard.check(request.method, Headers(scope=request.scope))
            return await self._route(request, root, path)
        except Refused as refused:
            return self._error(root, refused.status, str(refused), refused.headers)
        except (GearflowError, TimeoutError) as error:
            is_away = isinstance(error, NoServer | ConnectionLost)
            status = 404 if isinstance(error, UnknownJob) else 503 if is_away else 502
            text = str(error)
            return self._error(root, status, text[:1].upper() + text[1:])
        except ClientDisconnect:
            raise
        except Exception:
            logger.exception("the dashboard failed on %s", path)
            return self._error(root, 500, "The dashboard has failed. Its log says why.")

    async def _route(self, request: Request, root: str, path: str) -> Response:
        if path.startswith("/static/"):
            return self._static(request, path.removeprefix("/static/"))
        if path in _SESSIONS and request.method == "POST":
            return await self._session(request, root, path)
        right = await self._right_of(request)
        if right is None:
            return self._no_right(request, root, path)
        if path in _SESSIONS and isinstance(self._allow, AccessTokens):  # a page that was loaded again
            return RedirectResponse(root + "/", 303)
        if path == "/events" and request.method == "GET":
            return self._events(request, root)
        route, params = find(self._routes, request.method, path)
        visit = self._visit(request, root, right, path, request.url.query, params)
        return await (self._act(visit, route) if route.is_act else self._page(visit, route))

    def _visit(
        self, request: Request, root: str, right: Right, path: str, query: str, params: dict[str, str]
    ) -> Visit:
        return Visit(
            request,
            self._sampler,
            path=path,
            root=root,
            right=right,
            params=params,
            query=query,
            hide_payloads=self._hides,
        )

    # ------------------------------------------------------------------------------------ pages and acts

    async def _page(self, visit: Visit, route: Route) -> Response:
        shown = await route.handler(visit)
        if isinstance(shown, Response):
            return shown
        assert isinstance(shown, Rendered)  # a page does not act
        notice = _read_notice(visit.request)
        response = self._html(visit, route, shown, notice=notice)
        if notice is not None:
            response.delete_cookie(NOTICE, path=visit.root or "/")
        return response

    async def _act(self, visit: Visit, route: Route) -> Response:
        if visit.right != "operate":
            raise Refused(403, "You may look at this dashboard, and not act. Nothing was done.")
        await visit.read_form()
        done = await route.handler(visit)
        if isinstance(done, Response):
            return done
        await self._sampler.look_again()
        if isinstance(done, Rendered):  # a question, such as whether to act on so many
            return self._html(visit, route, done)
        response = RedirectResponse(done.to, 303)
        short = visible(done.text).encode()[:_LONGEST_NOTICE].decode(errors="ignore")
        text = json.dumps({"text": short, "ok": done.ok}, ensure_ascii=False)
        value = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
        _set_cookie(response, visit.request, visit.root, NOTICE, value, _NOTICE_AGE)
        return response

    def _html(
        self, visit: Visit, route: Route, shown: Rendered, notice: dict[str, object] | None = None
    ) -> HTMLResponse:
        more = {"section": route.section, "user": self._has_session(visit)}
        # The answer to an act stays as it is, because its path is no page.
        text = self._templates.page(visit, shown, notice=notice, follows=not route.is_act, **more)
        return HTMLResponse(text, shown.status)

    def _has_session(self, visit: Visit) -> bool:
        return isinstance(self._allow, AccessTokens) and COOKIE in visit.request.cookies

    def _events(self, request: Request, root: str) -> Response:
        path, _, query = request.query_params.get("page", "/").partition("?")
        route, params = find(self._routes, "GET", path)

        async def parts() -> LiveParts:
            right = await self._right_of(request)
            if right is None:
                raise Refused(401, "You may not look at this any more.")
            visit = self._visit(request, root, right, path, query, params)
            shown = await route.handler(visit)
            if not isinstance(shown, Rendered):
                raise Refused(404, "This page does not change.")
            user = self._has_session(visit)
            blocks = self._templates.live(
                visit, shown, section=route.section, notice=None, user=user, follows=True
            )
            return LiveParts(dict(blocks), shown.again)

        return self._streams.response(parts, route.every)

    def _static(self, request: Request, name: str) -> Response:
        content = self._templates.static.get(name)
        if content is None:
            raise Refused(404, "There is no such file.")
        return Response(content, media_type=STATIC[name], headers={"cache-control": _FOREVER})

    # ------------------------------------------------------------------------------------------ rights

    async def _right_of(self, request: Request) -> Right | None:
        found = self._allow if isinstance(self._allow, str) else self._allow(request)
        right = await found if inspect.isawaitable(found) else found
        if right not in ("view", "operate", None):
            raise TypeError(f"allow returned {right!r}: it returns 'view', 'operate' or None")
        return "view" if right == "operate" and self._read_only else right

    def _no_right(self, request: Request, root: str, path: str) -> Response:
        if not isinstance(self._allow, AccessTokens):
            raise Refused(403, "You may not look at this dashboard.")
        if request.method not in SAFE:
            raise Refused(401, "Nothing was done. Give your access token first.", _CHALLENGE)
        came_by_link = request.headers.get("sec-fetch-site") == "cross-site"
        to = path + (f"?{request.url.query}" if request.url.query else "")
        values: dict[str, object] = {"to": to, "again": came_by_link, "wrong": False, "root": root}
        return self._login_page(values)

    def _login_page(self, values: dict[str, object]) -> Response:
        shown = Rendered("login.html", "Access token", values)
        return HTMLResponse(self._templates.page(None, shown), 401, _CHALLENGE)

    async def _session(self, request: Request, root: str, path: str) -> Response:
        if not isinstance(self._allow, AccessTokens):
            raise Refused(404, "There is no such page.")
        if path == "/logout":
            response: Response = RedirectResponse(root + "/", 303)
            response.delete_cookie(COOKIE, path=root or "/")
            return response
        visit = Visit(request, self._sampler, path=path, root=root, right="view", params={}, query="")
        await visit.read_form()
        to = own_path(visit.form.get("to", "")) or "/"
        cookie = self._allow.cookie(visit.form.get("token", "").strip())
        if cookie is None:
            logger.warning(
                "a wrong access token came from %s", request.client.host if request.client else "?"
            )
            return self._login_page({"to": to, "again": False, "wrong": True, "root": root})
        response = RedirectResponse(root + to, 303)
        _set_cookie(response, request, root, COOKIE, cookie, SESSION)
        return response

    def _error(self, root: str, status: int, reason: str, headers: dict[str, str] | None = None) -> Response:
        shown = Rendered("error.html", _TITLES.get(status, "Not done"), {"reason": reason, "root": root})
        return HTMLResponse(self._templates.page(None, shown), status, headers)


_SESSIONS: Final = ("/login", "/logout")

_CHALLENGE: Final = {"www-authenticate": 'Bearer realm="gearflow"'}

_TITLES: Final = {
    401: "Access token",
    403: "Not allowed",
    404: "Not found",
    405: "Not here",
    421: "Wrong host",
    500: "Broken",
    502: "The server refuses",
    503: "No answer",
}


def _read_notice(request: Request) -> dict[str, object] | None:
    value = request.cookies.get(NOTICE)
    if not value:
        return None
    try:
        found = json.loads(base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)))
        return {"text": str(found["text"])[:_LONGEST_NOTICE], "ok": bool(found["ok"])}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {"text": "Done.", "ok": True}


def _set_cookie(response: Response, request: Request, root: str, name: str, value: str, seconds: int) -> None:
    """Set a cookie that no script can read, and that no other site can send."""
    response.set_cookie(
        name,
        value,
        max_age=seconds,
        path=root or "/",
        secure=_is_secure(request),
        httponly=True,
        samesite="strict",
    )


def _is_secure(request: Request) -> bool:
    return request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
