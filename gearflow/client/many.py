"""Many submissions in one go: sent together on one connection, their answers collected."""

from collections.abc import Sequence

from gearflow.client.connection import Connection
from gearflow.client.job import JobHandle
from gearflow.client.orders import Order
from gearflow.client.pool import Pool
from gearflow.client.requests import NotSent, ReservedSubmission, Submission, Tally
from gearflow.errors import GearflowError


async def submit_many(pool: Pool, orders: Sequence[Order]) -> list[JobHandle | Exception]:
    """As ``Client.submit_many``."""
    for order in orders:
        order.check()
    outcomes: dict[int, JobHandle | Exception] = {}
    left = dict(enumerate(orders))
    while left:
        try:
            connection = await pool.connection()
            outcomes |= await _submit_all(connection, left)
        except GearflowError as error:
            if not outcomes:
                raise
            outcomes |= dict.fromkeys(left, error)
        left = {place: order for place, order in left.items() if place not in outcomes}
    return [outcomes[place] for place in range(len(orders))]


async def _submit_all(connection: Connection, orders: dict[int, Order]) -> dict[int, JobHandle | Exception]:
    """What became of each that left; the others may be sent elsewhere."""
    tally = Tally(len(orders), connection.new_event())
    gearflow = connection.features.gearflow
    put = {place: order.put(connection.server, tally, gearflow=gearflow) for place, order in orders.items()}
    posted: dict[int, Submission] = {}
    try:
        for place, (submission, packet) in put.items():
            connection.post(submission, packet)
            posted[place] = submission
        await tally.wait()
        return {
            place: await _outcome(submission)
            for place, submission in posted.items()
            if not isinstance(submission.failure, NotSent)
        }
    except NotSent:  # the first of them: nothing in between can close it
        return {}
    except BaseException:
        for submission in posted.values():
            connection.abandon(submission)
        raise


async def _outcome(submission: Submission) -> JobHandle | Exception:
    if submission.failure is not None:
        return submission.failure
    if submission.handle is not None:
        return submission.handle
    assert isinstance(submission, ReservedSubmission)
    try:
        return await submission.submitted()
    except GearflowError as error:
        return error
