"""``gearflow:bulk``: count the jobs that a filter selects, or act on all of them.

The jobs are looked for first, in steps. Then each act is done in steps, and is as durable as one about a
single job. If the server dies meanwhile, what was done stays done, and the other jobs are as they were. An
act goes on if its caller leaves.
"""

from __future__ import annotations

from collections.abc import Generator
from itertools import islice
from typing import Any, Final, Literal

from gearflow.broker.calls.call import KNOWN, TURN, BrokerParts, CallFailed, ServerCall, Steps, Wait
from gearflow.broker.calls.dead_letters import DeadLetterCalls
from gearflow.broker.calls.job_search import JobSearch
from gearflow.broker.calls.job_selection import JobSelection
from gearflow.broker.calls.results import ResultCalls
from gearflow.broker.storage import DamagedEntry, EndPlace, JobRecord
from gearflow.protocol.jobs import BulkDone, BulkRequest, ErrorGroup

_SLICE: Final = 500
"""Jobs that are cancelled before the store is waited for, and letters that are found at a time."""

_GROUPS: Final = 1000
"""Errors that have groups of their own. Others are one group."""

_OTHERS: Final = "other errors"

_TYPE: Final = 200
"""Characters of the type of an error that are shown."""

_MESSAGE: Final = 500
"""Characters of its message."""


class BulkCalls:
    """Acts on many jobs."""

    def __init__(
        self, parts: BrokerParts, results: ResultCalls, search: JobSearch, letters: DeadLetterCalls
    ) -> None:
        self._parts = parts
        self._results = results
        self._search = search
        self._letters = letters

    def bulk(self, call: ServerCall) -> Steps:
        """Do what the request says."""
        request = call.read(BulkRequest)
        selection = JobSelection(request)
        yield KNOWN
        match request.do:
            case "count":
                return (yield from self._count(selection))
            case "cancel":
                return (yield from self._cancel(request, selection))
            case "errors":
                return (yield from self._errors(selection))
            case "replay" | "purge":
                return (yield from self._act(request, selection))

    def _count(self, selection: JobSelection) -> Steps:
        matched = len((yield from self._search.live(selection)).numbers)
        if selection.only_letters:
            return BulkDone(matched=matched + len((yield from self._find_letters(selection))))
        before: EndPlace | None = None
        while True:
            found = yield from self._search.ended(selection, before, _SLICE)
            matched += len(found.jobs)
            before = found.next
            if before is None:
                return BulkDone(matched=matched)

    # ------------------------------------------------------------------------------------- live jobs

    def _cancel(self, request: BulkRequest, selection: JobSelection) -> Steps:
        """Cancel live jobs."""
        numbers = (yield from self._search.live(selection)).numbers
        _check_expected(request, len(numbers))
        core, cancel = self._parts.core, self._parts.endings.cancel
        done, failed = 0, False
        for start in range(0, len(numbers), _SLICE):
            cancelled: set[int] = set()
            for number in numbers[start : start + _SLICE]:
                if self._search.find_live(selection, number) and cancel(core.handles.handle(number)):
                    cancelled.add(number)
                yield TURN
            yield KNOWN
            failed = core.journal.has_failed_end(cancelled) or failed
            done += len(cancelled)
        if failed:
            text = f"{done} were cancelled, but that could not be written: after a restart now they would run"
            raise CallFailed("gearflow:store", text)
        return BulkDone(matched=len(numbers), done=done, left=len(numbers) - done)

    # ---------------------------------------------------------------------------------- dead letters

    def _act(self, request: BulkRequest, selection: JobSelection) -> Steps:
        """Replay or purge dead letters."""
        self._parts.check_kept()
        numbers = yield from self._find_letters(selection)
        _check_expected(request, len(numbers))
        action: Literal["replay", "purge"] = "replay" if request.do == "replay" else "purge"
        done, left = yield from self._letters.act_on_all(action, selection.function, numbers)
        return BulkDone(matched=len(numbers), done=done, left=left)

    def _find_letters(self, selection: JobSelection) -> Generator[Wait, Any, list[int]]:
        """The numbers of the dead letters that are selected."""
        numbers: list[int] = []
        before: int | None = None
        while True:
            found = yield from self._search.letters(selection, before, _SLICE)
            numbers += [letter.record.number for letter in found.letters]
            before = found.next
            if before is None:
                return numbers

    def _errors(self, selection: JobSelection) -> Steps:
        """Group dead letters by function and error."""
        groups: dict[tuple[bytes, str], _Group] = {}
        matched = 0
        before: int | None = None
        while True:
            found = yield from self._search.letters(selection, before, _SLICE)
            for letter in found.letters:
                record = letter.record
                error, message = self._results.error_of(record)
                key = record.function, error[:_TYPE]
                if key not in groups and len(groups) >= _GROUPS:
                    key = b"", _OTHERS
                groups.setdefault(key, _Group()).add(record, message)
                yield TURN
            matched += len(found.letters)
            before = found.next
            if before is None:
                break
        largest = sorted(groups.items(), key=lambda item: -item[1].count)
        errors = tuple(self._shown(*key, group) for key, group in islice(largest, _GROUPS))
        return BulkDone(matched=matched, errors=errors)

    def _shown(self, function: bytes, error: str, group: _Group) -> ErrorGroup:
        return ErrorGroup(
            function=function.decode(errors="replace"),
            error=error,
            message=group.message,
            count=group.count,
            first=group.first,
            last=group.last,
            handle=self._parts.core.handles.handle(group.number).decode(),
        )


class _Group:
    """Dead letters with one error."""

    __slots__ = "count", "first", "last", "message", "number"

    def __init__(self) -> None:
        self.count = self.number = 0
        self.first = self.last = 0.0
        self.message = ""

    def add(self, record: JobRecord | DamagedEntry, message: str) -> None:
        """Another letter has the error."""
        ended = record.ended if isinstance(record, JobRecord) else 0.0
        if not self.count or ended > self.last:
            self.last, self.number, self.message = ended, record.number, message[:_MESSAGE]
        self.first = min(self.first, ended) if self.count else ended
        self.count += 1


def _check_expected(request: BulkRequest, matched: int) -> None:
    """Raise CallFailed if more jobs match than the caller has seen counted."""
    if request.expected is not None and matched > request.expected:
        text = f"{matched} jobs match now, more than {request.expected}: nothing was done; count them again"
        raise CallFailed("gearflow:refused", text)
