"""``gearflow result``, ``job``, ``cancel``, ``pause``, ``resume`` and ``purge``."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from datetime import datetime

import pytest
from typer.testing import CliRunner

from gearflow.client import SubmitOptions, SyncAdmin, SyncClient
from gearflow.protocol import packets as p
from gearflow_cli.app import app
from tests.cli.shell import COMMAND, Running, Shell, outcome
from tests.server.wire import Wire


def address_of(shell: Shell) -> str:
    return shell.environment["GEARMAN_SERVERS"]


def submit(shell: Shell, function: str, delay: float | None = None) -> str:
    """The handle of a background job that nobody runs."""
    with SyncClient([address_of(shell)]) as client:
        return client.submit_background(function, b"", options=SubmitOptions(delay=delay)).handle


def until_connected(command: Running, address: str) -> None:
    """Wait until a command has a connection to a server where nobody else is."""
    while len(SyncAdmin(address).workers()) < 2:  # connections, the one that asks included
        assert command.process.poll() is None


# ----------------------------------------------------------------------------------------------- result


def test_a_result_can_be_had_again_and_again(served: Shell) -> None:
    handle = served.run("submit", "--bg", "add", "a=1").stdout.decode().strip()
    for _ in range(2):
        assert outcome(served.run("result", handle)) == (0, "3\n", "")


def test_a_handle_may_name_its_server(served: Shell) -> None:
    handle = served.run("submit", "--bg", "add", "a=1").stdout.decode().strip()
    ended = served.run("result", f"{handle}@{address_of(served)}", GEARMAN_SERVERS="127.0.0.1:1")
    assert outcome(ended) == (0, "3\n", "")


def test_a_result_can_be_had_by_function_and_unique(
    served: Shell, module: str, fresh: Callable[..., str]
) -> None:
    key = fresh("key")
    assert served.run("submit", "--bg", "--unique", key, "add", "a=4").returncode == 0
    for name in ("add", f"{module}.add"):
        assert outcome(served.run("result", "--unique", key, name)) == (0, "6\n", "")


def test_a_result_that_is_bytes_is_passed_on_as_it_is(served: Shell) -> None:
    handle = served.run("submit", "--bg", "reverse", "--raw", "-", stdin=b"\0\xff").stdout.decode().strip()
    assert served.run("result", handle).stdout == b"\xff\0"


def test_a_job_that_failed_is_1_with_its_traceback_if_asked(served: Shell) -> None:
    handle = served.run("submit", "--bg", "divide", "a=1", "b=0").stdout.decode().strip()
    code, stdout, stderr = outcome(served.run("result", handle))
    assert (code, stdout) == (1, "")
    assert f"job {handle} failed: ZeroDivisionError: float division by zero" in stderr
    assert "Traceback" not in stderr
    code, _, stderr = outcome(served.run("result", handle, "-v"))
    assert code == 1
    assert "return a / b" in stderr


def test_a_payload_that_the_worker_refused_is_65(served: Shell) -> None:
    handle = served.run("submit", "--bg", "add", "a=x").stdout.decode().strip()
    code, _, stderr = outcome(served.run("result", handle))
    assert code == 65
    assert "  a: Input should be a valid integer" in stderr


@pytest.mark.parametrize("command", ["result", "job", "cancel"])
def test_a_job_that_never_was_is_66(own: Shell, command: str) -> None:
    handle = submit(own, "nobody.runs.this")
    for unknown in (f"{handle.rpartition(':')[0]}:999", "H:elsewhere:1", "nonsense"):
        code, stdout, stderr = outcome(own.run(command, unknown))
        assert (code, stdout) == (66, "")
        assert unknown in stderr
        assert "Traceback" not in stderr
    code, _, stderr = outcome(own.run(command, "--unique", "never", "nobody.runs.this"))
    assert code == 66
    assert "never" in stderr


def test_what_names_no_job_is_a_usage_error() -> None:
    for name in ("", "@127.0.0.1", "H:a:1@127.0.0.1:none"):
        ended = CliRunner().invoke(app, ["result", name])
        assert ended.exit_code == 2, name


def test_a_wait_that_takes_too_long_is_75(own: Shell) -> None:
    handle = submit(own, "nobody.runs.this")
    code, stdout, stderr = outcome(own.run("result", handle, "--timeout", "0.1"))
    assert (code, stdout) == (75, "")
    assert f"job {handle} has not ended within 0.1 s" in stderr


def test_a_cancelled_job_is_said_to_be_so(own: Shell) -> None:
    handle = submit(own, "nobody.runs.this")
    assert outcome(own.run("cancel", handle)) == (0, f"cancelled job {handle}\n", "")
    code, stdout, stderr = outcome(own.run("result", handle))
    assert (code, stdout) == (1, "")
    assert f"job {handle} was cancelled" in stderr
    assert own.run("cancel", handle).returncode == 66  # it is over


def test_a_job_that_waits_is_edited(own: Shell) -> None:
    handle = submit(own, "nobody.runs.this")
    time = "2030-12-24T18:00+01:00"
    edited = own.run("edit", handle, "--priority", "high", "--at", time, "--expires", "7d")
    assert outcome(edited) == (0, f"edited job {handle}\n", "")
    known = json.loads(own.run("job", handle, "--json").stdout)
    due = datetime.fromisoformat(time).timestamp()
    assert (known["state"], known["priority"], known["due"]) == ("delayed", "high", due)
    assert own.run("edit", handle, "--delay", "0").returncode == 0
    assert json.loads(own.run("job", handle, "--json").stdout)["state"] == "waiting"


@pytest.mark.parametrize(
    ("options", "fault"),
    [((), "there is nothing to change"), (("--at", "2030-01-01", "--delay", "1s"), "both say when")],
)
def test_an_edit_that_makes_no_sense_is_refused(own: Shell, options: tuple[str, ...], fault: str) -> None:
    handle = submit(own, "nobody.runs.this")
    code, _, stderr = outcome(own.run("edit", handle, *options))
    assert code == 2
    assert fault in stderr


def test_a_job_that_is_over_is_not_edited(own: Shell) -> None:
    handle = submit(own, "nobody.runs.this")
    own.run("cancel", handle)
    code, _, stderr = outcome(own.run("edit", handle, "--priority", "low"))
    assert code != 0
    assert "has ended, and only a job that waits can be edited" in stderr


def test_interrupting_the_wait_for_a_result_shows_no_traceback(own: Shell) -> None:
    handle = submit(own, "nobody.runs.this")
    with own.start("result", handle) as waiting:
        until_connected(waiting, address_of(own))
        waiting.signal(signal.SIGINT)
        code, stderr = waiting.end()
    assert (code, stderr) == (130, f"gearflow: stopped waiting for job {handle}; it goes on\n")


# -------------------------------------------------------------------------------------------------- job


def test_all_that_is_known_of_a_job_is_shown(served: Shell, module: str) -> None:
    handle = served.run("submit", "--bg", "warn").stdout.decode().strip()
    served.run("result", handle)
    lines = served.run("job", handle).stdout.decode().splitlines()
    known = {line[: line.index("  ")]: line.split("  ", 1)[1].strip() for line in lines}
    assert known["handle"] == handle
    assert known["function"] == f"{module}.warn"
    assert known["state"] == "completed"
    assert known["progress"] == "1 of 2"
    assert known["warning"] == "half way\\x1b[31m"
    told = json.loads(served.run("job", handle, "--json").stdout)
    assert (told["state"], told["attempt"], told["progress"]) == ("completed", 1, [1, 2])


def test_a_failed_job_is_shown_with_its_traceback(served: Shell) -> None:
    handle = served.run("submit", "--bg", "divide", "a=1", "b=0").stdout.decode().strip()
    served.run("result", handle)
    shown = served.run("job", handle).stdout.decode()
    assert "raised, a dead letter" in shown
    assert "ZeroDivisionError: float division by zero" in shown
    assert "return a / b" in shown


@pytest.mark.parametrize("epoch", [b"253402300800", b"9" * 26])
def test_a_job_that_is_due_after_all_calendars_is_shown(
    shell: Shell, fresh: Callable[..., str], epoch: bytes
) -> None:
    with Wire(int(address_of(shell).rpartition(":")[2])) as client:
        client.send(p.SubmitJobEpoch(fresh().encode(), b"", epoch, b""))
        handle = client.handle().decode()
    code, shown, said = outcome(shell.run("job", handle))
    assert (code, said) == (0, "")
    assert re.search(r"^due +after the year 9999$", shown, re.MULTILINE)


# --------------------------------------------------------------------------------- a function's jobs


def test_a_paused_function_is_given_out_again_when_it_is_resumed(own: Shell, module: str) -> None:
    handle = submit(own, f"{module}.nothing")
    assert f"paused {module}.nothing; 1 job waiting" in own.run("pause", "nothing").stdout.decode()
    with own.start("worker", module) as worker:
        worker.until("registered")
        assert own.run("submit", "add", "a=1").stdout == b"3\n"  # the worker is at work
        assert own.run("result", handle, "--timeout", "0").returncode == 75
        assert f"resumed {module}.nothing" in own.run("resume", "nothing").stdout.decode()
        assert outcome(own.run("result", handle)) == (0, "null\n", "")


def test_a_misspelt_function_is_not_paused(own: Shell, module: str) -> None:
    submit(own, f"{module}.nothing")
    for command in (["pause"], ["resume"], ["purge", "--yes"]):
        code, _, stderr = outcome(own.run(*command, "nothin"))
        assert code == 2
        assert f"did you mean {module}.nothing?" in stderr
    code, _, stderr = outcome(own.run("pause", f"{module}.nothin"))  # a full name may be one of tomorrow's
    assert code == 0
    assert "warning: no server knows" in stderr


def test_purging_cancels_what_waits_and_what_is_delayed(own: Shell) -> None:
    handles = [submit(own, "img.resize"), submit(own, "img.resize", delay=3600.0)]
    other = submit(own, "img.crop")
    code, stdout, _ = outcome(own.run("purge", "--yes", "resize"))
    assert (code, stdout) == (0, f"{address_of(own)}: cancelled 2 jobs of img.resize\n")
    for handle in handles:
        assert json.loads(own.run("job", handle, "--json").stdout)["state"] == "cancelled"
    assert json.loads(own.run("job", other, "--json").stdout)["state"] == "waiting"


def test_purging_is_refused_where_nobody_can_be_asked(own: Shell) -> None:
    handle = submit(own, "img.resize")
    code, stdout, stderr = outcome(own.run("purge", "img.resize"))
    assert (code, stdout) == (2, "")
    assert "add --yes" in stderr
    assert json.loads(own.run("job", handle, "--json").stdout)["state"] == "waiting"


@pytest.mark.parametrize(
    ("answer", "code", "state"), [("n", 130, "waiting"), ("", 130, "waiting"), ("y", 0, "cancelled")]
)
def test_purging_asks_first(
    own: Shell, terminal: tuple[int, int], answer: str, code: int, state: str
) -> None:
    handle = submit(own, "img.resize")
    ours, theirs = terminal
    with subprocess.Popen(
        [*COMMAND, "purge", "img.resize", "-s", address_of(own)], stdin=theirs, stderr=subprocess.PIPE
    ) as process:
        os.close(theirs)
        os.write(ours, f"{answer}\n".encode())
        _, stderr = process.communicate(timeout=60)
        os.close(ours)
    assert f"Cancel the waiting jobs of img.resize, 1 now, on {address_of(own)}? [y/N]" in stderr.decode()
    assert process.returncode == code
    assert json.loads(own.run("job", handle, "--json").stdout)["state"] == state


def test_one_server_that_is_away_does_not_keep_the_others_from_it(own: Shell) -> None:
    submit(own, "img.resize")
    code, stdout, stderr = outcome(own.run("pause", "img.resize", "-s", "127.0.0.1:1", "-s", address_of(own)))
    assert code == 69  # it is not done everywhere
    assert stdout == f"{address_of(own)}: paused img.resize; 1 job waiting\n"
    assert "127.0.0.1:1" in stderr


# ------------------------------------------------------------------------------- servers of other makes


@pytest.mark.parametrize(
    "command",
    [
        ("result", "H:x:1"),
        ("job", "H:x:1"),
        ("cancel", "H:x:1"),
        ("pause", "no.such"),
        ("resume", "no.such"),
        ("purge", "--yes", "no.such"),
        ("dead", "list"),
        ("dead", "show", "H:x:1"),
        ("dead", "replay", "--all"),
        ("dead", "purge", "--all", "--yes"),
    ],
    ids=" ".join,
)
def test_c_gearmand_cannot_do_it_and_that_is_78(gearmand: str, command: tuple[str, ...]) -> None:
    ended = CliRunner().invoke(app, [*command, "-s", gearmand])
    assert ended.exit_code == 78
    assert "run 'gearflow server' there" in ended.stderr
