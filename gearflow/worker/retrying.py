"""How a job comes to its next run, or to its end, after a run that raised something.

*Whether* it runs again, and when, is decided in ``gearflow.worker.verdict``. How depends on the server:

* gearflow's own keeps the job for its next run: ``gearflow:retry`` takes the place of the end packet;
* on others a detached job is submitted anew, under a new unique; only when the server has that job is the
  old one ended, so a crash between the two gives a duplicate, never a loss;
* and an attached one, whose callers wait for that very job, is held here until its time has come.

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

import anyio

from gearflow.client.names import fresh_unique
from gearflow.errors import ConnectionLost, LocalProtocolError, ServerError
from gearflow.protocol.codec import encode, mark_failure
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
from gearflow.tasks.control import Fail as PlainFail
from gearflow.tasks.envelope import unwrap, wrap
from gearflow.tasks.failure import encode_failure
from gearflow.worker.holding import Held, Holding
from gearflow.worker.run import Run
from gearflow.worker.verdict import Again, Fail, Verdict, decide

logger = logging.getLogger("gearflow.worker")


async def conclude(
    run: Run, workload: bytes, error: BaseException, holding: Holding, *, gearmand_exceptions: bool
) -> BaseException:
    """See to the job of a run that raised something. Returns the error that counts.

    ``gearmand_exceptions`` is the worker's setting.
    """
    run.settle()
    if run.is_for_nobody:
        run.end(_failure(run, error, gearmand_exceptions))
        return error
    verdict = _verdict(run, error)
    if isinstance(verdict, Fail):
        run.end(_failure(run, verdict.error, gearmand_exceptions))
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
        run.end(_failure(run, error, gearmand_exceptions))
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


def _failure(run: Run, error: BaseException, gearmand_exceptions: bool) -> bytes:
    """The packets that end a job with an error, in the form that its server needs."""
    fail = encode(WorkFail(run.handle))
    if run.cancelled or isinstance(error, PlainFail):
        return fail
    failure = encode_failure(error)
    connection = run.connection
    is_understood = connection.is_gearflow or connection.is_basic or gearmand_exceptions
    if not is_understood:
        return encode(WorkWarning(run.handle, mark_failure(failure))) + fail
    exception = encode(WorkException(run.handle, failure))
    return exception + fail if connection.is_basic else exception


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
