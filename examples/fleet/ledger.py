"""The ledger: which jobs were acknowledged, and which of them were delivered."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Final

from examples.fleet.tasks import square
from gearflow.errors import GearflowError

PATIENCE: Final = 60.0  # seconds for the result of a job


class Ledger:
    """Owns the handles of all acknowledged jobs, and what became of them."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, int] = {}  # the number of each job, by its handle
        self.repeated = 0  # submissions that raised: refused, or lost on the way
        self.lost: list[str] = []  # handles of jobs without a right result
        self._changed = asyncio.Condition()

    async def submit(self, numbers: range) -> None:
        """Submit a job for each number. One that is not acknowledged is submitted again."""
        for number in numbers:
            while (handle := await self._submit(number)) is None:
                self.repeated += 1
                await asyncio.sleep(0.1)
            async with self._changed:
                self.acknowledged[handle] = number
                self._changed.notify_all()

    async def _submit(self, number: int) -> str | None:
        try:
            return (await square.abackground(number)).handle
        except GearflowError:
            return None

    async def reaches(self, jobs: int) -> None:
        """Wait until so many jobs are acknowledged."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.acknowledged) >= jobs)

    async def settle(self) -> None:
        """Fetch the result of each acknowledged job, from any server."""
        await asyncio.gather(*map(self._fetch, self.acknowledged))

    async def _fetch(self, handle: str) -> None:
        number, result = self.acknowledged[handle], None
        with suppress(GearflowError, TimeoutError):
            result = await square.ref(handle).aresult(timeout=PATIENCE)
        if result != number * number:
            self.lost.append(handle)

    def lines(self, runs: Path) -> list[str]:
        """The ledger as it is printed. ``runs`` is the file in which the workers noted their runs."""
        rows = {
            "acknowledged": len(self.acknowledged),
            "delivered": len(self.acknowledged) - len(self.lost),
            "lost": len(self.lost),
            "runs": len(runs.read_text("ascii").splitlines()),
            "not acknowledged, and submitted again": self.repeated,
        }
        return [f"{number:7,}  {name}" for name, number in rows.items()]
