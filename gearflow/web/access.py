"""The rights of visitors: access tokens, the header of a proxy, or a function of your own.

There are two rights. ``view`` shows the pages, ``operate`` acts as well. No right shows nothing but the page
on which an access token is typed.
"""

import base64
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable, Collection
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final, Literal, TypeAlias

from starlette.requests import Request

from gearflow.protocol.rights import Grant, Tokens
from gearflow.protocol.rights import Right as WireRight
from gearflow.security.tokens import read_tokens

Right: TypeAlias = Literal["view", "operate"]
"""What a visitor may do. ``operate`` includes ``view``."""

Allow: TypeAlias = Right | Callable[[Request], Right | Awaitable[Right | None] | None]
"""A right that everybody has, or a function that returns the right of the visitor who makes a request."""

COOKIE: Final = "gearflow_session"

SESSION: Final = 7 * 86_400
"""Seconds after which the token has to be typed again."""


class AccessTokens:
    """Gives rights to those who know a token. It is typed once, or sent as ``Authorization: Bearer``.

    Then a cookie stands for it. The cookie is signed with a key that only this process has, so there is no
    list of sessions, and a restart ends them all. A token that is removed ends its own.

    Args:
        tokens: The tokens. Those with the right to view or to operate count.
        key: The key of the cookies. Give the same to several processes that serve one dashboard.

    Raises:
        ValueError: No token gives a right here.
    """

    def __init__(self, tokens: Tokens, *, key: bytes | None = None) -> None:
        self.replace(tokens)
        self._key = key or secrets.token_bytes(32)

    def replace(self, tokens: Tokens) -> None:
        """Let other tokens count from now on. Raises ValueError if none of them gives a right."""
        if not any(map(_right, tokens)):
            raise ValueError(
                "no token has the right to view or to operate, so nobody could look at the dashboard; "
                "make one with: gearflow token"
            )
        self._tokens = tokens

    @classmethod
    def read(cls, file: str | Path, *, key: bytes | None = None) -> "AccessTokens":
        """Read a file of tokens, which has the same form as that of a server.

        Args:
            file: The file.
            key: The key of the cookies. Give the same to several processes that serve one dashboard.

        Raises:
            ValueError: The file cannot be read or used.
        """
        return cls(read_tokens(file), key=key)

    def __call__(self, request: Request) -> Right | None:
        """The right of a visitor."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return _right(self._tokens.find(token.strip().encode()))
        return self._right_of_cookie(request.cookies.get(COOKIE, ""))

    def cookie(self, token: str) -> str | None:
        """The value of the cookie for a token. None if the token gives no right."""
        grant = self._tokens.find(token.encode("utf-8", "surrogateescape"))
        if grant is None or _right(grant) is None:
            return None
        until = f"{time.time() + SESSION:.0f}"
        return f"{until}.{self._sign(grant.digest, until)}"

    def _right_of_cookie(self, cookie: str) -> Right | None:
        until, _, signature = cookie.partition(".")
        if not (until.isascii() and until.isdigit() and len(until) < 12) or int(until) < time.time():
            return None
        found = None
        for grant in self._tokens:
            if hmac.compare_digest(signature.encode(), self._sign(grant.digest, until).encode()):
                found = grant
        return _right(found)

    def _sign(self, digest: bytes, until: str) -> str:
        signature = hmac.digest(self._key, digest + until.encode(), "sha256")
        return base64.urlsafe_b64encode(signature).decode().rstrip("=")


def _right(grant: Grant | None) -> Right | None:
    """What a token gives here. One for submitting or for workers gives nothing."""
    if grant is None:
        return None
    if WireRight.OPERATE in grant.rights:
        return "operate"
    return "view" if WireRight.VIEW in grant.rights else None


class TrustedHeader:
    """Gives rights to the users whom a proxy names in a header, after it has asked them to sign in.

    The header counts only if the connection comes from the proxy. Everybody else could write it, too.

    Args:
        header: The header with the name of the user, such as ``X-Forwarded-User``.
        proxies: The addresses or networks of the proxy. By default this machine. Start uvicorn with
            ``--no-proxy-headers``, because it otherwise replaces the address by that in ``X-Forwarded-For``.
        operators: The users who may act. The others may look. None means that all may act.

    Raises:
        ValueError: A proxy is neither an address nor a network.
    """

    def __init__(
        self,
        header: str,
        *,
        proxies: Collection[str] = ("127.0.0.0/8", "::1"),
        operators: Collection[str] | None = None,
    ) -> None:
        self._header = header
        self._proxies = [ip_network(proxy) for proxy in proxies]
        self._operators = None if operators is None else frozenset(operators)

    def __call__(self, request: Request) -> Right | None:
        """The right of a visitor."""
        users = request.headers.getlist(self._header)
        if len(users) != 1 or not (user := users[0].strip()) or not self._is_proxy(request):
            return None
        return "operate" if self._operators is None or user in self._operators else "view"

    def _is_proxy(self, request: Request) -> bool:
        if request.client is None:  # a Unix socket, which only this machine reaches
            return True
        try:
            address = ip_address(request.client.host)
        except ValueError:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._proxies)
