"""The calls about schedules. They change the settings that ``broker.schedules`` follows."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from math import floor
from typing import Any, Final, NamedTuple

from gearflow.broker.calls.call import (
    KNOWN,
    ORDERED,
    TURN,
    Ask,
    BrokerParts,
    CallFailed,
    Keep,
    Kept,
    Later,
    ServerCall,
    Steps,
    Wait,
)
from gearflow.broker.job import QueuedJob
from gearflow.broker.limits import Rejected
from gearflow.broker.schedule import Schedule, ScheduleProgress, keeps_time, payload_of, read_plan
from gearflow.broker.schedules import KIND, first_from
from gearflow.broker.storage import (
    Change,
    JobOutcome,
    JobRecord,
    Joined,
    Overtaken,
    RecordOf,
    Setting,
    Ticked,
)
from gearflow.broker.watching import STATES
from gearflow.errors import RemoteProtocolError, StoreError
from gearflow.protocol import schedules as api
from gearflow.protocol.constants import RESERVED_PREFIX
from gearflow.protocol.server_calls import State
from gearflow.schedules import Plan

_AT_ONCE: Final = 10
"""Schedules that are changed before others get their turn."""

_ENDED: Final[dict[JobOutcome, State]] = {
    JobOutcome.COMPLETED: "completed",
    JobOutcome.CANCELLED: "cancelled",
    JobOutcome.FAILED: "failed",
    JobOutcome.RAISED: "raised",
    JobOutcome.WORKERS_DIED: "workers_died",
    JobOutcome.EXPIRED: "expired",
}

_TRIES: Final = 20
"""Attempts to change a schedule that other servers change at the same time."""


class _Edit(NamedTuple):
    """A change of one schedule that is to be kept. Without ``after`` it is removed."""

    before: Schedule
    after: Schedule | None
    progress: ScheduleProgress


class ScheduleCalls:
    """Changes and shows schedules."""

    def __init__(self, parts: BrokerParts) -> None:
        self._parts = parts
        self._schedules = parts.schedules
        self._table = parts.schedules.table
        self._clock = parts.core.clock

    def change(self, call: ServerCall) -> Steps:
        """Do what is asked about schedules."""
        request = call.read(api.ScheduleRequest)
        match request.do:
            case "put" | "apply":
                return (yield from self._apply(request))
            case "delete":
                yield from self._remove([(request.name or "").encode()], known=True)
                return api.ScheduleChanges(removed=(request.name or "",))
            case "pause" | "resume":
                schedule = yield from self._pause(request.name or "", request.do == "pause")
                return (yield from self._info(schedule, 1, asks=True))
            case "trigger":
                return (yield from self._trigger(self._find(request.name or ""), request))
            case "backfill":
                return (yield from self._backfill(self._find(request.name or ""), request))

    # ------------------------------------------------------------------------------------------- showing

    def show(self, call: ServerCall) -> Steps:
        """List schedules, or show one."""
        request = call.read(api.SchedulesRequest)
        if request.name is not None:
            self._find(request.name)
        yield TURN
        names = sorted(
            name
            for name, schedule in self._table.items()
            if schedule.value
            and request.name in (None, schedule.spec.name)
            and request.function in (None, schedule.spec.function)
            and request.origin in (None, schedule.origin)
        )
        asks = request.name is not None or not self._parts.core.journal.shared
        after = (request.after or "").encode()
        pieces: list[bytes] = []
        for name in [name for name in names if name > after][: request.limit]:
            yield TURN
            schedule = self._table.get(name)
            if schedule is not None and schedule.value:
                info = yield from self._info(schedule, request.times, asks=asks)
                pieces.append(info.to_wire())
            if not call.session.is_open:
                return None
        return [b'{"schedules":[', b",".join(pieces), b'],"total":%d}' % len(names)]

    def _info(self, schedule: Schedule, times: int, *, asks: bool) -> Generator[Wait, Any, api.ScheduleInfo]:
        progress, now = schedule.progress, self._clock.unix()
        upcoming: tuple[float, ...] = () if progress.next is None else (progress.next,)
        skipped, fault = 0, schedule.fault
        try:
            plan = schedule.make_plan()
        except ValueError as error:
            fault = str(error)
        else:
            upcoming = yield from self._times(plan, progress, times)
            if progress.paused and progress.next is not None:
                skipped = yield from self._count(schedule, plan, progress.next, now)
        return api.ScheduleInfo(
            schedule=schedule.spec,
            origin=schedule.origin,
            paused=progress.paused,
            next=upcoming,
            first=progress.first,
            last=progress.last,
            handle=progress.handle,
            state=(yield from self._state(progress.handle, asks=asks)),
            ticks=progress.ticks,
            missed=progress.missed,
            skipped=progress.skipped + skipped,
            overlapped=progress.overlapped,
            queued=progress.queued,
            has_worker=self._schedules.has_worker(schedule),
            fault=fault,
        )

    def _times(
        self, plan: Plan, progress: ScheduleProgress, times: int
    ) -> Generator[Wait, Any, tuple[float, ...]]:
        """The next times. A paused schedule skips those that are over."""
        following = progress.next
        if following is not None and progress.paused:
            following = first_from(plan, max(following, self._clock.unix()))
        found: list[float] = []
        while following is not None and len(found) < times:
            found.append(following)
            following = plan.next_after(following)
            yield TURN
        return tuple(found)

    def _state(self, handle: str, *, asks: bool) -> Generator[Wait, Any, State | None]:
        """The state of a job, as far as it is known, and by what the store knows if that ``asks`` it."""
        core = self._parts.core
        number = core.handles.number(handle.encode())
        job = core.find(handle.encode())
        state: State | None = None
        if job is not None and not job.cancelled:
            state = STATES[job.state]
            return state
        if number is None or not asks or not core.journal.exists:
            return None
        try:
            record: JobRecord | None = yield Ask(RecordOf(number))
        except StoreError:
            return None
        if record is not None:
            state = _ENDED[record.outcome]
        return state

    def _count(self, schedule: Schedule, plan: Plan, tick: float, now: float) -> Generator[Wait, Any, int]:
        """How many times there are from ``tick``, which is one, until now. Times are whole seconds."""
        steps = self._schedules.counter.count(schedule.spec, plan, tick, floor(now) + 1)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                found: int = end.value
                return found
            yield TURN

    def _find(self, name: str) -> Schedule:
        schedule = self._table.get(name.encode(errors="replace"))
        if schedule is None or not schedule.value:
            raise _no_schedule(name)
        return schedule

    # ------------------------------------------------------------------------------------- put and apply

    def _apply(self, request: api.ScheduleRequest) -> Steps:
        """Set schedules, and remove others of the origin. All are checked before one is changed."""
        for spec in request.schedules:
            self._check(spec, request.origin)
            yield TURN
        created: list[str] = []
        changed: list[str] = []
        unchanged: list[str] = []
        for start in range(0, len(request.schedules), _AT_ONCE):
            specs = request.schedules[start : start + _AT_ONCE]
            for spec in specs:
                known = self._table.get(spec.name.encode())
                is_same = known is not None and known.spec == spec and known.origin == request.origin
                (unchanged if is_same else created if known is None else changed).append(spec.name)
            if not request.dry_run:
                yield from self._set(specs, request)
            yield TURN
        removed: list[bytes] = []
        if request.prune:
            stay = {*request.others, *(spec.name for spec in request.schedules)}
            removed += sorted(
                name
                for name, schedule in self._table.items()
                if schedule.value and schedule.origin == request.origin and schedule.spec.name not in stay
            )
            if not request.dry_run:
                yield from self._remove(removed)
        return api.ScheduleChanges(
            created=tuple(created),
            changed=tuple(changed),
            unchanged=tuple(unchanged),
            removed=tuple(name.decode() for name in removed),
        )

    def _check(self, spec: api.ScheduleSpec, origin: str) -> None:
        """Raise CallFailed if the server cannot follow a schedule."""
        known = self._table.get(spec.name.encode(errors="replace"))
        if known is not None and known.value and known.origin != origin:
            text = f"the schedule {spec.name!r} is there already, put by {known.origin!r}: delete it first"
            raise CallFailed("gearflow:refused", text)
        try:
            if not spec.name.isprintable():
                raise ValueError("its name has characters that cannot be printed")
            function = spec.function.encode()
            if function.startswith(RESERVED_PREFIX) or b"\0" in function:
                raise ValueError(f"no job can have the function {spec.function!r}")
            if len(function) > self._parts.core.limits.function:
                raise ValueError(
                    f"its function's name is longer than {self._parts.core.limits.function} bytes"
                )
            if len(payload_of(spec)) > api.MAX_PAYLOAD:
                raise ValueError(f"its payload has more than {api.MAX_PAYLOAD} bytes")
            read_plan(spec, 0.0)
        except ValueError as error:
            raise CallFailed("gearflow:invalid", f"the schedule {spec.name!r}: {error}") from None

    def _set(
        self, specs: Iterable[api.ScheduleSpec], request: api.ScheduleRequest
    ) -> Generator[Wait, Any, None]:
        """Set a few schedules. Raises CallFailed if one is not kept."""
        left = list(specs)
        for _ in range(_TRIES):
            yield from self._until_idle([spec.name.encode() for spec in left])
            edits = [edit for spec in left if (edit := self._edit(spec, request)) is not None]
            overtaken = yield from self._keep(edits)
            left = [edit.after.spec for edit in overtaken if edit.after is not None]
            if not left:
                return
        raise _overtaken(left[0].name)

    def _edit(self, spec: api.ScheduleSpec, request: api.ScheduleRequest) -> _Edit | None:
        """How to set a schedule. None if it is set already."""
        name, now, origin, trace = spec.name.encode(), self._clock.unix(), request.origin, request.trace
        known = self._table.get(name)
        if known is None:
            progress = ScheduleProgress(now, read_plan(spec, now).next_after(now), trace=trace)
            new = Schedule(spec, origin, progress)
            self._table[name] = new
            return _Edit(new, new, progress)
        if known.spec == spec and known.origin == origin:
            return None
        progress = known.progress._replace(trace=trace)
        if not keeps_time(known.when, spec.when):
            plan = read_plan(spec, progress.first)
            progress = progress._replace(next=plan.next_after(max(now, progress.last or 0.0)))
        return _Edit(known, Schedule(spec, origin, progress), progress)

    # --------------------------------------------------------------------------- other changes of schedules

    def _remove(self, names: Sequence[bytes], *, known: bool = False) -> Generator[Wait, Any, None]:
        """Remove schedules. Raises CallFailed if one is not removed, or must be ``known`` and is not."""
        for start in range(0, len(names), _AT_ONCE):
            some = names[start : start + _AT_ONCE]
            yield from self._until_idle(some)
            found = [self._table[name] for name in some if name in self._table and self._table[name].value]
            if known and not found:
                raise _no_schedule(names[0].decode(errors="replace"))
            yield from self._keep([_Edit(schedule, None, schedule.progress) for schedule in found])
            yield TURN

    def _pause(self, name: str, paused: bool) -> Generator[Wait, Any, Schedule]:
        """Pause a schedule, or resume it. Ticks while it was paused are counted as skipped."""
        for _ in range(_TRIES):
            self._find(name)
            yield from self._until_idle([name.encode()])
            schedule = self._find(name)
            progress = schedule.progress
            if progress.paused == paused:
                return schedule
            if not paused and progress.next is not None:
                progress = yield from self._after_pause(schedule, progress)
            progress = progress._replace(paused=paused)
            if not (yield from self._keep([_Edit(schedule, schedule, progress)])):
                return schedule
        raise _overtaken(name)

    def _after_pause(
        self, schedule: Schedule, progress: ScheduleProgress
    ) -> Generator[Wait, Any, ScheduleProgress]:
        """How far a schedule has come when its pause ends now."""
        now = self._clock.unix()
        assert progress.next is not None
        try:
            plan = schedule.make_plan()
        except ValueError as error:
            raise CallFailed("gearflow:invalid", f"the schedule {schedule.spec.name!r}: {error}") from None
        if progress.next > now:
            return progress
        schedule.pending = True
        skipped = yield from self._count(schedule, plan, progress.next, now)
        return progress._replace(next=plan.next_after(now), skipped=progress.skipped + skipped)

    def _until_idle(self, names: Sequence[bytes]) -> Generator[Wait, Any, None]:
        """Wait until no change of these schedules is on its way. Raises CallFailed if that takes too long."""
        until = self._clock.now + ORDERED
        wait: Wait = KNOWN
        while any(name in self._table and self._table[name].pending for name in names):
            if self._clock.now >= until:
                raise CallFailed("gearflow:store", "a tick of the schedule could not be kept yet; try again")
            yield wait
            wait = Later()

    def _keep(self, edits: Sequence[_Edit]) -> Generator[Wait, Any, list[_Edit]]:
        """Have changes kept. Returns those that another server was faster with. Raises CallFailed if one
        could not be kept."""
        if not edits:
            return []
        changes: list[Change] = []
        for before, after, progress in edits:
            before.pending = True
            if after is None:
                changes.append(Setting(before.name, KIND, b""))
            else:
                changes.append(Ticked(before.name, before.value, after.value_with(progress), None))
        outcomes: list[str | Joined | None] = yield Keep(changes)
        overtaken: list[_Edit] = []
        fault = ""
        for edit, outcome in zip(edits, outcomes, strict=True):
            if not isinstance(outcome, str):
                self._kept(edit)
                continue
            self._schedules.not_kept(edit.before, outcome)
            if isinstance(outcome, Overtaken):
                overtaken.append(edit)
            else:
                fault = outcome
        if fault:
            raise CallFailed("gearflow:store", f"the schedule could not be kept: {fault}")
        return overtaken

    def _kept(self, edit: _Edit) -> None:
        if edit.after is None:
            self._schedules.removed(edit.before)
        else:
            self._schedules.kept(edit.after, edit.progress, edit.before.value)

    # -------------------------------------------------------------------------------- jobs at other times

    def _trigger(self, schedule: Schedule, request: api.ScheduleRequest) -> Steps:
        """Make a job now."""
        now = round(self._clock.unix(), 3)
        job = self._place(schedule, now, request)
        yield from self._until_kept([job])
        handle = self._parts.core.handles.handle(job.joined or job.number)
        return api.ScheduledJobs(jobs=1, handle=handle.decode())

    def _backfill(self, schedule: Schedule, request: api.ScheduleRequest) -> Steps:
        """Make the jobs of past times. Those that are due are left to the schedule."""
        now, progress = self._clock.unix(), schedule.progress
        until = now if request.until is None else request.until
        if until > now:
            raise CallFailed("gearflow:invalid", "until is in the future: a backfill is about past times")
        if progress.next is not None and not progress.paused:
            until = min(until, progress.next - 1)
        try:
            plan = schedule.make_plan()
        except ValueError as error:
            raise CallFailed("gearflow:invalid", f"the schedule {schedule.spec.name!r}: {error}") from None
        times = yield from self._past_times(plan, request.since or 0.0, until)
        jobs: list[QueuedJob] = []
        for place, time in enumerate(times, 1):
            last = self._parts.core.handles.last
            job = self._place(schedule, time, request)
            if self._parts.core.handles.last != last:
                jobs.append(job)
            if not place % _AT_ONCE:
                yield TURN
        yield from self._until_kept(jobs)
        return api.ScheduledJobs(jobs=len(jobs), joined=len(times) - len(jobs))

    def _past_times(self, plan: Plan, since: float, until: float) -> Generator[Wait, Any, list[float]]:
        times: list[float] = []
        time = first_from(plan, since)
        while time is not None and time <= until:
            times.append(time)
            if len(times) > api.MAX_BACKFILL:
                text = f"the schedule has more than {api.MAX_BACKFILL} times in it: backfill less at a time"
                raise CallFailed("gearflow:refused", text)
            time = plan.next_after(time)
            if not len(times) % _AT_ONCE:
                yield TURN
        return times

    def _place(self, schedule: Schedule, time: float, request: api.ScheduleRequest) -> QueuedJob:
        try:
            return self._schedules.place(schedule, time, 0.0, trace=request.trace)
        except Rejected as refused:
            raise CallFailed("gearflow:full", refused.text.decode(errors="replace")) from None
        except RemoteProtocolError as error:
            raise CallFailed("gearflow:invalid", str(error)) from None

    def _until_kept(self, jobs: Sequence[QueuedJob]) -> Generator[Wait, Any, None]:
        """Wait until jobs are kept. Raises CallFailed if one could not be."""
        for job in jobs:
            while self._parts.submissions.is_storing(job, True) and not job.unstored and not job.joined:
                yield Kept(job.number)
            if job.details is not None and job.details.unstored is not None:
                raise CallFailed("gearflow:store", f"a job could not be stored: {job.details.unstored}")


def _no_schedule(name: str) -> CallFailed:
    return CallFailed("gearflow:unknown", f"there is no schedule {name!r}")


def _overtaken(name: str) -> CallFailed:
    return CallFailed("gearflow:refused", f"other servers change the schedule {name!r} as well; try again")
