"""What the HTTP port of a server shows: the metrics, whether it lives, whether it is ready. Needs the extra
``metrics``.
"""

import asyncio
from collections.abc import Iterator
from typing import Final

from gearflow.metrics.exporter import (
    ServerCaps,
    ServerSample,
    process_families,
    server_families,
    state_families,
)
from gearflow.metrics.families import Metric
from gearflow.metrics.http import ANSWER, State, Unavailable, liveness
from gearflow.server.admin import server_version
from gearflow.server.server import JobServer

_BUSY: Final = "the server has not said in time what it has counted"


class ServerMonitor:
    """Answers the requests to the port of a server, in the threads of the port. Owns which names have series.

    Args:
        server: The server. It may still have to start.
        loop: The event loop on which it runs.
        timeout: Seconds that the event loop has to answer.
    """

    def __init__(self, server: JobServer, loop: asyncio.AbstractEventLoop, timeout: float = ANSWER) -> None:
        self._server = server
        self._loop = loop
        self._timeout = timeout
        self._caps = ServerCaps()
        self._was_reading = False
        self.activity = "starting"
        """What the process does while the server neither reads its file nor serves. The owner changes it."""

    def families(self) -> Iterator[Metric]:
        """The metrics. There are few while the server does not serve. Raises ``Unavailable``."""
        server = self._server
        share, is_serving = server.loading, server.is_serving and server.loading is None
        reason = server.closed
        if is_serving:
            try:
                metrics = server.metrics()
            except (TimeoutError, RuntimeError):  # it is stopping, or blocked
                raise Unavailable(_BUSY) from None
            yield from server_families(
                ServerSample(metrics, server_version(), reason is not None), self._caps
            )
        self._was_reading = self._was_reading or share is not None
        loaded = float(is_serving or self._was_reading) if share is None else share
        yield from state_families(is_ready=is_serving and reason is None, loaded=loaded)
        yield from process_families()

    def healthy(self) -> State:
        """Whether the process lives. One that reads a file does, though its event loop is blocked."""
        return self._waiting(is_good=True) or liveness(self._loop, self._timeout)

    def ready(self) -> State:
        """Whether the server is to get jobs."""
        state = self._waiting(is_good=False) or liveness(self._loop, self._timeout)
        if not state.is_good:
            return state
        if (reason := self._server.closed) is not None:
            return State(False, f"no background jobs are accepted: {reason}")
        return State(True, "ready")

    def _waiting(self, *, is_good: bool) -> State | None:
        """What the server does before it serves, or while it reads its file again."""
        share = self._server.loading
        if share is not None:
            return State(is_good, f"loading, {int(share * 100)} %")
        return None if self._server.is_serving else State(is_good, self.activity)
