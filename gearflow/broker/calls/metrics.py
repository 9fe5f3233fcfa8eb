"""The call that shows what the server has counted. The same figures are for the process of the server."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import islice
from typing import Final, TypeVar

from gearflow.broker.calls.call import TURN, BrokerParts, FromShell, ServerCall, Steps, Wait, in_turns
from gearflow.broker.counts import Durations
from gearflow.broker.function_table import CountedFunction
from gearflow.broker.functions import FunctionQueue
from gearflow.broker.session import Session
from gearflow.broker.storage import PENDING, Answer, DeadTotal, Pending
from gearflow.protocol.histograms import Histogram
from gearflow.protocol.metrics import (
    FunctionMetrics,
    LimitMetrics,
    Metrics,
    MetricsRequest,
    Minute,
    ScheduleMetrics,
)
from gearflow.protocol.server_calls import Message

T = TypeVar("T")

_OLD: Final = 2.0
"""Seconds after which the number of dead letters is to be counted again."""

_MANY_DEAD: Final = 20_000
"""So many take a few milliseconds."""

_OLD_IF_MANY: Final = 60.0
"""The same, if there are many."""

_PATIENCE: Final = 0.5
"""Seconds that a call waits for the number of dead letters if the last one is older than ``_OLD_IF_MANY``."""

_SLICE: Final = 100
"""Functions, connections or limits that are looked at before others get their turn."""


class _Offers:
    """The workers of a function."""

    __slots__ = ("free", "slots")

    def __init__(self) -> None:
        self.slots = 0
        self.free = 0


class MetricsCalls:
    """Reads the counts. Owns the calls that wait for the number of dead letters."""

    def __init__(self, parts: BrokerParts) -> None:
        self._parts = parts
        self._waiting: dict[Callable[[None], None], None] = {}
        self._is_asked = False  # a store that is elsewhere, for the number of dead letters

    def metrics(self, call: ServerCall) -> Steps:
        """Show what the server has counted."""
        request, totals = call.read(MetricsRequest), self._parts.core.totals
        self._count_dead()
        if self._is_asked and self._parts.core.clock.now - totals.dead_since >= _OLD_IF_MANY:
            yield FromShell(self._wait)
        found = yield from in_turns(self.collect(request), call.session)
        if found is None:
            return None
        pieces = [found.model_copy(update={"functions": (), "history": ()}).to_wire()[:-1]]
        yield from _add_list(pieces, b"functions", found.functions)
        yield from _add_list(pieces, b"history", found.history)
        return [*pieces, b"}"]

    def collect(self, request: MetricsRequest) -> Generator[None, None, Metrics]:
        """What the server has counted, in steps."""
        core = self._parts.core
        self._count_dead()
        wanted = None if request.functions is None else {name.encode() for name in request.functions}
        offers = yield from self._offers(wanted)
        functions: list[FunctionMetrics] = []
        for some in _slices(core.functions.counted(wanted)):
            functions += [self._function(function, offers) for function in some]
            yield
        functions.sort(key=lambda metrics: metrics.function)
        limits: list[LimitMetrics] = []
        for names in _slices(sorted(core.limiter.limits)):
            limits += [self._limit(name) for name in names if name in core.limiter.limits]
            yield
        schedules: list[ScheduleMetrics] = []
        for names in _slices(sorted(self._parts.schedules.table)):
            schedules += [self._schedule(name) for name in names if name in self._parts.schedules.table]
            yield
        history: tuple[Minute, ...] = ()
        if request.since is not None:
            history = yield from core.history.read(request.functions, request.since)
        return Metrics(
            time=core.clock.unix(),
            started=core.totals.started,
            functions=tuple(functions),
            limits=tuple(limits),
            schedules=tuple(schedules),
            connections=len(core.sessions),
            accepted=core.totals.accepted,
            received=core.totals.received,
            sent=core.totals.sent,
            commits=_histogram(core.journal.commits),
            kept=core.journal.kept,
            dead=core.totals.dead,
            history=history,
            fetched=core.totals.fetched,
            store=core.store_state().model_copy(update={"damaged": len(core.damaged)}),
        )

    def _count_dead(self) -> None:
        """Ask the store for the number of dead letters, if that was not done just now. To count many takes
        long, and a store that is elsewhere answers later."""
        core, totals = self._parts.core, self._parts.core.totals
        age = _OLD_IF_MANY if totals.dead > _MANY_DEAD else _OLD
        if core.journal.exists and core.clock.now - totals.dead_at >= age and not self._is_asked:
            totals.dead_at = core.clock.now
            answer = core.journal.ask(DeadTotal(), self._set_dead)
            if answer is PENDING:
                self._is_asked = True
            else:
                self._set_dead(answer)

    def _set_dead(self, answer: Answer | Pending) -> None:
        totals, self._is_asked = self._parts.core.totals, False
        if isinstance(answer, int):
            totals.dead, totals.dead_since = answer, self._parts.core.clock.now
        for go_on in list(self._waiting):
            self._end_wait(go_on)

    def _wait(self, go_on: Callable[[None], None]) -> None:
        """Have a call go on with the number of dead letters, or without it if that takes too long."""
        core, self._waiting[go_on] = self._parts.core, None
        core.timers.add(
            core.clock.unix() + _PATIENCE, lambda: self._end_wait(go_on), lambda: go_on in self._waiting
        )

    def _end_wait(self, go_on: Callable[[None], None]) -> None:
        if go_on in self._waiting:
            del self._waiting[go_on]
            go_on(None)

    # ------------------------------------------------------------------------------------ functions

    def _function(self, function: CountedFunction, offers: dict[FunctionQueue, _Offers]) -> FunctionMetrics:
        counts, queues = function.counts, function.queues
        high, normal, low = function.waiting()
        delayed, running, oldest = function.delayed(), function.running(), function.oldest()
        offered = [offers[queue] for queue in queues if queue in offers]
        return FunctionMetrics(
            function=_text(counts.name),
            submitted=counts.submitted(high + normal + low + delayed + running),
            joined=counts.joined,
            restored=counts.restored,
            passed_on=counts.passed_on,
            started=counts.started,
            succeeded=counts.succeeded,
            failed=counts.failed,
            cancelled=counts.cancelled,
            expired=counts.expired,
            dead=counts.dead,
            retried=counts.retried,
            fetched=counts.fetched,
            waiting=(high, normal, low),
            delayed=delayed,
            running=running,
            oldest=max(self._parts.core.clock.now - oldest, 0.0) if oldest is not None else None,
            workers=sum(queue.workers for queue in queues),
            slots=sum(offer.slots for offer in offered),
            free=sum(offer.free for offer in offered),
            paused=bool(queues) and all(queue.paused for queue in queues),
            wait=_histogram(counts.wait),
            run=_histogram(counts.run),
        )

    def _offers(self, names: set[bytes] | None) -> Generator[None, None, dict[FunctionQueue, _Offers]]:
        """The slots of the workers of each function."""
        found: dict[FunctionQueue, _Offers] = {}
        looked_at = 0
        for session in list(self._parts.core.sessions):
            slots = _slots(session)
            for function in list(session.abilities):
                if names is None or function.name in names:
                    offers = found.get(function)
                    if offers is None:
                        offers = found[function] = _Offers()
                    offers.slots += slots
                    offers.free += slots - len(session.running)
                looked_at += 1
                if not looked_at % _SLICE:
                    yield
            looked_at += 1
            if not looked_at % _SLICE:
                yield
        return found

    # ------------------------------------------------------------------------- limits and schedules

    def _limit(self, name: bytes) -> LimitMetrics:
        limit = self._parts.core.limiter.limits[name]
        blocked = sum(bucket.blocked for bucket in limit.buckets.values())
        return LimitMetrics(name=_text(name), waiting=blocked, running=0 if limit.is_rate else limit.running)

    def _schedule(self, name: bytes) -> ScheduleMetrics:
        progress = self._parts.schedules.table[name].progress
        return ScheduleMetrics(
            name=_text(name),
            ticks=progress.ticks,
            missed=progress.missed,
            skipped=progress.skipped,
            overlapped=progress.overlapped,
        )


def _slots(session: Session) -> int:
    """How many jobs a worker can run at once, as far as that is known."""
    return max(session.slots, len(session.running))


def _histogram(durations: Durations) -> Histogram:
    return Histogram(counts=tuple(durations.counts), sum=durations.sum)


def _slices(values: Iterable[T]) -> Generator[list[T], None, None]:
    """The values, some at a time."""
    left = iter(values)
    while some := list(islice(left, _SLICE)):
        yield some


def _add_list(pieces: list[bytes], key: bytes, values: Sequence[Message]) -> Generator[Wait, None, None]:
    """Add a list to the JSON of an object, in steps."""
    if not values:
        return
    pieces.append(b',"%b":[' % key)
    for place, some in enumerate(_slices(values)):
        pieces.append(b"," * (place > 0) + b",".join([value.to_wire() for value in some]))
        yield TURN
    pieces.append(b"]")


def _text(name: bytes) -> str:
    return name.decode(errors="replace")
