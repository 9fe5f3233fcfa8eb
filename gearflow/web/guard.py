"""What is checked before a request is routed, and the headers that every answer has.

The checks are the same for every path, so no page and no act can forget them:

* The host must be an address, ``localhost`` or a name that was allowed. Another site can make its own name
  point to this machine (DNS rebinding). Its requests then have that name.
* A request that may change something must come from a page of the dashboard itself. Browsers say so in
  ``Sec-Fetch-Site``. Those that do not send it send ``Origin``.
* Other sites may link to a page. They may not embed one, nor fetch one.
"""

import re
from collections.abc import Collection
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers

SAFE: Final = ("GET", "HEAD")
METHODS: Final = (*SAFE, "POST")

MAX_BODY: Final = 65_536
"""Bytes in a form. The names of a function and of a server fit."""

HEADERS: Final = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "same-origin",  # with no-referrer, browsers send the origin of a form as null
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Headers of every answer."""

_HOST: Final = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?", re.ASCII)


class Refused(Exception):
    """A request that is not answered, with the reason and the remedy.

    Attributes:
        status: The status of the answer.
        headers: Further headers of the answer.
    """

    def __init__(self, status: int, reason: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = headers or {}


class Guard:
    """Checks requests.

    Args:
        hosts: Names by which browsers may reach the dashboard. Addresses and ``localhost`` always count.
    """

    def __init__(self, hosts: Collection[str] = ()) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)

    def check(self, method: str, headers: Headers) -> None:
        """Check a request before anything looks at its path.

        Raises:
            Refused: The request is not answered.
        """
        if method not in METHODS:
            raise Refused(405, f"{method} is not used here.", {"allow": ", ".join(METHODS)})
        host = self._host(headers)
        if method in SAFE:
            self._check_embedding(headers, host)
        else:
            self._check_origin(headers, host)
            self._check_form(headers)

    def _host(self, headers: Headers) -> str:
        hosts = headers.getlist("host")
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is None:
            raise Refused(400, "The request has no valid header Host.")
        name = match[1].lower()
        if name.rstrip(".") != "localhost" and name not in self._hosts and not _is_address(name):
            raise Refused(
                421,
                f"The dashboard does not answer to the name {name}. To allow it, start gearflow web with "
                f"--host {name}, or give hosts=[{name!r}] to gearflow.web.app().",
            )
        return hosts[0].lower()

    def _check_origin(self, headers: Headers, host: str) -> None:
        site = headers.get("sec-fetch-site")
        if site is not None:
            allowed = site == "same-origin" and len(headers.getlist("sec-fetch-site")) == 1
        else:
            allowed = self._is_own(headers, host)
        if not allowed:
            raise Refused(
                403,
                "The request does not come from a page of this dashboard, so nothing was done. If it does, a "
                "proxy removes Sec-Fetch-Site or Origin, or changes Host.",
            )

    def _check_embedding(self, headers: Headers, host: str) -> None:
        site = headers.get("sec-fetch-site")
        if site in ("cross-site", "same-site"):
            linked = headers.get("sec-fetch-mode") == "navigate"
            allowed = linked and headers.get("sec-fetch-dest", "document") in ("document", "empty")
        else:
            allowed = "origin" not in headers or site is not None or self._is_own(headers, host)
        if not allowed:
            raise Refused(403, "Other sites may link to this dashboard, and not read or embed it.")

    def _is_own(self, headers: Headers, host: str) -> bool:
        origins = headers.getlist("origin")
        if len(origins) != 1:
            return False
        try:
            origin = urlsplit(origins[0].lower())
        except ValueError:
            return False
        if origin.scheme not in ("http", "https") or not origin.netloc:
            return False
        default = ":443" if origin.scheme == "https" else ":80"
        return origin.netloc.removesuffix(default) == host.removesuffix(default)

    def _check_form(self, headers: Headers) -> None:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in ("", "application/x-www-form-urlencoded"):
            raise Refused(415, "A form has the type application/x-www-form-urlencoded.")
        if "content-length" in headers and "transfer-encoding" in headers:
            text = "The request says its length in two ways, which a proxy may read in another way."
            raise Refused(400, text, {"connection": "close"})
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or int(length[:12]) > MAX_BODY:
            raise Refused(413, f"A form has at most {MAX_BODY:,} bytes.")


def _is_address(host: str) -> bool:
    try:
        ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
