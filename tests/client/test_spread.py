"""Servers that share the load: which of them gets a submission, and who steps in for one that is away."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import anyio
import pytest

from gearflow.client import Backoff, Client, JobHandle, JobRequest, SyncClient, configure, connect
from gearflow.client.current import current_sync
from gearflow.client.pool import rendezvous_order
from gearflow.errors import ConnectionLost
from gearflow.protocol.packets import EchoReq, JobCreated, SubmitJob, SubmitJobBg
from gearflow.server import JobServer
from gearflow.testing.peer import ScriptedServer
from tests.client.conftest import Call
from tests.ports import free_port

SERVERS = ["a:4730", "b:4730", "c:4730"]


# ------------------------------------------------------------------------------------- which of them


def test_equal_keys_have_equal_orders_whatever_the_process_and_the_version() -> None:
    """The order is part of what is promised: processes of two versions run side by side."""
    assert rendezvous_order(SERVERS, b"resize\0cat") == ["b:4730", "c:4730", "a:4730"]
    assert rendezvous_order(reversed(SERVERS), b"resize\0cat") == ["b:4730", "c:4730", "a:4730"]


def test_keys_are_spread_evenly() -> None:
    firsts = Counter(rendezvous_order(SERVERS, b"f\0%d" % number)[0] for number in range(3000))
    assert set(firsts) == set(SERVERS)
    assert min(firsts.values()) > 850


def test_a_server_that_goes_moves_only_the_keys_that_it_had() -> None:
    for number in range(100):
        key = b"f\0%d" % number
        everywhere = rendezvous_order(SERVERS, key)
        assert rendezvous_order([server for server in SERVERS if server != "b:4730"], key) == [
            server for server in everywhere if server != "b:4730"
        ]


@pytest.mark.parametrize(
    ("order", "key"),
    [
        (JobRequest("f", b"x"), None),
        (JobRequest("f", b"x", "k"), b"f\0k"),
        (JobRequest("f", b"x", "-"), b"f\0x"),  # the workload is the key
    ],
)
def test_the_key_of_an_order(order: JobRequest, key: bytes | None) -> None:
    assert order.key == key


# ------------------------------------------------------------------------------------------- a client


async def placed(client: Client, uniques: list[str]) -> list[str]:
    """The servers of background jobs with these uniques."""
    handles = [await client.submit_background("f", b"x", unique=unique) for unique in uniques]
    return [str(handle.server) for handle in handles]


@pytest.fixture(scope="module")
def three() -> Iterator[list[str]]:
    """The addresses of three servers in threads of this process."""
    with ExitStack() as stack:
        yield [stack.enter_context(JobServer(port=0)).address for _ in range(3)]


async def test_equal_uniques_meet_on_one_server_whichever_client_submits_them(three: list[str]) -> None:
    uniques = [f"k{number}" for number in range(30)]
    async with (
        Client(three, spread=True) as one,
        Client(three[::-1], spread=True) as other,
    ):
        places = await placed(one, uniques)
        assert places == await placed(other, uniques)
        assert set(places) == set(three)
        jobs = [await one.submit("f", b"x", unique=unique) for unique in uniques]
        assert [str(job.server) for job in jobs] == places
        outcomes = await other.submit_many([JobRequest("f", b"x", unique) for unique in uniques])
        assert [str(outcome.server) for outcome in outcomes if isinstance(outcome, JobHandle)] == places


async def test_jobs_without_a_unique_go_to_the_servers_in_turn(three: list[str]) -> None:
    async with Client(three, spread=True) as client:
        places = await placed(client, [""] * 6)
        assert places[:3] == places[3:]
        assert set(places) == set(three)
        outcomes = await client.submit_many([JobRequest("f", b"x")] * 6)
        counted = Counter(str(outcome.server) for outcome in outcomes if isinstance(outcome, JobHandle))
        assert counted == dict.fromkeys(three, 2)


async def test_without_spread_the_first_server_has_them_all(three: list[str]) -> None:
    async with Client(three, spread=False) as client:
        assert set(await placed(client, ["", "", "a", "b", "c"])) == {three[0]}


async def test_questions_go_to_the_first_server_also_when_submissions_are_spread() -> None:
    async with (
        ScriptedServer() as first,
        ScriptedServer() as second,
        Client([first.address, second.address], spread=True) as client,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(2):
            asked = Call(client.echo, b"x")
            tasks.start_soon(asked.run)
            peer = await first.accept()
            await peer.shake_hands()
            await peer.expect(EchoReq(b"x"))
            await peer.close()
            with pytest.raises(ConnectionLost):
                await asked.outcome()


async def test_a_server_that_is_away_is_replaced_by_the_next_of_the_key_and_used_when_it_is_back(
    three: list[str],
) -> None:
    uniques = [f"k{number}" for number in range(30)]
    port = free_port()
    away = f"127.0.0.1:{port}"
    addresses = [*three, away]
    wanted = [rendezvous_order(addresses, f"f\0{unique}".encode()) for unique in uniques]
    async with Client(addresses, spread=True, backoff=Backoff(first=0.001, most=0.001)) as client:
        reached = [next(server for server in order if server != away) for order in wanted]
        assert await placed(client, uniques) == reached
        with JobServer(port=port), anyio.fail_after(20):
            while await placed(client, uniques) != [order[0] for order in wanted]:
                pass


async def test_a_server_that_gives_no_answer_holds_up_only_its_own_submissions_and_once() -> None:
    async with (
        ScriptedServer() as silent,
        ScriptedServer(timeout=30) as alive,
        anyio.create_task_group() as tasks,
    ):
        servers = [silent.address, alive.address]
        own, others = (
            next(
                key
                for key in map(str, range(100))
                if rendezvous_order(servers, f"f\0{key}".encode())[0] == server
            )
            for server in servers
        )
        tasks.start_soon(acknowledge, alive)
        backoff = Backoff(first=0, most=0)
        async with Client(servers, spread=True, connect_timeout=2, backoff=backoff) as client:
            assert await placed(client, [others]) == [alive.address]
            held_up = Call(client.submit_background, "f", b"x", unique=own)
            tasks.start_soon(held_up.run)
            await silent.accept()
            for _ in range(100):
                assert await placed(client, [others]) == [alive.address]
            assert held_up.value is None  # all those, while one was waiting
            assert str((await held_up.outcome()).server) == alive.address
            # From now on it is tried beside, and nobody waits for it.
            assert await placed(client, [own]) == [alive.address]
            await silent.accept()
            tasks.cancel_scope.cancel()


async def acknowledge(server: ScriptedServer) -> None:
    """Be a server that takes jobs."""
    peer = await server.accept()
    await peer.shake_hands()
    while True:
        match await peer.receive():
            case SubmitJob() | SubmitJobBg():
                await peer.send(JobCreated(b"H:1"))
            case other:
                raise AssertionError(other)


# ------------------------------------------------------------------------------------ how it is asked for


def test_the_blocking_client_spreads_too(three: list[str]) -> None:
    with SyncClient(three, spread=True) as client:
        assert {str(client.submit_background("f", b"x").server) for _ in range(3)} == set(three)


def test_connect_configure_and_the_environment_ask_for_it(
    three: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def places() -> int:
        client = current_sync()
        return len({client.submit_background("f", b"x").server for _ in range(3)})

    try:
        configure(three)
        assert places() == 1
        with connect(spread=True):
            assert places() == 3
        configure(three, spread=True)
        assert places() == 3
        with connect(spread=False):
            assert places() == 1
        monkeypatch.setenv("GEARFLOW_SPREAD", "1")
        configure(three)
        assert places() == 3
        configure(three, spread=False)
        assert places() == 1
        monkeypatch.setenv("GEARFLOW_SPREAD", "maybe")
        with pytest.raises(ValueError, match="GEARFLOW_SPREAD: 'maybe' is neither 1 nor 0"):
            configure(three)
    finally:
        configure(None)


def test_the_shell_spreads(three: list[str]) -> None:
    servers = [part for address in three for part in ("-s", address)]
    command = [sys.executable, "-m", "gearflow_cli", "submit", "f", "-", "--raw", "--bg", "--unique", "k1"]
    with SyncClient(three, spread=True) as client:
        ours = client.submit_background("f", b"x", unique="k1")
    done = subprocess.run(
        [*command, "--spread", *servers[2:], *servers[:2]], input=b"x", capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == ours.handle
