"""``gearflow worker --processes`` and ``--reload``: several real processes, as an operator sees them."""

import os
import re
import signal
import socket
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import anyio
import pytest
import typer

from gearflow.client import JobFailed, SyncClient, SyncJob
from gearflow.server import JobServer
from gearflow.supervisor import Launched, Ping, Pong, Ready
from gearflow.supervisor.worker_process import WorkerProcess
from gearflow_cli.options import memory
from gearflow_cli.process.supervise import processes
from tests.cli.shell import COMMAND, Running, Shell

PATIENCE: Final = 20.0  # seconds

OLD_TAKES_NOTHING: Final = "stopping; finishing what runs"
"""Said by a process that is replaced, perhaps a moment after the other one has taken its place."""

TASKS = '''
import asyncio
import itertools
import mmap
import os
import sys
import time
from pathlib import Path

from gearflow import task


@task
def version() -> int:
    return 1


@task
def pid() -> int:
    return os.getpid()


@task
async def until(path: Path) -> int:
    """Ends when there is a file of that name."""
    sys.stderr.write("a job runs\\n")  # in one piece, beside other processes
    while not path.exists():
        await asyncio.sleep(0.01)  # the test is in another process, and a file wakes nobody
    return os.getpid()


@task
async def block_once(path: Path) -> int:
    """Blocks the event loop for ever, but only the first time."""
    if not path.exists():
        path.touch()
        sys.stderr.write("a job runs\\n")  # in one piece, beside other processes
        time.sleep(10**6)
    return os.getpid()


@task
def hold() -> int:
    """Computes in C, and never lets go of the interpreter lock."""
    sys.stderr.write("a job runs\\n")  # in one piece, beside other processes
    return sum(range(10**15))


@task
def hold_until_told(path: Path) -> int:
    """Computes in C, and lets go of the interpreter lock once the byte in the file is not 0."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 1) as told:
        sys.stderr.write("a job runs\\n")
        next(filter(None, map(told.__getitem__, itertools.repeat(0))))
    return os.getpid()
'''


BLOCKS_FOR_EVER = """
@task
async def block_for_ever() -> None:
    time.sleep(10**6)
"""

SLOW_IMPORT = """
sys.stderr.write("importing\\n")
time.sleep(4)  # longer than the watchdog of the test, which must not act: there is no event to wait for
"""

BLOCKED_START = """
from gearflow import lifespan


@lifespan
async def database():
    sys.stderr.write("connecting\\n")
    time.sleep(10**6)
    yield
"""


class Project:
    """A directory with a module of tasks, a server of its own, and a client of that."""

    def __init__(self, directory: Path, address: str, client: SyncClient) -> None:
        self.directory = directory
        self.address = address
        self.module = f"fleet_{uuid.uuid4().hex[:8]}"
        self._changed_at = 10**9
        self.write(1)
        self._client = client

    def write(self, version: int | str, *, seconds_later: int = 1) -> None:
        """Put new code in the place of the old one, at once. By its time it is so many seconds younger."""
        new = self.directory / "new"
        new.write_text(TASKS.replace("return 1\n", f"return {version}\n"))
        self._changed_at += seconds_later
        os.utime(new, (self._changed_at, self._changed_at))
        new.rename(self.directory / f"{self.module}.py")

    def extend(self, code: str) -> None:
        """Put more code behind that of the module."""
        with (self.directory / f"{self.module}.py").open("a") as source:
            source.write(code)

    @contextmanager
    def start(self, *options: str, **environment: str) -> Generator[Running]:
        """A worker for the time of the block."""
        shell = Shell(self.directory, {"GEARMAN_SERVERS": self.address})
        with shell.start("worker", self.module, *options, **environment) as worker:
            yield worker

    def call(self, task: str, payload: str = "{}") -> int:
        """What a worker answers."""
        return int(self.submit(task, payload).result(PATIENCE))

    def submit(self, task: str, payload: str = "{}") -> SyncJob:
        """A job that a worker is to run."""
        return self._client.submit(f"{self.module}.{task}", payload.encode())

    def until(self, path: Path) -> SyncJob:
        """A job that runs until there is a file of that name."""
        return self.submit("until", f'{{"path": "{path}"}}')


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with JobServer(port=0) as server, SyncClient([server.address]) as client:
        yield Project(tmp_path, server.address, client)


def test_a_process_that_is_killed_is_replaced(project: Project, tmp_path: Path) -> None:
    with project.start("--processes", "2", "-c", "1") as fleet:
        fleet.until("all worker processes are ready")
        victim = project.call("pid")
        assert os.getpgid(victim) != os.getpgid(fleet.process.pid)  # Ctrl-C is not for it
        os.kill(victim, signal.SIGKILL)
        assert "exit=SIGKILL" in fleet.until("a worker process died; another one will start")
        fleet.until("registered with a server")
        jobs = [project.until(tmp_path / "end") for _ in range(2)]
        fleet.until("a job runs")
        fleet.until("a job runs")
        (tmp_path / "end").touch()
        assert len({job.result(PATIENCE) for job in jobs} - {victim}) == 2
        fleet.signal(signal.SIGTERM)
        assert fleet.end()[0] == 0


def test_a_stop_is_warm_and_the_second_one_is_not(project: Project, tmp_path: Path) -> None:
    with project.start("--max-tasks", "1000") as fleet:
        fleet.until("all worker processes are ready")
        job = project.until(tmp_path / "end")
        fleet.until("a job runs")
        fleet.signal(signal.SIGINT)
        fleet.until(OLD_TAKES_NOTHING)
        fleet.signal(signal.SIGTERM)  # the same one again might be taken for an echo
        code, said = fleet.end()
        assert code == 128 + signal.SIGTERM
        assert "Traceback" not in said
        (tmp_path / "end").touch()
        with project.start():
            job.result(PATIENCE)


def test_a_task_that_holds_the_interpreter_lock_cannot_stop_the_stop(project: Project) -> None:
    with project.start("--max-tasks", "1000") as fleet:
        fleet.until("all worker processes are ready")
        project.submit("hold")
        fleet.until("a job runs")
        fleet.signal(signal.SIGUSR2)
        fleet.until("in hold")  # where it is can be seen all the same
        for number in (signal.SIGTERM, signal.SIGINT):  # the same one again might be taken for an echo
            fleet.signal(number)
            fleet.until("stopping the worker processes")
        assert fleet.end()[0] == 128 + signal.SIGINT


def test_a_process_that_cannot_answer_is_shown_and_goes_on(project: Project, tmp_path: Path) -> None:
    told = tmp_path / "told"
    told.write_bytes(b"\0")
    with project.start("--max-tasks", "1000") as fleet:
        fleet.until("all worker processes are ready")
        pid = project.call("pid")
        job = project.submit("hold_until_told", f'{{"path": "{told}"}}')
        fleet.until("a job runs")
        fleet.signal(signal.SIGUSR2)
        fleet.until("in hold_until_told")
        with told.open("r+b") as file:  # written anew, it would be empty for a moment
            file.write(b"\1")
        assert int(job.result(PATIENCE)) == pid
        assert project.call("pid") == pid


def test_a_process_whose_event_loop_is_blocked_is_replaced_and_its_job_done(
    project: Project, tmp_path: Path
) -> None:
    with project.start("--watchdog", "2s") as fleet:
        fleet.until("all worker processes are ready")
        first = project.call("pid")
        job = project.submit("block_once", f'{{"path": "{tmp_path / "mark"}"}}')
        assert f"pid={first}" in fleet.until("a worker process does not answer")
        fleet.until("in block_once")  # where it is
        assert f"pid={first}" in fleet.until("has been blocked for 2 s; killing it")
        assert int(job.result(PATIENCE)) != first
        fleet.signal(signal.SIGTERM)
        assert fleet.end()[0] == 0


def test_a_first_job_that_blocks_every_process_is_a_dead_letter_and_the_worker_serves_on(
    project: Project,
) -> None:
    project.extend(BLOCKS_FOR_EVER)
    job = project.submit("block_for_ever")  # it waits before there is a process
    with project.start("--processes", "1", "--watchdog", "1s") as fleet:
        for _ in range(3):
            fleet.until("has been blocked for 1 s; killing it")
        with pytest.raises(JobFailed, match="WorkersDied"):
            job.result(PATIENCE)
        assert project.call("version") == 1
        fleet.signal(signal.SIGTERM)
        assert fleet.end()[0] == 0


def test_a_module_may_be_imported_for_longer_than_the_watchdog_waits(project: Project) -> None:
    project.extend(SLOW_IMPORT)
    with project.start("--watchdog", "1s") as fleet:
        fleet.until("all worker processes are ready")
        fleet.signal(signal.SIGTERM)
        assert "blocked" not in fleet.end()[1]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_process_answers_its_supervisor_quiet_or_not(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.directory)
    process = WorkerProcess([*COMMAND, "worker", project.module, "-s", project.address])
    with anyio.fail_after(PATIENCE):
        heard = process.channel.messages()
        assert isinstance(await anext(heard), Launched)
        assert isinstance(await anext(heard), Ready)
        for number in (signal.SIGTSTP, signal.SIGCONT):
            process.signal(number)
            process.channel.send(Ping())
            while not isinstance(await anext(heard), Pong):
                pass
        process.signal(signal.SIGTERM)
        assert (await process.ended()).status == 0
    process.channel.close()


def test_processes_whose_supervisor_is_killed_finish_what_they_run(project: Project, tmp_path: Path) -> None:
    with project.start("--max-tasks", "1000") as fleet:
        fleet.until("all worker processes are ready")
        job = project.until(tmp_path / "end")
        fleet.until("a job runs")
        fleet.signal(signal.SIGKILL)
        fleet.until(OLD_TAKES_NOTHING)
        (tmp_path / "end").touch()
        assert job.result(PATIENCE)
        fleet.end()  # its stderr is at its end when the last process has gone


@pytest.mark.parametrize("options", [("--drain", "1s"), ("--watchdog", "2s")])
def test_a_process_whose_supervisor_is_killed_does_not_keep_a_job_by_a_blocked_event_loop(
    project: Project, tmp_path: Path, options: tuple[str, str]
) -> None:
    with project.start("--processes", "2", *options) as fleet:
        fleet.until("all worker processes are ready")
        job = project.submit("block_once", f'{{"path": "{tmp_path / "mark"}"}}')
        fleet.until("a job runs")
        fleet.signal(signal.SIGKILL)
        fleet.end()  # its stderr is at its end when the last process has gone
    with project.start():
        assert job.result(PATIENCE)


def test_a_start_that_blocks_the_event_loop_ends_with_the_supervisor(project: Project) -> None:
    project.extend(BLOCKED_START)
    with project.start("--processes", "2") as fleet:
        for _ in range(2):
            fleet.until("connecting")
        fleet.signal(signal.SIGKILL)
        assert fleet.end()[1].count("a lifespan hook does not end; leaving without it") == 2


def test_new_code_is_taken_up_without_a_gap_and_systemd_is_told(project: Project, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE)
        with project.start("--processes", "2", NOTIFY_SOCKET=systemd.getsockname()) as fleet:
            assert state(systemd) == "READY=1"
            running = project.until(tmp_path / "end")
            fleet.until("a job runs")
            project.write(2)
            fleet.signal(signal.SIGHUP)
            assert state(systemd).startswith("RELOADING=1\nMONOTONIC_USEC=")
            assert state(systemd) == "READY=1"
            for _ in range(2):
                fleet.until(OLD_TAKES_NOTHING)
            assert {project.call("version") for _ in range(5)} == {2}
            (tmp_path / "end").touch()
            assert running.result(PATIENCE)

            project.write("the number three")
            fleet.signal(signal.SIGHUP)
            assert state(systemd).startswith("RELOADING=1")
            fleet.until("return the number three")
            fleet.until("SyntaxError: invalid syntax")
            fleet.until("the new code does not start; the old goes on")
            assert state(systemd) == "READY=1"
            assert project.call("version") == 2

            fleet.signal(signal.SIGTERM)
            assert state(systemd) == "STOPPING=1"
            assert fleet.end()[0] == 0


def state(systemd: socket.socket) -> str:
    """What systemd is told next, numbers apart."""
    while (told := systemd.recv(1000).decode()).startswith("STATUS="):
        pass
    return told


def test_a_process_is_replaced_after_so_many_tasks(project: Project) -> None:
    with project.start("--max-tasks", "3") as fleet:
        fleet.until("all worker processes are ready")
        (first,) = {project.call("pid") for _ in range(3)}
        fleet.until("a worker process is replaced: 3 jobs done")
        fleet.until(OLD_TAKES_NOTHING)
        assert project.call("pid") != first
        fleet.signal(signal.SIGTERM)
        assert fleet.end()[0] == 0


def test_files_that_change_are_taken_up(project: Project) -> None:
    with project.start("--reload") as fleet:
        fleet.until("all worker processes are ready")
        assert project.call("version") == 1
        project.write(2)
        fleet.until_all("reloaded", OLD_TAKES_NOTHING)
        assert project.call("version") == 2


def test_a_change_within_a_second_that_keeps_the_size_is_taken_up(project: Project) -> None:
    with project.start("--reload") as fleet:
        fleet.until("all worker processes are ready")
        assert project.call("version") == 1
        project.write(2, seconds_later=0)
        fleet.until_all("reloaded", OLD_TAKES_NOTHING)
        assert project.call("version") == 2


def test_dev_takes_up_new_code_while_its_server_stays(project: Project, tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    with shell.start("dev", project.module, "-p", "0") as dev:
        address = dev.until("listens on").partition("listens on ")[2].partition(";")[0]
        dev.until("try in another terminal")
        with SyncClient([address]) as client:
            assert client.submit(f"{project.module}.version", b"{}").result(PATIENCE) == b"1"
            job = client.submit(f"{project.module}.until", f'{{"path": "{tmp_path / "end"}"}}'.encode())
            dev.until("a job runs")
            project.write("the number two")
            dev.until("SyntaxError")
            project.write(2)
            dev.until_all("reloaded", OLD_TAKES_NOTHING)
            assert client.submit(f"{project.module}.version", b"{}").result(PATIENCE) == b"2"
            (tmp_path / "end").touch()
            assert job.result(PATIENCE)
        dev.signal(signal.SIGINT)
        assert dev.end()[0] == 0


def test_code_that_cannot_be_imported_ends_all_and_is_told_once(project: Project) -> None:
    project.write("the number one")
    with project.start("--processes", "2") as fleet:
        code, said = fleet.end()
    assert code == 78
    assert said.count("SyntaxError: invalid syntax") == 1
    assert said.startswith(f"gearflow: cannot import {project.module}\n")


def test_a_limit_of_memory_below_what_a_process_has_ends_all_and_is_told_once(project: Project) -> None:
    with project.start("--processes", "2", "--max-rss", "8M") as fleet:
        code, said = fleet.end()
    assert code == 78
    assert re.search(r"^gearflow: a worker has [\d.]+ MiB of memory before its first job, .*8.0 MiB", said)
    assert said.count("before its first job") == 1


@pytest.mark.parametrize("number", ["0", "-1", "many"])
def test_a_number_of_processes_that_is_none(number: str) -> None:
    with pytest.raises(typer.BadParameter, match="Write 4, or auto"):
        processes(number)


def test_a_limit_of_memory_that_nothing_could_keep() -> None:
    with pytest.raises(typer.BadParameter, match="Leave the option out"):
        memory("0")


def test_a_burst_of_several_processes_is_over_when_all_are(project: Project) -> None:
    jobs = [project.submit("pid") for _ in range(6)]
    with project.start("--burst", "--processes", "2") as fleet:
        assert all(job.result(PATIENCE) for job in jobs)
        assert fleet.end()[0] == 0
