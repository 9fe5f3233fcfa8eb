"""The blocking faces."""

import inspect
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import anyio
import pytest

from gearflow.client import Admin, Client, ClientJob, SyncAdmin, SyncClient, SyncJob
from gearflow.client.schedules import ClientSchedules, SyncSchedules
from gearflow.errors import ConnectionLost, NoServer
from gearflow.protocol import server_calls
from gearflow.protocol.packets import WorkData

FOR_THE_CONNECTION = {"add_event", "complete", "fail", "fail_remotely", "lose", "move", "wake_at_end"}
FOR_THE_CLIENT = {"forget_callback", "outcome", "take_events", "wait", "wait_for_news", "wake"}
ONLY_ASYNC = {"start_soon", "attach_many", "send_many"}  # what they start lives in the client's loop
ONLY_BLOCKING = {"run"}  # the way from one face to the other


NAMES = {**vars(server_calls), "Client": Client, "SyncClient": SyncClient}
"""Of annotations that are not imported where they are."""


def methods(face: type[Any]) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(member, eval_str=True, locals=NAMES)
        for name, member in vars(face).items()
        if inspect.isfunction(member) and (name == "__init__" or not name.startswith("_"))
    }


@pytest.mark.parametrize(
    ("face", "twin"),
    [
        (Client, SyncClient),
        (Admin, SyncAdmin),
        (ClientJob, SyncJob),
        (ClientSchedules, SyncSchedules),
    ],
    ids=lambda face: face.__name__,
)
def test_both_faces_take_the_same_parameters(face: type[Any], twin: type[Any]) -> None:
    ours, theirs = methods(face), methods(twin)
    if face in (ClientJob, ClientSchedules):
        del ours["__init__"], theirs["__init__"]
    assert theirs.keys() - ONLY_BLOCKING == ours.keys() - ONLY_ASYNC - FOR_THE_CONNECTION - FOR_THE_CLIENT
    for name in theirs.keys() & ours.keys():
        assert theirs[name].parameters == ours[name].parameters, name


def test_a_blocking_call_gets_its_result(reverser: tuple[str, str]) -> None:
    server, function = reverser
    with SyncClient([server]) as client:
        assert client.echo(b"hello") == b"hello"
        job = client.submit(function, b"abc")
        assert job.result(10).strip() == b"cba"
        assert job.done
        assert str(job.server) == server
        assert job.function == function
        assert job.handle in repr(job)
        assert all(isinstance(event, WorkData) for event in job.events())
        assert not client.status(job.handle).known
        assert [str(address) for address in client.servers] == [server]


def test_what_takes_many_calls_can_take_one_turn_of_the_threads(any_server: str) -> None:
    async def twice(client: Client) -> bytes:
        return await client.echo(b"a") + await client.echo(b"b")

    with SyncClient([any_server]) as client:
        assert client.run(twice) == b"ab"


def test_many_threads_share_one_client(reverser: tuple[str, str]) -> None:
    server, function = reverser
    with SyncClient([server]) as client, ThreadPoolExecutor(8) as threads:

        def call(n: int) -> bytes:
            return client.submit(function, b"%03d" % n).result(20).strip()

        assert list(threads.map(call, range(100))) == [b"%03d" % n for n in map(_reversed, range(100))]


def _reversed(n: int) -> int:
    return int(f"{n:03d}"[::-1])


def test_a_background_job_and_its_status(any_server: str, function: str, fresh: Callable[..., str]) -> None:
    unique = fresh()
    with SyncClient([any_server]) as client:
        handle = client.submit_background(function, b"x", unique=unique)
        assert client.status(handle).known
        assert client.status_by_unique(unique).known
        assert client.features() == client.features(any_server)


def test_waiting_too_long_and_cancelling(any_server: str, function: str) -> None:
    ended: list[ClientJob] = []
    with SyncClient([any_server]) as client:
        job = client.submit(function, b"x")
        job.add_done_callback(ended.append)
        with pytest.raises(TimeoutError, match="it runs on"):
            job.result(0.01)
        assert job.cancel()
        assert [job.handle for job in ended] == [job.handle]
        with pytest.raises(CancelledError, match=r"unless others wait for it|the job may run on"):
            job.result()


def test_leaving_the_block_ends_a_call_in_another_thread(any_server: str, function: str) -> None:
    with ThreadPoolExecutor(1) as threads:
        with SyncClient([any_server]) as client:
            job = client.submit(function, b"x")
            waits = threads.submit(job.result)
        with pytest.raises(ConnectionLost):
            waits.result(10)
    with pytest.raises(ConnectionLost, match="the client is closed"):
        client.echo(b"")


def test_a_client_that_was_not_entered_says_so() -> None:
    with pytest.raises(RuntimeError, match="with SyncClient"):
        SyncClient(["127.0.0.1:1"]).echo(b"")


def test_a_blocking_call_in_the_clients_own_thread_is_an_error(any_server: str, function: str) -> None:
    errors: list[Exception] = []
    with SyncClient([any_server]) as client:

        def call(_: ClientJob) -> None:
            try:
                client.echo(b"")
            except RuntimeError as error:
                errors.append(error)

        job = client.submit(function, b"x")
        job.add_done_callback(call)
        job.cancel()
        assert "would wait for itself" in str(errors[0])


def test_leaving_does_not_wait_for_ever_for_what_runs_in_the_client() -> None:
    with ThreadPoolExecutor(1) as threads:
        with SyncClient(["127.0.0.1:1"]) as client:
            begun = threading.Event()

            async def sleep(_: Client) -> None:
                begun.set()
                await anyio.sleep_forever()

            call = threads.submit(client.run, sleep)
            assert begun.wait(5)
        with pytest.raises(CancelledError):
            call.result(5)


def test_a_failing_call_leaves_the_client_usable(any_server: str) -> None:
    with SyncClient([any_server]) as client:
        with pytest.raises(NoServer):
            client.features("127.0.0.1:1")
        assert client.echo(b"x") == b"x"


def test_no_thread_is_left_behind(any_server: str) -> None:
    before = threading.active_count()
    with SyncClient([any_server]) as client:
        client.echo(b"")
        assert threading.active_count() > before
    assert threading.active_count() == before


INTERRUPTED = """
import asyncio, os, signal, sys, threading
import anyio
from gearflow.client import SyncClient

def where_the_main_thread_is():
    frame, names = sys._current_frames()[threading.main_thread().ident], []
    while frame is not None:
        names.append(frame.f_code.co_qualname)
        frame = frame.f_back
    return names

async def interrupt_the_wait():
    while (names := where_the_main_thread_is())[0] != "_Call.wait" or "SyncJob.result" not in names:
        await anyio.sleep(0)
    match sys.argv[3]:
        case "waiting":
            os.kill(os.getpid(), signal.SIGINT)
        case "not yet waiting":  # the same as if it does not wake the main thread
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)

async def tasks(client):
    await anyio.wait_all_tasks_blocked()  # those that have had their say are gone then
    return len(asyncio.all_tasks())

async def begin(client):
    client.start_soon(interrupt_the_wait)

with SyncClient([sys.argv[1]]) as client:
    job = client.submit(sys.argv[2], b"x")
    before = client.run(tasks)
    client.run(begin)
    try:
        job.result()
    except KeyboardInterrupt:
        print("interrupted", client.echo(b"usable").decode(), client.run(tasks) - before)
"""


@pytest.mark.parametrize("thread_is", ["waiting", "not yet waiting"])
def test_ctrl_c_ends_a_waiting_call_on_both_sides(any_server: str, function: str, thread_is: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", INTERRUPTED, any_server, function, thread_is],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("interrupted usable 0\n", "", 0)


FORKED = """
import gc, os, sys
from gearflow.client import SyncClient
with SyncClient([sys.argv[1]]) as client:
    client.echo(b"")
    forgotten = SyncClient([sys.argv[1]])
    forgotten.__enter__()
    child = os.fork()
    if child == 0:
        del forgotten
        gc.collect()
        try:
            client.echo(b"")
        except RuntimeError as error:
            print(error, flush=True)
        sys.exit(7)  # through the block's end
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), client.echo(b"parent").decode())
"""


CLOSED = """
import sys
from gearflow.client import SyncClient
with SyncClient(sys.argv[1]) as client:
    print(client.echo(b"7"), flush=True)
print("left")
"""


def test_a_closed_standard_input_does_not_abort_the_program(bundled: str) -> None:
    shell = 'exec "$0" -c "$1" "$2" <&-'
    done = subprocess.run(
        ["/bin/sh", "-c", shell, sys.executable, CLOSED, bundled],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("b'7'\nleft\n", "", 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_neither_uses_nor_closes_the_parents_client(any_server: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED, any_server],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.stdout == "the client was opened before a fork; open one in the child\n7 parent\n"
    assert (done.stderr, done.returncode) == ("", 0)
