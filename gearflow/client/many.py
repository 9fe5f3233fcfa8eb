"""Many submissions in one go: sent together on one connection to each server, their answers collected."""

from collections.abc import Mapping, Sequence

import anyio

from gearflow.client.connection import Connection
from gearflow.client.job import JobHandle
from gearflow.client.orders import Order
from gearflow.client.pool import Pool
from gearflow.client.requests import NotSent, ReservedSubmission, Submission, Tally
from gearflow.client.sending import Sending
from gearflow.errors import GearflowError, SubmitUnknown


async def submit_many(pool: Pool, orders: Sequence[Order]) -> list[JobHandle | Exception]:
    """As ``Client.submit_many``."""
    for order in orders:
        order.check()
    began = anyio.current_time()
    outcomes: dict[int, JobHandle | Exception] = {}
    left = dict(enumerate(orders))
    while left:
        try:
            connections = await _connections(pool, left)
            outcomes |= await _submit_all(pool, left, connections, began)
        except GearflowError as error:
            if not outcomes:
                raise
            outcomes |= dict.fromkeys(left, error)
        left = {place: order for place, order in left.items() if place not in outcomes}
    return [outcomes[place] for place in range(len(orders))]


async def _connections(pool: Pool, orders: Mapping[int, Order]) -> dict[int, Connection]:
    """Where each of them goes."""
    if not pool.spreads:
        return dict.fromkeys(orders, await pool.connection())
    return {place: await pool.connection_for(order.key) for place, order in orders.items()}


async def _submit_all(
    pool: Pool, orders: Mapping[int, Order], connections: Mapping[int, Connection], began: float
) -> dict[int, JobHandle | Exception]:
    """What became of each that left; the others may be sent elsewhere."""
    tally = Tally(len(orders), anyio.Event())
    put = {
        place: order.put(connections[place].server, tally, gearflow=connections[place].features.gearflow)
        for place, order in orders.items()
    }
    try:
        for place, (submission, packet) in put.items():
            try:
                connections[place].post(submission, packet)
            except NotSent as error:
                submission.failure = error
                tally.set()
        await tally.wait()
        outcomes = {
            place: await _outcome(submission)
            for place, (submission, _) in put.items()
            if not isinstance(submission.failure, NotSent)
        }
    except BaseException:
        for place, (submission, _) in put.items():
            connections[place].abandon(submission)
        raise
    return outcomes | await _submit_again(pool, orders, connections, outcomes, began)


async def _submit_again(
    pool: Pool,
    orders: Mapping[int, Order],
    connections: Mapping[int, Connection],
    outcomes: Mapping[int, JobHandle | Exception],
    began: float,
) -> dict[int, JobHandle | Exception]:
    """What became of those that were sent again, because nobody knows what had become of them."""
    made: dict[int, JobHandle | Exception] = {}

    async def submit(place: int, failure: SubmitUnknown) -> None:
        sending = Sending(pool, orders[place], began)
        try:
            sending.lose(connections[place].server, failure)
            made[place] = await sending.hand_over()
        except GearflowError as error:
            made[place] = error

    async with anyio.create_task_group() as submissions:
        for place, outcome in outcomes.items():
            if isinstance(outcome, SubmitUnknown):
                submissions.start_soon(submit, place, outcome)
    return made


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
