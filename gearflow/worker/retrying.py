"""How a job comes to its next run, or to its end, after a run that raised something.

*Whether* it runs again, and when, is decided in ``gearflow.worker.verdict``. How depends on the server:

* gearflow's own keeps the job for its next run: ``gearflow:retry`` takes the place of the end packet;
* on others a detached job is submitted anew, under a new unique; only when the server has that job is the
  old one ended, so a crash between the two gives a duplicate, never a loss;
* and an attached one, whose callers wait for that very job, is held here until its time has come.

The run keeps its slot until the server has answered. If the connection goes first, the job is handed on.
"""

import logging
import math
import time

import anyio

from gearflow.client.names import fresh_unique
from gearflow.errors import ConnectionLost, LocalProtocolError, ServerError
from gearflow.protocol.codec import encode
from gearflow.protocol.packets import (
    Packet,
    SubmitJob,
    SubmitJobBg,
    SubmitJobEpoch,
    WorkException,
    WorkFail,
    WorkWarning,
)
from gearflow.tasks import Retry
from gearflow.tasks.envelope import unwrap, wrap
from gearflow.tasks.failure import encode_failure
from gearflow.worker.holding import Held, Holding
from gearflow.worker.run import Run
from gearflow.worker.verdict import Again, Fail, Verdict, decide

logger = logging.getLogger("gearflow.worker")


async def conclude(run: Run, workload: bytes, error: BaseException, holding: Holding) -> BaseException:
    """See to the job of a run that raised something. Returns the error that counts."""
    run.settle()
    if run.is_for_nobody:
        _fail(run, error)
        return error
    verdict = _verdict(run, error)
    if isinstance(verdict, Fail):
        _fail(run, verdict.error)
        return verdict.error
    try:
        await _go_on(run, workload, verdict, holding)
    except ConnectionLost:
        run.handed_on = True
    except anyio.get_cancelled_exc_class():
        run.handed_on = True
        raise
    except (ServerError, LocalProtocolError) as refusal:
        if not run.cancelled:  # else there is nothing to run again
            logger.warning(
                "the server refuses another run of a job, which fails: %s", refusal, extra=run.named()
            )
        _fail(run, error)
    else:
        run.again = verdict
    return error


def _verdict(run: Run, error: BaseException) -> Verdict:
    plan = run.envelope.retries
    retries = run.task.retries if plan is None else Retry.from_plan(plan)
    try:
        return decide(error, retries, run.envelope.attempt)
    except Exception:  # a user's backoff may raise anything
        logger.exception(
            "the schedule of a task's retries cannot be followed; its job fails", extra=run.named()
        )
        return Fail(error)


def _fail(run: Run, error: BaseException) -> None:
    fail = encode(WorkFail(run.handle))
    if run.cancelled:
        run.end(fail)
        return
    exception = encode(WorkException(run.handle, encode_failure(error)))
    # To the oldest servers an exception is not the end of a job; others know no such job after it.
    run.end(exception + fail if run.connection.is_basic else exception)


async def _go_on(run: Run, workload: bytes, again: Again, holding: Holding) -> None:
    """Bring the job to its next run.

    Raises:
        ServerError: The server refused.
        ConnectionLost: The connection went first; the job is handed on.
    """
    connection = run.connection
    if connection.is_gearflow:
        from gearflow.protocol import reserved  # now: few workers need its models

        request = reserved.RetryRequest(
            handle=run.handle.decode(errors="replace"),
            delay=again.delay,
            counted=again.counted,
            reason=again.reason,
        )
        call = SubmitJob(reserved.RETRY, b"", request.to_wire())
        await connection.submit(run.handle, call, attached=True)
        return
    following = _following(run, workload, again)
    if run.envelope.detached and not (again.delay and connection.is_basic):
        await connection.submit(run.handle, _anew(run, following, again.delay), attached=False)
        run.end(encode(WorkFail(run.handle)))  # nobody listens
        return
    if not connection.is_basic and not run.envelope.detached:
        connection.outbox.add(run.handle, encode(WorkWarning(run.handle, again.reason.encode())))
        connection.wake()
    holding.hold(Held(run.task, run.handle, connection, following, run.named()), again.delay)


def _following(run: Run, workload: bytes, again: Again) -> bytes:
    """The workload of the next run."""
    _, payload = unwrap(workload)
    said = run.envelope
    return wrap(
        payload,
        attempt=said.attempt + again.counted,
        timeout=said.timeout,
        retries=said.retries,
        detached=said.detached,
    )


def _anew(run: Run, workload: bytes, delay: float) -> Packet:
    # Not under the old unique: that would join the job that is about to end.
    function, unique = run.task.name.encode(), fresh_unique().encode()
    if not delay:
        return SubmitJobBg(function, unique, workload)
    return SubmitJobEpoch(function, unique, b"%d" % math.ceil(time.time() + delay), workload)
