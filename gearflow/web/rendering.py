"""Templates: whole pages, and the parts of them that follow the servers."""

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from gearflow.web import plots
from gearflow.web.formatting import FILTERS, finalized
from gearflow.web.sections import Rendered, Section
from gearflow.web.visit import Visit

PREFIX: Final = "live_"
"""Begins the names of blocks that are sent again when they change."""

STATIC: Final = {
    "gearflow.css": "text/css; charset=utf-8",
    "gearflow.js": "text/javascript; charset=utf-8",
    "favicon.svg": "image/svg+xml",
}
"""The files that pages use, with their types. Nothing else is served from the disk."""


class Templates:
    """The templates of all sections."""

    def __init__(self, sections: list[Section]) -> None:
        self._environment = Environment(
            loader=PackageLoader("gearflow.web"),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=finalized,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        filters: dict[str, Any] = self._environment.filters  # jinja2 declares the types of its own ones
        values: dict[str, Any] = self._environment.globals
        filters.update(FILTERS)
        values.update(plots=plots, sections=sections, version=self._version)
        values["known"] = {section.path for section in sections}
        values["m"] = self._environment.get_template("macros.html").module

    @cached_property
    def static(self) -> Mapping[str, bytes]:
        """The contents of the files that pages use."""
        folder = files("gearflow.web") / "static"
        return {name: (folder / name).read_bytes() for name in STATIC}

    @cached_property
    def _version(self) -> str:
        """Changes with the files that pages use, so that no browser uses old ones."""
        digest = hashlib.sha256(b"".join(self.static[name] for name in STATIC))
        return digest.hexdigest()[:12]

    def page(self, visit: Visit | None, rendered: Rendered, **more: object) -> str:
        """A whole page."""
        return self._environment.get_template(rendered.template).render(_values(visit, rendered, more))

    def live(self, visit: Visit, rendered: Rendered, **more: object) -> Iterator[tuple[str, str]]:
        """The parts of a page that follow the servers: their names, and their contents."""
        template = self._environment.get_template(rendered.template)
        layout = self._environment.get_template("layout.html")
        blocks = {**layout.blocks, **template.blocks}
        values = _values(visit, rendered, more)
        for name, block in blocks.items():
            if name.startswith(PREFIX):
                yield name, "".join(block(template.new_context(values)))


def _values(visit: Visit | None, rendered: Rendered, more: Mapping[str, object]) -> dict[str, Any]:
    root = {"root": visit.root} if visit is not None else {}
    return {**root, **rendered.values, **more, "visit": visit, "title": rendered.title}
