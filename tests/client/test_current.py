"""Whose client is used where none is named. Event loops are started by the tests themselves here."""

import gc
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import anyio
import anyio.abc
import anyio.to_thread
import pytest

from gearflow.client import Client, ServerAddress, SyncClient, configure, connect
from gearflow.client.current import Connect, current, current_sync, forbid_running_loop
from gearflow.errors import ConnectionLost, NoServer

NOWHERE = "127.0.0.1:1"

BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@pytest.fixture(autouse=True)
def not_configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("GEARMAN_SERVERS", raising=False)
    yield
    configure(None)


def servers(client: Client | SyncClient) -> list[str]:
    return [str(server) for server in client.servers]


@BACKENDS
def test_the_innermost_connect_is_current(backend: str) -> None:
    async def main() -> None:
        async with connect("outer") as outer:
            assert await current() is outer
            async with connect("inner:1", "inner:2") as inner:
                assert await current() is inner
                assert servers(inner) == ["inner:1", "inner:2"]
            assert await current() is outer
        assert await current() is not outer

    anyio.run(main, backend=backend)


@BACKENDS
def test_without_connect_a_loop_has_one_client_which_is_closed_with_it(backend: str, any_server: str) -> None:
    configure([any_server])
    found: list[Client] = []

    async def call() -> None:
        client = await current()
        assert await client.echo(b"x") == b"x"
        found.append(client)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(call)

    anyio.run(main, backend=backend)
    assert len(set(found)) == 1
    anyio.run(main, backend=backend)
    assert len(set(found)) == 2  # a second loop has its own
    gc.collect()  # what was not closed would warn here

    async def use(client: Client) -> None:
        with pytest.raises(ConnectionLost, match="the client is closed"):
            await client.echo(b"")

    anyio.run(use, found[0], backend=backend)


@BACKENDS
def test_a_loops_client_outlives_the_task_that_asked_first(backend: str, any_server: str) -> None:
    configure(any_server)

    async def main() -> None:
        found: list[Client] = []

        async def ask_and_end() -> None:
            found.append(await current())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask_and_end)
        assert found == [await current()]
        assert await found[0].echo(b"x") == b"x"

    anyio.run(main, backend=backend)


@BACKENDS
def test_a_client_in_use_ends_quietly_with_its_loop(backend: str, any_server: str, function: str) -> None:
    """In a process of its own: what Python says at exit counts too."""
    script = f"""
        import anyio
        from gearflow.client import configure
        from gearflow.client.current import current
        configure({any_server!r})
        async def main():
            job = await (await current()).submit({function!r}, b"x")
            print(job.done)
        for _ in range(2):
            anyio.run(main, backend={backend!r})
    """
    assert run_script(script) == "False\nFalse\n"


@BACKENDS
def test_a_changed_configuration_gives_another_client(backend: str) -> None:
    async def main() -> None:
        configure("a")
        before = await current()
        configure("b")
        after = await current()
        assert (servers(before), servers(after)) == (["a:4730"], ["b:4730"])

    anyio.run(main, backend=backend)


def test_the_environment_is_the_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEARMAN_SERVERS", "c,d:1")

    async def main() -> list[str]:
        return servers(await current())

    assert anyio.run(main) == ["c:4730", "d:1"]
    configure(["a"])
    assert anyio.run(main) == ["a:4730"]


@BACKENDS
def test_a_connect_can_be_carried_into_a_thread_and_into_another_loop(backend: str) -> None:
    def in_a_thread() -> tuple[SyncClient, Client]:
        return current_sync(), anyio.run(current)

    async def main() -> None:
        async with connect("x") as here:
            in_the_thread, in_its_loop = await anyio.to_thread.run_sync(in_a_thread)
            assert servers(in_the_thread) == ["x:4730"]
            assert servers(in_its_loop) == ["x:4730"]
            assert in_its_loop is not here

    anyio.run(main, backend=backend)


def test_sync_code_shares_one_client_for_each_list_of_servers() -> None:
    configure("a")
    first = current_sync()
    found: list[SyncClient] = []
    threads = [threading.Thread(target=lambda: found.append(current_sync())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {first}
    configure("b")
    assert current_sync() is not first
    configure("a")
    assert current_sync() is first


def test_the_innermost_sync_connect_is_current(any_server: str) -> None:
    with connect(any_server) as outer:
        assert current_sync() is outer
        assert outer.echo(b"x") == b"x"
        with connect("y") as inner:
            assert current_sync() is inner
        assert current_sync() is outer

        async def main() -> list[str]:
            return servers(await current())

        assert anyio.run(main) == [any_server]  # the servers hold in an event loop too
    assert current_sync() is not outer


def test_a_thread_beyond_a_connect_is_told_why_it_finds_no_server(
    bundled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEARMAN_SERVERS", NOWHERE)
    with connect(bundled), ThreadPoolExecutor(1) as threads, pytest.raises(NoServer) as caught:
        threads.submit(lambda: current_sync().submit_background("f", b"")).result()
    assert f"a connect() block to {bundled} is open" in str(caught.value)
    assert str(caught.value).endswith(f"gearflow.configure({bundled!r}) holds everywhere")
    with pytest.raises(NoServer, match="is one running"):
        current_sync().echo(b"")


@BACKENDS
def test_a_task_beyond_a_connect_is_told_why_it_finds_no_server(
    backend: str, bundled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEARMAN_SERVERS", NOWHERE)

    async def lifespan(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with connect(bundled):
            task_status.started()
            await anyio.sleep_forever()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            await tasks.start(lifespan)
            with pytest.raises(NoServer, match=rf"a connect\(\) block to {bundled} is open"):
                await (await current()).echo(b"")
            tasks.cancel_scope.cancel()

    anyio.run(main, backend=backend)


def test_who_has_configured_his_servers_is_not_told_of_connect(bundled: str) -> None:
    configure(NOWHERE)
    with connect(bundled), ThreadPoolExecutor(1) as threads, pytest.raises(NoServer, match="is one running"):
        threads.submit(lambda: current_sync().echo(b"")).result()


def test_a_connect_without_servers_takes_the_configured_ones() -> None:
    configure("z:7")
    with connect() as client:
        assert client.servers == (ServerAddress("z", 7),)


@BACKENDS
def test_a_blocking_call_in_a_running_loop_names_its_twin(backend: str) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"would block it; use 'await resize\.acall\(\.\.\.\)'"):
            forbid_running_loop("resize.acall")
        with pytest.raises(RuntimeError, match="use 'async with connect"):
            connect("x").__enter__()
        await anyio.to_thread.run_sync(forbid_running_loop, "resize.acall")  # no loop in that thread

    anyio.run(main, backend=backend)
    forbid_running_loop("resize.acall")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_gets_a_client_of_its_own(any_server: str) -> None:
    script = f"""
        import os, sys
        from gearflow.client import configure, connect
        from gearflow.client.current import current_sync
        configure({any_server!r})
        shared = current_sync()
        assert shared.echo(b"parent") == b"parent"
        with connect({any_server!r}) as scoped:
            child = os.fork()
            if child == 0:
                assert current_sync() not in (shared, scoped)
                assert current_sync().echo(b"child") == b"child"
                os._exit(0)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            assert current_sync() is scoped
        assert current_sync().echo(b"parent") == b"parent"
    """
    assert run_script(script, "-W", "ignore::DeprecationWarning") == "0\n"


def test_a_module_that_only_imports_it_starts_no_thread() -> None:
    assert run_script("import threading, gearflow.client.current; print(threading.active_count())") == "1\n"
    assert isinstance(connect("x"), Connect)


def run_script(script: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", *options, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    said = re.sub(r"^Executing <.* took .* seconds\n", "", done.stderr, flags=re.MULTILINE)  # a busy machine
    assert (said, done.returncode) == ("", 0)
    return done.stdout
