"""``gearflow:dead``: list, show, replay and purge dead letters."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from gearflow.broker import serialization
from gearflow.broker.calls.call import KNOWN, TURN, BrokerParts, CallFailed, Keep, ServerCall, Steps
from gearflow.broker.calls.results import ResultCalls
from gearflow.broker.storage import Change, DamagedEntry, Forgotten, JobRecord, Revived, StoredJob
from gearflow.protocol import server_calls as api

_SLICE: Final = 200
"""Dead letters that are dealt with before others get their turn."""


class _Action(NamedTuple):
    """How one letter is acted on: the change to keep, and the job to revive if it is to be replayed."""

    number: int
    change: Change
    job: StoredJob | None = None
    unique: tuple[bytes, bytes] = (b"", b"")


class DeadLetterCalls:
    """Acts on dead letters. Owns which of them are being replayed or purged."""

    def __init__(self, parts: BrokerParts, results: ResultCalls) -> None:
        self._parts = parts
        self._results = results
        self._acted_on: set[int] = set()  # that are being replayed or purged
        self._reviving: set[tuple[bytes, bytes]] = set()  # functions and uniques of those being replayed

    def dead(self, call: ServerCall) -> Steps:
        """Do what the request says."""
        request = call.read(api.DeadRequest)
        yield KNOWN
        match request.action:
            case "list":
                after = self._parts.number(request.after) if request.after else 0
                letters: list[api.JobInfo] = []
                for record in self._letters(request, after, request.limit):
                    letters.append(self._results.ended_info(record, dead=True))
                    yield TURN
                return api.Letters(letters=tuple(letters))
            case "show":
                return self._show(request)
            case "replay" | "purge":
                return (yield from self._act(request))

    def _show(self, request: api.DeadRequest) -> api.Letter:
        (record,) = self._letters(request, 0, 1)
        stored: StoredJob | None = None
        try:
            stored = self._parts.kept.job(record.number)
        except DamagedEntry as error:  # the description of the job contains it
            self._parts.core.report(error)
        payload = (
            bytes(stored.workload) if stored is not None and not isinstance(stored.workload, int) else b""
        )
        text: str | None = None
        with suppress(UnicodeDecodeError):
            text = payload.decode()
        job = self._results.ended_info(record, dead=True)
        return api.Letter(job=job, payload=base64.b64encode(payload).decode(), text=text)

    def _act(self, request: api.DeadRequest) -> Steps:
        """Replay or purge each letter that is meant, a slice at a time; the answer counts them."""
        after = done = left = 0
        fault: str | None = None
        damaged: list[DamagedEntry] = []
        while True:
            letters = self._letters(request, after, _SLICE)
            plans = self._plans(request, letters)
            actions = [plan for plan in plans if isinstance(plan, _Action)]
            damaged += [plan for plan in plans if isinstance(plan, DamagedEntry)]
            left += plans.count(None)
            if actions:
                errors: list[str | None] = yield Keep([action.change for action in actions])
                for action, error in zip(actions, errors, strict=True):
                    self._finish(action, error)
                    done += error is None
                    fault = error or fault
            else:
                yield KNOWN
            if request.handle is not None or len(letters) < _SLICE:
                break
            after = letters[-1].number
        if fault is not None:
            raise CallFailed("gearflow:store", f"the store cannot be written: {fault} ({done} were done)")
        if damaged and request.handle is not None:
            raise damaged[0]
        if left and request.handle is not None:
            text = (
                f"another job of the unique of {request.handle} waits or runs: replay it when that has ended"
            )
            raise CallFailed("gearflow:refused", text)
        return api.Done(jobs=done, left=left, damaged=len(damaged))

    def _plans(
        self, request: api.DeadRequest, letters: Sequence[JobRecord | DamagedEntry]
    ) -> list[_Action | DamagedEntry | None]:
        """How to act on letters, except on those that another call is acting on."""
        plans: list[_Action | DamagedEntry | None] = []
        for letter in letters:
            if letter.number in self._acted_on:
                continue
            try:
                plan = self._plan(request, letter)
            except DamagedEntry as error:
                self._parts.core.report(error)
                plans.append(error)
                continue
            if plan is not None:
                self._acted_on.add(plan.number)
            plans.append(plan)
        return plans

    def _plan(self, request: api.DeadRequest, letter: JobRecord | DamagedEntry) -> _Action | None:
        """How to act on a letter; None: not at all. Raises DamagedEntry if its payload cannot be read."""
        if request.action == "purge":
            return _Action(letter.number, Forgotten(letter.number))
        stored = self._parts.kept.head(letter.number)
        if stored is None:
            return None
        unique = stored.function, self._parts.lifecycle.unique_key(stored)
        function = self._parts.core.functions.by_name.get(stored.function)
        is_live = self._parts.core.jobs.find(function, unique[1]) is not None
        if unique[1] and (is_live or unique in self._reviving):
            return None  # else two jobs of one unique would be live
        self._reviving.add(unique)
        fresh = serialization.without_expiry(stored)._replace(attempt=0, deaths=0, due=0.0)
        return _Action(letter.number, Revived(letter.number, fresh.options), fresh, unique)

    def _finish(self, action: _Action, error: str | None) -> None:
        """The change is kept, or could not be."""
        self._acted_on.discard(action.number)
        if action.job is not None:
            self._reviving.discard(action.unique)
            if error is None:
                self._parts.lifecycle.revive(action.job)

    def _letters(
        self, request: api.DeadRequest, after: int, limit: int
    ) -> Sequence[JobRecord | DamagedEntry]:
        """The dead letters that a request is about."""
        if request.handle is None:
            function = request.function.encode() if request.function is not None else None
            return self._parts.kept.dead(function, after, limit)
        record: JobRecord | DamagedEntry | None
        try:
            record = self._parts.kept.ended(self._parts.number(request.handle))
        except DamagedEntry as error:
            record = error
        if record is None or not self._results.is_dead(record):
            raise CallFailed("gearflow:unknown", f"there is no dead letter {request.handle}")
        return [record]
