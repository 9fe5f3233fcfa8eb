"""One request to a page or an act, as its handler sees it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from starlette.requests import Request

from gearflow.observe import Patience
from gearflow.web import paths
from gearflow.web.access import Right
from gearflow.web.guard import MAX_BODY, Refused

if TYPE_CHECKING:
    from gearflow.client import Client
    from gearflow.observe import ViewPart
    from gearflow.web.sampler import Sample, Sampler


class Visit:
    """A request of a visitor who has the right for it.

    Attributes:
        request: The request itself.
        path: The path of the page below the prefix, as it was sent.
        root: The prefix of all paths.
        right: What the visitor may do.
        params: The names in the path.
        query: The values behind the ``?``. The last one counts.
        form: The values of the form of an act. The last one counts.
        sampler: Looks at the servers for all visitors.
        hide_payloads: Whether no payload, result and part of a stream may be shown.
        patience: The time for which the page waits for servers. An act may wait longer.
    """

    def __init__(
        self,
        request: Request,
        sampler: "Sampler",
        *,
        path: str,
        root: str,
        right: Right,
        params: Mapping[str, str],
        query: str,
        hide_payloads: bool = False,
    ) -> None:
        self.request = request
        self.sampler = sampler
        self.path = path
        self.root = root
        self.right = right
        self.params = params
        self.query = _read_query(query)
        self.form: dict[str, str] = {}
        self.hide_payloads = hide_payloads
        self.patience = Patience()

    @property
    def may_operate(self) -> bool:
        """Whether the visitor and the dashboard may act. Pages show no buttons if not."""
        return self.right == "operate" and self.sampler.may_operate

    @property
    def here(self) -> str:
        """The path of this page below the prefix, with its query."""
        return self.path + paths.query(self.query)

    def url(self, path: str, *names: str, act: str = "", **query: object) -> str:
        """The URL of a page or an act, such as ``visit.url("/functions", name, act="pause")``.

        Args:
            path: The beginning of the path, which is not quoted.
            names: Names that follow, each as one segment.
            act: The last segment, for an act.
            query: Values behind the ``?``. Those that are None or empty are left out.
        """
        whole = "/".join([path.rstrip("/"), *map(paths.segment, names), *([act] if act else [])])
        return self.root + (whole or "/") + paths.query(query)

    def again(self, **query: object) -> str:
        """The URL of this page with other values behind the ``?``."""
        return self.root + self.path + paths.query({**self.query, **query})

    @property
    def start(self) -> int:
        """The place in a list at which its page begins, from 0."""
        text = self.query.get("from", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 8 else 0

    def back(self, path: str) -> str:
        """The URL of the page from which a form was sent, if its field ``back`` says so, else of ``path``."""
        to = own_path(self.form.get("back", ""))
        return self.root + (to or path)

    async def sample(self, *parts: "ViewPart") -> "Sample":
        """The servers as they were a few seconds ago. See ``Sampler.sample``."""
        return await self.sampler.sample(*parts)

    async def client(self) -> "Client":
        """The client for questions and acts. It stays open. Do not close it."""
        return await self.sampler.client()

    def server(self) -> str | None:
        """The server that the form or the query names. None if it names none.

        Raises:
            Refused: It is none of those that the dashboard has. So nobody can make it connect to others.
        """
        address = self.form.get("server") or self.query.get("server")
        if not address:
            return None
        if address not in self.sampler.addresses:
            raise Refused(400, f"The dashboard has no server {address}.")
        return address

    async def read_form(self) -> None:
        """Read the form of an act.

        Raises:
            Refused: It is too long, or no form.
        """
        body = bytearray()
        async for chunk in self.request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise Refused(413, f"A form has at most {MAX_BODY:,} bytes.")
        try:
            text = body.decode("ascii")
            self.form = dict(parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=1000))
        except ValueError:
            raise Refused(400, "The form cannot be read.") from None


def _read_query(query: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(query, errors="strict", max_num_fields=100))
    except ValueError:
        raise Refused(400, "The address has too many values, or one that is not UTF-8.") from None


def own_path(to: str) -> str:
    """The path if it is one of this dashboard, else empty.

    Browsers take ``//host`` and ``/\\host`` for another site.
    """
    is_path = to.startswith("/") and not to.startswith("//") and "\\" not in to
    return to if is_path and to.isascii() and to.isprintable() else ""
