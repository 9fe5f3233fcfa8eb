"""What operators see of two servers on one PostgreSQL, and what they do to the jobs of both.

The servers are real ones, in this process. Each test has functions of its own.
"""

import re
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack

import anyio
import httpx
import pytest
from pydantic import SecretStr

import gearflow.web
from gearflow import Every
from gearflow.client import Client
from gearflow.client.operate import bulk, change_limits, jobs, metrics
from gearflow.observe import FleetView, look_all
from gearflow.protocol.jobs import BulkDone, JobFilter
from gearflow.protocol.limits import LimitRequest, LimitValue
from gearflow.protocol.packets import CanDo, GrabJob, JobAssign, JobCreated, NoJob, SubmitJobBg, WorkFail
from gearflow.server import JobServer
from gearflow.testing.peer import ScriptedPeer
from tests.postgres.cluster import TIMEOUT, Database
from tests.web.conftest import served

LETTERS = 300
"""At each server. One slice of an act has 200."""


HIDDEN = re.compile(r'<input type="hidden" name="([^"]+)" value="([^"]*)">')
"""Fields of a form."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The servers have loops of their own: one kind is enough here."""
    return "asyncio"


@pytest.fixture(scope="module")
def servers(one_database: Database) -> Iterator[tuple[JobServer, JobServer]]:
    """Two servers of a group."""
    with ExitStack() as stack:
        one, other = (
            stack.enter_context(JobServer(port=0, postgres=SecretStr(one_database.conninfo), lease=4.0))
            for _ in range(2)
        )
        yield one, other


@pytest.fixture
async def clients(servers: tuple[JobServer, JobServer]) -> AsyncGenerator[tuple[Client, Client]]:
    """A client of each server alone."""
    one, other = servers
    async with (
        Client([one.address], discover=False) as first,
        Client([other.address], discover=False) as second,
    ):
        yield first, second


async def submit(server: JobServer, function: str, count: int) -> list[str]:
    """Background jobs at a server. Their handles."""
    handles: list[str] = []
    async with await ScriptedPeer.connect(server.host, server.port, timeout=TIMEOUT) as client:
        await client.send(*[SubmitJobBg(function.encode(), b"", b"%d" % each) for each in range(count)])
        for _ in range(count):
            created = await client.receive()
            assert isinstance(created, JobCreated)
            handles.append(created.handle.decode())
    return handles


async def fail_all(server: JobServer, function: str) -> list[str]:
    """Have all jobs of a function at a server fail for good. Their handles."""
    handles: list[str] = []
    async with await ScriptedPeer.connect(server.host, server.port, timeout=TIMEOUT) as worker:
        await worker.send(CanDo(function.encode()))
        while True:
            await worker.send(GrabJob())
            job = await worker.receive()
            if isinstance(job, NoJob):
                return handles
            assert isinstance(job, JobAssign)
            handles.append(job.handle.decode())
            await worker.send(WorkFail(job.handle))


async def bury(servers: tuple[JobServer, JobServer], function: str, count: int = LETTERS) -> list[str]:
    """Dead letters at both servers, in the database. Their handles."""
    handles: list[str] = []
    for server in servers:
        handles += await submit(server, function, count)
        await fail_all(server, function)
    async with Client([servers[0].address], discover=False) as client:
        with anyio.fail_after(TIMEOUT):
            while await count_dead(client, function) < len(handles):  # noqa: ASYNC110  (servers)
                await anyio.sleep(0.01)
    return handles


async def count_dead(client: Client, function: str) -> int:
    return (await bulk(client, "count", JobFilter(function=function, states=("dead",)))).matched


async def listed(client: Client, select: JobFilter) -> list[str]:
    """The handles of all jobs that a filter selects."""
    handles: list[str] = []
    after = ""
    while True:
        page = await jobs(client, select, after=after, limit=1000)
        handles += [each.job.handle for each in page.jobs]
        after = page.next
        if not after:
            return handles


async def page_with(browser: httpx.AsyncClient, path: str, text: str) -> str:
    """A page once a text is on it. A server learns with its beat what another one has set."""
    with anyio.fail_after(TIMEOUT):
        while True:
            page = (await browser.get(path)).text
            if text in page:
                return page
            await anyio.sleep(0.05)


async def test_each_server_lists_its_live_jobs_and_the_ended_jobs_of_all(
    servers: tuple[JobServer, JobServer], clients: tuple[Client, Client]
) -> None:
    dead = await bury(servers, "lists", 3)
    live = [await submit(server, "lists", 2) for server in servers]
    for client, own in zip(clients, live, strict=True):
        found = await listed(client, JobFilter(function="lists"))
        assert Counter(found) == Counter([*dead, *own])
        assert (await bulk(client, "count", JobFilter(function="lists"))).matched == len(dead) + len(own)
        assert (await bulk(client, "errors", JobFilter(function="lists"))).errors[0].count == len(dead)
    done = await bulk(clients[1], "cancel", JobFilter(function="lists"))
    assert (done.matched, done.done) == (2, 2)
    assert await listed(clients[0], JobFilter(function="lists", states=("waiting",))) == live[0]


async def test_one_server_replays_the_letters_of_both_and_each_runs_once(
    servers: tuple[JobServer, JobServer], clients: tuple[Client, Client]
) -> None:
    dead = await bury(servers, "again")
    done = await bulk(clients[0], "replay", JobFilter(function="again"), expected=len(dead))
    assert (done.matched, done.done, done.left) == (len(dead), len(dead), 0)
    ran = [handle for server in servers for handle in await fail_all(server, "again")]
    assert Counter(ran) == Counter(dead)


async def test_two_servers_that_replay_and_purge_at_once_share_the_letters(
    servers: tuple[JobServer, JobServer], clients: tuple[Client, Client]
) -> None:
    dead = await bury(servers, "both")
    select, results = JobFilter(function="both"), dict[str, BulkDone]()

    async def replay() -> None:
        results["replay"] = await bulk(clients[0], "replay", select)

    async def purge() -> None:
        results["purge"] = await bulk(clients[1], "purge", select)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(replay)
        tasks.start_soon(purge)
    ran = [handle for server in servers for handle in await fail_all(server, "both")]
    assert len(ran) == len({*ran})
    assert len(ran) + results["purge"].done == len(dead)
    assert results["replay"].done >= len(ran)  # one that was asked of the other server may be purged there
    assert (results["replay"].left, results["purge"].left) == (0, 0)


async def test_the_dead_letters_of_a_group_are_known_at_once_and_counted_once(
    servers: tuple[JobServer, JobServer], one_database: Database
) -> None:
    dead = await bury(servers, "count", 3)
    total = int(one_database.psql("SELECT count(*) FROM gearflow.records WHERE dead"))
    addresses = [server.address for server in servers]
    with JobServer(port=0, postgres=SecretStr(one_database.conninfo), lease=4.0) as third:
        async with Client(addresses, discover=False) as client:
            assert (await metrics(client, server=third.address)).dead == total
            fleet = FleetView(tuple(await look_all(client, [*addresses, third.address])))
            await bulk(client, "purge", JobFilter(function="count"), server=addresses[0])
            await metrics(client, server=addresses[0])  # it asks for their number
            with anyio.fail_after(TIMEOUT):
                while (await metrics(client, server=addresses[0])).dead != total - len(dead):  # noqa: ASYNC110  (a server)
                    await anyio.sleep(0.01)
    assert (fleet.away, fleet.dead) == ((), total)
    (function,) = [found for found in fleet.functions if found.function == "count"]
    assert (function.submitted, function.dead) == (len(dead), len(dead))


async def test_a_dashboard_of_a_group_shows_once_what_the_servers_share(
    servers: tuple[JobServer, JobServer], clients: tuple[Client, Client]
) -> None:
    letters = await bury(servers, "shown", 1)
    await clients[0].schedules.put("shared-nightly", "report", Every(hours=1))
    limit = LimitRequest(action="apply", origin="code", limits={"shared-smtp": LimitValue(count=3)})
    await change_limits(clients[1], limit)
    app = gearflow.web.app([server.address for server in servers], allow="operate", interval=0.1)
    same = {"Sec-Fetch-Site": "same-origin"}
    with served(app) as url:
        async with httpx.AsyncClient(base_url=url, headers=same, timeout=TIMEOUT, trust_env=False) as browser:
            for path, name in (("/schedules", "shared-nightly"), ("/limits", "shared-smtp")):
                assert (await page_with(browser, path, name)).count(f'Pause {name}"') == 1, path
            page = (await browser.get("/dead?function=shown")).text
            for handle in letters:
                assert page.count(f'aria-label="Replay {handle}"') == 1
            question = (await browser.get("/dead/replay?function=shown")).text
            assert "Replay 2</button>" in question
            await browser.post("/dead/replay", data=dict(HIDDEN.findall(question)))
            assert await count_dead(clients[1], "shown") == 0
            page = (await browser.get("/jobs?function=shown")).text
            for handle in letters:
                assert page.count(f">{handle}</a>") == 1
            assert (await browser.get("/servers")).text.count("PostgreSQL</dd>") == 2
    for client, letter in zip(clients, letters, strict=True):
        assert await listed(client, JobFilter(function="shown", states=("waiting",))) == [letter]
