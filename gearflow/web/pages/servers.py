"""The page Servers: kind, version, store, promises and replication of each."""

from gearflow.web.sections import Rendered, Section
from gearflow.web.visit import Visit

section = Section("Servers", "/servers", order=80)


@section.page("/servers")
async def servers(visit: Visit) -> Rendered:
    """All servers, also those that do not answer."""
    sample = await visit.sample("workers", "group")
    return Rendered("servers.html", "Servers", {"sample": sample})
