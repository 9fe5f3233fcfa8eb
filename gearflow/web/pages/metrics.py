"""``/metrics``: the metrics of all servers for Prometheus, C gearmand included. It is no page for people.

``/metrics?server=HOST:PORT`` has those of one server.
"""

from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

import anyio
import anyio.to_thread
from starlette.responses import Response

from gearflow.observe import ServerView
from gearflow.protocol.metrics import Metrics
from gearflow.web.pages.servers import section
from gearflow.web.sampler import Sample, Sampler
from gearflow.web.visit import Visit

if TYPE_CHECKING:
    from gearflow.metrics.exporter import ServerSample
    from gearflow.metrics.fleet_exporter import FleetExporter
    from gearflow.metrics.http import Page


class _Exporters:
    """What was counted before, for the servers of one dashboard. Owns state."""

    def __init__(self) -> None:
        self._lock = anyio.Lock()
        self._exporters: dict[str, FleetExporter] = {}  # of one server, or of all
        self._last: dict[str, tuple[object, Page]] = {}  # for each of them what it is made of, and the page

    async def page(self, sample: Sample, only: str, visit: Visit) -> "Page":
        """The page for Prometheus. All who ask for the same sample share it.

        A thread makes it, because it may have many thousand lines.
        """
        from gearflow.metrics.fleet_exporter import FleetExporter
        from gearflow.metrics.http import metrics_page

        views = {view.address: view for view in (sample.fleet.servers if only else sample.servers)}
        if only:
            views = {only: views[only]}
        headers = visit.request.headers
        accept, encodings = headers.get("accept", ""), headers.get("accept-encoding", "")
        made_of = sample.taken, accept, encodings
        async with self._lock:
            if only not in self._last or self._last[only][0] != made_of:
                exporter = self._exporters.setdefault(only, FleetExporter())
                samples = {address: _sample(view) for address, view in views.items()}
                page = await anyio.to_thread.run_sync(
                    lambda: metrics_page(list(exporter.families(samples)), accept, encodings)
                )
                self._last[only] = made_of, page
            return self._last[only][1]


_exporters: Final[WeakKeyDictionary[Sampler, _Exporters]] = WeakKeyDictionary()


@section.page("/metrics")
async def metrics(visit: Visit) -> Response:
    """The sums over all servers, or what one of them has."""
    only = visit.server() or ""
    sample = await visit.sample()
    exporters = _exporters.setdefault(visit.sampler, _Exporters())
    page = await exporters.page(sample, only, visit)
    return Response(page.body, page.status, dict(page.headers))


def _sample(view: ServerView) -> "ServerSample | None":
    """What a server has counted. None if it does not answer."""
    from gearflow.metrics.exporter import ServerSample

    if not view.answers:
        return None
    if view.metrics is None:
        found = Metrics(time=view.at, started=0, functions=view.functions)
        return ServerSample(found, view.version, has_counted=False)
    closed = view.info is not None and view.info.closed is not None
    group = (view.info.group or "") if view.info is not None else ""
    return ServerSample(view.metrics, view.version, closed, group)
