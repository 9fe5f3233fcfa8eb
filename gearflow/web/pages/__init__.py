"""The sections of the dashboard, one module each. A new one needs a line in the list."""

from typing import Final

from gearflow.web.pages import (
    dead,
    functions,
    jobs,
    limits,
    metrics,
    overview,
    schedules,
    servers,
    workers,
)
from gearflow.web.sections import Section

_MODULES: Final = [
    overview,
    functions,
    jobs,
    dead,
    workers,
    schedules,
    limits,
    servers,
    metrics,  # a page of the same section
]

SECTIONS: Final[list[Section]] = sorted(
    dict.fromkeys(module.section for module in _MODULES), key=lambda section: section.order
)
"""All sections in the order of the navigation."""
