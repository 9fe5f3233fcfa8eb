"""A soak: jobs for a while, as processes are killed; then the account of it.

One client, this process, calls tasks through three durable servers with six workers behind them, two of which
have a supervisor. Half of the jobs are background ones; of the attached ones, which all have a unique, one
half is submitted again by the client itself (``resubmit``), the other half by the caller, who sees the
errors. What must hold:

* every job that was acknowledged runs to its end, and every call has its own result;
* a job runs twice only for a reason: a kill, or a caller that could not know;
* what is left standing holds no more files, threads, tasks and memory than before.

Hostile peers may be at the servers all the while, with a client that measures how long it waits beside them.
"""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

import anyio

from gearflow import ConnectionLost, NoServer, SubmitUnknown, connect
from gearflow.client import Client
from tests.conftest import ROOT
from tests.soak import tasks
from tests.soak.audit import Account, Mark, store_of
from tests.soak.census import Census, census
from tests.soak.fleet import Fleet
from tests.soak.hostile import Hostilities
from tests.soak.probe import Waits

CALLERS: Final = 40
"""Calls at a time, of each kind."""

WARM: Final = 200
"""Jobs of each kind before anything is counted, or killed."""

AGAIN: Final = 0.05
"""Seconds after which a call that has failed is made again."""

PATIENCE: Final = 120.0
"""Seconds after the last kill in which everything must have ended."""

MEMORY: Final = 24 << 20
"""Bytes by which the memory of what is left standing may grow; the client may take more for its account."""

FUZZ: Final = 2 << 20
"""Bytes of delayed jobs that an act of fuzzing peers may leave behind, for they were legal."""

_KEY: Final = 600
"""Bytes that the client's account may take for a key."""


@dataclass(frozen=True)
class Plan:
    """What is to be done: so many jobs of each kind, spread over so many seconds, with so much trouble."""

    jobs: int
    seconds: float
    pause: float
    """Seconds from one kill to the next, on average."""
    seed: int
    hostile: bool = False
    """Whether hostile peers come, too."""


@dataclass
class Report:
    """What it came to."""

    seconds: float
    promised: int
    ended: Counter[str]
    """Processes that were killed, or stopped."""
    errors: Counter[str]
    """What callers saw, and called again after."""
    longest_gap: float
    """Seconds in which no call ended."""
    repeated: Counter[str]
    """Further runs, by their reason."""
    censuses: dict[str, tuple[Census, Census]]
    """What is left standing held before and after."""
    logs: dict[str, int]
    """Bytes that each process has logged."""
    hostilities: Hostilities
    waits: Waits | None
    """How long the server that nothing kills made a client wait."""
    faults: list[str] = field(default_factory=list[str])

    def __str__(self) -> str:
        """A table in Markdown, and the faults."""
        rows = [
            ("jobs acknowledged, all of which ran", f"{self.promised:,} in {self.seconds / 60:.0f} minutes"),
            ("processes ended", _listed(self.ended)),
            ("hostile acts", _listed(self.hostilities.acts)),
            ("errors that callers saw", _listed(self.errors)),
            ("runs that were not the first", _listed(self.repeated)),
            ("longest time in which no call ended", f"{self.longest_gap:.2f} s"),
        ]
        if (waits := self.waits) is not None:
            answers = (
                f"median {waits.median:.2f} ms, p99.9 {waits.p999:.0f} ms, longest {waits.longest:.0f} ms"
            )
            rows.append((f"{waits.count:,} answers of the spared server", answers))
            rows.append(("its longest turn, in CPU time", f"{waits.longest_turn:.0f} ms"))
        for name, (before, after) in self.censuses.items():
            memory = f"{before.memory >> 20} and {after.memory >> 20} MiB"
            rows.append((f"{name}, before and after", f"{memory}, {before.files} and {after.files} files"))
        rows.append(("bytes of log", ", ".join(f"{size:,} {name}" for name, size in self.logs.items())))
        lines = ["| measured | figure |", "|---|---|", *(f"| {name} | {figure} |" for name, figure in rows)]
        return "\n".join([*lines, *(f"FAULT: {fault}" for fault in self.faults)])


def soak(plan: Plan, directory: Path) -> Report:
    """Carry out a plan. Servers keep their files, and processes their logs, in the directory."""
    fleet = Fleet(directory, servers=3, workers=5)
    with fleet.running():
        load = Load(plan, fleet, directory / "runs")
        before, after = anyio.run(load.run)
    marks = load.marks()
    repeated = load.account.repeated(marks)
    faults = [
        *(f"{key} was promised, and did not run" for key in sorted(load.account.missing(marks))[:10]),
        *(reason for reason in repeated if reason.startswith("no reason")),
        *load.faults,
        *load.hostilities.faults,
        *_growth(before, after, plan, load.hostilities),
        *fleet.complaints(),
    ]
    return Report(
        load.seconds,
        len(load.account.promised),
        Counter(fleet.ended),
        load.errors,
        load.longest_gap,
        repeated,
        {name: (census, after[name]) for name, census in before.items()},
        {process.name: len(process.log) for process in (*fleet.servers, *fleet.workers)},
        load.hostilities,
        load.waits,
        faults,
    )


class Load:
    """The client's part. Owns what it learns."""

    def __init__(self, plan: Plan, fleet: Fleet, runs: Path) -> None:
        self.account = Account(workers=fleet.killed)
        self.errors = Counter[str]()
        self.faults: list[str] = []
        self.seconds = 0.0
        self.longest_gap = 0.0
        self.hostilities = Hostilities()
        self.waits: Waits | None = None
        self._plan = plan
        self._fleet = fleet
        self._runs = runs
        self._last_end = 0.0
        self._chance = Random(plan.seed)

    async def run(self) -> tuple[dict[str, Census], dict[str, Census]]:
        """All calls, and a census before and after them."""
        await self._know_stores()
        async with connect(*self._fleet.addresses, spread=True) as client:
            await self._calls("warm", WARM, 0)
            before = await self._census()
            self.longest_gap = 0.0
            begin = self._last_end = time.monotonic()
            async with self._fleet.in_danger(self._chance, self._plan.pause):
                with self._beside_hostile_peers():
                    await self._calls("job", self._plan.jobs, self._plan.seconds)
            self.seconds = time.monotonic() - begin
            with anyio.move_on_after(PATIENCE):
                while self.account.missing(self.marks()):  # noqa: ASYNC110  (other processes tell, in a file)
                    await anyio.sleep(0.1)
            await self._reach_all(client)
            return before, await self._census()

    @contextmanager
    def _beside_hostile_peers(self) -> Generator[None]:
        """Hostile peers and a probe, for the time of the block."""
        if not self._plan.hostile:
            yield
            return
        spared = self._fleet.addresses[-1], str(self._fleet.servers[-1].pid)
        with _program("hostile", str(self._plan.seed), *self._fleet.addresses) as hostile:
            with _program("probe", *spared) as probe:
                yield
                self.waits = Waits.model_validate_json(probe.communicate()[0])
            self.hostilities = Hostilities.model_validate_json(hostile.communicate()[0])

    def marks(self) -> list[Mark]:
        """What the workers have written."""
        return [Mark.from_line(line) for line in self._runs.read_text().splitlines()]

    async def _know_stores(self) -> None:
        """Learn how the handles of each server begin."""
        for number, address in enumerate(self._fleet.addresses):
            async with connect(address):
                ref = await tasks.answer.abackground(f"first-{number}")
            self.account.promised.add(f"first-{number}")
            self.account.servers = {
                **self.account.servers,
                store_of(ref.handle): self._fleet.outages[address],
            }

    async def _reach_all(self, client: Client) -> None:
        """Every server is back, and used."""
        for address in self._fleet.addresses:
            await client.features(address)

    async def _census(self) -> dict[str, Census]:
        spared = {"the spared server": self._fleet.servers[-1].pid}
        return {
            "the client": census(os.getpid(), len(anyio.get_running_tasks())),
            "the spared worker": await tasks.count.acall(),
            **{name: census(pid) for name, pid in spared.items()},
        }

    # ------------------------------------------------------------------------------------------- calls

    async def _calls(self, name: str, jobs: int, seconds: float) -> None:
        """So many calls of each kind, spread over so many seconds."""
        begin = time.monotonic()
        async with anyio.create_task_group() as callers:
            for kind in (self._background, self._attached):
                due = ((f"{name}-{number}", begin + seconds * number / jobs) for number in range(jobs))
                for _ in range(CALLERS):
                    callers.start_soon(self._caller, kind, due)

    async def _caller(self, call: Callable[[str], Awaitable[None]], due: Iterator[tuple[str, float]]) -> None:
        for name, at in due:
            await anyio.sleep(max(0, at - time.monotonic()))
            await call(name)

    async def _background(self, name: str) -> None:
        """Submit until it is acknowledged. Most wait for a while, so that a killed server has jobs."""
        key = f"{name}-background"
        called = tasks.note.options(unique=key, delay=self._chance.choice((0, 0.5, 2)))
        await self._until_it_goes_well(key, lambda: called.abackground(key, self._pause()))

    async def _attached(self, name: str) -> None:
        """Call until there is a result. Every second one leaves it to the client to call again."""
        key = f"{name}-attached"
        again = self._chance.random() < 0.5
        called = tasks.answer.options(unique=key, resubmit=again)
        result = await self._until_it_goes_well(
            key, lambda: called.acall(key, self._pause()), resubmits=again
        )
        if result != f"did {key}":
            self.faults.append(f"the result of {key} was {result!r}")

    async def _until_it_goes_well(
        self, key: str, call: Callable[[], Awaitable[object]], *, resubmits: bool = False
    ) -> object:
        while True:
            try:
                result = await call()
            except (ConnectionLost, SubmitUnknown) as error:
                self._seen(error)
                self.account.submitted_again.add(key)
                if resubmits:
                    self.faults.append(f"{key}: the caller saw {error!r}")
            except NoServer as error:
                self._seen(error)
            else:
                self.account.promised.add(key)
                now = time.monotonic()
                self.longest_gap = max(self.longest_gap, now - self._last_end)
                self._last_end = now
                return result
            await anyio.sleep(AGAIN)

    def _seen(self, error: Exception) -> None:
        self.errors[type(error).__name__] += 1

    def _pause(self) -> float:
        """Seconds that a job takes: most take none, some long enough to be met by a kill."""
        return self._chance.choice((0, 0, 0, 0.02, 0.1))


def _program(name: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", f"tests.soak.{name}", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _growth(
    before: dict[str, Census], after: dict[str, Census], plan: Plan, hostilities: Hostilities
) -> list[str]:
    further = {"the client": 2 * plan.jobs * _KEY, "the spared server": hostilities.acts["fuzz"] * FUZZ}
    if plan.hostile:  # it remembers 10,000 names, and its heap has held tens of thousands of requests
        further["the spared server"] += 2 * MEMORY
    return [
        f"{name}: {more}"
        for name, census in before.items()
        for more in census.growth(after[name], MEMORY + further.get(name, 0))
    ]


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common()) or "none"
