"""``gearflow watch`` over the bundled server and a real worker process."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from gearflow import Started
from gearflow_cli import output, watch_view
from tests.cli.shell import COMMAND, Shell, outcome, said_on


def submitted(shell: Shell, *arguments: str) -> str:
    """The handle of a background job."""
    return shell.run("submit", "--bg", *arguments).stdout.decode().strip()


def test_a_job_that_has_ended_is_over_at_once(served: Shell) -> None:
    handle = submitted(served, "add", "a=1")
    served.run("result", handle)
    assert outcome(served.run("watch", handle)) == (0, f"{handle}: completed\n", "")


def test_warnings_and_the_end_of_a_job_are_shown(served: Shell, tmp_path: Path) -> None:
    handle = submitted(served, "until", f"path={tmp_path / 'go'}")
    with served.start("watch", handle) as watch:
        assert watch.output().startswith(f"{handle}: running on ")
        (tmp_path / "go").touch()
        shown = [watch.output()]
        while not shown[-1].endswith("completed"):
            shown.append(watch.output())
        assert watch.end() == (0, "")


def test_events_may_be_json(served: Shell, tmp_path: Path) -> None:
    handle = submitted(served, "until", f"path={tmp_path / 'go'}")
    with served.start("watch", "--json", handle) as watch:
        started = json.loads(watch.output())
        assert (started["handle"], started["event"], started["attempt"]) == (handle, "started", 1)
        (tmp_path / "go").touch()
        while (event := json.loads(watch.output()))["event"] != "ended":
            pass
        assert event == {"handle": handle, "event": "ended", "state": "completed"}
        assert watch.end() == (0, "")


def test_it_ends_as_result_does(served: Shell) -> None:
    failed = submitted(served, "divide", "a=1", "b=0")
    invalid = submitted(served, "add", "a=x")
    for handle, code in ((failed, 1), (invalid, 65), ("H:nowhere:1", 66)):
        result, watch = served.run("result", handle), served.run("watch", handle)
        assert (result.returncode, watch.returncode) == (code, code)
        assert result.stderr == watch.stderr
    assert b"return a / b" in served.run("watch", "-v", failed).stderr


def test_several_jobs_are_watched_and_the_first_that_failed_decides(served: Shell) -> None:
    good, bad = submitted(served, "add", "a=1"), submitted(served, "divide", "a=1", "b=0")
    code, stdout, stderr = outcome(served.run("watch", good, bad, "H:nowhere:1"))
    assert code == 1
    assert f"{good}: completed\n" in stdout
    assert f"job {bad} failed: ZeroDivisionError" in stderr
    assert "H:nowhere:1" in stderr


def test_a_job_may_be_named_by_its_key(served: Shell) -> None:
    key = os.urandom(8).hex()
    submitted(served, "--unique", key, "add", "a=1")
    assert outcome(served.run("watch", "--unique", key, "add"))[0] == 0


def test_a_job_that_is_cancelled_has_failed(own: Shell) -> None:
    handle = submitted(own, "app.add", "a=1")
    with own.start("watch", handle) as watch:
        own.run("cancel", handle)
        code, stderr = watch.end()
    assert code == 1
    assert "cancelled" in stderr


def test_the_wait_can_be_limited(own: Shell) -> None:
    handle = submitted(own, "app.add", "a=1")
    code, stdout, stderr = outcome(own.run("watch", "--timeout", "0.2", handle))
    assert (code, stdout) == (75, "")
    assert f"{handle}: no end within 0.2 s" in stderr


def test_a_stop_from_the_keyboard_leaves_the_job_alone(served: Shell, tmp_path: Path) -> None:
    handle = submitted(served, "until", f"path={tmp_path / 'go'}")
    with served.start("watch", handle) as watch:
        watch.output()
        watch.signal(signal.SIGINT)
        assert watch.end() == (130, "gearflow: stopped watching; the jobs go on\n")
    (tmp_path / "go").touch()
    assert served.run("result", handle).returncode == 0


def test_a_reader_that_has_enough_ends_it(served: Shell, tmp_path: Path) -> None:
    handle = submitted(served, "until", f"path={tmp_path / 'go'}")
    with served.start("watch", "--json", handle) as watch:
        watch.output()
        assert watch.process.stdout is not None
        watch.process.stdout.close()
        (tmp_path / "go").touch()
        assert watch.process.wait(30) == 141


IMPATIENT = """
from gearflow_cli import app, watch_view
watch_view.INTERVAL = 0
app.main()
"""


def test_a_reader_that_has_enough_ends_it_also_between_two_events(served: Shell, tmp_path: Path) -> None:
    handle = submitted(served, "until", f"path={tmp_path / 'go'}")
    with subprocess.Popen(
        [sys.executable, "-c", IMPATIENT, "watch", handle],
        cwd=served.directory,
        env=os.environ | served.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as watch:
        assert watch.stdout is not None
        assert watch.stderr is not None
        assert watch.stdout.readline()
        watch.stdout.close()
        assert watch.wait(30) == 141  # at the next line about the progress
        assert watch.stderr.read() == b""
    (tmp_path / "go").touch()


def test_a_terminal_has_bars(served: Shell, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    handle = submitted(served, "warn")
    served.run("result", handle)
    ended = subprocess.run(
        [*COMMAND, "watch", handle],
        cwd=served.directory,
        env=os.environ | served.environment | {"TERM": "xterm", "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    shown = said_on(ours, theirs).decode()
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert "completed" in shown
    assert shown.count("\x1b[?25h") == 1  # the cursor is shown again


def test_there_is_no_bar_for_a_job_that_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(output, "output_console", lambda: Console(file=file, width=100))
    with watch_view.Bars(["H:here:1", "H:lost:1"]) as bars:
        bars.drop("H:lost:1")
        bars.tick()
    assert ("H:here:1" in file.getvalue(), "H:lost:1" in file.getvalue()) == (True, False)


def test_there_are_no_lines_for_a_job_that_was_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch_view, "INTERVAL", 0.0)
    lines = watch_view.Lines()
    lines.show("H:lost:1", Started(1, "worker"))
    lines.tick()
    lines.drop("H:lost:1")
    lines.tick()
    assert capsys.readouterr().out == "H:lost:1: running on worker\n" * 2


@pytest.mark.parametrize("arguments", [("--unique", "k", "add", "sub"), ("",), ()])
def test_what_names_no_job_is_refused(own: Shell, arguments: tuple[str, ...]) -> None:
    assert own.run("watch", *arguments).returncode == 2
