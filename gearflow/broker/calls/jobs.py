"""``gearflow:jobs``: list the jobs that a filter selects, page by page.

A list has two sections: the live jobs by their numbers, and those that have ended. If only dead letters are
selected, the second section has these by their numbers, because the store has an index of them.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import suppress
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from gearflow.broker.calls.call import KNOWN, TURN, BrokerParts, CallFailed, ServerCall, Steps, Wait
from gearflow.broker.calls.job_search import LOOKS, EndedJob, JobSearch
from gearflow.broker.calls.job_selection import JobSelection
from gearflow.broker.calls.results import ResultCalls
from gearflow.broker.parser import Body
from gearflow.broker.storage import DeadTotal, EndedOf, EndedPage, EndPlace, JobRecord
from gearflow.broker.watching import STATES
from gearflow.protocol.jobs import JobsRequest, ListedJob, ListedState
from gearflow.protocol.server_calls import JobInfo

Section: TypeAlias = Literal["live", "dead", "ended"]

_LARGEST: Final = 4 << 20
"""Bytes of a page, from which on it ends before it has as many jobs as were asked for."""


class Cursor(NamedTuple):
    """Where a page goes on: behind a number or a place in a section. 0: at the start of the section."""

    section: Section
    number: int = 0
    time: float = 0.0  # of ``EndPlace``


class JobListCalls:
    """Lists jobs."""

    def __init__(self, parts: BrokerParts, results: ResultCalls, search: JobSearch) -> None:
        self._parts = parts
        self._results = results
        self._search = search

    def jobs(self, call: ServerCall) -> Steps:
        """A ``JobPage``, as JSON in pieces."""
        request = call.read(JobsRequest)
        selection = JobSelection(request)
        begin = _read_cursor(request.after)
        yield KNOWN
        page = _Page(request.limit)
        cursor: Cursor | None = begin
        if begin.section == "live":
            cursor = yield from self._add_live(page, request, selection, begin)
        if cursor is not None and cursor.section != "live" and page.room:
            cursor = yield from self._add_all_ended(page, request, selection, cursor)
        if cursor is not None and cursor.section == "live" and page.left is not None:
            yield from self._add_left(page, selection)
        return page.pieces(cursor)

    def _add_live(
        self, page: _Page, request: JobsRequest, selection: JobSelection, cursor: Cursor
    ) -> Generator[Wait, Any, Cursor | None]:
        """Add live jobs. Returns where the list goes on."""
        found = yield from self._search.live(selection, cursor.number, page.room, LOOKS)
        page.searched, page.left = found.looked, found.left
        for number in found.numbers:
            job = self._search.find_live(selection, number)
            if job is None:
                continue  # it has ended, or begun, meanwhile
            payload: str | None = None
            if request.payload:
                workload = yield from self._search.payload(number, job.workload)
                payload = self._text(job.function.name, workload, request.payload)
            page.add(self._results.job_info(job), STATES[job.state], payload)
            if page.is_large:
                return Cursor("live", number)
            yield TURN
        if found.next is not None:
            return Cursor("live", found.next)
        if not selection.ended or not self._parts.core.journal.exists:
            return None
        return Cursor("dead" if selection.only_letters else "ended")

    def _add_all_ended(
        self, page: _Page, request: JobsRequest, selection: JobSelection, cursor: Cursor
    ) -> Generator[Wait, Any, Cursor | None]:
        """Add jobs that have ended. Returns where the list goes on."""
        end: Cursor | None = None
        if cursor.section == "dead":
            letters = yield from self._search.letters(selection, cursor.number or None, page.room, LOOKS)
            jobs, page.left = letters.letters, None
            if not cursor.number and selection.function is None:
                page.left = max((yield from self._parts.ask(DeadTotal())) - letters.looked, 0)
            page.searched += letters.looked
            if letters.next is not None:
                end = Cursor("dead", letters.next)
        else:
            before = EndPlace(cursor.time, cursor.number) if cursor.number else None
            found = yield from self._search.ended(selection, before, page.room, LOOKS)
            jobs, page.left = found.jobs, found.left
            page.searched += found.looked
            if found.next is not None:
                end = Cursor("ended", found.next.number, found.next.time)
        for job in jobs:
            yield from self._add_ended(page, request, job)
            if page.is_large and job is not jobs[-1]:
                if job.place is None:
                    return Cursor("dead", job.record.number)
                return Cursor("ended", job.place.number, job.place.time)
        return end

    def _add_left(self, page: _Page, selection: JobSelection) -> Generator[Wait, Any, None]:
        """Add those that have ended to the number of jobs that the server has to look at yet."""
        journal = self._parts.core.journal
        if not selection.ended or not journal.exists or page.left is None:
            return
        if journal.shared or not page.room:  # only long searches are worth the question
            page.left = None
            return
        if selection.only_letters:
            page.left += yield from self._parts.ask(DeadTotal())
            return
        question = EndedOf(selection.function, selection.outcomes, None, selection.until, 1)
        ended: EndedPage = yield from self._parts.ask(question)
        page.left = None if ended.left is None else page.left + ended.looked + ended.left

    def _add_ended(self, page: _Page, request: JobsRequest, ended: EndedJob) -> Generator[Wait, Any, None]:
        record, dead = ended.record, ended.dead
        payload: str | None = None
        if request.payload and dead and isinstance(record, JobRecord):
            workload = yield from self._search.payload_of_letter(record)
            payload = self._text(record.function, workload, request.payload)
        page.add(self._results.ended_info(record, dead=dead), ended.listed, payload)
        yield TURN

    def _text(self, function: bytes, workload: Body | None, limit: int) -> str | None:
        return None if workload is None else self._parts.redaction.text(function, workload, limit)


class _Page:
    """A page that is made."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._jobs: list[bytes] = []
        self._size = 0
        self.searched = 0  # about so many jobs were looked at
        self.left: int | None = 0  # about so many are to be looked at; None: that is not known

    @property
    def is_large(self) -> bool:
        """Whether no more jobs should be added, because a packet has an end."""
        return self._size > _LARGEST

    @property
    def room(self) -> int:
        """How many jobs it may have yet."""
        return 0 if self.is_large else self._limit - len(self._jobs)

    def add(self, info: JobInfo, listed: ListedState, payload: str | None) -> None:
        """Add a job."""
        job = ListedJob(job=info, listed=listed, payload=payload).to_wire()
        self._jobs.append(job)
        self._size += len(job)

    def pieces(self, cursor: Cursor | None) -> list[bytes]:
        """The answer."""
        left = json.dumps(0 if cursor is None else self.left)
        end = f'],"searched":{self.searched},"left":{left}'
        if cursor is not None:
            time = f":{cursor.time!r}" if cursor.section == "ended" else ""
            end += f',"next":{json.dumps(f"{cursor.section}:{cursor.number}{time}")}'
        return [b'{"jobs":[', b",".join(self._jobs), end.encode(), b"}"]


def _read_cursor(text: str) -> Cursor:
    """Where a page goes on. Raises CallFailed."""
    if not text:
        return Cursor("live")
    section, _, place = text.partition(":")
    digits, _, time = place.partition(":")
    if digits.isascii() and digits.isdigit() and len(digits) < 20 and int(digits) < 1 << 63:
        number = int(digits)
        if section == "live" and not time:
            return Cursor("live", number)
        if section == "dead" and not time:
            return Cursor("dead", number)
        if section == "ended":
            with suppress(ValueError):
                return Cursor("ended", number, float(time))
    raise CallFailed("gearflow:invalid", f"after is {text[:80]!r}, which is no next of a page")
