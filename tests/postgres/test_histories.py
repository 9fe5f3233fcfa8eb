"""Any history leaves the same in PostgreSQL as in memory, also if each group is written twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some

from gearflow.broker.storage import (
    Change,
    Edited,
    Forgotten,
    JobPart,
    Overtaken,
    PartsDropped,
    Rescheduled,
    Revived,
    Setting,
    Store,
    StoredJob,
    Ticked,
)
from gearflow.stores import MemoryStore
from tests.postgres.adapter import SyncStore
from tests.stores.values import a_dead_letter, a_job, an_end

JOBS: Final = 4
WORKLOAD: Final = b"payload"

Step = tuple[int, int]


class History:
    """Makes changes that a server can make: it stores a job once, and ends only a job that lives."""

    def __init__(self, first: int) -> None:
        self.first = first
        self._state: dict[int, str] = {}
        self._position: dict[int, int] = {}
        self._run: dict[int, int] = {}
        self._schedule = b""
        self._values = 0

    def change(self, step: Step) -> Change | None:
        """What a step does, if it can be done."""
        n, what = step
        if what >= 10:
            return self._change_of_settings(n, what)
        number, state = self.first + n, self._state.get(n, "new")
        if state == "new":
            self._state[n] = "live"
            return a_job(number, WORKLOAD)
        if what == 0:
            self._state[n] = "gone"
            return Forgotten(number)
        if state == "live":
            return self._change_of_live(n, number, what)
        if state == "dead" and what < 4:
            self._state[n] = "live"
            return Revived(number, b"{}" if what == 1 else None)
        return None

    def name(self, kind: str) -> bytes:
        """The name of its schedule or limit, which no other history has."""
        return b"%b %d" % (kind.encode(), self.first)

    def _change_of_settings(self, n: int, what: int) -> Change | None:
        """Set or remove a limit or the schedule, or have its time come, with a job or without."""
        self._values += 1
        value, before, name = b"%d" % self._values, self._schedule, self.name("schedule")
        if what == 10:
            return Setting(self.name("limit"), "limit", b"" if n == 1 else value)
        if what == 11:
            self._schedule = b"" if n == 1 else value
            return Setting(name, "schedule", self._schedule)
        if not before and (what == 12 or n == 1):
            self._schedule = value
            return Ticked(name, b"", value, None)
        if what == 12:
            self._schedule = value
            return Ticked(name, before, value, None)
        if not before or self._state.get(n, "new") != "new":
            return None
        self._schedule, self._state[n] = value, "live"
        return Ticked(name, before, value, a_job(self.first + n, WORKLOAD))

    def _change_of_live(self, n: int, number: int, what: int) -> Change:
        position = self._position.get(n, 0)
        match what:
            case 1:
                self._state[n] = "ended"
                return an_end(number)
            case 2:
                self._state[n] = "dead"
                return a_dead_letter(number, len(WORKLOAD))
            case 3:
                return Rescheduled(number, 7.5, 2, 1, b'{"keep":1}')
            case 4:
                return a_job(number, len(WORKLOAD), options=b"{}", due=4.5)
            case 5:
                self._run[n] = self._run.get(n, 1) + 1
                self._position[n] = 0
                return JobPart(number, 0, b"", self._run[n])
            case 6:
                return PartsDropped(number)
            case 7:
                return Edited(number, 1, 3.5, b'{"edited":1}', WORKLOAD[::-1] if n % 2 else None)
            case _:
                self._position[n] = position + 1
                return JobPart(number, position + 1, b"%d" % position, self._run.get(n, 1))


def found(store: Store, numbers: Sequence[int]) -> list[object]:
    """All that there is of some jobs."""
    return [
        (_whole(store.job(number)), store.ended(number), store.parts(number, 0, 1 << 20))
        for number in numbers
    ]


def settings_of(history: History, settings: Sequence[Setting]) -> set[Setting]:
    """Those of a history."""
    return {each for each in settings if each.name == history.name(each.kind)}


def _whole(job: StoredJob | None) -> StoredJob | None:
    if job is None or isinstance(job.workload, int):
        return job
    return job._replace(workload=bytes(job.workload))


bases = iter(range(1000, 1 << 30, 100))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    groups=some.lists(
        some.lists(some.tuples(some.integers(1, JOBS), some.integers(0, 13)), min_size=1, max_size=12),
        min_size=1,
        max_size=5,
    ),
    twice=some.booleans(),
)
@example(groups=[[(1, 0), (1, 6), (1, 7), (1, 1)]], twice=True)  # parts that end with their job
@example(groups=[[(1, 0), (2, 0), (1, 0)]], twice=True)  # a job that is forgotten at once
@example(groups=[[(2, 11), (1, 13), (1, 12), (2, 13), (1, 0)]], twice=True)  # ticks, the job of one forgotten
@example(groups=[[(2, 11)], [(1, 13), (1, 1)], [(2, 12), (1, 11)], [(2, 12), (3, 13)]], twice=True)
def test_any_history_leaves_the_same_as_in_memory(
    one: SyncStore, groups: list[list[Step]], twice: bool
) -> None:
    history = History(one.number(next(bases)))
    memory = MemoryStore(keep_bytes=None)
    numbers = [history.first + n for n in range(1, JOBS + 1)]
    for steps in groups:
        changes = [change for change in map(history.change, steps) if change is not None]
        memory.write(changes)
        assert one.commit(*changes) == [None] * len(changes)
        if twice:  # a tick cannot know then that it was kept, if its schedule was set after it
            assert all(how is None or isinstance(how, Overtaken) for how in one.commit(*changes))
        assert found(one, numbers) == found(memory, numbers)
        kept = one.run(one.store.settings())
        assert settings_of(history, kept) == settings_of(history, memory.load().settings)
