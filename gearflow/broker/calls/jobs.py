"""``gearflow:jobs``: list the jobs that a filter selects, page by page."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any, Final

from gearflow.broker.calls.call import KNOWN, TURN, BrokerParts, CallFailed, ServerCall, Steps, Wait
from gearflow.broker.calls.job_search import LOOKS, EndedJob, JobSearch, JobSelection
from gearflow.broker.calls.results import ResultCalls
from gearflow.broker.parser import Body
from gearflow.broker.storage import JobRecord
from gearflow.broker.watching import STATES
from gearflow.protocol.jobs import JobsRequest, ListedJob, ListedState
from gearflow.protocol.server_calls import JobInfo

_LIVE: Final = "live"
_DEAD: Final = "dead"

_LARGEST: Final = 4 << 20
"""Bytes of a page, from which on it ends before it has as many jobs as were asked for."""


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
        section, place = _read_cursor(request.after)
        yield KNOWN
        page = _Page(request.limit)
        if section == _LIVE:
            section, place = yield from self._add_live(page, request, selection, place)
        if section == _DEAD:
            yield from self._add_letters(page, request, selection, place or None)
        return page.pieces()

    def _add_live(
        self, page: _Page, request: JobsRequest, selection: JobSelection, after: int
    ) -> Generator[Wait, Any, tuple[str, int]]:
        """Add live jobs. Returns where the page goes on, if it is not full."""
        found = yield from self._search.live(selection, after, page.room, LOOKS)
        for number in found.numbers:
            job = self._search.find_live(selection, number)
            if job is None:
                continue  # it has ended, or begun, meanwhile
            payload: str | None = None
            if request.payload:
                workload = yield from self._search.payload(number, job.workload)
                payload = self._text(job.function.name, workload, request.payload)
            info = self._results.job_info(job)
            page.add(info, STATES[job.state], payload)
            if page.is_large and number != found.numbers[-1]:
                return page.end(_LIVE, number)
            yield TURN
        if found.next is not None:
            return page.end(_LIVE, found.next)
        return _DEAD, 0

    def _add_letters(
        self, page: _Page, request: JobsRequest, selection: JobSelection, before: int | None
    ) -> Generator[Wait, Any, None]:
        if not page.room:
            page.end(_DEAD, before or 0)
            return
        found = yield from self._search.letters(selection, before, page.room, LOOKS)
        for letter in found.letters:
            yield from self._add_ended(page, request, letter)
            if page.is_large and letter is not found.letters[-1]:
                page.end(_DEAD, letter.record.number)
                return
        if found.next is not None:
            page.end(_DEAD, found.next)

    def _add_ended(self, page: _Page, request: JobsRequest, ended: EndedJob) -> Generator[Wait, Any, None]:
        record, dead = ended.record, ended.listed in ("dead", "expired")
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
        self._next = ""

    @property
    def room(self) -> int:
        """How many jobs it may have yet."""
        return self._limit - len(self._jobs)

    @property
    def is_large(self) -> bool:
        """Whether no more jobs should be added, because a packet has an end."""
        return self._size > _LARGEST

    def add(self, info: JobInfo, listed: ListedState, payload: str | None) -> None:
        """Add a job."""
        job = ListedJob(job=info, listed=listed, payload=payload).to_wire()
        self._jobs.append(job)
        self._size += len(job)

    def end(self, section: str, place: int) -> tuple[str, int]:
        """The next page goes on behind this place. Returns that this page does not go on."""
        self._next = f"{section}:{place}"
        return "", 0

    def pieces(self) -> list[bytes]:
        """The answer."""
        next_ = f',"next":{json.dumps(self._next)}' if self._next else ""
        return [b'{"jobs":[', b",".join(self._jobs), f"]{next_}}}".encode()]


def _read_cursor(text: str) -> tuple[str, int]:
    """The section of the list, and the number in it. Raises CallFailed."""
    if not text:
        return _LIVE, 0
    section, _, digits = text.partition(":")
    if section not in (_LIVE, _DEAD) or not digits.isascii() or not digits.isdigit() or len(digits) > 18:
        raise CallFailed("gearflow:invalid", f"after is {text[:80]!r}, which is no next of a page")
    return section, int(digits)
