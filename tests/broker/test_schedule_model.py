"""Whatever happens to a server, its store and its clock, in whatever order: each tick makes one job or is
counted."""

from itertools import pairwise
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gearflow.broker.schedule import Schedule
from gearflow.schedules import Plan
from tests.broker.clockwork import HOUR, NOON, Clockwork, scheduled_at

NAMES = ("a", "b")
TIMES: list[dict[str, Any]] = [
    {"every": 60},
    {"every": 3600, "start": NOON + 90},
    {"cron": "*/7 * * * *"},
    {"cron": "0 * * * *", "tz": "Asia/Kolkata"},
    {"every": 300, "end": NOON + 2 * HOUR},
]

names = st.sampled_from(NAMES)
durations = st.sampled_from([0.5, 3.0, 7.0, 59.0, 301.0, 3600.0, 5000.0])


class Ledger:
    """What has to hold of one schedule since its times were put: every time before the next is counted."""

    def __init__(self, schedule: Schedule, made: int) -> None:
        self.first = schedule.progress.next
        self.counted = counted(schedule)
        self.ticks = schedule.progress.ticks
        self.made = made  # jobs of the schedule before that


def counted(schedule: Schedule) -> int:
    progress = schedule.progress
    waiting = progress.queued is not None
    return progress.ticks + progress.missed + progress.skipped + progress.overlapped + waiting


def times_before(plan: Plan, first: float | None, end: float | None) -> int:
    """How many times of a plan there are from the first one, to before another."""
    count = 0
    while first is not None and (end is None or first < end):
        count += 1
        first = plan.next_after(first)
    return count


class Interleavings(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world: Clockwork = Clockwork()
        self.ledgers: dict[str, Ledger] = {}
        self.put_times: dict[str, dict[str, Any]] = {}

    def schedule(self, name: str) -> Schedule:
        return self.world.broker.schedules.table[name.encode()]

    def jobs_of(self, name: str) -> list[float]:
        made = self.world.ticking_disk.made
        return [scheduled_at(job) for job in made if job.unique.startswith(f"cron:{name}:".encode())]

    # -------------------------------------------------------------------------------------- what happens

    @initialize(times=st.sampled_from(TIMES))
    def begin(self, times: dict[str, Any]) -> None:
        self.put("a", times, "once", "allow", HOUR)

    @precondition(lambda self: not self.world.ticking_disk.full)
    @rule(
        name=names,
        times=st.sampled_from(TIMES),
        missed=st.sampled_from(["once", "skip", "all"]),
        overlap=st.sampled_from(["skip", "queue", "allow", "cancel"]),
        grace=st.sampled_from([0, HOUR, 24 * HOUR]),
    )
    def put(self, name: str, times: dict[str, Any], missed: str, overlap: str, grace: float) -> None:
        self.world.put(name, **times, missed=missed, overlap=overlap, grace=grace)
        if self.put_times.get(name) != times:
            self.put_times[name] = times
            self.ledgers[name] = Ledger(self.schedule(name), len(self.jobs_of(name)))

    @precondition(lambda self: not self.world.ticking_disk.full)
    @rule(name=names, do=st.sampled_from(["pause", "resume", "resume"]))
    def change(self, name: str, do: str) -> None:
        if name in self.ledgers:
            self.world.change(do, name)

    @precondition(lambda self: not self.world.ticking_disk.full)
    @rule(name=names)
    def delete(self, name: str) -> None:
        if self.ledgers.pop(name, None) is not None:
            del self.put_times[name]
            self.world.change("delete", name)

    @rule(seconds=durations)
    def wait(self, seconds: float) -> None:
        self.world.wait(min(seconds, 60) if self.world.ticking_disk.full else seconds)

    @rule(seconds=durations, is_back=st.booleans())
    def set_the_clock(self, seconds: float, is_back: bool) -> None:
        self.world.set_clock(self.world.unix + (-seconds if is_back else seconds))
        self.world.settle()

    @rule(away=durations)
    def restart(self, away: float) -> None:
        self.world.ticking_disk.full = False
        self.world = self.world.rebooted(away)

    @rule(seconds=durations, away=durations)
    def die_before_a_write(self, seconds: float, away: float) -> None:
        world: Clockwork = self.world
        world.ticking_disk.full = False
        world.now += seconds
        world.unix += seconds
        world.broker.tick(world.now)
        self.world = world.rebooted(away)

    @rule()
    def fill_the_disk(self) -> None:
        self.world.ticking_disk.full = True

    @precondition(lambda self: self.world.ticking_disk.full)
    @rule()
    def free_the_disk(self) -> None:
        self.world.ticking_disk.full = False
        self.world.catch_up()
        self.world.wait(2)  # it tries again after a second

    @precondition(lambda self: not self.world.ticking_disk.full)
    @rule()
    def run_all_jobs(self) -> None:
        self.world.runner().run_all()

    @rule()
    def run_a_job_without_end(self) -> None:
        self.world.worker().grab()

    # -------------------------------------------------------------------------------------- what holds

    @invariant()
    def each_tick_has_one_job_or_is_counted(self) -> None:
        for name, ledger in self.ledgers.items():
            schedule = self.schedule(name)
            progress = schedule.progress
            jobs = self.jobs_of(name)[ledger.made :]
            assert len(jobs) == progress.ticks - ledger.ticks
            assert all(before < after for before, after in pairwise(jobs)), jobs
            plan = schedule.make_plan()
            if ledger.first is not None:
                assert all(plan.next_after(time - 1) == time for time in jobs if time >= ledger.first)
            between = times_before(plan, ledger.first, progress.next)
            assert counted(schedule) - ledger.counted == between, (progress, ledger.first)

    @invariant()
    def nothing_that_is_due_is_forgotten(self) -> None:
        world = self.world
        for name in self.ledgers:
            schedule = self.schedule(name)
            progress = schedule.progress
            waits = progress.paused or progress.queued is not None or world.ticking_disk.full
            if not waits and progress.next is not None:
                assert progress.next > world.unix

    @invariant()
    def a_schedule_that_has_a_next_time_will_be_looked_at(self) -> None:
        broker = self.world.broker
        for name in self.ledgers:
            schedule = self.schedule(name)
            progress = schedule.progress
            if progress.next is None or progress.paused or progress.queued is not None:
                continue
            timers = [valid() for time, _, _, valid in broker.core.timers.heap if time == progress.next]
            assert any(timers) or any(each is schedule for _, _, each in broker.schedules.later)


Interleavings.TestCase.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)

TestInterleavings = Interleavings.TestCase
