"""A sign of life in the log of a worker that has nothing to do."""

import logging
import time
from collections.abc import Callable, Sequence

import anyio

from gearflow.worker.link import Link
from gearflow.worker.tally import Tally

logger = logging.getLogger("gearflow.worker")


async def tell(interval: float, tally: Tally, links: Sequence[Link], is_waiting: Callable[[], bool]) -> None:
    """Log a line whenever no job has run for so many seconds."""
    while True:
        idle = time.perf_counter() - tally.last_end
        if idle < interval:
            await anyio.sleep(interval - idle)
            continue
        if is_waiting():
            connected = sum(link.is_registered for link in links)
            logger.info(
                "waiting for jobs",
                extra={"servers": f"{connected}/{len(links)}", "done": tally.done, "failed": tally.failed},
            )
        await anyio.sleep(interval)
