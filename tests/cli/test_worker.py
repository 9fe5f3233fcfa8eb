"""``gearflow worker`` in a process of its own: what it says, and how it ends."""

import signal
from pathlib import Path

import pytest

from gearflow.client import SyncClient
from tests.cli.shell import Shell


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
            assert job.result(timeout=10) == b"3"
        line = worker.until("job done")
        assert f"task={module}.add" in line
        assert f"handle={job.handle}" in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_it_finish(own: Shell, module: str, number: int, tmp_path: Path) -> None:
    with own.start("worker", module) as worker, client_of(own) as client:
        worker.until("registered")
        job = client.submit(f"{module}.until", f'{{"path": "{tmp_path / "end"}"}}'.encode())
        worker.until("a job runs")
        worker.signal(number)
        worker.until("stopping")
        (tmp_path / "end").touch()
        assert job.result(timeout=10) == b"finished"
        code, stderr = worker.end()
        assert code == 0
        assert "Traceback" not in stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_makes_it_leave_and_the_job_is_handed_on(
    own: Shell, module: str, number: int, tmp_path: Path
) -> None:
    with own.start("worker", module) as first, client_of(own) as client:
        first.until("registered")
        job = client.submit(f"{module}.until", f'{{"path": "{tmp_path / "end"}"}}'.encode())
        first.until("a job runs")
        first.signal(number)
        first.until("stopping")
        first.signal(number)
        code, stderr = first.end()
        assert code == 128 + number
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
            assert client.submit(f"{module}.double", b'{"a": 4}').result(timeout=10) == b"8"


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
