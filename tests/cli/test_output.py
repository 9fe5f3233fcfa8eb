"""What only reads: ``gearflow status``, ``gearflow tasks``, ``--help``, ``--version``."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from gearflow.client import SyncAdmin, SyncClient
from gearflow.protocol.server_calls import JobInfo, PastRun
from gearflow_cli import options, output
from gearflow_cli.app import app
from tests.cli.shell import COMMAND, Shell, outcome
from tests.conftest import run_gearmand


def test_a_job_that_failed_shows_how_far_it_came() -> None:
    job = JobInfo(handle="H:1", function="f", state="raised", progress=(812, 1000), message="page 9", parts=3)
    rows = dict(output.job_rows(job))
    assert (rows["progress"], rows["parts"]) == ("812 of 1000: page 9", "3")


def test_a_job_that_was_repeated_shows_each_run_with_its_worker_and_its_error() -> None:
    run = PastRun(attempt=1, started=1e9, ended=1e9 + 2.5, worker="w1", reason="KeyError: 'card'")
    rows = dict(output.job_rows(JobInfo(handle="H:1", function="f", state="waiting", runs=(run,))))
    assert rows["run 1"].endswith(", 2.5 s on w1: KeyError: 'card'")


def test_status_in_a_pipe_is_plain_columns(own: Shell) -> None:
    SyncAdmin(own.environment["GEARMAN_SERVERS"]).create_function("img.resize")
    ended = own.run("status")
    header, row = ended.stdout.decode().splitlines()
    assert header.split() == ["function", "total", "running", "waiting", "workers", "paused", "overdue"]
    assert row.split() == ["img.resize", "0", "0", "0", "0", "no", "0"]
    assert b"\x1b" not in ended.stdout


def test_status_counts_what_waits(own: Shell) -> None:
    own.run("submit", "--bg", "img.resize", "a=1")
    (server,) = json.loads(own.run("status", "--json").stdout)
    counts = {"total": 1, "running": 0, "waiting": 1, "workers": 0, "paused": False, "overdue": 0}
    more: dict[str, object] = {"limits": [], "waits_for": "no worker"}
    assert server == {
        "server": own.environment["GEARMAN_SERVERS"],
        "error": None,
        "closed": None,
        "group": None,
        "functions": [{"name": "img.resize", **counts, **more}],
    }


def test_what_is_paused_is_shown(own: Shell) -> None:
    handle = own.run("submit", "--bg", "img.resize", "a=1").stdout.decode().strip()
    own.run("pause", "img.resize")
    assert own.run("status").stdout.decode().split()[-3:] == ["yes", "0", "paused"]
    assert b"waiting; its function is paused\n" in own.run("job", handle).stdout
    own.run("resume", "img.resize")
    assert own.run("status").stdout.decode().split()[-4:] == ["no", "0", "no", "worker"]
    assert b"paused" not in own.run("job", handle).stdout


def test_status_counts_threads_that_overran(own: Shell, module: str, tmp_path: Path) -> None:
    with own.start("worker", module):
        stuck = own.run(
            "submit", "-m", module, "--run-limit", "0.1s", "watch_for", f"path={tmp_path / 'end'}"
        )
        assert b"TaskTimeout" in stuck.stderr
        rows = {line.split()[0]: line.split() for line in own.run("status").stdout.decode().splitlines()}
        assert rows[f"{module}.watch_for"][-1] == "1"
        assert rows[f"{module}.add"][-1] == "0"
        (tmp_path / "end").touch()


def test_status_names_the_server_that_is_dead(own: Shell) -> None:
    alive = own.environment["GEARMAN_SERVERS"]
    SyncAdmin(alive).create_function("img.resize")
    ended = own.run("status", "-s", "127.0.0.1:1", "-s", alive)
    assert ended.returncode == 0
    assert ended.stderr.decode().lower() == "gearflow: 127.0.0.1:1 does not answer: connection refused\n"
    assert ended.stdout.decode().splitlines()[1].split()[:2] == [alive, "img.resize"]
    first, second = json.loads(own.run("status", "--json", GEARMAN_SERVERS=f"127.0.0.1:1,{alive}").stdout)
    assert first["error"]
    assert second["error"] is None


def test_status_without_any_server_is_69(own: Shell) -> None:
    ended = own.run("status", "--json", "-s", "127.0.0.1:1", "-s", "127.0.0.1:2")
    assert (ended.returncode, ended.stdout) == (69, b"")
    assert b"127.0.0.1:1" in ended.stderr
    assert b"127.0.0.1:2" in ended.stderr


def test_a_function_name_cannot_steer_the_terminal(own: Shell) -> None:
    SyncAdmin(own.environment["GEARMAN_SERVERS"]).create_function("\x1b[31mred")
    assert b"\x1b" not in own.run("status").stdout


def test_status_reads_c_gearmand(gearmand: str, tmp_path: Path, function: str) -> None:
    SyncAdmin(gearmand).create_function(function)
    ended = Shell(tmp_path).run("status", "-s", gearmand)
    header, *rows = ended.stdout.decode().splitlines()
    assert any(row.split()[0] == function for row in rows)
    assert "overdue" not in header  # it does not know


def test_a_function_with_a_newline_in_its_name_breaks_no_command_at_c_gearmand(
    program: Callable[[str], str], tmp_path: Path
) -> None:
    with run_gearmand(program("gearmand"), tmp_path / "log") as address, SyncClient([address]) as client:
        client.submit_background("two\nlines", b"x")
        client.submit_background("img.resize", b"x")
        shell = Shell(tmp_path)
        ended = shell.run("status", "-s", address)
        assert (ended.returncode, ended.stderr) == (0, b"")
        rows = [line.split() for line in ended.stdout.decode().splitlines()[1:]]
        assert ["img.resize", "1", "0", "1", "0"] in rows
        submitted = shell.run("submit", "--bg", "resize", "a=1", "-s", address)  # asks for the full name
        assert submitted.returncode == 0, submitted.stderr
        assert ["img.resize", 2] in [[row.name.decode(), row.total] for row in SyncAdmin(address).status()]


def test_status_tells_which_servers_know_more(own: Shell, gearmand: str, function: str) -> None:
    alive = own.environment["GEARMAN_SERVERS"]
    for address in (alive, gearmand):
        SyncAdmin(address).create_function(function)
    rows = own.run("status", "-s", alive, "-s", gearmand).stdout.decode().splitlines()
    last = {row.split()[0]: row.split()[-2:] for row in rows if function in row}
    assert last == {alive: ["no", "0"], gearmand: ["-", "-"]}


@pytest.mark.parametrize("arguments", [["status"], ["--help"], ["--version"], ["submit", "--help"]])
def test_a_reader_that_goes_away_is_no_error(own: Shell, arguments: list[str]) -> None:
    admin = SyncAdmin(own.environment["GEARMAN_SERVERS"])
    admin.create_function("img.resize")
    with subprocess.Popen(
        [*COMMAND, *arguments],
        env={"GEARMAN_SERVERS": own.environment["GEARMAN_SERVERS"], "PATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_full_disk_is_told_without_a_traceback(own: Shell) -> None:
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [*COMMAND, "status"], env=own.environment, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert ended.returncode == 74
    assert ended.stderr == b"gearflow: cannot write: No space left on device\n"


@pytest.mark.parametrize("command", ["status", "submit --bg a.b x=1", "submit --timeout 30 shout --raw x"])
def test_a_closed_stdout_loses_no_result_in_silence(served: Shell, command: str) -> None:
    shell = f"exec {' '.join(COMMAND)} {command} >&-"
    ended = subprocess.run(
        ["/bin/sh", "-c", shell], env=served.environment, stderr=subprocess.PIPE, check=False
    )
    assert ended.returncode == 74
    assert ended.stderr.endswith(b"gearflow: standard output is closed\n")


def test_tasks_lists_names_signatures_and_options(shell: Shell, module: str) -> None:
    lines = shell.run("tasks", module).stdout.decode().splitlines()
    assert lines[0].split() == ["task", "signature", "options"]
    rows = {line.split()[0]: line for line in lines[1:]}
    assert "(a: int, b: int = 2) -> int" in rows[f"{module}.add"]
    assert rows[f"{module}.warn"].split(maxsplit=1)[1] == "() -> str"  # no Context for callers
    assert rows[f"{module}.settings_of"].endswith("timeout=30, priority=high, unique")
    assert rows[f"{module}.elsewhere"].endswith("foreign")


def test_tasks_gives_schemas_as_json(shell: Shell, module: str) -> None:
    tasks = {task["name"]: task for task in json.loads(shell.run("tasks", "--json", module).stdout)}
    add = tasks[f"{module}.add"]
    assert add["signature"] == "(a: int, b: int = 2) -> int"
    assert add["description"] == "Add two numbers."
    assert add["payload"]["required"] == ["a"]
    assert add["result"] == {"type": "integer"}
    assert tasks[f"{module}.settings_of"]["options"] == {"timeout": 30, "priority": "high", "unique": True}


def test_tasks_explains_when_a_task_is_tried_again(shell: Shell, module: str) -> None:
    told = shell.run("tasks", "--explain", module).stdout.decode().split("\n\n")
    explained = {text.partition("(")[0]: text.splitlines()[1:] for text in told}
    assert explained[f"{module}.fetch"] == [
        "  keep     3600 s",
        "  expires  60 s",
        "  retries  4 attempts, after at most 2 s, 4 s, 5 s",
        "           each delay is drawn between half of it and all of it",
        "           if it raises builtins.ConnectionError, builtins.TimeoutError",
    ]
    assert explained[f"{module}.add"] == ["  retries  none: a run that fails is the last"]


def test_tasks_lists_retries_as_they_are_given(shell: Shell, module: str) -> None:
    assert "keep=3600, expires=60, retries=3\n" in shell.run("tasks", module).stdout.decode()
    tasks = {task["name"]: task for task in json.loads(shell.run("tasks", "--json", module).stdout)}
    assert tasks[f"{module}.fetch"]["options"]["retries"] == {
        "attempts": 4,
        "delays": [2.0, 4.0, 5.0],
        "jitter": True,
        "on": ["builtins.ConnectionError", "builtins.TimeoutError"],
    }


@pytest.mark.parametrize("options", [[], ["--explain"], ["--json"]])
@pytest.mark.parametrize(
    ("backoff", "said"),
    [("lambda n: -1", "backoff(1) returned -1"), ("lambda n: 1 / 0", "ZeroDivisionError")],
)
def test_a_schedule_that_cannot_be_made_is_78_and_told_with_its_task(
    tmp_path: Path, options: list[str], backoff: str, said: str
) -> None:
    (tmp_path / "odd.py").write_text(
        "from gearflow import Retry, task\n"
        f"@task(retries=Retry(3, backoff={backoff}))\ndef slip() -> None: ...\n"
    )
    code, stdout, stderr = outcome(Shell(tmp_path).run("tasks", "odd", *options))
    assert (code, stdout) == (78, "")
    assert stderr.startswith("gearflow: task odd.slip:\n")
    assert said in stderr


def test_a_task_that_has_no_retries_is_explained_as_such(tmp_path: Path) -> None:
    (tmp_path / "once.py").write_text(
        "from gearflow import task\n@task(retries=0)\ndef slip() -> None: ...\n"
    )
    told = Shell(tmp_path).run("tasks", "--explain", "once").stdout.decode()
    assert told == "once.slip() -> None\n  retries  none: a run that fails is the last\n"


BATCHES = """
from gearflow import Batch, Context, task

@task(batch=Batch(100, wait=0.2), retries=3)
def embed(ctx: Context, texts: list[str]) -> list[float | Exception]:
    return [float(len(text)) for text in texts]
"""


def test_tasks_shows_a_batch_as_its_callers_see_it(tmp_path: Path) -> None:
    (tmp_path / "batches.py").write_text(BATCHES)
    shell = Shell(tmp_path)
    line = shell.run("tasks", "batches").stdout.decode().splitlines()[1]
    assert line.split(maxsplit=1) == ["batches.embed", "(texts: str) -> float  batch=100, retries=3"]
    explained = shell.run("tasks", "batches", "--explain").stdout.decode()
    assert "up to 100 items, within 0.2 s of the first" in explained
    [described] = json.loads(shell.run("tasks", "batches", "--json").stdout)
    assert described["signature"] == "(texts: str) -> float"
    assert described["options"]["batch"] == {"size": 100, "wait": 0.2}
    assert described["payload"]["contentMediaType"].startswith("text/plain")


@pytest.mark.parametrize(
    "command", ["tasks", "tasks --json", "tasks --explain", "worker", "submit -s 127.0.0.1:1 -m odd send a=1"]
)
@pytest.mark.parametrize(
    ("definition", "said"),
    [
        ("def send(a: int, thing: Plain = None) -> None: ...", "the parameter 'thing'"),
        ("def send(a: int) -> Plain: ...", "the result"),
        ("def send(ctx: Context | None, a: int) -> None: ...", "annotate 'ctx' as 'Context' alone"),
    ],
)
def test_a_type_that_cannot_travel_is_78_before_anything_is_done(
    command: str, definition: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "odd.py").write_text(
        f"from gearflow import Context, task\nclass Plain: ...\n@task\n{definition}\n"
    )
    arguments = command.split() if "-m" in command else [*command.split(), "odd"]
    code, stdout, stderr = outcome(Shell(tmp_path).run(*arguments))
    assert (code, stdout) == (78, "")
    assert "odd.send" in stderr
    assert said in stderr


def test_only_what_a_worker_serves_has_to_travel(own: Shell, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        "from gearflow import task\nclass Plain: ...\n"
        "@task\ndef bad(thing: Plain) -> None: ...\n@task\ndef good() -> None: ...\n"
    )
    shell = Shell(tmp_path, own.environment)
    assert shell.run("worker", "--burst", "-f", "good", "odd").returncode == 0
    assert shell.run("worker", "--burst", "odd").returncode == 78


@pytest.mark.parametrize("command", ["tasks", "dev"])
def test_a_module_without_a_name_is_a_usage_error(command: str) -> None:
    ended = CliRunner().invoke(app, [command, ""])
    assert ended.exit_code == 2
    assert "there is no name in it" in ended.stderr


def test_a_module_without_tasks_is_78(tmp_path: Path) -> None:
    (tmp_path / "empty.py").touch()
    ended = Shell(tmp_path).run("tasks", "empty")
    assert (ended.returncode, ended.stdout) == (78, b"")


def test_help_and_version_need_nothing_of_the_library() -> None:
    heavy = "{'anyio', 'asyncio', 'gearflow'}"
    script = (
        "import sys; from gearflow_cli.app import app\n"
        "for arguments in (['--help'], ['--version'], ['worker', '--help']):\n"
        "    try: app(arguments, prog_name='gearflow')\n"
        "    except SystemExit as end: assert end.code == 0, end\n"
        f"assert not {heavy} & sys.modules.keys(), {heavy} & sys.modules.keys()\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.stderr == ""
    assert "submit" in ended.stdout
    assert "gearflow 0." in ended.stdout


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("5m", 300), ("1h30m", 5400), ("2d", 172800), ("0.5s", 0.5), ("7", 7)]
)
def test_durations_have_units(text: str, seconds: float) -> None:
    assert options.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "5 m", "-1", "nan", "inf", "1e", "5w", "m5", "1e11", "999999999d"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        options.duration(text)


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2030-12-24T18:00+01:00", "2030-12-24T17:00:00+00:00"),
        ("2030-12-24T17:00Z", "2030-12-24T17:00:00+00:00"),
    ],
)
def test_times_have_zones(text: str, utc: str) -> None:
    assert options.moment(text).astimezone(UTC).isoformat() == utc


def test_a_time_without_a_zone_is_local() -> None:
    assert options.moment("2030-12-24T18:00") == datetime(2030, 12, 24, 18).astimezone()


@pytest.fixture(params=["UTC0", "EST5", "JST-9"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The local zone: UTC, one west of it, one east of it."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("zone")
@pytest.mark.parametrize("text", ["9999-12-31", "9999-12-31T23:59:59", "9999-12-31T23:59:59-12:00"])
def test_the_last_day_of_the_calendar_is_too_late_in_every_zone(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is too late"):
        options.moment(text)


@pytest.mark.usefixtures("zone")
@pytest.mark.parametrize("text", ["0001-01-01", "0001-01-01T00:00+12:00"])
def test_the_first_day_of_the_calendar_is_past_in_every_zone(text: str) -> None:
    assert options.moment(text) == datetime.fromtimestamp(0, UTC)


def test_one_long_name_makes_no_other_line_long() -> None:
    long = "x" * 60_000
    header, first, second = output.columns(["function", "jobs"], [["short", 1], [long, 2]]).splitlines()
    assert (header.split(), first.split(), second.split()) == (
        ["function", "jobs"],
        ["short", "1"],
        [long, "2"],
    )
    assert len(header) < 300
    assert len(first) < 300
