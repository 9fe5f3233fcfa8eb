"""One address of a group is enough for clients and workers, and any server shows the group."""

import signal
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest
from pydantic import SecretStr

from gearflow.client import Backoff, Client, SubmitOptions, SyncClient, Timeouts
from gearflow.client.operate import group_info
from gearflow.errors import ServerError
from gearflow.server import JobServer
from gearflow.tasks import task
from gearflow.worker import Worker
from gearflow.worker.settings import TimeLimits
from tests.conftest import own_postgres
from tests.groups import until
from tests.postgres.cluster import ROLE, Database, eventually, folder
from tests.shared.group import Group
from tests.soak.fleet import Process

OFTEN = Timeouts(discovery=0.05)


@pytest.fixture
def anyio_backend() -> str:
    """The servers run on the loop of the test."""
    return "asyncio"


@task(name="double")
async def double(number: int) -> int:
    return 2 * number


@asynccontextmanager
async def member(database: Database, port: int = 0) -> AsyncGenerator[JobServer]:
    """A server of the group."""
    conninfo = SecretStr(database.cluster.conninfo(database.name))
    async with JobServer(port=port, postgres=conninfo, lease=2.0, store_timeout=5.0) as server:
        yield server


async def test_one_address_is_enough_and_its_server_may_go(database: Database) -> None:
    async with AsyncExitStack() as stack, member(database) as second:
        first = await stack.enter_async_context(member(database))
        worker = Worker([double], servers=[first.address], time_limits=TimeLimits(discovery=0.05))
        async with Client([first.address], timeouts=OFTEN) as client, worker:
            job = await client.submit("double", b'{"number": 1}')
            assert await job.result() == b"2"
            done = await client.submit_background("double", b'{"number": 2}')
            assert await client.result(done, 20) == b"4"
            await until(lambda: second.address in map(str, client.servers))
            later = await client.submit_background("double", b'{"number": 3}', at=4e9)
            await stack.aclose()
            assert await client.result(done, 20) == b"4"  # the server that gave the handle is gone
            assert (await client.info(later)).state == "delayed"
            assert await client.cancel(later)
            next_one = await client.submit_background("double", b'{"number": 4}')
            assert str(next_one.server) == second.address
            with anyio.fail_after(20):
                assert await client.result(next_one) == b"8"
        async with member(database) as third, Client([third.address]) as client:
            assert await client.result(done, 20) == b"4"


async def test_any_server_shows_the_whole_group(database: Database) -> None:
    async with member(database) as first, member(database) as second, Client([first.address]) as client:
        for number in range(3):
            await client.submit_background("f", b"%d" % number)
        for server in (first, second):
            info = await group_info(client, server=server.address)
            assert sorted(each.address for each in info.servers) == sorted([first.address, second.address])
            assert all(each.lots >= 8 and each.version and 0 <= each.beat < 20 for each in info.servers)
            assert {each.address: each.jobs for each in info.servers} == {
                first.address: 3,
                second.address: 0,
            }
            assert (info.jobs, info.standbys) == (3, ())
            assert info.dead_rows >= 0


async def test_a_standby_is_shown_with_its_lag() -> None:
    with own_postgres() as primary, primary.database() as database, folder(in_memory=True) as directory:
        standby = primary.standby(directory)
        try:
            primary.psql(f"GRANT pg_monitor TO {ROLE}")
            async with member(database) as server, Client([server.address]) as client:
                await client.submit_background("f", b"x")
                (shown,) = (await group_info(client)).standbys
                assert (shown.state, shown.sync) == ("streaming", "async")
                assert shown.lag is None or shown.lag >= 0
        finally:
            standby.stop()


async def test_a_server_of_memory_is_in_no_group() -> None:
    async with JobServer(port=0) as server, Client([server.address]) as client:
        with pytest.raises(ServerError, match="in no group"):
            await group_info(client)


def test_a_program_of_one_server_goes_on_when_it_is_killed(group: Group) -> None:
    count = "tests.soak.tasks.count"
    with SyncClient([group.addresses[0]], timeouts=OFTEN, backoff=Backoff(first=0.01, most=0.1)) as client:
        done = client.submit_background(count, b"{}")
        assert str(done.server) == group.addresses[0]
        kept = client.result(done, 60)
        eventually(lambda: set(map(str, client.servers)) == set(group.addresses), "the others are found")
        group.kill(0)
        assert client.result(done, 60) == kept  # another server has it, too
        later = client.submit_background(count, b"{}", options=SubmitOptions(resubmit=True))
        assert str(later.server) in group.addresses[1:]
        assert client.result(later, 60)


def test_a_worker_of_one_server_runs_the_jobs_of_all(group: Group) -> None:
    for worker in group.workers:
        worker.end(signal.SIGTERM)
    command = ("worker", "tests.soak.tasks", "-s", group.addresses[0])
    lone = Process("lone", command, "registered with a server", group.directory)
    try:
        lone.start()
        lone.wait_until_ready()
        for address in group.addresses:
            with SyncClient([address], discover=False) as client:
                assert client.result(client.submit_background("tests.soak.tasks.count", b"{}"), 60)
        group.kill(0)
        for address in group.addresses[1:]:
            with SyncClient([address], discover=False) as client:
                assert client.result(client.submit_background("tests.soak.tasks.count", b"{}"), 60)
        lone.end(signal.SIGTERM)
        assert "Traceback" not in lone.log
    finally:
        lone.clear()
