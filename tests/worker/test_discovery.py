"""Workers that find the servers of a group, and leave those that are gone."""

import asyncio
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from anyio.abc import TaskStatus

from gearflow.client import Client
from gearflow.errors import NoServer
from gearflow.protocol.packets import (
    CanDo,
    Error,
    GrabJobUniq,
    JobCreated,
    NoJob,
    Noop,
    OptionReq,
    OptionRes,
    PreSleep,
    SetClientId,
    SubmitJob,
    WorkComplete,
)
from gearflow.protocol.server_calls import EVENTS
from gearflow.tasks import task
from gearflow.worker import Worker
from gearflow.worker.server_link import ServerLink
from gearflow.worker.settings import TimeLimits
from tests.groups import Fleet, Member, balancer, until
from tests.worker.scripted import Peer, scripted_server

OFTEN = TimeLimits(discovery=0.02)


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet() as fleet:
        yield fleet


@task(name="where")
async def where(number: int) -> int:
    return number


def worker_of(*servers: str, tasks: Any = (where,), **settings: Any) -> Worker:
    return Worker(
        tasks,
        servers=servers,
        time_limits=OFTEN,
        first_retry=0.01,
        longest_retry=0.05,
        client_id="w",
        **settings,
    )


def links_of(worker: Worker) -> list[ServerLink]:
    return list(worker._links)  # pyright: ignore[reportPrivateUsage]


def has_worker(*members: Member) -> bool:
    """Whether each of these has one connection of the worker."""
    return all(member.clients == ["w"] for member in members)


async def runs_at(member: Member) -> None:
    """A job at this server is run."""
    with anyio.fail_after(20):
        async with Client([member.address], discover=False) as client:
            assert await (await client.submit("where", b'{"number": 1}')).result() == b"1"


async def test_a_worker_of_one_server_takes_jobs_from_all_of_its_group(fleet: Fleet) -> None:
    first, second = fleet.grow(2)
    async with worker_of(first.address):
        await until(lambda: has_worker(first, second))
        (third,) = fleet.grow()
        await until(lambda: has_worker(third))
        first.stop()
        fleet.tell(second, third)
        for member in (second, third):
            await runs_at(member)
        (fourth,) = fleet.grow()
        await until(lambda: has_worker(fourth))
        await runs_at(fourth)


async def test_a_server_that_is_gone_is_left_when_its_jobs_have_ended(fleet: Fleet) -> None:
    first, second = fleet.grow(2)
    begun, go_on = anyio.Event(), anyio.Event()

    @task(name="held")
    async def held() -> int:
        begun.set()
        await go_on.wait()
        return 7

    async with (
        worker_of(first.address, tasks=(where, held)) as worker,
        Client([second.address], discover=False) as client,
    ):
        await until(lambda: has_worker(second))
        job = await client.submit("held", b"")
        with anyio.fail_after(20):
            await begun.wait()
        fleet.tell(first)
        await until(lambda: any(link.is_leaving for link in links_of(worker)))
        waiting = await client.submit("where", b'{"number": 1}')
        asked = await client.submit("where", b'{"number": 2}')
        await until(lambda: second.jobs == 3)
        assert has_worker(second)
        go_on.set()
        with anyio.fail_after(20):
            assert await job.result() == b"7"
        await until(lambda: second.clients == [])
        assert second.jobs == 2
        fleet.tell(first, second)
        with anyio.fail_after(20):
            assert (await waiting.result(), await asked.result()) == (b"1", b"2")
        assert has_worker(first, second)


async def test_a_given_server_is_kept_whatever_the_group_says(fleet: Fleet) -> None:
    first, second = fleet.grow(2)
    async with worker_of(first.address, second.address):
        await until(lambda: has_worker(first, second))
        (third,) = fleet.start()
        fleet.tell(third)
        await until(lambda: has_worker(third))
        assert has_worker(first, second)


async def test_an_address_that_leads_nowhere_is_forgotten_with_its_group(fleet: Fleet) -> None:
    first, second, third = fleet.grow(3)
    second.stop()
    async with worker_of(first.address) as worker:
        await until(lambda: has_worker(first, third))
        assert len(links_of(worker)) == 3
        fleet.tell(first, third)
        await until(lambda: len(links_of(worker)) == 2)
        await runs_at(third)


async def test_a_server_by_two_names_has_one_connection_that_takes_jobs(fleet: Fleet) -> None:
    first, second = fleet.grow(2)
    async with worker_of(f"localhost:{first.engine.port}", first.address):
        await until(lambda: has_worker(first, second))
        await runs_at(first)
        assert has_worker(first)


async def test_a_balancer_is_no_server_more(fleet: Fleet) -> None:
    members = fleet.grow(3)
    async with balancer(members) as address, worker_of(address):
        await until(lambda: has_worker(*members))
        members[0].stop()  # where the balancer has led to
        fleet.tell(*members[1:])
        for member in members[1:]:
            await runs_at(member)
        await until(lambda: has_worker(*members[1:]))


def test_a_balancer_is_no_server_more_on_a_loop_that_anyio_did_not_start(fleet: Fleet) -> None:
    """As the command line has it. There a callback of the loop cannot start a task of anyio's."""
    members = fleet.grow(2)

    async def body() -> None:
        async with balancer(members) as address, worker_of(address):
            await until(lambda: has_worker(*members))
            for member in members:
                await runs_at(member)

    asyncio.run(body())


async def test_a_server_by_another_name_is_used_again_when_the_first_one_leads_nowhere(fleet: Fleet) -> None:
    (first,) = fleet.grow()
    async with anyio.create_task_group() as balancers:
        address, balancing = await balancers.start(_balance, first)
        async with worker_of(address) as worker:
            await until(lambda: len(links_of(worker)) == 2 and not links_of(worker)[1].counts)
            await until(lambda: has_worker(first))
            balancing.cancel()
            await runs_at(first)  # by its own address


async def _balance(member: Member, *, task_status: TaskStatus[tuple[str, anyio.CancelScope]]) -> None:
    with anyio.CancelScope() as life:
        async with balancer([member]) as address:
            task_status.started((address, life))
            await anyio.sleep_forever()


async def test_a_burst_ends_when_no_server_of_the_group_has_a_job(fleet: Fleet) -> None:
    first, second = fleet.grow(2)
    async with Client([second.address], discover=False) as client:
        jobs = [await client.submit("where", b'{"number": 1}') for _ in range(5)]
        with anyio.fail_after(20):
            await worker_of(first.address, burst=True).run()
        assert all(job.done for job in jobs)


async def test_a_burst_of_servers_that_cannot_be_reached_is_no_server(fleet: Fleet) -> None:
    (first,) = fleet.grow()
    first.stop()
    with anyio.fail_after(20), pytest.raises(NoServer):
        await worker_of(first.address, burst=True, connect_timeout=0.1).run()


# -------------------------------------------------------------------------------------- what is asked


async def registered(peer: Peer, option: OptionRes | Error) -> None:
    """Take a registration, and let the worker go to sleep."""
    await peer.expect_a(OptionReq)
    await peer.expect_a(SetClientId)
    await peer.expect_a(CanDo)
    await peer.send(option)
    while True:
        match await peer.receive():
            case GrabJobUniq():
                await peer.send(NoJob())
            case SubmitJob(function=function) if function == EVENTS:
                await peer.send(JobCreated(b"H:events"))
            case PreSleep():
                return
            case other:
                raise AssertionError(other)


@pytest.mark.parametrize(
    "option", [OptionRes(b"gearflow"), Error(b"UNKNOWN_OPTION", b"?")], ids=["gearflow alone", "gearmand"]
)
async def test_only_a_server_of_a_group_is_asked(option: OptionRes | Error, fleet: Fleet) -> None:
    first, second = fleet.grow(2)
    async with scripted_server() as server:
        async with worker_of(server.address, first.address, poll=None):
            peer = await server.accept()
            await registered(peer, option)
            await until(lambda: has_worker(first, second))
            for _ in range(3):
                fleet.tell(first)
                await until(lambda: second.clients == [])
                fleet.tell(first, second)
                await until(lambda: has_worker(second))
        assert not [packet for packet in await peer.rest() if isinstance(packet, SubmitJob)]


@pytest.mark.parametrize("how", ["setting", "environment"])
async def test_a_worker_that_is_not_to_look_does_not(
    fleet: Fleet, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEARFLOW_DISCOVER", "1" if how == "setting" else "0")
    async with (
        scripted_server() as server,
        worker_of(server.address, discover=False if how == "setting" else None),
    ):
        peer = await server.accept()
        await registered(peer, OptionRes(b"gearflow\0g\0s"))
        for _ in range(3):
            await peer.send(Noop())
            assert await peer.receive() == GrabJobUniq()
            await peer.send(NoJob())
            assert await peer.receive() == PreSleep()


async def test_an_answer_of_no_use_changes_nothing() -> None:
    answers = [b"[]", b'{"group": "g", "servers": []}', b"\xff", None, b"{}"]
    async with scripted_server() as server, worker_of(server.address) as worker:
        peer = await server.accept()
        await peer.expect_a(OptionReq)
        await peer.send(OptionRes(b"gearflow\0g\0s"))
        with anyio.fail_after(20):
            while answers:
                if await peer.receive() == SubmitJob(b"gearflow:info", b"", b""):
                    answer = answers.pop()
                    refusal = Error(b"INVALID_FUNCTION_NAME", b"no")
                    await peer.send(
                        *([JobCreated(b"C:1"), WorkComplete(b"C:1", answer)] if answer else [refusal])
                    )
        assert len(links_of(worker)) == 1
        await peer.close()  # which ends the wait for the answer to a GRAB
