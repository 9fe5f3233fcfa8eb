"""A worker in a process of its own: what the signals of the shell and of service managers mean to it."""

import signal
from collections.abc import Sequence
from typing import Final

import anyio

from gearflow.worker.worker import Worker

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


async def run_with_signals(worker: Worker, signals: Sequence[signal.Signals] = STOP_SIGNALS) -> int | None:
    """Run a worker; the first signal stops it warm, the second makes it leave cold.

    To be called in the main thread. A process that returns from this may have threads left that run
    overdue or abandoned tasks; they are daemons, so they end with it.

    Returns:
        The number of the signal that forced it to leave; ``None`` if it finished what ran.
    """
    forced: int | None = None
    with anyio.open_signal_receiver(*signals) as received:
        async with anyio.create_task_group() as tasks:

            async def obey() -> None:
                nonlocal forced
                async for number in received:
                    if worker.stopping:
                        forced = number
                        worker.leave()
                        return
                    worker.stop()

            tasks.start_soon(obey)
            await worker.run()
            tasks.cancel_scope.cancel()
    return forced
