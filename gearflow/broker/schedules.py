"""Schedules: the server makes jobs at certain times.

Theory of operation. A schedule is a setting of the store, which has the next time. When that has come, one
change (``Ticked``) keeps the job of the tick together with the new value of the setting, which has the time
after it. The job is queued once that is kept. So a tick is neither lost nor doubled, whenever the server is
killed. If it cannot be kept, it is tried again until it is.

A tick is **on time** up to ``ON_TIME`` seconds late. A later one was missed: no server was there, or the
clock was set forward. ``missed`` says what happens to it. If the clock is set back, the next time stays as it
is, so there are no ticks until the clock is where it was.

While the job of the last tick has not ended, ``overlap`` says what happens to the next one. If all missed
ticks are made up for, their jobs are all made at once, but for ``queue``.

**A group of servers.** Each server has all schedules, and each tries each tick. The store keeps the change of
the first one only, because that of any other (``Overtaken``) comes from an old value. The server that made
the last job tries first, and the others wait a little. By then most have heard of the new value.

Times of schedules are Unix time. Pauses between attempts are not, since the clock may be set meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from math import ceil
from random import uniform
from typing import Final

from gearflow.broker.core import Core
from gearflow.broker.endings import Endings
from gearflow.broker.job import HIGH, LOW, NORMAL, JobState, QueuedJob
from gearflow.broker.limits import Rejected
from gearflow.broker.parser import Body
from gearflow.broker.schedule import Schedule, ScheduleProgress, TickCounter, last_before, read, unique_of
from gearflow.broker.serialization import stored_job
from gearflow.broker.session import ResultWaiter, Session
from gearflow.broker.storage import (
    PENDING,
    Answer,
    HeadOf,
    JobOutcome,
    Joined,
    Ordered,
    Overtaken,
    RecordOf,
    Setting,
    Ticked,
)
from gearflow.broker.submission import Submissions
from gearflow.broker.turns import Steps
from gearflow.errors import RemoteProtocolError, StoreError
from gearflow.protocol.constants import Priority
from gearflow.schedules import Plan

KIND: Final = "schedule"
"""The kind of their settings."""

ON_TIME: Final = 5.0
"""Seconds that a tick may be late and is not missed. A restart takes less."""

RETRY: Final = 1.0
"""Seconds from one attempt to keep a tick to the next."""

LOOK: Final = 1.0
"""Seconds from one look whether the job of another server has ended to the next."""

UNUSABLE: Final = 60.0
"""Seconds from one attempt to follow a plan that the server cannot follow to the next."""

FIRST: Final = (0.0, 0.1)
"""In a group, the server that made the last job tries the next tick after a time in this range."""

OTHERS: Final = (0.6, 2.0)
"""In a group, the others try it after a time in this range."""

_LANES: Final = {Priority.HIGH: HIGH, Priority.NORMAL: NORMAL, Priority.LOW: LOW}

_COUNTS: Final = {
    "missed": "the schedule %s has missed ticks, which are not made up for: %d",
    "skipped": "the schedule %s was paused, so ticks are skipped: %d",
    "overlapped": "the schedule %s skips ticks, because the job of an earlier one has not ended: %d",
}
"""What is logged when a count of a schedule grows."""


class Scheduler:
    """Makes the jobs of all schedules at their times. Owns the schedules."""

    def __init__(self, core: Core, endings: Endings, submissions: Submissions) -> None:
        self.table: dict[bytes, Schedule] = {}
        self.counter = TickCounter()
        self._core = core
        self._clock = core.clock
        self._journal = core.journal
        self._endings = endings
        self._submissions = submissions
        self._count = 0
        self.later: list[tuple[float, int, Schedule]] = []  # when ``tick`` is to look again; a heap
        self._listener = Session(-1, "-")  # waits for the ends of jobs, as a connection does
        core.settings.on(KIND, self._changed)

    # ------------------------------------------------------------------------------------- the settings

    def _changed(self, name: bytes, value: bytes) -> None:
        """A setting was loaded, or another server has changed it. While a change is on its way, its outcome
        says what holds."""
        known = self.table.get(name)
        if known is not None and (known.pending or known.value == value):
            return
        self.table.pop(name, None)
        if not value:
            return
        try:
            schedule = read(name, value)
        except (ValueError, KeyError, TypeError) as error:
            text = "the schedule %s cannot be read, and makes no jobs: %s"
            self._core.outgoing.notify(text, None, name, name.decode(errors="replace"), error)
            return
        self.table[name] = schedule
        self.arm(schedule)

    def kept(self, schedule: Schedule, progress: ScheduleProgress, before: bytes) -> None:
        """The store has this progress of a schedule now, in place of the value from before. Ticks follow."""
        counted = schedule.progress
        schedule.pending = False
        schedule.fault = ""
        schedule.progress = progress
        schedule.value = schedule.value_with(progress)
        self.table[schedule.name] = schedule
        for count, text in _COUNTS.items():
            more = getattr(progress, count) - getattr(counted, count)
            if more > 0:
                self._log(schedule, text, more)
        self._store_has(schedule.name, schedule.value, before)
        if self.table.get(schedule.name) is schedule:
            self.arm(schedule)

    def removed(self, schedule: Schedule) -> None:
        """The store does not have it any more."""
        schedule.pending = False
        if self.table.get(schedule.name) is schedule:
            del self.table[schedule.name]
        self._store_has(schedule.name, b"", schedule.value)

    def not_kept(self, schedule: Schedule, outcome: str) -> None:
        """A change of it was not kept, so what the store has is what holds."""
        schedule.pending = False
        settings = self._core.settings
        if isinstance(outcome, Overtaken):
            settings.apply(Setting(schedule.name, KIND, outcome.value))
        value = settings.get(KIND, schedule.name)
        if value != schedule.value:
            self._changed(schedule.name, value)
        elif not value:
            self.table.pop(schedule.name, None)
        else:
            self._again(schedule, RETRY)

    def _store_has(self, name: bytes, value: bytes, before: bytes) -> None:
        """A change from one value to another is kept. If another value has come meanwhile, it is newer."""
        newer = self._core.settings.get(KIND, name)
        if newer in (before, value):
            self._core.settings.apply(Setting(name, KIND, value))
        else:
            self._changed(name, newer)

    # -------------------------------------------------------------------------------------- the clock

    def arm(self, schedule: Schedule) -> None:
        """Have it looked at when it is due."""
        progress = schedule.progress
        if progress.queued is not None:
            self._again(schedule, 0)
        if progress.next is None or progress.paused:
            return
        valid = partial(self._is_armed, schedule, progress.next)
        self._core.timers.add(progress.next, partial(self._due, schedule), valid)

    def _is_armed(self, schedule: Schedule, tick: float) -> bool:
        progress = schedule.progress
        return progress.next == tick and not progress.paused and self._is_idle(schedule)

    def _is_idle(self, schedule: Schedule) -> bool:
        """Whether it is still the schedule of its name, and no change of it is on its way."""
        return not schedule.pending and self.table.get(schedule.name) is schedule

    def _again(self, schedule: Schedule, seconds: float) -> None:
        """Look at a schedule again after so many seconds, whatever happens to the clock."""
        self._count += 1
        heappush(self.later, (self._clock.now + seconds, self._count, schedule))

    def tick(self, now: float) -> None:
        """Look at the schedules whose pause is over, as many as the turn has time for."""
        later, is_late = self.later, self._core.turns.is_late
        while later and later[0][0] <= now:
            _, _, schedule = heappop(later)
            if self._is_idle(schedule):
                self._look(schedule)
                if is_late():
                    return

    def _due(self, schedule: Schedule) -> None:
        """The next time has come. In a group, others may be first."""
        if not self._journal.shared:
            self._look(schedule)
            return
        number = self._core.handles.number(schedule.progress.handle.encode())
        is_first = number is None or self._core.handles.owns(number)
        self._again(schedule, uniform(*(FIRST if is_first else OTHERS)))

    def _look(self, schedule: Schedule) -> None:
        """Do what is due of a schedule. Nothing else changes it at the moment."""
        progress = schedule.progress
        if progress.paused:
            return
        if progress.queued is not None:
            self._if_ended(schedule, partial(self._queued_after, schedule))
            return
        tick = progress.next
        if tick is None:
            return
        if tick > self._clock.unix():  # the clock was set back
            self.arm(schedule)
            return
        if self._core.functions.holding:  # what this server has may be out of date
            self._again(schedule, RETRY)
            return
        plan = self.plan(schedule)
        if plan is None:
            self._again(schedule, UNUSABLE)
        elif self._clock.unix() - tick <= ON_TIME or tick == schedule.tried:
            self._tick(schedule, plan, tick, 0)
        else:
            schedule.pending = True
            self._core.turns.run(self._make_up(schedule, plan, tick, self._clock.unix()))

    def plan(self, schedule: Schedule) -> Plan | None:
        """The plan of a schedule. None if the server cannot follow it, which is logged."""
        try:
            return schedule.make_plan()
        except ValueError as error:
            self._blocked(schedule, str(error))
            return None

    def _blocked(self, schedule: Schedule, fault: str) -> None:
        """It cannot make a job. The same fault is logged once."""
        if fault != schedule.fault:
            schedule.fault = fault
            self._log(schedule, "the schedule %s cannot make its job, which is tried again: %s", fault)

    def _log(self, schedule: Schedule, text: str, *arguments: object) -> None:
        self._core.outgoing.notify(text, None, schedule.name, schedule.spec.name, *arguments)

    # -------------------------------------------------------------------------------- ticks that were missed

    def _make_up(self, schedule: Schedule, plan: Plan, tick: float, now: float) -> Steps:
        """The next tick was missed. Make up for what is to be made up for, and count the rest.

        Each time it does one change only, after which the schedule is looked at again.
        """
        when = schedule.when
        late, oldest = now - ON_TIME, now - when.grace
        following = first_from(plan, late)
        made_up: float | None = None
        if when.missed == "all":
            made_up = tick if tick >= oldest else first_from(plan, oldest)
        elif when.missed == "once" and (following is None or following > now):
            made_up = last_before(plan, tick, late)
        if made_up is not None and not oldest <= made_up < late:
            made_up = None
        end = late if made_up is None else made_up
        missed = yield from self.counter.count(schedule.spec, plan, tick, end)
        schedule.pending = False
        if self.table.get(schedule.name) is not schedule:
            return
        if made_up is not None:
            self._tick(schedule, plan, made_up, missed)
        else:
            progress = schedule.progress
            self._keep(schedule, progress._replace(next=following, missed=progress.missed + missed))

    # ------------------------------------------------------------------------------------------ one tick

    def _tick(self, schedule: Schedule, plan: Plan, tick: float, missed: int) -> None:
        """Make the job of a tick, or do what the overlap asks for. ``missed`` ticks before it were missed."""
        when = schedule.when
        all_of_them = when.missed == "all" and self._clock.unix() - tick > ON_TIME
        if (
            when.overlap == "allow"
            or not schedule.progress.handle
            or (all_of_them and when.overlap != "queue")
        ):
            self._make_job(schedule, plan, tick, missed)
        else:
            self._if_ended(schedule, partial(self._tick_after, schedule, plan, tick, missed))

    def _tick_after(self, schedule: Schedule, plan: Plan, tick: float, missed: int, has_ended: bool) -> None:
        """As ``_tick``, where it is known whether the job of the last tick has ended."""
        progress, overlap = schedule.progress, schedule.when.overlap
        following = progress._replace(next=plan.next_after(tick), missed=progress.missed + missed)
        if has_ended:
            self._make_job(schedule, plan, tick, missed)
        elif overlap == "cancel":
            self._make_job(schedule, plan, tick, missed, cancels=progress.handle)
        elif overlap == "queue":
            self._keep(schedule, following._replace(queued=tick))
        else:
            self._keep(schedule, following._replace(overlapped=progress.overlapped + 1))

    def _queued_after(self, schedule: Schedule, has_ended: bool) -> None:
        """A tick waits for the end of a job. If the next one is due too, one of both is given up, but not if
        all are to be made up for."""
        progress, missed = schedule.progress, schedule.when.missed
        assert progress.queued is not None
        plan = self.plan(schedule)
        if plan is None:
            self._again(schedule, UNUSABLE)
        elif has_ended:
            self._make_job(schedule, plan, progress.queued, 0)
        elif progress.next is None or progress.next > self._clock.unix() or missed == "all":
            self._wait_for_end(schedule)
        else:
            progress = progress._replace(
                queued=progress.next if missed == "once" else progress.queued,
                next=plan.next_after(progress.next),
                overlapped=progress.overlapped + 1,
            )
            self._keep(schedule, progress)

    def _make_job(self, schedule: Schedule, plan: Plan, tick: float, missed: int, cancels: str = "") -> None:
        """Make the job of a tick, and have it kept together with the progress."""
        core, progress = self._core, schedule.progress
        schedule.tried = tick
        progress = progress._replace(
            next=plan.next_after(tick) if progress.queued is None else progress.next,
            last=tick,
            queued=None,
            ticks=progress.ticks + 1,
            missed=progress.missed + missed,
        )
        try:
            function = core.functions.ensure(schedule.spec.function.encode())
            live = core.jobs.find(function, unique_of(schedule.name, tick, core.limits.unique))
            if live is None:
                keep = partial(self._keep_job, schedule, progress, cancels)
                self.place(schedule, tick, plan.delayed(tick), keep)
                return
        except (Rejected, RemoteProtocolError) as error:
            fault = error.text.decode(errors="replace") if isinstance(error, Rejected) else str(error)
            self._blocked(schedule, fault)
            self._again(schedule, RETRY)
            return
        if live.state is JobState.STORING:  # which may fail
            self._again(schedule, RETRY)
        else:
            self._keep(schedule, progress._replace(handle=core.handles.handle(live.number).decode()))

    def place(
        self,
        schedule: Schedule,
        tick: float,
        due: float,
        keep: Callable[[QueuedJob], None] | None = None,
        trace: dict[str, str] | None = None,
    ) -> QueuedJob:
        """Make the job of a tick, or join the one that is there. ``keep`` has a new one kept.

        ``trace`` is the trace context of the call that makes it, if there is one.

        Raises:
            Rejected: There is no place for it.
            RemoteProtocolError: The function cannot have that name.
        """
        core, spec = self._core, schedule.spec
        return self._submissions.place(
            core.functions.ensure(spec.function.encode()),
            unique_of(schedule.name, tick, core.limits.unique),
            schedule.payload(),
            _LANES[spec.priority],
            True,
            schedule.details(tick, self._clock.unix(), due, trace),
            None,
            keep=keep,
        )

    def _keep_job(self, schedule: Schedule, progress: ScheduleProgress, cancels: str, job: QueuedJob) -> None:
        handle = self._core.handles.handle(job.number).decode()
        self._keep(schedule, progress._replace(handle=handle), job, cancels)

    def _keep(
        self, schedule: Schedule, progress: ScheduleProgress, job: QueuedJob | None = None, cancels: str = ""
    ) -> None:
        """Have a progress kept, and the job of a tick with it."""
        schedule.pending = True
        stored = None if job is None else stored_job(job, self._clock.offset)
        change = Ticked(schedule.name, schedule.value, schedule.value_with(progress), stored)
        self._journal.keep(change, partial(self._done, schedule, progress, job, cancels))

    def _done(
        self,
        schedule: Schedule,
        progress: ScheduleProgress,
        job: QueuedJob | None,
        cancels: str,
        outcome: str | Joined | None,
    ) -> None:
        """The progress is kept, or could not be. If it is, the job waits for a worker from now on."""
        if job is not None:
            self._submissions.stored(job, outcome)
        if isinstance(outcome, str):
            if not isinstance(outcome, Overtaken):
                self._blocked(schedule, outcome)
            self.not_kept(schedule, outcome)
            return
        self.kept(schedule, progress, schedule.value)
        if cancels and not self._endings.cancel(cancels.encode()) and self._journal.shared:
            number = self._core.handles.number(cancels.encode())
            if number is not None and not self._core.handles.owns(number):
                self._journal.add(Ordered(number, "cancel"))

    # ------------------------------------------------------------------------------ the job of the last tick

    def _if_ended(self, schedule: Schedule, then: Callable[[bool], None]) -> None:
        """Find out whether the job of the last tick has ended. Another server may have it."""
        core, handle = self._core, schedule.progress.handle.encode()
        job, number = core.find(handle), core.handles.number(handle)
        if job is not None:
            then(job.cancelled)
        elif number is None or not self._journal.shared or self._ends(number):
            then(True)
        else:
            schedule.pending = True
            self._ask(schedule, RecordOf(number), partial(self._on_record, schedule, number, then))

    def _ends(self, number: int) -> bool:
        """Whether the end of a job is on its way to the store."""
        journal = self._journal
        return journal.has_end(number, b"", b"") or journal.failed_end(number, b"", b"") is not None

    def _ask(self, schedule: Schedule, question: RecordOf | HeadOf, then: Callable[[Answer], None]) -> None:
        done = partial(self._answered, schedule, then)
        answer = self._journal.ask(question, done)
        if answer is not PENDING:
            done(answer)

    def _answered(self, schedule: Schedule, then: Callable[[Answer], None], answer: Answer) -> None:
        if isinstance(answer, StoreError):
            self.not_kept(schedule, str(answer))
        else:
            then(answer)

    def _on_record(
        self, schedule: Schedule, number: int, then: Callable[[bool], None], answer: Answer
    ) -> None:
        if answer is None:
            self._ask(schedule, HeadOf(number), partial(self._on_head, schedule, then))
        else:
            self._on_head(schedule, then, None)

    def _on_head(self, schedule: Schedule, then: Callable[[bool], None], answer: Answer) -> None:
        schedule.pending = False
        then(answer is None)

    def _wait_for_end(self, schedule: Schedule) -> None:
        """Look at the schedule again when the job of its last tick has ended."""
        job, waits = self._core.find(schedule.progress.handle.encode()), self._listener.waits
        if job is None or job.cancelled:
            self._again(schedule, LOOK)
            return
        waiter = waits.get(schedule.name)
        if isinstance(waiter, ResultWaiter):
            if waiter.job is job and waiter.is_waiting():
                return
            waiter.stop()
        ResultWaiter(self._listener, schedule.name, job, partial(self._ended, schedule.name))

    def _ended(self, name: bytes, outcome: JobOutcome | None, body: Body) -> None:
        """The job of a schedule's last tick has ended, or another server has it now."""
        schedule = self.table.get(name)
        if schedule is not None and self._is_idle(schedule):
            self._look(schedule)

    # --------------------------------------------------------------------------------------------- facts

    def has_worker(self, schedule: Schedule) -> bool:
        """Whether a worker of this server offers its function."""
        function = self._core.functions.by_name.get(schedule.spec.function.encode())
        return function is not None and function.workers > 0


def first_from(plan: Plan, time: float) -> float | None:
    """The first time that is not before that one."""
    return plan.next_after(ceil(time) - 1)
