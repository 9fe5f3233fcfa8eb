"""``gearflow submit`` over the bundled server and a real worker process."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from typer.testing import CliRunner

from gearflow.client import SyncAdmin, SyncClient
from gearflow.protocol import packets as p
from gearflow.server import JobServer
from gearflow.testing.peer import ScriptedServer
from gearflow_cli.app import app
from gearflow_cli.function_names import resolve
from gearflow_cli.progress import ProgressView
from tests.cli.shell import COMMAND, Shell, outcome, said_on


def test_a_bare_name_and_pairs_are_enough(served: Shell) -> None:
    assert outcome(served.run("submit", "add", "a=1", "b=2")) == (0, "3\n", "")


def test_a_full_name_does_as_well(served: Shell, module: str) -> None:
    assert outcome(served.run("submit", f"{module}.add", '{"a": 1}')) == (0, "3\n", "")


def test_the_module_makes_texts_of_what_looks_like_numbers(served: Shell, module: str) -> None:
    ended = served.run("submit", "-m", module, "settings_of", "text=007", "number=7")
    assert json.loads(ended.stdout) == {"text": "007", "number": 7}


def test_the_module_may_be_named_in_the_environment(served: Shell, module: str) -> None:
    assert outcome(served.run("submit", "shout", "hello", GEARFLOW_TASKS=module)) == (0, "HELLO\n", "")


def test_a_module_of_the_environment_need_not_be_importable(served: Shell) -> None:
    code, stdout, stderr = outcome(served.run("submit", "add", "a=1", GEARFLOW_TASKS="no.such"))
    assert (code, stdout) == (0, "3\n")
    assert "warning: GEARFLOW_TASKS: cannot import no.such" in stderr


def test_a_module_of_the_command_line_has_to_be(served: Shell) -> None:
    code, stdout, stderr = outcome(served.run("submit", "-m", "no.such", "add", "a=1"))
    assert (code, stdout) == (78, "")
    assert "No module named 'no'" in stderr
    assert str(served.directory) in stderr.splitlines()[-1]


def test_where_a_module_was_searched_is_told_only_if_one_was_not_found(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("1 / 0\n")
    (tmp_path / "lacks.py").write_text("import no_such_module\n")
    here = Shell(tmp_path, shell.environment)
    assert "searched" not in here.run("submit", "-m", "fails", "a.b").stderr.decode()
    assert "searched" in here.run("submit", "-m", "lacks", "a.b").stderr.decode()


def test_a_misspelt_task_of_the_module_is_told_before_the_servers_are_asked(
    served: Shell, module: str
) -> None:
    code, stdout, stderr = outcome(served.run("submit", "-m", module, "ad", "a=1"))
    assert (code, stdout) == (2, "")
    assert f"warning: no task named 'ad'; did you mean '{module}.add'" in stderr


def test_arguments_that_do_not_fit_are_refused_before_they_are_sent(own: Shell, module: str) -> None:
    code, stdout, stderr = outcome(
        own.run("submit", "-m", module, "add", "a=x", "c=1", GEARMAN_SERVERS="127.0.0.1:1")
    )
    assert (code, stdout) == (65, "")
    assert f"{module}.add(a: int, b: int = 2) -> int" in stderr
    assert "a: Input should be a valid integer" in stderr
    assert "c: there is no such parameter; there are a, b" in stderr


def test_a_worker_that_refuses_the_payload_is_the_same_failure(served: Shell) -> None:
    code, _, stderr = outcome(served.run("submit", "add", "a=x"))
    assert code == 65
    assert stderr.count("Input should be a valid integer") == 1
    assert "the payload does not fit its types:\n  a: Input should be a valid integer" in stderr


def test_a_payload_may_come_from_standard_input(served: Shell) -> None:
    assert outcome(served.run("submit", "add", "-", stdin=b'{"a": 40}')) == (0, "42\n", "")


def test_bytes_pass_through_as_they_are(served: Shell) -> None:
    ended = served.run("submit", "reverse", "--raw", "-", stdin=b"\0\xff\n\x80")
    assert (ended.returncode, ended.stdout) == (0, b"\x80\n\xff\0")


def test_a_result_of_type_bytes_gets_no_line_end(served: Shell, module: str) -> None:
    assert served.run("submit", "-m", module, "reverse", "abc").stdout == b"cba"


def test_a_result_of_none_is_null(served: Shell) -> None:
    assert outcome(served.run("submit", "nothing")) == (0, "null\n", "")


def test_values_of_a_task_that_yields_are_lines(served: Shell, module: str) -> None:
    ended = served.run("submit", "-m", module, "count_up", "to=5")
    assert outcome(ended) == (0, "0\n1\n2\n3\n4\n", "")
    assert outcome(served.run("submit", "-m", module, "letters", "abc")) == (0, "a\nb\nc\n", "")
    assert outcome(served.run("submit", "-m", module, "count_up", "to=0")) == (0, "", "")


def test_without_the_module_values_are_lines_too(served: Shell) -> None:
    assert outcome(served.run("submit", "letters", "abc")) == (0, "a\nb\nc\n", "")


def test_the_result_of_a_background_job_that_yields_is_its_values(served: Shell) -> None:
    for count, code in (("5", 0), ("3", 1)):
        handle = outcome(served.run("submit", "--bg", "count_up", f"to={count}"))[1].strip()
        ended, values, _ = outcome(served.run("result", handle))
        assert (ended, values.splitlines()) == (code, [str(number) for number in range(int(count))])


def test_values_that_are_kept_cannot_steer_the_terminal(served: Shell, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    handle = outcome(served.run("submit", "--bg", "letters", "a\x1bb"))[1].strip()
    served.run("result", handle)
    ended = subprocess.run(
        [*COMMAND, "result", handle],
        cwd=served.directory,
        env=os.environ | served.environment,
        stdout=theirs,
        timeout=60,
        check=False,
    )
    shown = said_on(ours, theirs).decode()
    assert ended.returncode == 0
    assert shown.splitlines() == ["a", "\\x1b", "b"]


def test_the_values_before_a_failure_are_written(served: Shell, module: str) -> None:
    code, stdout, stderr = outcome(served.run("submit", "-m", module, "count_up", "to=3"))
    assert (code, stdout) == (1, "0\n1\n2\n")
    assert "LookupError: no more" in stderr


def test_values_that_begin_again_are_told(served: Shell, module: str) -> None:
    ended = served.run("submit", "-m", module, "--retries", "1", "count_up", "to=3")
    code, stdout, stderr = outcome(ended)
    assert (code, stdout) == (1, "0\n1\n2\n" * 2)
    assert "warning: the job runs again, and its output begins again" in stderr


def test_values_that_begin_again_at_another_server_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressView("count_up", values=True) as view:
        for handle in (b"H:one:1", b"H:one:1", b"H:two:1", b"H:two:1"):
            view.show(p.WorkData(handle, b"0"))
    stdout, stderr = capsys.readouterr()
    assert (stdout, stderr.count("the job runs again, and its output begins again")) == ("0\n" * 4, 1)


def test_a_file_gets_the_result_as_it_is(served: Shell, module: str, tmp_path: Path) -> None:
    file = tmp_path / "result"
    assert outcome(served.run("submit", "-o", str(file), "add", "a=1")) == (0, "", "")
    assert file.read_bytes() == b"3"
    served.run("submit", "-m", module, "--output", str(file), "letters", "abc")
    assert file.read_bytes() == b"abc"
    served.run("submit", "--output", str(file), "blobs", "number=30")
    assert file.stat().st_size == 30_000_000
    code, _, stderr = outcome(served.run("submit", "-o", str(tmp_path), "add", "a=1"))
    assert code == 74
    assert "Is a directory" in stderr


def test_a_bare_value_is_the_only_parameter(served: Shell, module: str) -> None:
    assert outcome(served.run("submit", "odd", "3")) == (0, "true\n", "")
    assert outcome(served.run("submit", "-m", module, "odd", "4")) == (0, "false\n", "")
    assert outcome(served.run("submit", "-m", module, "sum_up", "[1, 2]")) == (0, "3\n", "")
    assert outcome(served.run("submit", "sum_up", "-", stdin=b"[1, 2]")) == (0, "3\n", "")
    assert outcome(served.run("submit", "-m", module, "odd", '"x"'))[0] == 65
    assert outcome(served.run("submit", "-m", module, "divide", "3"))[0] == 2


def test_a_task_that_fails_tells_why_and_its_traceback_if_asked(served: Shell) -> None:
    code, stdout, stderr = outcome(served.run("submit", "divide", "a=1", "b=0"))
    assert (code, stdout) == (1, "")
    assert "divide failed: ZeroDivisionError: float division by zero" in stderr
    assert "Traceback" not in stderr
    code, stdout, stderr = outcome(served.run("submit", "-v", "divide", "a=1", "b=0"))
    assert (code, stdout) == (1, "")
    assert "return a / b" in stderr


def test_warnings_are_told_and_cannot_steer_the_terminal(served: Shell) -> None:
    code, stdout, stderr = outcome(served.run("submit", "warn"))
    assert (code, stdout) == (0, "done\n")
    assert stderr == "gearflow: warning: half way\\x1b[31m\n"


def test_bg_prints_the_handle_alone(served: Shell) -> None:
    code, stdout, stderr = outcome(served.run("submit", "--bg", "add", "a=1"))
    assert (code, stderr) == (0, "")
    assert stdout.startswith("H:")
    assert stdout.count("\n") == 1


def test_a_delayed_job_is_not_run_before_its_time(own: Shell, module: str) -> None:
    ended = own.run("submit", "-m", module, "--bg", "--delay", "1h", "add", "a=1")
    assert ended.returncode == 0
    with SyncClient([own.environment["GEARMAN_SERVERS"]]) as client:
        status = client.status(ended.stdout.decode().strip())
    assert (status.known, status.running) == (True, False)


def test_options_of_the_task_hold_for_the_shell_too(own: Shell, module: str) -> None:
    arguments = ("submit", "-m", module, "--bg", "settings_of", "text=a")
    assert own.run(*arguments).stdout == own.run(*arguments).stdout  # unique=True: the same job


def test_a_key_joins_the_waiting_job(own: Shell, module: str) -> None:
    arguments = ("submit", "-m", module, "--bg", "--unique", "k", "add")
    assert own.run(*arguments, "a=1").stdout == own.run(*arguments, "a=2").stdout


def test_a_wait_that_is_limited_ends_with_75_and_says_that_the_job_is_dropped(
    own: Shell, module: str
) -> None:
    code, stdout, stderr = outcome(own.run("submit", "-m", module, "--timeout", "0.1", "add", "a=1"))
    assert (code, stdout) == (75, "")
    assert "has not ended within 0.1 s: no worker has taken it" in stderr


def test_a_wait_that_is_limited_ends_with_75_and_others_wait_on(
    own: Shell, module: str, tmp_path: Path
) -> None:
    payload = json.dumps({"path": str(tmp_path / "end")})
    with own.start("worker", module) as worker, SyncClient([own.environment["GEARMAN_SERVERS"]]) as client:
        job = client.submit(f"{module}.until", payload.encode(), unique="k")
        worker.until("a job runs")
        ended = own.run("submit", "--timeout", "0.1s", "--unique", "k", "until", payload)
        assert ended.returncode == 75
        said = f"{job.handle} has not ended within 0.1 s: it is cancelled unless others wait for it"
        assert said in ended.stderr.decode()
        (tmp_path / "end").touch()
        assert job.result(timeout=20) == b"finished"


def test_interrupting_the_wait_cancels_the_job(own: Shell, module: str, tmp_path: Path) -> None:
    with (
        own.start("worker", module) as worker,
        own.start("submit", "-m", module, "until", f"path={tmp_path / 'end'}") as submission,
    ):
        submission.until("it runs")
        submission.signal(signal.SIGINT)
        code, stderr = submission.end()
        worker.until("job cancelled")
    assert code == 130
    assert stderr.startswith("gearflow: stopped waiting for H:")
    assert "it is cancelled unless others wait for it" in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--delay", "5m"], "--delay is for jobs that nobody waits for: add --bg"),
        (["--at", "2030-01-01"], "--at is for jobs that nobody waits for: add --bg"),
        (["--at", "tomorrow"], "'tomorrow' is no time"),
        (["--bg", "--at", "9999-12-31"], "'9999-12-31' is too late"),
        (["--bg", "--delay", "5m", "--at", "2030-01-01"], "leave out one of them"),
        (["--bg", "--timeout", "5s"], "--bg does not wait"),
        (["--unique", ""], "--unique needs a key"),
        (["--unique", "~" + "0" * 32], "for gearflow's own keys"),
        (["--reuse"], "add --unique"),
        (["--run-limit", "0"], "a task cannot run in no time"),
        (["--keep", "1e11"], "'1e11' is no"),
        (["--retries", "-1"], "--retries"),
    ],
)
def test_options_that_make_no_sense_together_are_usage_errors(arguments: list[str], said: str) -> None:
    ended = CliRunner().invoke(app, ["submit", "add", "a=1", *arguments])
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert said in ended.stderr


@pytest.mark.parametrize("typed", [True, False], ids=["with the module", "without it"])
@pytest.mark.parametrize("time", ["1960-01-01", "0001-01-01", "0001-01-01T00:00Z"])
def test_a_time_that_is_long_past_means_now(own: Shell, module: str, time: str, typed: bool) -> None:
    how = ["-m", module] if typed else []
    ended = own.run("submit", *how, "--bg", "--at", time, f"{module}.add", "a=1")
    assert ended.returncode == 0, ended.stderr
    info = json.loads(own.run("job", ended.stdout.decode().strip(), "--json").stdout)
    assert info["state"] == "waiting"


def test_the_command_line_comes_before_what_contradicts_it_in_the_environment(served: Shell) -> None:
    add = ("add", "a=1")
    assert served.run("submit", "--bg", *add, GEARFLOW_TIMEOUT="30s").stdout.startswith(b"H:")
    assert served.run("submit", "--timeout", "30s", *add, GEARFLOW_BG="1").stdout == b"3\n"
    both = served.run("submit", *add, GEARFLOW_BG="1", GEARFLOW_TIMEOUT="30s")
    assert both.stdout.startswith(b"H:")


def test_the_environment_does_not_say_which_job_is_meant(own: Shell, module: str) -> None:
    own = Shell(own.directory, own.environment | {"GEARFLOW_UNIQUE": "k"})
    one, other = (own.run("submit", "--bg", f"{module}.add", "a=1").stdout.decode().strip() for _ in "ab")
    assert one != other
    assert json.loads(own.run("job", one, "--json").stdout)["handle"] == one


@pytest.mark.parametrize(
    ("unique", "said"),
    [
        ("lambda a: 1 / 0", "ZeroDivisionError"),
        ("lambda a: 7", "returned 7, not a key"),
        ("lambda b: 'k'", "unexpected keyword argument 'a'"),
    ],
)
def test_a_function_of_the_task_that_fails_is_78(own: Shell, tmp_path: Path, unique: str, said: str) -> None:
    (tmp_path / "odd.py").write_text(
        f"from gearflow import task\n@task(unique={unique})\ndef slip(a: int) -> None: ...\n"
    )
    here = Shell(tmp_path, own.environment)
    for how in ([], ["--bg"]):
        code, stdout, stderr = outcome(here.run("submit", "-m", "odd", *how, "slip", "a=1"))
        assert (code, stdout) == (78, "")
        assert stderr.startswith("gearflow: task odd.slip:\n")
        assert said in stderr


def test_a_payload_cannot_come_from_a_standard_input_that_is_closed(own: Shell) -> None:
    shell = f"exec {' '.join(COMMAND)} submit a.b - <&-"
    ended = subprocess.run(
        ["/bin/sh", "-c", shell], env=own.environment, capture_output=True, check=False, timeout=60
    )
    assert outcome(ended) == (2, "", "gearflow: cannot read standard input: it is closed\n")


def test_a_function_whose_name_is_no_text_takes_no_options() -> None:
    ended = CliRunner().invoke(app, ["submit", "--bg", "--delay", "5m", "a.\udcff", "a=1"])
    assert ended.exit_code == 2
    assert "is not UTF-8" in ended.stderr


def test_finding_the_function_takes_no_longer_than_the_wait() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        ended = CliRunner().invoke(app, ["submit", "-s", address, "--timeout", "1s", "a.b", "a=1"])
    assert (ended.exit_code, ended.stdout) == (69, "")
    assert "did not answer 'status' within 1 s" in ended.stderr


async def test_a_server_that_does_not_acknowledge_a_job_is_not_waited_for_longer(shell: Shell) -> None:
    async with ScriptedServer(timeout=30) as server, anyio.create_task_group() as tasks:
        tasks.start_soon(_take_and_be_silent, server)
        command = partial(shell.run, "submit", "-s", server.address, "--timeout", "1s", "a.b", "--raw", "x")
        code, stdout, stderr = outcome(await anyio.to_thread.run_sync(command))
        assert (code, stdout) == (76, "")
        assert "a.b: no server has acknowledged it within 1 s; the job may exist or not" in stderr


async def _take_and_be_silent(server: ScriptedServer) -> None:
    async with await server.accept() as admin:
        await admin.expect(b"status")
        await admin.send(b".\n")
    async with await server.accept() as peer:
        await peer.shake_hands(gearflow=True)
        await peer.expect(p.SubmitJob(b"a.b", b"", b"x"))
        await peer.expect_end()


def test_a_raw_payload_has_no_key_of_the_tasks(own: Shell, module: str) -> None:
    code, _, stderr = outcome(own.run("submit", "-m", module, "--raw", "--reuse", "settings_of", "{}"))
    assert code == 2
    assert "add --unique" in stderr


@pytest.mark.parametrize("option", ["--retries", "--run-limit"])
def test_what_only_gearflows_workers_do_is_refused_for_foreign_tasks(
    own: Shell, module: str, option: str
) -> None:
    code, _, stderr = outcome(own.run("submit", "-m", module, option, "3", "elsewhere", "text=a"))
    assert code == 2
    assert f"others run {module}.elsewhere" in stderr


@pytest.mark.parametrize("typed", [True, False], ids=["with the module", "without it"])
def test_what_is_asked_of_a_background_job_reaches_the_server(own: Shell, module: str, typed: bool) -> None:
    wishes = ["--at", "2100-01-01T00:00Z", "--priority", "high"]
    how = ["-m", module] if typed else []
    name = "add" if typed else f"{module}.add"
    ended = own.run("submit", *how, "--bg", "--unique", "k", *wishes, name, "a=1")
    assert ended.returncode == 0, ended.stderr
    handle = ended.stdout.decode().strip()
    info = json.loads(own.run("job", handle, "--json").stdout)
    assert (info["state"], info["priority"], info["unique"]) == ("delayed", "high", "k")
    assert info["due"] == 4102444800.0
    ended = own.run("submit", *how, "--bg", "--expires", "0", name, "a=1")
    code, _, stderr = outcome(own.run("result", ended.stdout.decode().strip(), "--timeout", "30"))
    assert code == 1
    assert "Expired" in stderr


@pytest.mark.parametrize("typed", [True, False], ids=["with the module", "without it"])
def test_a_result_is_kept_as_long_as_asked(served: Shell, module: str, typed: bool) -> None:
    how = ["-m", module] if typed else []
    handle = served.run("submit", *how, "--bg", "--keep", "7d", "add", "a=1").stdout.decode().strip()
    assert served.run("result", handle).returncode == 0
    info = json.loads(served.run("job", handle, "--json").stdout)
    assert info["kept_until"] - info["ended"] == pytest.approx(7 * 86400, abs=1)


def test_a_kept_success_answers_where_it_may_be_used_again(served: Shell, fresh: Callable[..., str]) -> None:
    again = ("submit", "--unique", fresh("key"), "--reuse")
    handle = served.run(*again, "--bg", "add", "a=1").stdout.decode().strip()
    assert outcome(served.run("result", handle, "--timeout", "30")) == (0, "3\n", "")
    assert outcome(served.run(*again, "add", "a=5")) == (0, "3\n", "")
    assert outcome(served.run(*again, "--bg", "add", "a=5")) == (0, f"{handle}\n", "")


def test_a_job_goes_on_at_another_server_when_its_own_is_lost(own: Shell, fresh: Callable[..., str]) -> None:
    function = fresh()
    with ExitStack() as stack:
        second = stack.enter_context(JobServer(port=0)).address
        with JobServer(port=0) as server:
            first = server.address
            command = ("submit", "--raw", "--resubmit", "-s", first, "-s", second, function, "x")
            running = stack.enter_context(own.start(*command))
            _until_a_job_waits(first, function)
        _until_a_job_waits(second, function)
        running.signal(signal.SIGINT)
        assert running.end()[0] == 128 + signal.SIGINT


def _until_a_job_waits(address: str, function: str) -> None:
    """Ask until it is so: a server tells nobody of a submission but its submitter, another process here."""
    deadline = time.monotonic() + 20
    while not any(row.name == function.encode() and row.total for row in SyncAdmin(address).status()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_is_limited_on_the_worker(served: Shell, module: str, tmp_path: Path) -> None:
    never = f"path={tmp_path / 'never'}"
    code, stdout, stderr = outcome(served.run("submit", "--run-limit", "0.2s", "until", never))
    assert (code, stdout) == (1, "")
    assert "TaskTimeout" in stderr


def test_a_failed_run_is_repeated_as_often_as_asked(served: Shell) -> None:
    code, stdout, stderr = outcome(served.run("submit", "--retries", "1", "divide", "a=1", "b=0"))
    assert (code, stdout) == (1, "")
    assert stderr.count("warning") == 1  # of the run that was repeated
    assert "divide failed: ZeroDivisionError" in stderr


def test_what_c_gearmand_cannot_do_is_78(gearmand: str, shell: Shell, module: str) -> None:
    for wish in (
        ["--keep", "1h"],
        ["--expires", "1h"],
        ["--unique", "k", "--reuse"],
        ["--unique", "k", "--debounce", "1s"],
    ):
        code, stdout, stderr = outcome(
            shell.run("submit", "-m", module, "--bg", *wish, "add", "a=1", "-s", gearmand)
        )
        assert (code, stdout) == (78, "")
        assert "gearflow server" in stderr


@pytest.mark.parametrize("typed", [True, False], ids=["with the module", "without it"])
def test_the_latest_of_debounced_submissions_is_the_job(own: Shell, module: str, typed: bool) -> None:
    how = ["-m", module] if typed else []
    name = "add" if typed else f"{module}.add"
    wishes = ["--bg", "--unique", "k", "--debounce", "1h", "--max-wait", "2h"]
    ended = [own.run("submit", *how, *wishes, name, f"a={number}") for number in range(2)]
    first, second = (each.stdout.decode().strip() for each in ended)
    assert first == second, ended[0].stderr
    assert json.loads(own.run("job", first, "--json").stdout)["state"] == "delayed"
    for wish, fault in (
        (["--unique", "k", "--debounce", "1s"], "add --bg"),
        (["--bg", "--debounce", "1s"], "add --unique"),
        (["--bg", "--max-wait", "1s"], "add --debounce"),
        (["--bg", "--unique", "k", "--debounce", "1s", "--delay", "1s"], "do not go together"),
    ):
        code, _, stderr = outcome(own.run("submit", *how, *wish, name, "a=1"))
        assert (code, fault in stderr) == (2, True), stderr


def test_retries_on_c_gearmand_need_to_know_that_the_worker_is_gearflows(
    gearmand: str, shell: Shell, module: str
) -> None:
    wish = ("submit", "--retries", "1", "--run-limit", "30s", "-s", gearmand)
    code, _, stderr = outcome(shell.run(*wish, "--timeout", "5", f"{module}.divide", "a=1", "b=0"))
    assert code == 78
    assert "keeps no retries" in stderr
    assert "in the shell name the task's module with -m" in stderr
    with shell.start("worker", module, "-s", gearmand) as worker:
        worker.until("registered")
        worker.drain()
        code, _, stderr = outcome(shell.run(*wish, "-m", module, "divide", "a=1", "b=0"))
    assert code == 1
    assert stderr.count("warning") == 1  # of the run that was repeated


def test_no_server_is_69(shell: Shell, module: str) -> None:
    for arguments in (["add"], ["-m", module, "add", "a=1"]):
        code, stdout, stderr = outcome(shell.run("submit", *arguments, GEARMAN_SERVERS="127.0.0.1:1"))
        assert (code, stdout) == (69, "")
        assert "127.0.0.1:1: connection refused" in stderr.lower()
        assert "gearflow server" in stderr


def test_a_name_that_is_nobodys_offers_the_nearest(served: Shell, module: str) -> None:
    code, stdout, stderr = outcome(served.run("submit", "shoutt"))
    assert (code, stdout) == (2, "")
    assert f"did you mean {module}.shout?" in stderr


# ------------------------------------------------------------------ names, as servers know them

Offer = Callable[..., str]


@pytest.fixture
def offer(own: Shell) -> Offer:
    """``offer("a.b", "c")``: the address of a server that knows these functions."""

    def create(*functions: str) -> str:
        address = own.environment["GEARMAN_SERVERS"]
        for function in functions:
            SyncAdmin(address).create_function(function)
        return address

    return create


def test_a_bare_name_is_the_only_function_that_ends_in_it(offer: Offer) -> None:
    address = offer("img.resize", "img.thumb", "resize_all")
    assert resolve("resize", [address]) == "img.resize"


def test_the_very_name_comes_before_one_that_ends_in_it(offer: Offer) -> None:
    assert resolve("resize", [offer("img.resize", "resize")]) == "resize"


def test_a_name_that_several_end_in_is_refused(own: Shell, offer: Offer) -> None:
    offer("a.resize", "b.resize")
    code, _, stderr = outcome(own.run("submit", "resize"))
    assert code == 2
    assert "resize may be a.resize or b.resize; give the full name" in stderr


def test_an_unknown_full_name_is_sent_with_a_warning(own: Shell) -> None:
    code, stdout, stderr = outcome(own.run("submit", "--bg", "img.resize", "a=1"))
    assert code == 0
    assert stdout.startswith("H:")
    assert "warning: no worker offers img.resize now, so the job waits for one" in stderr


def test_a_server_that_knows_nothing_says_how_to_start_a_worker(own: Shell) -> None:
    code, _, stderr = outcome(own.run("submit", "resize"))
    assert code == 2
    assert "gearflow worker MODULE" in stderr


def test_a_bare_name_that_no_server_knows_yet_is_waited_for(own: Shell) -> None:
    address = own.environment["GEARMAN_SERVERS"]
    with SyncClient([address]), own.start("submit", "--bg", "thumb", "a=1") as submission:
        assert "no worker offers thumb yet; waiting 2 s for one" in submission.until("warning")
        SyncAdmin(address).create_function("img.thumb")  # as a worker does that comes back
        assert submission.output().startswith("H:")
        assert submission.end()[0] == 0


def test_a_name_that_was_mistyped_once_is_not_offered_before_what_workers_offer(
    served: Shell, module: str, fresh: Callable[..., str]
) -> None:
    served.run("submit", "--bg", f"{module}.shoutt", "text=a")
    code, _, stderr = outcome(served.run("submit", "shoutty", "text=a"))
    assert code == 2
    assert f"did you mean {module}.shout?" in stderr
    code, _, stderr = outcome(served.run("submit", "--bg", "shoutt", "text=a"))
    assert code == 0
    assert (
        f"no worker offers {module}.shoutt now, so the job waits for one; did you mean {module}.shout?"
        in stderr
    )


@pytest.mark.parametrize("how", [[], ["-m", "json"]], ids=["without a module", "with one"])
def test_an_empty_name_is_refused_in_words(how: list[str]) -> None:
    ended = CliRunner().invoke(app, ["submit", *how, ""])
    assert (ended.exit_code, ended.stderr) == (
        2,
        "gearflow: the name is empty; give the name of a task, such as myapp.tasks.add\n",
    )


# ------------------------------------------------------------------ functions that take a text


@pytest.mark.parametrize("typed", [True, False], ids=["with the module", "without it"])
@pytest.mark.parametrize("given", ["text=Bob", "Bob"])
def test_a_task_that_takes_one_text_gets_the_text_alone(
    served: Shell, module: str, given: str, typed: bool
) -> None:
    how = ["-m", module] if typed else []
    assert outcome(served.run("submit", *how, "shout", given)) == (0, "BOB\n", "")


def test_arguments_that_do_not_fit_one_text_are_refused_without_the_module_too(served: Shell) -> None:
    code, stdout, stderr = outcome(served.run("submit", "shout", "txt=a", "b=1"))
    assert (code, stdout) == (65, "")
    assert "text: is missing" in stderr
    assert "txt: there is no such parameter; there are text" in stderr


def test_a_payload_is_shown_while_no_worker_says_whether_it_is_a_text(own: Shell, module: str) -> None:
    code, stdout, stderr = outcome(own.run("submit", "--bg", f"{module}.shout", "text=Bob"))
    assert (code, stdout[:2]) == (0, "H:")
    assert 'warning: sending {"text": "Bob"}: no worker says' in stderr
    assert "name its module with -m, or send the text alone with --raw" in stderr
    for clear in (["text=Bob", "n=1"], ["n=1"], ['{"text": "Bob"}']):
        assert "sending" not in own.run("submit", "--bg", f"{module}.shout", *clear).stderr.decode()


def test_functions_that_c_gearmand_knows_are_found_too(gearmand: str, function: str) -> None:
    SyncAdmin(gearmand).create_function(function)
    assert resolve(function.rpartition(".")[2], [gearmand]) == function
