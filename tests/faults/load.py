"""Calls without end, each of which must end well: what a user sees while workers and servers come and go."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import anyio

from gearflow import AsyncTask
from tests.faults import tasks

PATIENCE: Final = 30.0
"""Seconds after which what does not happen fails its test."""


class Load:
    """Calls under way. Owns the count of those that ended."""

    def __init__(self, *, resubmit: bool) -> None:
        self.ended = 0
        self._resubmit = resubmit
        self._news = anyio.Event()
        self._over = False

    async def goes_on(self, calls: int = 50) -> None:
        """Until so many more calls have ended, as well as all those that are under way now."""
        goal = self.ended + calls
        with anyio.fail_after(PATIENCE):
            while self.ended < goal:
                self._news = anyio.Event()
                await self._news.wait()

    async def run(self, callers: int) -> None:
        """Call until ``stop``; an error of any call is raised."""
        async with anyio.create_task_group() as group:
            for number in range(callers):
                group.start_soon(self._call, number)

    def stop(self) -> None:
        """Make no further calls."""
        self._over = True

    async def _call(self, number: int) -> None:
        called: AsyncTask[[int], int] = tasks.triple
        while not self._over:
            with anyio.fail_after(PATIENCE):
                assert await called.options(resubmit=self._resubmit).acall(number) == number * 3
                assert await tasks.double.options(resubmit=self._resubmit).acall(number) == number * 2
            self.ended += 2
            self._news.set()
            number += 1


@asynccontextmanager
async def under_load(callers: int = 20, *, resubmit: bool = False) -> AsyncGenerator[Load]:
    """Calls for the time of the block; it fails if one of them fails."""
    load = Load(resubmit=resubmit)
    async with anyio.create_task_group() as group:
        group.start_soon(load.run, callers)
        await load.goes_on()
        yield load
        await load.goes_on()
        load.stop()
