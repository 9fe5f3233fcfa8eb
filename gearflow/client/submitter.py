"""An order on its way to a server, from the first attempt to the last.

A server that cannot be reached is passed over: nothing was sent. A submission that left, and was not
acknowledged before the connection closed, may have made a job or not, so its caller gets
``SubmitUnknown``. It is sent again only

* where the caller says that a second run does no harm (``resubmit``), to any server. An attached job is
  then also submitted again when its server is lost before its end, and its caller waits on;
* where it asks for the kept result of its unique (``reuse``), to the same server, if that is gearflow's own:
  there it joins the job that it may have made, or is answered with its result. For a background job any
  server of a group is the same.

After a loss, servers that cannot be reached are asked again for as long as connecting may take: one that
died is often about to be started again. A submission that loses its server again and again, each time soon,
may be what ends them: it is given up with the last loss. Its ``delay`` and ``expires`` count from the first
submission.

Many submissions in one go: sent together on one connection to each server, their answers collected.
"""

import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import copy
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final, Generic, TypeVar, cast

import anyio

from gearflow.client.config import ServerAddress
from gearflow.client.connection import Connection
from gearflow.client.job import ClientJob, JobHandle, JobOwner
from gearflow.client.part_feed import OwnFeed
from gearflow.client.pool import Pool
from gearflow.client.requests import (
    BackgroundSubmission,
    NotSent,
    ReservedJob,
    ReservedSubmission,
    Submission,
    Tally,
    is_unsupported,
)
from gearflow.client.submission import JobRequest
from gearflow.errors import ConnectionLost, GearflowError, NoServer, ServerError, SubmitUnknown
from gearflow.protocol.request_queue import Signal
from gearflow.tracing import find_tracing

if TYPE_CHECKING:
    from gearflow.tracing.spans import SendSpan  # it imports OpenTelemetry

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Sending:
    """How one order is sent, and sent again. Owns state: what was lost so far.

    ``began`` is when it was sent for the first time, by anyio's clock, if that is not about to happen.
    """

    def __init__(self, pool: Pool, order: JobRequest, began: float | None = None) -> None:
        self.pool: Final = pool
        self._order = order
        self._began = anyio.current_time() if began is None else began
        self._losses = 0
        self._lost_at = self._began  # for the last time
        self._only: ServerAddress | None = None  # it may be sent again to no other
        self._failure: Exception | None = None  # of the last loss

    async def attach(self) -> ClientJob:
        """Submit it, and stay attached.

        Raises:
            NoServer: No server can be reached; after a loss, not even after a while.
            SubmitUnknown: It was sent, and may not be sent again.
            GearflowError: A server refuses it, or cannot honour an option.
        """
        return await self._send(_job_of)

    async def submit_background(self) -> JobHandle:
        """Submit it for nobody to wait for. Raises as ``attach``."""
        return await self._send(partial(_handle_of, limit=self.pool.timeouts.answer))

    async def attach_again(self, job: "ResubmittedJob", failure: Exception) -> None:
        """Submit it again for a job whose server was lost. Raises as ``attach``, and the failure."""
        self._count(failure)
        await self._send(_job_of, job)

    def lose(self, server: ServerAddress, failure: SubmitUnknown) -> None:
        """It was sent there, and not acknowledged. Raises the failure unless it is to be sent again."""
        if not self._order.resubmits:
            if not self._order.reuses:
                raise failure
            self._only = server  # gearflow's own, as all that take such orders
        self._count(failure)

    async def _send(
        self, outcome: Callable[[Submission], Awaitable[T]], job: "ResubmittedJob | None" = None
    ) -> T:
        order = self._order
        while True:
            connection, submission, packet = await self._put()
            if order.resubmits and not order.detached:
                job = job or ResubmittedJob(order.function, connection, self)
                job.read_on(order, connection)
                submission.joins = job
            try:
                await connection.ask(submission, packet)
                return await outcome(submission)
            except NotSent:
                continue
            except SubmitUnknown as failure:
                self.lose(connection.server, failure)
            except ServerError:
                if not _is_unsupported(submission):
                    raise
                connection.takes_options = False

    async def _put(self) -> tuple[Connection, Submission, bytes]:
        """Where it goes now, in the form that it has there."""
        try:
            if self._failure is None:
                connection, order = await self._connection(), self._order
            else:
                connection = await self._return()
                order = self._order.aged(anyio.current_time() - self._began)
            return connection, *_put(order, connection, connection.new_signal())
        except GearflowError as error:
            if self._only is not None and self._failure is not None:
                raise self._failure from error
            raise error from self._failure

    async def _connection(self) -> Connection:
        if self._only is None:
            return await self.pool.connection_for(self._order.key, by_key=self._order.debounces)
        if self._order.detached:  # and stored, with its unique, for all servers of a group
            return await self.pool.connection_near(self._only)
        return await self.pool.connection_to(self._only)

    async def _return(self) -> Connection:
        """A connection after a loss, if need be to a server that has to come back."""
        if self._losses > 1:
            await anyio.sleep(self.pool.backoff.delay(self._losses - 1, random.random()))
        deadline = anyio.current_time() + self.pool.timeouts.connect
        looks = 0
        while True:
            try:
                return await self._connection()
            except NoServer:
                looks += 1
                pause = self.pool.resubmit.poll.delay(looks, random.random())
                if anyio.current_time() + pause > deadline:
                    raise
            await anyio.sleep(pause)

    def _count(self, failure: Exception) -> None:
        """One more loss. Raises it if it was one too many."""
        now = anyio.current_time()
        if now - self._lost_at > self.pool.resubmit.calm:
            self._losses = 0
        self._losses += 1
        self._lost_at = now
        self._failure = failure
        if self._losses > self.pool.resubmit.max_losses:
            failure.add_note(f"It was submitted {self._losses} times, and lost its server each time.")
            raise failure


class ResubmittedJob(ReservedJob):
    """An attached job that is submitted again when its server is lost."""

    __slots__ = ("_scope", "_sending", "_settled")

    def __init__(self, function: str, connection: Connection, sending: Sending) -> None:
        ReservedJob.__init__(self, b"", connection.server, function, connection)
        self._sending = sending
        self._scope = anyio.CancelScope()  # of the submission under way
        self._settled: anyio.Event | None = None  # while there is one

    async def settled(self) -> None:
        """Wait until no submission is under way: the job has a connection, or it has ended."""
        if self._settled is not None:
            await self._settled.wait()

    def read_on(self, order: JobRequest, connection: Connection) -> None:
        """It is about to be submitted there. Its parts are those of another run."""
        last = self.feed
        self.feed = feed = _feed(order, connection, 1 if last is None else cast(OwnFeed, last).run + 1)
        if feed is not None:
            self.add_done_callback(feed.let_go)

    def move(self, raw_handle: bytes, server: ServerAddress, owner: JobOwner) -> None:
        super().move(raw_handle, server, owner)
        if self.has_left_parts:
            self.leave_parts()
        if self._news is not None:
            self._notify()  # its reader has to ask elsewhere

    def lose(self, failure: Callable[[], Exception]) -> None:
        """Its connection is gone: it goes on by another one, if the client is not being closed."""
        self._settled = anyio.Event()
        try:
            self._sending.pool.start_soon(partial(self._go_on, failure))
        except ConnectionLost:
            self.fail(failure)
            self._settled.set()

    def cancel(self) -> bool:
        """As for other jobs. A resubmission in progress is cancelled, too."""
        cancelled = super().cancel()
        self._scope.cancel()
        return cancelled

    async def _go_on(self, failure: Callable[[], Exception]) -> None:
        """Submit the job again. If that fails, the job ends with the error."""
        settled = self._settled  # of this loss, as there may be another one soon
        assert settled is not None
        if self.done:
            settled.set()
            return
        lost = self.handle, str(self.server)
        self._scope = anyio.CancelScope()
        try:
            with self._scope:
                await self._sending.attach_again(self, failure())
                logger.info(
                    "a job was submitted again, because its server was lost",
                    extra={"handle": self.handle, "server": str(self.server), "lost": "@".join(lost)},
                )
        except Exception as error:  # noqa: BLE001  (the client's task group must not end by it)
            self.fail(partial(_anew, error))
        except BaseException:  # the client is being closed
            self.fail(failure)
            raise
        finally:
            settled.set()


def _put(order: JobRequest, connection: Connection, answered: Signal) -> tuple[Submission, bytes]:
    """An order in the form that it has on a connection. Raises as ``JobRequest.put``."""
    gearflow = connection.features.gearflow
    submission, packet = order.put(
        connection.server, answered, gearflow=gearflow, in_background=connection.takes_options
    )
    if (feed := _feed(order, connection)) is not None:
        submission.joins = job = ReservedJob(b"", connection.server, order.function, connection)
        job.feed = feed
        job.add_done_callback(feed.let_go)
    return submission, packet


def _feed(order: JobRequest, connection: Connection, run: int = 1) -> OwnFeed | None:
    """What collects the parts of a job that is read as a stream, if they come on its own handle."""
    options = order.options
    if options is None or options.parts is None or connection.features.gearflow:
        return None
    return OwnFeed(connection, waits=options.parts == "wait" and not options.unread, run=run)


def _is_unsupported(submission: Submission) -> bool:
    """Whether it has to be sent again in the form for an older server."""
    return isinstance(submission, BackgroundSubmission) and is_unsupported(submission.failure)


async def _job_of(submission: Submission, _limit: float = inf) -> ClientJob:
    if isinstance(submission, ReservedSubmission):
        await submission.check()
    assert submission.job is not None  # it was accepted, and we were not cancelled
    return submission.job


async def _handle_of(submission: Submission, limit: float) -> JobHandle:
    if isinstance(submission, ReservedSubmission):
        return await submission.submitted(limit)
    assert submission.handle is not None  # it was accepted
    return submission.handle


def _anew(error: Exception) -> Exception:
    """A copy of an error, to be raised once more."""
    made = copy(error)
    made.__cause__ = error.__cause__
    return made


class SentBatch(Generic[T]):
    """Many submissions that are sent together, on one connection to each server. Owns state.

    ``send`` comes first. Then ``outcomes`` waits for the answers, or ``abandon`` gives up.

    Args:
        pool: The servers.
        orders: What is submitted. Either all of it is detached, or nothing.
        outcome: Makes the outcome of a submission that was accepted. The number limits its wait in seconds.
        submit: Sends one of them again.
    """

    def __init__(
        self,
        pool: Pool,
        orders: Sequence[JobRequest],
        outcome: Callable[[Submission, float], Awaitable[T]],
        submit: Callable[[Sending], Awaitable[T]],
    ) -> None:
        """Raises as ``JobRequest.check``."""
        for order in orders:
            order.check()
        orders, self._span = _traced(orders)
        self._pool = pool
        self._outcome = outcome
        self._submit = submit
        self._began = anyio.current_time()
        self._count = len(orders)
        self._left = dict(enumerate(orders))  # by place: those without an outcome
        self._outcomes: dict[int, T | Exception] = {}
        self._connections: Mapping[int, Connection] = {}
        self._sent: dict[int, Submission] = {}
        self._answered: Signal = anyio.Event()  # all that was sent

    async def send(self) -> None:
        """Send what has no outcome, without waiting for the answers.

        Raises:
            NoServer, UnsupportedByServer, LocalProtocolError: Nothing was sent.
        """
        try:
            await self._send()
        except BaseException as error:
            self._end_span(error)
            raise

    async def _send(self) -> None:
        self._sent = {}
        connections = self._connections = await self._choose()
        tally = self._answered = Tally(len(self._left), anyio.Event())
        put = {place: _put(order, connections[place], tally) for place, order in self._left.items()}
        for place, (submission, packet) in put.items():
            self._sent[place] = submission
            order = self._left[place]
            if order.resubmits and not order.detached:
                sending = Sending(self._pool, order, self._began)
                submission.joins = ResubmittedJob(order.function, connections[place], sending)
            try:
                connections[place].post(submission, packet)
            except NotSent as error:
                submission.failure = error
                tally.set()

    async def outcomes(self) -> list[T | Exception]:
        """Wait for the answers, in the order of the submissions. Raises as ``send``."""
        while self._left:
            try:
                await self._answered.wait()
                outcomes = await self._collect()
                outcomes |= await self._submit_again(outcomes)
            except BaseException as error:
                self._end_span(error)
                self.abandon()
                raise
            self._outcomes |= outcomes
            self._left = {place: order for place, order in self._left.items() if place not in outcomes}
            if self._left:
                await self._send_again()
        collected = [self._outcomes[place] for place in range(self._count)]
        self._end_span(next((each for each in collected if isinstance(each, Exception)), None))
        return collected

    def abandon(self) -> None:
        """Nobody waits for the answers any more. What has not left is not sent."""
        self._end_span(None)
        for place, submission in self._sent.items():
            self._connections[place].abandon(submission)

    def _end_span(self, failure: BaseException | None) -> None:
        span, self._span = self._span, None
        if span is not None:
            if failure is not None:
                span.failed(failure)
            span.end()

    async def _send_again(self) -> None:
        """Send what is left elsewhere, or in another form. If that fails, the error is its outcome."""
        try:
            await self._send()
        except GearflowError as error:
            if not self._outcomes:
                raise
            self._outcomes |= dict.fromkeys(self._left, error)
            self._left = {}

    async def _choose(self) -> dict[int, Connection]:
        """The connection of each."""
        pool = self._pool
        if not (pool.spreads or any(order.debounces for order in self._left.values())):
            return dict.fromkeys(self._left, await pool.connection())
        return {
            place: await pool.connection_for(order.key, by_key=order.debounces)
            for place, order in self._left.items()
        }

    async def _collect(self) -> dict[int, T | Exception]:
        """What became of each that left, and that its server takes in this form."""
        outcomes: dict[int, T | Exception] = {}
        limit = self._pool.timeouts.answer
        for place, submission in self._sent.items():
            failure = submission.failure
            if failure is not None:
                if _is_unsupported(submission):
                    self._connections[place].takes_options = False
                elif not isinstance(failure, NotSent):
                    outcomes[place] = failure
                continue
            began = anyio.current_time()
            try:
                outcomes[place] = await self._outcome(submission, limit)
            except GearflowError as error:
                outcomes[place] = error
                if isinstance(error, SubmitUnknown) and anyio.current_time() - began >= limit:
                    limit = 0.0  # the others have waited as long
        return outcomes

    async def _submit_again(self, outcomes: Mapping[int, T | Exception]) -> dict[int, T | Exception]:
        """What became of those that were sent again, because nobody knows what had become of them."""
        lost = {place: error for place, error in outcomes.items() if isinstance(error, SubmitUnknown)}
        made: dict[int, T | Exception] = {}

        async def submit(place: int, failure: SubmitUnknown) -> None:
            sending = Sending(self._pool, self._left[place], self._began)
            try:
                sending.lose(self._connections[place].server, failure)
                made[place] = await self._submit(sending)
            except GearflowError as error:
                made[place] = error

        if lost:
            async with anyio.create_task_group() as submissions:
                for place, failure in lost.items():
                    submissions.start_soon(submit, place, failure)
        return made


def _traced(orders: Sequence[JobRequest]) -> "tuple[Sequence[JobRequest], SendSpan | None]":
    """Submissions with the trace context of the span that they share, if there is one."""
    if not orders or orders[0].trace is not None or (tracing := find_tracing()) is None:
        return orders, None
    functions = {order.function for order in orders}
    function = functions.pop() if len(functions) == 1 else ""
    span = tracing.send(function, attached=not orders[0].detached, count=len(orders))
    return [order.traced(span.trace) for order in orders], span


def background(pool: Pool, orders: Sequence[JobRequest]) -> SentBatch[JobHandle]:
    """A batch of background jobs. Raises as ``JobRequest.check``."""
    return SentBatch(pool, orders, _handle_of, Sending.submit_background)


def attached(pool: Pool, orders: Sequence[JobRequest]) -> SentBatch[ClientJob]:
    """A batch of jobs that are attached. Raises as ``JobRequest.check``."""
    return SentBatch(pool, orders, _job_of, Sending.attach)
