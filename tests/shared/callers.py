"""Clients of a group that submit background jobs at random, in a thread of their own."""

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import anyio

from gearflow import ConnectionLost, NoServer, Retry, ServerError, SubmitUnknown, connect
from tests.postgres.cluster import TIMEOUT
from tests.shared import tasks
from tests.shared.ledger import Ledger, Promise

KEEP: Final = 86_400.0
"""Seconds for which results are kept."""

AGAIN: Final = 0.05
"""Seconds after which a caller that could not submit goes on."""

ANSWER: Final = 5.0
"""Seconds that a server has to acknowledge a job."""

_RETRY: Final = Retry(100, on=(ConnectionError,), backoff=0.05)

_fresh = iter(range(1_000_000)).__next__


@dataclass(frozen=True)
class Habits:
    """How callers submit."""

    callers: int = 6
    pause: float = 0.03
    """Seconds between two submissions of one caller, on average."""
    delays: Sequence[float] = (0, 0, 0, 0.3, 1)
    durations: Sequence[float] = (0, 0, 0, 0.02, 0.1)
    """Seconds that a job takes."""
    sizes: Sequence[int] = (0, 0, 0, 0, 0, 0, 2_000, 2_000, 100_000)
    """Characters of payloads and results beside the key."""
    failing: float = 0.1
    """The share of jobs whose first run fails, and that are retried."""
    kept: float = 0.8
    """The share of jobs whose result is kept."""
    uniques: Sequence[str] = ()
    """Where there are some, each job has one of them."""
    only: str = ""
    """The address of the one server that they use."""


@contextmanager
def callers(addresses: Sequence[str], runs: Path, habits: Habits = Habits()) -> Generator[Ledger]:
    """Callers at work for the time of the block. Each has a server that it prefers."""
    ledger = Ledger(runs)
    crowd = _Crowd(addresses, habits, ledger, f"c{_fresh()}")
    thread = threading.Thread(target=crowd.run, name="callers")
    thread.start()
    try:
        yield ledger
    finally:
        crowd.is_over.set()
        thread.join(3 * TIMEOUT)
    assert not thread.is_alive(), "a caller waits without an end"


class _Crowd:
    def __init__(self, addresses: Sequence[str], habits: Habits, ledger: Ledger, name: str) -> None:
        self.is_over = threading.Event()
        self._addresses = addresses
        self._habits = habits
        self._ledger = ledger
        self._name = name

    def run(self) -> None:
        try:
            anyio.run(self._run)
        except BaseException as error:  # noqa: BLE001  (the test's thread is to see it)
            self._ledger.faults.append(f"callers: {error!r}")

    async def _run(self) -> None:
        async with anyio.create_task_group() as group:
            for number in range(self._habits.callers):
                group.start_soon(self._caller, number)

    async def _caller(self, number: int) -> None:
        chance = Random(f"{self._name}-{number}")
        turn = number % len(self._addresses)
        mine = [*self._addresses[turn:], *self._addresses[:turn]]
        if self._habits.only:
            mine = [self._habits.only]
        count = 0
        async with connect(*mine, answer_timeout=ANSWER):
            while not self.is_over.is_set():
                count += 1
                await self._submit(f"{self._name}-{number}-{count}", chance)
                await anyio.sleep(chance.expovariate(1 / self._habits.pause))

    async def _submit(self, key: str, chance: Random) -> None:
        habits = self._habits
        kept = chance.random() < habits.kept
        options: dict[str, Any] = {"delay": chance.choice(habits.delays), "keep": KEEP if kept else 0}
        if habits.uniques:
            key = options["unique"] = chance.choice(habits.uniques)
        fails = int(chance.random() < habits.failing)
        if fails:
            options["retries"] = _RETRY
        submit: Callable[..., Any] = tasks.work.options(**options).abackground
        padding = "." * chance.choice(habits.sizes)
        try:
            ref = await submit(key, chance.choice(habits.durations), padding, fails)
        except (SubmitUnknown, ConnectionLost) as error:
            self._ledger.failed(key, error, for_certain=False)
        except (ServerError, NoServer) as error:
            self._ledger.failed(key, error, for_certain=not habits.uniques)
        else:
            self._ledger.promised(Promise(key, ref.handle, kept))
            return
        await anyio.sleep(AGAIN)
