"""Tasks in processes of their own, run by a worker on both event loops; the tasks are in ``heavy``."""

import importlib
import io
import json
import logging
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from zoneinfo import ZoneInfo

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from gearflow import Cron, PayloadInvalid, Retry, TaskCrashed, TaskFailed, connect, task
from gearflow.client import TLS, Admin, Client, ClientJob, JobFailed, current, parse_servers
from gearflow.client.current import Target
from gearflow.errors import TaskDefinitionError
from gearflow.protocol import server_calls
from gearflow.protocol.envelope import wrap
from gearflow.protocol.packets import Packet, WorkStatus, WorkWarning
from gearflow.worker import Worker
from gearflow.worker.processes import ProcessPool
from gearflow.worker.processes.messages import Channel, Hello, encode
from gearflow.worker.settings import TimeLimits
from tests.conftest import ROOT
from tests.worker import heavy
from tests.worker.conftest import Gearmand

Fresh = Callable[..., str]

PATIENCE = 20  # seconds; starting a process takes some tenths of one


on_both_loops = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])


@pytest.fixture
def anyio_backend() -> str:
    """Most of what is tested here knows no loop; what does is run on both."""
    return "asyncio"


@pytest.fixture(scope="module")
def pool(bundled: str) -> Iterator[ProcessPool]:
    """Processes for all tests that leave them as they were."""
    target = current.target().but(servers=parse_servers(bundled), tls=None, token=None)
    pool = ProcessPool(target, None, None, None)
    yield pool
    pool.close(0.0)


_shared: list[ProcessPool] = []


@pytest.fixture
def shared(pool: ProcessPool) -> Iterator[None]:
    """Workers have their processes from that pool, which outlives them."""
    _shared.append(pool)
    yield
    _shared.clear()


@asynccontextmanager
async def at_work(server: str, *tasks: Any, **options: Any) -> AsyncGenerator[Worker]:
    """A worker for some tasks, and a client for what calls them."""
    with anyio.fail_after(PATIENCE):
        processes = _shared[0] if _shared else None
        async with connect(server), Worker(tasks, servers=[server], processes=processes, **options) as worker:
            yield worker


async def first_warning(job: ClientJob) -> str:
    """What a task says first."""
    async for event in job.events():
        if isinstance(event, WorkWarning):
            return event.data.decode()
    raise AssertionError("it said nothing")


async def until(holds: Callable[[], bool]) -> None:
    """Return when something holds that has no event."""
    with anyio.fail_after(PATIENCE):
        while not holds():  # noqa: ASYNC110  (there is no event for it)
            await anyio.sleep(0.005)


async def end_of(process: int) -> None:
    """Return when a process has ended."""
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(process)
        assert await anyio.to_thread.run_sync(lambda: select.select([descriptor], [], [], PATIENCE)[0])
        os.close(descriptor)


# ------------------------------------------------------------------------------------------- one process


@pytest.mark.parametrize("job", [heavy.scheduled_in_process, heavy.scheduled_in_thread])
async def test_a_task_sees_the_time_of_its_schedule(bundled: str, shared: None, job: Any) -> None:
    async with at_work(bundled, job), Client([bundled]) as client:
        schedules = client.schedules
        await schedules.put("noon", job, Cron("0 12 * * *", tz="Asia/Kolkata"))
        noon = datetime(2026, 2, 3, 12, tzinfo=ZoneInfo("Asia/Kolkata"))
        await schedules.backfill("noon", noon, noon)
        request = server_calls.ResultRequest(
            function=job.name, unique="cron:noon:2026-02-03T06:30:00Z", timeout=PATIENCE
        )
        seen = await client.call_reserved(server_calls.RESULT, request)
        assert seen.decode() == "2026-02-03 12:00:00+05:30 Asia/Kolkata"
        await schedules.delete("noon")
        assert await job.acall() == "None None"


@on_both_loops
async def test_a_task_runs_in_another_process_which_is_kept_for_the_next_run(bundled: str) -> None:
    async with at_work(bundled, heavy.mirror, heavy.pid):
        assert await heavy.mirror.acall(heavy.Point(x=1, y=2)) == heavy.Point(x=-1, y=2)
        process = await heavy.pid.acall()
        assert process != os.getpid()
        assert await heavy.pid.acall() == process
    await end_of(process)


async def test_a_process_has_the_paths_of_its_worker_and_none_of_its_terminal(
    bundled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    async with at_work(bundled, heavy.surroundings):
        found = await heavy.surroundings.acall()
    assert found["directory"] == str(tmp_path)
    assert found["path"] == sys.path
    assert found["session"] == found["pid"]
    assert found["stdin"] == ""
    assert found["main thread"]
    assert not found["worker"]  # whose import would take longer than all else


@pytest.mark.usefixtures("shared")
async def test_runs_at_once_have_a_process_each(bundled: str, tmp_path: Path) -> None:
    gates = [tmp_path / name for name in "ab"]
    for gate in gates:
        os.mkfifo(gate)
    async with at_work(bundled, heavy.survives, heavy.pid):
        jobs = [await heavy.survives.asubmit(str(gate)) for gate in gates]
        for gate in gates:
            await anyio.to_thread.run_sync(gate.write_text, "")
        first, second = [await job for job in jobs]
        assert first != second
        assert await heavy.pid.acall() in (first, second)


@pytest.mark.usefixtures("shared")
async def test_a_large_payload_goes_there_and_back(bundled: str) -> None:
    payload = os.urandom(1 << 20) * 8
    async with at_work(bundled, heavy.long):
        assert await heavy.long.acall(payload) == payload[::-1]


def test_a_frame_that_must_not_wait_goes_behind_the_one_that_is_being_sent() -> None:
    left, right = socket.socketpair()
    ours, theirs = Channel(left), Channel(right)
    payload = bytes(8 << 20)  # more than the socket has room for
    sender = threading.Thread(target=ours.send, args=(encode("run", payload),))
    sender.start()
    assert select.select([right], [], [], PATIENCE)[0]  # its first bytes are there
    assert ours.send_at_once(encode("cancel"))
    run, cancel = theirs.receive(), theirs.receive()
    sender.join(PATIENCE)
    assert run is not None
    assert cancel is not None
    assert (run.kind, run.body, cancel.kind) == ("run", payload, "cancel")
    for channel in (ours, theirs):
        channel.close()


class FullSocket(socket.socket):
    """A socket that takes nothing at once, or so many bytes, and all else when it is opened."""

    def __init__(self, takes: int | None = None) -> None:
        super().__init__()
        self.is_used, self.is_open = threading.Event(), threading.Event()
        self.sent: list[bytes] = []
        self.is_ended = False
        self._takes = takes

    def send(self, data: Any, flags: int = 0, /) -> int:
        if self._takes is None:
            raise BlockingIOError
        return self._takes

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        self.is_used.set()
        assert self.is_open.wait(PATIENCE)
        self.sent.append(data)

    def shutdown(self, how: int, /) -> None:
        self.is_ended = True


def test_a_frame_that_is_left_to_a_sender_is_sent_also_if_the_other_side_reads_late() -> None:
    full = FullSocket()
    channel = Channel(full)
    sender = threading.Thread(target=channel.send, args=(b"run",))
    sender.start()
    assert full.is_used.wait(PATIENCE)
    assert channel.send_at_once(b"cancel")
    full.is_open.set()
    sender.join(PATIENCE)
    assert full.sent == [b"run", b"cancel"]
    channel.close()


def test_a_frame_that_is_not_taken_at_once_is_not_sent_later() -> None:
    full = FullSocket()
    channel = Channel(full)
    assert not channel.send_at_once(b"cancel")
    full.is_open.set()
    channel.send(b"run")
    assert full.sent == [b"run"]
    channel.close()


def test_nothing_is_sent_behind_a_part_of_a_frame() -> None:
    full = FullSocket(takes=2)
    channel = Channel(full)
    assert not channel.send_at_once(b"cancel")
    assert full.is_ended
    channel.close()


@pytest.mark.usefixtures("shared")
async def test_a_task_there_calls_others_at_the_servers_of_its_worker(bundled: str) -> None:
    async with at_work(bundled, heavy.calls, heavy.pid):
        assert await heavy.calls.acall() != os.getpid()


async def test_what_a_process_writes_comes_out_at_its_worker_line_by_line(
    bundled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with at_work(bundled, heavy.says):
        await heavy.says.acall()
    assert sorted(capsys.readouterr().err.splitlines()) == ["to stdout", "without an end"]


@pytest.mark.usefixtures("shared")
async def test_what_a_process_logs_is_logged_by_its_worker(
    bundled: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with at_work(bundled, heavy.says):
        await heavy.says.acall()
    warning, failure = [record for record in caplog.records if record.name == "heavy"]
    assert warning.getMessage() == "a warning of its own"
    assert vars(warning)["of"] == "x=1 y=2"
    assert failure.levelno == logging.ERROR
    assert (failure.exc_text or "").endswith("KeyError: 'plum'")


async def test_the_time_of_importing_a_task_does_not_count(
    bundled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: Fresh
) -> None:
    name = fresh("module").replace(".", "_")
    (tmp_path / f"{name}.py").write_text(
        "import os, time\nfrom gearflow import task\n"
        f"if os.getpid() != {os.getpid()}: time.sleep(3.1)\n"
        "@task(executor='process', timeout=3)\ndef quick() -> str: return 'in time'\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    quick = importlib.import_module(name).quick
    async with at_work(bundled, quick):
        assert await quick.acall() == "in time"


def test_a_process_is_told_all_of_where_calls_go() -> None:
    servers = parse_servers("a:1,[::1]:2")
    for tls in (None, True, TLS(ca=Path("/ca.pem"), server_name="a")):
        target = Target(servers, spread=True, tls=tls, token="secret")
        hello = Hello(target, ("a.b",), measures=True, level=20)
        told = Hello.of(json.loads(json.dumps(hello.fields())))
        assert told.fields() == hello.fields()
        assert told.target.servers == servers


@pytest.mark.usefixtures("shared")
async def test_a_signal_to_the_whole_service_is_left_to_the_worker(bundled: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    async with at_work(bundled, heavy.pid, heavy.survives):
        process = await heavy.pid.acall()
        job = await heavy.survives.asubmit(str(gate))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP):
            os.kill(process, number)
        await anyio.to_thread.run_sync(gate.write_text, "")
        assert await job == process


class Listening(io.StringIO):
    """A stderr that knows when something was written."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.heard = threading.Event()
        self._words = words

    def write(self, text: str, /) -> int:
        if self._words in text:
            self.heard.set()
        return super().write(text)


@pytest.mark.usefixtures("shared")
async def test_a_process_shows_where_it_is(
    bundled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    stderr = Listening("in survives")
    monkeypatch.setattr(sys, "stderr", stderr)
    async with at_work(bundled, heavy.survives) as worker:
        job = await heavy.survives.asubmit(str(gate))
        with await anyio.to_thread.run_sync(gate.open, "w"):  # when it is opened at the other end, too
            worker.show_processes()
            assert await anyio.to_thread.run_sync(stderr.heard.wait, PATIENCE)
        await job


@pytest.mark.usefixtures("shared")
async def test_a_process_that_a_task_has_forked_never_answers_for_it(bundled: str, tmp_path: Path) -> None:
    async with at_work(bundled, heavy.forks, heavy.pid):
        assert await heavy.forks.acall(str(tmp_path / "child")) == "the parent returns"
        assert await heavy.pid.acall() != os.getpid()  # and not what the other one had to say
    assert (tmp_path / "child").exists()


@pytest.mark.usefixtures("shared")
async def test_a_process_that_a_task_has_forked_in_a_thread_ends_when_it_comes_back(
    bundled: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async with at_work(bundled, heavy.forks_in_a_thread):
        assert await heavy.forks_in_a_thread.acall() == "the child ended with 1"
    assert "came back from the task" in capfd.readouterr().err


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("goes_on", [False, True])
async def test_a_process_that_a_task_has_forked_on_the_loop_ends_when_it_comes_back(
    bundled: str, capfd: pytest.CaptureFixture[str], goes_on: bool
) -> None:
    async with at_work(bundled, heavy.forks_on_the_loop):
        assert await heavy.forks_on_the_loop.acall(goes_on) == "the child ended with 1"
    assert "came back from the task" in capfd.readouterr().err


@pytest.mark.usefixtures("shared")
async def test_a_process_that_a_call_has_forked_makes_no_further_calls_of_its_chunk(
    bundled: str, tmp_path: Path
) -> None:
    async with at_work(bundled, heavy.forks_at_first):
        assert await heavy.forks_at_first.amap([str(tmp_path)] * 2, chunk=2) == [None, None]
    assert os.listdir(tmp_path) == [str(os.getpid())]  # noqa: PTH208  (paths would block)


def pipes() -> set[int]:
    """Descriptors of this process that are pipes."""
    found: set[int] = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the listing
            if stat.S_ISFIFO(os.fstat(int(entry.name)).st_mode):
                found.add(int(entry.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc here")
async def test_of_a_process_that_has_ended_a_forked_child_forgets_nothing_that_is_not_its(
    bundled: str,
) -> None:
    async with at_work(bundled, heavy.pid):
        before = pipes()
        process = await heavy.pid.acall()
        theirs = pipes() - before
        os.kill(process, signal.SIGKILL)
        while theirs <= pipes():
            await anyio.lowlevel.checkpoint()
        with ExitStack() as files:
            opened = [files.enter_context(TemporaryFile()) for _ in range(20)]
            if not (child := os.fork()):
                os._exit(not all(stat.S_ISREG(os.fstat(file.fileno()).st_mode) for file in opened))
            assert os.waitpid(child, 0)[1] == 0  # noqa: ASYNC222  (for the moment in which it ends)


# ------------------------------------------------------------------------------------------------ batches


@on_both_loops
async def test_each_item_of_a_batch_has_its_own_result_in_a_process_too(bundled: str, shared: None) -> None:
    async with at_work(bundled, heavy.in_batches, concurrency=1) as worker, Client([bundled]) as client:
        words = [b"well", b"discard", b"fail"]
        jobs = [await client.submit(heavy.in_batches.name, word) for word in words]
        events = [event async for event in jobs[0].events()]
        assert await jobs[0].result() == b"well"
        assert [event.numerator for event in events if isinstance(event, WorkStatus)] == [b"4"]
        assert [event.data for event in events if isinstance(event, WorkWarning)] == [b"said to all"]
        with pytest.raises(JobFailed):
            await jobs[1].result()
        await until(lambda: worker.running == 1)  # "fail" is tried again
        later = [await client.submit(heavy.in_batches.name, b"again") for _ in range(2)]
        with pytest.raises(JobFailed):
            await jobs[2].result()
        await client.submit(heavy.in_batches.name, b"well")
        texts = [(await job.result()).decode() for job in later]
    assert [text.rpartition(" ")[0] for text in texts] == ["again 2", "again 2"]
    assert len({text.rpartition(" ")[2] for text in texts}) == 1


@on_both_loops
async def test_a_process_that_ends_or_a_list_that_is_short_fails_all_items(
    bundled: str, shared: None
) -> None:
    once = heavy.in_batches.options(retries=0)
    async with at_work(bundled, heavy.in_batches):
        errors = await once.amap(["a", "crash", "b"], errors="collect")
        assert all(isinstance(error, TaskCrashed) for error in errors)
        errors = await once.amap(["a", "short", "b"], errors="collect")
        assert all("it returned a list of 2 for a batch of 3 items" in str(error) for error in errors)
        assert await once.amap(["a", "b", "c"]) == ["a", "b", "c"]


@on_both_loops
async def test_an_item_of_a_batch_in_a_process_is_cancelled_alone(bundled: str, shared: None) -> None:
    async with at_work(bundled, heavy.in_batches) as worker, Client([bundled]) as client:
        words = (b"a", b"cancelled", b"b")
        jobs = [await client.submit(heavy.in_batches.name, word) for word in words]
        await first_warning(jobs[0])
        await Admin(bundled).cancel_job(jobs[1].handle)
        assert [await jobs[0].result(), await jobs[2].result()] == [b"a", b"b"]
        await until(lambda: not worker.running)


# --------------------------------------------------------------------------------------------- lifespans


async def test_hooks_are_entered_in_each_process_and_left_when_it_ends(
    bundled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary = tmp_path / "diary"
    monkeypatch.setenv("HEAVY_DIARY", str(diary))
    async with at_work(bundled, heavy.surroundings):
        found = await heavy.surroundings.acall()
    assert found["colour"] == "blue"
    assert sorted(diary.read_text().splitlines()) == sorted([f"left {os.getpid()}", f"left {found['pid']}"])


async def test_a_worker_that_is_given_hooks_has_no_others_in_its_processes(bundled: str) -> None:
    async with at_work(bundled, heavy.surroundings, lifespan=[]):
        assert (await heavy.surroundings.acall())["colour"] == "none"


# ---------------------------------------------------------------------------------------------- failures


@pytest.mark.usefixtures("shared")
async def test_a_failure_is_the_same_as_in_a_thread(bundled: str) -> None:
    async with at_work(bundled, heavy.fails, heavy.fails_in_thread):
        for kind in heavy.KINDS:
            with pytest.raises(TaskFailed) as in_process:
                await heavy.fails.acall(kind)
            with pytest.raises(TaskFailed) as in_thread:
                await heavy.fails_in_thread.acall(kind)
            there, here = in_process.value, in_thread.value
            assert type(there) is type(here)
            assert (there.type, there.message, there.errors) == (here.type, here.message, here.errors)
            assert "in fails\n    raise_it(kind)" in (there.traceback or "")
            assert "in fails_in_thread\n    raise_it(kind)" in (here.traceback or "")


@pytest.mark.usefixtures("shared")
async def test_a_task_there_can_fail_without_a_reason(any_server: str) -> None:
    async with at_work(any_server, heavy.fails):
        with pytest.raises(TaskFailed, match="gave no reason"):
            await heavy.fails.acall("fail")


@pytest.mark.usefixtures("shared")
async def test_arguments_and_results_that_do_not_fit_are_refused_there(
    bundled: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with at_work(bundled, heavy.small), Client([bundled]) as client:
        job = await client.submit(heavy.small.name, b'{"number": "many"}')
        with pytest.raises(JobFailed) as caught:
            await job.result()
        assert json.loads(caught.value.exception or b"")["errors"][0]["loc"] == ["number"]
        with pytest.raises(PayloadInvalid, match="what it returned does not fit"):
            await heavy.small.acall(7)
        assert await heavy.small.acall(18) == 8
    assert {record.getMessage() for record in caplog.records} == {"job invalid"}
    refused, returned = (vars(record)["reason"] for record in caplog.records)
    assert refused.startswith("the payload does not fit its types: number: Input should be a valid integer")
    assert returned.startswith("what it returned does not fit its types: ")


@pytest.mark.usefixtures("shared")
async def test_a_task_that_no_import_defines_fails_with_the_remedy(bundled: str) -> None:
    hidden = heavy.factory()
    async with at_work(bundled, hidden):
        with pytest.raises(TaskFailed, match="at the top level of its function's module"):
            await hidden.acall()


@pytest.mark.usefixtures("shared")
async def test_retries_go_by_class_and_by_name(any_server: str) -> None:
    tasks = heavy.third_time_on_class, heavy.third_time_on_name, heavy.not_worth_it
    async with at_work(any_server, *tasks):
        assert await heavy.third_time_on_class.acall() == 3
        assert await heavy.third_time_on_name.acall() == 3
        with pytest.raises(KeyError):
            await heavy.not_worth_it.acall()
        patient = heavy.not_worth_it.options(retries=Retry(3, on=LookupError, backoff=0))
        assert await patient.acall() == 3


@pytest.mark.usefixtures("shared")
async def test_a_task_there_decides_what_becomes_of_its_job(bundled: str, tmp_path: Path) -> None:
    async with at_work(bundled, heavy.again, heavy.always_again, heavy.early):
        assert await heavy.again.acall() == 2
        assert await heavy.early.acall(str(tmp_path / "flag")) == "in time"
        with pytest.raises(KeyError, match="plum"):  # the cause of the last TryAgain
            await heavy.always_again.acall()


# ----------------------------------------------------------------------------------------------- context


@pytest.mark.usefixtures("shared")
@on_both_loops
async def test_the_context_of_a_process_tells_and_reports(any_server: str) -> None:
    async with at_work(any_server, heavy.reports), Client([any_server]) as client:
        job = await client.submit(heavy.reports.name, wrap(b"{}", attempt=4, timeout=60))
        events: list[Packet] = [event async for event in job.events()]
        result = json.loads(await job.result())
    handle = job.handle.encode()
    assert events[-3:] == [
        WorkStatus(handle, b"3", b"3"),
        WorkWarning(handle, b"half"),
        WorkStatus(handle, b"7", b"8"),
    ]
    assert result[:3] == [job.handle, heavy.reports.name, 4]
    assert result[3] > 0
    assert result[4] is False


@pytest.mark.usefixtures("shared")
async def test_progress_faster_than_anybody_reads_is_thinned(bundled: str) -> None:
    async with at_work(bundled, heavy.hasty), Client([bundled]) as client:
        job = await client.submit(heavy.hasty.name, b"{}")
        events = [event async for event in job.events()]
    assert events[-1] == WorkStatus(job.handle.encode(), b"10000", b"10000")
    assert len(events) < 1000


# -------------------------------------------------------------------------------------- crashes and kills


@pytest.mark.usefixtures("shared")
async def test_a_crash_is_told_with_how_the_memory_and_the_last_words(bundled: str) -> None:
    async with at_work(bundled, heavy.crashes):
        for how, said in heavy.CRASHES.items():
            with pytest.raises(TaskCrashed, match=rf"{said}; its memory peaked at \d+ MiB") as caught:
                await heavy.crashes.acall(how)
            assert "first words\nlast words" in str(caught.value)
            assert ("Segmentation fault" in str(caught.value)) == (how == "fault")
            assert "processes/child.py" not in str(caught.value)  # the stack shows the task's frames alone
            assert not caught.value.traceback


async def test_the_last_words_of_a_crash_are_not_those_of_the_run_before(bundled: str) -> None:
    async with at_work(bundled, heavy.says, heavy.crashes):
        await heavy.says.acall()
        with pytest.raises(TaskCrashed) as caught:
            await heavy.crashes.acall("exit")
    assert str(caught.value).splitlines()[1:] == ["first words", "last words"]


@pytest.mark.usefixtures("shared")
async def test_of_what_a_crashed_process_wrote_the_last_twenty_lines_are_kept(bundled: str) -> None:
    async with at_work(bundled, heavy.crashes):
        with pytest.raises(TaskCrashed) as caught:
            await heavy.crashes.acall("talk")
    assert str(caught.value).splitlines()[1:] == [f"line {number}" for number in range(10, 30)]


@pytest.mark.usefixtures("shared")
async def test_a_crash_fails_its_own_run_only_and_can_be_tried_again(bundled: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    async with at_work(bundled, heavy.crashes, heavy.crashes_once, heavy.survives):
        other = await heavy.survives.asubmit(str(gate))
        with pytest.raises(TaskCrashed):
            await heavy.crashes.acall("exit")
        assert await heavy.crashes_once.acall() == 2
        await anyio.to_thread.run_sync(gate.write_text, "")
        assert await other != os.getpid()


async def test_a_process_that_died_while_it_was_idle_is_not_used(bundled: str) -> None:
    async with at_work(bundled, heavy.pid):
        process = await heavy.pid.acall()
        reaping = next(each for each in threading.enumerate() if each.name == f"gearflow-end-{process}")
        os.kill(process, signal.SIGKILL)
        await anyio.to_thread.run_sync(reaping.join)
        assert await heavy.pid.acall() != process


@pytest.mark.usefixtures("shared")
@on_both_loops
async def test_a_process_that_overruns_is_killed_and_its_slot_is_free(bundled: str) -> None:
    async with (
        at_work(bundled, heavy.stubborn, heavy.pid, concurrency=1) as worker,
        Client([bundled]) as client,
    ):
        job = await client.submit(heavy.stubborn.name, wrap(b"{}", timeout=0.1))
        process = int(await first_warning(job))
        with pytest.raises(JobFailed, match=r"TaskTimeout.*its process was killed"):
            await job.result()
        assert worker.overdue == 0
        await end_of(process)
        assert await heavy.pid.acall() != process


@pytest.mark.usefixtures("shared")
async def test_what_a_task_has_started_is_killed_with_it(bundled: str) -> None:
    async with at_work(bundled, heavy.delegates), Client([bundled]) as client:
        job = await client.submit(heavy.delegates.name, wrap(b"{}", timeout=0.1))
        process = int(await first_warning(job))
        with pytest.raises(JobFailed, match="TaskTimeout"):
            await job.result()
        await end_of(process)


@pytest.mark.usefixtures("shared")
@on_both_loops
async def test_a_task_with_a_context_is_told_of_its_cancel_before_it_is_killed(
    bundled: str, tmp_path: Path
) -> None:
    diary = tmp_path / "diary"
    async with at_work(bundled, heavy.watchful, heavy.pid, concurrency=1), Client([bundled]) as client:
        job = await client.submit(heavy.watchful.name, str(diary).encode())
        process = int(await first_warning(job))
        await Admin(bundled).cancel_job(job.handle)
        assert await heavy.pid.acall() == process  # it has ended by itself, and is of use
    assert diary.read_text() == "told"


async def test_a_task_whose_job_is_cancelled_while_it_is_loaded_is_told_of_it(
    bundled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: Fresh
) -> None:
    name, diary = fresh("module").replace(".", "_"), tmp_path / "diary"
    began, gate = tmp_path / "began", tmp_path / "gate"
    pipes: list[int] = []
    for fifo in (began, gate):
        os.mkfifo(fifo)
        pipes.append(os.open(fifo, os.O_RDWR))
    (tmp_path / f"{name}.py").write_text(
        "import os\nfrom pathlib import Path\nfrom gearflow import Context, task\n"
        f"if os.getpid() != {os.getpid()}:\n"
        f" Path({str(began)!r}).write_text('!')\n"
        f" open({str(gate)!r}).readline()\n"
        "@task(executor='process')\n"
        f"def late(ctx: Context) -> None: Path({str(diary)!r}).write_text(str(ctx.cancelled))\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    late = importlib.import_module(name).late

    @task(name=fresh())
    async def ping() -> None: ...

    limits = TimeLimits(cancel_grace=PATIENCE)
    async with at_work(bundled, late, ping, concurrency=2, time_limits=limits), Client([bundled]) as client:
        job = await client.submit(late.name, b"{}")
        await anyio.wait_readable(pipes[0])
        await Admin(bundled).cancel_job(job.handle)
        await ping.acall()  # so that the worker has got the cancel, which came before
        os.write(pipes[1], b"\n")
    for pipe in pipes:
        os.close(pipe)
    assert diary.read_text() == "True"


async def test_a_process_whose_connection_is_lost_is_killed(own_gearmand: Gearmand) -> None:
    own_gearmand.start()
    with anyio.fail_after(PATIENCE):
        async with Worker([heavy.stubborn], servers=[own_gearmand.address], first_retry=0.01) as worker:
            await worker.ready.wait()
            async with Client([own_gearmand.address]) as client:
                process = int(await first_warning(await client.submit(heavy.stubborn.name, b"{}")))
                own_gearmand.kill()
                await end_of(process)


@on_both_loops
async def test_a_cold_stop_kills_processes_and_hands_their_jobs_on(bundled: str) -> None:
    async with Client([bundled]) as client:
        async with at_work(bundled, heavy.stubborn) as worker:
            job = await client.submit(heavy.stubborn.name, b"{}")
            process = int(await first_warning(job))
            worker.leave()
        await end_of(process)
        async with at_work(bundled, heavy.stubborn) as worker:
            another = int(await first_warning(job))
            worker.leave()
        await end_of(another)
        await Admin(bundled).cancel_job(job.handle)


@pytest.mark.usefixtures("shared")
@on_both_loops
async def test_the_loop_is_free_and_can_cancel_while_a_process_computes_without_letting_go_of_the_gil(
    bundled: str, fresh: Fresh
) -> None:
    @task(name=fresh())
    async def goes_on() -> bool:
        return True

    async with (
        at_work(
            bundled,
            *(heavy.stubborn, heavy.pid, goes_on),
            concurrency=2,
            time_limits=TimeLimits(cancel_grace=0.01),
        ),
        Client([bundled]) as client,
    ):
        jobs = [await client.submit(heavy.stubborn.name, b"{}")]
        processes = [int(await first_warning(jobs[0]))]
        assert await goes_on.acall()
        jobs.append(await client.submit(heavy.stubborn.name, b"{}"))
        processes.append(int(await first_warning(jobs[1])))
        for job in jobs:
            await Admin(bundled).cancel_job(job.handle)
        assert await goes_on.acall()  # in one of the two slots
        for process in processes:
            await end_of(process)
        assert await heavy.pid.acall() not in processes


# ----------------------------------------------------------------------------------------- wear and tear


async def test_a_process_is_replaced_after_so_many_runs(bundled: str) -> None:
    async with at_work(bundled, heavy.pid, process_max_tasks=2):
        pids = [await heavy.pid.acall() for _ in range(4)]
        assert pids == [pids[0], pids[0], pids[2], pids[2]]
        assert pids[0] != pids[2]
        await end_of(pids[0])


async def test_a_process_that_has_grown_too_large_is_replaced(bundled: str) -> None:
    async with at_work(bundled, heavy.grows, process_max_rss=200 << 20):
        small = await heavy.grows.acall(1)
        large = await heavy.grows.acall(200 << 20)
        assert large == small
        assert await heavy.grows.acall(1) != small


def pipes_and_pairs() -> set[str]:
    """What is open to other processes; connections to servers may be closed a little later."""
    pairs = {f"socket:[{line.split()[6]}]" for line in Path("/proc/self/net/unix").read_text().splitlines()}
    found: set[str] = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of this listing itself
            found.add(str(descriptor.readlink()))
    return {each for each in found if each.startswith("pipe:") or each in pairs}


async def test_nothing_is_left_behind(bundled: str) -> None:
    pids: set[int] = set()

    async def once() -> None:
        async with at_work(bundled, heavy.pid, heavy.crashes, process_max_tasks=1):
            pids.add(await heavy.pid.acall())
            with pytest.raises(TaskCrashed):
                await heavy.crashes.acall("exit")

    await once()  # opens what stays, such as anyio's threads
    descriptors = pipes_and_pairs()
    threads = set(threading.enumerate())
    await once()
    for thread in set(threading.enumerate()) - threads:
        await anyio.to_thread.run_sync(thread.join, PATIENCE)
        assert not thread.is_alive()
    assert pipes_and_pairs() <= descriptors
    processes = os.listdir("/proc")  # noqa: PTH208  (their names are all it takes)
    assert not set(processes) & set(map(str, pids))


# ------------------------------------------------------------------------------- programs, and their ends


def program(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "program.py"
    file.write_text(text)
    return file


def start(file: Path, server: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(file)],
        env={**os.environ, "GEARMAN_SERVERS": server, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


OWN_TASKS = """
import asyncio, os
from gearflow import Retry, task
from gearflow.worker import Worker

class Odd(Exception):
    pass

@task(executor="process", retries=Retry(2, on=Odd, backoff=0))
def of_main(number: int) -> int:
    if number:
        raise Odd("odd")
    return os.getpid()

async def main() -> None:
    async with Worker([of_main]):
        print(os.getpid() != await of_main.acall(0))
        try:
            await of_main.acall(1)
        except Odd as error:
            print(error)
"""


def test_the_tasks_of_a_program_that_is_run_by_its_path(bundled: str, tmp_path: Path) -> None:
    guarded = program(tmp_path, f'{OWN_TASKS}\nif __name__ == "__main__":\n    asyncio.run(main())\n')
    with start(guarded, bundled) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert out == "True\nodd\n"


def test_a_program_without_a_guard_is_told_what_it_lacks(bundled: str, tmp_path: Path) -> None:
    with start(program(tmp_path, f"{OWN_TASKS}\nasyncio.run(main())\n"), bundled) as process:
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "'if __name__ == \"__main__\":'" in err.splitlines()[-1]


def test_tasks_that_were_typed_in_are_refused(bundled: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{OWN_TASKS}\nasyncio.run(main())"],
        cwd=ROOT,
        env={**os.environ, "GEARMAN_SERVERS": bundled},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert "put it into a module" in done.stderr.splitlines()[-1]


@contextmanager
def started(server: str) -> Generator[subprocess.Popen[bytes]]:
    """A worker in a process of its own, which is killed in the end."""
    command = [sys.executable, "-m", "gearflow_cli", "worker", "tests.worker.heavy", "-s", server]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_processes_end_with_their_worker_even_if_that_is_killed(bundled: str) -> None:
    with anyio.fail_after(PATIENCE), started(bundled) as worker:
        async with connect(bundled), Client([bundled]) as client:
            idle = await heavy.pid.acall()
            job = await client.submit(heavy.stubborn.name, b"{}")
            busy = int(await first_warning(job))
            another = await heavy.pid.acall()
            worker.kill()
            for process in {idle, busy, another}:
                await end_of(process)
            await Admin(bundled).cancel_job(job.handle)


async def test_a_child_that_a_task_has_forked_keeps_nothing_of_a_worker_alive(bundled: str) -> None:
    with anyio.fail_after(PATIENCE), started(bundled) as worker:
        async with Client([bundled]) as client:
            stubborn = await client.submit(heavy.stubborn.name, b"{}")
            process = int(await first_warning(stubborn))
            leaves = await client.submit(heavy.leaves_a_child.name, b"{}")
            child = int(await first_warning(leaves))
            worker.kill()
            await end_of(process)
            while any([(await client.status(job.handle)).running for job in (stubborn, leaves)]):
                pass
            os.kill(child, signal.SIGKILL)  # until now it was there


# --------------------------------------------------------------------------------------- what is refused


def test_a_coroutine_has_no_executor(function: str) -> None:
    with pytest.raises(TaskDefinitionError, match="a coroutine runs on the event loop; write 'def'"):

        @task(name=function, executor="process")
        async def wrong() -> None: ...


def test_a_foreign_task_has_no_executor(function: str) -> None:
    with pytest.raises(TaskDefinitionError, match="another program runs this task"):
        task(name=function, foreign=True, executor="process")


def test_there_are_two_executors(function: str) -> None:
    executor: Any = "fork"
    with pytest.raises(ValueError, match="executor='fork': it is 'thread' or 'process'"):
        task(name=function, executor=executor)


def test_a_thread_is_the_default_and_can_be_said() -> None:
    assert heavy.fails_in_thread.executor == "thread"
    assert heavy.in_a_thread.executor == "thread"
