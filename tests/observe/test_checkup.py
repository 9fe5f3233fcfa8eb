"""What a checkup finds out about real servers."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gearflow.client import TLS, Client
from gearflow.client.job import JobFailed
from gearflow.client.operate import policies
from gearflow.observe import examine, findings_of
from gearflow.protocol.limits import Policy, PolicyRequest
from gearflow.protocol.packets import CanDo, CantDo, EchoReq, SetClientId
from gearflow.protocol.rights import Right
from gearflow.protocol.server_calls import RetryPlan
from gearflow.security.tokens import token_line
from gearflow.server import JobServer
from gearflow.testing.peer import ScriptedPeer
from tests.authority import Authority

TIMEOUT = 20.0


async def test_a_durable_server_tells_its_disk_and_what_it_keeps(tmp_path: Path) -> None:
    with JobServer(port=0, data=tmp_path) as server:
        async with Client([server.address]) as client:
            for size in (10, 20):
                await client.submit_background("work", b"x" * size)
            policy = Policy(retries=RetryPlan(delays=(1.0,)))
            await policies(client, PolicyRequest(action="set", function="work", policy=policy))
            (checkup,) = await examine(client, [server.address], TIMEOUT)
    assert checkup.view.metrics is not None
    store = checkup.view.metrics.store
    assert store is not None
    assert (store.sync, store.damaged) == ("batch", 0)
    assert store.size is not None
    assert store.free is not None
    assert store.room is not None
    assert store.size > 0
    assert store.free <= store.room
    assert checkup.payloads == {"work": [10, 20]}
    assert checkup.retried == {"work"}
    assert (checkup.encrypted, checkup.certificate) == (False, None)


async def test_a_fetched_result_counts(tmp_path: Path) -> None:
    with JobServer(port=0) as server:
        async with Client([server.address]) as client:
            handle = await client.submit_background("work", b"x")
            await client.cancel(handle)
            with pytest.raises(JobFailed):
                await client.result(handle)
            (checkup,) = await examine(client, [server.address], TIMEOUT)
    assert checkup.view.metrics is not None
    assert checkup.view.metrics.fetched == 1


async def test_a_worker_without_functions_is_found_on_every_server(
    any_server: str, fresh: Callable[..., str]
) -> None:
    name, function = fresh("worker"), fresh()
    host, _, port = any_server.rpartition(":")
    async with Client([any_server]) as client, await ScriptedPeer.connect(host, int(port)) as worker:
        await worker.send(SetClientId(name.encode()), CanDo(function.encode()), EchoReq(b"x"))
        await worker.receive()
        assert name not in (await examine(client, [any_server], TIMEOUT))[0].idle
        await worker.send(CantDo(function.encode()), EchoReq(b"x"))
        await worker.receive()
        assert name in (await examine(client, [any_server], TIMEOUT))[0].idle


async def test_the_expiry_of_a_certificate_is_seen(authority: Authority) -> None:
    with JobServer(port=0, tls_cert=authority.server) as server:
        async with Client([server.address], tls=TLS(ca=authority.ca)) as client:
            (checkup,) = await examine(client, [server.address], TIMEOUT)
    assert checkup.encrypted
    assert checkup.certificate is not None
    assert checkup.certificate > time.time()


@pytest.mark.usefixtures("healthy")
async def test_a_token_with_the_right_view_is_enough_and_others_are_told(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    tokens = {"a token that may look": Right.VIEW, "a token that may submit": Right.SUBMIT}
    file.write_text("\n".join(token_line(token, right) for token, right in tokens.items()))
    with JobServer(port=0, token_file=file) as server:
        found: list[set[str]] = []
        for token in tokens:
            async with Client([server.address], token=token) as client:
                findings = findings_of(await examine(client, [server.address], TIMEOUT))
            found.append({finding.check for finding in findings})
            assert all("right view" in each.remedy for each in findings if each.check == "rights")
    assert found == [{"promises"}, {"promises", "rights"}]
