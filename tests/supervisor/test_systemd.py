"""What systemd is told."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from gearflow.supervisor import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket on which systemd listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(5)
        yield listening


def environment_of(manager: socket.socket) -> dict[str, str]:
    return {"NOTIFY_SOCKET": manager.getsockname()}


def test_it_hears_how_the_service_is(manager: socket.socket) -> None:
    notifier = Notifier.of(environment_of(manager))
    notifier.ready()
    notifier.status("3 jobs run")
    notifier.stopping()
    assert [manager.recv(100) for _ in range(3)] == [b"READY=1", b"STATUS=3 jobs run", b"STOPPING=1"]


def test_a_reload_is_told_with_its_time(manager: socket.socket) -> None:
    before = time.monotonic_ns() // 1000
    Notifier.of(environment_of(manager)).reloading()
    state, moment = manager.recv(100).split(b"\n")
    assert state == b"RELOADING=1"
    assert before <= int(moment.removeprefix(b"MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_an_abstract_socket_is_found() -> None:
    name = f"gearflow-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        Notifier.of({"NOTIFY_SOCKET": f"@{name}"}).ready()
        listening.settimeout(5)
        assert listening.recv(100) == b"READY=1"


async def test_a_watchdog_hears_again_and_again_that_the_loop_runs(manager: socket.socket) -> None:
    notifier = Notifier.of(environment_of(manager) | {"WATCHDOG_USEC": "1000"})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(notifier.keep_alive)
        for _ in range(3):
            await anyio.wait_readable(manager)
            assert manager.recv(100) == b"WATCHDOG=1"
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    "more", [{}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "often"}]
)
async def test_there_is_no_watchdog_for_us(manager: socket.socket, more: dict[str, str]) -> None:
    notifier = Notifier.of(environment_of(manager) | more)
    with anyio.fail_after(20):
        await notifier.keep_alive()  # has nothing to do


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/no/such/socket"}])
def test_where_nobody_listens_nothing_happens(environment: dict[str, str]) -> None:
    Notifier.of(environment).ready()
