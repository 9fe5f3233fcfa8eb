"""When a worker that is to end by itself has nothing more to do.

It has if each of its servers has sent NO_JOB to a GRAB that was written after the last run ended, since a
run may have put jobs on any queue; and if no job runs here, or waits here for its next run. A server that
cannot be reached counts for some time only, from the start, or from when it was lost.
"""

import time
from collections.abc import Callable, Sequence

import anyio

from gearflow.errors import NoServer
from gearflow.worker.server_link import ServerLink
from gearflow.worker.stats import RunStats


class Burst:
    """Waits for that moment. Owns state.

    Args:
        links: To all servers.
        timeout: Seconds to wait for a server that cannot be reached.
        stats: Whether a job runs or is held.
    """

    def __init__(self, links: Sequence[ServerLink], timeout: float, stats: RunStats) -> None:
        self._links = links
        self._timeout = timeout
        self._stats = stats
        self._away: dict[ServerLink, float] = {}  # those that cannot be reached, and until when they count
        self._changed = anyio.Event()
        self.is_settled: Callable[[], bool] = lambda: True
        """Whether all links are known."""

    async def watch(self) -> None:
        """Return when there is nothing more to do.

        Raises:
            NoServer: No server can be reached.
        """
        while True:
            self._changed = anyio.Event()
            limit = self._time_left()
            if limit is None:
                if self._away and all(link in self._away for link in self._links if link.counts):
                    raise NoServer({str(link.address): self._reason(link) for link in self._links})
                if self.is_settled() and self._stats.is_at_rest and self._are_out_of_jobs():
                    return
            with anyio.move_on_after(limit):
                await self._changed.wait()

    def changed(self) -> None:
        """A server was reached, lost, or has no more jobs."""
        self._changed.set()

    def run_ended(self) -> None:
        """A run has ended: its servers are asked again once nothing runs any more."""
        if self._stats.is_at_rest:
            for link in self._links:
                link.ask_again()

    def _time_left(self) -> float | None:
        """Seconds until the servers that are away count no more; ``None`` if none counts."""
        now = time.monotonic()
        away = [link for link in self._links if link.counts and not link.is_registered]
        self._away = {link: self._away.get(link, now + self._timeout) for link in away}
        latest = max(self._away.values(), default=now)
        return latest - now if latest > now else None

    def _are_out_of_jobs(self) -> bool:
        return all(link.is_out_of_jobs for link in self._links if link.counts and link not in self._away)

    def _reason(self, link: ServerLink) -> str:
        return link.outage or f"no answer within {self._timeout:g} s"
