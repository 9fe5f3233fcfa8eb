"""One schedule: what was put, how far it has come, and how both are kept as the value of a setting."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Generator, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from math import ceil
from typing import Any, Final, NamedTuple

from gearflow.broker.job import JobDetails
from gearflow.broker.limiter import short_key
from gearflow.protocol.constants import STREAM_KEEP
from gearflow.protocol.schedules import ScheduleSpec, ScheduleWhen
from gearflow.schedules import Plan
from gearflow.schedules import when as plan_of

MANY_TIMES: Final = 20_000
"""Times that are counted at most. It takes about two seconds, in many turns."""

_STEP: Final = 20
"""Times that are counted before others get their turn."""

_DIGEST: Final = 8
"""Bytes that stand for the rest of a long name."""


class ScheduleProgress(NamedTuple):
    """How far a schedule has come. Times are those of ticks, in Unix time."""

    first: float
    """When it was put first."""

    next: float | None = None
    """The next tick, which may be in the past. None: there is none."""

    last: float | None = None
    """The last tick that made a job."""

    handle: str = ""
    """The job of that tick. A number would not do, because jobs that are copied get new ones."""

    queued: float | None = None
    """A tick that waits until the job of the last one has ended."""

    paused: bool = False
    ticks: int = 0
    missed: int = 0
    skipped: int = 0
    overlapped: int = 0
    trace: dict[str, str] | None = None
    """The trace context of the call that put it, as it is now."""


class Schedule:
    """Owns the state of one schedule, as the store has it. ``value`` is that of its setting."""

    __slots__ = (
        "fault",
        "name",
        "origin",
        "pending",
        "plan",
        "progress",
        "spec",
        "spec_json",
        "tried",
        "value",
    )

    def __init__(self, spec: ScheduleSpec, origin: str, progress: ScheduleProgress) -> None:
        self.name = spec.name.encode()
        self.spec = spec
        self.spec_json = spec.to_wire()
        self.origin = origin
        self.progress = progress
        self.value = b""  # as the store has it; empty until it is kept
        self.pending = False  # a change is on its way to the store, or its missed ticks are being counted
        self.plan: Plan | None = None  # made when it is needed first
        self.fault = ""  # why it has made no job at its time
        self.tried: float | None = None  # the tick that could not be kept yet

    @property
    def when(self) -> ScheduleWhen:
        """When it is due."""
        return self.spec.when

    def value_with(self, progress: ScheduleProgress) -> bytes:
        """The value of its setting once it has come that far."""
        state = {name: value for name, value in progress._asdict().items() if value != _START.get(name)}
        state["origin"] = self.origin
        return b'{"spec":%b,"state":%b}' % (self.spec_json, json.dumps(state).encode())

    def make_plan(self) -> Plan:
        """Its plan. Raises ValueError if the server cannot follow it."""
        if self.plan is None:
            self.plan = read_plan(self.spec, self.progress.first)
        return self.plan

    def payload(self) -> bytes:
        """The payload of its jobs."""
        return payload_of(self.spec)

    def details(self, tick: float, now: float, due: float, trace: dict[str, str] | None) -> JobDetails:
        """The options of the job of a tick that is made now, and is due then. All are Unix times.

        ``trace`` is the trace context of the call that makes it, if there is one.
        """
        spec = self.spec
        details = JobDetails()
        details.scheduled_at = tick, spec.when.tz
        details.due = due if due > now else 0.0
        if spec.expires is not None:
            details.expires = max(due, now) + spec.expires
        details.keep = spec.keep
        details.stream_keep = STREAM_KEEP
        details.timeout = spec.timeout
        if spec.keys:
            details.keys = {name: short_key(key) for name, key in spec.keys.items()}
        if spec.group is not None:
            details.group = short_key(spec.group)
        details.retries = json.loads(spec.retries.to_wire()) if spec.retries is not None else None
        details.trace = self.progress.trace if trace is None else trace
        return details


_START: Final[Mapping[str, Any]] = ScheduleProgress._field_defaults


def read(name: bytes, value: bytes) -> Schedule:
    """The schedule of a setting.

    Raises:
        ValueError: It cannot be read. A later version may have written it.
    """
    stored: dict[str, Any] = json.loads(value)
    spec = ScheduleSpec.model_validate_json(json.dumps(stored["spec"]))
    state: dict[str, Any] = stored["state"]
    known = {key: state[key] for key in ScheduleProgress._fields if key in state}
    schedule = Schedule(spec, state["origin"], ScheduleProgress(**known))
    schedule.name = name
    schedule.value = value
    return schedule


def read_plan(spec: ScheduleSpec, first: float) -> Plan:
    """The plan of a schedule. Raises ValueError if the server cannot follow it, with the reason."""
    fields = spec.when.model_dump(exclude_defaults=True, exclude_none=True)
    try:
        return plan_of(fields, name=spec.name, first=first)
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from error


def payload_of(spec: ScheduleSpec) -> bytes:
    """The payload of a schedule's jobs. Raises ValueError if it is not what the encoding says."""
    if spec.encoding == "base64":
        return b64decode(spec.payload, validate=True)
    return spec.payload.encode()


def keeps_time(old: ScheduleWhen, new: ScheduleWhen) -> bool:
    """Whether both have the same times."""
    return _times_of(old) == _times_of(new)


def _times_of(when: ScheduleWhen) -> tuple[object, ...]:
    return when.cron, when.every, when.tz, when.start, when.end


def unique_of(name: bytes, time: float, limit: int) -> bytes:
    """The unique of a tick's job: ``cron:NAME:TIME``. A hash stands for the end of a long name."""
    text = datetime.fromtimestamp(time, UTC).isoformat(
        timespec="seconds" if time % 1 == 0 else "milliseconds"
    )
    end = b":" + text.replace("+00:00", "Z").encode()
    room = limit - len(b"cron:") - len(end)
    if len(name) > room:
        digest = blake2b(name, digest_size=_DIGEST).hexdigest().encode()
        name = name[: max(room - len(digest) - 1, 0)].decode(errors="ignore").encode() + b"~" + digest
    return b"cron:" + name + end


# ----------------------------------------------------------------------------------------- looking at times


def last_before(plan: Plan, tick: float, end: float) -> float:
    """The last time before ``end``. ``tick`` is one."""
    low, high = int(tick), ceil(end) - 1
    while low < high:
        middle = (low + high) // 2
        following = plan.next_after(middle)
        if following is not None and following < end:
            low = int(following)
        else:
            high = middle
    return float(low)


class TickCounter:
    """Counts times. Owns the last counts, because many schedules miss the same times in a downtime."""

    def __init__(self) -> None:
        self._counts: dict[tuple[object, ...], int] = {}

    def count(self, spec: ScheduleSpec, plan: Plan, tick: float, end: float) -> Generator[None, None, int]:
        """How many times there are from ``tick``, which is one, to before ``end``. ``MANY_TIMES`` at most."""
        if tick >= end:
            return 0
        if plan.cron is None:
            last = last_before(plan, tick, end)
            return min(round((last - tick) / plan.every) + 1, MANY_TIMES)
        key = _times_of(spec.when), tick, last_before(plan, tick, end)
        found = self._counts.get(key)
        if found is None:
            found = yield from _walk(plan, tick, end)
            if len(self._counts) >= _KNOWN_COUNTS:
                self._counts.clear()
            self._counts[key] = found
        return found


_KNOWN_COUNTS: Final = 64


def _walk(plan: Plan, tick: float, end: float) -> Generator[None, None, int]:
    found = 0
    following: float | None = tick
    while following is not None and following < end and found < MANY_TIMES:
        found += 1
        following = plan.next_after(following)
        if not found % _STEP:
            yield
    return found
