"""Finds the jobs that a filter selects: live ones in the server, and ended ones in the store."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Generator, Sequence
from typing import Any, Final, NamedTuple

from gearflow.broker.calls.call import TURN, BrokerParts, Wait
from gearflow.broker.calls.results import ResultCalls
from gearflow.broker.functions import FunctionQueue
from gearflow.broker.job import JobState, QueuedJob
from gearflow.broker.parser import Body
from gearflow.broker.storage import (
    DamagedEntry,
    DeadOf,
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
from gearflow.errors import StoreError
from gearflow.protocol.jobs import ENDED, LIVE, JobFilter, ListedState

_SLICE: Final = 200
"""Jobs that are looked at before others get their turn."""

_FEW: Final = 2000
"""Jobs of the wanted states up to which all of them are gathered, instead of all jobs being looked at."""

_SEARCHES: Final = 16
"""Jobs whose texts are searched, or which the store has, before others get their turn."""

_SEARCH: Final = 9
"""Looks that a search in a short text costs."""

_SEARCHED: Final = 1 << 16
"""Bytes of a payload or an error that are searched."""

LOOKS: Final = 100_000
"""Looks at jobs for a page: some tens of milliseconds. To search a text costs more than one look."""

_QUESTION: Final = 2000
"""Looks that a question to a local store counts as. It takes less than a millisecond."""

_FAR_QUESTION: Final = 40_000
"""The same for a shared store, which looks at more jobs for a question."""

_FETCHED: Final = 200
"""Looks that it costs to read a payload from the store."""

_LISTED: Final[dict[JobState, ListedState]] = {
    JobState.DELAYED: "delayed",
    JobState.WAITING: "waiting",
    JobState.RUNNING: "running",
}

_LETTERS: Final[frozenset[ListedState]] = frozenset({"dead", "expired"})

_SLACK: Final = 60.0
"""Seconds by which the ends of jobs may be out of order, because the clock was set back."""

_ENDED: Final[dict[JobOutcome, ListedState]] = {
    JobOutcome.COMPLETED: "succeeded",
    JobOutcome.CANCELLED: "cancelled",
}


class Looks:
    """How many looks at jobs a call may take. None means any number."""

    def __init__(self, limit: int | None) -> None:
        self._left = limit

    def take(self, count: int = 1) -> None:
        """So many were taken."""
        if self._left is not None:
            self._left -= count

    @property
    def are_over(self) -> bool:
        """Whether none is left."""
        return self._left is not None and self._left <= 0


class LiveFound(NamedTuple):
    """Live jobs that were found, by number, and where to go on. None: these are all."""

    numbers: list[int]
    next: int | None


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


class LettersFound(NamedTuple):
    """Dead letters that were found, and where to go on. None: these are all."""

    letters: list[EndedJob]
    next: int | None


class JobSelection:
    """A filter as the server uses it."""

    def __init__(self, request: JobFilter) -> None:
        states = set(request.states or (*LIVE, *ENDED))
        self.function = request.function.encode() if request.function is not None else None
        self.handle = request.handle.encode() if request.handle is not None else None
        self.error = _bare(request.error) if request.error is not None else None
        self.text = request.text.casefold() if request.text else ""
        self.since, self.until = request.since, request.until
        self.live = {state for state, listed in _LISTED.items() if listed in states}
        if request.error is not None:
            self.live.clear()
        self.ended = states.intersection(ENDED)
        self.only_letters = self.ended <= _LETTERS
        self.outcomes = tuple(outcome for outcome in JobOutcome if self._may_be(outcome))

    def _may_be(self, outcome: JobOutcome) -> bool:
        """Whether jobs with that outcome may be selected."""
        if outcome in _ENDED:
            return self.error is None and _ENDED[outcome] in self.ended
        return bool(self.ended & {"failed", "dead"}) or (
            outcome is JobOutcome.EXPIRED and "expired" in self.ended
        )

    def has_time(self, time: float) -> bool:
        """Whether a time is within those that are selected."""
        return (self.since is None or self.since <= time) and (self.until is None or time < self.until)

    def has_state(self, record: JobRecord | DamagedEntry, *, dead: bool) -> ListedState | None:
        """The state by which an ended job is listed, if it is selected."""
        if dead:
            is_expired = isinstance(record, JobRecord) and record.outcome is JobOutcome.EXPIRED
            if is_expired and "expired" in self.ended:
                return "expired"
            return "dead" if "dead" in self.ended else None
        listed = _ENDED.get(record.outcome, "failed") if isinstance(record, JobRecord) else "failed"
        return listed if listed in self.ended else None


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
            return LiveFound(found, None)
        some, budget = (yield from self._few(selection)), Looks(looks)
        if selection.handle is not None:
            some = self._named(selection)
        if some is None:
            yield from self._update()
        by_number = self._core.jobs.by_number
        while True:
            if some is None:
                numbers = self._core.live.some_after(after, _SLICE)
            else:
                start = bisect_right(some, after)
                numbers = some[start : start + _SLICE]
            if not numbers:
                return LiveFound(found, None)
            for after in numbers:
                job = by_number.get(after)
                budget.take()
                if job is None:
                    self._core.live.forget(after)
                elif self._is_selected(selection, job) and (
                    not selection.text or (yield from self._has_text(selection, job, budget))
                ):
                    found.append(after)
                if len(found) == limit or budget.are_over:
                    return LiveFound(found, after)
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
        if job.state not in selection.live or job.cancelled:
            return False
        if selection.function is not None and job.function.name != selection.function:
            return False
        return selection.has_time(job.submitted + self._core.clock.offset)

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
        if not selection.ended & _LETTERS or not self._core.journal.exists:
            return LettersFound(found, None)
        budget = Looks(looks)
        if selection.handle is not None:
            named = yield from self._named_ended(selection, budget)
            return LettersFound([job for job in named if job.dead], None)
        while True:
            question = DeadOf(selection.function, before or 0, _SLICE, descending=True)
            letters: Sequence[JobRecord | DamagedEntry] = yield from self._parts.ask(question)
            for letter in letters:
                before = letter.number
                budget.take(_FETCHED // 10)
                listed = yield from self._ended(selection, letter, True, budget)
                if listed is not None:
                    found.append(EndedJob(letter, listed, dead=True))
                if len(found) == limit or budget.are_over:
                    return LettersFound(found, before)
                if selection.text or not before % _SEARCHES:
                    yield TURN
            if len(letters) < _SLICE:
                return LettersFound(found, None)

    def _record_is_selected(self, selection: JobSelection, record: JobRecord | DamagedEntry) -> bool:
        if selection.function is not None and record.function != selection.function:
            return False
        if isinstance(record, DamagedEntry):
            return selection.error is None and selection.since is None and selection.until is None
        if not selection.has_time(record.ended) or record.expires <= self._core.clock.unix():
            return False
        return selection.error is None or _bare(self._results.error_of(record)[0]) == selection.error

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
            return EndedFound(found, None)
        budget = Looks(looks)
        if selection.handle is not None:
            return EndedFound((yield from self._named_ended(selection, budget)), None)
        cost = _FAR_QUESTION if self._core.journal.shared else _QUESTION
        while True:
            question = EndedOf(selection.function, selection.outcomes, before, selection.until, _SLICE)
            page: EndedPage = yield from self._parts.ask(question)
            budget.take(cost)
            yield TURN
            for place, record, dead in page.entries:
                before = place
                if _is_before(selection, record):
                    return EndedFound(found, None)
                listed = yield from self._ended(selection, record, dead, budget)
                if listed is not None:
                    found.append(EndedJob(record, listed, dead, place))
                if len(found) == limit:
                    return EndedFound(found, before)
                if selection.text or not place.number % _SEARCHES:
                    yield TURN
            before = page.next
            if before is None or budget.are_over:
                return EndedFound(found, before)

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

    def _has_text(self, selection: JobSelection, job: QueuedJob, looks: Looks) -> Generator[Wait, Any, bool]:
        """Whether the text is in the names or the payload of a live job."""
        looks.take(_SEARCH)
        if not job.number % _SEARCHES or job.size > _SEARCHED // 16:
            yield TURN
        if self._is_in_names(selection, job.number, job.function.name, job.unique):
            return True
        workload: Body | int | None = job.workload
        if isinstance(workload, int):
            workload = yield from self.payload(job.number, workload, looks)
        return self._is_in(selection, job.function.name, workload, looks)

    def _ended_has_text(
        self, selection: JobSelection, record: JobRecord | DamagedEntry, dead: bool, looks: Looks
    ) -> Generator[Wait, Any, bool]:
        if self._is_in_names(selection, record.number, record.function, record.unique):
            return True
        if isinstance(record, DamagedEntry):
            return False
        if record.outcome >= JobOutcome.FAILED and _has(selection.text, record.body):
            return True
        if not dead:
            return False
        payload = yield from self.payload_of_letter(record, looks)
        return self._is_in(selection, record.function, payload, looks)

    def _is_in_names(self, selection: JobSelection, number: int, function: bytes, unique: bytes) -> bool:
        return _has(selection.text, b"\0".join((self._core.handles.handle(number), function, unique)))

    def _is_in(self, selection: JobSelection, function: bytes, payload: Body | None, looks: Looks) -> bool:
        if payload is None:
            return False
        looks.take(min(len(payload), _SEARCHED) // 150)
        shown = self._parts.redaction.shown(function, payload)
        if shown is not None:
            looks.take(len(payload) // 20)
        return _has(selection.text, payload if shown is None else shown.encode())

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


def _is_before(selection: JobSelection, record: JobRecord | DamagedEntry) -> bool:
    """Whether a job has ended so early that those before it are not selected."""
    since = selection.since
    return since is not None and isinstance(record, JobRecord) and record.ended < since - _SLACK


def _bare(error: str) -> str:
    """The type of an error. Workers send those of Python without their module."""
    return error.removeprefix("builtins.")


def _has(text: str, body: Body | int) -> bool:
    """Whether a text is in the beginning of a body."""
    if isinstance(body, int) or not len(body):
        return False
    begin = body if isinstance(body, bytes) and len(body) <= _SEARCHED else bytes(body[:_SEARCHED])
    if text.isascii() and begin.isascii():
        return text.encode() in begin.lower()
    return text in begin.decode(errors="replace").casefold()
