"""The supervisor with processes that only play workers. What signals do is seen with real ones: tests/cli."""

import logging
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from gearflow.errors import StartupFailed
from gearflow.supervisor import Supervisor
from gearflow.supervisor.process_manager import PINGS

PATIENCE = 20.0  # seconds
PROCESS = str(Path(__file__).parent / "process.py")


@pytest.fixture
def anyio_backend() -> str:
    """The loop of the command."""
    return "asyncio"


def command(*deeds: str) -> list[str]:
    return [sys.executable, "-S", "-E", PROCESS, *deeds]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  (of other processes there is no event)
        await anyio.sleep(0.01)


def numbers_in(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().splitlines()]


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("code", [0, 1, 69])
async def test_a_burst_is_over_when_all_processes_have_ended(code: int) -> None:
    with anyio.fail_after(PATIENCE):
        ended = await Supervisor(command("ready", f"exit={code}"), processes=2, burst=True).run()
    assert ended == code


async def test_why_processes_cannot_start_is_told_in_their_words() -> None:
    failed = '{"is": "failed", "reason": "no such module"}'
    with anyio.fail_after(PATIENCE), pytest.raises(StartupFailed, match=r"^no such module$"):
        await Supervisor(command(f"say={failed}", "exit=78"), processes=2).run()


async def test_one_that_says_nothing_is_told_by_its_exit_code() -> None:
    with anyio.fail_after(PATIENCE), pytest.raises(StartupFailed, match=r"^exit code 78$"):
        await Supervisor(command("exit=78")).run()


async def test_a_process_that_crashes_is_logged_with_its_signal_and_memory_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with anyio.fail_after(PATIENCE):
        code = await Supervisor(command("ready", f"once={tmp_path / 'mark'}", "exit=0"), burst=True).run()
    assert code == 1  # who knows what it was that crashed
    (record,) = (each for each in caplog.records if each.levelno >= logging.WARNING)
    assert record.message == "a worker process died; another one will start"
    assert vars(record)["exit"] == "SIGSEGV"
    assert re.fullmatch(r"\d+ MiB( at most)?", vars(record)["peak_rss"])


async def test_how_processes_end_is_known_though_children_were_ignored_before() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with anyio.fail_after(PATIENCE):
            assert await Supervisor(command("ready", "exit=69"), burst=True).run() == 69
    finally:
        signal.signal(signal.SIGCHLD, before)


async def test_what_a_process_leaves_behind_does_not_hold_up_its_end(
    tmp_path: Path,
) -> None:
    with anyio.fail_after(PATIENCE):
        code = await Supervisor(
            command(f"pid={tmp_path / 'pids'}", "ready", "fork", "exit=1"), burst=True, read_grace=0.05
        ).run()
    assert code == 1
    os.killpg(int((tmp_path / "pids").read_text()), signal.SIGKILL)


async def test_a_notice_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gearflow.supervisor")
    with anyio.fail_after(PATIENCE):
        await Supervisor(command("ready=serving shop.add", "exit=0"), processes=2, burst=True).run()
    assert caplog.messages.count("serving shop.add") == 1


async def test_a_supervisor_that_is_cancelled_leaves_no_process(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.touch()
    supervisor = Supervisor(command(f"pid={pids}", "stay"), processes=2)
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(supervisor.run)
            await until(lambda: len(numbers_in(pids)) == 2)
            tasks.cancel_scope.cancel()
    assert not any(map(is_there, numbers_in(pids)))


async def test_changes_are_taken_up_one_place_after_the_other(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.touch()
    send, changes = anyio.create_memory_object_stream[object](1)
    supervisor = Supervisor(command("ready", f"pid={pids}", "stay"), processes=2, changes=changes)

    with anyio.fail_after(PATIENCE), send, changes:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(supervisor.run)
            await until(lambda: len(numbers_in(pids)) == 2)
            first = numbers_in(pids)
            await send.send(None)
            await until(lambda: len(numbers_in(pids)) == 4 and not any(map(is_there, first)))
            assert all(map(is_there, numbers_in(pids)[2:]))
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize("state", ['say={"is": "launched"}', "ready"])
async def test_a_process_that_does_not_answer_is_killed_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, state: str
) -> None:
    pids = tmp_path / "pids"
    pids.touch()
    supervisor = Supervisor(command(state, f"pid={pids}", "stay"), watchdog=0.5)
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(supervisor.run)
            await until(lambda: len(numbers_in(pids)) == 2)
            tasks.cancel_scope.cancel()
    first = [record for record in caplog.records if vars(record).get("pid") == numbers_in(pids)[0]]
    assert [record.getMessage().partition(";")[0] for record in first] == [
        "a worker process does not answer",
        "the event loop of a worker process has been blocked for 0.5 s",
        "a worker process died",
    ]


async def test_a_process_that_answers_stays(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.touch()
    asked = tmp_path / "asked"
    asked.touch()
    supervisor = Supervisor(command("ready", f"pid={pids}", f"answer={asked}"), watchdog=2.0)
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(supervisor.run)
            await until(lambda: len(numbers_in(asked)) > 2 * PINGS)
            tasks.cancel_scope.cancel()
    assert len(numbers_in(pids)) == 1


async def test_a_supervisor_to_which_nothing_happens_does_nothing(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.touch()
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Supervisor(command("ready", f"pid={pids}", "stay")).run)
            await until(lambda: bool(numbers_in(pids)))
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
