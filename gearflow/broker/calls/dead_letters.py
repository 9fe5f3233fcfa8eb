"""``gearflow:dead``: list, show, replay and purge dead letters."""

from __future__ import annotations

import base64
import codecs
import json
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import suppress
from math import inf
from typing import Any, Final, Literal, NamedTuple

from gearflow.broker import serialization
from gearflow.broker.calls.call import (
    KNOWN,
    ORDERED,
    TURN,
    BrokerParts,
    CallFailed,
    Keep,
    Later,
    ServerCall,
    Steps,
    Wait,
    in_turns,
)
from gearflow.broker.calls.results import ResultCalls
from gearflow.broker.lifecycle import hash_payload
from gearflow.broker.parser import Body
from gearflow.broker.storage import (
    Change,
    DamagedEntry,
    DeadOf,
    Forgotten,
    HeadOf,
    JobOf,
    JobRecord,
    Joined,
    Ordered,
    RecordOf,
    Revived,
    StoredJob,
)
from gearflow.errors import StoreError
from gearflow.protocol import server_calls as api
from gearflow.protocol.constants import MAX_ARGUMENT, MAX_BODY

_SLICE: Final = 100
"""Dead letters that are acted on at once, which takes a few milliseconds."""

_ORDERS: Final = 1000
"""Dead letters that other servers are asked to replay before this one waits for them. It looks once in a
second whether they are done."""

_STEP: Final = 3 << 18
"""Bytes of a payload that are shown before others get their turn. Base64 makes four bytes of three."""


class _Action(NamedTuple):
    """How one letter is acted on: the change to keep, and the job to revive if it is to be replayed."""

    number: int
    change: Change
    job: StoredJob | None = None
    unique: tuple[bytes, bytes] = (b"", b"")
    ended: float = 0.0  # when the job had ended, if another server is to replay it


class _Count:
    """What has become of the letters that a call acts on."""

    def __init__(self) -> None:
        self.done = 0
        self.left = 0  # that could not be replayed
        self.late = 0  # that another server has not replayed yet
        self.gone = False  # whether another server was faster, which does not count
        self.fault: str | Joined | None = None  # of the store
        self.damaged: list[DamagedEntry] = []
        self.ordered: dict[int, float] = {}  # by number: when they ended, if another server is to act


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
                for record in (yield from self._letters(request, after, request.limit)):
                    letters.append(self._results.ended_info(record, dead=True))
                    yield TURN
                return api.Letters(letters=tuple(letters))
            case "show":
                return (yield from self._show(call, request))
            case "replay" | "purge":
                return (yield from self._act(request))

    def _show(self, call: ServerCall, request: api.DeadRequest) -> Steps:
        """A ``Letter``, as JSON in pieces."""
        (record,) = yield from self._letters(request, 0, 1)
        submissions = self._parts.submissions
        submissions.block(call.session)  # so that no more is read for it than it has room for
        try:
            payload = yield from self._payload(call, record.number)
            return (yield from in_turns(self._letter(record, payload), call.session))
        finally:
            submissions.unblock(call.session)

    def _payload(self, call: ServerCall, number: int) -> Generator[Wait, Any, Body]:
        """The payload of a letter, or nothing if it is damaged."""
        parts = self._parts
        try:
            stored = yield from parts.whole(JobOf(number), call.session)
        except DamagedEntry as error:  # the description of the job contains it
            parts.core.report(error)
            return b""
        if stored is None and call.session.is_open:
            handle = parts.core.handles.handle(number).decode()
            raise CallFailed("gearflow:unknown", f"there is no dead letter {handle} any more")
        if isinstance(stored, StoredJob) and not isinstance(stored.workload, int):
            return stored.workload
        return b""

    def _letter(self, record: JobRecord | DamagedEntry, payload: Body) -> Generator[None, None, list[bytes]]:
        job = self._results.ended_info(record, dead=True)
        if isinstance(record, JobRecord) and payload:
            shown = self._parts.redaction.shown(record.function, payload)
            payload = payload if shown is None else shown.encode()
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

    def replay(self, number: int) -> Steps:
        """Replay a letter, because another server was asked to do that."""
        yield KNOWN
        handle = self._parts.core.handles.handle(number).decode()
        request = api.DeadRequest(action="replay", handle=handle)
        with suppress(CallFailed):
            letters = yield from self._letters(request, 0, 1)
            yield from self._act_on(request, letters, _Count())
        return None

    def _act(self, request: api.DeadRequest) -> Steps:
        """Replay or purge each letter that is meant, a slice at a time; the answer counts them."""
        after, count = 0, _Count()
        while True:
            letters = yield from self._letters(request, after, _SLICE)
            yield from self._act_on(request, letters, count)
            yield from self._wait_for_others(count, _ORDERS)
            if request.handle is not None or len(letters) < _SLICE:
                break
            after = letters[-1].number
        yield from self._wait_for_others(count)
        _check_kept(count)
        if count.damaged and request.handle is not None:
            raise count.damaged[0]
        if count.gone and request.handle is not None:
            raise CallFailed("gearflow:unknown", f"there is no dead letter {request.handle} any more")
        if count.late and request.handle is not None:
            text = f"the server that has {request.handle} has not replayed it in time; it may do so yet"
            raise CallFailed("gearflow:timeout", text)
        if count.left and request.handle is not None:
            text = (
                f"another job of the unique of {request.handle} waits or runs: replay it when that has ended"
            )
            raise CallFailed("gearflow:refused", text)
        return api.Done(jobs=count.done, left=count.left + count.late, damaged=len(count.damaged))

    def act_on_all(
        self, action: Literal["replay", "purge"], function: bytes | None, numbers: Collection[int]
    ) -> Generator[Wait, Any, tuple[int, int]]:
        """Replay or purge the letters of these numbers, a slice at a time, the lowest number first.

        Args:
            action: What to do.
            function: That of all these letters, if they have one.
            numbers: The numbers.

        Returns:
            How many were done, and how many had to stay.

        Raises:
            CallFailed: Not all could be written.
            StoreError: The store cannot be read.
        """
        request, count, wanted = api.DeadRequest(action=action), _Count(), set(numbers)
        after, last = min(wanted, default=0) - 1, max(wanted, default=0)
        while after < last:
            letters: Sequence[JobRecord | DamagedEntry]
            letters = yield from self._parts.ask(DeadOf(function, after, _SLICE))
            some = [letter for letter in letters if letter.number in wanted]
            yield from self._act_on(request, some, count)
            yield from self._wait_for_others(count, _ORDERS)
            if len(letters) < _SLICE:
                break
            after = letters[-1].number
            yield TURN
        yield from self._wait_for_others(count)
        _check_kept(count)
        return count.done, count.left + count.late + len(count.damaged)

    def _act_on(
        self, request: api.DeadRequest, letters: Sequence[JobRecord | DamagedEntry], count: _Count
    ) -> Generator[Wait, Any, None]:
        plans = yield from self._plans(request, letters, count)
        actions = [plan for plan in plans if isinstance(plan, _Action)]
        count.damaged += [plan for plan in plans if isinstance(plan, DamagedEntry)]
        count.left += plans.count(None)
        if not actions:
            yield KNOWN
            return
        errors: list[str | Joined | None] = yield Keep([action.change for action in actions])
        for action, error in zip(actions, errors, strict=True):
            self._finish(action, error)
        self._parts.core.totals.dead_at = -inf  # their number is to be asked for again
        for action, error in zip(actions, errors, strict=True):
            if error is not None:
                if count.fault is None and (yield from self._is_gone(action.number)):
                    count.gone = True
                else:
                    count.fault = error
            elif isinstance(action.change, Ordered):
                count.ordered[action.number] = action.ended
            else:
                count.done += 1

    def _is_gone(self, number: int) -> Generator[Wait, Any, bool]:
        """Whether another server has purged or replayed a letter meanwhile."""
        if not self._parts.core.journal.shared:
            return False
        try:
            return (yield from self._parts.ask(RecordOf(number))) is None
        except StoreError:
            return False

    def _wait_for_others(self, count: _Count, least: int = 1) -> Generator[Wait, Any, None]:
        """If other servers have been asked to replay so many letters, wait until these are gone."""
        clock, ordered = self._parts.core.clock, count.ordered
        if len(ordered) < least:
            return
        until = clock.unix() + ORDERED
        while ordered and clock.unix() < until:
            yield Later(until)
            for number, ended in list(ordered.items()):
                try:
                    record: JobRecord | None = yield from self._parts.ask(RecordOf(number))
                except StoreError:
                    continue
                if record is None or record.ended != ended:
                    del ordered[number]
                    count.done += 1
        count.late += len(ordered)
        ordered.clear()

    def _plans(
        self, request: api.DeadRequest, letters: Sequence[JobRecord | DamagedEntry], count: _Count
    ) -> Generator[Wait, Any, list[_Action | DamagedEntry | None]]:
        """How to act on letters, except on those that another call is acting on."""
        plans: list[_Action | DamagedEntry | None] = []
        for letter in letters:
            yield TURN
            if self._is_taken(letter.number):
                continue
            try:
                plan = yield from self._plan(request, letter)
            except DamagedEntry as error:
                self._parts.core.report(error)
                plans.append(error)
                continue
            if self._is_taken(letter.number):  # since the store was asked
                continue
            if plan is None:
                count.gone = True
            else:
                plans.append(plan if self._begin(plan) else None)
        return plans

    def _is_taken(self, number: int) -> bool:
        """Whether another call is acting on a letter, or has revived it."""
        return number in self._acted_on or number in self._parts.core.jobs.by_number

    def _plan(
        self, request: api.DeadRequest, letter: JobRecord | DamagedEntry
    ) -> Generator[Wait, Any, _Action | None]:
        """How to act on a letter; None if it is gone. Raises DamagedEntry if its payload cannot be read."""
        number = letter.number
        if request.action == "purge":
            return _Action(number, Forgotten(number))
        if not self._parts.core.handles.owns(number):
            ended = letter.ended if isinstance(letter, JobRecord) else 0.0
            return _Action(number, Ordered(number, "replay"), ended=ended)
        key = (yield from self._hashed_key(number)) if letter.unique == b"-" else None
        stored: StoredJob | None = yield from self._parts.ask(HeadOf(number))
        if stored is None:
            return None
        if stored.unique != b"-":
            key = stored.unique
        elif key is None:
            key = yield from self._hashed_key(number)
        fresh = serialization.afresh(stored)
        return _Action(number, Revived(number, fresh.options), fresh, (stored.function, key))

    def _hashed_key(self, number: int) -> Generator[Wait, Any, bytes]:
        """The unique key of a letter whose unique is ``-``."""
        payload: Body | None = None
        try:
            payload = self._parts.lifecycle.payload_in((yield from self._parts.whole(JobOf(number))))
        except DamagedEntry as error:
            self._parts.core.report(error)
        return (yield from in_turns(hash_payload(payload))) or b"" if payload is not None else b""

    def _begin(self, action: _Action) -> bool:
        """Begin to act on a letter. False if another job of its unique is live, or will be."""
        if action.job is not None:
            name, key = action.unique
            function = self._parts.core.functions.by_name.get(name)
            is_live = self._parts.core.jobs.find(function, key) is not None
            if key and (is_live or action.unique in self._reviving):
                return False
            self._reviving.add(action.unique)
        self._acted_on.add(action.number)
        return True

    def _finish(self, action: _Action, error: str | Joined | None) -> None:
        """The change is kept, or could not be."""
        self._acted_on.discard(action.number)
        if action.job is not None:
            self._reviving.discard(action.unique)
            if error is None:
                self._parts.lifecycle.revive(action.job, action.unique[1])

    def _letters(
        self, request: api.DeadRequest, after: int, limit: int
    ) -> Generator[Wait, Any, Sequence[JobRecord | DamagedEntry]]:
        """The dead letters that a request is about."""
        if request.handle is None:
            function = request.function.encode() if request.function is not None else None
            letters: Sequence[JobRecord | DamagedEntry]
            letters = yield from self._parts.ask(DeadOf(function, after, limit))
            return letters
        record: JobRecord | DamagedEntry | None
        try:
            record = yield from self._parts.ask(RecordOf(self._parts.number(request.handle)))
        except DamagedEntry as error:
            record = error
        if record is None or not (yield from self._results.is_dead(record)):
            raise CallFailed("gearflow:unknown", f"there is no dead letter {request.handle}")
        return [record]


def _check_kept(count: _Count) -> None:
    """Raise CallFailed if an act could not be kept."""
    if count.fault is not None:
        text = f"the store cannot be written: {count.fault} ({count.done} were done)"
        raise CallFailed("gearflow:store", text)


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
