"""``gearflow:dead``: list, show, replay and purge dead letters."""

from __future__ import annotations

import base64
import codecs
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from gearflow.broker import serialization
from gearflow.broker.calls.call import (
    KNOWN,
    TURN,
    BrokerParts,
    CallFailed,
    Keep,
    ServerCall,
    Steps,
    Wait,
    in_turns,
)
from gearflow.broker.calls.results import ResultCalls
from gearflow.broker.parser import Body
from gearflow.broker.storage import Change, DamagedEntry, Forgotten, JobRecord, Revived, StoredJob
from gearflow.protocol import server_calls as api
from gearflow.protocol.constants import MAX_ARGUMENT, MAX_BODY

_SLICE: Final = 200
"""Dead letters that are dealt with before others get their turn."""

_STEP: Final = 3 << 18
"""Bytes of a payload that are shown before others get their turn. Base64 makes four bytes of three."""


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
                return (yield from self._show(call, request))
            case "replay" | "purge":
                return (yield from self._act(request))

    def _show(self, call: ServerCall, request: api.DeadRequest) -> Steps:
        """A ``Letter``, as JSON in pieces."""
        (record,) = self._letters(request, 0, 1)
        submissions = self._parts.submissions
        submissions.block(call.session)  # so that no more is read for it than it has room for
        try:
            return (yield from in_turns(self._letter(record), call.session))
        finally:
            submissions.unblock(call.session)

    def _letter(self, record: JobRecord | DamagedEntry) -> Generator[None, None, list[bytes]]:
        stored: StoredJob | None = None
        try:
            stored = yield from self._parts.kept.fetch(record.number)
        except DamagedEntry as error:  # the description of the job contains it
            self._parts.core.report(error)
        else:
            if stored is None:
                handle = self._parts.core.handles.handle(record.number).decode()
                raise CallFailed("gearflow:unknown", f"there is no dead letter {handle} any more")
        payload = stored.workload if stored is not None and not isinstance(stored.workload, int) else b""
        job = self._results.ended_info(record, dead=True)
        pieces = [b'{"job":%b,"payload":"' % job.to_wire()]
        for piece in _pieces_of(payload):
            pieces.append(base64.b64encode(piece))
            yield
        pieces.append(b'"')
        with suppress(UnicodeDecodeError):
            pieces += yield from _text_of(payload)
        pieces.append(b"}")
        if sum(map(len, pieces)) > MAX_BODY - MAX_ARGUMENT:
            text = f"the answer would not fit into a packet: its payload has {len(payload)} bytes"
            raise CallFailed("gearflow:refused", text)
        return pieces

    def _act(self, request: api.DeadRequest) -> Steps:
        """Replay or purge each letter that is meant, a slice at a time; the answer counts them."""
        after = done = left = 0
        fault: str | None = None
        damaged: list[DamagedEntry] = []
        while True:
            letters = self._letters(request, after, _SLICE)
            keys = yield from self._hashed_keys(request, letters)
            plans = self._plans(request, letters, keys)
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

    def _hashed_keys(
        self, request: api.DeadRequest, letters: Sequence[JobRecord | DamagedEntry]
    ) -> Generator[Wait, None, dict[int, bytes | None]]:
        """The unique keys, by number, of the letters to be replayed whose unique is ``-``."""
        keys: dict[int, bytes | None] = {}
        for letter in letters if request.action == "replay" else ():
            if letter.unique == b"-":
                hashing = self._parts.lifecycle.fetch_unique_key(letter.number)
                keys[letter.number] = yield from in_turns(hashing)
        return keys

    def _plans(
        self,
        request: api.DeadRequest,
        letters: Sequence[JobRecord | DamagedEntry],
        keys: Mapping[int, bytes | None],
    ) -> list[_Action | DamagedEntry | None]:
        """How to act on letters, except on those that another call is acting on."""
        plans: list[_Action | DamagedEntry | None] = []
        for letter in letters:
            if letter.number in self._acted_on:
                continue
            try:
                plan = self._plan(request, letter, keys.get(letter.number))
            except DamagedEntry as error:
                self._parts.core.report(error)
                plans.append(error)
                continue
            if plan is not None:
                self._acted_on.add(plan.number)
            plans.append(plan)
        return plans

    def _plan(
        self, request: api.DeadRequest, letter: JobRecord | DamagedEntry, key: bytes | None
    ) -> _Action | None:
        """How to act on a letter; None: not at all. Raises DamagedEntry if its payload cannot be read."""
        if request.action == "purge":
            return _Action(letter.number, Forgotten(letter.number))
        stored = self._parts.kept.head(letter.number)
        if stored is None:
            return None
        unique = stored.function, self._parts.lifecycle.unique_key(stored) if key is None else key
        function = self._parts.core.functions.by_name.get(stored.function)
        is_live = self._parts.core.jobs.find(function, unique[1]) is not None
        if unique[1] and (is_live or unique in self._reviving):
            return None  # else two jobs of one unique would be live
        self._reviving.add(unique)
        fresh = serialization.afresh(stored)
        return _Action(letter.number, Revived(letter.number, fresh.options), fresh, unique)

    def _finish(self, action: _Action, error: str | None) -> None:
        """The change is kept, or could not be."""
        self._acted_on.discard(action.number)
        if action.job is not None:
            self._reviving.discard(action.unique)
            if error is None:
                self._parts.lifecycle.revive(action.job, action.unique[1])

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


def _pieces_of(payload: Body) -> Iterator[memoryview]:
    view = memoryview(payload)
    return (view[start : start + _STEP] for start in range(0, len(view), _STEP))


def _text_of(payload: Body) -> Generator[None, None, list[bytes]]:
    """The field ``text`` of a letter. Raises UnicodeDecodeError if the payload is no text."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    pieces = [b',"text":"']
    for piece in _pieces_of(payload):
        pieces.append(json.dumps(decoder.decode(piece), ensure_ascii=False)[1:-1].encode())
        yield
    decoder.decode(b"", final=True)
    return [*pieces, b'"']
