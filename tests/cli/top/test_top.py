"""``gearflow top`` in a real terminal, on real servers."""

import fcntl
import os
import re
import signal
import sys
import termios
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

from gearflow import task
from gearflow.broker.calls import jobs
from gearflow.client import JobFailed, SubmitOptions, SyncClient
from gearflow.client.operate import dead_letters, server_info, workers
from gearflow.server import JobServer
from gearflow.worker import Worker
from gearflow_cli.top import terminal
from gearflow_cli.top.terminal import FullScreen
from tests.cli.shell import Shell, outcome
from tests.cli.top.person import KEYS, at_terminal
from tests.conftest import run_gearmand


@pytest.fixture
def server() -> Iterator[str]:
    with JobServer(port=0) as server:
        yield server.address


@pytest.fixture
def gearmand(program: Callable[[str], str], tmp_path: Path) -> Iterator[str]:
    """A C gearmand of the test's own. The screen has no room for the functions of all other tests."""
    with run_gearmand(program("gearmand"), tmp_path / "log") as address:
        yield address


@pytest.fixture
def client(server: str) -> Iterator[SyncClient]:
    with SyncClient([server]) as client:
        yield client


@contextmanager
def in_thread(function: Any, **options: Any) -> Generator[None]:
    """A worker, for the time of the block."""
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())
        worker = portal.call(lambda: Worker([function], drain=0, **options))
        stack.enter_context(portal.wrap_async_context_manager(worker))
        portal.call(worker.ready.wait)
        yield


def test_functions_are_shown_paused_and_resumed_with_a_key(server: str, client: SyncClient) -> None:
    for _ in range(12):
        client.submit_background("shop.mail", b"{}")
    client.submit_background("shop.images", b"{}")
    with at_terminal("top", "-s", server, "--every", "0.2s") as person:
        shown = person.see("shop.mail", "shop.images", "13 waiting")
        rows = [line for line in shown.splitlines() if "shop." in line]
        assert rows[0].startswith("> shop.mail ")  # the longest queue first
        assert rows[0].endswith("no worker")
        person.press("down", "p")
        person.see("paused shop.images; 1 job waiting", "> shop.images")
        assert client.run(server_info).paused == ("shop.images",)
        person.wait_for(lambda shown: bool(re.search("> shop.images .*paused", shown)))
        person.press("p")
        person.see("resumed shop.images")
        assert client.run(server_info).paused == ()
        person.press("q")
        assert person.end() == 0
        assert not person.glass.is_alternate
        assert person.glass.has_cursor


def test_the_jobs_of_a_function_are_opened_and_cancelled(server: str, client: SyncClient) -> None:
    handles = [client.submit_background("shop.mail", b'{"to": "ann"}') for _ in range(3)]
    other = client.submit_background("shop.images", b"{}")
    with at_terminal("top", "-s", server, "--every", "0.2s") as person:
        person.see("shop.mail")
        person.press("enter")
        shown = person.see(*(handle.handle for handle in handles), "of shop.mail")
        assert other.handle not in shown
        person.press("enter")
        person.see(f"Job {handles[0].handle}", "state", "waiting", '{"to": "ann"}')
        person.press("esc", "down", "c")
        person.see(f"Cancel job {handles[1].handle}? [y/N]")
        person.press("n")
        person.see("nothing was done")
        person.press("c", "y")
        person.see(f"cancelled {handles[1].handle}")
        person.wait_for(lambda shown: "1 to 2 of 2" in shown)
        assert client.info(handles[1]).state == "cancelled"
        person.press("esc")
        person.see(other.handle)


def test_a_filter_that_finds_little_shows_how_many_jobs_were_searched(
    server: str, client: SyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "LOOKS", 200)  # five times in a look
    for _ in range(1200):
        client.submit_background("shop.mail", b"{}")
    with at_terminal("top", "-s", server, "--every", "0.2s") as person:
        person.press("3", "/", *"needle", "enter")
        person.see("only 1,000 of 1,200 jobs searched")


def test_dead_letters_are_read_and_replayed_all_that_match(server: str, client: SyncClient) -> None:
    for number in range(3):
        for function in ("shop.mail", "shop.images"):
            handle = client.submit_background(
                function, b'{"order": %d}' % number, options=SubmitOptions(expires=0)
            )
            with pytest.raises(JobFailed):
                client.result(handle, 20)
    with at_terminal("top", "-s", server, "--every", "0.2s") as person:
        person.press("4")
        person.see("6 of 6", "Expired")
        person.press("enter")
        person.see("a dead letter", "payload", '{"order": 2}')
        person.press("esc", "/")
        person.see("/_")
        person.press(*'r": 2', "enter")
        person.see("2 of 2", "with 'r\": 2'")
        person.press("R")
        person.see("Replay 2 dead letters with 'r\": 2'? [y/N]")
        person.press("y")
        person.see("replayed 2 dead letters", "Nothing matches")
        assert len(client.run(dead_letters)) == 4
        person.press("esc")
        person.see("4 of 4")
        person.press("r")
        person.see("replayed H:", "3 of 3")
        person.press("x", "y")
        person.see("purged H:", "2 of 2")
        assert len(client.run(dead_letters)) == 2


def test_a_worker_is_shown_with_its_job_and_made_quiet(
    server: str, client: SyncClient, fresh: Callable[..., str]
) -> None:
    begun, go_on = Event(), Event()

    @task(name=fresh())
    def slow() -> None:
        begun.set()
        assert go_on.wait(20)

    with in_thread(slow, servers=[server], concurrency=3, client_id="host-1"):
        client.submit_background(slow.name, b"{}")
        assert begun.wait(20)
        with at_terminal("top", "-s", server, "--every", "0.2s", columns=120) as person:
            person.press("2")
            shown = person.see("host-1", "1/3", "running", slow.name)
            person.press("enter")
            person.see("Worker host-1", "1 of 3 busy", "runs", "H:")
            person.press("p")
            person.see("gets no more jobs, and ends 1 job")
            assert [worker.quiet for worker in client.run(workers)] == [True]
            person.wait_for(lambda shown: bool(re.search("state +quiet", shown)))
            go_on.set()
            person.see("0 of 3 busy")
            person.press("p")
            person.see("gets jobs again")
            person.press("esc")
            person.see("0/3", "idle")
            assert [worker.quiet for worker in client.run(workers)] == [False]
        assert max(map(len, shown.splitlines())) <= 120


def test_a_server_that_dies_and_returns_is_away_meanwhile(
    gearmand: str, fresh: Callable[..., str], free_ports: tuple[int, int]
) -> None:
    port, _ = free_ports
    function = fresh("legacy")
    with SyncClient([gearmand]) as client:
        client.submit_background(function, b"")
    with at_terminal("top", "-s", f"127.0.0.1:{port}", "-s", gearmand, "--every", "0.2s") as person:
        person.see(function, "1 away", f"127.0.0.1:{port} does not answer: connection refused")
        with JobServer(port=port) as server, SyncClient([server.address]) as client:
            client.submit_background("shop.mail", b"")
            person.see("shop.mail", function, without=["away"])
            person.press("5")
            person.see("gearmand (C)", "gearflow", "answers")
        person.see("1 away", "connection refused")
        with JobServer(port=port):
            person.see("answers", without=["away", "connection refused"])


def test_the_window_is_resized_and_the_program_stopped_and_continued(server: str, client: SyncClient) -> None:
    for number in range(40):
        client.submit_background(f"shop.f{number:02}", b"")
    with at_terminal("top", "-s", server) as person:
        shown = person.see("1 to 16 of 40", "shop.f15", "? help  q quit")
        assert len(person.glass.lines) == 24
        assert "OLDEST" in shown
        person.press("end")
        person.see("> shop.f39", "25 to 40 of 40")
        person.resize(46, 12)
        person.see("> shop.f39", "37 to 40 of 40", "? help", without=["shop.f20", "OLDEST"])
        assert len(person.glass.lines) == 12
        assert max(map(len, person.glass.lines)) <= 46
        person.resize(120, 40)
        person.see("> shop.f39", "9 to 40 of 40", "WORKERS", "? help")
        person.stop()
        person.wait_for(lambda _: not person.glass.is_alternate)
        assert person.is_line_by_line
        person.signal(signal.SIGCONT)
        person.wait_for(lambda shown: person.glass.is_alternate and "> shop.f39" in shown)
        person.signal(signal.SIGTERM)
        assert person.end() == 0
        assert not person.glass.is_alternate


def test_colours_only_where_they_are_wanted(server: str, client: SyncClient) -> None:
    for function in ("shop.images", "shop.mail"):
        client.submit_background(function, b"")
    for wanted, is_coloured in (("", True), ("1", False)):
        with at_terminal("top", "-s", server, NO_COLOR=wanted) as person:
            person.see("> shop.images", "shop.mail ", "no worker", "? help")
            assert bool(person.glass.colours) is is_coloured


def test_a_terminal_that_cannot_move_its_cursor_gets_a_table_once(
    server: str, client: SyncClient, tmp_path: Path
) -> None:
    client.submit_background("shop.mail", b"")
    with at_terminal("top", "-s", server, TERM="dumb") as person:
        assert person.end() == 0
        assert "shop.mail" in person.glass.text
        assert not person.glass.colours
    code, stdout, stderr = outcome(Shell(tmp_path).run("top", "-s", server))
    assert (code, stderr) == (0, "")
    header, row = stdout.splitlines()
    assert header.split()[:2] == ["function", "waiting"]
    assert row.split()[:2] == ["shop.mail", "1"]


def test_keys_can_be_looked_up_and_a_function_purged(server: str, client: SyncClient) -> None:
    for _ in range(3):
        client.submit_background("shop.mail", b"")
    with at_terminal("top", "-s", server, "--every", "0.2s") as person:
        person.see("shop.mail")
        person.press("?")
        person.see("page down", "any key back")
        person.press("q")
        person.see("> shop.mail")
        person.press("x")
        person.see("Cancel the 3 waiting jobs of shop.mail? [y/N]")
        person.press("y")
        person.see("cancelled 3 jobs of shop.mail", "0 waiting")


def test_the_terminal_is_as_before_after_an_interrupt(server: str) -> None:
    with at_terminal("top", "-s", server) as person:
        person.see("No function is known here")
        assert not person.is_line_by_line
        person.press("\x03")
        assert person.end() == 130
        assert person.is_line_by_line
        assert not person.glass.is_alternate
        assert person.glass.has_cursor


def test_what_comes_from_elsewhere_cannot_steer_the_terminal(server: str, client: SyncClient) -> None:
    client.submit_background("evil\x1b[31m\x1b]0;title\x07\u202e", b"")
    with at_terminal("top", "-s", server, columns=140) as person:
        shown = person.see("evil")
        assert "\\x1b[31m" in shown
        person.press("enter")
        person.see("evil", "H:")
        person.press("enter")
        assert "\\x1b" in person.see("function", "state")


@pytest.mark.parametrize("name", ["down", "page down"])
async def test_a_key_that_comes_in_pieces_is_one_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a pipe, unlike a terminal, it is known whether the program has read a piece."""
    monkeypatch.setattr(terminal, "_REST", 60.0)  # the machine may be busy
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as stdin, os.fdopen(writer, "wb", 0) as typed:
        monkeypatch.setattr("sys.stdin", stdin)
        screen = FullScreen()
        found: list[str] = []

        async def take() -> None:
            found.extend(await screen.keys())

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(take)
                for piece in KEYS[name]:
                    assert found == []
                    typed.write(piece.encode())
                    while unread(reader):  # noqa: ASYNC110  (a pipe has no event)
                        await anyio.sleep(0.001)
        assert found == [name]


def unread(pipe: int) -> int:
    """Bytes that are in it."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_a_letter_that_comes_in_pieces_is_one_letter(server: str, client: SyncClient) -> None:
    client.submit_background("shop.a", b"")
    with at_terminal("top", "-s", server, "--every", "0.2s") as person:
        person.see("> shop.a", "? help")
        person.press("/")
        person.see("/_")
        person.write("\u00e9".encode()[:1], "\u00e9".encode()[1:])
        person.see("/\u00e9_")
        person.press("esc")
        person.see("? help", "> shop.a", without=["/\u00e9"])


def test_a_pasted_text_is_no_keys(server: str, client: SyncClient) -> None:
    client.submit_background("shop.mail", b"{}")
    client.submit_background("shop.images", b"{}")
    with at_terminal("top", "-s", server, "--every", "0.2s") as person:
        person.see("shop.mail", "shop.images")
        person.paste("p\nxy\nqq\n" * 1_200)  # 10 KB that would pause, purge and quit
        person.see("a pasted text is no keys", "2 waiting")
        person.press("x")
        person.see("[y/N]")
        person.paste("y\n")
        person.press("n")
        person.see("nothing was done")
        person.press("/")
        person.paste("  shop.mail\np\nq\n")
        person.see("/shop.mail", "2 waiting", without=["shop.images"])
        person.press("enter", "q")
        assert person.end() == 0
        assert not person.glass.marks_pasted
    assert client.run(server_info).paused == ()
