"""Questions by the text protocol, to real servers and to one that misbehaves."""

from collections.abc import Callable

import anyio
import pytest

from gearflow.client import Admin, Client, SyncAdmin
from gearflow.errors import ConnectionLost, LocalProtocolError, NoServer, ServerError
from gearflow.testing.peer import ScriptedServer
from tests.client.conftest import Working


async def test_a_server_tells_its_version_and_process(any_server: str) -> None:
    admin = Admin(any_server)
    assert await admin.version()
    assert await admin.pid() > 0


async def test_functions_and_workers_are_listed(any_server: str, function: str, working: Working) -> None:
    admin = Admin(any_server)
    async with Client([any_server]) as client:
        await client.submit_background(function, b"x")
        (row,) = [row for row in await admin.status() if row.name == function.encode()]
        assert (row.total, row.running, row.workers) == (1, 0, 0)
        (priorities,) = [row for row in await admin.priority_status() if row.name == function.encode()]
        assert (priorities.high, priorities.normal, priorities.low) == (0, 1, 0)
    async with working(any_server, function, lambda _: []):
        with anyio.fail_after(20):
            while not any(function.encode() in row.functions for row in await admin.workers()):
                pass


async def test_jobs_are_listed_and_can_be_cancelled(any_server: str, function: str) -> None:
    admin = Admin(any_server)
    async with Client([any_server]) as client:
        handle = await client.submit_background(function, b"x")
        assert handle.handle.encode() in {job.handle for job in await admin.jobs()}
        await admin.cancel_job(handle.handle)


async def test_functions_are_made_and_dropped(any_server: str, function: str) -> None:
    admin = Admin(any_server)
    await admin.create_function(function)
    assert function.encode() in {row.name for row in await admin.status()}
    await admin.drop_function(function)
    assert function.encode() not in {row.name for row in await admin.status()}
    with pytest.raises(ServerError):
        await admin.drop_function(function)


async def test_a_name_that_cannot_be_said_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="contains blanks"):
        await Admin("127.0.0.1:1").create_function("two words")


async def test_no_server_is_an_error_that_says_why() -> None:
    with pytest.raises(NoServer, match=r"127\.0\.0\.1:1: connection refused"):
        await Admin("127.0.0.1:1").status()


async def test_a_silent_server_and_one_that_hangs_up_are_told_apart() -> None:
    async with ScriptedServer() as server:
        with pytest.raises(TimeoutError, match=r"did not answer 'status' within 0\.02 s"):
            await Admin(server.address, timeout=0.02).status()
        await (await server.accept()).close()
        async with anyio.create_task_group() as tasks:

            async def hang_up() -> None:
                peer = await server.accept()
                await peer.expect(b"workers")
                await peer.send(b"1 127.0.0.1 - :\n")
                await peer.close()

            tasks.start_soon(hang_up)
            with pytest.raises(ConnectionLost, match="instead of answering 'workers'"):
                await Admin(server.address).workers()


@pytest.mark.parametrize(
    ("answer", "names"), [(b".\n", []), (b"ERR x\t1\t0\t0\n.\n", [b"ERR x"]), (b"f\t1\t0\t0\n.\n", [b"f"])]
)
async def test_a_table_ends_with_its_dot_wherever_it_is_cut(answer: bytes, names: list[bytes]) -> None:
    async with ScriptedServer() as server, anyio.create_task_group() as tasks:

        async def answer_slowly() -> None:
            peer = await server.accept()
            await peer.expect(b"status")
            await peer.send(answer, piece=1)

        tasks.start_soon(answer_slowly)
        assert [row.name for row in await Admin(server.address).status()] == names


async def test_a_refused_table_is_an_error() -> None:
    async with ScriptedServer() as server, anyio.create_task_group() as tasks:

        async def refuse() -> None:
            peer = await server.accept()
            await peer.expect(b"show jobs")
            await peer.send(b"ERR unknown_command Unknown+server+command\r\n")

        tasks.start_soon(refuse)
        with pytest.raises(ServerError, match="unknown_command"):
            await Admin(server.address).jobs()


def test_the_blocking_face_asks_the_same(any_server: str, fresh: Callable[..., str]) -> None:
    admin, function = SyncAdmin(any_server), fresh()
    assert admin.version()
    assert admin.pid()
    admin.create_function(function)
    admin.max_queue(function, 7)
    admin.max_queue(function, None)
    assert function.encode() in {row.name for row in admin.status()}
    assert function.encode() in {row.name for row in admin.priority_status()}
    admin.drop_function(function)
    assert admin.workers() is not None
    assert isinstance(admin.jobs(), list)
    with pytest.raises(ServerError):
        admin.cancel_job("H:nobody:1")
