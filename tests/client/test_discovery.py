"""Clients that find the servers of a group, and leave those that are gone."""

import json
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from gearflow.broker.core import ServerGroup
from gearflow.client import (
    Backoff,
    Client,
    JobHandle,
    JobKey,
    ServerAddress,
    SubmitOptions,
    SyncClient,
    Timeouts,
    discovery,
)
from gearflow.client.discovery import Members, Membership, default_discover, read_members
from gearflow.errors import ConnectionLost, NoServer, SubmitUnknown, UnknownJob
from gearflow.protocol.packets import (
    EchoReq,
    EchoRes,
    Error,
    JobCreated,
    OptionReq,
    OptionRes,
    SubmitJob,
    WorkComplete,
    WorkException,
)
from gearflow.testing.peer import ScriptedPeer, ScriptedServer
from tests.client.conftest import Call
from tests.groups import GROUP, Fleet, Member, balancer, until

OFTEN = Timeouts(discovery=0.02)
AT_ONCE = Backoff(first=0.001, most=0.01)


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet() as fleet:
        yield fleet


def client_of(*servers: str, **options: Any) -> Client:
    return Client(servers, timeouts=OFTEN, backoff=AT_ONCE, **options)


async def connected(client: Client, *members: Member) -> None:
    """Return when the client has found these, and is connected to them."""
    await until(lambda: {member.address for member in members} <= set(texts(client)))
    for member in members:
        await client.features(member.address)


def texts(client: Client) -> list[str]:
    return list(map(str, client.servers))


# ------------------------------------------------------------------------------------------ what is known


def at(*texts: str) -> tuple[ServerAddress, ...]:
    return tuple(map(ServerAddress.parse, texts))


def test_servers_that_are_named_come_behind_those_that_were_given() -> None:
    known = Membership(at("lb", "b"))
    assert known.found == ()
    known.learn(Members("g", None, at("c", "b", "a")))
    assert known.found == at("c", "a")
    known.learn(Members("g", None, at("d", "a")))
    assert known.found == at("d", "a")
    assert known.group_of(*at("c")) == "g"  # it may come back
    assert known.group_of(*at("lb")) == ""


def test_a_server_is_in_the_group_that_named_it_last() -> None:
    known = Membership(at("a"))
    known.learn(Members("old", None, at("a", "b", "c")))
    known.learn(Members("new", None, at("b")))
    assert known.named == {at("a")[0]: "old", at("c")[0]: "old", at("b")[0]: "new"}
    known.learn(Members("new", None, at("a", "b", "c")))
    assert set(known.named.values()) == {"new"}


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"version": "1"}',
        b'{"group": "", "servers": ["a"]}',
        b'{"group": 1, "servers": ["a"]}',
        b'{"group": "g", "servers": "a"}',
        b'{"group": "g", "servers": []}',
        b'{"group": "g", "servers": [1, "", "a:b", "x y"]}',
    ],
)
def test_an_answer_that_makes_no_sense_is_none(answer: bytes) -> None:
    assert read_members(answer) is None


def test_an_address_that_makes_no_sense_is_left_out_of_an_answer() -> None:
    answer = {"group": "g", "servers": ["a:1", "?:?", "a:1", None, "[::1]:2"], "address": "a:1", "new": 1}
    assert read_members(json.dumps(answer).encode()) == Members("g", at("a:1")[0], at("a:1", "[::1]:2"))
    many = {"group": "g", "servers": [f"s{number}" for number in range(5000)]}
    members = read_members(json.dumps(many).encode())
    assert members is not None
    assert (members.address, len(members.servers)) == (None, 1000)


def test_the_environment_may_forbid_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEARFLOW_DISCOVER", raising=False)
    assert default_discover()
    monkeypatch.setenv("GEARFLOW_DISCOVER", "0")
    assert not default_discover()
    monkeypatch.setenv("GEARFLOW_DISCOVER", "perhaps")
    with pytest.raises(ValueError, match="GEARFLOW_DISCOVER"):
        Client(["127.0.0.1:1"])


# ------------------------------------------------------------------------------------ servers of a group


async def test_a_client_of_one_server_finds_the_others_and_goes_on_without_it(fleet: Fleet) -> None:
    first, second = fleet.grow(2)
    async with client_of(first.address) as client:
        await client.submit_background("f", b"1")
        await until(lambda: texts(client) == [first.address, second.address])
        (third,) = fleet.grow()
        await until(lambda: len(client.servers) == 3)
        assert second.connections == third.connections == 0  # they stand by
        first.stop()
        await until(lambda: not client.is_connected)
        handle = await client.submit_background("f", b"2")
        assert str(handle.server) in (second.address, third.address)
        fleet.tell(second, third)
        await until(lambda: texts(client) == [first.address, second.address, third.address])


async def test_a_server_that_is_gone_is_left(fleet: Fleet) -> None:
    first, second, third = fleet.grow(3)
    async with client_of(first.address, spread=True) as client:
        await client.echo(b"x")
        await until(lambda: second.connections == third.connections == 1)
        fleet.tell(first, third)
        await until(lambda: second.connections == 0)
        assert texts(client) == [first.address, third.address]
        fleet.tell(first, second, third)
        await until(lambda: second.connections == 1)


async def test_jobs_that_are_attached_at_a_server_that_is_gone_are_not_cut_off(fleet: Fleet) -> None:
    first, second = fleet.grow(2)
    async with client_of(first.address, spread=True) as client:
        await client.echo(b"x")
        await connected(client, second)
        jobs = [await client.submit("f", b"", unique=f"k{number}") for number in range(20)]
        theirs = [job for job in jobs if str(job.server) == second.address]
        assert 0 < len(theirs) < 20
        fleet.tell(first)
        await until(lambda: len(client.servers) == 1)
        assert second.connections == 1
        later = [await client.submit_background("f", b"", unique=f"k{number}") for number in range(20)]
        assert {str(handle.server) for handle in later} == {first.address}
        second.stop()
        for job in theirs:
            with pytest.raises(ConnectionLost):
                await job.result()


async def test_the_load_is_spread_over_the_servers_that_there_are(fleet: Fleet) -> None:
    first, second = fleet.grow(2)
    async with (
        client_of(first.address, spread=True) as client,
        client_of(second.address, spread=True) as other,
    ):
        await client.echo(b"x")
        await other.echo(b"x")
        (third,) = fleet.grow()
        for each in (client, other):
            await connected(each, first, second, third)
        keys = [f"k{number}" for number in range(30)]
        places = [str((await client.submit_background("f", b"", unique=key)).server) for key in keys]
        assert set(places) == {first.address, second.address, third.address}
        assert places == [str((await other.submit_background("f", b"", unique=key)).server) for key in keys]
        turns = [str((await client.submit_background("f", b"")).server) for _ in range(3)]
        assert set(turns) == set(places)


async def test_an_address_that_leads_nowhere_costs_nobody_anything(fleet: Fleet) -> None:
    first, second = fleet.grow(2)
    second.stop()  # the others do not know yet
    async with client_of(first.address, spread=True) as client:
        await client.echo(b"x")
        await until(lambda: len(client.servers) == 2)
        keys = [f"k{number}" for number in range(10)]
        for key in keys:
            assert str((await client.submit_background("f", b"", unique=key)).server) == first.address
        fleet.tell(first)
        await until(lambda: texts(client) == [first.address])


async def test_nobody_waits_for_a_server_that_was_found_and_hangs(fleet: Fleet) -> None:
    (first,) = fleet.grow()
    patient = Timeouts(connect=3600, discovery=0.02)
    async with ScriptedServer() as silent, Client([first.address], spread=True, timeouts=patient) as client:
        await client.echo(b"x")
        named = first.address, silent.address
        first.engine.broker.group = ServerGroup(GROUP, first.name, named, first.address)
        await until(lambda: len(client.servers) == 2)
        for number in range(20):
            with anyio.fail_after(20):
                handle = await client.submit_background("f", b"", unique=f"k{number}")
            assert str(handle.server) == first.address


async def test_a_given_address_is_kept_whatever_the_group_says(fleet: Fleet) -> None:
    first, second, third = fleet.grow(3)
    async with client_of(first.address, second.address) as client:
        await client.echo(b"x")
        fleet.tell(third)
        await until(lambda: texts(client) == [first.address, second.address, third.address])


async def test_a_balancer_is_one_address_more_and_no_server_more(fleet: Fleet) -> None:
    members = fleet.grow(3)
    async with balancer(members) as address, client_of(address, spread=True) as client:
        await client.echo(b"x")
        await until(lambda: [member.connections for member in members] == [1, 1, 1])
        await connected(client, *members[1:])  # the balancer leads to the first one
        keys = [f"k{number}" for number in range(30)]
        async with client_of(members[2].address, spread=True) as other:
            await other.echo(b"x")
            await connected(other, *members)
            for key in keys:
                await client.submit_background("f", b"", unique=key)
                await other.submit_background("f", b"", unique=key)
        assert sum(member.jobs for member in members) == 30
        assert all(member.jobs for member in members)
        members[0].stop()  # where the balancer's first connection led to
        fleet.tell(*members[1:])
        again = SubmitOptions(resubmit=True)
        assert (await client.submit_background("f", b"", unique="k0", options=again)).handle
        await until(lambda: len(client.servers) == 3)


async def test_one_server_by_two_names_gets_each_key_once(fleet: Fleet) -> None:
    first, second = fleet.grow(2)
    port = first.engine.port
    async with client_of(f"localhost:{port}", first.address, spread=True) as client:
        for _ in range(2):
            await client.echo(b"x")
        await connected(client, second)
        handles = [await client.submit_background("f", b"", unique=f"k{number}") for number in range(20)]
        again = [await client.submit_background("f", b"", unique=f"k{number}") for number in range(20)]
        assert [handle.handle for handle in handles] == [handle.handle for handle in again]
        assert first.jobs + second.jobs == 20
        assert min(first.jobs, second.jobs) > 2


@pytest.mark.parametrize("how", ["argument", "environment"])
async def test_a_client_that_is_not_to_look_does_not(
    fleet: Fleet, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ScriptedServer() as server:
        monkeypatch.setenv("GEARFLOW_DISCOVER", "1" if how == "argument" else "0")
        discover = False if how == "argument" else None
        async with client_of(server.address, discover=discover) as client, anyio.create_task_group() as tasks:
            call = Call(client.echo, b"x")
            tasks.start_soon(call.run)
            peer = await server.accept()
            await shake_hands(peer, "g", "s")
            await peer.expect(EchoReq(b"x"))
            await peer.send(EchoRes(b"x"))
            await call.outcome()
            await anyio.wait_all_tasks_blocked()
            then = Call(client.echo, b"y")
            tasks.start_soon(then.run)
            await peer.expect(EchoReq(b"y"))
            tasks.cancel_scope.cancel()


# ------------------------------------------------------------------------------------- who asks for what


async def shake_hands(peer: ScriptedPeer, group: str, server: str) -> None:
    await peer.expect(OptionReq(b"exceptions"))
    await peer.send(OptionRes(b"exceptions"))
    await peer.expect(OptionReq(b"gearflow"))
    await peer.send(OptionRes(b"\0".join([b"gearflow", group.encode(), server.encode()])))


ASKED = SubmitJob(b"gearflow:info", b"", b"")


async def name(peer: ScriptedPeer, *servers: str, group: str = "g") -> None:
    """Answer the question for the servers."""
    await peer.expect(ASKED)
    answer = {"group": group, "server": "s", "address": "", "servers": servers}
    await peer.send(JobCreated(b"C:1"), WorkComplete(b"C:1", json.dumps(answer).encode()))


async def test_only_a_server_of_a_group_is_asked_again_and_again() -> None:
    async with (
        ScriptedServer() as grouped,
        ScriptedServer() as alone,
        ScriptedServer() as gearmand,
        client_of(grouped.address, alone.address, gearmand.address) as client,
        anyio.create_task_group() as tasks,
    ):
        peers: dict[str, ScriptedPeer] = {}
        for server, known in ((alone, True), (gearmand, False), (grouped, True)):
            tasks.start_soon(Call(client.features, server.address).run)
            peer = peers[server.address] = await server.accept()
            await peer.expect(OptionReq(b"exceptions"), OptionReq(b"gearflow"))
            answer = OptionRes(b"gearflow\0g\0s" if server is grouped else b"gearflow")
            await peer.send(OptionRes(b"exceptions"), answer if known else Error(b"UNKNOWN_OPTION", b"?"))
        for _ in range(5):
            await name(peers[grouped.address], grouped.address)
        for address, peer in peers.items():
            if address != grouped.address:
                tasks.start_soon(Call(client.pool.connection_to, ServerAddress.parse(address)).run)
                await peer.send(EchoRes(b"answers nothing"))  # so it ends the connection, after all it said
                await peer.expect_end()
        tasks.cancel_scope.cancel()


async def test_a_server_that_does_not_answer_the_question_is_used_all_the_same() -> None:
    async with (
        ScriptedServer() as server,
        client_of(server.address) as client,
        anyio.create_task_group() as tasks,
    ):
        call = Call(client.echo, b"x")
        tasks.start_soon(call.run)
        peer = await server.accept()
        await shake_hands(peer, "g", "s")
        refused = echoed = 0
        while not echoed or refused < 3:
            match await peer.receive():
                case SubmitJob(function=b"gearflow:info"):
                    refused += 1
                    await peer.send(Error(b"INVALID_FUNCTION_NAME", b"no"))
                case EchoReq(data):
                    echoed += 1
                    await peer.send(EchoRes(data))
                case other:
                    raise AssertionError(other)
        assert await call.outcome() == b"x"
        assert texts(client) == [server.address]
        tasks.cancel_scope.cancel()


# -------------------------------------------------------------------------------- jobs of all its servers


@asynccontextmanager
async def of_group(
    server: ScriptedServer, *others: ScriptedServer
) -> AsyncGenerator[tuple[Client, ScriptedPeer]]:
    """A client of the first server, which knows them all, and the connection to it."""
    async with (
        Client([server.address], backoff=AT_ONCE) as client,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(client.features)
        peer = await server.accept()
        await shake_hands(peer, "g", "s1")
        await name(peer, server.address, *(other.address for other in others))
        await until(lambda: len(client.servers) == 1 + len(others))
        yield client, peer
        tasks.cancel_scope.cancel()


async def test_one_server_of_a_group_answers_for_all() -> None:
    async with (
        ScriptedServer() as first,
        ScriptedServer() as second,
        of_group(first, second) as (client, peer),
        anyio.create_task_group() as tasks,
    ):
        for job in ("H:1", JobKey("f", "k")):
            call = Call(client.info, job)
            tasks.start_soon(call.run)
            await peer.expect_a(SubmitJob)
            fault = b'{"type": "gearflow:unknown", "message": "there is no such job"}'
            await peer.send(JobCreated(b"C:2"), WorkException(b"C:2", fault))
            with pytest.raises(UnknownJob):
                await call.outcome()


@pytest.mark.parametrize("is_named", [True, False], ids=["named", "not named any more"])
async def test_a_result_of_a_server_that_is_gone_is_waited_for_at_another_one(is_named: bool) -> None:
    async with ScriptedServer() as first, ScriptedServer() as second, ScriptedServer() as third:
        others = (second, third) if is_named else (second,)
        async with of_group(first, *others) as (client, peer), anyio.create_task_group() as tasks:
            await third.stop_listening()
            call = Call(client.result, JobHandle("H:1", ServerAddress.parse(third.address)))
            tasks.start_soon(call.run)
            asked = await peer.expect_a(SubmitJob)
            assert (asked.function, json.loads(asked.workload)) == (b"gearflow:result", {"handle": "H:1"})
            await peer.send(JobCreated(b"C:2"))
            await first.stop_listening()
            await peer.reset()  # in the middle of the wait
            peer = await second.accept()
            await shake_hands(peer, "g", "s2")
            heard = [await peer.expect_a(SubmitJob)]
            if heard == [ASKED]:
                await peer.send(JobCreated(b"C:1"))
                heard = [await peer.expect_a(SubmitJob)]
            assert heard[0].function == b"gearflow:result"
            await peer.send(JobCreated(b"C:3"), WorkComplete(b"C:3", b"done"))
            assert await call.outcome() == b"done"


async def test_a_server_that_is_gone_and_of_which_nobody_knows_is_no_server_for_an_unknown_job() -> None:
    async with ScriptedServer() as stranger:
        await stranger.stop_listening()
    async with (
        ScriptedServer() as first,
        of_group(first) as (client, peer),
        anyio.create_task_group() as tasks,
    ):
        call = Call(client.info, JobHandle("H:1", ServerAddress.parse(stranger.address)))
        tasks.start_soon(call.run)
        await peer.expect_a(SubmitJob)
        fault = b'{"type": "gearflow:unknown", "message": "there is no such job"}'
        await peer.send(JobCreated(b"C:2"), WorkException(b"C:2", fault))
        with pytest.raises(NoServer, match=stranger.address):
            await call.outcome()


def test_a_blocking_client_finds_them_too(fleet: Fleet) -> None:
    first, second = fleet.grow(2)
    with SyncClient([first.address], timeouts=OFTEN, backoff=AT_ONCE) as client:
        assert client.echo(b"x") == b"x"
        wait_for(lambda: len(client.servers) == 2)
        first.stop()
        assert str(submitted(client).server) == second.address


def test_a_client_that_only_submits_background_jobs_finds_them_too(fleet: Fleet) -> None:
    first, second = fleet.grow(2)
    first.engine.broker.core.handles.last = 7 << 40  # as a server that shares its store has them
    with SyncClient([first.address], timeouts=OFTEN, backoff=AT_ONCE) as client:
        client.submit_background("f", b"")
        wait_for(lambda: len(client.servers) == 2)
        first.stop()
        assert str(submitted(client).server) == second.address


def test_it_makes_no_connection_more_to_a_server_alone(fleet: Fleet) -> None:
    (alone,) = fleet.start()
    with SyncClient([alone.address], timeouts=OFTEN) as client:
        for _ in range(10):
            client.submit_background("f", b"")
        client.run(_nothing)  # what was posted before has been done
        assert alone.connections == 1


async def _nothing(_client: Client) -> None:
    await anyio.lowlevel.checkpoint()


def submitted(client: SyncClient) -> JobHandle:
    """A job, wherever it can be submitted now."""
    for _ in range(100):
        try:
            return client.submit_background("f", b"")
        except SubmitUnknown:  # the server went in the middle
            continue
    raise AssertionError("no server is used")


def wait_for(condition: Callable[[], bool]) -> None:
    """As ``until``, without an event loop."""
    anyio.run(until, condition)


@pytest.mark.parametrize(
    ("handle", "is_of_group"),
    [
        ("H:host-00c0ffee:3298534883329", True),
        ("H:host-00c0ffee:12", False),
        ("H:host:1", False),
        ("", False),
    ],
)
def test_a_handle_shows_whether_it_is_of_a_group(handle: str, is_of_group: bool) -> None:
    assert discovery.is_of_group(handle) is is_of_group
