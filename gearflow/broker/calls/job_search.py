"""Finds the jobs that a filter selects: live ones in the server, and ended ones in the store."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from operator import attrgetter
from typing import Any, Final, NamedTuple

from gearflow.broker.calls.call import TURN, BrokerParts, Wait
from gearflow.broker.calls.job_selection import LETTERS, SEARCHED, JobSelection, bare, beginning_of
from gearflow.broker.calls.results import ResultCalls
from gearflow.broker.functions import FunctionQueue
from gearflow.broker.job import JobState, QueuedJob
from gearflow.broker.parser import Body
from gearflow.broker.storage import (
    DamagedEntry,
    DeadOf,
    EndedEntry,
    EndedOf,
    EndedPage,
    EndPlace,
    HeadOf,
    JobOf,
    JobOutcome,
    JobRecord,
    RecordOf,
    StoredJob,
)
from gearflow.broker.timers import Clock
from gearflow.errors import StoreError
from gearflow.protocol.jobs import ListedState

_SLICE: Final = 200
"""Jobs that are looked at before others get their turn."""

_FEW: Final = 2000
"""Jobs of the wanted states up to which all of them are gathered, instead of all jobs being looked at."""

_SEARCHES: Final = 16
"""Jobs that have ended which are looked at before others get their turn."""

_STORED: Final = 8
"""Live jobs whose payloads are read from the store before others get their turn."""

_SEARCH: Final = 400
"""Bytes in which a text is searched for at the cost of one look."""

LOOKS: Final = 100_000
"""Looks at jobs for a page: some tens of milliseconds. To search a text costs more than one look."""

PATIENCE: Final = 0.05
"""Seconds after which a page ends, because others need the server as well or the store is slow."""

_QUESTION: Final = 1000
"""Looks that a question to a local store counts as."""

_RECORD: Final = 15
"""The same for each result that it looks at."""

_FAR_QUESTION: Final = 40_000
"""The same for a shared store, which looks at more jobs for a question."""

_FETCHED: Final = 200
"""Looks that it costs to read a payload from the store."""

_SLACK: Final = 60.0
"""Seconds by which the ends of jobs may be out of order, because the clock was set back."""

_WORKLOAD: Final[Callable[[QueuedJob], Body | int]] = attrgetter("workload")
_UNIQUE: Final[Callable[[QueuedJob], bytes]] = attrgetter("unique")
_FUNCTION: Final[Callable[[QueuedJob], FunctionQueue]] = attrgetter("function")


class Looks:
    """How many looks at jobs a call may take. None means any number, and as much time as they need."""

    def __init__(self, limit: int | None, clock: Clock) -> None:
        self._left = limit
        self._clock = clock
        self._end = clock.now + PATIENCE

    def take(self, count: int = 1) -> None:
        """So many were taken."""
        if self._left is not None:
            self._left -= count

    @property
    def are_over(self) -> bool:
        """Whether none is left."""
        return self._left is not None and (self._left <= 0 or self._clock.now > self._end)


class LiveFound(NamedTuple):
    """Live jobs that were found, by number, and where to go on. None: these are all."""

    numbers: list[int]
    next: int | None
    looked: int  # at so many jobs
    left: int  # so many jobs follow


class EndedJob(NamedTuple):
    """A job that has ended. Without a place it was found by its number."""

    record: JobRecord | DamagedEntry
    listed: ListedState
    dead: bool
    place: EndPlace | None = None


class EndedFound(NamedTuple):
    """Jobs that have ended, and where to go on. None: these are all."""

    jobs: list[EndedJob]
    next: EndPlace | None
    looked: int  # at about so many jobs
    left: int | None  # about so many jobs follow, if that is known


class LettersFound(NamedTuple):
    """Dead letters that were found, and where to go on. None: these are all."""

    letters: list[EndedJob]
    next: int | None
    looked: int  # at so many letters


class JobSearch:
    """Searches. Owns nothing."""

    def __init__(self, parts: BrokerParts, results: ResultCalls) -> None:
        self._parts = parts
        self._core = parts.core
        self._results = results

    # ------------------------------------------------------------------------------------- live jobs

    def live(
        self, selection: JobSelection, after: int = 0, limit: int | None = None, looks: int | None = None
    ) -> Generator[Wait, Any, LiveFound]:
        """The live jobs that are selected, in the order of their numbers.

        Args:
            selection: The filter.
            after: A number. The jobs have larger ones.
            limit: So many jobs at most.
            looks: So many looks at most.
        """
        found: list[int] = []
        if not selection.live:
            return LiveFound(found, None, 0, 0)
        some = yield from self._few(selection)
        if selection.handle is not None:
            some = self._named(selection)
        if some is None:
            yield from self._update()
        looked, budget = 0, Looks(looks, self._core.clock)
        while True:
            if some is None:
                numbers = self._core.live.some_after(after, _SLICE)
            else:
                start = bisect_right(some, after)
                numbers = some[start : start + _SLICE]
            if not numbers:
                return LiveFound(found, None, looked, 0)
            jobs, after = self._selected(selection, numbers)
            budget.take(len(numbers))
            if selection.text and jobs:
                jobs = yield from self._with_text(selection, jobs, budget)
            found += [job.number for job in jobs]
            is_full = limit is not None and len(found) >= limit
            if is_full:
                del found[limit:]
                after = found[-1]
            looked += bisect_right(numbers, after)
            if is_full or budget.are_over:
                left = self._core.live.count_after(after) if some is None else _count_after(some, after)
                return LiveFound(found, after, looked, left)
            yield TURN

    def _named(self, selection: JobSelection) -> list[int]:
        """The number in the handle that is selected, if it is one of this store."""
        number = self._core.handles.number(selection.handle or b"")
        return [] if number is None else [number]

    def find_live(self, selection: JobSelection, number: int) -> QueuedJob | None:
        """The live job of a number, if it is selected still. A text is not searched for again."""
        job = self._core.jobs.by_number.get(number)
        return job if job is not None and self._is_selected(selection, job) else None

    def _update(self) -> Generator[Wait, Any, None]:
        for _ in self._core.live.update():
            yield TURN

    def _is_selected(self, selection: JobSelection, job: QueuedJob) -> bool:
        return job.state in selection.live and not job.cancelled and self._has_values(selection, job)

    def _has_values(self, selection: JobSelection, job: QueuedJob) -> bool:
        """Whether a live job has the function and the time that are selected."""
        if selection.function is not None and job.function.name != selection.function:
            return False
        return selection.has_time(job.submitted + self._core.clock.offset)

    def _selected(self, selection: JobSelection, numbers: list[int]) -> tuple[list[QueuedJob], int]:
        """The jobs of some of these numbers that are selected but for a text, and the last of the numbers."""
        found, states = [*map(self._core.jobs.by_number.get, numbers)], selection.live
        if None in found:
            for number, job in zip(numbers, found, strict=True):
                if job is None:
                    self._core.live.forget(number)
        jobs = [
            job
            for job in found
            if job is not None
            and job.state in states
            and ((details := job.details) is None or not details.cancelled)
        ]
        if not selection.has_no_values:
            jobs = [job for job in jobs if self._has_values(selection, job)]
        if selection.text:
            stored = [place for place, job in enumerate(jobs) if isinstance(job.workload, int)]
            if len(stored) > _STORED:
                jobs = jobs[: stored[_STORED]]
                return jobs, jobs[-1].number
        return jobs, numbers[-1]

    def _few(self, selection: JobSelection) -> Generator[Wait, Any, list[int] | None]:
        """The numbers of all jobs that may be selected, if these are few among many."""
        core, wanted = self._core, selection.live
        waiting, delayed = JobState.WAITING in wanted, JobState.DELAYED in wanted
        if selection.function is not None:
            function = core.functions.by_name.get(selection.function)
            functions = [function] if function is not None else []
        elif waiting and delayed and JobState.RUNNING in wanted:
            return None
        else:
            functions = list(core.functions.by_name.values())
        count, some = 0, list[FunctionQueue]()
        for place, function in enumerate(functions):
            queued = (function.all_waiting if waiting else 0) + len(function.delayed)
            if queued and (waiting or delayed):
                some.append(function)
                count += queued
            count += function.running if JobState.RUNNING in wanted else 0
            if count > _FEW:
                return None
            if not place % _SLICE:
                yield TURN
        numbers: list[int] = []
        for function in some:
            numbers += [job.number for job in (function.waiting_jobs() if waiting else function.delayed)]
            yield TURN
        if JobState.RUNNING in wanted:
            for session in list(core.sessions):
                numbers += [job.number for job in session.running.values()]
                yield TURN
        return sorted(numbers)

    # --------------------------------------------------------------------------------- dead letters

    def letters(
        self,
        selection: JobSelection,
        before: int | None = None,
        limit: int | None = None,
        looks: int | None = None,
    ) -> Generator[Wait, Any, LettersFound]:
        """The dead letters that are selected, the last number first.

        Args:
            selection: The filter.
            before: A number. The letters have smaller ones.
            limit: So many letters at most.
            looks: So many looks at most.

        Raises:
            StoreError: The store cannot be read.
        """
        found: list[EndedJob] = []
        if not selection.ended & LETTERS or not self._core.journal.exists:
            return LettersFound(found, None, 0)
        budget = Looks(looks, self._core.clock)
        if selection.handle is not None:
            named = yield from self._named_ended(selection, budget)
            return LettersFound([job for job in named if job.dead], None, 1)
        looked = 0
        while True:
            question = DeadOf(selection.function, before or 0, _SLICE, descending=True)
            letters: Sequence[JobRecord | DamagedEntry] = yield from self._parts.ask(question)
            for looked, letter in enumerate(letters, looked + 1):  # noqa: B020  (it goes on)
                before = letter.number
                budget.take(_FETCHED // 10)
                listed = yield from self._ended(selection, letter, True, budget)
                if listed is not None:
                    found.append(EndedJob(letter, listed, dead=True))
                if len(found) == limit or budget.are_over:
                    return LettersFound(found, before, looked)
                if selection.text or not before % _SEARCHES:
                    yield TURN
            if len(letters) < _SLICE:
                return LettersFound(found, None, looked)

    def _record_is_selected(self, selection: JobSelection, record: JobRecord | DamagedEntry) -> bool:
        if selection.function is not None and record.function != selection.function:
            return False
        if isinstance(record, DamagedEntry):
            return selection.error is None and selection.since is None and selection.until is None
        if not selection.has_time(record.ended) or record.expires <= self._core.clock.unix():
            return False
        return selection.error is None or bare(self._results.error_of(record)[0]) == selection.error

    # --------------------------------------------------------------------------- jobs that have ended

    def ended(
        self,
        selection: JobSelection,
        before: EndPlace | None = None,
        limit: int | None = None,
        looks: int | None = None,
    ) -> Generator[Wait, Any, EndedFound]:
        """The ended jobs that are selected, the last one first. Parameters and errors are as for ``letters``.

        They are looked for by their ends. That takes long if only dead letters are wanted, for which there is
        ``letters``.
        """
        found: list[EndedJob] = []
        if not selection.outcomes or not self._core.journal.exists:
            return EndedFound(found, None, 0, 0)
        budget = Looks(looks, self._core.clock)
        if selection.handle is not None:
            return EndedFound((yield from self._named_ended(selection, budget)), None, 1, 0)
        cost = _FAR_QUESTION if self._core.journal.shared else _QUESTION
        looked = 0
        while True:
            question = EndedOf(selection.function, selection.outcomes, before, selection.until, _SLICE)
            page: EndedPage = yield from self._parts.ask(question)
            budget.take(cost + (0 if self._core.journal.shared else _RECORD * page.looked))
            yield TURN
            may_match = not selection.text or self._may_be_in_ended(selection, page.entries)
            for index, (place, record, dead) in enumerate(page.entries, 1):
                before = place
                if _is_before(selection, record):
                    return EndedFound(found, None, looked + index, 0)
                listed: ListedState | None = None
                if may_match or dead:  # the store has the payload of a dead letter
                    listed = yield from self._ended(selection, record, dead, budget)
                if listed is not None:
                    found.append(EndedJob(record, listed, dead, place))
                if len(found) == limit or budget.are_over:
                    part = page.looked * index // len(page.entries)
                    left = None if page.left is None else page.left + page.looked - part
                    return EndedFound(found, before, looked + part, left)
                if selection.text or not place.number % _SEARCHES:
                    yield TURN
            before = page.next
            looked += page.looked
            if before is None or budget.are_over:
                return EndedFound(found, before, looked, page.left)

    def _named_ended(self, selection: JobSelection, looks: Looks) -> Generator[Wait, Any, list[EndedJob]]:
        """The ended job of the handle that is selected, if there is one."""
        found: list[EndedJob] = []
        for number in self._named(selection):
            record: JobRecord | DamagedEntry | None
            try:
                record = yield from self._parts.ask(RecordOf(number))
            except DamagedEntry as error:
                record = error
            if record is not None:
                dead = yield from self._results.is_dead(record)
                listed = yield from self._ended(selection, record, dead, looks)
                if listed is not None:
                    found.append(EndedJob(record, listed, dead))
        return found

    def _ended(
        self, selection: JobSelection, record: JobRecord | DamagedEntry, dead: bool, looks: Looks
    ) -> Generator[Wait, Any, ListedState | None]:
        listed = selection.has_state(record, dead=dead)
        if listed is None or not self._record_is_selected(selection, record):
            return None
        looks.take(_FETCHED // 20)
        if selection.text and not (yield from self._ended_has_text(selection, record, dead, looks)):
            return None
        return listed

    # ----------------------------------------------------------------------------------------- texts

    def _with_text(
        self, selection: JobSelection, jobs: list[QueuedJob], looks: Looks
    ) -> Generator[Wait, Any, list[QueuedJob]]:
        """Those of some live jobs that have the text in their names or their payloads."""
        found: list[QueuedJob] = []
        for some in _portions(jobs):
            if self._may_have_text(selection, some, looks):
                for job in some:
                    has = yield from self._has_text(selection, job, looks)
                    found += [job] * has
            yield TURN
        return found

    def _may_have_text(self, selection: JobSelection, jobs: list[QueuedJob], looks: Looks) -> bool:
        """Whether one of some live jobs may have the text. If not, none has it."""
        workloads = [*map(_WORKLOAD, jobs)]
        begins = [workload for workload in workloads if isinstance(workload, bytes)]
        if len(begins) < len(jobs) or max(map(len, begins)) > SEARCHED:
            begins = [beginning_of(workload) for workload in workloads if not isinstance(workload, int)]
            if len(begins) < len(jobs):
                return True  # the store has the others
        names = {function.name for function in {*map(_FUNCTION, jobs)}}
        if not names.isdisjoint(self._parts.redaction.functions):
            return True  # the text has to be searched for in what is shown
        handles = self._core.handles
        if selection.text.may_be_in_handle(handles.prefix):
            names.update(handles.handle(job.number) for job in jobs)
        texts = [*names, *map(_UNIQUE, jobs), *begins]
        looks.take(sum(map(len, texts)) // _SEARCH)
        return selection.text.may_be_in(texts)

    def _has_text(self, selection: JobSelection, job: QueuedJob, looks: Looks) -> Generator[Wait, Any, bool]:
        """Whether the text is in the names or the payload of a live job."""
        if self._is_in_names(selection, job.number, job.function.name, job.unique):
            return True
        workload: Body | int | None = job.workload
        if isinstance(workload, int) or job.size > SEARCHED // _STORED:
            yield TURN
            workload = yield from self.payload(job.number, job.workload, looks)
        return self._is_in(selection, job.function.name, workload, looks)

    def _ended_has_text(
        self, selection: JobSelection, record: JobRecord | DamagedEntry, dead: bool, looks: Looks
    ) -> Generator[Wait, Any, bool]:
        if self._is_in_names(selection, record.number, record.function, record.unique):
            return True
        if isinstance(record, DamagedEntry):
            return False
        if record.outcome >= JobOutcome.FAILED and selection.text.is_in(record.body):
            return True
        if not dead:
            return False
        payload = yield from self.payload_of_letter(record, looks)
        return self._is_in(selection, record.function, payload, looks)

    def _may_be_in_ended(self, selection: JobSelection, entries: Sequence[EndedEntry]) -> bool:
        """Whether one of some ended jobs may have the text in its names or its error. If not, none has it."""
        texts: set[bytes] = set()
        handles = self._core.handles
        if selection.text.may_be_in_handle(handles.prefix):
            texts.update(handles.handle(entry.record.number) for entry in entries)
        for _, record, _ in entries:
            texts.add(record.function)
            texts.add(record.unique)
            if (
                isinstance(record, JobRecord)
                and record.outcome >= JobOutcome.FAILED
                and not isinstance(record.body, int)
            ):
                texts.add(beginning_of(record.body))
        return selection.text.may_be_in([*texts])

    def _is_in_names(self, selection: JobSelection, number: int, function: bytes, unique: bytes) -> bool:
        return selection.text.is_in_names(self._core.handles.handle(number), function, unique)

    def _is_in(self, selection: JobSelection, function: bytes, payload: Body | None, looks: Looks) -> bool:
        if payload is None:
            return False
        looks.take(min(len(payload), SEARCHED) // _SEARCH)
        shown = self._parts.redaction.shown(function, payload)
        if shown is not None:
            looks.take(len(payload) // 20)
        return selection.text.is_in(payload if shown is None else shown.encode())

    # -------------------------------------------------------------------------------------- payloads

    def payload(
        self, number: int, workload: Body | int, looks: Looks | None = None
    ) -> Generator[Wait, Any, Body | None]:
        """The payload of a job. None if it is too large to be read for a list, or cannot be read."""
        if not isinstance(workload, int):
            return workload
        if not self._core.journal.exists or workload >= self._core.journal.large:
            return None
        if looks is not None:
            looks.take(_FETCHED)
        try:
            stored: StoredJob | None = yield from self._parts.ask(JobOf(number))
        except StoreError:
            return None
        return stored.workload if stored is not None and not isinstance(stored.workload, int) else None

    def payload_of_letter(
        self, letter: JobRecord, looks: Looks | None = None
    ) -> Generator[Wait, Any, Body | None]:
        """As ``payload``, of a dead letter."""
        try:
            head: StoredJob | None = yield from self._parts.ask(HeadOf(letter.number))
        except StoreError:
            return None
        if head is None:
            return None
        return (yield from self.payload(letter.number, head.workload, looks))


def _count_after(numbers: list[int], number: int) -> int:
    return len(numbers) - bisect_right(numbers, number)


def _portions(jobs: list[QueuedJob]) -> Iterator[list[QueuedJob]]:
    """The jobs in lists with payloads that are not larger than one that is searched."""
    sizes = [0 if isinstance(workload, int) else len(workload) for workload in map(_WORKLOAD, jobs)]
    if sum(sizes) <= SEARCHED:
        yield jobs
        return
    portion: list[QueuedJob] = []
    room = SEARCHED
    for job, size in zip(jobs, sizes, strict=True):
        portion.append(job)
        room -= size
        if room <= 0:
            yield portion
            portion, room = [], SEARCHED
    if portion:
        yield portion


def _is_before(selection: JobSelection, record: JobRecord | DamagedEntry) -> bool:
    """Whether a job has ended so early that those before it are not selected."""
    since = selection.since
    return since is not None and isinstance(record, JobRecord) and record.ended < since - _SLACK
