"""``gearflow worker`` in a process of its own: what it says, and how it ends."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gearflow.client import SyncClient
from gearflow.protocol.packets import (
    JobCreated,
    OptionReq,
    OptionRes,
    Packet,
    SubmitJob,
    WorkException,
    WorkFail,
    WorkWarning,
)
from gearflow.testing.peer import ScriptedPeer
from tests.cli.shell import COMMAND, Shell

VERSION = """
import asyncio
import sys
from pathlib import Path

from gearflow import task


@task
async def version(path: Path) -> int:
    print("a job runs", file=sys.stderr, flush=True)
    while not path.exists():
        await asyncio.sleep(0.01)
    return {}
"""


def client_of(shell: Shell) -> SyncClient:
    return SyncClient([shell.environment["GEARMAN_SERVERS"]])


def test_it_says_what_it_serves_and_where(own: Shell, module: str) -> None:
    with own.start("worker", module, "-c", "3", "-f", "add", "-f", f"{module}.sho*") as worker:
        line = worker.until("serving")
        assert f"serving {module}.add, {module}.shout;" in line
        assert f"servers: {own.environment['GEARMAN_SERVERS']}; concurrency: 3" in line
        worker.until("registered with a server")


def test_it_logs_a_line_for_each_job(own: Shell, module: str) -> None:
    with own.start("worker", GEARFLOW_TASKS=module) as worker:
        worker.until("registered")
        with client_of(own) as client:
            job = client.submit(f"{module}.add", b'{"a": 1}')
            assert job.result(timeout=20) == b"3"
        line = worker.until("job done")
        assert f"task={module}.add" in line
        assert f"handle={job.handle}" in line


LOGS = """
import logging

from gearflow import task

logging.basicConfig(level="INFO")
log = logging.getLogger("till")


@task(executor="{}")
def count(notes: int) -> None:
    log.debug("the details of %d", notes)
    log.info("counted %d", notes)
    log.warning("that was it")
"""


@pytest.mark.parametrize("executor", ["thread", "process"])
@pytest.mark.parametrize(
    ("level", "heard"),
    [
        ("debug", ["the details of 5", "counted 5", "that was it"]),
        ("info", ["counted 5", "that was it"]),
        ("warning", ["that was it"]),
    ],
)
def test_what_a_task_logs_is_shown_from_the_level_on(
    own: Shell, tmp_path: Path, executor: str, level: str, heard: list[str]
) -> None:
    module = write(tmp_path, f"logs_{executor}_{level}", LOGS.format(executor))
    with (
        Shell(tmp_path, own.environment).start("worker", module, "--log-level", level) as worker,
        client_of(own) as client,
    ):
        job = client.submit(f"{module}.count", b'{"notes": 5}')
        job.result(timeout=20)
        worker.signal(signal.SIGTERM)
        lines = worker.end()[1].splitlines()
    told = ("the details of 5", "counted 5", "that was it")
    run = f"  handle={job.handle} function={module}.count"
    assert [line[17:] for line in lines if line[17:].startswith(told)] == [text + run for text in heard]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_it_finish(own: Shell, module: str, number: int, tmp_path: Path) -> None:
    with own.start("worker", module) as worker, client_of(own) as client:
        worker.until("registered")
        job = client.submit(f"{module}.until", f'{{"path": "{tmp_path / "end"}"}}'.encode())
        worker.until("a job runs")
        worker.signal(number)
        worker.until("stopping")
        (tmp_path / "end").touch()
        assert job.result(timeout=20) == b"finished"
        code, stderr = worker.end()
        assert code == 0
        assert "Traceback" not in stderr


def test_a_signal_that_comes_twice_at_once_is_one(own: Shell, module: str, tmp_path: Path) -> None:
    with own.start("worker", module) as worker, client_of(own) as client:
        worker.until("registered")
        job = client.submit(f"{module}.until", f'{{"path": "{tmp_path / "end"}"}}'.encode())
        worker.until("a job runs")
        worker.signal(signal.SIGTERM)
        worker.signal(signal.SIGTERM)
        worker.until("stopping")
        (tmp_path / "end").touch()
        assert job.result(timeout=20) == b"finished"
        assert worker.end()[0] == 0


@pytest.mark.parametrize(
    ("number", "other"), [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)]
)
def test_the_second_signal_makes_it_leave_and_the_job_is_handed_on(
    own: Shell, module: str, number: int, other: int, tmp_path: Path
) -> None:
    with own.start("worker", module) as first, client_of(own) as client:
        first.until("registered")
        job = client.submit(f"{module}.until", f'{{"path": "{tmp_path / "end"}"}}'.encode())
        first.until("a job runs")
        first.signal(number)
        first.until("stopping")
        first.signal(other)  # the same one might be taken for an echo of the first
        code, stderr = first.end()
        assert code == 128 + other
        assert "leaving" in stderr
        assert "Traceback" not in stderr
        (tmp_path / "end").touch()
        with own.start("worker", module):
            assert job.result(timeout=20) == b"finished"


def test_a_task_that_blocks_the_loop_does_not_keep_it(own: Shell, module: str) -> None:
    with own.start("worker", module) as worker, client_of(own) as client:
        worker.until("registered")
        client.submit(f"{module}.blocking", b'{"seconds": 3600}')
        worker.until("a job runs")
        worker.signal(signal.SIGTERM)
        worker.signal(signal.SIGINT)
        assert worker.end()[0] in {128 + signal.SIGTERM, 128 + signal.SIGINT}  # the kernel orders them


def test_tasks_that_call_tasks_do_so_on_the_workers_own_servers(own: Shell, module: str) -> None:
    address = own.environment["GEARMAN_SERVERS"]
    with own.start("worker", module, "-s", address, GEARMAN_SERVERS="127.0.0.1:1") as worker:
        worker.until("registered")
        with client_of(own) as client:
            assert client.submit(f"{module}.double", b'{"a": 4}').result(timeout=20) == b"8"


def test_a_worker_without_jobs_stops_at_once(own: Shell, module: str) -> None:
    with own.start("worker", module) as worker:
        worker.until("registered")
        worker.signal(signal.SIGTERM)
        assert worker.end()[0] == 0


def test_it_waits_for_a_server_that_is_not_there(shell: Shell, module: str) -> None:
    with shell.start("worker", module, "-s", "127.0.0.1:1") as worker:
        worker.until("no connection to 127.0.0.1:1")
        worker.signal(signal.SIGTERM)
        assert worker.end()[0] == 0


# ----------------------------------------------------------------------------------- what does not import


def write(directory: Path, name: str, source: str) -> str:
    (directory / f"{name}.py").write_text(source)
    return name


def test_a_module_that_is_not_there_is_told_with_the_path_that_was_searched(tmp_path: Path) -> None:
    ended = Shell(tmp_path).run("worker", "no.such.module")
    assert ended.returncode == 78
    first, error, searched = ended.stderr.decode().splitlines()
    assert first == "gearflow: cannot import no.such.module"
    assert error == "ModuleNotFoundError: No module named 'no'"
    assert searched.startswith(f"searched: {tmp_path}, ")


def test_an_error_in_the_module_shows_the_users_own_lines_only(tmp_path: Path) -> None:
    source = "import json\n\n\ndef read():\n    return json.loads('x')\n\n\nread()\n"
    ended = Shell(tmp_path).run("worker", write(tmp_path, "broken", source))
    stderr = ended.stderr.decode()
    assert ended.returncode == 78
    assert f'File "{tmp_path / "broken.py"}", line 8, in <module>' in stderr
    assert "return json.loads('x')" in stderr
    assert "json.decoder.JSONDecodeError: Expecting value" in stderr
    assert stderr.count("  File ") == 2  # neither importlib's, nor json's, nor ours
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def f(:\n", "SyntaxError: invalid syntax"),
        ("import no_such_library\n", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("raise SystemExit(0)\n", "SystemExit: 0"),
        (
            "from gearflow.tasks import task\n@task\ndef f(a) -> None: ...\n",
            "write 'a: TYPE'",
        ),
        ("x = 1\n", "there are no tasks to run; put @task"),
        (
            "from gearflow.tasks import task\n@task(foreign=True)\ndef f() -> None: ...\n",
            "there are no tasks to run",
        ),
    ],
)
def test_a_module_that_cannot_be_served_is_78(tmp_path: Path, source: str, said: str) -> None:
    ended = Shell(tmp_path).run("worker", write(tmp_path, "module", source))
    assert ended.returncode == 78
    assert said in ended.stderr.decode()
    assert "Traceback" not in ended.stderr.decode()


def test_a_files_path_is_answered_with_the_modules_name(tmp_path: Path) -> None:
    ended = Shell(tmp_path).run("worker", "./myapp/tasks.py")
    assert ended.returncode == 78
    assert "give the module's name: myapp.tasks" in ended.stderr.decode()


def test_a_pattern_that_fits_nothing_names_the_tasks(shell: Shell, module: str) -> None:
    ended = shell.run("worker", module, "-f", "nope*")
    assert ended.returncode == 78
    assert f"there are {module}.add, " in ended.stderr.decode()


# ----------------------------------------------------------------------------------------- a start that hangs

STARTS = """
import asyncio
import os
import sys
import time

from gearflow import lifespan, task


@lifespan
async def database():
    sys.stderr.write("connecting\\n")
    {}
    yield


@task
def nothing() -> None: ...
"""


@pytest.mark.parametrize("options", [[], ["--processes", "2"]])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_ends_a_start_that_hangs(
    own: Shell, tmp_path: Path, number: int, options: list[str]
) -> None:
    module = write(tmp_path, f"starts_{number}_{len(options)}", STARTS.format("await asyncio.Event().wait()"))
    with Shell(tmp_path, own.environment).start("worker", module, *options) as worker:
        for _ in range(2 if options else 1):
            worker.until("connecting")
        worker.signal(number)
        code, stderr = worker.end()
    assert code == 0
    assert f"stopping; the start is given up  lifespan={module}.database" in stderr
    assert "leaving" not in stderr
    assert "killing" not in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    "number", [signal.SIGUSR2, signal.SIGTSTP, signal.SIGHUP], ids=lambda number: number.name
)
def test_a_signal_at_the_very_end_does_not_change_how_a_worker_ends(
    own: Shell, tmp_path: Path, number: signal.Signals
) -> None:
    source = f"""
import os
import threading
from gearflow.tasks import task

@task
def f() -> None: ...

class Last:
    def __del__(self, kill=os.kill, process=os.getpid()):
        kill(process, {int(number)})

threading.last = Last()  # Python takes its own modules apart last
"""
    name = write(tmp_path, f"last_{number.name.lower()}", source)
    ended = Shell(tmp_path, own.environment).run("worker", name, "--burst")
    assert ended.returncode == 0


def test_the_first_signal_ends_a_start_that_blocks_the_loop(own: Shell, tmp_path: Path) -> None:
    module = write(tmp_path, "starts_blocked", STARTS.format("time.sleep(3600)"))
    with Shell(tmp_path, own.environment).start("worker", module) as worker:
        worker.until("connecting")
        worker.signal(signal.SIGTERM)
        worker.until("a lifespan hook does not end; leaving without it")
        assert worker.end()[0] == 0


IMPORTS = """
import ctypes
import sys
import time

from gearflow import task


@task
def nothing() -> None: ...


sys.stderr.write("importing\\n")
{}
"""

IN_C = """
mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
lock(mutex)
lock(mutex)
"""
"""A call that no signal interrupts: Python comes to handle none."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("statement", ["time.sleep(3600)", IN_C], ids=["in Python", "in C"])
def test_the_first_signal_ends_an_import_that_hangs(tmp_path: Path, number: int, statement: str) -> None:
    with Shell(tmp_path).start("worker", write(tmp_path, "imports", IMPORTS.format(statement))) as worker:
        worker.until("importing")
        worker.signal(number)
        assert worker.end() == (0, "")


WAITS = """
import os
import sys
import time

from gearflow import task


@task
def nothing() -> None: ...


sys.stderr.write("importing\\n")
while not os.path.exists("{}"):
    time.sleep(0.01)
"""


def test_other_signals_wait_for_the_end_of_an_import(own: Shell, tmp_path: Path) -> None:
    module = write(tmp_path, "waits", WAITS.format(tmp_path / "end"))
    with Shell(tmp_path, own.environment).start("worker", module) as worker:
        worker.until("importing")
        worker.signal(signal.SIGUSR2)
        worker.until("most recent call first")
        worker.signal(signal.SIGTSTP)
        worker.signal(signal.SIGUSR2)
        worker.until("most recent call first")
        (tmp_path / "end").touch()
        worker.until("quiet")
        worker.signal(signal.SIGUSR2)
        worker.until("0 running")
        (tmp_path / "end").unlink()
        worker.signal(signal.SIGHUP)
        worker.until("importing")
        worker.signal(signal.SIGHUP)
        worker.signal(signal.SIGUSR2)
        worker.until("most recent call first")
        (tmp_path / "end").touch()
        worker.until("importing")
        worker.until("registered")
        worker.signal(signal.SIGTERM)
        assert worker.end()[0] == 0


@pytest.mark.parametrize("command", ["worker", "server"])
def test_a_standard_input_that_the_shell_closed_is_no_reason_to_abort(
    own: Shell, module: str, command: str
) -> None:
    arguments = [module] if command == "worker" else ["-p", "0", "--memory"]
    with own.start(command, *arguments, closed="<&-") as running:
        running.until("registered" if command == "worker" else "listens")
        running.signal(signal.SIGTERM)
        assert running.end()[0] == 0


# ------------------------------------------------------------------------------------ processes of the tasks

FORKS = """
import multiprocessing
import os
import signal
import time

from gearflow import task


@task(executor="{}")
def shown() -> int:
    # The exit code of a forked child that gets SIGUSR2.
    context = multiprocessing.get_context("fork")
    began, end = context.Event(), context.Event()

    def wait():
        began.set()
        end.wait(20)

    child = context.Process(target=wait)
    child.start()
    try:
        began.wait(20)
        os.kill(child.pid, signal.SIGUSR2)
        end.set()
        child.join(20)
        return child.exitcode
    finally:
        child.kill()


@task(executor="{}")
def terminated() -> int | None:
    return end_by(signal.SIGTERM)


@task(executor="{}")
def interrupted() -> int | None:
    return end_by(signal.SIGINT)


def end_by(number):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(3600,))
    child.start()
    try:
        for _ in range(10 if number == signal.SIGINT else 1):  # Python may lose one at the fork
            os.kill(child.pid, number)
            child.join(10 if number == signal.SIGTERM else 1)
            if child.exitcode is not None:
                break
        return child.exitcode
    finally:
        child.kill()
"""


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_a_signal_ends_a_process_that_a_task_has_forked(own: Shell, tmp_path: Path, executor: str) -> None:
    module = write(tmp_path, f"forks_{executor}", FORKS.format(executor, executor, executor))
    with Shell(tmp_path, own.environment).start("worker", module) as worker, client_of(own) as client:
        worker.until("registered")
        for _ in range(3):  # it may come before the process has begun, or later
            result = client.submit(f"{module}.terminated", b"{}").result(timeout=20)
            assert result == str(-signal.SIGTERM).encode()
            result = client.submit(f"{module}.interrupted", b"{}").result(timeout=20)
            assert result in (b"1", str(-signal.SIGINT).encode())


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_usr2_ends_no_process_that_a_task_has_forked(own: Shell, tmp_path: Path, executor: str) -> None:
    module = write(tmp_path, f"shows_{executor}", FORKS.format(executor, executor, executor))
    with Shell(tmp_path, own.environment).start("worker", module) as worker, client_of(own) as client:
        worker.until("registered")
        for _ in range(3):
            assert client.submit(f"{module}.shown", b"{}").result(timeout=20) == b"0"


# --------------------------------------------------------------------------------------------- other signals


def test_a_quiet_worker_takes_nothing_until_it_is_to_go_on(own: Shell, module: str) -> None:
    with own.start("worker", module) as worker, client_of(own) as client:
        worker.until("registered")
        worker.signal(signal.SIGTSTP)
        worker.until("quiet")
        job = client.submit(f"{module}.add", b'{"a": 1}')
        assert not client.status(job.handle).running
        worker.signal(signal.SIGCONT)
        assert job.result(timeout=20) == b"3"


def test_usr2_shows_what_runs_and_where(own: Shell, module: str, tmp_path: Path) -> None:
    with own.start("worker", module) as worker, client_of(own) as client:
        worker.until("registered")
        job = client.submit(f"{module}.until", f'{{"path": "{tmp_path / "end"}"}}'.encode())
        worker.until("a job runs")
        worker.signal(signal.SIGUSR2)
        worker.until("Stack (most recent call first)")
        worker.until("1 running, 0 held, 0 overdue")
        assert f"handle={job.handle}" in worker.until(f"{module}.until for ")
        worker.until(f'{module}.py", line')  # where its coroutine is
        (tmp_path / "end").touch()
        assert job.result(timeout=20) == b"finished"


REPLACED = """
import io
import sys

from gearflow import task

sys.stderr = io.StringIO()


@task
async def wait(path: str) -> None:
    open(path).close()
"""


def test_usr2_shows_also_a_worker_whose_module_has_replaced_stderr(own: Shell, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    module = write(tmp_path, "replaces", REPLACED)
    with Shell(tmp_path, own.environment).start("worker", module) as worker, client_of(own) as client:
        job = client.submit("replaces.wait", str(gate).encode())
        with gate.open("w"):  # when it is opened at the other end, too
            pass
        job.result(timeout=20)
        worker.signal(signal.SIGUSR2)
        worker.until("0 running, 0 held, 0 overdue")


IMPORTED = """
import os
import signal
from gearflow_cli.process.signals import ending_at_once

with ending_at_once():
    pass
os.kill(os.getpid(), signal.SIGUSR2)
print("goes on")
"""


def test_usr2_waits_between_the_import_and_the_start() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "goes on\n")


BUSY = """
import sys
import time
from pathlib import Path

from gearflow import task


def recurse(depth: int) -> int:
    names = {}
    exec("def call(recurse, depth): return recurse(depth - 1)", names)  # a new code object each time
    return names["call"](recurse, depth) if depth else 0


@task
def spin(path: Path, number: int) -> None:
    while not path.exists():
        for depth in range(20):
            recurse(depth)


@task
def hold() -> int:
    sys.stderr.write("a job runs\\n")
    return sum(range(10**15))
"""


def test_usr2_harms_no_thread_that_runs(own: Shell, tmp_path: Path) -> None:
    module = write(tmp_path, f"{tmp_path.name}_spin".replace("-", "_"), BUSY)
    with (
        Shell(tmp_path, own.environment).start("worker", module, "-c", "4") as worker,
        client_of(own) as client,
    ):
        worker.until("registered")
        end = tmp_path / "end"
        jobs = [
            client.submit(f"{module}.spin", f'{{"path": "{end}", "number": {n}}}'.encode()) for n in range(4)
        ]
        for _ in range(100):
            worker.signal(signal.SIGUSR2)
            worker.until(" running, 0 held, 0 overdue")
        worker.until("in spin")  # the stack of a thread
        end.touch()
        for job in jobs:
            job.result(timeout=20)


def test_quit_shows_a_task_that_holds_the_interpreter_lock(own: Shell, tmp_path: Path) -> None:
    module = write(tmp_path, f"{tmp_path.name}_hold".replace("-", "_"), BUSY)
    with Shell(tmp_path, own.environment).start("worker", module) as worker, client_of(own) as client:
        resource.prlimit(worker.process.pid, resource.RLIMIT_CORE, (0, 0))  # it leaves no core file
        worker.until("registered")
        client.submit(f"{module}.hold", b"{}")
        worker.until("a job runs")
        worker.signal(signal.SIGQUIT)
        worker.until("in hold")
        assert worker.end()[0] == -signal.SIGQUIT


def test_quit_ends_a_worker_that_a_script_has_started_with_an_ampersand(own: Shell, tmp_path: Path) -> None:
    module = write(tmp_path, f"{tmp_path.name}_quit".replace("-", "_"), BUSY)
    before = signal.signal(
        signal.SIGQUIT, signal.SIG_IGN
    )  # as a shell without job control does for its children
    try:
        with Shell(tmp_path, own.environment).start("worker", module) as worker:
            resource.prlimit(worker.process.pid, resource.RLIMIT_CORE, (0, 0))  # it leaves no core file
            worker.until("registered")
            worker.signal(signal.SIGQUIT)
            assert worker.end()[0] == -signal.SIGQUIT
    finally:
        signal.signal(signal.SIGQUIT, before)


def test_hup_finishes_what_runs_and_begins_anew_with_new_code(own: Shell, tmp_path: Path) -> None:
    shell = Shell(tmp_path, own.environment)
    module = write(tmp_path, f"{tmp_path.name}_hup".replace("-", "_"), VERSION.format(1))
    with shell.start("worker", module) as worker, client_of(shell) as client:
        worker.until("registered")
        running = client.submit(f"{module}.version", f'{{"path": "{tmp_path / "end"}"}}'.encode())
        worker.until("a job runs")
        write(tmp_path, module, VERSION.format(22))  # another size: Python compares that
        worker.signal(signal.SIGHUP)
        worker.until("stopping")
        (tmp_path / "end").touch()
        assert running.result(timeout=20) == b"1"
        job = client.submit(f"{module}.version", f'{{"path": "{tmp_path / "end"}"}}'.encode())
        assert job.result(timeout=20) == b"22"
        worker.signal(signal.SIGTERM)
        assert worker.end()[0] == 0


def test_hup_begins_anew_where_the_worker_was_started(own: Shell, tmp_path: Path) -> None:
    source = (
        f"import os\n\nfrom gearflow import task\n\nos.chdir({os.sep!r})\n\n\n@task\ndef t() -> None: ...\n"
    )
    with Shell(tmp_path, own.environment).start("worker", write(tmp_path, "goes", source)) as worker:
        worker.until("registered")
        worker.signal(signal.SIGHUP)
        worker.until("registered")
        worker.signal(signal.SIGTERM)
        assert worker.end()[0] == 0


def test_a_quiet_worker_stays_quiet_when_it_begins_anew(own: Shell, module: str) -> None:
    with own.start("worker", module) as worker, client_of(own) as client:
        worker.until("registered")
        worker.signal(signal.SIGTSTP)
        worker.until("quiet")
        worker.signal(signal.SIGHUP)
        worker.until("quiet")
        worker.until("registered")
        job = client.submit(f"{module}.add", b'{"a": 1}')
        assert not client.status(job.handle).running
        worker.signal(signal.SIGCONT)
        assert job.result(timeout=20) == b"3"


def test_a_worker_whose_terminal_is_closed_ends(own: Shell, module: str, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    # A session without a terminal gets the first one that it opens.
    command = ["sh", "-c", f'exec "$@" <>{os.ttyname(theirs)} >&0 2>&0', "sh", *COMMAND, "worker", module]
    environment = {**os.environ, **own.environment}
    with subprocess.Popen(command, cwd=own.directory, env=environment, start_new_session=True) as process:
        said = b""
        while b"registered" not in said:
            said += os.read(ours, 1000)
        os.close(theirs)
        os.close(ours)
        assert process.wait(timeout=20) == 0


@pytest.mark.parametrize("options", [[], ["--processes", "2"]], ids=["one process", "a fleet"])
def test_a_worker_whose_log_nobody_reads_ends_as_another(own: Shell, module: str, options: list[str]) -> None:
    with own.start("worker", module, *options) as worker:
        worker.until("registered")
        worker.close_stderr()
        worker.signal(signal.SIGTERM)
        assert worker.process.wait(timeout=20) == 0


# ------------------------------------------------------------------------------------------ drain and burst


def test_what_does_not_end_within_drain_is_handed_on(own: Shell, module: str, tmp_path: Path) -> None:
    with own.start("worker", module, "--drain", "0.1") as first, client_of(own) as client:
        first.until("registered")
        job = client.submit(f"{module}.until", f'{{"path": "{tmp_path / "end"}"}}'.encode())
        first.until("a job runs")
        first.signal(signal.SIGTERM)
        assert first.end()[0] == 128 + signal.SIGTERM
        (tmp_path / "end").touch()
        with own.start("worker", module):
            assert job.result(timeout=20) == b"finished"


def test_a_burst_works_off_what_is_there_and_ends(own: Shell, module: str) -> None:
    with client_of(own) as client:
        for number in range(5):
            client.submit_background(f"{module}.add", f'{{"a": {number}}}'.encode())
        ended = own.run("worker", module, "--burst")
        assert ended.returncode == 0
        assert ended.stderr.count(b"job done") == 5
        client.submit_background(f"{module}.divide", b'{"a": 1, "b": 0}')
        assert own.run("worker", module, "--burst").returncode == 1


# ---------------------------------------------------------------------------------------------- the rest


@pytest.mark.parametrize(
    ("options", "answer"),
    [((), (WorkWarning, WorkFail)), (("--gearmand-exceptions",), (WorkException,))],
    ids=["warning", "exception"],
)
async def test_an_option_decides_how_c_gearmand_gets_a_failure(
    shell: Shell, module: str, gearmand: str, options: tuple[str, ...], answer: tuple[type[Packet], ...]
) -> None:
    host, _, port = gearmand.rpartition(":")
    with shell.start("worker", module, "-s", gearmand, *options) as worker:
        worker.drain()
        async with await ScriptedPeer.connect(host, int(port), timeout=30) as client:
            await client.send(OptionReq(b"exceptions"), SubmitJob(f"{module}.add".encode(), b"", b"nonsense"))
            said = [await client.receive() for _ in range(2 + len(answer))]
    assert tuple(map(type, said)) == (OptionRes, JobCreated, *answer)


def test_check_asks_each_server_and_needs_no_module(own: Shell) -> None:
    address = own.environment["GEARMAN_SERVERS"]
    ended = own.run("worker", "--check", "-s", "127.0.0.1:1", "-s", address)
    assert ended.returncode == 0
    assert ended.stdout.decode().splitlines() == ["127.0.0.1:1  connection refused", f"{address}  answers"]


def test_check_fails_if_no_server_answers(own: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        ended = own.run("worker", "--check", "--check-timeout", "0.2s", "-s", address)
    assert ended.returncode == 69
    assert ended.stdout.decode().startswith(f"{address}  no ")


def test_check_refuses_a_timeout_of_zero(own: Shell) -> None:
    ended = own.run("worker", "--check", "--check-timeout", "0")
    assert ended.returncode == 2
    assert ended.stderr.startswith(b"gearflow: --check-timeout 0 leaves no time for an answer")


def test_a_worker_without_a_module_is_told_what_to_name(own: Shell) -> None:
    ended = own.run("worker")
    assert ended.returncode == 2
    assert b"MODULE" in ended.stderr


def test_a_log_in_json_is_nothing_else(own: Shell, module: str) -> None:
    with client_of(own) as client:
        client.submit_background(f"{module}.add", b'{"a": 1}')
        ended = own.run("worker", module, "--burst", "--log-json")
    records = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [record["task"] for record in records if record["message"] == "job done"] == [f"{module}.add"]
    assert records[0]["message"].startswith("serving ")
    assert records[0]["level"] == "info"
    ended = own.run("worker", "no_such_module", "--log-json")
    (record,) = [json.loads(line) for line in ended.stderr.splitlines()]
    assert record["message"].startswith("cannot import no_such_module")
    assert record["level"] == "error"
