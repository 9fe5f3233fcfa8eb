"""The sections of the dashboard, one module each. A new one needs a line in the list."""

from typing import Final

from gearflow.web.pages import functions, limits, metrics, overview, schedules, servers
from gearflow.web.sections import Section

_MODULES: Final = [
    overview,
    functions,
    schedules,
    limits,
    servers,
    metrics,  # a page of the same section
]

SECTIONS: Final[list[Section]] = sorted(
    {module.section for module in _MODULES}, key=lambda section: section.order
)
"""All sections in the order of the navigation."""
