"""``gearflow:submit``: a submission with options that the protocol's packets have no place for.

Most clients send the same options again and again. So a request is read once, and known by its bytes. The
trace context is that of one call only. gearflow's clients put it at the end, so the rest is known without it.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from copy import copy
from functools import lru_cache
from typing import Any, Final, Self

from pydantic import TypeAdapter, ValidationError

from gearflow.broker.calls.call import LANES, Ask, BrokerParts, CallFailed, Kept, Steps, Wait, read
from gearflow.broker.calls.debounce import Debounce
from gearflow.broker.functions import FunctionQueue
from gearflow.broker.job import NORMAL, JobDetails, QueuedJob
from gearflow.broker.limiter import short_key
from gearflow.broker.limits import Rejected
from gearflow.broker.parser import Body
from gearflow.broker.session import Session
from gearflow.broker.storage import JobOutcome, JobRecord, LatestOf, Uncertain
from gearflow.errors import RemoteProtocolError, StoreError
from gearflow.protocol import server_calls as api
from gearflow.protocol.trace import TRACE_KEY

_MAX_OPTIONS: Final = 65_536
"""Bytes within which the first line of a ``gearflow:submit`` must end."""

_KNOWN: Final = 256
"""Requests that are known by their bytes."""

_KNOWN_SIZE: Final = 1024
"""Bytes of the longest of these."""


class Asked:
    """A request, as its job needs it. Several submissions may share it."""

    __slots__ = ("function", "group", "keys", "lane", "request", "retries", "trace", "unique")

    def __init__(self, line: bytes) -> None:
        """Raises CallFailed."""
        self.request = request = read(api.SubmitRequest, line)
        self.function = request.function.encode()
        self.unique = request.unique.encode()
        self.lane = LANES[request.priority]
        self.group = short_key(request.group) if request.group is not None else None
        keys = request.keys or {}
        self.keys = {name: short_key(key) for name, key in keys.items()} or None
        self.retries = json.loads(request.retries.to_wire()) if request.retries is not None else None
        self.trace = request.trace

    def traced(self, trace: dict[str, str]) -> Self:
        """The same request with a trace context of its own."""
        made = copy(self)
        made.trace = trace
        return made

    def details(self, now: float) -> JobDetails:
        """The options of a job that is submitted now, in Unix time."""
        request = self.request
        details = JobDetails()
        details.due = now + request.delay if request.delay else request.at or 0.0
        if request.debounce is not None:
            details.due = self.due(now, now)
        if request.expires is not None:
            details.expires = now + request.expires
        details.keep = request.keep
        details.stream_keep = request.stream_keep
        details.timeout = request.timeout
        details.retries = self.retries
        details.keys = self.keys
        details.group = self.group
        details.trace = self.trace
        return details

    def due(self, now: float, first: float) -> float:
        """When a debounced job is to start, by the times of its latest and its first submission."""
        request = self.request
        due = now + (request.debounce or 0.0)
        return due if request.max_wait is None else min(due, first + request.max_wait)


_known = lru_cache(_KNOWN)(Asked)
_trace: Final = TypeAdapter[dict[str, str]](api.Trace)


def split(workload: Body) -> tuple[Asked, Body]:
    """The request and the payload. Raises CallFailed."""
    head = workload if isinstance(workload, bytes) else bytes(workload[:_MAX_OPTIONS])
    end = head.find(b"\n", 0, _MAX_OPTIONS)
    if end < 0:
        if len(workload) > _MAX_OPTIONS:
            raise CallFailed("gearflow:invalid", f"the options do not end within {_MAX_OPTIONS} bytes")
        return Asked(head), b""
    return _read(head[:end]), workload[end + 1 :]


def _read(line: bytes) -> Asked:
    """The request of a line. Raises CallFailed."""
    begin = line.rfind(TRACE_KEY)
    if begin < 0 or not line.endswith(b"}}"):
        return _known(line) if len(line) <= _KNOWN_SIZE else Asked(line)
    try:
        trace = _trace.validate_json(line[begin + len(TRACE_KEY) : -1])
    except ValidationError:
        return Asked(line)  # which says what is wrong
    rest = line[:begin] + b"}"
    return (_known(rest) if len(rest) <= _KNOWN_SIZE else Asked(rest)).traced(trace)


class SubmitCalls:
    """Places the jobs of ``gearflow:submit``."""

    def __init__(self, parts: BrokerParts) -> None:
        self._parts = parts
        self._debounce = Debounce(parts)

    def background(self, workload: Body) -> tuple[FunctionQueue, Body, JobDetails]:
        """The function, the payload and the options of a background submission, which is placed as all are.

        Raises:
            Rejected: The request is not valid, or not for a background submission.
        """
        try:
            asked, payload = split(workload)
            request = asked.request
            if request.unique or request.reuse or asked.lane != NORMAL or not request.detached:
                text = (
                    "a background submission is detached, has unique and priority in its packet, and no reuse"
                )
                raise CallFailed("gearflow:invalid", text)
            function = self._parts.core.functions.ensure(asked.function)
        except CallFailed as failed:
            raise Rejected(failed.fault.type.encode(), failed.fault.message.encode()) from None
        except Rejected as refused:
            raise Rejected(b"gearflow:invalid", refused.text) from None
        except RemoteProtocolError as error:
            raise Rejected(b"gearflow:invalid", str(error).encode()) from None
        return function, payload, asked.details(self._parts.core.clock.unix())

    def attached(self, session: Session, asked: Asked, payload: Body, key: bytes) -> bool:
        """Place an attached job and answer it; whether that has to wait for the store. Raises CallFailed."""
        job = self._place(asked, payload, key, session)
        if asked.request.parts != "relay":
            self._parts.streams.attach(job, session, waits=asked.request.parts == "wait")
        return self._parts.submissions.answer(session, job)

    def detached(self, asked: Asked, payload: Body, key: bytes) -> Steps:
        """Place a detached job; answered once it is kept."""
        handles = self._parts.core.handles
        record = (yield from self.kept_success(asked)) if asked.request.reuse else None
        if record is not None:
            return api.Submitted(handle=handles.handle(record.number).decode())
        debounced = asked.request.debounce is not None
        if debounced and (replaced := (yield from self._debounce.replace(asked, payload))) is not None:
            return replaced
        job = self._place(asked, payload, key, None)
        if self._parts.submissions.is_storing(job, True):
            yield Kept(job.number)
        if job.joined and debounced:
            raise self._elsewhere(job.joined)
        if job.joined:
            return api.Submitted(handle=handles.handle(job.joined).decode())
        fault = job.details.unstored if job.details is not None else None
        if isinstance(fault, Uncertain):
            raise CallFailed("gearflow:uncertain", f"the job may have been stored: {fault}")
        if fault is not None:
            raise CallFailed("gearflow:store", f"the job could not be stored: {fault}")
        return api.Submitted(handle=handles.handle(job.number).decode())

    def _elsewhere(self, number: int) -> CallFailed:
        """Another server of the group has the job that would be replaced."""
        parts = self._parts
        handle = parts.core.handles.handle(number).decode()
        owner = parts.far.owner(number) or "another server of the group"
        text = f"{owner} has job {handle} of this unique, so only that server can replace it"
        return CallFailed("gearflow:refused", text)

    def kept_success(self, asked: Asked) -> Generator[Wait, Any, JobRecord | None]:
        """The kept success that answers a submission, if no live job of its unique does."""
        parts = self._parts
        name, unique = asked.function, asked.unique
        while True:
            yield parts.known(None, asked.request.function, asked.request.unique)
            function = parts.core.functions.by_name.get(name)
            if not parts.core.journal.exists or parts.core.jobs.find(function, unique) is not None:
                return None
            if not parts.core.journal.has_end(None, name, unique):
                break
        try:
            record: JobRecord | None = yield Ask(LatestOf(name, unique))
        except StoreError as error:
            parts.core.report(error)
            return None  # then it runs again
        now = parts.core.clock.unix()
        good = record is not None and record.outcome is JobOutcome.COMPLETED and record.expires > now
        return record if good else None

    def _place(self, asked: Asked, payload: Body, key: bytes, client: Session | None) -> QueuedJob:
        core = self._parts.core
        try:
            return self._parts.submissions.place(
                core.functions.ensure(asked.function),
                asked.unique,
                payload,
                asked.lane,
                asked.request.detached,
                asked.details(core.clock.unix()),
                client,
                key,
            )
        except Rejected as refused:
            kind = "gearflow:full" if refused.code == b"QUEUE_ERROR" else "gearflow:invalid"
            raise CallFailed(kind, refused.text.decode(errors="replace")) from None
        except RemoteProtocolError as error:
            raise CallFailed("gearflow:invalid", str(error)) from None
