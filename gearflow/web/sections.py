"""Sections of the dashboard: their pages and acts, each with the right that it needs."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from starlette.responses import Response

from gearflow.web.access import Right
from gearflow.web.guard import SAFE, Refused
from gearflow.web.paths import match
from gearflow.web.visit import Visit

LIVE: Final = 2.0
"""Seconds between two looks of a page that nothing else says about."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a page shows: a template with its values. A frozen value."""

    template: str
    """The name of the template."""

    title: str
    """The heading of the page, which is also the title of the window."""

    values: Mapping[str, object] = field(default_factory=dict[str, object])
    """The values that the template uses, also ``visit``, which it always has."""

    status: int = 200
    """The status of the answer."""

    again: float | None = None
    """Seconds after which it is rendered again for those who look at it. None: as its route says.
    Infinity: not at all."""


@dataclass(frozen=True, slots=True)
class Acted:
    """What an act has done. A frozen value."""

    text: str
    """The sentence that the next page begins with."""

    to: str
    """The next page, from ``visit.url``."""

    ok: bool = True
    """Whether it is good news."""


PageHandler: TypeAlias = Callable[[Visit], Awaitable[Rendered | Response]]
ActHandler: TypeAlias = Callable[[Visit], Awaitable[Acted | Rendered]]


@dataclass(frozen=True, slots=True)
class Route:
    """A page or an act. A frozen value."""

    pattern: str
    handler: PageHandler | ActHandler
    section: "Section"
    right: Right
    every: float = LIVE
    """Seconds after which a page that somebody looks at is rendered again."""

    @property
    def is_act(self) -> bool:
        """Whether it is an act."""
        return self.right == "operate"


class Section:
    """Pages and acts that belong together. This is the only way to add some.

    Args:
        name: The name in the navigation.
        path: The path of its first page.
        order: The place in the navigation, from the smallest to the largest number.
        badge: Returns the number beside the name. 0 shows none.
    """

    def __init__(
        self, name: str, path: str, *, order: int, badge: "Callable[[Visit], int] | None" = None
    ) -> None:
        self.name = name
        self.path = path
        self.order = order
        self.badge = badge
        self.routes: list[Route] = []

    def page(self, pattern: str, *, every: float = LIVE) -> Callable[[PageHandler], PageHandler]:
        """Add a page, for visitors who may view.

        Args:
            pattern: Its path, such as ``/functions/{name}``.
            every: Seconds after which it is rendered again for those who look at it.
        """

        def add(handler: PageHandler) -> PageHandler:
            self.routes.append(Route(pattern, handler, self, "view", every))
            return handler

        return add

    def act(self, pattern: str) -> Callable[[ActHandler], ActHandler]:
        """Add an act, for visitors who may operate.

        Args:
            pattern: The path to which its form is sent, such as ``/functions/{name}/pause``.
        """

        def add(handler: ActHandler) -> ActHandler:
            self.routes.append(Route(pattern, handler, self, "operate"))
            return handler

        return add


def find(routes: list[Route], method: str, path: str) -> tuple[Route, dict[str, str]]:
    """The page or the act of a path, with the names in the path.

    Raises:
        Refused: There is none, or not for this method.
    """
    other = False
    for route in routes:
        if (names := match(route.pattern, path)) is not None:
            if route.is_act == (method not in SAFE):
                _check(names)
                return route, names
            other = True
    if other:
        allowed = "GET, HEAD" if method == "POST" else "POST"
        raise Refused(405, f"This path takes {allowed}.", {"allow": allowed})
    raise Refused(404, "There is no such page.")


def _check(names: Mapping[str, str]) -> None:
    """Refuse names that no server can be asked for, because requests to servers are UTF-8."""
    try:
        "".join(names.values()).encode()
    except UnicodeEncodeError:
        raise Refused(404, "A name in this path is not UTF-8, so no server has it.") from None
