"""How runs end: an outcome for each of them, counters, and the lines of the log.

The log never has a payload, so it has no traceback of a run whose payload is invalid.

Each run has one line. If many runs fail of one cause, only the first lines of a second are warnings with the
exception. The others are information, like that of a run that is done, and a warning has their count.
"""

import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from enum import StrEnum
from typing import Final

import anyio

from gearflow.errors import PayloadInvalid, TaskTimeout
from gearflow.metrics.worker_counts import MOST_UNSORTED, SUCCEEDED, RunCounts
from gearflow.runtime.log_batches import RecordKind
from gearflow.runtime.log_bursts import BurstLog
from gearflow.tasks.control_flow import Control, Discard, Snooze
from gearflow.worker.retry_policy import one_line
from gearflow.worker.run import Run
from gearflow.worker.server_link import ServerLink
from gearflow.worker.slots import SlotAllocator

logger = logging.getLogger("gearflow.worker")


class RunOutcome(StrEnum):
    """How a run ended, in the word that the log has for it."""

    DONE = "done"
    SNOOZED = "snoozed"
    RETRIED = "retried"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    INVALID = "invalid"  # payload or result do not fit their types
    DISCARDED = "discarded"
    CANCELLED = "cancelled"
    HANDED_ON = "handed on"


_EXPECTED: Final = (RunOutcome.DONE, RunOutcome.SNOOZED, RunOutcome.CANCELLED)
_NO_ERRORS: Final = (*_EXPECTED, RunOutcome.HANDED_ON)
_MOST_KINDS: Final = 1000
"""Kinds of lines that are kept."""

_LABELS: Final = {
    outcome: SUCCEEDED if outcome is RunOutcome.DONE else outcome.replace(" ", "_") for outcome in RunOutcome
}
"""The words of metrics."""

_FAILURES: Final = (RunOutcome.FAILED, RunOutcome.TIMED_OUT, RunOutcome.INVALID, RunOutcome.DISCARDED)


class RunStats:
    """What runs now, and how many runs have ended. Owns state."""

    def __init__(self, slots: SlotAllocator) -> None:
        self._slots = slots
        self.running: set[Run] = set()  # without those that were reported as timed out
        self.ended = 0  # in whatever way
        self.done = 0
        self.failed = 0  # for good: runs that are retried, snoozed, cancelled or handed on are not
        self.last_end = time.perf_counter()  # of a run; before the first one, of the worker's making
        self.counts = RunCounts()
        self.log = BurstLog(logger, time.monotonic, self._call_later)
        self._kinds: dict[tuple[str, str, int], RecordKind] = {}  # of lines
        self._counts: tuple[float, Callable[[], None]] | None = None  # the log counts then
        self._counts_wanted = anyio.Event()

    @property
    def is_at_rest(self) -> bool:
        """No job runs, and none waits here for its next run."""
        return not self.running and not self._slots.held

    @property
    def is_used(self) -> bool:
        """There was a job, or there is one."""
        return bool(self.ended or self.running)

    def run_ended(self, run: Run, failure: BaseException | None) -> None:
        """Count a run that has ended, and log it. ``failure`` is what it raised."""
        self.last_end = now = time.perf_counter()
        seconds = now - run.began
        self.running.discard(run)
        self.ended += 1
        if failure is not None or run.cancelled or run.handed_on:
            self._run_failed(run, failure, seconds)
            return
        self.done += 1
        durations = self.counts.unsorted[run.task.name]
        durations.append(seconds)
        if len(durations) >= MOST_UNSORTED:
            self.counts.sort()
        if run.span is not None:
            run.span.end(RunOutcome.DONE, None)
        if logger.isEnabledFor(logging.INFO):
            if run.trace_id:
                self._log_run_ended(logging.INFO, run, RunOutcome.DONE, None, seconds)
            else:
                self._kind_of(run).log(run.handle, seconds)

    def _run_failed(self, run: Run, failure: BaseException | None, seconds: float) -> None:
        """A run has ended without a result that is wanted."""
        outcome = _outcome_of(run, failure)
        self.counts.ended(run.task.name, _LABELS[outcome], seconds)
        self.failed += outcome in _FAILURES
        level = logging.INFO if outcome in _EXPECTED else logging.WARNING
        if run.span is not None:
            run.span.end(outcome, None if outcome in _NO_ERRORS else _shown(failure) or failure)
        if logger.isEnabledFor(level):
            self._log_run_ended(level, run, outcome, failure, seconds)

    async def count_bursts(self) -> None:
        """Log the counts of the log's bursts, until this is cancelled."""
        while True:
            await self._counts_wanted.wait()
            self._counts_wanted = anyio.Event()
            while self._counts is not None:
                (seconds, count), self._counts = self._counts, None
                await anyio.sleep(seconds)
                count()

    def _call_later(self, seconds: float, function: Callable[[], None]) -> None:
        self._counts = seconds, function
        self._counts_wanted.set()

    async def log_idle(self, interval: float, links: Sequence[ServerLink]) -> None:
        """Log a line whenever no job has run for so many seconds, unless none is to be taken."""
        while True:
            idle = time.perf_counter() - self.last_end
            if idle < interval:
                await anyio.sleep(interval - idle)
                continue
            if self.is_at_rest and not (self._slots.is_quiet or self._slots.stopped):
                wanted = [link for link in links if link.counts]
                connected = sum(link.is_registered for link in wanted)
                logger.info(
                    "waiting for jobs",
                    extra={
                        "servers": f"{connected}/{len(wanted)}",
                        "done": self.done,
                        "failed": self.failed,
                    },
                )
            await anyio.sleep(interval)

    def log_handed_on(self, run: Run) -> None:
        """Log that a job which waited here for its next run after this one is another worker's now."""
        fields = {**run.log_fields(), "outcome": str(RunOutcome.HANDED_ON)}
        self._log_unexpected("job handed on", fields, (RunOutcome.HANDED_ON, run.task.name), None)

    def log_item_failed(self, run: Run, failure: BaseException) -> None:
        """Log the failure of one of several calls that share a run."""
        level = logging.INFO if isinstance(failure, Snooze) else logging.WARNING
        if logger.isEnabledFor(level):
            seconds = time.perf_counter() - run.began
            self._log_run_ended(level, run, _outcome_of(run, failure), failure, seconds)

    def _kind_of(self, run: Run) -> RecordKind:
        """The kind of the lines about runs that are done as this one is."""
        key = run.task.name, run.connection.server_name, run.envelope.attempt
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= _MOST_KINDS:
                self._kinds.clear()
            fields = {**run.log_fields(), "duration": 0.0, "outcome": str(RunOutcome.DONE)}
            kind = RecordKind(logger, logging.INFO, "job done", fields, handle="handle", number="duration")
            self._kinds[key] = kind
        return kind

    def _log_run_ended(
        self, level: int, run: Run, outcome: RunOutcome, failure: BaseException | None, seconds: float
    ) -> None:
        fields = {**run.log_fields(), "duration": seconds, "outcome": str(outcome)}
        if run.retry is not None:
            fields |= {"delay": run.retry.delay, "reason": run.retry.reason}
        elif outcome is RunOutcome.DISCARDED and isinstance(failure, Discard):
            fields["reason"] = one_line(failure)
        elif outcome is RunOutcome.INVALID:
            fields["reason"] = str(failure).removeprefix(f"task {run.task.name!r}: ")
        shown = _shown(failure) if outcome is RunOutcome.FAILED or outcome is RunOutcome.RETRIED else None
        if level == logging.INFO:
            logger.info(f"job {outcome}", extra=fields, exc_info=shown)
        else:
            cause = (outcome, run.task.name, type(failure), _place_of(failure))
            self._log_unexpected(f"job {outcome}", fields, cause, shown)

    def _log_unexpected(
        self, message: str, fields: Mapping[str, object], cause: Hashable, shown: BaseException | None
    ) -> None:
        if not self.log.log(logging.WARNING, message, cause=cause, extra=fields, exc_info=shown):
            logger.info(message, extra=fields)


def _shown(failure: BaseException | None) -> BaseException | None:
    """The exception behind one that decides about the job."""
    return failure.__cause__ if isinstance(failure, Control) else failure


def _place_of(error: BaseException | None) -> tuple[str, int] | None:
    """Where an exception was raised: the file and the line."""
    trace = None if error is None else error.__traceback__
    if trace is None:
        return None
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_filename, trace.tb_lineno


def _outcome_of(run: Run, failure: BaseException | None) -> RunOutcome:
    if run.handed_on:
        return RunOutcome.HANDED_ON
    if run.cancelled:
        return RunOutcome.CANCELLED
    if run.retry is not None:
        return RunOutcome.SNOOZED if isinstance(failure, Snooze) else RunOutcome.RETRIED
    match failure:
        case None:
            return RunOutcome.DONE
        case TaskTimeout():
            return RunOutcome.TIMED_OUT
        case PayloadInvalid():
            return RunOutcome.INVALID
        case Discard():
            return RunOutcome.DISCARDED
        case _:
            return RunOutcome.FAILED
