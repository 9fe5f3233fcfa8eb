"""``gearflow:submit``: a submission with options that the protocol's packets have no place for."""

from __future__ import annotations

import json
from collections.abc import Generator

from gearflow.broker.calls.call import LANES, BrokerParts, CallFailed, Kept, Steps, Wait
from gearflow.broker.job import JobDetails, QueuedJob
from gearflow.broker.limits import Rejected
from gearflow.broker.parser import Body
from gearflow.broker.session import Session
from gearflow.broker.storage import JobOutcome, JobRecord
from gearflow.errors import RemoteProtocolError, StoreError
from gearflow.protocol import server_calls as api


class SubmitCalls:
    """Places the jobs of ``gearflow:submit``."""

    def __init__(self, parts: BrokerParts) -> None:
        self._parts = parts

    def attached(self, session: Session, request: api.SubmitRequest, payload: Body, key: bytes) -> bool:
        """Place an attached job and answer it; whether that has to wait for the store. Raises CallFailed."""
        job = self._place(request, payload, key, session)
        return self._parts.submissions.answer(session, job)

    def detached(self, request: api.SubmitRequest, payload: Body, key: bytes) -> Steps:
        """Place a detached job; answered once it is kept."""
        handles = self._parts.core.handles
        record = (yield from self.kept_success(request)) if request.reuse else None
        if record is not None:
            return api.Submitted(handle=handles.handle(record.number).decode())
        job = self._place(request, payload, key, None)
        if self._parts.submissions.is_storing(job, True):
            yield Kept(job.number)
        if job.unstored:
            fault = self._parts.core.journal.fault
            raise CallFailed("gearflow:store", f"the job could not be stored: {fault}")
        return api.Submitted(handle=handles.handle(job.number).decode())

    def kept_success(self, request: api.SubmitRequest) -> Generator[Wait, None, JobRecord | None]:
        """The kept success that answers a submission, if no live job of its unique does."""
        parts = self._parts
        name, unique = request.function.encode(), request.unique.encode()
        while True:
            yield parts.known(None, request.function, request.unique)
            function = parts.core.functions.by_name.get(name)
            if parts.core.store is None or parts.core.jobs.find(function, unique) is not None:
                return None
            if not parts.core.journal.has_end(None, name, unique):
                break
        try:
            record = parts.core.store.latest(name, unique)
        except StoreError as error:
            parts.core.report(error)
            return None  # then it runs again
        now = parts.core.clock.unix()
        good = record is not None and record.outcome is JobOutcome.COMPLETED and record.expires > now
        return record if good else None

    def _place(
        self, request: api.SubmitRequest, payload: Body, key: bytes, client: Session | None
    ) -> QueuedJob:
        try:
            return self._parts.submissions.place(
                self._parts.core.functions.ensure(request.function.encode()),
                request.unique.encode(),
                payload,
                LANES[request.priority],
                request.detached,
                self._details(request),
                client,
                key,
            )
        except Rejected as refused:
            kind = "gearflow:full" if refused.code == b"QUEUE_ERROR" else "gearflow:invalid"
            raise CallFailed(kind, refused.text.decode(errors="replace")) from None
        except RemoteProtocolError as error:
            raise CallFailed("gearflow:invalid", str(error)) from None

    def _details(self, request: api.SubmitRequest) -> JobDetails:
        details = JobDetails()
        now = self._parts.core.clock.unix()
        details.due = now + request.delay if request.delay else request.at or 0.0
        if request.expires is not None:
            details.expires = now + request.expires
        details.keep = request.keep
        details.timeout = request.timeout
        if request.retries is not None:
            details.retries = json.loads(request.retries.to_wire())
        return details
