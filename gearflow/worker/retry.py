"""Sends a job to its next run, or to its end, after a run that raised something.

``retry_policy`` decides *whether* it runs again, and when. How depends on the server:

* gearflow's own keeps the job for its next run: ``gearflow:retry`` takes the place of the end packet;
* on others the worker submits a detached job again, under a new unique. It ends the old job only when the
  server has the new one, so a crash between the two gives a duplicate, never a loss;
* an attached job, whose callers wait for that very job, is held here until its time has come.

The run keeps its slot until the server has answered. If the connection goes first, the job is handed on.

How a failure is sent depends on the server, too:

* gearflow's own gets WORK_EXCEPTION alone;
* the Perl server gets WORK_EXCEPTION and WORK_FAIL, since an exception is not the end of a job there;
* C gearmand, and any other, gets a marked WORK_WARNING and WORK_FAIL in one write
  (``gearflow.protocol.codec`` says why), or WORK_EXCEPTION alone with the setting ``gearmand_exceptions``.

A task that raises ``Fail`` wants WORK_FAIL alone, on all of them.
"""

import logging
import math
import time
from collections.abc import Callable
from functools import partial

import anyio

from gearflow.errors import ConnectionLost, LocalProtocolError, ServerError
from gearflow.protocol.codec import encode, mark_failure
from gearflow.protocol.envelope import MAGIC, header, unwrap
from gearflow.protocol.packets import (
    Packet,
    SubmitJob,
    SubmitJobBg,
    SubmitJobEpoch,
    WorkException,
    WorkFail,
    WorkWarning,
)
from gearflow.protocol.trace import detached
from gearflow.protocol.uniques import fresh_unique
from gearflow.runtime.log_bursts import BurstLog
from gearflow.tasks import Retry
from gearflow.tasks.control_flow import Fail
from gearflow.tasks.remote_errors import encode_failure
from gearflow.worker.connection import WorkerConnection
from gearflow.worker.event_loop import Loop, LoopStarted
from gearflow.worker.retry_policy import GiveUp, RetryAfter, RetryDecision, decide
from gearflow.worker.run import Run
from gearflow.worker.slots import SlotAllocator


class Held:
    """A job that waits here for its next run, whose ``workload`` it has.

    It has no slot. It is still this worker's at the server, which hands it on when the connection goes.
    """

    def __init__(self, run: Run, workload: bytes) -> None:
        self.run = run  # the one before
        self.workload = workload
        self.begin: Callable[[], None]
        self.wait: LoopStarted


class Holding:
    """All held jobs of a worker. Owns state; ``begin`` is called with a job that has a slot again."""

    def __init__(self, slots: SlotAllocator, loop: Loop, begin: Callable[[Held], None]) -> None:
        self._slots = slots
        self._loop = loop
        self._begin = begin
        self._held: set[Held] = set()

    def hold(self, job: Held, seconds: float) -> None:
        """Keep a job for so long, then run it as soon as a slot is free. Its run still has its slot."""
        job.begin = partial(self._resume, job)
        self._held.add(job)
        self._slots_of(job).hold()
        job.wait = self._loop.start(self._wait(job, seconds))

    def drop(self, connection: WorkerConnection | None = None) -> list[Held]:
        """Hold those of a connection, or all, no longer; returns them."""
        dropped = [job for job in self._held if connection is None or job.run.connection is connection]
        for job in dropped:
            self._held.discard(job)
            job.wait.cancel()
            self._slots_of(job).drop(job.begin)
        return dropped

    def _slots_of(self, job: Held) -> SlotAllocator:
        return job.run.slots or self._slots

    async def _wait(self, job: Held, seconds: float) -> None:
        await anyio.sleep(seconds)
        if job in self._held:
            self._slots_of(job).claim(job.begin)

    def _resume(self, job: Held) -> None:
        self._held.discard(job)
        self._begin(job)


async def handle_failure(
    run: Run,
    workload: bytes,
    error: BaseException,
    holding: Holding,
    log: BurstLog,
    *,
    gearmand_exceptions: bool,
) -> BaseException:
    """Have the job of a run that raised something run again, or fail. Returns the error that counts.

    ``gearmand_exceptions`` is the worker's setting.
    """
    run.settle()
    if run.is_for_nobody:
        run.end(_failure(run, error, gearmand_exceptions))
        return error
    decision = decide_for(run, error, log)
    if isinstance(decision, GiveUp):
        run.end(_failure(run, decision.error, gearmand_exceptions))
        return decision.error
    try:
        await _run_again(run, workload, decision, holding)
    except ConnectionLost:
        run.handed_on = True
    except anyio.get_cancelled_exc_class():
        run.handed_on = True
        raise
    except (ServerError, LocalProtocolError) as refusal:
        if not run.cancelled:  # else there is nothing to run again
            sentence = "the server refuses another run of a job, which fails: %s"
            log.log(logging.WARNING, sentence, refusal, extra=run.log_fields())
        run.end(_failure(run, error, gearmand_exceptions))
    else:
        run.retry = decision
    return error


def decide_for(run: Run, error: BaseException, log: BurstLog) -> RetryDecision:
    """What becomes of a run that raised this."""
    plan = run.envelope.retries
    retries = run.task.retries if plan is None else Retry.from_plan(plan)
    try:
        return decide(error, retries, run.envelope.attempt)
    except Exception as fault:
        sentence = "the schedule of a task's retries cannot be followed; its job fails"
        cause = (sentence, run.task.name)
        log.log(logging.ERROR, sentence, cause=cause, extra=run.log_fields(), exc_info=fault)
        return GiveUp(error)


def _failure(run: Run, error: BaseException, gearmand_exceptions: bool) -> bytes:
    """The packets that end a job with an error, in the form that its server needs."""
    fail = encode(WorkFail(run.handle))
    if run.cancelled or isinstance(error, Fail):
        return fail
    failure = encode_failure(error)
    connection = run.connection
    is_understood = connection.is_gearflow or connection.is_basic or gearmand_exceptions
    if not is_understood:
        return encode(WorkWarning(run.handle, mark_failure(failure))) + fail
    exception = encode(WorkException(run.handle, failure))
    return exception + fail if connection.is_basic else exception


async def _run_again(run: Run, workload: bytes, retry: RetryAfter, holding: Holding) -> None:
    """Bring the job to its next run.

    Raises:
        ServerError: The server refused.
        ConnectionLost: The connection went first; the job is handed on.
    """
    connection = run.connection
    if connection.is_gearflow:
        from gearflow.protocol import server_calls

        request = server_calls.RetryRequest(
            handle=run.handle.decode(errors="replace"),
            delay=retry.delay,
            counted=retry.counted,
            reason=retry.reason,
        )
        call = SubmitJob(server_calls.RETRY, b"", request.to_wire())
        await connection.submit(run.handle, call, attached=True)
        return
    following = _following(run, workload, retry)
    if run.envelope.detached and not (retry.delay and connection.is_basic):
        await connection.submit(run.handle, _resubmission(run, following, retry.delay), attached=False)
        run.fail()  # nobody listens
        return
    if not connection.is_basic and not run.envelope.detached:
        connection.outbox.add(run.handle, encode(WorkWarning(run.handle, retry.reason.encode())))
        connection.wake()
    holding.hold(Held(run, following), retry.delay)


def _following(run: Run, workload: bytes, retry: RetryAfter) -> bytes:
    """The workload of the next run."""
    _, payload = unwrap(workload)
    envelope = run.envelope
    head = header(
        attempt=envelope.attempt + retry.counted,
        timeout=envelope.timeout,
        retries=envelope.retries,
        detached=envelope.detached,
        raw=payload.startswith(MAGIC),
        parts=run.parts.position if run.parts is not None and run.task.resumable else 0,
        previous=run.last_progress,
        chunk=envelope.chunk,
        trace=detached(envelope.trace),
    )
    return head + payload


def _resubmission(run: Run, workload: bytes, delay: float) -> Packet:
    # Not under the old unique: that would join the job that is about to end.
    function, unique = run.task.name.encode(), fresh_unique().encode()
    if not delay:
        return SubmitJobBg(function, unique, workload)
    return SubmitJobEpoch(function, unique, b"%d" % math.ceil(time.time() + delay), workload)
