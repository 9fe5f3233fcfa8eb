"""Limits: how many jobs run at once, and how many start in a time.

The limiter has all limits by name, with their buckets (``buckets``). A function with limits has a queue that
knows which of its jobs may start (``limited_queue``). A running job is in the buckets that it needs
(``JobDetails.slots``) from when a worker is given it until it ends or comes back, whatever the reason. So
nothing has to be renewed, and nothing expires.

What follows from a change (a bucket that is free again, a job that is refused) is done in a turn of its own
(``on_change``). A worker that ends a job and asks for the next one in the same packet comes first by that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import blake2b
from heapq import heappop, heappush
from math import floor
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from gearflow.broker.buckets import SENT, Bucket, FunctionRules, LimitSpec, NamedLimit, Rule
from gearflow.broker.job import JobDetails, JobState, QueuedJob
from gearflow.broker.limited_queue import LimitedQueue
from gearflow.broker.parser import Body
from gearflow.broker.shares import LimitShares
from gearflow.broker.storage import PENDING, Answer, JobOf, StoredJob
from gearflow.broker.turns import Steps, Turns
from gearflow.protocol.envelope import unwrap
from gearflow.protocol.limits import limit_text
from gearflow.quantities import duration

if TYPE_CHECKING:
    from gearflow.broker.functions import FunctionQueue
    from gearflow.broker.journal import Journal
    from gearflow.broker.outgoing import Outgoing
    from gearflow.broker.session import Session
    from gearflow.broker.timers import Clock

__all__ = ["FunctionRules", "LimitSpec", "LimitUsage", "Limiter", "Rule"]

LARGEST: Final = 1 << 20
"""Bytes of the largest payload in which a key is looked for. It takes milliseconds to read one."""

LONGEST: Final = 128
"""Characters of the longest key. A longer one is cut, and ends with its hash."""

_WARNED: Final = 10_000
"""Warnings that are remembered, so that they are not repeated."""

_WAITING: Final = JobState.WAITING
_RUNNING: Final = JobState.RUNNING

_NOTHING: Final = object()


class LimitUsage(NamedTuple):
    """What a limit counts now."""

    running: int  # jobs
    waiting: int  # jobs of the functions that use it
    keys: int  # buckets
    next_in: float | None  # seconds until a job may start, of a rate without a key; None: at once


class Limiter:
    """Owns all limits and their timers."""

    def __init__(
        self,
        clock: Clock,
        turns: Turns,
        sessions: dict[Session, None],
        journal: Journal,
        outgoing: Outgoing,
    ) -> None:
        self.clock = clock
        self.turns = turns
        self.limits: dict[bytes, NamedLimit] = {}
        self.ready: dict[FunctionQueue, None] = {}  # functions that may have a job for a sleeping worker
        self.doomed: list[tuple[QueuedJob, JobState, str]] = []  # jobs to be cancelled in that state, and why
        self.fetching: dict[QueuedJob, None] = {}  # running jobs whose workload is on its way to their worker
        self.on_change: Callable[[], Steps] | None = None
        self.timers: list[tuple[float, int, Bucket]] = []  # a heap, always this list
        self._timer = 0
        self._is_scheduled = False
        self._sessions = sessions
        self._journal = journal
        self._outgoing = outgoing
        self._warned: set[tuple[bytes, bytes]] = set()
        self.shares: LimitShares | None = LimitShares(self) if journal.shared else None

    # --------------------------------------------------------------------------- limits and their rules

    def limit(self, name: bytes) -> NamedLimit:
        """The limit of a name. If it is not set, it limits nothing."""
        limit = self.limits.get(name)
        if limit is None:
            limit = self.limits[name] = NamedLimit(name, self.shares is not None)
        return limit

    def set_limit(self, name: bytes, spec: LimitSpec | None) -> None:
        """Set what a limit is, from now on. Without a spec it limits nothing."""
        limit = self.limit(name)
        if limit.spec == spec:
            self._forget(limit)
            return
        limit.set(spec)
        for queue in limit.queues:
            self._look_at_limits(queue)
        self.turns.run(self._apply(limit, list(limit.buckets.values())))
        self._forget(limit)

    def changed(self, bucket: Bucket) -> None:
        """A bucket has other slots or starts than before."""
        if bucket.is_awaited:
            if bucket.is_free(self.clock.now):
                self._free(bucket)
            else:
                self.set_timer(bucket)
        elif bucket.is_idle:
            self.rest(bucket)

    def set_rules(self, function: FunctionQueue, rules: FunctionRules | None) -> None:
        """Set which limits a function uses. Its waiting jobs are sorted by them in turns, in their order."""
        if rules is not None and not rules.rules and rules.fair is None:
            rules = None
        queue = function.limited
        if queue is None:
            if rules is None:
                return
            queue = LimitedQueue(self, function)
            function.limit_by(queue)
        elif queue.rules == rules:
            return
        queue.set_rules(rules)
        if function.limited is queue:
            self._look_at_limits(queue)

    def dissolved(self, queue: LimitedQueue) -> None:
        """A function has no limits any more. Its jobs are back in its lanes."""
        function = queue.function
        function.set_admission(False)
        if function.holds:
            self.turns.run(function.sort())
        if function.waiting:
            self.ready[function] = None
            self._schedule()

    def _look_at_limits(self, queue: LimitedQueue) -> None:
        """A limit that a queue uses has changed, or which it uses."""
        rules = queue.rules
        limits = [self.limit(rule.limit) for rule in rules.rules] if rules is not None else []
        queue.shut = any(limit.paused for limit in limits)
        queue.function.set_admission(
            rules is not None
            and (
                rules.fair is not None
                or any(rule.key is not None for rule in rules.rules)
                or any(limit.over != "wait" for limit in limits)
            )
        )
        queue.opened()

    def _apply(self, limit: NamedLimit, buckets: list[Bucket]) -> Steps:
        """The buckets of a limit follow its new spec."""
        for bucket in buckets:
            now = self.clock.now
            if limit.is_rate:
                latest = now + limit.tolerance + limit.interval
                bucket.next_start = min(bucket.next_start, latest)
            else:
                bucket.next_start = 0.0
            bucket.due = 0.0
            if not bucket.is_awaited:
                if bucket.is_idle:
                    self.rest(bucket)
            elif bucket.is_free(now):
                self._free(bucket)
            else:
                self.set_timer(bucket)
            yield

    def _forget(self, limit: NamedLimit) -> None:
        if not limit.in_use:
            self.limits.pop(limit.name, None)

    # ------------------------------------------------------------------------------------ jobs that run

    def release(self, job: QueuedJob) -> None:
        """A job does not run any more: its places are free."""
        details = job.details
        if details is None or details.slots is None:
            return
        slots, details.slots = details.slots, None
        now = self.clock.now
        for bucket in slots:
            del bucket.jobs[job]
            bucket.limit.running -= 1
        for bucket in slots:
            if self.shares is not None:
                self.shares.note(bucket)
            if bucket.is_awaited:
                if bucket.is_free(now):
                    self._free(bucket)
            elif bucket.is_idle:
                self.rest(bucket)

    def may_start(self, queue: LimitedQueue, job: QueuedJob) -> bool:
        """Whether a job that is in no line could start now."""
        if queue.shut or queue.busy:
            return False
        now = self.clock.now
        buckets = self._buckets(queue, job)
        may_start = all(bucket.is_free(now) for bucket in buckets)
        for bucket in buckets:
            if bucket.is_idle:
                self.rest(bucket)
        return may_start

    def start(self, queue: LimitedQueue, job: QueuedJob) -> None:
        """A job that is in no line starts: it takes its places."""
        now = self.clock.now
        slots = self._buckets(queue, job)
        for bucket in slots:
            bucket.take(job, now, now)
            if bucket.limit.is_rate and bucket.is_awaited:
                self.set_timer(bucket)
        details = job.ensure_details()
        details.slots = slots
        details.is_new = False

    def _buckets(self, queue: LimitedQueue, job: QueuedJob) -> tuple[Bucket, ...]:
        """The buckets of a job. If its keys are at the store, only those without one."""
        keys = self.keys_in_memory(queue, job)
        if keys is None:
            return queue.gates
        first = 0 if queue.fair is None else 1
        keyed = [limit.bucket(keys[first + place]) for place, (limit, _) in enumerate(queue.keyed)]
        return (*queue.gates, *keyed)

    def _free(self, bucket: Bucket) -> None:
        """A bucket is free: a line of each function goes on, and whole queues do."""
        closed, bucket.closed = bucket.closed, None
        for queue in closed or ():
            queue.closed_on = None
            queue.opened()
        for line in bucket.firsts():
            line.group.queue.arm(line)

    def rest(self, bucket: Bucket) -> None:
        """Nothing refers to a bucket: forget it, unless its rate has to be kept for a while."""
        limit = bucket.limit
        now = self.clock.now
        if limit.is_rate and bucket.next_start > now:
            if not bucket.due:
                self._set_timer(bucket, floor(bucket.next_start) + 1.0)  # so that many are due together
            return
        bucket.due = 0.0
        if limit.buckets.get(bucket.key) is bucket:
            del limit.buckets[bucket.key]
            self._forget(limit)

    def recount(self, queue: LimitedQueue, former: list[NamedLimit]) -> None:
        """The rules of a function have changed: its running jobs are in other buckets."""
        limits = [gate.limit for gate in queue.gates] + [limit for limit, _ in queue.keyed]
        for limit in former:
            limit.queues.pop(queue, None)
        for limit in limits:
            limit.queues[queue] = None
        for job in self._running(queue.function):
            if self.keys_in_memory(queue, job) is None:
                self.ask_for_keys(queue, job)
            else:
                self._move(queue, job)
        for limit in former:
            if limit not in limits:
                for bucket in [bucket for bucket in limit.buckets.values() if not bucket.key]:
                    if bucket.is_idle:
                        self.rest(bucket)
                self._forget(limit)

    def _running(self, function: FunctionQueue) -> Iterator[QueuedJob]:
        for session in self._sessions:
            for job in session.running.values():
                if job.function is function:
                    yield job
        for job in self.fetching:
            if job.function is function:
                yield job

    def _move(self, queue: LimitedQueue, job: QueuedJob) -> None:
        """Count a running job where the rules say."""
        keys = self.keys_in_memory(queue, job)
        if keys is None:
            return
        details = job.ensure_details()
        former = details.slots or ()
        first = 0 if queue.fair is None else 1
        keyed = [limit.bucket(keys[first + place]) for place, (limit, _) in enumerate(queue.keyed)]
        slots = (*queue.gates, *keyed)
        for bucket in slots:
            if bucket not in former:
                bucket.jobs[job] = None
                bucket.limit.running += 1
        details.slots = tuple(bucket for bucket in former if bucket not in slots)
        self.release(job)
        details.slots = slots

    # ---------------------------------------------------------------------------------------- the keys

    def prepare(
        self, function: FunctionQueue, workload: Body, details: JobDetails | None
    ) -> JobDetails | None:
        """The details of a job that is submitted, with its keys as far as they are in its payload."""
        queue = function.limited
        if queue is None:
            return details
        if details is None:
            details = JobDetails()
        details.is_new = True
        if self._is_unread(queue, details):
            self._read(queue, details, workload)
        return details

    def keys_in_memory(self, queue: LimitedQueue, job: QueuedJob) -> tuple[str, ...] | None:
        """The keys of a job, after its group if there are groups. None: they are at the store."""
        if queue.plain is not None or not (queue.keyed or queue.fair is not None):
            return ()
        details = job.ensure_details()
        if self._is_unread(queue, details):
            if isinstance(job.workload, int) and job.workload <= LARGEST:
                return None
            self._read(queue, details, b"" if isinstance(job.workload, int) else job.workload)
        known = details.keys or {}
        keys: list[str] = []
        if queue.fair is not None:
            keys.append((details.group if queue.fair == SENT else known.get(queue.fair)) or "")
        for limit, place in queue.keyed:
            key = known.get(_text(limit.name) if place == SENT else place, "")
            if not key:
                key = f"\0{job.number}"  # a bucket of its own
                self._warn(job.function, limit)
            keys.append(key)
        return tuple(keys)

    @staticmethod
    def _is_unread(queue: LimitedQueue, details: JobDetails) -> bool:
        """Whether the payload has to be read for the keys of a job."""
        if queue.rules is None:
            return False
        keys = details.keys
        return any(keys is None or pointer not in keys for pointer in queue.rules.pointers())

    @staticmethod
    def _read(queue: LimitedQueue, details: JobDetails, workload: Body) -> None:
        """Read the keys of a job from its payload. Those that are not there are empty."""
        if queue.rules is None:
            return
        payload: object = _NOTHING
        if len(workload) <= LARGEST:
            try:
                payload = json.loads(unwrap(bytes(workload))[1])
            except (ValueError, RecursionError):
                payload = _NOTHING
        keys = dict(details.keys) if details.keys is not None else {}
        for pointer in queue.rules.pointers():
            if pointer not in keys:
                keys[pointer] = key_at(payload, pointer)
        details.keys = keys

    def ask_for_keys(self, queue: LimitedQueue, job: QueuedJob) -> None:
        """The keys of a job are at the store. Its queue goes on when the store has answered."""
        queue.pending += 1
        answer = self._journal.ask(JobOf(job.number), partial(self._on_keys, queue, job))
        if answer is not PENDING:
            self._set_keys(queue, job, answer)
            queue.pending -= 1

    def _on_keys(self, queue: LimitedQueue, job: QueuedJob, answer: Answer) -> None:
        self._set_keys(queue, job, answer)
        queue.pending -= 1
        if not queue.pending:
            self.turns.run(queue.sort())

    def _set_keys(self, queue: LimitedQueue, job: QueuedJob, answer: Answer) -> None:
        workload = answer.workload if isinstance(answer, StoredJob) else b""
        self._read(queue, job.ensure_details(), b"" if isinstance(workload, int) else workload)
        if job.state is _RUNNING and queue.is_installed:
            self._move(queue, job)

    def _warn(self, function: FunctionQueue, limit: NamedLimit) -> None:
        """Say once that a job has no key."""
        if (function.name, limit.name) in self._warned or len(self._warned) >= _WARNED:
            return
        self._warned.add((function.name, limit.name))
        text = "a job has no key for the limit %s, so that does not limit it with others"
        self._outgoing.notify(text, None, function.name, _text(limit.name))

    # ------------------------------------------------------------------------- jobs that are not to wait

    def apply_over(self, queue: LimitedQueue, job: QueuedJob, buckets: tuple[Bucket, ...]) -> None:
        """A job waits: a limit may say that it, or another job, is to end."""
        details = job.ensure_details()
        is_new, details.is_new = details.is_new, False
        for bucket in buckets:
            over = bucket.limit.over
            if over == "wait":
                continue
            is_over = len(bucket.jobs) + bucket.waiting > bucket.limit.count
            name = _name(bucket)
            if over == "keep-newest":
                newest = bucket.newest
                if newest is None:
                    newest = bucket.newest = {}
                if not is_new and any(other.number > job.number for other in newest):
                    self._doom(job, _WAITING, f"a newer job of {name} waits")
                    continue
                if is_new and is_over:
                    for other in newest:
                        self._doom(other, _WAITING, f"a newer job of {name} has come")
                    newest.clear()
                newest[job] = None
            elif is_new and is_over and over == "drop":
                self._doom(job, _WAITING, f"it would have to wait for {name}")
                return
            elif is_new and is_over:
                running = [other for other in bucket.jobs if not other.cancelled]
                if running:
                    self._doom(running[0], _RUNNING, f"a newer job of {name} has come")

    def _doom(self, job: QueuedJob, state: JobState, why: str) -> None:
        self.doomed.append((job, state, why))
        self._schedule()

    # --------------------------------------------------------------------------------- what follows

    def note_ready(self, queue: LimitedQueue) -> None:
        """A queue may have a job for a worker that sleeps."""
        self.report(queue)
        function = queue.function
        if function.sleepers or function.waiting_grabs:
            self.ready[function] = None
            self._schedule()

    @staticmethod
    def report(queue: LimitedQueue) -> None:
        """Report the jobs of a queue to the workers that offer many functions."""
        function = queue.function
        if function.listeners is not None and function.waiting:
            for priority, ring in enumerate(queue.rings):
                if ring:
                    function.report(priority)

    def _schedule(self) -> None:
        if not self._is_scheduled and self.on_change is not None:
            self._is_scheduled = True
            self.turns.waiting.append(self._follow(self.on_change))

    def _follow(self, on_change: Callable[[], Steps]) -> Steps:
        self._is_scheduled = False
        yield from on_change()

    # -------------------------------------------------------------------------------------------- time

    def set_timer(self, bucket: Bucket) -> None:
        """Look at a bucket when its rate lets the next job start."""
        if self.shares is not None:
            self.shares.note(bucket)
        if bucket.limit.is_rate and bucket.has_starts(self.clock.now):
            due = bucket.due_at()
            if not bucket.due or due < bucket.due:
                self._set_timer(bucket, due)

    def _set_timer(self, bucket: Bucket, due: float) -> None:
        self._timer += 1
        bucket.due = due
        heappush(self.timers, (due, self._timer, bucket))

    def tick(self) -> None:
        """Time has passed."""
        timers, now = self.timers, self.clock.now
        while timers and timers[0][0] <= now:
            due, _, bucket = heappop(timers)
            if bucket.due != due:
                continue
            bucket.due = 0.0
            if bucket.is_awaited:
                if bucket.is_free(now):
                    self._free(bucket)
                else:
                    self.set_timer(bucket)
            elif bucket.is_idle:
                self.rest(bucket)
            if self.turns.is_late():
                return

    def next_due(self) -> float | None:
        """When ``tick`` has something to do."""
        timers = self.timers
        while timers and timers[0][2].due != timers[0][0]:
            heappop(timers)
        return timers[0][0] if timers else None

    # ------------------------------------------------------------------------------- what people ask

    def usage(self, name: bytes) -> LimitUsage:
        """What a limit counts now."""
        limit = self.limits.get(name)
        if limit is None:
            return LimitUsage(0, 0, 0, None)
        bucket = limit.buckets.get("")
        now = self.clock.now
        next_in = None
        if limit.is_rate and bucket is not None and not bucket.is_free(now):
            next_in = bucket.due_at() - now
        waiting = sum(queue.count for queue in limit.queues)
        return LimitUsage(limit.running, waiting, sum(1 for key in limit.buckets if key), next_in)

    def why(self, job: QueuedJob) -> str:
        """Why a waiting job waits, in words; empty if only for a worker, or if it does not wait."""
        queue = job.function.limited
        if queue is None or job.state is not _WAITING:
            return ""
        if queue.shut and queue.rules is not None:
            paused = [rule.limit for rule in queue.rules.rules if self.limit(rule.limit).paused]
            return f"the limit {', '.join(name.decode(errors='replace') for name in paused)} is paused"
        if queue.busy:
            return "its limits have changed, and the jobs are being sorted"
        now = self.clock.now
        line = job.details.line if job.details is not None else None
        for bucket in (*queue.gates, *(line.buckets if line is not None else ())):
            if not bucket.is_free(now):
                return _why(bucket, now)
        return ""


def _text(name: bytes) -> str:
    return name.decode(errors="replace")


def _name(bucket: Bucket) -> str:
    """A bucket in words."""
    name = _text(bucket.limit.name)
    return f"{name} ({bucket.key})" if bucket.key and bucket.key[0] != "\0" else name


def _why(bucket: Bucket, now: float) -> str:
    """Why a bucket is full."""
    limit = bucket.limit
    if limit.is_rate and limit.spec is not None:
        text = limit_text(limit.spec.count, limit.spec.per)
        return f"{_name(bucket)}: {text}, next in {duration(bucket.due_at() - now)}"
    running = len(bucket.jobs)
    if limit.is_shared and not bucket.is_own:
        return f"{_name(bucket)}: {limit.count} at once at all servers, {running} here"
    return f"{_name(bucket)}: {running} of {bucket.capacity} {'runs' if running == 1 else 'run'}"


def key_at(payload: object, pointer: str) -> str:
    """The key at a JSON pointer; empty if there is none. A number is its text."""
    value = payload
    if payload is _NOTHING:
        return ""
    for part in pointer.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = cast(dict[str, object], value).get(part)
        elif isinstance(value, list) and part.isdecimal() and len(part) < 10:
            items = cast(list[object], value)
            value = items[int(part)] if int(part) < len(items) else None
        else:
            return ""
    if value is None or isinstance(value, (dict, list)):
        return ""
    return short_key(value if isinstance(value, str) else json.dumps(value))


def short_key(key: str) -> str:
    """A key as it is used. A long one is cut, and has its hash. None is that of a job without one."""
    key = key.replace("\0", "\N{SYMBOL FOR NULL}")
    if len(key) <= LONGEST:
        return key
    digest = blake2b(key.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    return f"{key[: LONGEST - 34]}..{digest}"
