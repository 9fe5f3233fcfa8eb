"""One look at each of several servers, and what is found out from two of them."""

import socket
from collections.abc import Callable

import anyio
import pytest

from gearflow.client import Client
from gearflow.client.operate import pause
from gearflow.errors import ConnectionLost, NoServer, UnsupportedByServer
from gearflow.observe import (
    FleetView,
    Patience,
    ServerView,
    ServerWatch,
    activity,
    cancel_job,
    examine,
    look,
    look_all,
    pause_function,
    purge_function,
    quiet_worker,
    targets,
)
from gearflow.protocol.packets import CanDo, GrabJob, JobAssign, WorkComplete
from gearflow.server import JobServer
from gearflow.testing.peer import ScriptedPeer
from tests.ports import free_port
from tests.relay import relayed


async def test_our_own_server_tells_all_that_it_knows(bundled: str, function: str) -> None:
    async with Client([bundled]) as client:
        await client.submit_background(function, b"")
        await pause(client, function)
        view = await look(client, bundled)
    assert (view.kind, view.error, view.answers) == ("gearflow", "", True)
    assert view.info is not None
    assert view.version == view.info.version
    assert view.limits is not None
    assert view.schedules == ()
    assert view.group is None
    assert view.faults == {}
    assert view.round_trip is not None
    shown = view.by_function[function]
    assert (shown.waiting, shown.running, shown.workers, shown.paused) == ((0, 1, 0), 0, 0, True)
    assert view.waits_for(shown) == "paused"


async def test_counts_and_rates_are_those_of_the_server(bundled: str, function: str) -> None:
    host, _, port = bundled.rpartition(":")
    async with Client([bundled]) as client, await ScriptedPeer.connect(host, int(port)) as worker:
        await worker.send(CanDo(function.encode()))
        before = await look(client, bundled)
        for _ in range(3):
            await client.submit_background(function, b"")
        await worker.send(GrabJob())
        assigned = await worker.receive()
        assert isinstance(assigned, JobAssign)
        await worker.send(WorkComplete(assigned.handle, b""), GrabJob())
        assert isinstance(await worker.receive(), JobAssign)
        after = await look(client, bundled)
    assert after.counted
    assert after.clock is not None
    assert abs(after.clock) < 20
    shown = after.by_function[function]
    assert (shown.submitted, shown.started, shown.succeeded, shown.running) == (3, 2, 1, 1)
    assert (shown.waiting, shown.workers, shown.slots, shown.free) == ((0, 1, 0), 1, 1, 0)
    assert shown.oldest is not None
    assert after.metrics is not None
    assert before.metrics is not None
    seconds = after.metrics.time - before.metrics.time
    found = activity(before, after)[function]
    assert found.submitted * seconds == pytest.approx(3)
    assert found.ended * seconds == pytest.approx(1)
    assert sum(found.run.counts) == 1
    assert sum(found.wait.counts) == 2
    (known,) = (each for each in after.workers if function in each.functions)
    assert [job.function for job in known.jobs] == [function]


async def test_gearmand_tells_functions_and_workers(gearmand: str, fresh: Callable[..., str]) -> None:
    function, idle = fresh(), fresh("idle")
    host, _, port = gearmand.rpartition(":")
    async with Client([gearmand]) as client, await ScriptedPeer.connect(host, int(port)) as worker:
        await worker.send(CanDo(function.encode()), CanDo(idle.encode()), GrabJob())
        await worker.receive()
        for _ in range(3):
            await client.submit_background(function, b"")
        await worker.send(GrabJob())
        assert isinstance(await worker.receive(), JobAssign)
        view = await look(client, gearmand)
        assert (view.kind, view.error, view.info, view.metrics, view.counted) == (
            "gearmand", "", None, None, False,
        )  # fmt: skip
        shown = view.by_function[function]
        assert (shown.waiting, shown.running, shown.workers) == ((0, 2, 0), 1, 1)
        assert view.waits_for(shown) == ""
        (offered,) = (each.functions for each in view.workers if function in each.functions)
        assert set(offered) == {function, idle}
        with pytest.raises(UnsupportedByServer):
            await pause_function(client, [view], function)
        with pytest.raises(UnsupportedByServer):
            await quiet_worker(client, view, "1")
        assert not await cancel_job(client, view, "H:nobody:1")


async def test_a_server_that_is_away_or_silent_holds_nobody_up(bundled: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as gone:
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in (silent, gone)]
        gone.close()
        async with Client([bundled]) as client:
            with anyio.fail_after(20):
                views = await look_all(client, [addresses[0], bundled, addresses[1]], timeout=1)
    assert [view.address for view in views] == [addresses[0], bundled, addresses[1]]
    assert [view.kind for view in views] == ["away", "gearflow", "away"]
    assert views[0].error == "no answer within 1 s"
    assert views[2].error == "connection refused"
    fleet = FleetView(tuple(views))
    assert fleet.away == (views[0], views[2])
    assert targets(views) == [views[1]]
    with pytest.raises(NoServer, match=f"{addresses[0]}: no answer within 1 s"):
        targets(views, addresses[0])
    with pytest.raises(NoServer, match=f"{addresses[1]}: connection refused"):
        targets(fleet.away)
    with pytest.raises(UnsupportedByServer, match="elsewhere:1 is none of the servers"):
        targets(views, "elsewhere:1")


def test_an_act_that_only_others_could_do_names_each_of_them() -> None:
    perl, gearmand = ServerView("perl:1", 0, kind="other"), ServerView("c:2", 0, kind="gearmand")
    away = ServerView("away:3", 0, error="connection refused")
    with pytest.raises(UnsupportedByServer) as refused:
        targets([perl, gearmand, away])
    only = "only gearflow's own server can do this"
    assert str(refused.value) == f"{only}, and perl:1, c:2 are not; away:3 does not answer"


async def test_a_server_that_hangs_holds_up_one_look_and_not_each(bundled: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        addresses = [f"127.0.0.1:{port}", bundled]
        async with Client([bundled], connect_timeout=60) as client:  # or that is what is said in the end
            watch = ServerWatch(addresses, timeout=1, short=0.05)
            with anyio.fail_after(20):  # half a minute if each look took a second
                for _ in range(30):
                    views = await watch.look(client, ())
                    assert [view.address for view in views] == addresses
                    assert [view.error for view in views] == ["no answer within 1 s", ""]
            silent.close()
            with JobServer(port=port), anyio.fail_after(20):
                while not (await watch.look(client, ()))[0].answers:  # noqa: ASYNC110  (it is polled)
                    await anyio.sleep(0.05)


async def test_since_when_a_server_is_away_is_known_until_it_is_back(bundled: str) -> None:
    with relayed(bundled) as relay:
        async with Client([bundled]) as client:
            watch = ServerWatch([relay.address], timeout=0.3, short=0.05)
            while not (await watch.look(client, ()))[0].answers:
                pass
            relay.hang()
            (first,) = await watch.look(client, ())
            (second,) = await watch.look(client, ())
            assert first.away_since == second.away_since == first.at
            relay.go_on()
            with anyio.fail_after(20):
                while (await watch.look(client, ()))[0].away_since is not None:  # noqa: ASYNC110  (it is polled)
                    await anyio.sleep(0.05)


async def test_a_server_that_may_be_far_away_has_the_whole_time_first(bundled: str) -> None:
    async with Client([bundled]) as client:
        watch = ServerWatch([bundled], timeout=20, patience=1e-6)
        assert (await watch.look(client))[0].answers


async def test_questions_share_the_time_of_a_page() -> None:
    patience = Patience(0.05)
    for _ in range(3):
        with anyio.fail_after(20), pytest.raises(ConnectionLost, match=r"a:1 gave no answer within 0.05 s"):
            await patience.ask("a:1", anyio.sleep_forever)

    async def answer() -> str:
        return "answer"

    assert await patience.ask("a:1", answer) == "answer"


async def test_a_server_that_hangs_under_a_checkup_is_said_to_hang(bundled: str) -> None:
    with relayed(bundled) as relay:
        async with Client([bundled]) as client:
            view = await look(client, relay.address)
            relay.hang()
            assert view.answers
            (checkup,) = await examine(client, [relay.address], 0.3)
            assert checkup.view.error == "no answer within 0.3 s"


async def test_a_server_is_seen_again_as_soon_as_it_is_back() -> None:
    port = free_port()
    address = f"127.0.0.1:{port}"
    async with Client([address]) as client:
        for _ in range(2):
            with JobServer(port=port):
                assert (await look(client, address)).answers
            assert not (await look(client, address)).answers


async def test_a_part_that_nobody_asked_for_is_missing(bundled: str) -> None:
    async with Client([bundled]) as client:
        view = await look(client, bundled, parts=["workers"])
    assert (view.limits, view.schedules, view.metrics) == (None, None, None)


async def test_acts_reach_the_servers_that_are_meant(bundled: str, gearmand: str, function: str) -> None:
    with JobServer(port=0) as other:
        async with Client([bundled]) as client:
            at = other.address
            on_other = Client([at])
            async with on_other:
                handle = await on_other.submit_background(function, b"")
                await on_other.submit_background(function, b"")
            views = await look_all(client, [bundled, gearmand, at])
            fleet = FleetView(tuple(views))
            assert fleet.of(function) == (views[2],)
            assert fleet.waits_for(function) == "no worker"
            assert await pause_function(client, views, function) == {bundled: 0, at: 2}
            assert await pause_function(client, views, function, False, server=at) == {at: 2}
            views = await look_all(client, [bundled, gearmand, at])
            assert [view.info is not None and function in view.info.paused for view in views] == [
                True, False, False,
            ]  # fmt: skip
            assert await cancel_job(client, views[2], str(handle))
            assert not await cancel_job(client, views[2], str(handle))
            assert await purge_function(client, views, function) == {bundled: 0, at: 1}
